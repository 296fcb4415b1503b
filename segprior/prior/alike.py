"""What places of known class say of all that looks like them: a Gaussian process over the network's features.

A prior errs alike in places that look alike: a roof of a kind it has not seen is taken for a road wherever it stands.
Let l(x) be the class logits that the network gives a pixel, f(x) its d features, each standardised. What the logits
lack is a function g of the features, for every class k on its own

    g_k ~ GP(0, s^2 kappa),     kappa(f, f') = exp(- |f - f'|^2 / (2 d r^2)),     p(class | x) = softmax(l(x) + g(x)),

and places (x_i, z_i) where the class was looked up make it known (Rasmussen & Williams 2006, Gaussian Processes for
Machine Learning, ch. 3.5: classification with a mean function). The likeliest g minimises the convex

    - sum_i log softmax(l_i + g_i)_(z_i)  +  1/2 sum_k g_k' (s^2 K)^-1 g_k,      K_ij = kappa(f_i, f_j),

and is g = s^2 K a with a = one-hot(z) - softmax(l + g): residuals are carried to what is alike, as kriging carries them
to what is near. Where nothing alike was looked up g is 0 and the prior's word stands.

The places must be a sample: random, or on a grid, or wherever people happened to be, but not where the map looked
wrong. Clicks on errors are no sample; a prior would take the whole class for wrong. They are `Known`, and speak to what
is alike only where it is near as well, so that a click turns its object:

    kappa(x, x') = exp(- |f - f'|^2 / (2 d r^2) - |x - x'|^2 / (2 rho^2)),

rho in pixels. `around` makes evidence of that, for `Unary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from segprior.errors import SettingError
from segprior.prior.denoiser import Denoiser, NetworkDenoiser
from segprior.prior.joint import Times
from segprior.prior.network import STRIDE, Features

VARIANCE = 3.0
"""s^2, in squared nats: what the logits of a network may lack."""
REACH = 0.5
"""r: how unlike features may be and still speak to each other."""
CLICK_VARIANCE, CLICK_REACH, CLICK_NEAR = 10.0, 0.8, 20.0
"""s^2, r and rho of clicks: they lie where logits are far off, and speak to what is near."""
MOST = 4000
"""Places that are used at most; the kernel of more would not fit into memory."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """g, as it is known from n places.

    features: (n, d) of the places, standardised. residuals: a, (n, classes). mean, std: (d,), of all features.
    variance: s^2. reach: r. at: (n, 2), row and column of the places in the pixels of the one window that they speak
    of, None if they speak of all. near: rho.
    """

    features: Tensor
    residuals: Tensor
    mean: Tensor
    std: Tensor
    variance: float = VARIANCE
    reach: float = REACH
    at: Tensor | None = None
    near: float = CLICK_NEAR

    def offset(self, context: Tensor) -> Tensor:
        """G in nats of features (batch, d, h, w), as (batch, classes, h, w)."""
        batch, channels, height, width = context.shape
        given = standardised(context.float().permute(0, 2, 3, 1).reshape(-1, channels), self.mean, self.std)
        likeness = kernel(given, self.features, self.reach)
        if self.at is not None:
            likeness = likeness * nearness(middles(height, width).to(self.at), self.at, self.near).repeat(batch, 1)
        found = self.variance * likeness @ self.residuals
        return found.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def to(self, device: torch.device) -> Alike:
        """The same on a device."""
        features, residuals, mean, std = (t.to(device) for t in (self.features, self.residuals, self.mean, self.std))
        at = None if self.at is None else self.at.to(device)
        return Alike(features, residuals, mean, std, self.variance, self.reach, at, self.near)


def standardised(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(n, d) features in units of their spread; those that are the same everywhere count for nothing."""
    return torch.where(std > 0, (features - mean) / torch.where(std > 0, std, 1.0), 0.0)


def kernel(one: Tensor, other: Tensor, reach: float) -> Tensor:
    """Kappa of (n, d) and (m, d) features: (n, m)."""
    squares = torch.cdist(one, other) ** 2
    return torch.exp(-squares / (2 * max(1, one.shape[1]) * reach**2))


def nearness(one: Tensor, other: Tensor, near: float) -> Tensor:
    """How near (n, 2) and (m, 2) places are: (n, m), 1 for the same."""
    return torch.exp(-(torch.cdist(one, other) ** 2) / (2 * near**2))


def middles(height: int, width: int) -> Tensor:
    """Row and column, in pixels, of the middles of height x width cells: (cells, 2)."""
    axes = ((torch.arange(n) + 0.5) * STRIDE - 0.5 for n in (height, width))
    return torch.cartesian_prod(*axes)


def alike(
    features: Tensor,
    logits: Tensor,
    index: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    variance: float = VARIANCE,
    reach: float = REACH,
    at: Tensor | None = None,
    near: float = CLICK_NEAR,
) -> Alike:
    """Find g from places.

    features: (n, d), n from 1 to MOST. logits: (n, classes), the network's at its temperature. index: (n,), true
    classes. mean, std: (d,), of the features all over the image. at, near: as of `Alike`. Raises SettingError.
    """
    if not 0 < len(index) <= MOST or not len(features) == len(logits) == len(index):
        raise SettingError(f"wanted 1 to {MOST} places, got {len(features)}, {len(logits)} and {len(index)}")
    if not min(variance, reach, near) > 0:
        raise SettingError(f"wanted a variance, a reach and a distance above 0, got {variance}, {reach} and {near}")
    given = standardised(features.double(), mean.double(), std.double())
    likeness = kernel(given, given, reach)
    if at is not None:
        at = at.to(features.device)
        likeness = likeness * nearness(at.double(), at.double(), near)
    residuals = _residuals(variance * likeness, logits.double(), index.long())
    place = None if at is None else at.float()
    return Alike(given.float(), residuals.float(), mean.float(), std.float(), variance, reach, place, near)


def _residuals(covariance: Tensor, logits: Tensor, index: Tensor) -> Tensor:
    """A of g = covariance a, by L-BFGS on the convex energy in a whitened form: g = L u with L L' = covariance."""
    ridge = (
        1e-8 * covariance.diagonal().mean() * torch.eye(len(index), dtype=covariance.dtype, device=covariance.device)
    )
    root = torch.linalg.cholesky(covariance + ridge)
    u = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([u], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def energy() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(logits + root @ u, index, reduction="sum") + 0.5 * (u**2).sum()
        value.backward()  # type: ignore[no-untyped-call]  # missing in torch's stubs
        return value

    with torch.enable_grad():
        optimiser.step(energy)  # type: ignore[no-untyped-call]  # missing in torch's stubs
    g = root @ u.detach()
    one_hot = functional.one_hot(index, logits.shape[1]).to(g)
    return one_hot - torch.softmax(logits + g, dim=1)


@final
class Surveyed(Denoiser):
    """A prior that has been told of places: g is added to the class logits that its network gives of the image.

    So it enters p(labels | image) itself, once, and every form of the solver and every constraint goes on from there.
    """

    def __init__(self, denoiser: NetworkDenoiser, told: Alike) -> None:
        self.denoiser, self.told = denoiser, told
        self.layout = denoiser.layout
        self.schedule = denoiser.schedule

    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features:
        """As the prior does, with other logits."""
        features = self.denoiser.encode(image_t, t_image, silent=silent)
        g = functional.interpolate(self.told.offset(features.context), scale_factor=STRIDE, mode="bilinear")
        # the denoiser divides logits by its temperature; g was found after that
        return replace(features, logits=features.logits + self.denoiser.temperature * g)

    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        """As the prior's, of these features."""
        if features is None:
            features = self.encode(self.layout.split(x_t)[0], times.image)
        return self.denoiser.x0_hat(x_t, times, features)


Clicks = tuple[Tensor, Tensor, Tensor]
"""Row, column and class index of clicks in a window, (n,) each."""


@torch.no_grad()
def around(denoiser: NetworkDenoiser, y: Tensor, seen: Tensor, clicks: Sequence[Clicks]) -> Tensor:
    """What clicks say of what is near and alike: evidence for `Unary`, (batch, classes, height, width) in nats.

    y: (batch, bands, height, width), normalised. seen: (batch, 1, height, width), True where it holds data. clicks: of
    every item; those of one without any say nothing, and of very many only the last MOST count.
    """
    found = y.new_zeros(len(y), denoiser.layout.classes, *y.shape[2:])
    busy = [number for number, (rows, _, _) in enumerate(clicks) if len(rows)]
    if not busy:
        return found
    shown, there = y[busy], seen[busy]
    features = denoiser.encode(torch.where(there, shown, 0.0), torch.where(there, 0.0, 1.0))
    for place, number in enumerate(busy):
        rows, cols, index = (each[-MOST:].to(y.device) for each in clicks[number])
        context = features.context[place].float()
        spread = context.flatten(1)
        told = alike(
            context[:, rows // STRIDE, cols // STRIDE].T,
            features.logits[place][:, rows, cols].T.float() / denoiser.temperature,
            index,
            mean=spread.mean(dim=1),
            std=spread.std(dim=1),
            variance=CLICK_VARIANCE,
            reach=CLICK_REACH,
            at=torch.stack([rows, cols], dim=1).float(),
        )
        g = told.offset(context[None])
        found[number] = functional.interpolate(g, scale_factor=STRIDE, mode="bilinear")[0]
    return found
