"""Known places: points, lines and polygons whose class is known, drawn on the working grid of a scene.

    KnownSource    a vector file, which class its features are of, how wide and how sure they are
    open_places    its features in the pixels of a scene
    Places         what is known in a window: class index and accuracy of every pixel

A feature covers the pixels whose centres it holds, and points and lines all that they touch before they are made wider;
an area covers one pixel at least. Buffers are in metres on the ground. What comes later, in the order of the sources
and of their features, lies on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import geopandas
import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize

from segprior.errors import SettingError, VectorError
from segprior.features import outlines_in_pixels, read_features
from segprior.legend import NO_INDEX, Legend
from segprior.scene import Scene
from segprior.settings import parsed
from segprior.windows import Window

COLUMN = "class"


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A vector file of places whose class is known.

    path: any file that GDAL reads vectors from. kind: a class of the prior, which all features are of, or the column
    that names the class of each; None for the column "class". buffer: metres added around every feature. confidence:
    probability that the class is right, 1 for certain.
    """

    path: str
    kind: str | None = None
    buffer: float = 0.0
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if not (isfinite(self.buffer) and self.buffer >= 0):
            raise SettingError(f"wanted a buffer of 0 metres or more for {self.path}, got {self.buffer}")
        if not 0 < self.confidence <= 1:
            raise SettingError(f"wanted a confidence above 0, at most 1, for {self.path}, got {self.confidence}")

    @classmethod
    def parse(cls, text: str) -> KnownSource:
        """Read PATH or PATH:class=NAME,buffer=3m,confidence=0.9, any of these. Raises SettingError."""
        path, settings = parsed(text, ("class", "buffer", "confidence"))
        try:
            buffer = float(settings.get("buffer", "0").removesuffix("m"))
            confidence = float(settings.get("confidence", "1"))
        except ValueError as error:
            raise SettingError(f"wanted numbers for buffer and confidence in {text!r}: {error}") from error
        return cls(path, settings.get("class"), buffer, confidence)


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """Places in the pixels of a working grid or a window: row, column and class index of each, all (n,)."""

    rows: npt.NDArray[np.int64]
    cols: npt.NDArray[np.int64]
    index: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.index)

    def taken(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Spots:
        """Some of the places."""
        return Spots(self.rows[chosen], self.cols[chosen], self.index[chosen])

    def within(self, window: Window) -> Spots:
        """Those in a window, in its own pixels."""
        rows, cols = self.rows - window.row, self.cols - window.col
        inside = (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)
        return Spots(rows, cols, self.index).taken(inside)


def spots(outlines: npt.NDArray[np.object_], index: npt.NDArray[np.uint8]) -> Spots:
    """Take geometries for points inside them."""
    at = np.floor(shapely.get_coordinates(shapely.point_on_surface(outlines))).astype(np.int64)
    return Spots(at[:, 1], at[:, 0], index)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Features in pixels of a scene's working grid, in the order in which they are drawn.

    outlines: geometries. cores: what of each covers every pixel it touches. index: class index of each. accuracy:
    probability that it is right. clicks: those that are points, however wide, and certain (of several in one feature,
    one).
    """

    outlines: npt.NDArray[np.object_]
    cores: npt.NDArray[np.object_]
    index: npt.NDArray[np.uint8]
    accuracy: npt.NDArray[np.float32]
    tree: shapely.STRtree
    clicks: Spots

    def within(self, window: Window) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Class index (height, width) of a window, 255 where nothing is known, and its accuracy, 0 there."""
        shape = (window.height, window.width)
        box = shapely.box(window.col, window.row, window.col + window.width, window.row + window.height)
        chosen = np.sort(self.tree.query(box))
        if not len(chosen):
            return np.full(shape, NO_INDEX, np.uint8), np.zeros(shape, np.float32)
        moved, cores = (
            shapely.transform(parts[chosen], lambda xy: xy - (window.col, window.row))
            for parts in (self.outlines, self.cores)
        )
        areas = shapely.get_dimensions(moved) == 2
        drawn = np.zeros(shape, np.int32)
        # one by one, because an order holds over polygons and the rest, which cover pixels by different rules
        for number, (outline, core, area) in enumerate(zip(moved, cores, areas, strict=True), start=1):
            if area:
                rasterize([(outline, number)], out=drawn)
            rasterize([(core, number)], out=drawn, all_touched=True)
        index = np.append(np.uint8(NO_INDEX), self.index[chosen])
        accuracy = np.append(np.float32(0), self.accuracy[chosen])
        return index[drawn].astype(np.uint8), accuracy[drawn].astype(np.float32)


def open_places(sources: Sequence[KnownSource], scene: Scene, legend: Legend) -> Places:
    """Read the features of all sources that lie on a scene.

    Raises VectorError for a file that cannot be read or has no CRS, a raster without one, an unknown class.
    """
    parts = [_features(source, scene, legend) for source in sources]
    cores = np.concatenate([np.zeros(0, object), *(cores for cores, _, _ in parts)])
    outlines = np.concatenate([np.zeros(0, object), *(outlines for _, outlines, _ in parts)])
    index = np.concatenate([np.zeros(0, np.uint8), *(index for _, _, index in parts)])
    dots = shapely.get_dimensions(cores) == 0
    each = [np.full(len(index), s.confidence, np.float32) for s, (_, _, index) in zip(sources, parts, strict=True)]
    accuracy = np.concatenate([np.zeros(0, np.float32), *each])
    clicked = dots & (accuracy >= 1)
    areas = shapely.get_dimensions(cores) == 2
    cores[areas] = shapely.point_on_surface(cores[areas])
    tree = shapely.STRtree(outlines)
    return Places(outlines, cores, index, accuracy, tree, spots(outlines[clicked], index[clicked]))


def _features(
    source: KnownSource, scene: Scene, legend: Legend
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_], npt.NDArray[np.uint8]]:
    """Outlines in working pixels before and after they are made wider, and class index."""
    if source.confidence < 1 / len(legend):
        least = f"{1 / len(legend):.2f}, a guess among {len(legend)} classes"
        raise SettingError(f"wanted a confidence of at least {least}, for {source.path}, got {source.confidence}")
    frame = read_features(source.path, "known places")
    index = _classes(frame, source, legend)
    grid, (down, across) = scene.grid, scene.scale
    native = outlines_in_pixels(frame, grid, path=source.path, raster=scene.dataset.name)
    outlines = cores = shapely.transform(native, lambda xy: xy / (across, down))
    if source.buffer > 0 and grid.res is not None:
        # working pixels are square on the ground, or nearly
        size = (grid.res[0] * down * grid.res[1] * across) ** 0.5
        outlines = shapely.buffer(outlines, source.buffer / size)
    there = ~(shapely.is_missing(outlines) | shapely.is_empty(outlines))
    return cores[there], outlines[there], index[there]


def _classes(frame: geopandas.GeoDataFrame, source: KnownSource, legend: Legend) -> npt.NDArray[np.uint8]:
    """Class index of every feature."""
    if source.kind in legend.names:
        return np.full(len(frame), legend.index(str(source.kind)), np.uint8)
    column = COLUMN if source.kind is None else source.kind
    if column not in frame.columns or column == frame.geometry.name:
        columns = ", ".join(name for name in frame.columns if name != frame.geometry.name) or "none"
        raise VectorError(
            f"wanted a class of the prior ({', '.join(legend.names)}) or a column of {source.path} "
            f"(it has {columns}), got {column}"
        )
    names = [str(name) for name in frame[column]]
    if strange := sorted(set(names) - set(legend.names)):
        raise VectorError(
            f"wanted classes of the prior ({', '.join(legend.names)}) in the column {column} of {source.path}, "
            f"got {', '.join(strange[:5])}"
        )
    return np.array([legend.index(name) for name in names], np.uint8)
