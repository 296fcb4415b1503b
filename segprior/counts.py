"""What the pixels of rasters add to the scores, kept block by block.

Every score here is a function of sums over pixels: a confusion matrix, a reliability diagram, squared errors, boundary
pixels. `Counts` holds these sums for blocks of BLOCK x BLOCK pixels of the labels' grid, so that

    counts.total()          scores a scene, and `joined` scenes add up to a split
    bootstrap(...)          asks how far a score, or the difference of two, would move on other blocks

The Brier score is the mean over pixels of sum_k (p_k - [k is true])^2, from 0 to 2 (Brier 1950).

The paired block bootstrap draws as many blocks as there are, with replacement, many times over (Kuensch 1989; the
blocks are larger than what neighbouring pixels have in common, so they count as independent). Two predictions of the
same blocks are compared on the same draws, so what makes a block hard for both cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segprior.boundary import boundary_counts, boundary_f1
from segprior.errors import SettingError
from segprior.metrics import Calibration, Scores, calibration, confusion, scores

BLOCK = 128
"""Pixels a side of a block."""
BINS = 15
"""Bins of the reliability diagram."""
IGNORE = 255
"""The index of pixels that do not count."""

Score = Callable[["Counts"], float]
"""A score of the total of some counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Sums over the pixels of n blocks.

    confusion: int64 (n, classes, classes), rows the truth. reliability: float64 (n, 3, BINS), pixels, sum of their top
    probabilities, right ones. squared: float64 (n,), the pixels' squared errors. boundary: int64 (n, 4, classes), see
    `segprior.boundary`.
    """

    confusion: NDArray[np.int64]
    reliability: NDArray[np.float64]
    squared: NDArray[np.float64]
    boundary: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.confusion)

    def weighted(self, weights: NDArray[np.int64]) -> "Counts":
        """Sum the blocks (draws, n) times each: Counts of as many rows as there are draws."""
        return self._each(lambda array: np.tensordot(weights, array, axes=1))

    def total(self) -> "Counts":
        """Sum all blocks: Counts of one row."""
        return self.weighted(np.ones((1, len(self)), np.int64))

    def row(self, number: int) -> "Counts":
        """Take one row, as Counts of one row."""
        return self._each(lambda array: array[number : number + 1])

    def filled(self) -> NDArray[np.bool_]:
        """Tell which blocks hold a pixel that counts."""
        pixels: NDArray[np.int64] = self.confusion.sum(axis=(1, 2))
        return pixels > 0

    def kept(self, chosen: NDArray[np.bool_]) -> "Counts":
        """Leave out all blocks but the chosen ones (n,)."""
        return self._each(lambda array: array[chosen])

    @property
    def scores(self) -> Scores:
        """IoU, F1, accuracy of all blocks together."""
        return scores(self.confusion.sum(axis=0))

    @property
    def calibration(self) -> Calibration:
        """The reliability diagram of all blocks together."""
        return Calibration(*self.reliability.sum(axis=0))

    @property
    def brier(self) -> float:
        """Brier score of all blocks together, 0 to 2; NaN without any pixel."""
        pixels = self.confusion.sum()
        return float(self.squared.sum() / pixels) if pixels else float("nan")

    @property
    def boundary_f1(self) -> tuple[float, ...]:
        """Boundary F1 of each class, NaN for a class without a boundary."""
        return tuple(boundary_f1(self.boundary.sum(axis=0)).tolist())

    @property
    def mean_boundary_f1(self) -> float:
        """Mean boundary F1 of the classes that have a boundary; NaN if none has."""
        defined = [v for v in self.boundary_f1 if not np.isnan(v)]
        return float(np.mean(defined)) if defined else float("nan")

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Counts":
        return Counts(change(self.confusion), change(self.reliability), change(self.squared), change(self.boundary))


def joined(parts: Sequence[Counts]) -> Counts:
    """Put the blocks of several rasters one after the other; SettingError if their classes differ in number."""
    if len({part.confusion.shape[1:] for part in parts}) != 1:
        raise SettingError(f"wanted counts of the same classes, got {[part.confusion.shape[1] for part in parts]}")
    return Counts(
        np.concatenate([part.confusion for part in parts]),
        np.concatenate([part.reliability for part in parts]),
        np.concatenate([part.squared for part in parts]),
        np.concatenate([part.boundary for part in parts]),
    )


class Counter:
    """Counts a raster of height x width pixels strip by strip, in any order; two bytes a pixel are held."""

    def __init__(self, height: int, width: int, *, classes: int) -> None:
        self.classes = classes
        self.truth = np.full((height, width), IGNORE, np.uint8)
        self.predicted = np.full((height, width), IGNORE, np.uint8)
        self._across = -(-width // BLOCK)
        blocks = -(-height // BLOCK) * self._across
        self._confusion = np.zeros((blocks, classes, classes), np.int64)
        self._reliability = np.zeros((blocks, 3, BINS))
        self._squared = np.zeros(blocks)

    def add(self, row: int, truth: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        """Count rows from `row` on: indices (rows, width), IGNORE where not to count, and (classes, rows, width).

        Raises SettingError or LegendError as `segprior.metrics` does.
        """
        predicted = np.where(truth == IGNORE, IGNORE, probabilities.argmax(axis=0)).astype(np.uint8)
        rows = slice(row, row + len(truth))
        self.truth[rows], self.predicted[rows] = truth, predicted
        for top in range(row - row % BLOCK, row + len(truth), BLOCK):
            down = slice(max(top - row, 0), top - row + BLOCK)
            for number in range(self._across):
                at = (down, slice(number * BLOCK, (number + 1) * BLOCK))
                if (truth[at] != IGNORE).any():
                    block = top // BLOCK * self._across + number
                    self._add_block(block, truth[at], predicted[at], probabilities[:, at[0], at[1]])

    def _add_block(
        self,
        block: int,
        truth: NDArray[np.uint8],
        predicted: NDArray[np.uint8],
        probabilities: NDArray[np.float32],
    ) -> None:
        self._confusion[block] += confusion(truth, predicted, classes=self.classes)
        found = calibration(probabilities, truth, bins=BINS)
        self._reliability[block] += (found.count, found.confidence, found.correct)
        counted = truth != IGNORE
        true, given = truth[counted], probabilities[:, counted].astype(np.float64)
        # sum_k (p_k - [k = true])^2 = sum_k p_k^2 - 2 p_true + 1
        self._squared[block] += float((given**2).sum() - 2 * given[true, np.arange(len(true))].sum() + len(true))

    def finish(self, *, pixel: tuple[float, float], tolerance: float) -> Counts:
        """Count the boundaries too: `pixel` its metres on the ground (rows, columns), `tolerance` in metres."""
        outlines = boundary_counts(
            self.truth, self.predicted, classes=self.classes, pixel=pixel, tolerance=tolerance, block=BLOCK
        )
        return Counts(
            self._confusion, self._reliability, self._squared, outlines.reshape(len(self._squared), 4, self.classes)
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the bounds between which it lies with the probability asked for."""

    value: float
    low: float
    high: float


def bootstrap(
    counts: Counts,
    score: Score,
    *,
    against: Counts | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Find the interval of a score, or of the difference of a score to that of other predictions of the same blocks.

    Args:
        counts: the blocks; empty ones are left out.
        score: of a total, such as `lambda c: c.scores.miou`.
        against: the same blocks, predicted otherwise; what is found is the score less that of these.
        draws: how often to draw.
        level: the probability that the interval holds, in (0, 1).
        seed: of the draws.

    Raises:
        SettingError: no pixel counts, or other blocks than those it is compared with.

    """
    others = None if against is None else [against]
    return bootstrap_mean([counts], score, against=others, draws=draws, level=level, seed=seed)


def bootstrap_mean(
    trainings: Sequence[Counts],
    score: Score,
    *,
    against: Sequence[Counts] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Find the interval of a score's mean over several predictions of the same blocks, as those of several trainings.

    All are drawn alike, so it tells how the mean would move on other blocks, not with other trainings. against: as many
    other predictions, one for each; what is found is the mean of the differences. Else as `bootstrap`.
    """
    both = (trainings,) if against is None else (trainings, against)
    every = [counts for side in both for counts in side]
    if len({len(side) for side in both}) != 1 or not every:
        raise SettingError(f"wanted as many predictions on both sides, got {' and '.join(str(len(s)) for s in both)}")
    filled = every[0].filled()
    if len({len(c) for c in every}) != 1 or any((c.filled() != filled).any() for c in every):
        raise SettingError("wanted two counts of the same blocks to compare, got others; evaluate the same scenes")
    if not filled.any() or not 0 < level < 1 or draws < 1:
        raise SettingError(
            f"wanted blocks with pixels, draws and a level in (0, 1), got {filled.sum()}, {draws}, {level}"
        )
    number = int(filled.sum())
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=draws)

    def drawn(counts: Counts) -> NDArray[np.float64]:
        rows = counts.kept(filled).weighted(weights)
        return np.array([score(rows.row(i)) for i in range(draws)])

    def mean(found: Callable[[Counts], Any]) -> Any:
        own, *other = (np.mean([found(counts) for counts in side], axis=0) for side in both)
        return own - other[0] if other else own

    # a draw without a rare class has no score for it
    low, high = np.nanquantile(mean(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean(lambda counts: score(counts.kept(filled)))), float(low), float(high))
