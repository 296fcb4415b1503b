"""What places of known class say of all that looks like them: a Gaussian process over the network's features.

A prior errs alike in places that look alike: a roof of a kind it has not seen is taken for a road wherever it stands.
Let l(x) be the class logits that the network gives a pixel, f(x) its d features, each standardised. What the logits
lack is a function g of the features, for every class k on its own

    g_k ~ GP(0, s^2 kappa + s_0^2),  kappa(f, f') = exp(- |f - f'|^2 / (2 d r^2)),  p(class | x) = softmax(l(x) + g(x)),

and places (x_i, z_i) where the class was looked up make it known (Rasmussen & Williams 2006, Gaussian Processes for
Machine Learning, ch. 3.5: classification with a mean function). The likeliest g minimises the convex

    - sum_i log softmax(l_i + g_i)_(z_i)  +  1/2 sum_k g_k' K^-1 g_k,      K_ij = s^2 kappa(f_i, f_j) + s_0^2,

and is g = K a with a = one-hot(z) - softmax(l + g): residuals are carried to what is alike, as kriging carries them to
what is near, and s_0 lets a class be called too seldom all over the image, as in a new region it often is. Where
nothing alike was looked up only that is left of g, and the prior's word stands otherwise.

The places must be a sample: random, or on a grid, or wherever people happened to be, but not where the map looked
wrong. Clicks on errors are no sample: taken for one, they take a whole class for wrong. But whoever clicks on what is
wrong lets the rest pass. So for clicks the sum has more terms, quiet places drawn at random, of which the network's own
probabilities p_j are presumed to be right with a small weight w: a class that is mostly right outvotes the click
wherever the features cannot tell them apart. What is both alike and near follows it more readily:

    kappa(x, x') = exp(- |f - f'|^2 / (2 d r^2)) (1 + s_n^2 / s^2 exp(- |x - x'|^2 / (2 rho^2))),

x being places in pixels. `SURVEYS` and `CLICKS` are the two laws. What a survey says enters the network's logits
(`Surveyed`), what clicks say is evidence (`evidence`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from segprior.errors import SettingError
from segprior.prior.denoiser import Denoiser, NetworkDenoiser
from segprior.prior.joint import UNLABELLED, Times
from segprior.prior.label_path import STRIDE
from segprior.prior.network import Features

MOST = 4000
"""Places that are used at most; the kernel of more would not fit into memory."""
QUIET, CONSENT = 300, 0.1
"""Quiet places beside clicks, and w: what it weighs that nobody said anything there."""


@dataclass(frozen=True, slots=True)
class Law:
    """How far what is said of a place carries.

    variance: s^2, in squared nats, what the logits of a network may lack. reach: r, how unlike features may be and
    still speak to each other. base: s_0^2, of all places alike. local: s_n^2, of what is near as well. near: rho, in
    pixels.
    """

    variance: float
    reach: float
    local: float = 0.0
    near: float = 20.0
    base: float = 0.0

    def __post_init__(self) -> None:
        if not min(self.variance, self.reach, self.near) > 0 or not min(self.local, self.base) >= 0:
            raise SettingError(f"wanted a variance, a reach and a distance above 0, got {self}")

    def covariance(
        self, one: Tensor, other: Tensor, at: Tensor | None = None, other_at: Tensor | None = None
    ) -> Tensor:
        """S^2 kappa + s_0^2 of features (n, d) and (m, d) at places (n, 2) and (m, 2): (n, m)."""
        squares = torch.cdist(one, other) ** 2
        likeness = torch.exp(-squares / (2 * max(1, one.shape[1]) * self.reach**2))
        if at is None or other_at is None:
            return self.variance * likeness + self.base
        # not by |x|^2 + |y|^2 - 2 x y, which loses the distance of neighbours far from the raster's origin
        apart = torch.cdist(at, other_at, compute_mode="donot_use_mm_for_euclid_dist")
        nearness = torch.exp(-(apart**2) / (2 * self.near**2))
        return likeness * (self.variance + self.local * nearness) + self.base


SURVEYS, CLICKS = Law(3.0, 0.5, base=0.1), Law(3.0, 1.6, local=10.0)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """g, as it is known from n places.

    features: (n, d) of the places, standardised. residuals: a, (n, classes). mean, std: (d,), of all features. at:
    (n, 2), row and column of the places; None where only features count.
    """

    features: Tensor
    residuals: Tensor
    mean: Tensor
    std: Tensor
    law: Law = SURVEYS
    at: Tensor | None = None

    def offset(self, context: Tensor, corners: Tensor | None = None) -> Tensor:
        """G in nats of features (batch, d, h, w), as (batch, classes, h, w).

        corners: (batch, 2), row and column of each item's first pixel; None for (0, 0).
        """
        batch, channels, height, width = context.shape
        given = standardised(context.float().permute(0, 2, 3, 1).reshape(-1, channels), self.mean, self.std)
        here = None
        if self.at is not None:
            first = self.at.new_zeros(batch, 2) if corners is None else corners.to(self.at)
            here = (first[:, None] + middles(height, width).to(self.at)).reshape(-1, 2)
        found = self.law.covariance(given, self.features, here, self.at) @ self.residuals
        return found.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def to(self, device: torch.device) -> Alike:
        """The same on a device."""
        features, residuals, mean, std = (t.to(device) for t in (self.features, self.residuals, self.mean, self.std))
        return Alike(features, residuals, mean, std, self.law, None if self.at is None else self.at.to(device))


def standardised(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(n, d) features in units of their spread; those that are the same everywhere count for nothing."""
    return torch.where(std > 0, (features - mean) / torch.where(std > 0, std, 1.0), 0.0)


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
    law: Law = SURVEYS,
    at: Tensor | None = None,
) -> Alike:
    """Find g from places.

    features: (n, d), n from 1 to MOST. logits: (n, classes), the network's at its temperature. index: (n,), true
    classes, 255 at quiet places. mean, std: (d,), of the features all over the image. at: (n, 2), row and column of the
    places, for a law that asks how near they are. Raises SettingError.
    """
    if not 0 < len(index) <= MOST or not len(features) == len(logits) == len(index):
        raise SettingError(f"wanted 1 to {MOST} places, got {len(features)}, {len(logits)} and {len(index)}")
    given = standardised(features.double(), mean.double(), std.double())
    there = None if at is None else at.double()
    residuals = _residuals(law.covariance(given, given, there, there), logits.double(), index.long())
    place = None if at is None else at.float()
    return Alike(given.float(), residuals.float(), mean.float(), std.float(), law, place)


def _residuals(covariance: Tensor, logits: Tensor, index: Tensor) -> Tensor:
    """A of g = covariance a, by L-BFGS on the convex energy in a whitened form: g = L u with L L' = covariance."""
    quiet = (index == UNLABELLED)[:, None]
    one_hot = functional.one_hot(index.clamp(max=logits.shape[1] - 1), logits.shape[1]).to(logits)
    target = torch.where(quiet, torch.softmax(logits, dim=1), one_hot)
    weight = torch.where(quiet, CONSENT, 1.0).to(logits)
    ridge = 1e-8 * covariance.diagonal().mean() * torch.eye(len(index)).to(covariance)
    root = torch.linalg.cholesky(covariance + ridge)
    u = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([u], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def energy() -> Tensor:
        optimiser.zero_grad()
        said = weight * target * torch.log_softmax(logits + root @ u, dim=1)
        value = 0.5 * (u**2).sum() - said.sum()
        value.backward()  # type: ignore[no-untyped-call]  # missing in torch's stubs
        return value

    with torch.enable_grad():
        optimiser.step(energy)  # type: ignore[no-untyped-call]  # missing in torch's stubs
    return weight * (target - torch.softmax(logits + root @ u.detach(), dim=1))


@final
class Surveyed(Denoiser):
    """A prior that has been told of places: g is added to the class logits that its network gives of the image.

    So it enters p(labels | image) itself, once, and every form of the solver and every constraint goes on from there.
    """

    def __init__(self, denoiser: NetworkDenoiser, told: Alike) -> None:
        """`told` by features alone: what is near is told by `evidence`, for a solver may turn the image."""
        self.denoiser, self.told = denoiser, told
        self.layout = denoiser.layout
        self.schedule = denoiser.schedule

    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features:
        """As the prior does, with other logits."""
        features = self.denoiser.encode(image_t, t_image, silent=silent)
        # the denoiser divides logits by its temperature; g was found after that
        return replace(features, logits=features.logits + self.denoiser.temperature * enlarged(self.told, features))

    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        """As the prior's, of these features."""
        if features is None:
            features = self.encode(self.layout.split(x_t)[0], times.image)
        return self.denoiser.x0_hat(x_t, times, features)


def enlarged(told: Alike, features: Features, corners: Tensor | None = None) -> Tensor:
    """G in nats, (batch, classes, height, width), of features of images; corners: see `Alike.offset`."""
    return functional.interpolate(told.offset(features.context, corners), scale_factor=STRIDE, mode="bilinear")


@torch.no_grad()
def evidence(denoiser: NetworkDenoiser, y: Tensor, seen: Tensor, told: Alike, corners: Tensor | None = None) -> Tensor:
    """Turn g into evidence for `Unary`: (batch, classes, height, width) in nats.

    y: (batch, bands, height, width), normalised. seen: (batch, 1, height, width), True where it holds data. corners:
    see `Alike.offset`.
    """
    return enlarged(told, denoiser.encode(*shown(y, seen)), corners)


def shown(y: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Clean images and their times as `encode` takes them: 1 where there is no data."""
    return torch.where(seen, y, 0.0), torch.where(seen, 0.0, 1.0)


@torch.no_grad()
def alike_within(
    denoiser: NetworkDenoiser, y: Tensor, seen: Tensor, places: Tensor, index: Tensor, *, law: Law = SURVEYS
) -> Alike:
    """Find g from places of one image that is seen whole.

    y: (1, bands, height, width), normalised. seen: (1, 1, height, width), True where it holds data. places: (n, 2), row
    and column. index: (n,), their classes. Under `CLICKS` QUIET places are drawn besides, the same ones every time.
    """
    features = denoiser.encode(*shown(y, seen))
    context, there = features.context[0].float(), seen[0, 0, ::STRIDE, ::STRIDE]
    if law == CLICKS:
        quiet = torch.from_numpy(quiet_places(*y.shape[2:])).to(places)
        quiet = quiet[seen[0, 0][tuple(quiet.T)]]
        places = torch.cat([places, quiet])
        index = torch.cat([index, index.new_full((len(quiet),), UNLABELLED)])
    rows, cols = places.T
    spread = context[:, there]
    return alike(
        context[:, rows // STRIDE, cols // STRIDE].T,
        features.logits[0][:, rows, cols].T.float() / denoiser.temperature,
        index,
        mean=spread.mean(dim=1),
        std=spread.std(dim=1),
        law=law,
        at=places.float() if law.local else None,
    )


def quiet_places(height: int, width: int) -> npt.NDArray[np.int64]:
    """QUIET places of an image, drawn at random, the same for the same size: (QUIET, 2), row and column."""
    return np.random.default_rng(0).integers((0, 0), (height, width), size=(QUIET, 2))
