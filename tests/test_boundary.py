"""Boundary F1 against a count pixel by pixel, and against what geometry says."""

import numpy as np
import pytest
from numpy.typing import NDArray

import segprior.boundary as module
from segprior.boundary import GIVEN, NEAR_GIVEN, NEAR_TRUE, TRUE, boundary, boundary_counts, boundary_f1
from segprior.errors import SettingError

PIXEL = (0.5, 0.8)


def blobs(seed: int, shape: tuple[int, int] = (41, 53)) -> NDArray[np.uint8]:
    """Three classes in patches, some of it unknown."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 2, 255], size=(shape[0] // 6 + 1, shape[1] // 6 + 1), p=[0.4, 0.3, 0.2, 0.1])
    return np.kron(coarse, np.ones((6, 6)))[: shape[0], : shape[1]].astype(np.uint8)


def outline(index: NDArray[np.uint8], k: int) -> list[tuple[int, int]]:
    """Pixels of class k beside another class, one after the other."""
    found = []
    for row, col in zip(*np.nonzero(index == k), strict=True):
        around = [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
        inside = [index[r, c] for r, c in around if 0 <= r < index.shape[0] and 0 <= c < index.shape[1]]
        if any(c not in (k, 255) for c in inside):
            found.append((int(row), int(col)))
    return found


def near(pixels: list[tuple[int, int]], others: list[tuple[int, int]], tolerance: float) -> list[tuple[int, int]]:
    def close(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return np.hypot((a[0] - b[0]) * PIXEL[0], (a[1] - b[1]) * PIXEL[1]) <= tolerance + 1e-12

    return [a for a in pixels if any(close(a, b) for b in others)]


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("rows", [8, 1000])
def test_counts_are_those_of_a_count_by_hand(tolerance: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    truth, predicted = blobs(0), blobs(1)
    predicted = np.where(np.random.default_rng(2).random(truth.shape) < 0.8, np.roll(truth, 1, axis=1), predicted)
    found = boundary_counts(truth, predicted, classes=3, pixel=PIXEL, tolerance=tolerance, block=16)
    assert found.shape == (3, 4, 4, 3)
    unknown = (truth == 255) | (predicted == 255)
    truth, predicted = (np.where(unknown, 255, c).astype(np.uint8) for c in (truth, predicted))
    for k in range(3):
        true, given = outline(truth, k), outline(predicted, k)
        lists = {
            GIVEN: given,
            TRUE: true,
            NEAR_GIVEN: near(given, true, tolerance),
            NEAR_TRUE: near(true, given, tolerance),
        }
        assert len(true) > 20
        for row, pixels in lists.items():
            wanted = np.zeros((3, 4), int)
            for r, c in pixels:
                wanted[r // 16, c // 16] += 1
            np.testing.assert_array_equal(found[:, :, row, k], wanted)


def test_a_boundary_by_hand() -> None:
    index = np.array([[0, 0, 1], [0, 255, 1], [0, 0, 0]], np.uint8)
    assert boundary(index, 0).tolist() == [[False, True, False], [False, False, False], [False, False, True]]
    assert boundary(index, 1).tolist() == [[False, False, True], [False, False, True], [False, False, False]]


def test_a_shift_is_forgiven_up_to_the_tolerance() -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[20:40, 20:40] = 1
    predicted = np.roll(truth, 3, axis=1)

    def f1(tolerance: float) -> float:
        counts = boundary_counts(truth, predicted, classes=2, pixel=(0.3, 0.3), tolerance=tolerance, block=128)
        return float(boundary_f1(counts.sum(axis=(0, 1)))[1])

    assert f1(0.9) == 1.0
    # at 0.6 m both long sides are missed but for what the top and bottom edges reach of them
    assert 0.4 < f1(0.6) < 0.65
    assert f1(0.0) < f1(0.3) < f1(0.6)


def test_f1_by_hand() -> None:
    counts = np.zeros((4, 4), np.int64)
    counts[:, 0] = (3, 4, 1, 2)  # precision 3/4, recall 1/2
    counts[:, 1] = (0, 5, 0, 0)  # drawn where there is none
    counts[:, 2] = (0, 0, 0, 5)  # missed
    np.testing.assert_allclose(boundary_f1(counts), [0.6, 0.0, 0.0, np.nan])


@pytest.mark.parametrize(
    ("wish", "match"),
    [
        ({"tolerance": -1.0}, "tolerance of 0 metres"),
        ({"tolerance": float("nan")}, "tolerance of 0 metres"),
        ({"pixel": (0.0, 1.0)}, "pixels above 0"),
        ({"predicted": np.zeros((3, 4), np.uint8)}, "one shape"),
    ],
)
def test_refused(wish: dict[str, object], match: str) -> None:
    settings = {"predicted": np.zeros((4, 4), np.uint8), "classes": 2, "pixel": PIXEL, "tolerance": 1.0, "block": 4}
    with pytest.raises(SettingError, match=match):
        boundary_counts(np.zeros((4, 4), np.uint8), **(settings | wish))  # type: ignore[arg-type]  # by name
