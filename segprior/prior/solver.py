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
missing its time is 1; where a class is known its label time is 0. The gradient forms have a module of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.denoiser import Denoiser
from segprior.prior.joint import Times
from segprior.prior.network import Features
from segprior.prior.symmetry import TURNS, turn, turn_back

LEAST_VARIANCE = 1e-6
"""Of the prior's estimate in a proximal step: at time 0 it has none, and there is no dividing by that."""

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
    t_image: time of the image where it is valid. features: of the image, if it is the same at every step. begun:
    whether the labels of `start` are a map to begin with; without it nothing is known of them.
    """

    denoiser: Denoiser
    constraints: Sequence[Constraint]
    noise: Noise
    valid: Tensor
    known: Known | None
    start: Tensor
    t_image: float
    features: Features | None
    begun: bool = False

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
        """Denoise once, from labels of which nothing is known; with a map to begin with, that map."""
        if self.begun:
            return self.start
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
    return tuple(np.linspace(first, last, steps).tolist())


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

    def going_on(self) -> "FixedPoint":
        """Return the same without steps at time 1, which would forget a map to begin with. Raises SettingError."""
        left = tuple(t for t in self.times if t < 1.0)
        if not left:
            raise SettingError(f"wanted a time below 1 to begin from a map, got {self.times}; take more steps")
        return replace(self, times=left)

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
            variance = x0_hat.new_tensor(min(max(1.0 / max(snr, 1e-12), LEAST_VARIANCE), self.variance_limit))
            for constraint in problem.constraints:
                x0_hat = constraint.proximal(x0_hat, variance, problem.denoiser.layout)
            eta = problem.project(x0_hat).detach()
            yield eta, eta, number + 1
