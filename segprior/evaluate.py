"""Benchmark: segment the scenes of a split, compare with their labels on the labels' own grid, count.

Every scene gives a confusion matrix and a calibration histogram; pooled scores come from their sums, not from means of
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

from segprior.checkpoint import read_card
from segprior.data import Dataset, Region, Split
from segprior.errors import DatasetError, RasterError, SettingError
from segprior.geotiff import crop
from segprior.legend import Legend
from segprior.metrics import Calibration, Scores, calibration, confusion, scores
from segprior.raster import Grid, grid_of, open_raster, read_window
from segprior.segmentation import Options, open_for, strips
from segprior.windows import Window

AnyPath = str | PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class SceneResult:
    """Counts of one scene: `confusion` int64 (classes, classes), rows the truth; and its calibration histogram.

    Classes are in the order of the prior's legend.
    """

    name: str
    confusion: NDArray[np.int64]
    calibration: Calibration

    @property
    def scores(self) -> Scores:
        """IoU, F1 and accuracy."""
        return scores(self.confusion)

    def __add__(self, other: "SceneResult") -> "SceneResult":
        return SceneResult("pooled", self.confusion + other.confusion, self.calibration + other.calibration)


def pooled(results: Sequence[SceneResult]) -> SceneResult:
    """The sum of the counts of all scenes."""
    total = results[0]
    for result in results[1:]:
        total = total + result
    return SceneResult("pooled", total.confusion, total.calibration)


def evaluate(
    dataset: Dataset, split: Split, *, prior: AnyPath, options: Options | None = None
) -> Iterator[SceneResult]:
    """One result per labelled region of a split, as they are done.

    Raises DatasetError if the split has none, SettingError if the prior's classes are not the data set's.
    """
    options = Options() if options is None else options
    regions = dataset.select(split, "pairs")
    if not regions:
        raise DatasetError(f"wanted labelled scenes in the split {split!r} of {dataset.name}, found none")
    _check_classes(dataset.legend, read_card(prior).legend)
    if options.res is None and dataset.pixel_res is not None:
        options = replace(options, res=dataset.pixel_res)
    scenes = [region.scene for region in regions]
    for region in regions:
        result = _region_result(dataset, region, prior, options)
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
) -> SceneResult:
    """Segment `image` and compare with `labels`, a raster of class values on the same grid.

    legend: of the label values, with the prior's classes in any order; by default the prior's own.
    Raises RasterError if the grids differ, LegendError if a label value is no class.
    """
    options = Options() if options is None else options
    card = read_card(prior)
    legend = card.legend if legend is None else legend
    _check_classes(legend, card.legend)
    order = np.array([*(card.legend.index(n) for n in legend.names), *range(len(legend), 256)], np.uint8)
    total: SceneResult | None = None
    with open_for(image, card, options) as scene, open_raster(labels) as truth:
        _check_grids(image, scene.grid, labels, grid_of(truth))
        for strip in strips(image, scene, prior=prior, options=options):
            rows = Window(strip.row, 0, strip.valid.shape[0], strip.valid.shape[1])
            values, known = read_window(truth, rows, bands=(1,))
            index = order[legend.to_index(np.where(known, values[0], legend.nodata))]
            index[~strip.valid] = 255
            part = SceneResult(
                fspath(image) if name is None else name,
                confusion(index, strip.values.argmax(axis=0).astype(np.uint8), classes=len(legend)),
                calibration(strip.values, index),
            )
            total = (
                part
                if total is None
                else SceneResult(part.name, total.confusion + part.confusion, total.calibration + part.calibration)
            )
    assert total is not None  # noqa: S101  # a raster has at least one strip
    return total


def report(results: Sequence[SceneResult], legend: Legend) -> dict[str, Any]:
    """Scores per scene and pooled as plain numbers for JSON; None where a score is not defined.

    legend: the prior's.
    """
    return {r.name: _row(r, legend) for r in (*results, pooled(results))}


def _row(result: SceneResult, legend: Legend) -> dict[str, Any]:
    s = result.scores

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 5)

    return {
        "iou": {n: plain(v) for n, v in zip(legend.names, s.iou, strict=True)},
        "f1": {n: plain(v) for n, v in zip(legend.names, s.f1, strict=True)},
        "miou": plain(s.miou),
        "mean_f1": plain(s.mean_f1),
        "accuracy": plain(s.accuracy),
        "ece": plain(result.calibration.ece),
        "pixels": int(result.confusion.sum()),
        "confusion": result.confusion.tolist(),
    }


def _region_result(dataset: Dataset, region: Region, prior: AnyPath, options: Options) -> SceneResult:
    scene = region.scene
    assert scene.labels is not None  # noqa: S101  # the use is `pairs`
    if region.window is None:
        return evaluate_pair(
            scene.image, scene.labels, prior=prior, options=options, legend=dataset.legend, name=scene.name
        )
    # a window is cut out first, so that nothing outside it, not even its imagery, has a say
    with TemporaryDirectory() as folder:
        image, labels = (Path(folder) / name for name in ("image.tif", "labels.tif"))
        crop(scene.image, region.window, image)
        crop(scene.labels, region.window, labels)
        return evaluate_pair(image, labels, prior=prior, options=options, legend=dataset.legend, name=scene.name)


def _place(window: Window | None) -> str:
    if window is None:
        return "whole"
    return f"rows {window.row}+{window.height} columns {window.col}+{window.width}"


def _check_classes(given: Legend, wanted: Legend) -> None:
    if sorted(given.names) != sorted(wanted.names):
        raise SettingError(
            f"wanted labels of the prior's classes ({', '.join(wanted.names)}), got {', '.join(given.names)}"
        )


def _check_grids(image: AnyPath, grid: Grid, labels: AnyPath, other: Grid) -> None:
    """Raise RasterError unless both grids agree in size and, where both have a place, to a tenth of a pixel."""
    if (grid.height, grid.width) != (other.height, other.width):
        raise RasterError(
            f"wanted labels on the grid of {fspath(image)}, {grid.height} x {grid.width} pixels, "
            f"got {other.height} x {other.width} in {fspath(labels)}; warp them first"
        )
    if grid.georeferenced and other.georeferenced:
        pixel = abs(grid.transform.a) + abs(grid.transform.b)
        moved = max(abs(a - b) for a, b in zip(grid.transform, other.transform, strict=True))
        if moved > 0.1 * pixel or grid.crs != other.crs:
            raise RasterError(
                f"wanted labels on the grid of {fspath(image)}, "
                f"got another place or CRS in {fspath(labels)}; warp them first"
            )
