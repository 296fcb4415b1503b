"""Strips of rows of any height -> whole blocks of a GeoTIFF, each written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter

from segprior.errors import OutputError
from segprior.target import AnyPath

BLOCK = 256
"""Rows and columns of a block."""

Pixels = npt.NDArray[Any]
"""Values of the file's type, (bands, rows, columns)."""

Sink = Callable[[int, Pixels], None]
"""Takes the next strip: its first row, and values (bands, rows, columns)."""


class RowSink:
    """Takes strips (row, values), regroups them to whole blocks and writes each block once."""

    def __init__(self, target: DatasetWriter, path: AnyPath) -> None:
        self.target = target
        self.path = path
        self.held: list[Pixels] = []
        self.done = self.end = 0

    def __call__(self, row: int, values: Pixels) -> None:
        """Take the next rows, values (bands, rows, width)."""
        height, width = self.target.height, self.target.width
        if row != self.end or values.shape[-1] != width or row + values.shape[1] > height:
            raise OutputError(
                f"cannot write {self.path}: wanted rows of {width} columns from row {self.end} on, "
                f"got {values.shape[1]} rows of {values.shape[-1]} columns from row {row} on"
            )
        self.held.append(values)
        self.end += values.shape[1]
        ready = height if self.end == height else self.end - self.end % BLOCK
        if ready > self.done:
            joined = np.concatenate(self.held, axis=1)
            self._write(joined[:, : ready - self.done])
            self.held, self.done = [joined[:, ready - self.done :]], ready

    def finish(self) -> None:
        """Raise OutputError unless all rows came."""
        if self.done != self.target.height:
            raise OutputError(f"cannot write {self.path}: wanted {self.target.height} rows, got {self.end}")

    def _write(self, values: Pixels) -> None:
        place = rasterio.windows.Window(0, self.done, self.target.width, values.shape[1])
        try:
            self.target.write(values, window=place)
        except (RasterioError, OSError) as error:
            raise OutputError(f"{refusal(self.path, error)}; is the disk full?") from error


def refusal(path: AnyPath, error: Exception) -> str:
    """Say in one line that `path` cannot be written, and why."""
    told = error.__cause__ or error  # rasterio's own words often do but point to GDAL's
    return f"cannot write {path}: {' '.join(str(told).split())}"
