"""Pixels of data sets: regions read whole at the working resolution, images by area average, labels by majority."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segprior.data import Dataset, Region, Split, Use
from segprior.errors import DatasetError
from segprior.prior.joint import UNLABELLED
from segprior.raster import describe
from segprior.region import read_region, region_valid

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
    ones.
    """

    region: Region
    image: Image | None
    index: Index | None
    seen: Seen | None = None
    belief: Image | None = None

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
        at, res, pixel_res, bands = region.scene.image, dataset.res, dataset.pixel_res, dataset.bands
        image = read_region(at, region.window, res=res, pixel_res=pixel_res, bands=bands).transpose(1, 2, 0)
        seen = region_valid(at, region.window, res=res, pixel_res=pixel_res, bands=bands)
    if region.use != "images" and region.scene.labels is not None:
        values = read_region(
            region.scene.labels, region.window, res=dataset.res, pixel_res=dataset.pixel_res, majority=True
        )
        index = dataset.legend.to_index(values[0])
        if region.scene.belief is not None:
            belief = _belief(dataset, region, region.scene.belief)
    if image is not None and index is not None and image.shape[:2] != index.shape:
        raise DatasetError(
            f"wanted labels on the grid of {region.scene.image}, got {index.shape} against {image.shape[:2]} pixels"
        )
    gaps = seen is not None and not seen.all()
    return Plot(region, None if image is None else np.ascontiguousarray(image), index, seen if gaps else None, belief)


def _belief(dataset: Dataset, region: Region, path: Path) -> Image:
    bands = tuple(range(1, describe(path).count + 1))
    found = read_region(path, region.window, res=dataset.res, pixel_res=dataset.pixel_res, bands=bands)
    return np.ascontiguousarray(found.transpose(1, 2, 0)).clip(max=BELIEVED)


def read_plots(dataset: Dataset, split: Split, *uses: Use) -> tuple[Plot, ...]:
    """All regions of a split with these uses."""
    return tuple(read_plot(dataset, region) for region in dataset.select(split, *uses))
