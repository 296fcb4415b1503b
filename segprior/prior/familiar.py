"""Familiarity: whether an image looks like those the prior was trained on, by the prior's own image loss.

At noise levels t from low to high, with nothing known of the labels (t_labels = 1), the log of the prior's error

    l_t = log mean ||x_0 - x0_hat(x_t, t)||^2 / (1 - alpha_bar(t)),       the mean over valid pixels of a cell,

tells how strange the texture (low) and the colours (high) of a cell of CELL x CELL pixels are. At the highest level the
log errors of all bands but the last, less the mean over the bands, go with them: which band lies farther off than the
others tells of colours and cameras. Over cells of the images of training and validation this vector l of n numbers has
the mean m and the covariance C, and

    d(l)^2 = (l - m)' C^-1 (l - m)

tells how unusual a cell is (Mahalanobis). For a new cell of the same normal law, m and C being from k cells, d^2 has
the law of n (k + 1) (k - 1) / (k (k - n)) F(n, k - n) (Hotelling 1931): what was learned from few cells calls much
familiar. Real cells have longer tails, so far is what is beyond both this law and the cells themselves, each measured
by m and C of the others. With d_i^2 by m and C of all k, that is

    d_(i)^2 = k^2 (k - 2) d_i^2 / ((k - 1) ((k - 1)^2 - k d_i^2))

(Sherman and Morrison's formula, twice). An error that is too small is as strange as one too large: a flat picture is
easy, not familiar (as in the typicality test of Nalisnick et al. 2019, with the levels of a diffusion model as
features).

The errors of neighbouring levels go together so closely that what tells is how they do not. So there are many levels, C
is taken as it is (shrunk towards its diagonal it forgets this), and all cells are noised alike, that noise may not blur
it (`scripts/bench_novelty.py` measures the first two).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from segprior.errors import SettingError
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.joint import Times

CELL = 128
TIMES = (0.03, 0.1, 0.3, 0.6, 0.9)
SPARE = 5
"""By how many at least the cells that a distribution is made from outnumber what is told of each."""

SHARE = 0.98
"""Of new familiar cells, so many are nearer than what is called far."""

MARGIN, CHANCE = 0.05, 0.05
"""A raster is unlike the familiar ones if more than this share of it is far, and if as many cells or more are far in
fewer than this share of familiar rasters."""


@torch.no_grad()
def image_losses(denoiser: NetworkDenoiser, y: Tensor, valid: Tensor) -> Tensor:
    """Losses (batch, `told_by(bands)`, rows, columns) of the cells of images; NaN where less than half of one is valid.

    They are the log losses at TIMES, and by how much those of the bands but the last, at the last of TIMES, lie above
    the mean of the bands.

    y: (batch, bands, h, w), normalised. valid: (batch, 1, h, w) bool. Cells at the lower and right edge may be cut.
    """
    layout = denoiser.layout
    y = torch.where(valid, y, 0.0)
    noise, ones = _noise(y), torch.ones_like(y[:, :1])
    labels = ones.repeat(1, layout.classes, 1, 1)  # nothing is known of them, whatever stands here
    share = _cells(valid.to(y.dtype))
    found = []
    for t in TIMES:
        t_image = torch.where(valid, t, 1.0)
        x_t = layout.join(denoiser.schedule.add_noise(y, noise, t_image), labels)
        error = (denoiser.predict(x_t, Times(t_image, ones)).image - y) ** 2
        error = error / denoiser.schedule.sigma(t_image) ** 2
        mean = _cells(torch.where(valid, error, 0.0)) / share.clamp(min=1e-6)
        found.append(torch.log(mean.mean(dim=1, keepdim=True).clamp(min=1e-8)))
    by_band = torch.log(mean.clamp(min=1e-8))
    found.append((by_band - by_band.mean(dim=1, keepdim=True))[:, :-1])
    return torch.where(share >= 0.5, torch.cat(found, dim=1), torch.nan)


def told_by(bands: int) -> int:
    """How many numbers tell of a cell of an image with so many bands."""
    return len(TIMES) + bands - 1


def _noise(y: Tensor) -> Tensor:
    """Noise like y, the same for all items, in all cells and at every call."""
    cell = torch.randn(1, y.shape[1], CELL, CELL, generator=torch.Generator().manual_seed(0)).to(y)
    height, width = y.shape[2:]
    return cell.repeat(len(y), 1, -(-height // CELL), -(-width // CELL))[:, :, :height, :width]


def _cells(x: Tensor) -> Tensor:
    """Means of cells; what is cut off a cell at the edge counts as 0."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (0, -width % CELL, 0, -height % CELL))
    return functional.avg_pool2d(padded, CELL)


@dataclass(frozen=True, slots=True)
class Familiarity:
    """What the losses of familiar cells are like.

    mean: (n,). precision: (n, n), the inverse of the covariance. far: the distance that SHARE of new ones
    stay below. cells: how many they were that do not overlap.
    """

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    far: float
    cells: int

    def __post_init__(self) -> None:
        count = len(self.mean)
        if len(self.precision) != count or any(len(row) != count for row in self.precision) or not self.far > 0:
            raise SettingError(f"wanted a mean, a square of as many and a distance above 0, got {count} and {self.far}")

    @classmethod
    def of(cls, losses: Tensor, *, overlap: int = 1) -> "Familiarity":
        """Describe losses (cells, n); NaN ones are left out. Raises SettingError if fewer remain than n + SPARE.

        overlap: how many times a place is covered, which does not make it more places.
        """
        from scipy import stats  # noqa: PLC0415  # slow to load, and needed in training alone

        known = losses[torch.isfinite(losses).all(dim=1)].double()
        k, n = len(known) // overlap, losses.shape[1]
        if k < n + SPARE:
            raise SettingError(f"wanted {n + SPARE} cells of {CELL} x {CELL} pixels or more, got {k}")
        mean, covariance = known.mean(dim=0), torch.cov(known.T)
        precision = torch.linalg.inv(covariance + 1e-6 * torch.eye(n))
        law = n * (k + 1) * (k - 1) / (k * (k - n)) * stats.f.ppf(SHARE, n, k - n)
        own = float(torch.quantile(_by_the_others(known - mean, precision), SHARE))
        return cls(_numbers(mean), tuple(_numbers(row) for row in precision), max(float(law), own) ** 0.5, k)

    def distance(self, losses: Tensor) -> Tensor:
        """D / far of losses (batch, n, rows, columns): (batch, rows, columns), above 1 for the unfamiliar."""
        off = losses - torch.tensor(self.mean, dtype=losses.dtype, device=losses.device)[:, None, None]
        precision = torch.tensor(self.precision, dtype=losses.dtype, device=losses.device)
        square = torch.einsum("bthw,ts,bshw->bhw", off, precision, off)
        return torch.sqrt(square.clamp(min=0)) / self.far


def _by_the_others(off: Tensor, precision: Tensor) -> Tensor:
    """Squared distances (cells,) of cells off the mean of all (cells, n) by mean and covariance of the others."""
    k = len(off)
    square = torch.einsum("kt,ts,ks->k", off, precision, off)
    return k**2 * (k - 2) * square / ((k - 1) * ((k - 1) ** 2 - k * square)).clamp(min=1e-9)


def unfamiliar(share: float, cells: int) -> bool:
    """Whether a raster of so many cells (at least 1), of which this share is far, is unlike the familiar ones.

    In a familiar raster the count of far cells has a binomial law, if cells are taken as independent of each other. So
    one far cell of three or more is nothing to speak of; of a large raster a share above MARGIN always is.
    """
    if share <= MARGIN:
        return False
    from scipy import stats  # noqa: PLC0415  # slow to load, and seldom needed

    return bool(stats.binom.sf(max(1, round(share * cells)) - 1, cells, 1 - SHARE) < CHANCE)


def spread_over(cells: Tensor, height: int, width: int) -> Tensor:
    """Give every pixel (batch, height, width) the value of its cell."""
    return cells.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)[:, :height, :width]


def _numbers(row: Sequence[Tensor] | Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in row)
