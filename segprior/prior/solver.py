"""Three forms of the solver: how a point estimate eta of x_0 is moved under the prior and any constraints.

With q(x) = delta(x - eta) the free energy of Graikos et al. 2022 (eq. 6 to 9) is, up to a constant,

    F(eta) = integral E_eps || eps - eps_hat(x_t, t) ||^2 d(log SNR) / 2  +  sum_k weight_k energy_k(eta),
    x_t    = sqrt(alpha_bar) eta + sqrt(1 - alpha_bar) eps.

With that weight the integral up to SNR s is -log of the prior density blurred by noise of variance 1 / s (for a
Gaussian prior N(mu, C): (eta - mu)' (C + I / s)^-1 (eta - mu) / 2). Three ways to lower F, one interface:

    Full         the gradient of F itself, through the network (the paper)
    Stop         the gradient eps_hat - eps, nothing through the network (RED-diff, Mardani et al. 2023; SDS)
    FixedPoint   renoise, denoise, proximal step on the constraints (DiffPIR, Zhu et al. 2023; DDP, Ji et al. 2023)

The image is held at time t_image (0: it is what it is), the labels at the times the solver names. Where the image is
missing its time is 1; where a class is known its label time is 0. In the gradient forms the label channels stay on the
layout's set, for one-hot labels the simplex: eta_labels = b (2 softmax(theta) - 1).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.denoiser import Denoiser
from segprior.prior.joint import Times
from segprior.prior.network import Features
from segprior.prior.schedule import Schedule
from segprior.prior.symmetry import TURNS, turn, turn_back

Noise = Callable[[int], Tensor]
"""Draw number -> standard normal noise (particles * batch, bands + classes, height, width), the same at every call."""


@dataclass(frozen=True, slots=True)
class Known:
    """Label channels (batch, classes, h, w), given where `mask` (batch, 1, h, w) is True: their time is 0 there."""

    labels: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """What every form works on, already repeated for the n = particles * batch items.

    valid: (n, 1, h, w) bool, True where the image holds data. start: (n, bands + classes, h, w), the first eta.
    t_image: time of the image where it is valid. features: of the image, if it is the same at every step.
    """

    denoiser: Denoiser
    constraints: Sequence[Constraint]
    noise: Noise
    valid: Tensor
    known: Known | None
    start: Tensor
    t_image: float
    features: Features | None

    def times(self, t_labels: float, t_image: float | None = None) -> Times:
        """Time maps: t_labels but 0 where the class is known; t_image but 1 where the image is missing."""
        level = self.t_image if t_image is None else t_image
        image = torch.where(self.valid, level, 1.0)
        labels = torch.full_like(image, t_labels)
        return Times(image, labels if self.known is None else torch.where(self.known.mask, 0.0, labels))

    def x0_hat(self, x_t: Tensor, times: Times, number: int = 0) -> Tensor:
        """Denoise x_t, shown to the denoiser in its turn `number` (see `symmetry`)."""
        if number == 0:
            return self.denoiser.x0_hat(x_t, times, self.features)
        shown = Times(turn(times.image, number), turn(times.labels, number))
        return turn_back(self.denoiser.x0_hat(turn(x_t, number), shown), number)

    def noised(self, eta: Tensor, eps: Tensor, times: Times) -> Tensor:
        """Noise eta to its times."""
        return self.denoiser.schedule.add_noise(eta, eps, self.denoiser.layout.spread(times))

    def project(self, eta: Tensor) -> Tensor:
        """Overwrite what is held for certain: by the constraints, and the known labels."""
        for constraint in self.constraints:
            eta = constraint.project(eta)
        if self.known is None:
            return eta
        image, labels = self.denoiser.layout.split(eta)
        return self.denoiser.layout.join(image, torch.where(self.known.mask, self.known.labels, labels))

    def one_step(self) -> Tensor:
        """Denoise once, from labels of which nothing is known."""
        times = self.times(1.0)
        return self.project(self.x0_hat(self.noised(self.start, self.noise(0), times), times)).detach()


class Solver(ABC):
    """One of the three forms with its settings; raises SettingError if one is out of its range."""

    times: tuple[float, ...]
    """Time of the labels at every step, each in [0, 1]."""

    t_image: float
    late: float
    """Share of the steps, at the end, over which the result is averaged."""

    def __post_init__(self) -> None:
        if not self.times or not all(0.0 <= t <= 1.0 for t in (*self.times, self.t_image)) or not 0 < self.late <= 1:
            raise SettingError(
                f"wanted a solver with one step or more, times in [0, 1] and a late share in (0, 1], got {self}"
            )

    @final
    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.times)

    @property
    @abstractmethod
    def moves_image(self) -> bool:
        """Whether the noisy image differs from step to step, so that its features do too."""

    @abstractmethod
    def iterate(self, problem: Problem) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per step: eta, x0_hat, and network evaluations so far."""


def falling(first: float, last: float, steps: int) -> tuple[float, ...]:
    """Give `steps` evenly spaced times from `first` to `last`; `first` alone for one step. Raises SettingError."""
    if steps < 1:
        raise SettingError(f"wanted 1 step or more, got {steps}")
    return tuple(torch.linspace(first, last, steps).tolist()) if steps > 1 else (first,)


@final
@dataclass(frozen=True, slots=True)
class FixedPoint(Solver):
    """Renoise eta to each of `times` in turn, denoise, take a proximal step on every constraint.

    The prior's estimate is trusted to a variance of (1 - alpha_bar) / alpha_bar, at most `variance_limit`. With `turns`
    above 1 the denoiser sees another turn or flip at every step, the first `turns` of the eight over and over; then the
    image's features are computed anew for every turn. At times that are all 1 this is plain test-time augmentation.
    """

    times: tuple[float, ...] = (1.0, 0.9, 0.8)
    t_image: float = 0.0
    late: float = 1.0
    variance_limit: float = 100.0
    turns: int = 1

    def __post_init__(self) -> None:
        Solver.__post_init__(self)
        if not 1 <= self.turns <= len(TURNS):
            raise SettingError(f"wanted from 1 to {len(TURNS)} turns, got {self.turns}")

    @property
    def moves_image(self) -> bool:
        """Only at t_image > 0."""
        return self.t_image > 0

    def iterate(self, problem: Problem) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per step: eta, x0_hat after the constraints, evaluations."""
        eta = problem.start
        for number, t in enumerate(self.times):
            times = problem.times(t)
            x_t = problem.noised(eta, problem.noise(number), times)
            x0_hat = problem.x0_hat(x_t, times, number % self.turns)
            snr = float(problem.denoiser.schedule.snr(torch.tensor(t)))
            variance = x0_hat.new_tensor(min(1.0 / max(snr, 1e-12), self.variance_limit))
            for constraint in problem.constraints:
                x0_hat = constraint.proximal(x0_hat, variance)
            eta = problem.project(x0_hat).detach()
            yield eta, eta, number + 1


@dataclass(frozen=True, slots=True)
class _Gradient(Solver):
    """Adam on theta (labels) and the image channels, from the one-step map, at annealed times.

    times: the label time of every step. shared: the image's time follows the labels' (then t_image is not used).
    rate: Adam's step, in logits and in units of the image channels.
    """

    times: tuple[float, ...] = tuple(0.9 - 0.7 * i / 49 for i in range(50))
    t_image: float = 0.0
    late: float = 0.5
    rate: float = 0.1
    shared: bool = False

    @property
    def moves_image(self) -> bool:
        """If its time is the labels', or above 0."""
        return self.shared or self.t_image > 0

    @abstractmethod
    def prior_energy(self, problem: Problem, eta: Tensor, eps: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return a scalar whose gradient in eta is the prior's at time t, unweighted, and the detached x0_hat."""

    @abstractmethod
    def weights(self, schedule: Schedule) -> tuple[float, ...]:
        """Weight of the prior's energy at every step."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Network evaluations a step."""

    def iterate(self, problem: Problem) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per step: eta, x0_hat, evaluations."""
        layout = problem.denoiser.layout
        first = problem.one_step()
        image, labels = layout.split(first)
        image = image.clone().requires_grad_(True)
        theta = layout.theta_from(labels).clone().requires_grad_(True)
        optimiser = torch.optim.Adam([image, theta], lr=self.rate)
        scales: list[Tensor] | None = None
        for number, (t, weight) in enumerate(zip(self.times, self.weights(problem.denoiser.schedule), strict=True)):
            with torch.enable_grad():
                eta = problem.project(layout.join(image, layout.labels_from(theta)))
                energy, x0_hat = self.prior_energy(problem, eta, problem.noise(number + 1), t)
                total = weight * energy
                energies = [c.weight * c.energy(eta) for c in problem.constraints]
                if scales is None:
                    scales = _balance(total, energies, problem.constraints, theta)
                for scale, energy in zip(scales, energies, strict=True):
                    total = total + (scale * energy).sum()
                # not backward(): the network's own gradients are neither wanted nor to be left behind
                image.grad, theta.grad = torch.autograd.grad(total, (image, theta))
            optimiser.step()
            eta = problem.project(layout.join(image, layout.labels_from(theta))).detach()
            yield eta, problem.project(x0_hat), 1 + self.cost * (number + 1)


def _balance(
    prior: Tensor, energies: Sequence[Tensor], constraints: Sequence[Constraint], theta: Tensor
) -> list[Tensor]:
    """One factor per constraint and item that gives it the prior's gradient norm at the start; 1 if not balanced.

    The norm divided by has a floor, so that a constraint that is nearly satisfied is not blown up. Items are balanced
    one by one, so that a window's result does not depend on which others share its batch.
    """
    if not any(c.balanced for c in constraints):
        return [prior.new_ones(()) for _ in constraints]
    reference = _norm(prior, theta)
    scales = []
    for constraint, energy in zip(constraints, energies, strict=True):
        if constraint.balanced:
            slope = torch.maximum(_norm(energy.sum(), theta), 1e-2 * reference).clamp(min=1e-12)
            # a prior that says nothing at its first time (pure noise) is no reason to drop the constraint
            scales.append(torch.where(reference > 0, reference / slope, 1.0))
        else:
            scales.append(torch.ones_like(reference))
    return scales


def _norm(energy: Tensor, theta: Tensor) -> Tensor:
    """Norm of the gradient of `energy` in theta, by item."""
    (slope,) = torch.autograd.grad(energy, theta, retain_graph=True)
    return slope.flatten(1).square().sum(dim=1).sqrt()


@final
@dataclass(frozen=True, slots=True)
class Stop(_Gradient):
    """Gradient sqrt(1 / SNR) (eps_hat - eps): nothing goes back through the network (RED-diff's weight)."""

    @property
    def cost(self) -> int:
        """One forward pass."""
        return 1

    def weights(self, schedule: Schedule) -> tuple[float, ...]:
        """RED-diff's sqrt(1 / SNR), at most 1000."""
        snr = schedule.snr(torch.tensor(self.times))
        return tuple((1.0 / torch.sqrt(snr).clamp(min=1e-3)).tolist())

    def prior_energy(self, problem: Problem, eta: Tensor, eps: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """<eps_hat - eps, eta> with the first factor held fixed."""
        times = problem.times(t, t if self.shared else None)
        x_t = problem.noised(eta.detach(), eps, times)
        with torch.no_grad():
            x0_hat = problem.x0_hat(x_t, times)
            eps_hat = problem.denoiser.eps_hat(x_t, times, x0_hat)
        noised = problem.denoiser.layout.spread(times) > 0
        slope = torch.where(noised, eps_hat - eps, 0.0)
        return (slope * eta).sum(), x0_hat


@final
@dataclass(frozen=True, slots=True)
class Full(_Gradient):
    """Gradient of || eps - eps_hat ||^2 / 2 through the network: the paper's form, at the weight -d(log SNR).

    The mean over the steps of the weighted energy is the integral of F from the least to the greatest SNR of `times`,
    in whatever order they come. If all times are the same there is no such range, and the weight is 1.
    """

    @property
    def cost(self) -> int:
        """A forward and a backward pass."""
        return 2

    def weights(self, schedule: Schedule) -> tuple[float, ...]:
        """Count of the steps times the part of the log-SNR axis that each stands for (trapezoid rule)."""
        log_snr, order = torch.sort(schedule.log_snr(torch.tensor(self.times)))
        ends = torch.cat([log_snr[:1], (log_snr[1:] + log_snr[:-1]) / 2, log_snr[-1:]])
        if ends[-1] == ends[0]:
            return (1.0,) * self.count
        return tuple((self.count * torch.diff(ends)[torch.argsort(order)]).tolist())

    def prior_energy(self, problem: Problem, eta: Tensor, eps: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """|| eps - eps_hat ||^2 / 2 over the channels that are noised."""
        times = problem.times(t, t if self.shared else None)
        x_t = problem.noised(eta, eps, times)
        x0_hat = problem.x0_hat(x_t, times)
        noised = problem.denoiser.layout.spread(times) > 0
        eps_hat = problem.denoiser.eps_hat(x_t, times, x0_hat)
        return torch.where(noised, (eps - eps_hat) ** 2, 0.0).sum() / 2, x0_hat.detach()
