"""Clusters: what looks alike nearby is alike (the unsupervised part of the paper's land-cover experiment).

In every window the pixels' colours are described by a mixture of C Gaussians with diagonal covariances, fitted by EM;
r_ic is the probability that pixel i is of cluster c. Labels that follow the clusters share information with them:

    I = sum_cl P_cl log(P_cl / (P_c P_l)),      P_cl = mean over the window of r_ic q_il

(Graikos et al. 2022 use it between clusters and labels.) The energy is -WORTH I for each pixel of the window: a pixel's
information counts a quarter, since its neighbours say much the same. It is concave in q, the clusters being fixed, so
that its linear part bounds it from above and

    q_il ~ p_il exp(weight WORTH sum_c r_ic log(P(l | c) / P(l)))

lowers KL(q || p) + weight * energy at every step (concave-convex procedure, Yuille & Rangarajan 2003). Windows overlap
by half, and a pixel takes the mean of what the windows over it say; pixels at the edge are mirrored.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.joint import Layout, OneHotLayout

ROUNDS, STEPS = 10, 6
"""Of EM, and of the proximal step."""

WORTH = 0.25
"""Nats of the prior that a nat of information is worth."""

LEAST = 1e-6


def windows(x: Tensor, side: int) -> Tensor:
    """Windows (batch, count, channels, side * side) that overlap by half of x (batch, channels, h, w), mirrored."""
    batch, channels, height, width = x.shape
    padded = functional.pad(x, _margins(height, width, side), mode="reflect")
    cut = functional.unfold(padded, side, stride=side // 2)
    return cut.reshape(batch, channels, side * side, -1).permute(0, 3, 1, 2)


def merged(values: Tensor, side: int, height: int, width: int) -> Tensor:
    """Mean (batch, channels, h, w) of what the windows say of each pixel; the inverse of `windows`."""
    batch, count, channels, pixels = values.shape
    left, right, top, bottom = _margins(height, width, side)
    shape = (height + top + bottom, width + left + right)
    flat = values.permute(0, 2, 3, 1).reshape(batch, channels * pixels, count)
    total = functional.fold(flat, shape, side, stride=side // 2)
    often = functional.fold(torch.ones_like(flat[:, :pixels]), shape, side, stride=side // 2)
    return (total / often)[:, :, top : top + height, left : left + width]


def _margins(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom: so that windows at half steps cover all."""
    half = side // 2
    down, across = (-(-n // half) * half + half - n for n in (height, width))
    return across // 2, across - across // 2, down // 2, down - down // 2


def mixtures(colours: Tensor, clusters: int) -> Tensor:
    """Responsibilities (..., clusters, pixels) of Gaussian mixtures fitted to colours (..., bands, pixels) by EM.

    The means begin at evenly spaced quantiles along the first principal axis, so the result depends on nothing else.
    """
    x = colours.movedim(-2, -1)  # (..., pixels, bands)
    centred = x - x.mean(dim=-2, keepdim=True)
    floor = 1e-3 + 1e-3 * centred.var(dim=-2, keepdim=True)
    axis = torch.linalg.eigh(centred.mT @ centred / x.shape[-2]).eigenvectors[..., -1:]
    order = (centred @ axis).squeeze(-1).argsort(dim=-1)
    at = ((torch.arange(clusters, device=x.device) + 0.5) / clusters * x.shape[-2]).long()
    chosen = order[..., at][..., None].expand(*order.shape[:-1], clusters, x.shape[-1])
    means = torch.gather(centred, -2, chosen)
    spread = (centred.var(dim=-2, keepdim=True) / clusters).clamp(min=1e-3).expand_as(means)
    weight = torch.full(means.shape[:-1], 1 / clusters, dtype=x.dtype, device=x.device)
    for _ in range(ROUNDS):
        # log N(x | mean, spread) by expanding the square: no (pixels, clusters, bands) tensor
        precision = 1 / spread
        square = centred**2 @ precision.mT - 2 * centred @ (means * precision).mT
        square = square + (means**2 * precision).sum(dim=-1)[..., None, :]
        log_r = torch.log(weight)[..., None, :] - (square + torch.log(spread).sum(dim=-1)[..., None, :]) / 2
        r = torch.softmax(log_r, dim=-1)
        count = r.sum(dim=-2).clamp(min=LEAST)
        weight = (count / x.shape[-2]).clamp(min=LEAST)
        means = r.mT @ centred / count[..., None]
        spread = (r.mT @ centred**2 / count[..., None] - means**2).clamp(min=0) + floor
    return r.mT


@final
@dataclass(frozen=True, slots=True, eq=False)
class Clusters(Constraint):
    """Mutual information between clusters of colours and labels, in windows; see the module.

    responsibilities: (batch, windows, clusters, side^2), of `mixtures`. side: of a window in pixels, even. weight: 1
    is for priors that know the region; where all else is weak, more may pay.
    """

    responsibilities: Tensor
    side: int
    layout: OneHotLayout
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.side < 2 or self.side % 2 or not self.weight >= 0:
            raise SettingError(f"wanted an even side and a weight of 0 or more, got {self.side} and {self.weight}")

    @classmethod
    def of(cls, image: Tensor, layout: OneHotLayout, *, count: int, side: int, weight: float = 1.0) -> "Clusters":
        """Fit the clusters of an image (batch, bands, h, w), normalised. Raises SettingError."""
        if count < 2:
            raise SettingError(f"wanted 2 clusters or more, got {count}")
        side = min(side, 2 * min(image.shape[2:])) // 2 * 2
        return cls(mixtures(windows(image, side), count), side, layout, weight)

    def energy(self, eta: Tensor) -> Tensor:
        """Minus the mutual information of the window, averaged over the windows of a pixel and summed over pixels."""
        p = self.layout.probabilities(self.layout.split(eta)[1])
        information, _ = self._information(p)
        each = information[..., None, None].expand(-1, -1, 1, self.side**2)
        return -WORTH * merged(each, self.side, *p.shape[2:]).sum(dim=(1, 2, 3))

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """Tilt the labels towards what is usual for their clusters, a few times."""
        del variance, layout
        image, labels = self.layout.split(eta)
        p = self.layout.probabilities(labels).clamp(min=LEAST)
        q = p
        for _ in range(STEPS):
            _, ratio = self._information(q)
            said = torch.einsum("bwcl,bwcp->bwlp", ratio, self.responsibilities)
            q = torch.softmax(torch.log(p) + self.weight * WORTH * merged(said, self.side, *p.shape[2:]), dim=1)
        return self.layout.join(image, self.layout.place(q))

    def _information(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Mutual information (batch, windows), and log P(l | c) / P(l), (batch, windows, clusters, classes)."""
        inside = windows(q, self.side)
        joint = torch.einsum("bwcp,bwlp->bwcl", self.responsibilities, inside) / self.side**2
        joint = joint.clamp(min=LEAST**2)
        ratio = torch.log(joint / (joint.sum(dim=-1, keepdim=True) * joint.sum(dim=-2, keepdim=True)))
        return (joint * ratio).sum(dim=(-1, -2)), ratio
