"""Hints: a coarse map in any grid and CRS, as shares of the classes in its cells.

    HintSource   the raster, what its values mean, how large a cell is, how much it weighs
    HintTable    P(class | value of the hint)
    lies_under   whether a raster is of the same place at all
    read_hint    the cells under a window of a scene's working grid

The raster holds either shares (a band for each class, named by its description) or classes of its own (one band), which
a table translates. A cell is a pixel of the hint, or a block of them that is about `window` metres wide, over which
their shares are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from segprior.errors import RasterError, SettingError
from segprior.legend import Legend
from segprior.raster import Grid, grid_of, open_raster
from segprior.scene import Scene
from segprior.settings import parsed
from segprior.tables import read_toml, shares_row
from segprior.windows import Window

Array = npt.NDArray[np.float32]
Places = npt.NDArray[np.float64]
AnyPath = str | PathLike[str]
ALL = 1e12
"""More pixels than a cell has."""
WHOLE = re.compile("-?[0-9]+")
"""A key of a table that is a value of a raster."""


@dataclass(frozen=True, slots=True)
class HintSource:
    """A coarse map.

    path: any raster that GDAL reads. table: a TOML file of P(class | value), for a map of classes. window: width of a
    cell in metres, None for a pixel of the hint. weight: 1 is sensible, see `segprior.prior.shares`.
    """

    path: str
    table: str | None = None
    window: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.window is not None and not (isfinite(self.window) and self.window > 0):
            raise SettingError(f"wanted a window above 0 metres for {self.path}, got {self.window}")
        if not (isfinite(self.weight) and self.weight >= 0):
            raise SettingError(f"wanted a weight of 0 or more for {self.path}, got {self.weight}")

    def weighed(self, factor: float) -> HintSource:
        """Return the same with `factor` times its weight."""
        return replace(self, weight=factor * self.weight)

    def with_table(self, table: AnyPath | None) -> HintSource:
        """Return the same with this table, if it names none."""
        return self if table is None or self.table is not None else replace(self, table=fspath(table))

    @classmethod
    def parse(cls, text: str) -> HintSource:
        """Read PATH or PATH:table=nlcd.toml,window=90m,weight=2, any of these. Raises SettingError."""
        path, settings = parsed(text, ("table", "window", "weight"))
        window = settings.get("window")
        try:
            width = None if window is None else float(window.removesuffix("m"))
            return cls(path, settings.get("table"), width, float(settings.get("weight", "1")))
        except ValueError as error:
            raise SettingError(f"wanted numbers for window and weight in {text!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class HintTable:
    """P(class | value of the hint): shares in the order of a legend by value."""

    rows: Mapping[int, Array]

    @classmethod
    def read(cls, path: str, legend: Legend) -> HintTable:
        """Read tables [VALUE] of class = share; a class that is not named has none. Raises SettingError."""
        tables = read_toml(path, "tables [VALUE] of class = share")
        if not tables or not all(WHOLE.fullmatch(key) and isinstance(row, dict) for key, row in tables.items()):
            found = ", ".join(tables) or "nothing"
            raise SettingError(f"wanted tables [VALUE] of class = share for the values of a hint, {path} has {found}")
        none = dict.fromkeys(legend.names, 0.0)
        return cls({int(key): shares_row(none | row, legend, f"[{key}] of {path}") for key, row in tables.items()})

    def translate(self, values: npt.NDArray[np.generic]) -> Array:
        """Shares (classes, ...) of every value, NaN for values without a row."""
        known = np.array(sorted(self.rows))
        shares = np.stack([self.rows[value] for value in known.tolist()])
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        found = np.where((known[place] == values)[..., None], shares[place], np.float32(np.nan))
        return np.moveaxis(found, -1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells of a hint under a window.

    index: (height, width), the cell of every pixel, -1 for none. shares: (cells, classes), NaN where not known. parts:
    (cells,), how much of the area of each is under the window, above 0; 1 of a cell without a pixel.
    """

    index: npt.NDArray[np.int32]
    shares: Array
    parts: Array


def check_hint(source: HintSource, scene: Scene) -> None:
    """Raise RasterError unless the hint has pixels under the scene."""
    if not lies_under(source.path, scene):
        raise RasterError(f"wanted a hint of the same place, {source.path} has no pixel under {scene.dataset.name}")


def lies_under(path: str, scene: Scene) -> bool:
    """Whether a raster has pixels under the scene, as far as a few hundred of its places tell. Raises RasterError."""
    with open_raster(path) as dataset:
        rows, cols = (np.linspace(0, n - 1, min(n, 24)).round() for n in (scene.height, scene.width))
        down, across = (v.ravel() for v in np.meshgrid(rows, cols, indexing="ij"))
        row, col = _under_working(down, across, scene, dataset)
        return bool(((row >= 0) & (row < dataset.height) & (col >= 0) & (col < dataset.width)).any())


def read_hint(source: HintSource, scene: Scene, legend: Legend, window: Window) -> Cells:
    """Find the cells of a hint under a window of the working grid.

    Raises RasterError: no raster, no shares in it, or it cannot be placed. SettingError: a table that is none.
    """
    with open_raster(source.path) as dataset:
        read = _reader(dataset, source, legend)
        rows, cols = np.mgrid[: window.height, : window.width]
        rows, cols = _under_working(rows + window.row, cols + window.col, scene, dataset)
        step, area = _step(dataset, source), _area(rows, cols)
        rows, cols = np.floor(rows / step), np.floor(cols / step)
        inside = np.isfinite(rows + cols) & (rows >= 0) & (cols >= 0)
        inside &= (rows * step < dataset.height) & (cols * step < dataset.width)
        index = np.full(inside.shape, -1, np.int32)
        if not inside.any():
            return Cells(index, np.zeros((0, len(legend)), np.float32), np.zeros(0, np.float32))
        top, left = int(rows[inside].min()), int(cols[inside].min())
        high, wide = int(rows[inside].max()) - top + 1, int(cols[inside].max()) - left + 1
        place = Window(top * step, left * step, high * step, wide * step)
        shares = _averaged(read(place), step)
    index[inside] = ((rows[inside] - top) * wide + cols[inside] - left).astype(np.int32)
    index[~np.isfinite(np.append(shares, np.full_like(shares[:1], np.nan), axis=0)[index]).any(axis=-1)] = -1
    count = np.bincount(index[index >= 0], minlength=len(shares))
    parts = np.where(count > 0, np.minimum(1.0, count * area / step**2), 1.0)
    return Cells(index, shares, parts.astype(np.float32))


def _area(rows: Places, cols: Places) -> float:
    """Pixels of the hint that a working pixel covers, by how far neighbours are; a single row or column covers all."""
    if min(rows.shape) < 2:
        return ALL
    (y_down, x_down), (y_across, x_across) = (
        [np.diff(v, axis=axis)[: rows.shape[0] - 1, : rows.shape[1] - 1] for v in (rows, cols)] for axis in (0, 1)
    )
    turned = y_down * x_across - x_down * y_across
    known = np.abs(turned[np.isfinite(turned)])
    return float(np.median(known)) if known.size else ALL


Read = Callable[[Window], Array]
"""Reads shares (classes, rows, columns) of pixels of a hint that may reach beyond it, NaN where not known."""


def _reader(dataset: DatasetReader, source: HintSource, legend: Legend) -> Read:
    named = {str(name): band for band, name in zip(dataset.indexes, dataset.descriptions, strict=True)}
    bands = {number: named[name] for number, name in enumerate(legend.names) if name in named}
    if source.table is not None:
        changed = Path(source.table).stat().st_mtime_ns if Path(source.table).exists() else 0
        table = _table(source.table, changed, legend)
        if dataset.count != 1 or not np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer):
            found = f"{dataset.count} of {dataset.dtypes[0]}"
            raise RasterError(f"wanted one band of whole numbers for a table, {source.path} has {found}")
        return lambda place: _padded(dataset, [1], place, source.path, lambda raw: _translated(raw, table))
    if not bands:
        found = ", ".join(name for name in named if name != "None") or "none"
        raise RasterError(
            f"wanted a table of what the values of {source.path} mean (:table=FILE.toml), or bands named by classes of "
            f"the prior ({', '.join(legend.names)}); its band names are {found}"
        )
    scales = np.array([dataset.scales[band - 1] for band in bands.values()], np.float32)[:, None, None]

    def shares(raw: np.ma.MaskedArray[Any, Any]) -> Array:
        out = np.full((len(legend), *raw.shape[1:]), np.nan, np.float32)
        out[list(bands)] = np.ma.filled(raw.astype(np.float32), np.nan) * scales
        told = out[np.isfinite(out)]
        if told.size and not (told.min() > -1e-3 and told.max() < 1 + 1e-3):
            raise RasterError(f"wanted shares in [0, 1], {source.path} has {told.min():g} to {told.max():g}")
        return out.clip(0, 1)

    return lambda place: _padded(dataset, list(bands.values()), place, source.path, shares)


def _translated(raw: np.ma.MaskedArray[Any, Any], table: HintTable) -> Array:
    return np.where(np.ma.getmaskarray(raw)[0], np.float32(np.nan), table.translate(raw.data[0]))


def _padded(
    dataset: DatasetReader,
    bands: list[int],
    place: Window,
    path: str,
    shares: Callable[[np.ma.MaskedArray[Any, Any]], Array],
) -> Array:
    inside = place.intersection(dataset.height, dataset.width)
    there = RasterioWindow(inside.col, inside.row, inside.width, inside.height)
    try:
        raw = dataset.read(bands, window=there, masked=True)
    except RasterioError as error:
        raise RasterError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    rest = ((0, 0), (0, place.height - inside.height), (0, place.width - inside.width))
    return np.pad(shares(raw), rest, constant_values=np.nan)


@lru_cache(maxsize=4)
def _table(path: str, changed: int, legend: Legend) -> HintTable:
    del changed  # another time of change is another table
    return HintTable.read(path, legend)


def _under_working(
    rows: npt.NDArray[Any], cols: npt.NDArray[Any], scene: Scene, dataset: DatasetReader
) -> tuple[Places, Places]:
    """Row and column of the hint, not rounded, under the centres of working pixels; NaN beyond the scene."""
    outside = (rows >= scene.height) | (cols >= scene.width)
    y, x = (np.where(outside, np.nan, (v + 0.5) * scale) for v, scale in zip((rows, cols), scene.scale, strict=True))
    return pixels_under(y, x, scene.grid, dataset, raster=scene.dataset.name)


def pixels_under(y: Places, x: Places, grid: Grid, dataset: DatasetReader, *, raster: str) -> tuple[Places, Places]:
    """Row and column of a dataset, not rounded, at places (y down, x right) in pixels of a grid.

    Rasters without a CRS are taken as pictures of the same place. Raises RasterError if one has a CRS, the other none.
    """
    own = grid_of(dataset)
    if grid.crs is None or own.crs is None:
        if grid.crs is not None or own.crs is not None:
            raise RasterError(f"cannot place {dataset.name}: one of it and {raster} has no CRS")
        return y * own.height / grid.height, x * own.width / grid.width
    a, b, c, d, e, f = grid.transform[:6]
    x, y = a * x + b * y + c, d * x + e * y + f
    if grid.crs != own.crs:
        try:
            there = Transformer.from_crs(grid.crs.to_wkt(), own.crs.to_wkt(), always_xy=True)
            x, y = there.transform(x, y)
        except ProjError as error:
            raise RasterError(f"cannot place {dataset.name} on {raster}: {' '.join(str(error).split())}") from error
    a, b, c, d, e, f = (~own.transform)[:6]
    return d * x + e * y + f, a * x + b * y + c


def _step(dataset: DatasetReader, source: HintSource) -> int:
    """Pixels of the hint a cell is wide."""
    if source.window is None:
        return 1
    res = grid_of(dataset).res
    if res is None:
        raise RasterError(f"cannot tell how many pixels {source.window:g} m are: {source.path} has no georeference")
    return max(1, round(source.window / float(np.sqrt(res[0] * res[1]))))


def _averaged(shares: Array, step: int) -> Array:
    """Means (cells, classes) of shares (classes, rows, columns) over blocks; NaN where a block has none."""
    classes, high, wide = shares.shape[0], shares.shape[1] // step, shares.shape[2] // step
    blocks = shares.reshape(classes, high, step, wide, step)
    told = np.isfinite(blocks)
    count = told.sum(axis=(2, 4))
    mean = np.where(told, blocks, 0).sum(axis=(2, 4)) / np.maximum(count, 1)
    found: Array = np.where(count > 0, mean, np.nan).reshape(classes, -1).T.astype(np.float32)
    return found
