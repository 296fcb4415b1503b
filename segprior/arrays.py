"""Rasters that are in memory: rioxarray's DataArrays, and datasets that rasterio has open.

    path_of     the name under which GDAL opens an open dataset again
    is_array    whether something is a DataArray
    stored      a DataArray as a file, for as long as it is needed
    class_array a class raster as a DataArray with the coordinates of another

A DataArray goes to a temporary file first, piece by piece if it is lazy, so that one too large for memory can be
segmented as any other raster. rioxarray is needed for these alone: `pip install "segprior[xarray]"`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from segprior.errors import RasterError
from segprior.legend import Legend
from segprior.raster import AnyPath

if TYPE_CHECKING:
    import xarray

ROWS = 1024
"""Rows of a mask that are written at once."""


def path_of(image: AnyPath | DatasetReader) -> AnyPath:
    """Name the file behind an open dataset, or the path itself. Raises RasterError for one that has no file."""
    if isinstance(image, str | os.PathLike):
        return image
    if isinstance(image, WarpedVRT) or not image.name or image.mode != "r":
        raise RasterError(
            f"wanted a dataset that can be opened again by its name, got {type(image).__name__} {image.name}; "
            "write it to a file first (a WarpedVRT: rasterio.shutil.copy(it, 'name.vrt', driver='VRT'))"
        )
    return str(image.name)


def is_array(image: object) -> TypeGuard[xarray.DataArray]:
    """Say whether `image` is an xarray.DataArray, without importing xarray."""
    homes = ((kind.__module__.split(".")[0], kind.__name__) for kind in type(image).__mro__)
    return ("xarray", "DataArray") in homes


@contextmanager
def stored(image: xarray.DataArray) -> Iterator[Path]:
    """Write a DataArray (band, y, x) or (y, x) to a GeoTIFF in a folder of its own; gives its path.

    Raises RasterError if it has other dimensions, or rioxarray is missing.
    """
    raster = _raster(image)
    from rioxarray.exceptions import RioXarrayError  # noqa: PLC0415  # `_raster` has found it

    with TemporaryDirectory(prefix="segprior-") as folder:
        path = Path(folder) / "image.tif"
        masked = _loses_gaps(raster)
        try:
            (raster.fillna(0) if masked else raster).rio.to_raster(path, tiled=True, bigtiff="if_safer")
            if masked:
                _write_gaps(path, raster)
        except (RioXarrayError, RasterioError, TypeError, ValueError) as error:
            raise RasterError(f"cannot take the DataArray for a raster: {' '.join(str(error).split())}") from error
        yield path


def class_array(mask: Path, like: xarray.DataArray, legend: Legend) -> xarray.DataArray:
    """Read a class raster as a DataArray (y, x) of file values, with the coordinates and CRS of `like`.

    Its attributes flag_values and flag_meanings name the classes, as the CF conventions (3.5) have it.
    """
    import rioxarray  # noqa: PLC0415  # `stored` has found it

    opened: Any = rioxarray.open_rasterio(mask)
    with opened:
        classes = opened.load().squeeze("band", drop=True)
    vertical, across = like.rio.y_dim, like.rio.x_dim
    classes = classes.rename({"y": vertical, "x": across}).rename("classes")
    known = {name: like.coords[name] for name in (vertical, across) if name in like.coords}
    told = {"long_name": "class", "flag_values": list(legend.values), "flag_meanings": " ".join(legend.names)}
    kept = {name: value for name, value in classes.attrs.items() if name.startswith("SEGPRIOR_")}
    array: xarray.DataArray = classes.assign_coords(known).assign_attrs(told)
    array.attrs = {**told, **kept, "_FillValue": legend.nodata}
    return array


def _loses_gaps(raster: Any) -> bool:
    """Say whether an array that may hold NaN will be written as integers, as which there is no NaN.

    So is what `rioxarray.open_rasterio(..., masked=True)` gives of 8-bit files; clipped or padded it has NaN. An
    encoding that names a value for what is missing looks after itself.
    """
    kind = raster.encoding.get("rasterio_dtype") or raster.encoding.get("dtype")
    whole = raster.dtype.kind == "f" and kind is not None and np.dtype(kind).kind in "iu"
    return whole and raster.rio.encoded_nodata is None


def _write_gaps(path: Path, raster: Any) -> None:
    """Say in the mask of a file where one of the bands of an array is NaN."""
    with rasterio.open(path, "r+") as dataset:
        for first in range(0, dataset.height, ROWS):
            part = np.asarray(raster.isel(y=slice(first, first + ROWS)))
            known = np.isfinite(part.reshape(-1, *part.shape[-2:])).all(axis=0)
            dataset.write_mask(known, window=Window(0, first, dataset.width, len(known)))


def _raster(image: xarray.DataArray) -> Any:
    try:
        import rioxarray  # noqa: F401, PLC0415  # it adds .rio
    except ImportError as error:
        raise RasterError('a DataArray needs rioxarray; pip install "segprior[xarray]"') from error
    sides = tuple(map(str, image.dims))
    if len(sides) not in (2, 3):
        raise RasterError(f"wanted a DataArray with the dimensions (band, y, x), got ({', '.join(sides)})")
    from rioxarray.exceptions import RioXarrayError  # noqa: PLC0415  # needed for arrays alone

    try:
        vertical, across = image.rio.y_dim, image.rio.x_dim
    except RioXarrayError as error:
        raise RasterError(f"wanted a DataArray with the dimensions (band, y, x), got ({', '.join(sides)})") from error
    rest = [name for name in image.dims if name not in (vertical, across)]
    return image.transpose(*rest, vertical, across).rename({vertical: "y", across: "x"})
