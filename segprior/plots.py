"""Pixels of data sets: regions read whole at the working resolution, images by area average, labels by majority.

Where labels are few they are windows in imagery without labels. To learn from, such windows and what is around them are
one plot (`read_pairs`), so that no tile ends where a window does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segprior.data import Dataset, Region, Split, Use
from segprior.errors import DatasetError
from segprior.prior.joint import UNLABELLED
from segprior.raster import check_grids, describe
from segprior.region import read_region, region_shape, region_valid
from segprior.windows import Window

Image = NDArray[np.uint8]
Index = NDArray[np.uint8]
Seen = NDArray[np.bool_]

BELIEVED = 254
"""The byte that stands for a probability of 1."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A region in memory at the working resolution.

    image: uint8 (rows, columns, bands) or None for use `labels`; index: uint8 class index (rows, columns), 255 where
    not labelled, or None for use `images`; seen: bool (rows, columns), True where the image holds data, or None if it
    does everywhere. belief: of inferred labels (see `Scene`), uint8 (rows, columns, classes) in 1/254; None of given
    ones. parts: where labels were given, if not everywhere, see `read_pairs`.
    """

    region: Region
    image: Image | None
    index: Index | None
    seen: Seen | None = None
    belief: Image | None = None
    parts: tuple[Window, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        array = self.image if self.image is not None else self.index
        assert array is not None  # noqa: S101  # one of the two is there by construction
        return int(array.shape[0]), int(array.shape[1])

    def pair(self, multiple: int = 1) -> tuple[Image, Index, Seen]:
        """Image, labels, and where there is data, cut to multiples of so many pixels; no label where there is none.

        Raises DatasetError of a plot without image or labels.
        """
        if self.image is None or self.index is None:
            raise DatasetError(f"wanted an image with labels of {self.region.scene.name}, got {self.region.use}")
        height, width = (n // multiple * multiple for n in self.shape)
        seen = np.ones((height, width), np.bool_) if self.seen is None else self.seen[:height, :width].copy()
        index = np.where(seen, self.index[:height, :width], np.uint8(UNLABELLED))
        return self.image[:height, :width], index, seen


def read_plot(dataset: Dataset, region: Region) -> Plot:
    """Read one region at the data set's working resolution."""
    image = index = seen = belief = None
    if region.use != "labels":
        at, res, pixel_res, bands = region.scene.image, dataset.res, region.scene.pixel_res, dataset.bands
        image = read_region(at, region.window, res=res, pixel_res=pixel_res, bands=bands).transpose(1, 2, 0)
        seen = region_valid(at, region.window, res=res, pixel_res=pixel_res, bands=bands)
    if region.use != "images" and region.scene.labels is not None:
        if image is not None:
            at, labels = region.scene.image, region.scene.labels
            check_grids(at, describe(at).grid, labels, describe(labels).grid)
        shape = _shape(dataset, region, region.scene.labels) if image is None else image.shape[:2]
        index = dataset.legend.to_index(_values(dataset, region, region.scene.labels, shape))
        if region.scene.belief is not None:
            belief = _belief(dataset, region, region.scene.belief, shape)
    gaps = seen is not None and not seen.all()
    return Plot(region, None if image is None else np.ascontiguousarray(image), index, seen if gaps else None, belief)


def _shape(dataset: Dataset, region: Region, labels: Path) -> tuple[int, int]:
    """Working rows and columns of labels without their image: a raster without a place has the size of its image."""
    scene = region.scene
    path = scene.image if describe(labels).grid.res is None and scene.image.is_file() else labels
    return region_shape(path, region.window, res=dataset.res, pixel_res=scene.pixel_res)


def _values(dataset: Dataset, region: Region, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read what stands in a label raster at the working resolution, `shape` rows and columns."""
    (values,) = read_region(
        path,
        region.window,
        res=dataset.res,
        pixel_res=region.scene.pixel_res,
        classes=dataset.legend.values,
        shape=shape,
    )
    return np.asarray(values)


def _belief(dataset: Dataset, region: Region, path: Path, shape: tuple[int, ...]) -> Image:
    bands = tuple(range(1, describe(path).count + 1))
    pixel_res = region.scene.pixel_res
    found = read_region(path, region.window, res=dataset.res, pixel_res=pixel_res, bands=bands, shape=shape)
    return np.ascontiguousarray(found.transpose(1, 2, 0)).clip(max=BELIEVED)


def read_plots(dataset: Dataset, split: Split, *uses: Use) -> tuple[Plot, ...]:
    """All regions of a split with these uses."""
    return tuple(read_plot(dataset, region) for region in dataset.select(split, *uses))


def read_pairs(dataset: Dataset, split: Split, imagery: Sequence[Plot]) -> tuple[Plot, ...]:
    """All regions of pairs of a split; those that lie in a plot of imagery without labels are parts of it.

    imagery: plots of use `images`. One with such regions gives a plot with its image and the labels of its parts, the
    windows whose pixels lie in these regions whole; elsewhere it is not labelled. Raises as `read_plot` does.
    """
    inside: dict[int, list[Region]] = {}
    alone = []
    for region in dataset.select(split, "pairs"):
        number = next((n for n, plot in enumerate(imagery) if _holds(plot.region, region)), None)
        if number is None:
            alone.append(read_plot(dataset, region))
        else:
            inside.setdefault(number, []).append(region)
    return (*alone, *(_labelled(dataset, imagery[number], regions) for number, regions in inside.items()))


def _holds(outer: Region, inner: Region) -> bool:
    if outer.scene != inner.scene or inner.window is None:
        return False
    return outer.window is None or outer.window.holds(inner.window)


def _labelled(dataset: Dataset, plot: Plot, regions: Sequence[Region]) -> Plot:
    """Give a plot of imagery the labels of regions in it. What the label raster holds elsewhere may be anything."""
    path = regions[0].scene.labels
    assert path is not None  # noqa: S101  # regions of pairs have labels
    found = _values(dataset, plot.region, path, plot.shape)
    grid = describe(plot.region.scene.image).grid
    check_grids(plot.region.scene.image, grid, path, describe(path).grid)
    whole = Window(0, 0, grid.height, grid.width)
    parts = tuple(_part(plot, region, whole) for region in regions)
    values = np.full(plot.shape, dataset.legend.nodata, np.uint8)
    for part in parts:
        values[part.row_slice, part.col_slice] = found[part.row_slice, part.col_slice]
    index = dataset.legend.to_index(values)
    return replace(plot, region=replace(plot.region, use="pairs"), index=index, parts=parts)


def _part(plot: Plot, region: Region, whole: Window) -> Window:
    """The working pixels of a plot that lie whole in a region of it; `whole` is the raster, in its own pixels.

    Raises DatasetError if there are none.
    """
    outer, inner = ((r.window or whole).intersection(whole.height, whole.width) for r in (plot.region, region))
    row, rows = _inside(inner.row - outer.row, inner.height, plot.shape[0] / outer.height)
    col, cols = _inside(inner.col - outer.col, inner.width, plot.shape[1] / outer.width)
    if min(rows, cols) < 1:
        raise DatasetError(f"wanted windows of a working pixel and more, got {inner} in {region.scene.image}")
    return Window(row, col, rows, cols)


def _inside(first: int, length: int, scale: float) -> tuple[int, int]:
    """First and number of the pixels of another size that lie whole in `length` pixels from `first` on."""
    begin, end = ceil(first * scale - 1e-6), floor((first + length) * scale + 1e-6)
    return begin, end - begin
