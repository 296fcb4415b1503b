"""Boundary scores: how near the outlines of a prediction are to the true ones.

B_k(c) are the pixels of class k with a neighbour (above, below, left, right) of another class. With a tolerance theta
in metres and d the distance between pixel centres on the ground (Csurka et al. 2013, "What is a good evaluation measure
for semantic segmentation?", section 3):

    precision_k = | {p in B_k(predicted) : d(p, B_k(true)) <= theta} | / | B_k(predicted) |
       recall_k = | {p in B_k(true) : d(p, B_k(predicted)) <= theta} | / | B_k(true) |
    boundary F1 = 2 precision recall / (precision + recall).

A pixel without a label or without a prediction has no class, is no boundary and makes none. What is counted are the
four sizes, so counts of parts add up to those of the whole.
"""

from collections.abc import Iterator
from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from segprior.errors import SettingError

NEAR_GIVEN, GIVEN, NEAR_TRUE, TRUE = range(4)
"""Rows of the counts: predicted boundary pixels near a true one, all predicted, true near a predicted one, all true."""

_ROWS = 1024  # rows whose distances are in memory at once, besides the tolerance above and below


def boundary_counts(
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    *,
    classes: int,
    pixel: tuple[float, float],
    tolerance: float,
    block: int,
    ignore: int = 255,
) -> NDArray[np.int64]:
    """Count boundary pixels of each class, block by block.

    Args:
        truth: class indices (height, width), `ignore` where there is none.
        predicted: likewise.
        classes: how many there are.
        pixel: metres on the ground of a pixel along rows and along columns.
        tolerance: theta, metres.
        block: pixels a side of the blocks that the counts are kept for, row by row; the last ones may be smaller.
        ignore: the index that stands for no class.

    Returns:
        int64 (blocks down, blocks across, 4, classes), see NEAR_GIVEN and so on.

    Raises:
        SettingError: shapes that differ, a tolerance below 0 or pixels of no size.

    """
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise SettingError(f"wanted two class maps of one shape, got {truth.shape} and {predicted.shape}")
    check_tolerance(tolerance)
    if not all(isfinite(side) and side > 0 for side in pixel):
        raise SettingError(f"wanted pixels above 0 metres, got {pixel[0]} x {pixel[1]}")
    height, width = truth.shape
    known = (truth != ignore) & (predicted != ignore)
    true, given = (np.where(known, c, ignore) for c in (truth, predicted))
    counts = np.zeros((-(-height // block), -(-width // block), 4, classes), np.int64)
    for rows, inside in _bands(height, -(-_ROWS // block) * block, ceil(tolerance / pixel[0]) + 1):
        for k in range(classes):
            outlines = [boundary(c[rows], k, ignore=ignore) for c in (given, true)]
            near = [a & _within(b, pixel, tolerance) for a, b in (outlines, outlines[::-1])]
            for row, mask in zip((GIVEN, TRUE, NEAR_GIVEN, NEAR_TRUE), (*outlines, *near), strict=True):
                sums = _by_block(mask[inside], block)
                first = (rows.start + inside.start) // block
                counts[first : first + len(sums), :, row, k] = sums
    return counts


def check_tolerance(tolerance: float) -> None:
    """Raise SettingError unless it is 0 metres or more."""
    if not (isfinite(tolerance) and tolerance >= 0):
        raise SettingError(f"wanted a tolerance of 0 metres or more, got {tolerance}")


def boundary(index: NDArray[np.uint8], k: int, *, ignore: int = 255) -> NDArray[np.bool_]:
    """Mark the pixels of class k, bool (height, width), that touch another class (not `ignore`) with a side."""
    edge = np.zeros(index.shape, np.bool_)
    whole, less, more = slice(None), slice(None, -1), slice(1, None)
    for first, second in (((less, whole), (more, whole)), ((whole, less), (whole, more))):
        differ = (index[first] != index[second]) & (index[first] != ignore) & (index[second] != ignore)
        edge[first] |= differ
        edge[second] |= differ
    found: NDArray[np.bool_] = edge & (index == k)
    return found


def boundary_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score counts (4, classes): F1 of each class in [0, 1], 0 where only one side has a boundary, NaN where none."""
    precision, recall = (
        near / np.maximum(every, 1)
        for near, every in ((counts[NEAR_GIVEN], counts[GIVEN]), (counts[NEAR_TRUE], counts[TRUE]))
    )
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    found: NDArray[np.float64] = np.where(counts[GIVEN] + counts[TRUE] > 0, f1, np.nan)
    return found


def _bands(height: int, step: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Rows to look at, `reach` more on either side than needed, and the needed ones among them."""
    for start in range(0, height, step):
        first, last = max(0, start - reach), min(height, start + step + reach)
        yield slice(first, last), slice(start - first, min(height, start + step) - first)


def _within(mask: NDArray[np.bool_], pixel: tuple[float, float], tolerance: float) -> NDArray[np.bool_]:
    """Mark what lies within `tolerance` metres of the mask's pixels."""
    if not mask.any():
        return mask
    distance: NDArray[Any] = distance_transform_edt(~mask, sampling=pixel)
    # distances of a whole number of pixels may be off by rounding
    near: NDArray[np.bool_] = distance <= tolerance * (1 + 1e-9)
    return near


def _by_block(mask: NDArray[np.bool_], block: int) -> NDArray[np.int64]:
    """Count the marked pixels of every block: (blocks down, blocks across)."""
    down = np.add.reduceat(mask, range(0, mask.shape[0], block), axis=0, dtype=np.int64)
    return np.add.reduceat(down, range(0, mask.shape[1], block), axis=1)
