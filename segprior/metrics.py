"""Scores of predicted classes, and calibration of predicted probabilities.

From the confusion matrix C (rows: true class, columns: predicted class), with tp_k = C_kk, fn_k = sum_j C_kj - tp_k and
fp_k = sum_j C_jk - tp_k:

    IoU_k = tp / (tp + fp + fn)           precision_k = tp / (tp + fp)
     F1_k = 2 tp / (2 tp + fp + fn)         recall_k = tp / (tp + fn)

and the shares of the pixels that are class k, (tp + fn) / n, and are mapped as it, (tp + fp) / n: what a count of areas
in the map is off by.

The expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3) compares, in B bins of equal width, how sure
the prediction was with how often it was right:

    ECE = sum_b (n_b / n) | accuracy_b - confidence_b |,     confidence = max_k p_k.

Confusion matrices and calibrations of parts add up to those of the whole.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segprior.errors import LegendError, SettingError


def confusion(
    truth: npt.NDArray[Any], predicted: npt.NDArray[Any], *, classes: int, ignore: int = 255
) -> npt.NDArray[np.int64]:
    """Count how many pixels of each true class (row) were given each class (column): int64 (classes, classes).

    `truth` and `predicted` are class indices 0 ... classes-1 in integer arrays of one shape. Pixels where either is
    `ignore` (not labelled, or nodata in the image) are not counted. Raises SettingError if the shapes differ and
    LegendError on an index that is no class.
    """
    _expect_shape(predicted.shape, truth.shape, noun="predicted classes")
    counted = (truth != ignore) & (predicted != ignore)
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for noun, indices in (("true", rows), ("predicted", columns)):
        _expect_classes(indices, classes=classes, noun=noun)
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in [0, 1], one per class in the order of the legend, and their means over the classes that occur.

    A class that is neither in the truth nor in the prediction has NaN scores and is left out of `miou` and `mean_f1`; a
    ratio 0 / 0 of any other class (precision if never predicted, recall if never true) is 0. `true_share` and
    `mapped_share` are of all pixels and sum to 1, 0 for a class that does not occur. `accuracy` is the share of the
    pixels that are right. Without any pixel, all is NaN.
    """

    iou: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    true_share: tuple[float, ...]
    mapped_share: tuple[float, ...]
    miou: float
    mean_f1: float
    accuracy: float


def scores(confusion: npt.NDArray[np.int64]) -> Scores:
    """Score a confusion matrix (K, K), rows = truth; SettingError if it is not square."""
    if confusion.ndim != 2 or len(set(confusion.shape)) != 1:
        raise SettingError(f"a confusion matrix is square, {confusion.shape} came")
    right, true, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    occurs, pixels = true + given > 0, np.full_like(true, true.sum())
    iou = _ratio(right, true + given - right, occurs=occurs)
    f1 = _ratio(2 * right, true + given, occurs=occurs)
    return Scores(
        iou=tuple(iou.tolist()),
        f1=tuple(f1.tolist()),
        precision=tuple(_ratio(right, given, occurs=occurs).tolist()),
        recall=tuple(_ratio(right, true, occurs=occurs).tolist()),
        true_share=tuple(_ratio(true, pixels, occurs=pixels > 0).tolist()),
        mapped_share=tuple(_ratio(given, pixels, occurs=pixels > 0).tolist()),
        miou=float(iou[occurs].mean()) if occurs.any() else float("nan"),
        mean_f1=float(f1[occurs].mean()) if occurs.any() else float("nan"),
        accuracy=float(right.sum() / confusion.sum()) if occurs.any() else float("nan"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Counts for a reliability diagram: float64 arrays over B bins of the top class's probability, from 0 to 1.

    `count` is the number of pixels in a bin, `confidence` the sum of their top probabilities, `correct` how many of
    them are right. `a + b` is the calibration of both sets of pixels. Raises SettingError on differing lengths.
    """

    count: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for array in (self.confidence, self.correct):
            _expect_shape(array.shape, self.count.shape, noun="bins")

    def __add__(self, other: "Calibration") -> "Calibration":
        _expect_shape(other.count.shape, self.count.shape, noun="bins")
        return Calibration(self.count + other.count, self.confidence + other.confidence, self.correct + other.correct)

    @property
    def ece(self) -> float:
        """Expected calibration error of the top class, in [0, 1]; NaN without any pixel."""
        pixels = self.count.sum()
        return float(np.abs(self.correct - self.confidence).sum() / pixels) if pixels else float("nan")


def calibration(
    probabilities: npt.NDArray[np.floating[Any]], truth: npt.NDArray[Any], *, bins: int = 15, ignore: int = 255
) -> Calibration:
    """Count the pixels of `truth` by how sure and how right the prediction is, in `bins` bins ((b-1)/B, b/B].

    `probabilities` is (K, ...) in [0, 1] and `truth` (...) holds class indices 0 ... K-1, or `ignore` where a pixel is
    not to be counted (no label, or no prediction). Raises SettingError on other shapes or ranges and LegendError on an
    index that is no class.
    """
    if bins < 1:
        raise SettingError(f"a calibration needs one bin or more, not {bins}")
    _expect_shape(probabilities.shape[1:], truth.shape, noun="probabilities of each class")
    counted = truth != ignore
    chosen, true = probabilities[:, counted], truth[counted]
    _expect_classes(true, classes=len(chosen), noun="true")
    top = chosen.max(axis=0).astype(np.float64)
    if not ((top >= 0) & (top <= 1 + 1e-4)).all():  # rounding of half floats may pass 1
        raise SettingError(f"probabilities lie in [0, 1], top ones from {top.min()} to {top.max()} came")
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    right = chosen.argmax(axis=0) == true
    return Calibration(
        count=np.bincount(place, minlength=bins).astype(np.float64),
        confidence=np.bincount(place, weights=top, minlength=bins).astype(np.float64),
        correct=np.bincount(place, weights=right, minlength=bins).astype(np.float64),
    )


def _ratio(
    part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64], *, occurs: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Divide; 0 for 0 / 0, NaN where nothing occurs."""
    return np.where(occurs, part / np.maximum(whole, 1), np.nan)


def _expect_shape(came: tuple[int, ...], wanted: tuple[int, ...], *, noun: str) -> None:
    if came != wanted:
        raise SettingError(f"{noun} must have the shape {wanted}, {came} came")


def _expect_classes(indices: npt.NDArray[Any], *, classes: int, noun: str) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < classes:
        raise LegendError(
            f"{noun} classes must be indices from 0 to {classes - 1}; {indices.min()} to {indices.max()} came"
        )
