"""Counts by block add up to those of the whole, and the bootstrap agrees with what statistics says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from segprior.boundary import boundary_counts, boundary_f1
from segprior.counts import BLOCK, Counter, Counts, bootstrap, bootstrap_mean, joined
from segprior.errors import LegendError, SettingError
from segprior.metrics import calibration, confusion

HEIGHT, WIDTH, CLASSES = 300, 200, 3


def scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, CLASSES, (30, 20)), np.ones((10, 10))).astype(np.uint8)
    logits = rng.normal(size=(CLASSES, HEIGHT, WIDTH)) + 1.5 * (truth == np.arange(CLASSES)[:, None, None])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    truth[rng.random(truth.shape) < 0.1] = 255
    truth[:BLOCK, BLOCK:] = 255
    return truth, probabilities.astype(np.float32)


def counted(
    truth: NDArray[np.uint8], probabilities: NDArray[np.float32], *, heights: tuple[int, ...] = (HEIGHT,)
) -> Counts:
    counter = Counter(*truth.shape, classes=CLASSES)
    row = 0
    for height in heights:
        counter.add(row, truth[row : row + height], probabilities[:, row : row + height])
        row += height
    assert row == HEIGHT
    return counter.finish(pixel=(1.0, 1.0), tolerance=1.0)


@pytest.mark.parametrize("heights", [(300,), (128, 128, 44), (100, 7, 150, 43), (1,) * 300])
def test_blocks_add_up_to_the_whole(heights: tuple[int, ...]) -> None:
    truth, probabilities = scene(0)
    found = counted(truth, probabilities, heights=heights)
    assert len(found) == 6
    assert found.filled().tolist() == [True, False, True, True, True, True]
    total = found.total()
    assert len(total) == 1
    predicted = probabilities.argmax(axis=0).astype(np.uint8)
    np.testing.assert_array_equal(total.confusion[0], confusion(truth, predicted, classes=CLASSES))
    whole = calibration(probabilities, truth)
    for name in ("count", "confidence", "correct"):
        np.testing.assert_allclose(getattr(total.calibration, name), getattr(whole, name))
    outlines = boundary_counts(truth, predicted, classes=CLASSES, pixel=(1.0, 1.0), tolerance=1.0, block=1000).sum(
        axis=(0, 1)
    )
    np.testing.assert_array_equal(total.boundary[0], outlines)
    np.testing.assert_allclose(found.boundary_f1, boundary_f1(outlines))
    assert found.mean_boundary_f1 == pytest.approx(boundary_f1(outlines).mean())
    # one block, cut out by hand
    at = (slice(BLOCK, 2 * BLOCK), slice(BLOCK, WIDTH))
    np.testing.assert_array_equal(found.confusion[3], confusion(truth[at], predicted[at], classes=CLASSES))


def test_brier_by_its_definition() -> None:
    truth, probabilities = scene(1)
    known = truth != 255
    target = (truth[known] == np.arange(CLASSES)[:, None]).astype(float)
    wanted = ((probabilities[:, known] - target) ** 2).sum(axis=0).mean()
    assert counted(truth, probabilities).brier == pytest.approx(wanted)


def test_nothing_to_count() -> None:
    empty = counted(np.full((HEIGHT, WIDTH), 255, np.uint8), np.full((CLASSES, HEIGHT, WIDTH), 1 / 3, np.float32))
    assert not empty.filled().any()
    assert np.isnan([empty.brier, empty.mean_boundary_f1, empty.scores.miou, empty.calibration.ece]).all()
    with pytest.raises(SettingError, match="blocks with pixels"):
        bootstrap(empty, lambda c: c.scores.miou)


def test_scenes_are_joined() -> None:
    parts = [counted(*scene(n)) for n in (2, 3)]
    both = joined(parts)
    assert len(both) == 12
    np.testing.assert_array_equal(both.total().confusion[0], sum(p.confusion.sum(axis=0) for p in parts))
    narrow = Counter(10, 10, classes=2).finish(pixel=(1, 1), tolerance=1)
    with pytest.raises(SettingError, match="same classes"):
        joined([parts[0], narrow])


def test_a_class_that_is_none_is_refused() -> None:
    counter = Counter(4, 4, classes=2)
    with pytest.raises(LegendError):
        counter.add(0, np.full((4, 4), 2, np.uint8), np.full((2, 4, 4), 0.5, np.float32))


def independent_blocks(rng: np.random.Generator, blocks: int, right: float) -> Counts:
    """Two classes; in every block 100 pixels of which a share around `right` is right."""
    rights = rng.binomial(100, np.clip(rng.normal(right, 0.1, blocks), 0, 1))
    matrix = np.zeros((blocks, 2, 2), np.int64)
    matrix[:, 0, 0], matrix[:, 0, 1] = rights, 100 - rights
    return Counts(matrix, np.zeros((blocks, 3, 15)), np.zeros(blocks), np.zeros((blocks, 4, 2), np.int64))


def accuracy(counts: Counts) -> float:
    return counts.scores.accuracy


def test_the_interval_is_that_of_the_mean() -> None:
    """The accuracy is a mean over blocks of one size, whose interval the central limit theorem gives."""
    counts = independent_blocks(np.random.default_rng(0), 150, 0.8)
    shares = counts.confusion[:, 0, 0] / 100
    half = 1.96 * shares.std(ddof=1) / 150**0.5
    found = bootstrap(counts, accuracy)
    assert found.value == pytest.approx(shares.mean())
    assert found.low == pytest.approx(shares.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(shares.mean() + half, abs=0.1 * half)
    wide, narrow = (bootstrap(counts, accuracy, level=level) for level in (0.99, 0.5))
    assert wide.low < found.low < narrow.low < narrow.high < found.high < wide.high
    assert bootstrap(counts, accuracy, seed=0) == found != bootstrap(counts, accuracy, seed=1)


def test_pairs_see_differences_that_single_intervals_hide() -> None:
    one = independent_blocks(np.random.default_rng(1), 40, 0.7)
    better = one.confusion.copy()
    better[:, 0, 0] += 1
    better[:, 0, 1] -= 1
    other = Counts(better, one.reliability, one.squared, one.boundary)
    found = bootstrap(other, accuracy, against=one)
    assert found.value == pytest.approx(0.01)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    assert bootstrap(one, accuracy).high > bootstrap(other, accuracy).low
    same = bootstrap(one, accuracy, against=one)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_empty_blocks_do_not_widen_the_interval() -> None:
    counts = independent_blocks(np.random.default_rng(2), 30, 0.8)
    empty = Counts(*(np.zeros_like(a) for a in (counts.confusion, counts.reliability, counts.squared, counts.boundary)))
    assert bootstrap(joined([counts, empty]), accuracy) == bootstrap(counts, accuracy)


def test_other_blocks_are_not_compared() -> None:
    counts = independent_blocks(np.random.default_rng(3), 30, 0.8)
    for other in (counts.kept(np.arange(30) > 0), counts.weighted(np.diag(np.arange(30) > 0).astype(np.int64))):
        with pytest.raises(SettingError, match="same blocks"):
            bootstrap(counts, accuracy, against=other)


def test_the_mean_of_trainings_is_drawn_alike() -> None:
    """As wide as one where all are the same; narrower where their errors are their own; opposite ones cancel."""
    rng = np.random.default_rng(3)
    one, other = (independent_blocks(rng, 60, 0.8) for _ in range(2))
    alone = bootstrap(one, accuracy)
    assert bootstrap_mean([one, one], accuracy) == alone
    both = bootstrap_mean([one, other], accuracy)
    assert both.value == pytest.approx((accuracy(one) + accuracy(other)) / 2)
    assert both.high - both.low < alone.high - alone.low
    swapped = bootstrap_mean([one, other], accuracy, against=[other, one])
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_trainings_come_in_pairs() -> None:
    one = independent_blocks(np.random.default_rng(4), 5, 0.8)
    with pytest.raises(SettingError, match="as many predictions on both sides, got 2 and 1"):
        bootstrap_mean([one, one], accuracy, against=[one])
    with pytest.raises(SettingError, match="as many predictions on both sides, got 0"):
        bootstrap_mean([], accuracy)
