import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from segprior.errors import LegendError, SettingError
from segprior.metrics import Calibration, calibration, confusion, scores


def random_labels(
    seed: int, *, classes: int = 5, dtype: type = np.uint8
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Truth, a tenth of it not labelled, and a prediction that is right more often than not."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, p=rng.dirichlet(np.ones(classes)), size=(70, 50))
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth.astype(dtype), predicted.astype(dtype)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_agrees_with_scikit_learn(seed: int, dtype: type) -> None:
    truth, predicted = random_labels(seed, dtype=dtype)
    true, given = truth[truth != 255], predicted[truth != 255]
    labels = list(range(5))
    matrix = confusion(truth, predicted, classes=5)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(true, given, labels=labels))
    found = scores(matrix)
    options = {"labels": labels, "average": None, "zero_division": 0.0}
    np.testing.assert_allclose(found.iou, reference.jaccard_score(true, given, **options))
    np.testing.assert_allclose(found.f1, reference.f1_score(true, given, **options))
    np.testing.assert_allclose(found.precision, reference.precision_score(true, given, **options))
    np.testing.assert_allclose(found.recall, reference.recall_score(true, given, **options))
    np.testing.assert_allclose(found.true_share, [np.mean(true == k) for k in labels])
    np.testing.assert_allclose(found.mapped_share, [np.mean(given == k) for k in labels])
    macro = {"labels": labels, "average": "macro", "zero_division": 0.0}
    assert found.miou == pytest.approx(reference.jaccard_score(true, given, **macro))
    assert found.mean_f1 == pytest.approx(reference.f1_score(true, given, **macro))
    assert found.accuracy == pytest.approx(reference.accuracy_score(true, given))


def test_absent_classes_by_hand() -> None:
    truth = np.array([0, 0, 1, 255])
    predicted = np.array([0, 2, 0, 1])
    found = scores(confusion(truth, predicted, classes=4))
    # class 1 is never predicted, class 2 never true, class 3 neither
    np.testing.assert_allclose(found.iou, [1 / 3, 0, 0, np.nan])
    np.testing.assert_allclose(found.f1, [1 / 2, 0, 0, np.nan])
    np.testing.assert_allclose(found.precision, [1 / 2, 0, 0, np.nan])
    np.testing.assert_allclose(found.recall, [1 / 2, 0, 0, np.nan])
    np.testing.assert_allclose(found.true_share, [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(found.mapped_share, [2 / 3, 0, 1 / 3, 0])
    assert found.miou == pytest.approx(1 / 9)
    assert found.mean_f1 == pytest.approx(1 / 6)
    assert found.accuracy == pytest.approx(1 / 3)


def test_nothing_counted_gives_nan_everywhere() -> None:
    found = scores(confusion(np.full(4, 255), np.zeros(4, dtype=int), classes=2))
    assert np.isnan([*found.iou, *found.f1, *found.precision, *found.recall]).all()
    assert np.isnan([*found.true_share, *found.mapped_share]).all()
    assert np.isnan([found.miou, found.mean_f1, found.accuracy]).all()


def test_pixels_without_a_prediction_are_not_counted() -> None:
    matrix = confusion(np.array([0, 1, 1]), np.array([0, 255, 1]), classes=2)
    np.testing.assert_array_equal(matrix, np.eye(2))


def test_another_number_to_ignore() -> None:
    assert confusion(np.array([7, 0]), np.array([1, 0]), classes=2, ignore=7).tolist() == [[1, 0], [0, 0]]


def test_confusions_of_parts_add_up() -> None:
    truth, predicted = random_labels(9)
    parts = sum(confusion(t, p, classes=5) for t, p in zip(truth, predicted, strict=True))
    np.testing.assert_array_equal(parts, confusion(truth, predicted, classes=5))


@pytest.mark.parametrize(("truth", "predicted"), [([2], [0]), ([0], [2]), ([-1], [0]), ([0], [-1])])
def test_indices_of_no_class_are_refused(truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(LegendError, match="0 to 1"):
        confusion(np.array(truth), np.array(predicted), classes=2)


def test_shapes_must_agree() -> None:
    with pytest.raises(SettingError):
        confusion(np.zeros((2, 3), int), np.zeros((3, 2), int), classes=2)
    with pytest.raises(SettingError):
        scores(np.zeros((2, 3), dtype=np.int64))


def random_probabilities(seed: int, *, classes: int = 4) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    probabilities = np.moveaxis(rng.dirichlet(np.full(classes, 0.4), size=(30, 40)), -1, 0).astype(np.float32)
    truth = rng.integers(0, classes, size=(30, 40)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    return probabilities, truth


def ece_of_the_paper(probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8], bins: int) -> float:
    """Guo et al., equation 3, bin by bin over the list of pixels."""
    columns = probabilities.reshape(len(probabilities), -1).T
    pixels = [(p.max(), p.argmax() == t) for p, t in zip(columns, truth.ravel(), strict=True) if t != 255]
    error = 0.0
    for b in range(1, bins + 1):
        inside = [(sure, right) for sure, right in pixels if (b - 1) / bins < sure <= b / bins]
        if inside:
            sure, right = np.mean(inside, axis=0)
            error += len(inside) / len(pixels) * abs(right - sure)
    return error


@pytest.mark.parametrize(("seed", "bins"), [(0, 15), (1, 10), (2, 1), (3, 100)])
def test_ece_is_that_of_the_paper(seed: int, bins: int) -> None:
    probabilities, truth = random_probabilities(seed)
    found = calibration(probabilities, truth, bins=bins)
    assert found.ece == pytest.approx(ece_of_the_paper(probabilities, truth, bins), rel=1e-5)
    assert found.count.sum() == (truth != 255).sum()
    assert found.correct.sum() == (probabilities.argmax(axis=0) == truth).sum()


def test_bins_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    sure = rng.uniform(0.5, 1, 5000)
    right = rng.random(5000) < sure**2
    found = calibration(np.stack([sure, 1 - sure]), np.where(right, 0, 1), bins=10)
    accuracy, confidence = calibration_curve(right, sure, n_bins=10)
    filled = found.count > 0
    np.testing.assert_allclose(found.correct[filled] / found.count[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled] / found.count[filled], confidence)


def test_ece_by_hand() -> None:
    # two bins: two pixels at 0.5 (one right) and two at 0.9 (both right)
    probabilities = np.array([[0.5, 0.5, 0.9, 0.1], [0.5, 0.5, 0.1, 0.9]])
    found = calibration(probabilities, np.array([0, 1, 0, 1]), bins=2)
    assert found.count.tolist() == [2, 2]
    assert found.ece == pytest.approx((0.0 * 2 + 0.1 * 2) / 4)


def test_calibrations_of_parts_add_up() -> None:
    probabilities, truth = random_probabilities(5)
    left, right = calibration(probabilities[:, :7], truth[:7]), calibration(probabilities[:, 7:], truth[7:])
    whole = calibration(probabilities, truth)
    for name in ("count", "confidence", "correct"):
        np.testing.assert_allclose(getattr(left + right, name), getattr(whole, name))
    assert (left + right).ece == pytest.approx(whole.ece)


def test_no_pixels_no_calibration() -> None:
    assert np.isnan(calibration(np.ones((2, 3)), np.full(3, 255)).ece)


def test_calibration_refuses() -> None:
    half = np.full((2, 3), 0.5)
    truth = np.zeros(3, dtype=int)
    with pytest.raises(SettingError, match="shape"):
        calibration(half, np.zeros(4, dtype=int))
    with pytest.raises(SettingError, match="bin"):
        calibration(half, truth, bins=0)
    with pytest.raises(SettingError, match="0, 1"):
        calibration(half * 3, truth)
    with pytest.raises(SettingError, match="0, 1"):
        calibration(half * np.nan, truth)
    with pytest.raises(LegendError):
        calibration(half, truth + 2)
    with pytest.raises(SettingError, match="bins"):
        calibration(half, truth, bins=3) + calibration(half, truth, bins=4)
    with pytest.raises(SettingError, match="bins"):
        Calibration(np.zeros(2), np.zeros(2), np.zeros(3))
