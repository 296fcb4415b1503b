"""Unary evidence: what another source says of every pixel's class, by itself.

For evidence l_k = p(observation of a pixel | class k), up to a factor, the constraint is

    -log c(eta, y) = -sum_pixels sum_k p_k log l_k,      p = class probabilities of eta,

which is linear in p. With evidence q of another network as class probabilities, l_k = (q_k / s_k)^(1 / T): s are the
class shares that q took for granted (a uniform s takes q as it is), T is its temperature. An observed class that is
right with probability a has l = a for it and (1 - a) / (K - 1) for the others.

The proximal step is taken in the geometry of the simplex (mirror descent, Beck & Teboulle 2003): the argmin over z of
KL(z || p) - w sum_k z_k log l_k is p_k l_k^w / sum, which for w = 1 is Bayes' rule. A pixel of which nothing is said
has l = 1 throughout and stays as it is.

That counts what both know twice. Another network's map of the same image is no evidence of its own, it is an opinion,
with q its class probabilities:

    -log c(eta, y) = sum_pixels KL(p || q)

KL(z || p) + w KL(z || q) is least at z ~ (p q^w)^(1 / (1 + w)), the logarithmic pool (Genest & Zidek 1986): the class
is that of Bayes' rule, the confidence that of an average. `Unary` is evidence, `Opinion` an opinion.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.joint import Layout, OneHotLayout

LEAST = 1e-4
"""Least probability of evidence: nothing is ruled out for good."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Unary(Constraint):
    """Evidence of every pixel's class; see the module.

    log_likelihood: (batch, classes, h, w), log l in nats, 0 where nothing is said. layout: of the joint tensor.
    """

    log_likelihood: Tensor
    layout: OneHotLayout
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.log_likelihood.ndim != 4 or self.log_likelihood.shape[1] != self.layout.classes:
            shape = tuple(self.log_likelihood.shape)
            raise SettingError(f"wanted evidence (batch, {self.layout.classes}, height, width), got {shape}")
        if not bool(torch.isfinite(self.log_likelihood).all()) or not self.weight >= 0:
            raise SettingError(f"wanted finite evidence and a weight of 0 or more, got a weight of {self.weight}")

    def energy(self, eta: Tensor) -> Tensor:
        """-sum p log l of every item, in nats."""
        p = self.layout.probabilities(self.layout.split(eta)[1])
        return -(p * self.log_likelihood).sum(dim=(1, 2, 3))

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """P l^weight, normalised, in closed form; the trust in the prior's estimate is in p itself."""
        del variance, layout
        image, labels = self.layout.split(eta)
        p = self.layout.probabilities(labels).clamp(min=LEAST / 10)
        said = self.log_likelihood.ne(0).any(dim=1, keepdim=True)
        updated = torch.softmax(torch.log(p) + self.weight * self.log_likelihood, dim=1)
        return self.layout.join(image, torch.where(said, self.layout.place(updated), labels))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Opinion(Constraint):
    """Class probabilities by someone who has seen the same image; see the module.

    log_q: (batch, classes, h, w), of `opinion`; NaN where there is none. layout: of the joint tensor. weight: 1 trusts
    them as much as the prior.
    """

    log_q: Tensor
    layout: OneHotLayout
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.log_q.ndim != 4 or self.log_q.shape[1] != self.layout.classes:
            shape = tuple(self.log_q.shape)
            raise SettingError(f"wanted opinions (batch, {self.layout.classes}, height, width), got {shape}")
        if not self.weight >= 0:
            raise SettingError(f"wanted a weight of 0 or more, got {self.weight}")

    def energy(self, eta: Tensor) -> Tensor:
        """KL(p || q) of every item, in nats, over the pixels with an opinion."""
        p = self.layout.probabilities(self.layout.split(eta)[1])
        said = torch.isfinite(self.log_q)
        apart = torch.xlogy(p, p.clamp(min=LEAST / 10)) - p * torch.where(said, self.log_q, 0.0)
        return torch.where(said, apart, 0.0).sum(dim=(1, 2, 3))

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """Pool the logarithms, in closed form."""
        del variance, layout
        image, labels = self.layout.split(eta)
        log_p = torch.log(self.layout.probabilities(labels).clamp(min=LEAST / 10))
        pooled = torch.softmax((log_p + self.weight * self.log_q) / (1 + self.weight), dim=1)
        return self.layout.join(image, torch.where(torch.isfinite(self.log_q), self.layout.place(pooled), labels))


def opinion(q: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Turn class probabilities q (batch, classes, h, w) into log q at a temperature above 0; NaN where q is.

    More than 1 believes q less. Raises SettingError.
    """
    if not temperature > 0:
        raise SettingError(f"wanted a temperature above 0, got {temperature}")
    known = torch.isfinite(q).all(dim=1, keepdim=True)
    log_q = torch.log_softmax(torch.log(torch.where(known, q, 1.0).clamp(min=LEAST)) / temperature, dim=1)
    return torch.where(known, log_q, torch.nan)


def evidence(q: Tensor, *, temperature: float = 1.0, shares: Tensor | None = None) -> Tensor:
    """Turn class probabilities q (batch, classes, h, w) into log l, with the largest class at most 0.

    temperature: above 0; more than 1 believes q less. shares: (classes,), what q took the classes' shares to be; None
    for no such belief. Where q is NaN nothing is said. Raises SettingError.
    """
    if not temperature > 0:
        raise SettingError(f"wanted a temperature above 0, got {temperature}")
    known = torch.isfinite(q).all(dim=1, keepdim=True)
    log_l = torch.log(torch.where(known, q, 1.0).clamp(min=LEAST))
    if shares is not None:
        log_l = log_l - torch.log(shares.clamp(min=LEAST))[:, None, None]
    log_l = log_l / temperature
    return torch.where(known, log_l - log_l.amax(dim=1, keepdim=True), 0.0)


def observed(index: Tensor, accuracy: Tensor | float, classes: int, *, unlabelled: int = 255) -> Tensor:
    """Log l of observed classes (batch, h, w) that are right with probability `accuracy`; 0 where unlabelled.

    accuracy: a number, or (batch, h, w), from 1 / classes (nothing is said) to below 1.
    """
    given = torch.as_tensor(accuracy, dtype=torch.float32, device=index.device).expand(index.shape)
    known = index != unlabelled
    if bool((known & ((given < 1 / classes - 1e-6) | (given > 1))).any()):
        raise SettingError(f"wanted accuracies from {1 / classes:.2f} (a guess) to 1, got {float(given.min())}")
    right, wrong = torch.log(given.clamp(max=1 - LEAST)), torch.log((1 - given).clamp(min=LEAST) / (classes - 1))
    hit = torch.nn.functional.one_hot(torch.where(known, index, 0).long(), classes).bool().permute(0, 3, 1, 2)
    log_l = torch.where(hit, right[:, None], wrong[:, None])
    return torch.where(known[:, None], log_l - log_l.amax(dim=1, keepdim=True), 0.0)
