"""Resampling between two grids that share their outline: one factor along rows, one along columns.

A source of H x W pixels and a destination of h x w pixels cover the same rectangle, so destination pixel (i, j) covers
the source rectangle [i s_r, (i + 1) s_r] x [j s_c, (j + 1) s_c] with the steps (s_r, s_c) = (H / h, W / w). No map
coordinates enter: rasters that are rotated, in degrees, in feet or nowhere are all alike here.

Where both axes shrink (s >= 1) a destination pixel is the mean over its rectangle. Otherwise it is bilinear, and an
axis that shrinks uses a triangle that is as wide as the shrinking asks for. Every destination pixel depends on its
index alone, never on the window it is computed in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject

from segprior.windows import Window

Steps = tuple[float, float]
"""Source pixels per destination pixel along rows and along columns."""

_PLANE = CRS.from_wkt('LOCAL_CS["pixels",UNIT["pixel",1]]')
# GDAL takes a pixel of size 1 at the origin for "no georeference" and then resamples nothing, hence a large unit.
_UNIT = 1024.0


def reach(step: float) -> int:
    """Count the pixels around its own that a destination pixel may draw from along an axis."""
    return math.ceil(max(1.0, step)) + 1


def source_window(window: Window, *, step: Steps, height: int, width: int) -> Window:
    """Find the part of a source of `height` x `width` pixels that the destination pixels of `window` draw from."""
    top, bottom = _span(window.row, window.height, step[0], height)
    left, right = _span(window.col, window.width, step[1], width)
    return Window(top, left, bottom - top, right - left)


def _span(start: int, count: int, step: float, limit: int) -> tuple[int, int]:
    margin = reach(step)
    return max(0, math.floor(start * step) - margin), min(limit, math.ceil((start + count) * step) + margin)


def resample(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.float32], *, offset: tuple[int, int], step: Steps, window: Window
) -> npt.NDArray[np.float32]:
    """Compute the destination pixels of `window`, float32 (channels, window.height, window.width).

    Args:
        values: source pixels (channels, rows, columns): at least those of `source_window`, or to the source's edges.
        offset: row and column in the source of values[:, 0, 0].
        step: source pixels per destination pixel along rows and along columns.
        window: which pixels of the destination grid.

    """
    out = np.zeros((values.shape[0], window.height, window.width), np.float32)
    corner = (window.row * step[0] - offset[0], window.col * step[1] - offset[1])
    _reproject(values, out, corner, step, Resampling.average if min(step) >= 1 else Resampling.bilinear)
    return out


def resample_valid(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    *,
    offset: tuple[int, int],
    step: Steps,
    window: Window,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Resample over valid source pixels alone: sum(weight valid value) / sum(weight valid).

    Returns:
        values: float32 (channels, window.height, window.width), 0 where not valid.
        valid: bool (window.height, window.width), True where any valid source pixel has a weight.

    """
    layers = np.concatenate([np.where(valid, values, 0), valid[None].astype(values.dtype)])
    sums = resample(layers, offset=offset, step=step, window=window)
    weight = sums[-1]
    known = weight > 1e-6
    return np.where(known, sums[:-1] / np.where(known, weight, 1), 0).astype(np.float32), known


def most_frequent(values: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Resample classes (channels, rows, columns) to `shape` rows and columns: the value most frequent under a pixel."""
    out = np.zeros((values.shape[0], *shape), np.uint8)
    step = (values.shape[1] / shape[0], values.shape[2] / shape[1])
    _reproject(values, out, (0.0, 0.0), step, Resampling.mode)
    return out


def _reproject(
    values: npt.NDArray[Any], out: npt.NDArray[Any], corner: tuple[float, float], step: Steps, method: Resampling
) -> None:
    """Fill `out`, whose upper left corner lies at `corner` (row, column) in the source's pixels."""
    reproject(
        values,
        out,
        src_transform=_pixels(origin=(0.0, 0.0), size=(1.0, 1.0)),
        dst_transform=_pixels(origin=corner, size=step),
        src_crs=_PLANE,
        dst_crs=_PLANE,
        resampling=method,
    )


def _pixels(*, origin: tuple[float, float], size: Steps) -> Affine:
    """Pixel (row, column) -> plane, rows downwards as in maps."""
    return Affine(_UNIT * size[1], 0.0, _UNIT * origin[1], 0.0, -_UNIT * size[0], -_UNIT * origin[0])
