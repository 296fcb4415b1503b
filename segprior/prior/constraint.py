"""Constraints: what is known besides the prior, as -log c(eta, y) up to a constant.

A constraint is any function of the joint tensor eta that can be differentiated; the solver adds it to the prior's
energy and nothing is retrained. The gradient forms of the solver differentiate `energy`; the fixed-point form asks for
a proximal step. The observed image is a constraint like any other, `Reconstruction`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.joint import Layout

PROXIMAL_STEPS = 20
"""Gradients that the default proximal step takes."""


class Constraint(ABC):
    """-log c(eta, y) for eta of shape (batch, bands + classes, height, width)."""

    weight: float
    """lambda_k: the factor in front of the energy; 1 is meant to be sensible."""

    balanced: bool
    """Whether the solver may rescale the energy once, at the start, to the prior's gradient (DESIGN decision 6)."""

    @abstractmethod
    def energy(self, eta: Tensor) -> Tensor:
        """-log c(eta, y) of every item, shape (batch,), up to a constant."""

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """argmin_z weight * energy(z) + ||z - eta||^2 / (2 variance), by default with gradient steps alone.

        `variance`, a number or (batch, 1, 1, 1), is how far the prior's estimate is to be trusted. The label channels
        of z stay on the set of `layout`, which they are brought back to after every step; without one they are free.
        The steps are as long as the curvature met so far allows (Barzilai & Borwein 1988; projected, Birgin et al.
        2000), each item its own. A child with a closed form overrides this.
        """
        start = z = eta.detach()
        variance = torch.as_tensor(variance).to(start)
        slope = self._slope(start, start, variance)
        # the curvature is not known yet: the first move is small enough for any energy
        move = -variance * slope
        move = move * (1e-2 / move.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-2))
        for _ in range(PROXIMAL_STEPS - 1):
            before, z = z, _onto(z + move, layout)
            last, slope = slope, self._slope(z, start, variance)
            along = ((z - before) * (slope - last)).sum(dim=(1, 2, 3), keepdim=True)
            square = ((z - before) ** 2).sum(dim=(1, 2, 3), keepdim=True)
            # no convex energy allows a step above `variance`
            rate = torch.where(along > 0, square / along, torch.inf).minimum(variance)
            move = -rate * slope
        return _onto(z + move, layout)

    @final
    def _slope(self, z: Tensor, eta: Tensor, variance: Tensor) -> Tensor:
        """Gradient in z of what `proximal` minimises."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.weight * self.energy(z).sum(), z)
        return slope + (z.detach() - eta) / variance

    def project(self, eta: Tensor) -> Tensor:
        """Eta with what this constraint holds for certain overwritten; by default eta itself."""
        return eta


def _onto(z: Tensor, layout: Layout | None) -> Tensor:
    """Z with its label channels brought back to the set of `layout`."""
    if layout is None:
        return z
    image, labels = layout.split(z)
    return layout.join(image, layout.onto(labels))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction(Constraint):
    """The observed image: -log c = ||eta_image - y||^2 / (2 sigma^2) over valid pixels.

    y: (batch, bands, height, width), normalised as the prior's image channels. sigma >= 0 in the same units; 0 is the
    limit in which the image channels are y. valid: (batch, 1, height, width) bool, True where y holds data; None means
    everywhere. This energy has its own unit (sigma), so it is never rescaled.
    """

    y: Tensor
    sigma: float = 0.0
    valid: Tensor | None = None
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise SettingError(f"wanted a sigma of the reconstruction >= 0, got {self.sigma}")

    @property
    def mask(self) -> Tensor:
        """(batch, 1, height, width) bool: where y holds data."""
        return torch.ones_like(self.y[:, :1], dtype=torch.bool) if self.valid is None else self.valid

    def energy(self, eta: Tensor) -> Tensor:
        """Return the squared distance over 2 sigma^2; zero for sigma = 0, where `project` does the work."""
        if self.sigma == 0:
            return eta.new_zeros(len(eta))
        error = (eta[:, : self.y.shape[1]] - self.y) ** 2
        return torch.where(self.mask, error, 0.0).sum(dim=(1, 2, 3)) / (2 * self.sigma**2)

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """Weigh y and the image channels of eta by their precisions, in closed form; y itself for sigma = 0."""
        del layout  # labels are not moved
        if self.sigma == 0:
            return self.project(eta)
        gain = self.weight * variance / (self.weight * variance + self.sigma**2)
        image, rest = eta[:, : self.y.shape[1]], eta[:, self.y.shape[1] :]
        return torch.cat([torch.where(self.mask, image + gain * (self.y - image), image), rest], dim=1)

    def project(self, eta: Tensor) -> Tensor:
        """Overwrite the image channels by y where valid, if sigma = 0."""
        if self.sigma > 0:
            return eta
        image, rest = eta[:, : self.y.shape[1]], eta[:, self.y.shape[1] :]
        return torch.cat([torch.where(self.mask, self.y, image), rest], dim=1)
