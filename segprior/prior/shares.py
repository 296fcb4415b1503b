"""Shares: what part of a region each class covers, known from a census or from a coarse map.

For the N pixels of a region with class probabilities p_i by the prior, wanted shares s_k and m_k = mean_i q_ik,

    firm    min_q sum_i KL(q_i || p_i)   where  |m_k - s_k| <= tolerance          (`Shares`)
    soft    min_q sum_i KL(q_i || p_i) + weight n N KL(s || m)                    (`Hints`), n = PULL

Both have the solution q_ik = p_ik exp(lambda_k) / sum: a tilt of the region, lambda being the multipliers of the
shares. It is found by scaling (Darroch & Ratcliff 1972; with a tolerance, Dudik, Phillips & Schapire 2007, section 5):

    firm    lambda_k + log(s_k -+ tolerance) - log m_k, by which side lambda_k is on, 0 between the two; less the same
            of all classes whose shares are not known, which are scaled as one
    soft    the u for which u exp(u) = exp(lambda_k) weight n s_k / m_k

With a sharpness beta every p_ik and exp(lambda_k) is raised to it, which for a large one counts decided classes: the
map that is likeliest among those whose counts keep the shares, lambda being the prices of the transport problem.

The soft form takes shares as n N pixels drawn from the region at random and counted: each pulls with its 1 / m_k, the
more the less the prior has seen of the class, and shares that are wrong do bounded harm. The energy of both is what
follows KL(q || p), with the shares moved to the nearest point of the tolerance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.joint import Layout, OneHotLayout

LEAST = 1e-6
"""Least probability and share: no class is ruled out for good."""

PULL = 4.0
"""n: how many times the shares of a hint were counted, for each pixel of its region."""

SHARPNESS, SWEEPS, NEARLY = (1.0, 8.0, 64.0), 30, 5e-4
"""On the way to decided classes: steps of sharpness, sweeps over the classes, what is near enough of a share."""

ROUNDS, CLOSE = 300, 1e-4
"""Most steps of scaling, and the change of the largest multiplier that ends them."""


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Pixels of a batch by region, and the shares of each.

    index: (batch, h, w) long, the region of every pixel, -1 for none; a region may spread over items. shares:
    (regions, classes), in [0, 1]; NaN for a class of which nothing is known. parts: (regions,), how much of a region is
    among these pixels, above 0 and at most 1; None for all of each. What is told of a whole pulls a part of it by that
    much, since the rest may be otherwise.
    """

    index: Tensor
    shares: Tensor
    parts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.shares.ndim != 2 or self.index.ndim != 3:
            shapes = f"{tuple(self.index.shape)} and {tuple(self.shares.shape)}"
            raise SettingError(f"wanted regions (batch, height, width) and shares (regions, classes), got {shapes}")
        if self.index.numel() and not -1 <= int(self.index.min()) <= int(self.index.max()) < len(self.shares):
            raise SettingError(f"wanted regions from -1 to {len(self.shares) - 1}, got {int(self.index.max())}")
        if self.parts is not None and (self.parts.shape != (len(self.shares),) or not bool((self.parts > 0).all())):
            raise SettingError(f"wanted parts above 0 of {len(self.shares)} regions, got {self.parts}")
        told = self.shares[torch.isfinite(self.shares)]
        if told.numel() and not 0 <= float(told.min()) <= float(told.max()) <= 1:
            raise SettingError(f"wanted shares in [0, 1], got {float(told.min())} to {float(told.max())}")


def mean_by_region(q: Tensor, index: Tensor, regions: int) -> Tensor:
    """Mean (regions, classes) of q (pixels, classes) over the pixels of every region; 0 for regions without pixels."""
    inside = index >= 0
    total = q.new_zeros(regions, q.shape[1]).index_add_(0, index[inside], q[inside])
    count = torch.bincount(index[inside], minlength=regions).clamp(min=1)
    return total / count[:, None]


def tilts(
    p: Tensor,
    index: Tensor,
    shares: Tensor,
    *,
    tolerance: float = 0.0,
    sharpness: float = 1.0,
    start: Tensor | None = None,
) -> Tensor:
    """Multipliers lambda (regions, classes) of the firm form.

    p: (pixels, classes), probabilities. index: (pixels,) long, -1 for no region. shares: (regions, classes), NaN where
    unknown. start: multipliers to begin with, by default 0.
    """
    log_p = sharpness * torch.log(p.clamp(min=LEAST))
    known = torch.isfinite(shares)
    s = torch.where(known, shares, 0.0)
    low, high = ((s + sign * tolerance).clamp(LEAST, 1.0) for sign in (-1, 1))
    lam = torch.zeros_like(s) if start is None else sharpness * start
    for _ in range(ROUNDS):
        m = mean_by_region(tilted(log_p, index, lam), index, len(s)).clamp(min=LEAST**2)
        # the classes of which nothing is known are one more class, with what is left: lambda is counted from theirs
        left = 1.0 - torch.where(known, torch.minimum(torch.maximum(m, low), high), 0.0).sum(dim=1, keepdim=True)
        rest = torch.where(known, 0.0, m).sum(dim=1, keepdim=True)
        base = torch.where(rest > 0, torch.log(left.clamp(min=LEAST) / rest.clamp(min=LEAST**2)), 0.0)
        up, down = lam + torch.log(low / m) - base, lam + torch.log(high / m) - base
        new = torch.where(known, torch.where(up > 0, up, torch.where(down < 0, down, 0.0)), 0.0)
        move, lam = float((new - lam).abs().max()), new
        if move < CLOSE:
            break
    return lam / sharpness


def decided_tilts(p: Tensor, index: Tensor, shares: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Multipliers (regions, classes) with which the decided classes keep the shares to NEARLY; see `tilts`.

    After the sharpest of SHARPNESS the multipliers are put right one class at a time, each to where as many pixels
    change to it as it lacks. Pixels that are all alike cannot be told apart.
    """
    inside = index >= 0
    p, index = p[inside], index[inside]
    lam, known = torch.zeros_like(shares), torch.isfinite(shares)
    for beta in SHARPNESS:
        lam = tilts(p, index, shares, tolerance=tolerance, sharpness=beta, start=lam)
    log_p, s = torch.log(p.clamp(min=LEAST)), torch.nan_to_num(shares)
    low, high = (s - tolerance).clamp(min=0.0), (s + tolerance).clamp(max=1.0)
    for _ in range(SWEEPS):
        decided = functional.one_hot((log_p + lam[index]).argmax(dim=1), p.shape[1]).to(p.dtype)
        m = mean_by_region(decided, index, len(s))
        if bool((torch.where(known, torch.maximum(low - m, m - high), 0.0) < NEARLY).all()):
            break
        for k in range(p.shape[1]):
            rest = log_p + lam[index]
            rest[:, k] = -torch.inf
            needed = rest.amax(dim=1) - log_p[:, k]  # the multiplier from which on a pixel is of class k
            up, down = (_quantile(needed, index, share[:, k]) for share in (low, high))
            lam[:, k] = torch.where(known[:, k], torch.where(up > 0, up, torch.where(down < 0, down, 0.0)), 0.0)
    return lam


def _quantile(values: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Give the value of every region below which a `share` of its values lies, (regions,); 0 for empty regions."""
    order = torch.argsort(values)
    order = order[torch.argsort(index[order], stable=True)]
    count = torch.bincount(index, minlength=len(share))
    ranked = torch.cat([values[order], values.new_full((1,), torch.inf)])
    first = torch.cumsum(count, dim=0) - count
    rank = torch.round(share * count).long()
    # between two neighbours in rank; beyond the ends by a little
    below, above = ranked[(first + rank - 1).clamp(min=0)], ranked[first + rank]
    below = torch.where(rank > 0, below, above - 1.0)
    above = torch.where(rank < count, above, below + 1.0)
    return torch.where(count > 0, (below + above) / 2, 0.0)


def soft_tilts(p: Tensor, index: Tensor, shares: Tensor, *, pull: float | Tensor) -> Tensor:
    """Multipliers lambda (regions, classes) of the soft form, `pull` being weight n, or (regions, 1); see `tilts`."""
    log_p = torch.log(p.clamp(min=LEAST))
    known = torch.isfinite(shares)
    s = torch.where(known, shares, 0.0).clamp(min=LEAST)
    pull = torch.as_tensor(pull).to(s).expand_as(s)
    lam = pull
    for _ in range(ROUNDS):
        m = mean_by_region(tilted(log_p, index, lam), index, len(s)).clamp(min=LEAST**2)
        # a multiplier of `pull` is no pull at all: sums of shares are alike on both sides
        new = torch.where(known, product_log(lam + torch.log(pull * s / m)), pull)
        move, lam = float((new - lam).abs().max()), new
        if move < CLOSE:
            break
    return lam


def tilted(log_p: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    """Tilted probabilities (pixels, classes): p exp(lambda of its region) / sum; p where there is none."""
    rows = torch.cat([lam, lam.new_zeros(1, lam.shape[1])])  # the last one is that of region -1
    return torch.softmax(log_p + rows[index], dim=1)


def product_log(c: Tensor) -> Tensor:
    """Solve u + log u = c for u > 0: Lambert's W of exp(c)."""
    v = torch.where(c > 1, torch.log(c.clamp(min=1)), c)  # log u
    for _ in range(6):
        u = torch.exp(v)
        v = v - (u + v - c) / (u + 1)
    return torch.exp(v)


def _flat(x: Tensor) -> Tensor:
    """(batch, classes, h, w) to (pixels, classes)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _mismatch(p: Tensor, regions: Regions, tolerance: float) -> Tensor:
    """Sum over the pixels of every item of D(s || m) of their region.

    D is the generalised KL, s the shares moved to m as far as their tolerance goes.
    """
    index, s = regions.index.reshape(-1), regions.shares
    m = mean_by_region(_flat(p), index, len(s)).clamp(min=LEAST)
    near = torch.where(torch.isfinite(s), torch.minimum(torch.maximum(m.detach(), s - tolerance), s + tolerance), m)
    near = near.detach().clamp(min=LEAST)
    apart = (near * torch.log(near / m) + m - near).sum(dim=1)
    apart = apart if regions.parts is None else apart * regions.parts
    rows = torch.cat([apart, apart.new_zeros(1)])
    return rows[regions.index].sum(dim=(1, 2))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Shares(Constraint):
    """Shares of the classes in regions, kept within a tolerance; the firm form of the module.

    tolerance: of every share, in [0, 1]. weight: of the energy, for the gradient forms alone: the proximal step keeps
    the tolerance whatever it is. All pixels of a region are in the batch; where they are not (a raster of many
    windows), solve for the tilts first and give them as `Unary`.
    """

    regions: Regions
    layout: OneHotLayout
    tolerance: float = 0.0
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1 or not self.weight >= 0:
            raise SettingError(f"wanted a tolerance in [0, 1] and a weight >= 0, got {self.tolerance}, {self.weight}")

    def energy(self, eta: Tensor) -> Tensor:
        """N D(s || m), shared out to the items by pixels; in nats."""
        return _mismatch(self.layout.probabilities(self.layout.split(eta)[1]), self.regions, self.tolerance)

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """Tilt every region until its shares are within the tolerance."""
        del variance, layout
        return _tilted(eta, self, lambda p, index, shares: tilts(p, index, shares, tolerance=self.tolerance))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Hints(Constraint):
    """Shares of the classes in the cells of a coarse map, believed by halves; the soft form of the module.

    weight: 1 counts PULL pixels of the hint for each pixel of the map.
    """

    regions: Regions
    layout: OneHotLayout
    weight: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise SettingError(f"wanted a weight of 0 or more, got {self.weight}")

    def energy(self, eta: Tensor) -> Tensor:
        """PULL N KL(s || m), shared out to the items by pixels; in nats."""
        return PULL * _mismatch(self.layout.probabilities(self.layout.split(eta)[1]), self.regions, 0.0)

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """Tilt every region to the soft optimum."""
        del variance, layout
        if self.weight == 0:
            return eta
        parts = self.regions.parts
        pull = self.weight * PULL * (1.0 if parts is None else parts[:, None])
        return _tilted(eta, self, lambda p, index, shares: soft_tilts(p, index, shares, pull=pull))


def _tilted(eta: Tensor, constraint: Shares | Hints, solve: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    layout, regions = constraint.layout, constraint.regions
    image, labels = layout.split(eta)
    p, index = _flat(layout.probabilities(labels)), regions.index.reshape(-1)
    q = tilted(torch.log(p.clamp(min=LEAST)), index, solve(p, index, regions.shares))
    moved = layout.place(q).reshape(len(eta), *labels.shape[2:], layout.classes).movedim(-1, 1)
    return layout.join(image, torch.where((regions.index >= 0)[:, None], moved, labels))
