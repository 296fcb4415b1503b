"""Reading rasters: where the pixels lie on Earth, and the pixels as the file has them.

Grid           the outline of a raster: size, transform, CRS; the size of its pixels on the ground
describe       what a raster file holds, without reading pixels
open_raster    a file that is a raster, or one line that says why not
read_window    pixels and native mask of a window; read_mask the mask alone
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
from affine import Affine
from rasterio import windows as rio_windows
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from segprior.errors import RasterError, SettingError
from segprior.windows import Window

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Grid:
    """The outline of a raster: pixels (rows, columns), pixel -> map transform, CRS (None when unknown)."""

    height: int
    width: int
    transform: Affine
    crs: CRS | None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SettingError(f"a grid needs at least one row and one column, got {self.height} x {self.width}")

    @property
    def georeferenced(self) -> bool:
        """Whether the size of the pixels on the ground is known."""
        return self.res is not None

    @property
    def res(self) -> tuple[float, float] | None:
        """Metres on the ground of one step along rows (down) and along columns (right) at the raster's centre.

        Measured on the ellipsoid, so projections that stretch, degrees and feet come out right. None for a raster
        without a place on Earth, or whose centre lies where its CRS is not defined.
        """
        earth = self.geodesy()
        if earth is None:
            return None
        row, col = self.height / 2, self.width / 2
        a, b, c, d, e, f = self.transform[:6]
        ends = [(col, row - 0.5), (col, row + 0.5), (col - 0.5, row), (col + 0.5, row)]
        xs, ys = [a * u + b * v + c for u, v in ends], [d * u + e * v + f for u, v in ends]
        to_lonlat, geod = earth
        lon, lat = to_lonlat.transform(xs, ys)
        steps = [geod.inv(lon[i], lat[i], lon[i + 1], lat[i + 1])[2] for i in (0, 2)]
        return (steps[0], steps[1]) if all(math.isfinite(s) and s > 0 for s in steps) else None

    def geodesy(self) -> tuple[pyproj.Transformer, pyproj.Geod] | None:
        """Make the way from map x, y to longitude, latitude on the CRS's own ellipsoid, and that ellipsoid.

        None without a place on Earth: no CRS, no transform, or a CRS without an ellipsoid (a site plan).
        """
        if self.crs is None or self.transform == Affine.identity():
            return None
        horizontal = pyproj.CRS.from_user_input(self.crs).to_2d()
        geodetic, geod = horizontal.geodetic_crs, horizontal.get_geod()
        if geodetic is None or geod is None:
            return None
        return pyproj.Transformer.from_crs(horizontal, geodetic, always_xy=True), geod


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """What a raster file holds. Tuples run over bands, from band 1."""

    path: str
    driver: str
    grid: Grid
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    colorinterp: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    blocks: tuple[tuple[int, int], ...]
    compression: str | None

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.dtypes)


def describe(path: AnyPath) -> RasterInfo:
    """Say what the raster at `path` holds; RasterError when it is not one."""
    with open_raster(path) as dataset:
        return RasterInfo(
            path=os.fspath(path),
            driver=dataset.driver,
            grid=grid_of(dataset),
            dtypes=tuple(dataset.dtypes),
            nodata=tuple(dataset.nodatavals),
            colorinterp=tuple(meaning.name for meaning in dataset.colorinterp),
            descriptions=tuple(dataset.descriptions),
            blocks=tuple(dataset.block_shapes),
            compression=None if dataset.compression is None else dataset.compression.value.lower(),
        )


def grid_of(dataset: DatasetReader) -> Grid:
    """Take the grid of an open raster."""
    return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs or None)


_OPENING = threading.Lock()

CACHE = 256
"""Megabytes of blocks that GDAL keeps: more than a band of windows of 50,000 columns."""


@contextmanager
def opening() -> Iterator[None]:
    """Let a raster without a georeference be opened without rasterio's warning, by one thread at a time.

    Warning filters belong to the whole process: threads that set and restore them at once would leave each other's.
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are welcome
        yield


@contextmanager
def bounded_cache() -> Iterator[None]:
    """Let GDAL keep CACHE megabytes of blocks instead of a share of the machine's memory.

    GDAL decides once, at the first block that a process reads; GDAL_CACHEMAX in the environment goes before.
    """
    with rasterio.Env(**({} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": CACHE})):
        yield


@contextmanager
def open_raster(path: AnyPath) -> Iterator[DatasetReader]:
    """Open the raster at `path`; RasterError when there is none or it has no bands."""
    try:
        with opening():
            dataset = rasterio.open(path)
    except RasterioError as error:
        raise RasterError(_why_not(path)) from error
    with dataset:
        if dataset.count == 0:
            raise RasterError(f"wanted a raster with bands, {os.fspath(path)} has none of its own; name a subdataset")
        yield dataset


def _why_not(path: AnyPath) -> str:
    name = os.fspath(path)
    if Path(name).is_dir():
        return f"wanted a raster, {name} is a folder; give a file in it"
    if not Path(name).exists() and "://" not in name and not name.startswith("/vsi"):
        return f"wanted a raster, there is no file {name}; check the path"
    return f"wanted a raster, {name} is not one that GDAL can open (damaged, cut short, or another kind of file)"


def read_window(
    dataset: DatasetReader, window: Window, *, bands: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read pixels (bands, rows, columns) and native mask (rows, columns) of a window inside the raster.

    Pixels that are not finite in one of the bands are not valid.

    Raises:
        RasterError: the file is damaged there.

    """
    with _reading(dataset, window) as place:
        pixels: npt.NDArray[Any] = dataset.read(list(bands), window=place)
    valid = read_mask(dataset, window)
    return pixels, valid & np.isfinite(pixels).all(axis=0) if pixels.dtype.kind == "f" else valid


def read_readable(
    dataset: DatasetReader, window: Window, *, bands: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read as `read_window` what can be read: pixels of blocks that are damaged are 0 and not valid."""
    try:
        return read_window(dataset, window, bands=bands)
    except RasterError:
        shape = (window.height, window.width)
    pixels, valid = np.zeros((len(bands), *shape), dataset.dtypes[bands[0] - 1]), np.zeros(shape, np.bool_)
    for part in _block_parts(dataset, window):
        row, col = part.row - window.row, part.col - window.col
        at = (slice(row, row + part.height), slice(col, col + part.width))
        try:
            pixels[:, *at], valid[at] = read_window(dataset, part, bands=bands)
        except RasterError:
            continue  # these are the pixels that stay without data
    return pixels, valid


def _block_parts(dataset: DatasetReader, window: Window) -> Iterator[Window]:
    """Cut a window along the blocks of the file."""
    height, width = dataset.block_shapes[0]
    rows, cols = (
        [start, *range(start - start % side + side, start + count, side)]
        for start, count, side in ((window.row, window.height, height), (window.col, window.width, width))
    )
    for top, bottom in pairwise([*rows, window.row + window.height]):
        for left, right in pairwise([*cols, window.col + window.width]):
            yield Window(top, left, bottom - top, right - left)


def read_resampled(
    dataset: DatasetReader, window: Window, *, bands: tuple[int, ...], shape: tuple[int, ...], method: Resampling
) -> npt.NDArray[Any]:
    """Read a window inside the raster resampled to `shape` (rows, columns), (bands, *shape).

    Raises:
        RasterError: the file is damaged there.

    """
    with _reading(dataset, window) as place:
        pixels: npt.NDArray[Any] = dataset.read(
            list(bands), window=place, out_shape=(len(bands), *shape), resampling=method
        )
    return pixels


def read_mask(dataset: DatasetReader, window: Window) -> npt.NDArray[np.bool_]:
    """Read the native mask of a window inside the raster, bool (rows, columns), True where there is data.

    It is the alpha band, else the internal or sidecar mask, else "some band is not nodata".

    Raises:
        RasterError: the file is damaged there.

    """
    with _reading(dataset, window) as place:
        valid: npt.NDArray[np.bool_] = dataset.dataset_mask(window=place) > 0
    return valid


@contextmanager
def _reading(dataset: DatasetReader, window: Window) -> Iterator[rio_windows.Window]:
    try:
        yield rio_windows.Window(window.col, window.row, window.width, window.height)
    except RasterioError as error:
        rows = f"{window.row} to {window.row + window.height - 1}"
        raise RasterError(
            f"cannot read rows {rows} of {dataset.name}: it is damaged or cut short; get a fresh copy"
        ) from error


def check_grids(image: AnyPath, grid: Grid, labels: AnyPath, other: Grid) -> None:
    """Raise RasterError unless both grids agree in size and, where both have a place, to a tenth of a pixel."""
    if (grid.height, grid.width) != (other.height, other.width):
        raise RasterError(
            f"wanted labels on the grid of {os.fspath(image)}, {grid.height} x {grid.width} pixels, "
            f"got {other.height} x {other.width} in {os.fspath(labels)}; warp them first"
        )
    if grid.georeferenced and other.georeferenced:
        pixel = abs(grid.transform.a) + abs(grid.transform.b)
        moved = max(abs(a - b) for a, b in zip(grid.transform, other.transform, strict=True))
        if moved > 0.1 * pixel or grid.crs != other.crs:
            raise RasterError(
                f"wanted labels on the grid of {os.fspath(image)}, "
                f"got another place or CRS in {os.fspath(labels)}; warp them first"
            )
