"""A class raster as patches, band by band of rows.

A patch is a set of pixels of one value that touch along sides (4-neighbours). `bands` reads a raster in bands of rows;
`labelled` numbers the patches of a band by themselves; an `Edge` says which of them go on where two bands meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader
from scipy import ndimage

from segprior.raster import read_window
from segprior.windows import Window

ROWS = 512
"""Rows of a band."""

NONE = 0
"""Label of pixels that belong to no patch."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Whole rows from `row` on, all of them (rows, columns).

    pixels: values. kept: those that belong to patches. confidence: in [0, 1], NaN where not known; None if not asked.
    """

    row: int
    pixels: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float32] | None = None

    @property
    def end(self) -> int:
        """The row below the last one."""
        return self.row + len(self.pixels)


def bands(dataset: DatasetReader, *, confidence: DatasetReader | None = None, rows: int = ROWS) -> Iterator[Band]:
    """Read the first band of a raster of bytes from top to bottom, and with it that of a raster on the same grid.

    Pixels without data are not kept. Raises RasterError where a file is damaged.
    """
    for row in range(0, dataset.height, rows):
        window = Window(row, 0, min(rows, dataset.height - row), dataset.width)
        pixels, valid = read_window(dataset, window, bands=(1,))
        sure = None
        if confidence is not None:
            shares, known = read_window(confidence, window, bands=(1,))
            scaled = shares[0] * np.float32(confidence.scales[0])
            sure = np.where(known, scaled, np.float32(np.nan)).astype(np.float32)
        yield Band(row, pixels[0], valid, sure)


def labelled(band: Band, *, first: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Number the patches of a band from `first` on: labels (rows, columns), NONE in no patch, and value by patch."""
    labels = np.full(band.pixels.shape, NONE, np.int32)
    values: list[npt.NDArray[np.uint8]] = []
    start = first
    for value in np.unique(band.pixels[band.kept]).tolist():
        mine, count = ndimage.label(band.kept & (band.pixels == value))
        labels += np.where(mine > 0, mine + np.int32(start - 1), 0).astype(np.int32)
        values.append(np.full(count, value, np.uint8))
        start += count
    return labels, np.concatenate([np.zeros(0, np.uint8), *values])


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """One row of pixels: values and labels."""

    values: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]

    @classmethod
    def none(cls) -> Edge:
        """Make the edge above the first row."""
        return cls(np.zeros(0, np.uint8), np.zeros(0, np.int32))

    @classmethod
    def top(cls, band: Band, labels: npt.NDArray[np.int32]) -> Edge:
        """Take the first row of a band."""
        return cls(band.pixels[0], labels[0])

    @classmethod
    def bottom(cls, band: Band, labels: npt.NDArray[np.int32]) -> Edge:
        """Take the last row of a band."""
        return cls(band.pixels[-1], labels[-1])

    def meetings(self, below: Edge, *, same: bool) -> npt.NDArray[np.int32]:
        """Pairs of labels (pairs, 2), each once, whose pixels stand above each other, of one value or of two."""
        if not len(self.labels):
            return np.zeros((0, 2), np.int32)
        touch = (self.labels != NONE) & (below.labels != NONE) & ((self.values == below.values) == same)
        return pairs(self.labels[touch], below.labels[touch])


def pairs(mine: npt.NDArray[np.int32], yours: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Put two rows of labels into pairs (pairs, 2), each once."""
    codes = np.unique(mine.astype(np.int64) << 32 | yours)
    return np.column_stack([codes >> 32, codes & 0xFFFFFFFF]).astype(np.int32)
