"""The gradient forms of the solver, `Stop` and `Full`: Adam on eta, at annealed times (see `solver` for F).

The image channels move freely (a reconstruction constraint holds them). The label channels stay on the layout's set,
for one-hot labels the simplex: eta_labels = b (2 softmax(theta) - 1), theta free. Both forms start from the one-step
map; a constraint that asks for it is scaled once, at the start, to the prior's gradient norm.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segprior.prior.constraint import Constraint
from segprior.prior.schedule import Schedule
from segprior.prior.solver import Problem, Solver


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
        first, before = problem.one_step(), int(not problem.begun)  # evaluations of the network before the first step
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
                energies = [c.energy(eta) for c in problem.constraints]
                if scales is None:
                    scales = _balance(total, energies, problem.constraints, theta)
                for constraint, scale, energy in zip(problem.constraints, scales, energies, strict=True):
                    total = total + (constraint.weight * scale * energy).sum()
                # not backward(): the network's own gradients are neither wanted nor to be left behind
                image.grad, theta.grad = torch.autograd.grad(total, (image, theta))
            optimiser.step()
            eta = problem.project(layout.join(image, layout.labels_from(theta))).detach()
            yield eta, problem.project(x0_hat), before + self.cost * (number + 1)


def _balance(
    prior: Tensor, energies: Sequence[Tensor], constraints: Sequence[Constraint], theta: Tensor
) -> list[Tensor]:
    """One factor per constraint and item that gives it the prior's gradient norm at the start; 1 if not balanced.

    `energies` are those of a weight of 1: weights come on top of the balance, which would cancel them.
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
