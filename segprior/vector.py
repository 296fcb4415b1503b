"""From a class raster to polygons.

A polygon is a set of pixels of one class that touch along sides (4-neighbours); what it surrounds are its holes. Areas
are those on the ellipsoid (geodesic), whatever the projection does to them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from segprior.errors import OutputError, VectorError
from segprior.raster import Grid, grid_of, open_raster
from segprior.sidecar import class_names
from segprior.target import AnyPath, check_target, replacing
from segprior.trace import Progress, patches

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}

_PIECE = 100.0
"""Metres: an edge is cut into pieces of at most about this length before its area is measured.

A straight edge on the map is no geodesic. With a the Earth's radius, a piece of s metres strays from one by at most
s^2 tan(latitude) / (8 a), 0.3 mm at 60 degrees, and the area of a patch D metres wide is wrong by a share of
s^2 tan(latitude) / (12 a D).
"""


def polygons(
    mask_path: AnyPath,
    *,
    background: Collection[str] = (),
    min_area: float = 0.0,
    progress: Progress | None = None,
) -> geopandas.GeoDataFrame:
    """Trace the classes of a class raster.

    Args:
        mask_path: one band of uint8 file values.
        background: names of classes to leave out.
        min_area: square metres; smaller polygons are left out. Needs a georeference.
        progress: told of rows traced and rows in all; the raster is read band by band.

    Returns:
        A frame in the raster's CRS with the columns class (its name, or its value as text where the raster names
        none), value, area_m2 (geodesic; NaN throughout for a raster without a georeference) and geometry, valid
        polygons ordered by value.

    Raises:
        RasterError: no raster, or a damaged one.
        VectorError: not a class raster, an unknown background class, a least area without a georeference.
        LegendError: the class names in the file are malformed.

    """
    if not min_area >= 0:
        raise VectorError(f"wanted a least area of 0 square metres or more, got {min_area}")
    with open_raster(mask_path) as dataset:
        grid, names = grid_of(dataset), class_names(dataset)
        dropped = _values_of(background, names, dataset.name)
        classes, traced = _traced(dataset, dropped=dropped, progress=progress)
    if min_area > 0 and not grid.georeferenced:
        raise VectorError(f"cannot measure a least area: {mask_path} has no georeference; leave the least area out")
    frame = geopandas.GeoDataFrame(
        {
            "class": np.array([names.get(value, str(value)) for value in classes], dtype=object),
            "value": classes,
            "area_m2": _areas(traced, grid),
        },
        geometry=traced,
        crs=None if grid.crs is None else grid.crs.to_wkt(),
    )
    frame = frame[~(frame["area_m2"] < min_area)]
    return frame.sort_values("value", kind="stable", ignore_index=True)


def export(
    mask_path: AnyPath,
    target: AnyPath,
    *,
    background: Collection[str] = (),
    min_area: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the polygons of a class raster to a .gpkg, .geojson (RFC 7946, WGS 84) or .fgb file and count them.

    Raises:
        OutputError: the target cannot be written.
        VectorError: an unknown suffix, GeoJSON of a raster without a georeference, or as `polygons`.
        RasterError, LegendError: as `polygons`.

    """
    path = Path(target)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise VectorError(f"wanted a file ending in {', '.join(DRIVERS)}, got {path.name}")
    check_target(path, overwrite=overwrite, sources=(mask_path,))
    frame = polygons(mask_path, background=background, min_area=min_area, progress=progress)
    if driver == "GeoJSON":
        frame = _lonlat(frame, mask_path)
    options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}
    with replacing(path, overwrite=overwrite) as fresh, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # a raster without CRS has such polygons
        try:
            pyogrio.write_dataframe(
                frame, fresh, layer=path.stem, driver=driver, geometry_type="Polygon", layer_options=options
            )
            # Closing flushes what is cached and keeps errors to itself, hence the count.
            written = pyogrio.read_info(fresh, force_feature_count=True)["features"]
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError) as error:
            raise OutputError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        if written != len(frame):
            raise OutputError(f"cannot write {path}: the last of it did not reach the disk; is it full?")
    return len(frame)


def _values_of(background: Collection[str], names: dict[int, str], raster: str) -> set[int]:
    unknown = sorted(set(background) - set(names.values()))
    if unknown:
        known = ", ".join(names.values()) or "unnamed classes only"
        raise VectorError(f"no class {', '.join(unknown)} in {raster}, which has {known}")
    return {value for value, name in names.items() if name in background}


def _traced(
    dataset: DatasetReader, *, dropped: set[int], progress: Progress | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.object_]]:
    """Value of every patch of one class, and its polygon on the map."""
    if dataset.count != 1 or dataset.dtypes[0] != "uint8":
        raise VectorError(
            f"wanted a class raster with one 8-bit band, {dataset.name} has {dataset.count} of {dataset.dtypes[0]}"
        )
    found = list(patches(dataset, dropped=dropped, progress=progress))
    outlines = np.empty(len(found), object)
    outlines[:] = [patch.outline for patch in found]
    a, b, c, d, e, f = dataset.transform[:6]

    def to_map(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = xy.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    return np.array([patch.value for patch in found], np.uint8), shapely.transform(outlines, to_map)


def _areas(traced: npt.NDArray[np.object_], grid: Grid) -> npt.NDArray[np.float64]:
    """Square metres on the ellipsoid; NaN without a georeference."""
    res, earth = grid.res, grid.geodesy()
    if res is None or earth is None:
        return np.full(len(traced), np.nan)
    to_lonlat, geod = earth
    a, b, _, d, e, _ = grid.transform[:6]
    units_per_metre = min(math.hypot(b, e) / res[0], math.hypot(a, d) / res[1])
    pieces = shapely.segmentize(traced, _PIECE * units_per_metre)
    turned = shapely.transform(pieces, lambda xy: np.column_stack(to_lonlat.transform(xy[:, 0], xy[:, 1])))

    def enclosed(ring: shapely.LinearRing) -> float:
        lon, lat = shapely.get_coordinates(ring).T
        return abs(float(geod.polygon_area_perimeter(lon, lat)[0]))

    return np.array([enclosed(p.exterior) - sum(map(enclosed, p.interiors)) for p in turned], np.float64)


def _lonlat(frame: geopandas.GeoDataFrame, mask_path: AnyPath) -> geopandas.GeoDataFrame:
    if frame.crs is None or frame["area_m2"].isna().any():
        raise VectorError(f"GeoJSON is in degrees on Earth and {mask_path} has no georeference; write .gpkg instead")
    return frame.to_crs(CRS.from_epsg(4326).to_wkt())
