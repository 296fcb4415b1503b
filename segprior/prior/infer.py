"""Inference: segment an observed image y with a prior, any constraints, and one form of the solver.

`infer` sets up eta = [y | nothing known] with the reconstruction constraint, runs `FixedPoint`, `Stop` or `Full` (see
`solver`) and yields a `Step` per iteration. The image is held at time t_image, by default 0, and then its features are
computed once. What is reported is the mean of x0_hat over the late steps and the particles: better, and far better
calibrated, than the last step alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from segprior.prior.constraint import Constraint, Reconstruction
from segprior.prior.denoiser import Denoiser
from segprior.prior.network import Features
from segprior.prior.solver import FixedPoint, Known, Noise, Problem, Solver

__all__ = ["FixedPoint", "Known", "Noise", "Solver", "Step", "generator_noise", "infer"]


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
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % (1 << 63))
        return torch.randn(tuple(shape), generator=generator).to(device)

    return draw


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
    start: Tensor | None = None,
) -> Iterator[Step]:
    """Segment y: yield one `Step` per iteration, the last one holding the result.

    y: (batch, bands, height, width), normalised image; where it is not valid its values are not read and may be NaN.
    valid: (batch, 1, height, width) bool, True where y holds data. sigma: of the reconstruction constraint; 0
    overwrites the image channels with y. constraints: any number of others, built for particles * batch items or
    broadcasting to them. particles: independent estimates, averaged in the result. noise: by default a function of
    `seed` and the step. start: class probabilities (batch, classes, height, width) to begin with, another network's;
    steps at t_labels = 1 are left out then. The result depends on nothing else.
    """
    layout = denoiser.layout
    solver = FixedPoint() if solver is None else solver
    if start is not None and isinstance(solver, FixedPoint):
        solver = solver.going_on()
    y = y.repeat(particles, 1, 1, 1)
    mask = torch.ones_like(y[:, :1], dtype=torch.bool) if valid is None else valid.repeat(particles, 1, 1, 1)
    y = torch.where(mask, y, 0.0)
    if known is not None:
        known = Known(known.labels.repeat(particles, 1, 1, 1), known.mask.repeat(particles, 1, 1, 1))
    nothing = y.new_zeros(len(y), layout.classes, *y.shape[2:])
    labels = (
        nothing if start is None else layout.labels_from(torch.log(start.clamp(min=1e-6))).repeat(particles, 1, 1, 1)
    )
    eta = layout.join(y, labels)
    if noise is None:
        noise = generator_noise(seed, eta.shape, device=y.device)
    everything = (Reconstruction(y, sigma, mask), *constraints)
    features = None
    if sigma == 0 and not solver.moves_image:
        features = _shared_features(denoiser, eta, mask, noise, particles, silent=solver.count > 1)
    problem = Problem(denoiser, everything, noise, mask, known, eta, solver.t_image, features, start is not None)
    yield from _report(replace(problem, start=problem.project(eta)), solver, particles)


@torch.no_grad()
def _shared_features(
    denoiser: Denoiser, eta: Tensor, mask: Tensor, noise: Noise, particles: int, *, silent: bool
) -> Features | None:
    """Features of the clean image, computed for one particle and repeated."""
    batch = len(eta) // particles
    image, _ = denoiser.layout.split(eta)
    t_image = torch.where(mask, 0.0, 1.0)
    image_t = denoiser.schedule.add_noise(image[:batch], denoiser.layout.split(noise(0))[0][:batch], t_image[:batch])
    features = denoiser.encode(image_t, t_image[:batch], silent=silent)
    return None if features is None else features.repeat(torch.arange(batch).repeat(particles))


@torch.no_grad()
def _report(problem: Problem, solver: Solver, particles: int) -> Iterator[Step]:
    eta, layout = problem.start, problem.denoiser.layout
    late_from = solver.count - max(1, ceil(solver.late * solver.count))
    shape = (particles, len(eta) // particles, layout.classes, *eta.shape[2:])
    total = eta.new_zeros(shape)
    for number, (point, x0_hat, evaluations) in enumerate(solver.iterate(problem)):
        current = layout.probabilities(layout.split(x0_hat)[1]).reshape(shape)
        # until the late steps begin, the current step is all there is to report
        total = current if number <= late_from else total + current
        mean = total / max(1, number - late_from + 1)
        yield Step(number + 1, point, mean.mean(dim=0), mean, evaluations)
