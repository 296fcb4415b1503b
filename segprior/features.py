"""Vector files as features on a raster: read them, and find their outlines in its pixels."""

from __future__ import annotations

import warnings
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pyproj.exceptions import ProjError

from segprior.errors import VectorError
from segprior.raster import Grid


def read_features(path: str, what: str) -> geopandas.GeoDataFrame:
    """Read a vector file of `what`. Raises VectorError if there is none, or it has no geometries or no features."""
    if not Path(path).exists() and "://" not in path and not path.startswith("/vsi"):
        raise VectorError(f"wanted a vector file of {what}, there is no file {path}")
    try:
        with warnings.catch_warnings():  # GDAL warns of what shapely then refuses
            warnings.filterwarnings("ignore", message="Non closed ring", category=RuntimeWarning)
            layers = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
            if len(layers) > 1:
                raise VectorError(
                    f"wanted one layer of {what}, {path} has {', '.join(layers)}; take one out (ogr2ogr OUT.gpkg "
                    f"{path} {layers[0]})"
                )
            frame = pyogrio.read_dataframe(path)
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        shapely.errors.ShapelyError,  # geometries that are none, such as rings that are not closed
        ValueError,
    ) as error:
        raise VectorError(f"wanted a vector file, got {path}: {' '.join(str(error).split())}") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise VectorError(f"wanted features with geometries, {path} has none")
    return frame


def outlines_in_pixels(frame: geopandas.GeoDataFrame, grid: Grid, *, path: str, raster: str) -> npt.NDArray[np.object_]:
    """Geometries in pixels of the grid, x to the right and y down. Raises VectorError where either has no CRS."""
    if grid.crs is None or not grid.georeferenced:
        raise VectorError(f"cannot place {path}: the raster {raster} has no georeference")
    if frame.crs is None:
        raise VectorError(f"cannot place {path}: it has no CRS; give it one (ogr2ogr -a_srs)")
    try:
        onto = frame.geometry.to_crs(grid.crs.to_wkt())
    except ProjError as error:
        raise VectorError(f"cannot place {path} on {raster}: {' '.join(str(error).split())}") from error
    a, b, c, d, e, f = (~grid.transform)[:6]

    def to_pixels(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = xy.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    found: npt.NDArray[np.object_] = shapely.transform(np.asarray(onto, dtype=object), to_pixels)
    return found
