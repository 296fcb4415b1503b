"""The solver: a point estimate eta of x_0 under the prior and any constraints.

With q(x) = delta(x - eta) the free energy of Graikos et al. 2022 (eq. 6 to 9) is, up to a constant,

    F(eta) = integral E_eps || eps - eps_hat(x_t, t) ||^2 d(log SNR) / 2  +  sum_k weight_k energy_k(eta),
    x_t    = sqrt(alpha_bar) eta + sqrt(1 - alpha_bar) eps.

With that weight the integral up to SNR s is -log of the prior density blurred by noise of variance 1 / s (for a Gaussian
prior N(mu, C): (eta - mu)' (C + I / s)^-1 (eta - mu) / 2). Three ways to lower F, one interface:

    Full         the gradient of F itself, through the network (the paper)
    Stop         the gradient eps_hat - eps, nothing through the network (RED-diff, Mardani et al. 2023; SDS)
    FixedPoint   renoise, denoise, proximal step on the constraints (DiffPIR, Zhu et al. 2023; DDP, Ji et al. 2023)

The image is held at time t_image (0: it is what it is, and its features are computed once), the labels at the times the
solver names. Where the image is missing its time is 1; where a class is known its label time is 0. The label channels
stay on the simplex, eta_labels = b (2 softmax(theta) - 1); what is reported is the mean of x0_hat over the late steps and
the particles.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

import torch
from torch import Tensor

from segprior.prior.constraint import Constraint, Reconstruction
from segprior.prior.denoiser import Denoiser
from segprior.prior.joint import Times
from segprior.prior.network import Features

Noise = Callable[[int], Tensor]
"""Draw number -> standard normal noise (particles * batch, bands + classes, height, width), the same at every call."""


@dataclass(frozen=True, slots=True)
class Known:
    """Label channels (batch, classes, h, w) that are given where `mask` (batch, 1, h, w) is True: label time 0 there."""

    labels: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration: its number, the estimate, and what is reported so far.

    eta: (particles * batch, bands + classes, h, w). probabilities: (batch, classes, h, w), the mean over the late steps
    and the particles. particles: (particles, batch, classes, h, w), the mean over the late steps alone. evaluations:
    network evaluations per particle so far (a backward pass counts as one more).
    """

    number: int
    eta: Tensor
    probabilities: Tensor
    particles: Tensor
    evaluations: int


def generator_noise(seed: int, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Noise:
    """Noise that is a function of the seed and the draw number alone."""

    def draw(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        return torch.randn(tuple(shape), generator=generator).to(device)

    return draw


@dataclass(frozen=True, slots=True)
class _Problem:
    """What every form works on, already repeated for the particles."""

    denoiser: Denoiser
    constraints: Sequence[Constraint]
    noise: Noise
    valid: Tensor  # (n, 1, h, w) bool
    known: Known | None
    start: Tensor  # (n, bands + classes, h, w)
    t_image: float
    features: Features | None

    def times(self, t_labels: float, t_image: float | None = None) -> Times:
        level = self.t_image if t_image is None else t_image
        image = torch.where(self.valid, level, 1.0)
        labels = torch.full_like(image, t_labels)
        return Times(image, labels if self.known is None else torch.where(self.known.mask, 0.0, labels))

    def x0_hat(self, x_t: Tensor, times: Times) -> Tensor:
        return self.denoiser.x0_hat(x_t, times, self.features)

    def noised(self, eta: Tensor, eps: Tensor, times: Times) -> Tensor:
        return self.denoiser.schedule.add_noise(eta, eps, self.denoiser.layout.spread(times))

    def project(self, eta: Tensor) -> Tensor:
        for constraint in self.constraints:
            eta = constraint.project(eta)
        if self.known is None:
            return eta
        image, labels = self.denoiser.layout.split(eta)
        return self.denoiser.layout.join(image, torch.where(self.known.mask, self.known.labels, labels))

    def one_step(self) -> Tensor:
        times = self.times(1.0)
        return self.project(self.x0_hat(self.noised(self.start, self.noise(0), times), times)).detach()


class Solver(ABC):
    """One of the three forms with its settings."""

    t_image: float
    late: float
    """Share of the steps, at the end, over which the result is averaged."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of steps."""

    @abstractmethod
    def iterate(self, problem: _Problem) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per step: eta, x0_hat, and network evaluations so far."""


@final
@dataclass(frozen=True, slots=True)
class FixedPoint(Solver):
    """Renoise eta to each of `times` in turn, denoise, take a proximal step on every constraint.

    The prior's estimate is trusted to a variance of (1 - alpha_bar) / alpha_bar, at most `variance_limit`.
    """

    times: tuple[float, ...] = (1.0, 0.7, 0.4)
    t_image: float = 0.0
    late: float = 1.0
    variance_limit: float = 100.0

    @property
    def count(self) -> int:
        """One step per time."""
        return len(self.times)

    def iterate(self, problem: _Problem) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per step: eta, x0_hat after the constraints, evaluations."""
        eta = problem.start
        for number, t in enumerate(self.times):
            times = problem.times(t)
            x0_hat = problem.x0_hat(problem.noised(eta, problem.noise(number), times), times)
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
    rate: Adam's step in logits.
    """

    times: tuple[float, ...] = tuple(0.9 - 0.7 * i / 49 for i in range(50))
    t_image: float = 0.0
    late: float = 0.5
    rate: float = 0.1
    shared: bool = False

    @property
    def count(self) -> int:
        """One step per time."""
        return len(self.times)

    @abstractmethod
    def prior_energy(self, problem: _Problem, eta: Tensor, eps: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """A scalar whose gradient in eta is the prior's, and the detached x0_hat."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Network evaluations a step."""

    def iterate(self, problem: _Problem) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per step: eta, x0_hat, evaluations."""
        layout = problem.denoiser.layout
        first = problem.one_step()
        image, labels = layout.split(first)
        image = image.clone().requires_grad_(True)
        theta = layout.theta_from(labels).clone().requires_grad_(True)
        optimiser = torch.optim.Adam([image, theta], lr=self.rate)
        scales: list[float] | None = None
        for number, t in enumerate(self.times):
            with torch.enable_grad():
                eta = problem.project(layout.join(image, layout.labels_from(theta)))
                prior, x0_hat = self.prior_energy(problem, eta, problem.noise(number + 1), t)
                energies = [c.weight * c.energy(eta).sum() for c in problem.constraints]
                if scales is None:
                    scales = _balance(prior, energies, problem.constraints, theta)
                total = prior + sum((s * e for s, e in zip(scales, energies, strict=True)), start=prior.new_zeros(()))
                optimiser.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            eta = problem.project(layout.join(image, layout.labels_from(theta))).detach()
            yield eta, problem.project(x0_hat), 1 + self.cost * (number + 1)


def _balance(prior: Tensor, energies: Sequence[Tensor], constraints: Sequence[Constraint], theta: Tensor) -> list[float]:
    """One factor per constraint that gives it the prior's gradient norm at the start; 1 where not to be balanced.

    The norm divided by has a floor, so that a constraint that is nearly satisfied is not blown up.
    """
    if not any(c.balanced for c in constraints):
        return [1.0] * len(constraints)
    (slope,) = torch.autograd.grad(prior, theta, retain_graph=True)
    reference = float(slope.norm())
    scales = []
    for constraint, energy in zip(constraints, energies, strict=True):
        if not constraint.balanced:
            scales.append(1.0)
            continue
        (slope,) = torch.autograd.grad(energy, theta, retain_graph=True)
        scales.append(reference / max(float(slope.norm()), 1e-2 * reference, 1e-12))
    return scales


@final
@dataclass(frozen=True, slots=True)
class Stop(_Gradient):
    """Gradient sqrt(1 / SNR) (eps_hat - eps): nothing goes back through the network (RED-diff's weight)."""

    @property
    def cost(self) -> int:
        """One forward pass."""
        return 1

    def prior_energy(self, problem: _Problem, eta: Tensor, eps: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """<eps_hat - eps, eta> with the first factor held fixed."""
        times = problem.times(t, t if self.shared else None)
        x_t = problem.noised(eta.detach(), eps, times)
        with torch.no_grad():
            x0_hat = problem.x0_hat(x_t, times)
            eps_hat = problem.denoiser.eps_hat(x_t, times, x0_hat)
        noised = problem.denoiser.layout.spread(times) > 0
        weight = 1.0 / torch.sqrt(problem.denoiser.schedule.snr(torch.tensor(t))).clamp(min=1e-3)
        slope = torch.where(noised, eps_hat - eps, 0.0)
        return weight.to(eta) * (slope * eta).sum(), x0_hat


@final
@dataclass(frozen=True, slots=True)
class Full(_Gradient):
    """Gradient of || eps - eps_hat ||^2 / 2 through the network: the paper's form, at the weight -d(log SNR)."""

    @property
    def cost(self) -> int:
        """A forward and a backward pass."""
        return 2

    def prior_energy(self, problem: _Problem, eta: Tensor, eps: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """|| eps - eps_hat ||^2 / 2 over the channels that are noised."""
        times = problem.times(t, t if self.shared else None)
        x_t = problem.noised(eta, eps, times)
        x0_hat = problem.x0_hat(x_t, times)
        noised = problem.denoiser.layout.spread(times) > 0
        eps_hat = problem.denoiser.eps_hat(x_t, times, x0_hat)
        return torch.where(noised, (eps - eps_hat) ** 2, 0.0).sum() / 2, x0_hat.detach()


def infer(
    denoiser: Denoiser,
    y: Tensor,
    *,
    valid: Tensor | None = None,
    sigma: float = 0.0,
    constraints: Sequence[Constraint] = (),
    known: Known | None = None,
    solver: Solver | None = None,
    particles: int = 1,
    noise: Noise | None = None,
    seed: int = 0,
) -> Iterator[Step]:
    """Segment y: yield one `Step` per iteration, the last one holding the result.

    y: (batch, bands, height, width), normalised image. valid: (batch, 1, height, width) bool, True where y holds data.
    sigma: of the reconstruction constraint; 0 overwrites the image channels with y. constraints: any number of others,
    built for particles * batch items or broadcasting to them. particles: independent estimates, averaged in the result.
    noise: by default a function of `seed` and the step. The result depends on nothing else.
    """
    layout = denoiser.layout
    solver = FixedPoint() if solver is None else solver
    y = y.repeat(particles, 1, 1, 1)
    mask = torch.ones_like(y[:, :1], dtype=torch.bool) if valid is None else valid.repeat(particles, 1, 1, 1)
    if known is not None:
        known = Known(known.labels.repeat(particles, 1, 1, 1), known.mask.repeat(particles, 1, 1, 1))
    labels = y.new_zeros(len(y), layout.classes, *y.shape[2:])
    eta = layout.join(torch.where(mask, y, 0.0), labels)
    if noise is None:
        noise = generator_noise(seed, eta.shape, device=y.device)
    everything = (Reconstruction(y, sigma, mask), *constraints)
    fixed = solver.t_image == 0.0 and not (isinstance(solver, _Gradient) and solver.shared)
    features = None
    if fixed and sigma == 0:
        features = _shared_features(denoiser, eta, mask, noise, particles)
    problem = _Problem(denoiser, everything, noise, mask, known, eta, solver.t_image, features)
    yield from _report(problem.project(eta), solver, problem, particles)


@torch.no_grad()
def _shared_features(
    denoiser: Denoiser, eta: Tensor, mask: Tensor, noise: Noise, particles: int
) -> Features | None:
    """Features of the clean image, computed for one particle and repeated."""
    batch = len(eta) // particles
    image, _ = denoiser.layout.split(eta)
    t_image = torch.where(mask, 0.0, 1.0)
    image_t = denoiser.schedule.add_noise(image[:batch], denoiser.layout.split(noise(0))[0][:batch], t_image[:batch])
    features = denoiser.encode(image_t, t_image[:batch])
    return None if features is None else features.repeat(torch.arange(batch).repeat(particles))


@torch.no_grad()
def _report(eta: Tensor, solver: Solver, problem: _Problem, particles: int) -> Iterator[Step]:
    layout = problem.denoiser.layout
    late_from = solver.count - max(1, ceil(solver.late * solver.count))
    shape = (particles, len(eta) // particles, layout.classes, *eta.shape[2:])
    total = eta.new_zeros(shape)
    for number, (point, x0_hat, evaluations) in enumerate(solver.iterate(problem)):
        current = layout.probabilities(layout.split(x0_hat)[1]).reshape(shape)
        # until the late steps begin, the current step is all there is to report
        total = current if number <= late_from else total + current
        mean = total / max(1, number - late_from + 1)
        yield Step(number + 1, point, mean.mean(dim=0), mean, evaluations)
