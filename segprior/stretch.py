"""A stretch: what the values of a file become before a prior sees them.

Priors are trained on 8-bit imagery. Bands of another type are brought to its range by a straight line each,

    x = 255 (v - low) / (high - low), clipped to [0, 255],

with low and high given, or the 2nd and 98th percentile of the band (the cumulative cut that GIS programs show a raster
with). The percentiles are those of a bounded sample, small windows spread evenly over the raster, never of the whole:
a raster of any size costs the same, and every window of it is stretched alike. 8-bit bands are taken as they are unless
a stretch is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader

from segprior.errors import RasterError, SettingError
from segprior.raster import read_readable, read_window
from segprior.windows import Window

PERCENTILES = (2.0, 98.0)
"""Of a band's sampled pixels, what becomes 0 and what becomes 255."""

_WINDOWS, _SIDE = 16, 64  # the sample: 16 x 16 windows of 64 x 64 pixels


@dataclass(frozen=True, slots=True)
class Stretch:
    """The values that become 0 and 255, per band, or one pair for all bands."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.low, self.high, strict=False))
        if not pairs or len(self.low) != len(self.high) or not all(math.isfinite(b - a) and a < b for a, b in pairs):
            raise SettingError(
                f"wanted a scale of finite numbers, the least below the greatest, got {self.low} to {self.high}"
            )

    @classmethod
    def parse(cls, text: str) -> Stretch:
        """Read "min,max", or one such pair per band in a row; SettingError if it is not that."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not numbers or len(numbers) % 2:
            raise SettingError(f"wanted a scale like 0,3000, or one such pair per band, got {text!r}")
        return cls(tuple(numbers[::2]), tuple(numbers[1::2]))

    def of_bands(self, count: int) -> Stretch:
        """The same for `count` bands; SettingError unless there is one pair or one for each."""
        if len(self.low) == 1:
            return Stretch(self.low * count, self.high * count)
        if len(self.low) != count:
            raise SettingError(f"wanted a scale of one pair or {count}, one per band, got {len(self.low)}")
        return self

    def __str__(self) -> str:
        """As `parse` reads it."""
        return ",".join(f"{value:.9g}" for pair in zip(self.low, self.high, strict=True) for value in pair)

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Stretch (bands, rows, columns) of any type, NaN and infinities included, to float32 in [0, 255]."""
        kind = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)  # float32 holds 16 bits exactly
        low, high = np.array(self.low, kind)[:, None, None], np.array(self.high, kind)[:, None, None]
        x: npt.NDArray[Any] = np.nan_to_num(values.astype(kind), copy=False, posinf=0.0, neginf=0.0)
        x -= low
        x *= 255.0 / (high - low)
        stretched: npt.NDArray[np.float32] = np.clip(x, 0.0, 255.0).astype(np.float32, copy=False)
        return stretched


def stretch_of(dataset: DatasetReader, bands: tuple[int, ...], *, lenient: bool = False) -> Stretch:
    """Find the stretch of an open raster's bands from its percentiles.

    lenient: take damaged blocks as without data.

    Raises:
        RasterError: no valid pixel in the sample, or the file is damaged there.

    """
    samples = []
    for window in _spread(dataset.height, dataset.width):
        pixels, valid = (read_readable if lenient else read_window)(dataset, window, bands=bands)
        samples.append(pixels[:, valid])
    sample = np.concatenate(samples, axis=1)
    if sample.shape[1] == 0:
        raise RasterError(
            f"wanted pixels with data in {dataset.name} to scale its values by, met none in a sample; give the scale"
        )
    low, high = np.percentile(sample.astype(np.float64), PERCENTILES, axis=1)
    return Stretch(tuple(low.tolist()), tuple(np.where(high > low, high, low + 1.0).tolist()))


def _spread(height: int, width: int) -> Iterator[Window]:
    """Windows spread evenly over a raster, which cover a small one without gaps."""
    rows, cols = (_offsets(length) for length in (height, width))
    for row in rows:
        for col in cols:
            yield Window(row, col, min(_SIDE, height - row), min(_SIDE, width - col))


def _offsets(length: int) -> list[int]:
    if length <= _WINDOWS * _SIDE:
        return list(range(0, length, _SIDE))
    return [round(i * (length - _SIDE) / (_WINDOWS - 1)) for i in range(_WINDOWS)]
