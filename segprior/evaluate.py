"""Benchmark: segment the scenes of a split, compare with their labels on the labels' own grid, count.

Every scene gives counts, block by block (`segprior.counts`); pooled scores come from their sums, not from means of
scores. Pixels without a label and pixels without imagery do not count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segprior.boundary import check_tolerance
from segprior.checkpoint import read_card
from segprior.counts import IGNORE, Counter, Counts, Interval, Score, bootstrap, joined
from segprior.data import Dataset, Region, Split
from segprior.errors import DatasetError, SettingError
from segprior.geotiff import crop
from segprior.inference import open_for, strips
from segprior.legend import Legend
from segprior.metrics import Calibration, Scores
from segprior.options import Options
from segprior.raster import check_grids, grid_of, open_raster, read_window
from segprior.scene import Scene
from segprior.windows import Window

AnyPath = str | PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """A scene to look at, thinned out to (height, width): every n-th row and column of its grid.

    image: uint8 (bands, height, width). truth, predicted: class indices, 255 where there is none. confidence: float32,
    the probability of the class predicted, NaN where none is.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SceneResult:
    """Counts of one scene, and its maps where they were asked for; classes are in the order of the prior's legend."""

    name: str
    counts: Counts
    maps: Maps | None = None

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The confusion matrix (classes, classes), rows the truth."""
        matrix: NDArray[np.int64] = self.counts.confusion.sum(axis=0)
        return matrix

    @property
    def calibration(self) -> Calibration:
        """The reliability diagram."""
        return self.counts.calibration

    @property
    def scores(self) -> Scores:
        """IoU, F1 and accuracy."""
        return self.counts.scores


def pooled(results: Sequence[SceneResult]) -> SceneResult:
    """The counts of all scenes together."""
    return SceneResult("pooled", joined([result.counts for result in results]))


def evaluate(
    dataset: Dataset,
    split: Split,
    *,
    prior: AnyPath,
    options: Options | None = None,
    tolerance: float | None = None,
    shown: int = 0,
) -> Iterator[SceneResult]:
    """One result per labelled region of a split, as they are done.

    options: where they name files, {stem} stands for the name of a scene's image. tolerance, shown: as in
    `evaluate_pair`.
    Raises DatasetError if the split has none, SettingError if the prior's classes are not the data set's.
    """
    options = Options() if options is None else options
    regions = dataset.select(split, "pairs")
    if not regions:
        raise DatasetError(f"wanted labelled scenes in the split {split!r} of {dataset.name}, found none")
    _check_classes(dataset.legend, read_card(prior).legend)
    scenes = [region.scene for region in regions]
    for region in regions:
        own = options.of(str(region.scene.image))
        own = replace(own, res=region.scene.pixel_res) if own.res is None else own
        result = _region_result(dataset, region, prior, own, tolerance=tolerance, shown=shown)
        # several windows of one scene are told apart by where they lie
        several = scenes.count(region.scene) > 1
        yield replace(result, name=f"{result.name} {_place(region.window)}") if several else result


def evaluate_pair(
    image: AnyPath,
    labels: AnyPath,
    *,
    prior: AnyPath,
    options: Options | None = None,
    legend: Legend | None = None,
    name: str | None = None,
    tolerance: float | None = None,
    shown: int = 0,
) -> SceneResult:
    """Segment `image` and compare with `labels`, a raster of class values on the same grid.

    Args:
        image: the raster.
        labels: class values, one band.
        prior: name or file.
        options: how to segment.
        legend: of the label values, with the prior's classes in any order; by default the prior's own.
        name: of the result; by default the image's path.
        tolerance: metres on the ground within which a boundary counts as met; by default two working pixels.
        shown: keep maps of at most this many pixels a side to look at; 0 for none.

    Raises:
        RasterError: the grids differ, or a file cannot be read.
        LegendError: a label value is no class.
        SettingError: other classes than the prior's, or a tolerance below 0.

    """
    options = Options() if options is None else options
    card = read_card(prior)
    legend = card.legend if legend is None else legend
    _check_classes(legend, card.legend)
    order = np.array([*(card.legend.index(n) for n in legend.names), *range(len(legend), 256)], np.uint8)
    tolerance = 2 * card.res if tolerance is None else tolerance
    check_tolerance(tolerance)  # refused before any work
    with open_for(image, card, options) as scene, open_raster(labels) as truth:
        grid, tagged = scene.grid, truth.nodata in legend.values  # many tools tag rasters without regard to classes
        check_grids(image, grid, labels, grid_of(truth))
        counter = Counter(grid.height, grid.width, classes=len(legend))
        step = -(-max(grid.height, grid.width) // shown) if shown else 0
        sure = []
        for strip in strips(image, scene, prior=prior, options=replace(options, novelty=False, disagreement=False)):
            rows = Window(strip.row, 0, strip.valid.shape[0], strip.valid.shape[1])
            values, known = read_window(truth, rows, bands=(1,))
            index = order[legend.to_index(np.where(known | tagged, values[0], legend.nodata))]
            index[~strip.valid] = IGNORE
            counter.add(strip.row, index, strip.values)
            if step:
                top = np.where(strip.valid, strip.values.max(axis=0), np.float32(np.nan))
                sure.append(top[-strip.row % step :: step, ::step])
        pixel = (card.res / scene.scale[0], card.res / scene.scale[1])
        return SceneResult(
            fspath(image) if name is None else name,
            counter.finish(pixel=pixel, tolerance=tolerance),
            _maps(scene, counter, np.concatenate(sure), step) if step else None,
        )


def _maps(scene: Scene, counter: Counter, sure: NDArray[np.float32], step: int) -> Maps:
    """Thin out what there is to see of a scene."""
    truth, predicted = (c[::step, ::step] for c in (counter.truth, counter.predicted))
    return Maps(scene.thinned(truth.shape), truth, predicted, sure)


SCORES: dict[str, Score] = {
    "miou": lambda c: c.scores.miou,
    "mean_f1": lambda c: c.scores.mean_f1,
    "mean_boundary_f1": lambda c: c.mean_boundary_f1,
    "accuracy": lambda c: c.scores.accuracy,
    "ece": lambda c: c.calibration.ece,
    "brier": lambda c: c.brier,
}
"""Scores over all classes, by the names that `report` gives them."""


def report(results: Sequence[SceneResult], legend: Legend, *, intervals: bool = False) -> dict[str, Any]:
    """Scores per scene and pooled as plain numbers for JSON; None where a score is not defined.

    legend: the prior's. intervals: add the 95 % intervals of the pooled scores, by a bootstrap over blocks of 128 x 128
    pixels (`segprior.counts`); they hold the chance of the scenes' blocks, not that of another training.
    """
    whole = pooled(results)
    table = {r.name: _row(r, legend) for r in (*results, whole)}
    if intervals:
        table["pooled"]["intervals_95"] = {
            name: [_plain(bound) for bound in (found.low, found.high)]
            for name, found in score_intervals(whole.counts).items()
        }
    return table


def score_intervals(counts: Counts) -> dict[str, Interval]:
    """Find the 95 % interval of every score over all classes; none without a pixel that counts."""
    if not counts.filled().any():
        return {}
    return {name: bootstrap(counts, score) for name, score in SCORES.items()}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _row(result: SceneResult, legend: Legend) -> dict[str, Any]:
    s, total = result.scores, result.counts.total()
    by_class = {
        "iou": s.iou,
        "f1": s.f1,
        "boundary_f1": total.boundary_f1,
        "true_share": s.true_share,
        "mapped_share": s.mapped_share,
    }
    return {
        **{key: {n: _plain(v) for n, v in zip(legend.names, values, strict=True)} for key, values in by_class.items()},
        **{name: _plain(score(total)) for name, score in SCORES.items()},
        "pixels": int(result.confusion.sum()),
        "confusion": result.confusion.tolist(),
    }


def _region_result(
    dataset: Dataset, region: Region, prior: AnyPath, options: Options, *, tolerance: float | None, shown: int
) -> SceneResult:
    scene = region.scene
    assert scene.labels is not None  # noqa: S101  # the use is `pairs`

    def compared(image: Path, labels: Path) -> SceneResult:
        return evaluate_pair(
            image,
            labels,
            prior=prior,
            options=options,
            legend=dataset.legend,
            name=scene.name,
            tolerance=tolerance,
            shown=shown,
        )

    if region.window is None:
        return compared(scene.image, scene.labels)
    # a window is cut out first, so that nothing outside it, not even its imagery, has a say
    with TemporaryDirectory() as folder:
        image, labels = (Path(folder) / name for name in ("image.tif", "labels.tif"))
        crop(scene.image, region.window, image)
        crop(scene.labels, region.window, labels)
        return compared(image, labels)


def _place(window: Window | None) -> str:
    if window is None:
        return "whole"
    return f"rows {window.row}+{window.height} columns {window.col}+{window.width}"


def _check_classes(given: Legend, wanted: Legend) -> None:
    if sorted(given.names) != sorted(wanted.names):
        raise SettingError(
            f"wanted labels of the prior's classes ({', '.join(wanted.names)}), got {', '.join(given.names)}"
        )
