"""Attributes: any differentiable score of the labels, the general door to what is known.

A score s(image, p) is log c(eta, y) up to a constant: the larger, the more the labels are what is wanted. The paper's
example is c(x, y) = prod_i p(y_i | x) of a classifier (Graikos et al. 2022, section 4.1). The constraint is

    -log c(eta, y) = -s(image, p),       p = class probabilities of eta,

and its proximal step is taken in the geometry of the simplex, as that of `Unary` is: the minimiser of KL(q || p) -
weight s(q) satisfies q ~ p exp(weight ds/dq). It is sought by mirror descent (Beck & Teboulle 2003),

    theta <- (1 - rho) theta + rho (log p + weight ds/dq),       q = softmax(theta),

each item with a rho of its own, halved when a step would not lower it. A linear score is `Unary`, and takes one step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.joint import Layout, OneHotLayout

Score = Callable[[Tensor, Tensor], Tensor]
"""(image (batch, bands, h, w), probabilities (batch, classes, h, w)) -> (batch,), in nats."""

STEPS = 40
LEAST = 1e-6


@final
@dataclass(frozen=True, slots=True, eq=False)
class Attributes(Constraint):
    """A score of image and probabilities that is to be large; see the module.

    score: differentiable in the probabilities, in nats for each item; a sum over pixels, so that it stands up to the
    prior, which is one too. layout: of the joint tensor. The image is not moved by the proximal step.
    """

    score: Score
    layout: OneHotLayout
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise SettingError(f"wanted a weight of 0 or more, got {self.weight}")

    def energy(self, eta: Tensor) -> Tensor:
        """Return minus the score of every item."""
        image, labels = self.layout.split(eta)
        found = self.score(image, self.layout.probabilities(labels))
        if found.shape != (len(eta),):
            raise SettingError(f"wanted a score for each of {len(eta)} items, got {tuple(found.shape)}")
        return -found

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """Lower KL(q || p) - weight s(q) in q, from p on."""
        del variance, layout
        image, labels = self.layout.split(eta)
        log_p = torch.log(self.layout.probabilities(labels).clamp(min=LEAST))
        theta, rho = log_p, log_p.new_ones(len(log_p), 1, 1, 1)
        value, slope = self._apart(image, theta, log_p)
        for _ in range(STEPS):
            new = (1 - rho) * theta + rho * (log_p + self.weight * slope)
            new_value, new_slope = self._apart(image, new, log_p)
            lower = new_value <= value
            theta, slope = torch.where(lower, new, theta), torch.where(lower, new_slope, slope)
            value = torch.where(lower, new_value, value)
            rho = torch.where(lower, rho, rho / 2)
        return self.layout.join(image, self.layout.place(torch.softmax(theta, dim=1)))

    def _apart(self, image: Tensor, theta: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """KL(q || p) - weight s(q) of every item, (batch, 1, 1, 1), and ds/dq."""
        log_q = torch.log_softmax(theta, dim=1)
        with torch.enable_grad():
            q = torch.exp(log_q).detach().requires_grad_(True)
            score = self.score(image.detach(), q)
            (slope,) = torch.autograd.grad(score.sum(), q)
        distance = (torch.exp(log_q) * (log_q - log_p)).sum(dim=(1, 2, 3))
        return (distance - self.weight * score.detach())[:, None, None, None], slope
