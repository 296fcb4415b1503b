"""Writing GeoTIFFs strip by strip: class rasters with their legend, and stacks of named bands.

Strips are whole rows (row, values), top to bottom and without gaps, of any height. They are regrouped to the height of
the file's blocks, since a compressed block that is written twice leaves its first version in the file as waste.

TIFF has a place for a colour table but none for class names. They go where GDAL keeps them, as category names in the
sidecar NAME.tif.aux.xml, and as JSON in the tag SEGPRIOR_LEGEND, which survives when the sidecar is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter

from segprior.errors import LegendError, OutputError, RasterError
from segprior.legend import Legend
from segprior.raster import Grid, grid_of, open_raster, opening, read_window
from segprior.target import AnyPath, replacing
from segprior.windows import Window

BLOCK = 256
"""Rows and columns of a block."""

LEGEND_TAG = "SEGPRIOR_LEGEND"

_PLACE = ("OFFSET", "SIZE")  # GDAL's names for where a block lies in the file

BYTE_STEPS = 254
"""A share p in [0, 1] is the byte round(254 p); 255 is nodata."""

Pixels = npt.NDArray[Any]
"""Values of the file's type, (bands, rows, columns)."""

Sink = Callable[[int, Pixels], None]
"""Takes the next strip: its first row, and values (bands, rows, columns)."""


@contextmanager
def class_writer(
    path: AnyPath, grid: Grid, legend: Legend, *, overwrite: bool = False, tags: Mapping[str, str] | None = None
) -> Iterator[Sink]:
    """Write a class raster: uint8 file values, nodata as the legend says, colour table, class names.

    Args:
        path: the file; it appears when the block ends well, and not at all when anything goes wrong.
        grid: outline of the raster.
        legend: names and colours of the values.
        overwrite: whether an existing file may be replaced.
        tags: more metadata items to write.

    Yields:
        what takes the strips: row, uint8 (1, rows, grid.width) of file values.

    Raises:
        OutputError: the file cannot be written, or the strips do not cover the grid row after row.

    """
    profile = {"count": 1, "dtype": "uint8", "nodata": legend.nodata}
    with replacing(path, overwrite=overwrite) as fresh:
        with _creating(fresh, path, grid, profile) as target:
            target.write_colormap(1, legend.colormap())
            target.update_tags(**{**(tags or {}), LEGEND_TAG: json.dumps(legend.to_dict())})
            sink = _Sink(target, path)
            yield sink
            sink.finish()
        _write_categories(fresh, dict(zip(legend.values, legend.names, strict=True)))


@contextmanager
def band_writer(
    path: AnyPath,
    grid: Grid,
    names: Sequence[str],
    *,
    dtype: Literal["float32", "uint8"] = "float32",
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Sink]:
    """Write one band per name: shares in [0, 1] such as probabilities, NaN where there is no data.

    Args:
        path: the file; it appears when the block ends well, and not at all when anything goes wrong.
        grid: outline of the raster.
        names: band descriptions.
        dtype: "float32" with nodata NaN, or "uint8" with the scale 1/254 and nodata 255.
        overwrite: whether an existing file may be replaced.
        tags: metadata items to write.

    Yields:
        what takes the strips: row, float32 (bands, rows, grid.width).

    Raises:
        OutputError: the file cannot be written, or the strips do not cover the grid row after row.

    """
    as_bytes = dtype == "uint8"
    profile = {"count": len(names), "dtype": dtype, "nodata": 255 if as_bytes else np.nan}
    profile |= {} if as_bytes else {"predictor": 3}
    with replacing(path, overwrite=overwrite) as fresh, _creating(fresh, path, grid, profile) as target:
        target.descriptions = tuple(names)
        target.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(names) - 1)
        target.scales = [1 / BYTE_STEPS if as_bytes else 1.0] * len(names)
        target.update_tags(**(tags or {}))
        sink = _Sink(target, path)
        yield (lambda row, values: sink(row, _bytes(values))) if as_bytes else sink
        sink.finish()


def write_classes(
    path: AnyPath,
    grid: Grid,
    legend: Legend,
    strips: Iterable[tuple[int, npt.NDArray[np.uint8]]],
    *,
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a class raster from strips (row, uint8 (rows, grid.width)); see `class_writer`."""
    with class_writer(path, grid, legend, overwrite=overwrite, tags=tags) as put:
        for row, values in strips:
            put(row, values[np.newaxis])


def write_bands(
    path: AnyPath,
    grid: Grid,
    names: Sequence[str],
    strips: Iterable[tuple[int, npt.NDArray[np.float32]]],
    *,
    dtype: Literal["float32", "uint8"] = "float32",
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write bands from strips (row, float32 (bands, rows, grid.width)); see `band_writer`."""
    with band_writer(path, grid, names, dtype=dtype, overwrite=overwrite, tags=tags) as put:
        for row, values in strips:
            put(row, values)


def crop(path: AnyPath, window: Window, target: AnyPath) -> None:
    """Copy a window of a raster, with its place, bands, nodata and mask, to a new GeoTIFF.

    Raises:
        RasterError: `path` is no raster, or is damaged there.
        OutputError: the target cannot be written.

    """
    with open_raster(path) as dataset:
        grid = grid_of(dataset)
        inside = window.intersection(grid.height, grid.width)
        place = Grid(inside.height, inside.width, grid.transform @ Affine.translation(inside.col, inside.row), grid.crs)
        profile = {"count": dataset.count, "dtype": dataset.dtypes[0], "nodata": dataset.nodata}
        pixels, valid = read_window(dataset, inside, bands=dataset.indexes)
        # without a nodata value an alpha band or a mask says where there is data
        mask = None if dataset.nodata is not None or valid.all() else valid
    with replacing(target) as fresh, _creating(fresh, target, place, profile) as out:
        sink = _Sink(out, target)
        sink(0, pixels)
        sink.finish()
        if mask is not None:
            out.write_mask(mask)


def class_names(dataset: DatasetReader) -> dict[int, str]:
    """Read the names of the values of an open class raster: category names, else the legend tag, else none."""
    sidecar = Path(dataset.name + ".aux.xml")
    if sidecar.is_file():
        try:
            root = ElementTree.parse(sidecar).getroot()  # noqa: S314 - expat refuses entity bombs by itself
            found = root.findall("PAMRasterBand[@band='1']/CategoryNames/Category")
        except ElementTree.ParseError as error:
            raise LegendError(f"cannot read the class names in {sidecar}: {error}; delete it or mend it") from error
        names = {value: (category.text or "").strip() for value, category in enumerate(found)}
        if any(names.values()):
            return {value: name for value, name in names.items() if name}
    tag = dataset.tags().get(LEGEND_TAG)
    if tag is None:
        return {}
    try:
        legend = Legend.from_dict(json.loads(tag))
    except json.JSONDecodeError as error:
        raise LegendError(f"cannot read the tag {LEGEND_TAG} of {dataset.name}: {error}") from error
    return dict(zip(legend.values, legend.names, strict=True))


def _bytes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    known = np.isfinite(values)
    shares = np.clip(np.where(known, values, 0), 0, 1)
    return np.where(known, np.rint(BYTE_STEPS * shares), 255).astype(np.uint8)


@contextmanager
def _creating(fresh: Path, path: AnyPath, grid: Grid, profile: Mapping[str, Any]) -> Iterator[DatasetWriter]:
    """Create the GeoTIFF `fresh`, to become `path`."""
    with opening():
        try:
            target = rasterio.open(
                fresh,
                "w",
                driver="GTiff",
                height=grid.height,
                width=grid.width,
                crs=grid.crs,
                transform=grid.transform,
                compress="deflate",
                bigtiff="if_safer",
                interleave="band",
                **_blocks(grid),
                **profile,
            )
        except (RasterioError, OSError) as error:
            raise OutputError(_refusal(path, error)) from error
    with target:
        yield target
    if not _whole(fresh):
        raise OutputError(f"cannot write {path}: the last of it did not reach the disk; is it full?")


def _whole(fresh: Path) -> bool:
    """Whether every block lies inside the closed file: closing flushes what is cached and keeps errors to itself."""
    size = fresh.stat().st_size
    try:
        with open_raster(fresh) as dataset:
            for band in dataset.indexes:
                for (down, across), _ in dataset.block_windows(band):
                    place = [dataset.get_tag_item(f"BLOCK_{w}_{across}_{down}", "TIFF", bidx=band) for w in _PLACE]
                    if None in place or sum(map(int, place)) > size:
                        return False
    except RasterError:
        return False
    return True


def _blocks(grid: Grid) -> dict[str, Any]:
    """Tiles, or strips in a raster smaller than a tile; both have blocks of min(BLOCK, grid.height) rows."""
    if grid.height >= BLOCK and grid.width >= BLOCK:
        return {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    return {"tiled": False, "blockysize": min(BLOCK, grid.height)}


class _Sink:
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
            raise OutputError(_refusal(self.path, error)) from error


def _refusal(path: AnyPath, error: Exception) -> str:
    return f"cannot write {path}: {' '.join(str(error).split())}"


def _write_categories(path: Path, names: Mapping[int, str]) -> None:
    """Add category names to the sidecar, which GDAL may have begun with a CRS that GeoTIFF has no words for."""
    sidecar = path.with_name(path.name + ".aux.xml")
    root = ElementTree.Element("PAMDataset")
    if sidecar.exists():
        root = ElementTree.parse(sidecar).getroot()  # noqa: S314 - GDAL has just written it
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        ElementTree.SubElement(categories, "Category").text = names.get(value, "")
    ElementTree.indent(root)
    try:
        ElementTree.ElementTree(root).write(sidecar, encoding="utf-8", xml_declaration=False)
    except OSError as error:
        raise OutputError(_refusal(path.name, error)) from error
