"""Writing GeoTIFFs strip by strip: class rasters with their legend, and stacks of named bands.

Strips are whole rows (row, values), top to bottom and without gaps, of any height. They are regrouped to the height of
the file's blocks, since a compressed block that is written twice leaves its first version in the file as waste.

TIFF has a place for a colour table but none for class names. They go where GDAL keeps them, as category names in the
sidecar NAME.tif.aux.xml, and as JSON in the tag SEGPRIOR_LEGEND, which survives when the sidecar is lost.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter

from segprior.errors import LegendError, OutputError
from segprior.legend import Legend
from segprior.raster import Grid
from segprior.target import AnyPath, replacing

BLOCK = 256
"""Rows and columns of a block."""

LEGEND_TAG = "SEGPRIOR_LEGEND"

BYTE_STEPS = 254
"""A share p in [0, 1] is the byte round(254 p); 255 is nodata."""

Pixels = npt.NDArray[Any]
"""Values of the file's type, (bands, rows, columns)."""


def write_classes(
    path: AnyPath,
    grid: Grid,
    legend: Legend,
    strips: Iterable[tuple[int, npt.NDArray[np.uint8]]],
    *,
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a class raster: uint8 file values, nodata as the legend says, colour table, class names.

    Args:
        path: the file; it appears when all of it is written, and not at all when anything goes wrong.
        grid: outline of the raster.
        legend: names and colours of the values.
        strips: (row, uint8 (rows, grid.width)) of file values.
        overwrite: whether an existing file may be replaced.
        tags: more metadata items to write.

    Raises:
        OutputError: the file cannot be written, or the strips do not cover the grid row after row.

    """
    profile = {"count": 1, "dtype": "uint8", "nodata": legend.nodata}
    with replacing(path, overwrite=overwrite) as fresh:
        with _creating(fresh, path, grid, profile) as target:
            target.write_colormap(1, legend.colormap())
            target.update_tags(**{**(tags or {}), LEGEND_TAG: json.dumps(legend.to_dict())})
            layers = ((row, values[np.newaxis]) for row, values in strips)
            _write(target, path, layers)
        _write_categories(fresh, dict(zip(legend.values, legend.names, strict=True)))


def write_bands(
    path: AnyPath,
    grid: Grid,
    names: tuple[str, ...],
    strips: Iterable[tuple[int, npt.NDArray[np.float32]]],
    *,
    dtype: Literal["float32", "uint8"] = "float32",
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write one band per name: shares in [0, 1] such as probabilities, NaN where there is no data.

    Args:
        path: the file; it appears when all of it is written, and not at all when anything goes wrong.
        grid: outline of the raster.
        names: band descriptions.
        strips: (row, float32 (bands, rows, grid.width)).
        dtype: "float32" with nodata NaN, or "uint8" with the scale 1/254 and nodata 255.
        overwrite: whether an existing file may be replaced.
        tags: metadata items to write.

    Raises:
        OutputError: the file cannot be written, or the strips do not cover the grid row after row.

    """
    as_bytes = dtype == "uint8"
    profile = {"count": len(names), "dtype": dtype, "nodata": 255 if as_bytes else np.nan}
    profile |= {} if as_bytes else {"predictor": 3}
    with replacing(path, overwrite=overwrite) as fresh, _creating(fresh, path, grid, profile) as target:
        target.descriptions = names
        target.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(names) - 1)
        target.scales = [1 / BYTE_STEPS if as_bytes else 1.0] * len(names)
        target.update_tags(**(tags or {}))
        _write(target, path, ((row, _bytes(values)) for row, values in strips) if as_bytes else strips)


def class_names(dataset: DatasetReader) -> dict[int, str]:
    """Read the names of the values of an open class raster: category names, else the legend tag, else none."""
    sidecar = Path(dataset.name + ".aux.xml")
    if sidecar.is_file():
        try:
            found = ElementTree.parse(sidecar).getroot().findall("PAMRasterBand[@band='1']/CategoryNames/Category")  # noqa: S314
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
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


def _blocks(grid: Grid) -> dict[str, Any]:
    """Tiles, or strips in a raster smaller than a tile; both have blocks of min(BLOCK, grid.height) rows."""
    if grid.height >= BLOCK and grid.width >= BLOCK:
        return {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    return {"tiled": False, "blockysize": min(BLOCK, grid.height)}


def _write(target: DatasetWriter, path: AnyPath, strips: Iterable[tuple[int, Pixels]]) -> None:
    for row, values in _regroup(strips, path, height=target.height, width=target.width):
        place = rasterio.windows.Window(0, row, target.width, values.shape[1])
        try:
            target.write(values, window=place)
        except (RasterioError, OSError) as error:
            raise OutputError(_refusal(path, error)) from error


def _regroup(
    strips: Iterable[tuple[int, Pixels]], path: AnyPath, *, height: int, width: int
) -> Iterator[tuple[int, Pixels]]:
    """Cut strips (row, (bands, rows, width)) anew, so that each but the last ends where a block ends."""
    held: list[Pixels] = []
    done = end = 0
    for row, values in strips:
        if row != end or values.shape[-1] != width or row + values.shape[1] > height:
            raise OutputError(
                f"cannot write {path}: wanted rows of {width} columns from row {end} on, "
                f"got {values.shape[1]} rows of {values.shape[-1]} columns from row {row} on"
            )
        held.append(values)
        end += values.shape[1]
        ready = height if end == height else end - end % BLOCK
        if ready > done:
            joined = np.concatenate(held, axis=1)
            yield done, joined[:, : ready - done]
            held, done = [joined[:, ready - done :]], ready
    if done != height:
        raise OutputError(f"cannot write {path}: wanted {height} rows, got {end}")


def _refusal(path: AnyPath, error: Exception) -> str:
    return f"cannot write {path}: {' '.join(str(error).split())}"


def _write_categories(path: Path, names: Mapping[int, str]) -> None:
    """Add category names to the sidecar of band 1, which GDAL may have begun."""
    sidecar = path.with_name(path.name + ".aux.xml")
    root = ElementTree.parse(sidecar).getroot() if sidecar.exists() else ElementTree.Element("PAMDataset")  # noqa: S314
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        ElementTree.SubElement(categories, "Category").text = names.get(value, "")
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(sidecar, encoding="utf-8", xml_declaration=False)
