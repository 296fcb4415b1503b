"""A scene: a raster seen at the resolution a prior was trained at.

A scene has two grids with one outline. The native grid, H x W pixels, is the file's. The working grid, h x w pixels,
has square pixels of `res` metres on the ground as nearly as whole numbers allow: h = round(H r / res) with r the ground
size of a native pixel along its rows, and w likewise. Scene.scale = (H / h, W / w), native pixels per working pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader

from segprior.errors import RasterError, SettingError
from segprior.raster import AnyPath, Grid, grid_of, open_raster, read_mask, read_readable, read_resampled, read_window
from segprior.resample import resample_valid, source_window
from segprior.stretch import Stretch, stretch_of
from segprior.windows import Window

SNAP = 0.01
"""A scale this near 1 is taken as 1: a prior bears 1 % of ground size, and resampling for it would only blur."""

MAX_ENLARGEMENT = 32.0
"""Working pixels per native pixel along an axis beyond which a raster is refused as too coarse."""

_CHUNK = 1 << 23  # native pixels held at once while reading


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A raster seen on a working grid of `height` x `width` pixels; valid as long as its file is open.

    Attributes:
        dataset: the open file.
        bands: the bands read, from 1, in the order of the image channels.
        stretch: what their values become; None for 8-bit bands taken as they are.
        lenient: damaged blocks are without data; else reading them is an error.
        grid: the native grid.
        height, width: the working grid.

    """

    dataset: DatasetReader
    bands: tuple[int, ...]
    stretch: Stretch | None
    lenient: bool
    grid: Grid
    height: int
    width: int

    @property
    def scale(self) -> tuple[float, float]:
        """Native pixels per working pixel along rows and along columns; exactly (1, 1) if nothing is resampled."""
        return self.grid.height / self.height, self.grid.width / self.width

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Read image and validity of a window of the working grid.

        A part that sticks out of the grid is the image's mirror image, and not valid.

        Returns:
            image: float32 (bands, window.height, window.width) in 0..255, 0 in the grid where not valid.
            valid: bool (window.height, window.width), True where a valid native pixel lies under the pixel.

        Raises:
            RasterError: the file is damaged there.

        """
        rows, rows_in = _mirrored(window.row, window.height, self.height)
        cols, cols_in = _mirrored(window.col, window.width, self.width)
        top, left = int(rows.min()), int(cols.min())
        image, valid = self._sample(Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1))
        place = np.ix_(rows - top, cols - left)
        return image[:, place[0], place[1]], valid[place] & np.outer(rows_in, cols_in)

    def thinned(self, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read the whole raster thinned out to `shape` (rows, columns), as people look at it: uint8 (bands, *shape)."""
        whole = Window(0, 0, self.grid.height, self.grid.width)
        pixels = read_resampled(self.dataset, whole, bands=self.bands, shape=shape, method=Resampling.average)
        return pixels if self.stretch is None else np.rint(self.stretch(pixels)).astype(np.uint8)

    def native_valid(self, row: int, rows: int) -> npt.NDArray[np.bool_]:
        """Read the native mask of `rows` whole rows of the native grid from `row` on, bool (rows, grid.width)."""
        window = Window(row, 0, rows, self.grid.width)
        if self.lenient or any(self.dataset.dtypes[band - 1].startswith("float") for band in self.bands):
            return self._read(window)[1]  # damaged pixels and NaN are no data, whatever the mask says
        return read_mask(self.dataset, window)

    def _sample(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Sample image and validity of a window inside the working grid."""
        if self.scale == (1.0, 1.0):
            pixels, valid = self._read(window)
            return np.where(valid, pixels, 0).astype(np.float32), valid
        step = max(1, int(_CHUNK / (self.scale[0] * self.scale[1] * window.width)))
        parts = [
            self._resampled(Window(row, window.col, min(step, window.row + window.height - row), window.width))
            for row in range(window.row, window.row + window.height, step)
        ]
        return np.concatenate([image for image, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])

    def _resampled(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        native = source_window(window, step=self.scale, height=self.grid.height, width=self.grid.width)
        pixels, valid = self._read(native)
        return resample_valid(pixels, valid, offset=(native.row, native.col), step=self.scale, window=window)

    def _read(self, native: Window) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        pixels, valid = (read_readable if self.lenient else read_window)(self.dataset, native, bands=self.bands)
        return pixels if self.stretch is None else self.stretch(pixels), valid


@contextmanager
def open_scene(
    path: AnyPath,
    *,
    res: float,
    bands: tuple[int | str, ...] = (1, 2, 3),
    pixel_res: float | None = None,
    stretch: Stretch | None = None,
    lenient: bool = False,
) -> Iterator[Scene]:
    """Open the raster at `path` to be seen at `res` metres per pixel.

    Args:
        path: the raster, of real numbers.
        res: metres on the ground of a working pixel, as a prior wants it.
        bands: bands to read, by number from 1 or by the name of their colour interpretation ("red").
        pixel_res: metres on the ground of a native pixel, against what the georeference says. A raster without a
            georeference is taken at `res` if this is None.
        stretch: what the values become; None takes 8-bit bands as they are and finds one for others (`stretch_of`).
        lenient: take damaged blocks as without data, instead of raising an error when they are read.

    Raises:
        RasterError: no raster, too few bands, complex numbers, pixels far too coarse for `res`, a place that is not
            told by a transform.
        SettingError: `res`, `pixel_res`, `bands` or `stretch` out of range.

    """
    for name, metres in (("resolution", res), ("pixel size", res if pixel_res is None else pixel_res)):
        if not (math.isfinite(metres) and metres > 0):
            raise SettingError(f"wanted a {name} in metres above 0, got {metres}")
    with open_raster(path) as dataset:
        numbers = _numbers(dataset, bands)
        _check_bands(dataset, numbers)
        _check_place(dataset)
        grid = grid_of(dataset)
        native = (pixel_res, pixel_res) if pixel_res is not None else grid.res or (res, res)
        height = _working_size(grid.height, native[0] / res, dataset.name)
        width = _working_size(grid.width, native[1] / res, dataset.name)
        if stretch is not None:
            stretch = stretch.of_bands(len(numbers))
        elif any(dataset.dtypes[band - 1] != "uint8" for band in numbers):
            stretch = stretch_of(dataset, numbers, lenient=lenient)
        yield Scene(dataset, numbers, stretch, lenient, grid, height, width)


def _mirrored(start: int, count: int, limit: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Fold indices start, start + 1, ... into 0 .. limit - 1 by mirrors at both ends, and say which were inside."""
    indices = np.arange(start, start + count)
    folded = indices % (2 * limit)
    return np.where(folded < limit, folded, 2 * limit - 1 - folded), (indices >= 0) & (indices < limit)


def _numbers(dataset: DatasetReader, bands: tuple[int | str, ...]) -> tuple[int, ...]:
    """Numbers of bands that are given by number or by colour interpretation."""
    found = [meaning.name for meaning in dataset.colorinterp]
    unknown = [band for band in bands if isinstance(band, str) and band.lower() not in found]
    if unknown:
        raise RasterError(
            f"wanted a band for {', '.join(map(repr, unknown))} in {dataset.name}, its bands are {', '.join(found)}; "
            "give the numbers of the bands"
        )
    return tuple(found.index(band.lower()) + 1 if isinstance(band, str) else band for band in bands)


def _check_bands(dataset: DatasetReader, bands: tuple[int, ...]) -> None:
    wanted = ", ".join(map(str, bands))
    if not bands or min(bands) < 1:
        raise SettingError(f"wanted bands counted from 1, got {wanted or 'none'}")
    if max(bands) > dataset.count:
        advice = "expand its colour table with gdal_translate -expand rgb" if _paletted(dataset) else "choose others"
        raise RasterError(f"wanted bands {wanted} of {dataset.name}, which has {dataset.count}; {advice}")
    kinds = sorted({dataset.dtypes[band - 1] for band in bands})
    if any("complex" in kind for kind in kinds):
        raise RasterError(f"wanted bands of real numbers, {dataset.name} has {', '.join(kinds)}; take its magnitude")
    if len(kinds) > 1:
        raise RasterError(
            f"wanted bands of one type, {dataset.name} has {', '.join(kinds)} in bands {wanted}; convert it"
        )


def _paletted(dataset: DatasetReader) -> bool:
    return bool(dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette)


def _check_place(dataset: DatasetReader) -> None:
    """Refuse a raster whose place is told by control points or by a camera model: its pixels form no grid."""
    if dataset.transform != Affine.identity():
        return
    points, model = dataset.gcps[0], dataset.rpcs
    if points or model is not None:
        told, option = ("ground control points", "") if points else ("rational polynomials (RPC)", " -rpc")
        raise RasterError(
            f"wanted a raster on a grid, the place of {dataset.name} is told by {told}; "
            f"warp it first: gdalwarp{option} -r bilinear -t_srs EPSG:3857 {dataset.name} warped.tif"
        )


def _working_size(pixels: int, ratio: float, name: str) -> int:
    """Working pixels along an axis of `pixels` native ones, each of them `ratio` working pixels long."""
    if ratio > MAX_ENLARGEMENT:
        raise RasterError(
            f"{name} is {ratio:.0f} times too coarse for this prior (at most {MAX_ENLARGEMENT:.0f}); "
            "take a finer image or say its pixel size"
        )
    return pixels if abs(ratio - 1) <= SNAP else max(1, round(pixels * ratio))
