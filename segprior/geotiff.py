"""Writing GeoTIFFs strip by strip: class rasters with their legend, and stacks of named bands.

Strips are whole rows (row, values), top to bottom and without gaps, of any height. They are regrouped to the height of
the file's blocks, since a compressed block that is written twice leaves its first version in the file as waste. Files
get overviews: of classes by majority, of shares by mean. A cloud-optimised GeoTIFF is made from the finished file by
GDAL's own COG driver, which works on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.shutil import copy as copy_raster

from segprior.errors import OutputError, RasterError
from segprior.legend import Legend
from segprior.raster import Grid, grid_of, open_raster, opening, read_window
from segprior.rows import BLOCK, Pixels, RowSink, Sink, refusal
from segprior.sidecar import LEGEND_TAG, write_names
from segprior.target import AnyPath, Together, replacing
from segprior.windows import Window

_PLACE = ("OFFSET", "SIZE")  # GDAL's names for where a block lies in the file

BYTE_STEPS = 254
"""A share p in [0, 1] is the byte round(254 p); 255 is nodata."""


@contextmanager
def class_writer(
    path: AnyPath,
    grid: Grid,
    legend: Legend,
    *,
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
    cog: bool = False,
    together: Together | None = None,
) -> Iterator[Sink]:
    """Write a class raster: uint8 file values, nodata as the legend says, colour table, class names and counts.

    Args:
        path: the file; it appears when the block ends well, and not at all when anything goes wrong.
        grid: outline of the raster.
        legend: names and colours of the values.
        overwrite: whether an existing file may be replaced.
        tags: more metadata items to write.
        cog: make it a cloud-optimised GeoTIFF.
        together: files that it appears with, see `replacing`.

    Yields:
        what takes the strips: row, uint8 (1, rows, grid.width) of file values.

    Raises:
        OutputError: the file cannot be written, or the strips do not cover the grid row after row.

    """
    profile = {"count": 1, "dtype": "uint8", "nodata": legend.nodata}
    counts = np.zeros(256, np.int64)

    def counted(row: int, values: Pixels) -> None:
        sink(row, values)
        np.add(counts, np.bincount(values.ravel(), minlength=256), out=counts)

    with replacing(path, overwrite=overwrite, together=together) as fresh:
        with _creating(fresh, path, grid, profile) as target:
            target.write_colormap(1, legend.colormap())
            target.update_tags(**{**(tags or {}), LEGEND_TAG: json.dumps(legend.to_dict())})
            sink = RowSink(target, path)
            yield counted
            sink.finish()
        _finish(fresh, path, Resampling.mode, cog=cog)
        write_names(fresh, legend, dict(enumerate(counts.tolist())))


@contextmanager
def band_writer(
    path: AnyPath,
    grid: Grid,
    names: Sequence[str],
    *,
    dtype: Literal["float32", "uint8"] = "float32",
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
    cog: bool = False,
    together: Together | None = None,
) -> Iterator[Sink]:
    """Write one band per name: shares in [0, 1] such as probabilities, NaN where there is no data.

    Args:
        path: the file; it appears when the block ends well, and not at all when anything goes wrong.
        grid: outline of the raster.
        names: band descriptions.
        dtype: "float32" with nodata NaN, or "uint8" with the scale 1/254 and nodata 255.
        overwrite: whether an existing file may be replaced.
        tags: metadata items to write.
        cog: make it a cloud-optimised GeoTIFF.
        together: files that it appears with, see `replacing`.

    Yields:
        what takes the strips: row, float32 (bands, rows, grid.width).

    Raises:
        OutputError: the file cannot be written, or the strips do not cover the grid row after row.

    """
    as_bytes = dtype == "uint8"
    profile = {"count": len(names), "dtype": dtype, "nodata": 255 if as_bytes else np.nan}
    profile |= {} if as_bytes else {"predictor": 3}
    with replacing(path, overwrite=overwrite, together=together) as fresh:
        with _creating(fresh, path, grid, profile) as target:
            target.descriptions = tuple(names)
            target.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(names) - 1)
            target.scales = [1 / BYTE_STEPS if as_bytes else 1.0] * len(names)
            target.update_tags(**(tags or {}))
            sink = RowSink(target, path)
            yield (lambda row, values: sink(row, _bytes(values))) if as_bytes else sink
            sink.finish()
        _finish(fresh, path, Resampling.average, cog=cog)


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
        sink = RowSink(out, target)
        sink(0, pixels)
        sink.finish()
        if mask is not None:
            out.write_mask(mask)


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
            raise OutputError(refusal(path, error)) from error
    with target:
        yield target
    if not _whole(fresh):
        raise OutputError(f"cannot write {path}: the last of it did not reach the disk; is it full?")


def _finish(fresh: Path, path: AnyPath, method: Resampling, *, cog: bool) -> None:
    """Add overviews to the finished file, or make a cloud-optimised one of it, which has them too."""
    try:
        if cog:
            plain = fresh.with_name(f"plain-{fresh.name}")
            fresh.rename(plain)
            with rasterio.open(plain) as dataset:
                predictor = "FLOATING_POINT" if dataset.dtypes[0] == "float32" else "STANDARD"
            options = {"compress": "deflate", "predictor": predictor, "bigtiff": "if_safer"}
            copy_raster(plain, fresh, driver="COG", blocksize=2 * BLOCK, overview_resampling=method.name, **options)
            plain.unlink()
        else:
            with opening():
                target = rasterio.open(fresh, "r+")
            with target:
                factors = [2**n for n in range(1, 16) if max(target.shape) > BLOCK * 2 ** (n - 1)]
                if factors:
                    target.build_overviews(factors, method)
    except (RasterioError, OSError) as error:
        raise OutputError(refusal(path, error)) from error


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
