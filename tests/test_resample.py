"""Resampling against matrices written out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from segprior.resample import resample, resample_valid, source_window
from segprior.windows import Window

Matrix = npt.NDArray[np.float64]


def means(source: int, target: int) -> Matrix:
    """Row i holds the shares of source pixels under target pixel i."""
    edges = np.arange(target + 1) * source / target
    low, high = np.maximum(edges[:-1, None], np.arange(source)), np.minimum(edges[1:, None], np.arange(1, source + 1))
    shares = np.clip(high - low, 0, None)
    return shares / shares.sum(1, keepdims=True)


def triangles(source: int, target: int) -> Matrix:
    """Row i holds the weights of linear interpolation at target pixel i, widened where the axis shrinks."""
    step = source / target
    centers = (np.arange(target)[:, None] + 0.5) * step - 0.5
    weights = np.clip(1 - abs(np.arange(source) - centers) / max(1, step), 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("source", "target", "kernel"),
    [
        ((113, 90), (50, 40), means),  # 2.26
        ((60, 45), (60, 20), means),  # one axis stays
        ((1, 90), (1, 40), means),
        ((50, 40), (100, 80), triangles),  # 0.5
        ((50, 40), (161, 55), triangles),
        ((1, 9), (3, 20), triangles),
        ((40, 90), (55, 40), triangles),  # one grows, one shrinks
    ],
)
def test_resampling_is_the_matrix(
    source: tuple[int, int], target: tuple[int, int], kernel: type[means] | type[triangles]
) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((2, *source), dtype=np.float32)
    step = (source[0] / target[0], source[1] / target[1])
    rows, cols = kernel(source[0], target[0]), kernel(source[1], target[1])
    got = resample(values, offset=(0, 0), step=step, window=Window(0, 0, *target))
    np.testing.assert_allclose(got, rows @ values @ cols.T, atol=2e-5)

    valid = rng.random(source) > 0.4
    got, known = resample_valid(values, valid, offset=(0, 0), step=step, window=Window(0, 0, *target))
    weight = rows @ valid @ cols.T
    np.testing.assert_array_equal(known, weight > 1e-6)
    expected = rows @ (values * valid) @ cols.T / np.where(known, weight, 1)
    # The sums are good to 2e-7: where hardly any valid pixel has a weight, the quotient is less so.
    sure = weight > 0.01
    np.testing.assert_allclose(got[:, sure], expected[:, sure], atol=2e-4)
    assert (got[:, ~known] == 0).all()


@pytest.mark.parametrize("target", [(44, 31), (200, 161), (130, 31), (1, 1)])
def test_a_window_is_a_cut_of_the_whole(target: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    source = (100, 70)
    values = rng.integers(0, 256, (3, *source), dtype=np.uint8)
    step = (source[0] / target[0], source[1] / target[1])
    whole = resample(values, offset=(0, 0), step=step, window=Window(0, 0, *target))
    for _ in range(20):
        row, col = int(rng.integers(target[0])), int(rng.integers(target[1]))
        window = Window(row, col, int(rng.integers(1, target[0] - row + 1)), int(rng.integers(1, target[1] - col + 1)))
        needed = source_window(window, step=step, height=source[0], width=source[1])
        part = values[:, needed.row_slice, needed.col_slice]
        got = resample(part, offset=(needed.row, needed.col), step=step, window=window)
        np.testing.assert_allclose(got, whole[:, window.row_slice, window.col_slice], atol=1e-4)
