"""From a class raster to polygons.

A polygon is a set of pixels of one class that touch along sides (4-neighbours); what it surrounds are its holes. Areas
are those on the ellipsoid (geodesic), whatever the projection does to them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pyarrow
import pyogrio
from affine import Affine
from pyarrow import parquet
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from segprior.errors import OutputError, RasterError, SettingError, VectorError
from segprior.fill import filled
from segprior.outline import Outlines, areas, on_map, on_pixel_corners, overlap, regularized, simplified
from segprior.patchwork import Band, bands
from segprior.raster import Grid, bounded_cache, check_grids, grid_of, open_raster
from segprior.sidecar import LEGEND_TAG, class_names
from segprior.target import AnyPath, check_target, replacing
from segprior.trace import Patch, Progress, patches

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf", ".parquet": "GeoParquet"}

_METRES, _PIXELS = 1.0, 2.5
"""Tolerance for right angles where none is told: so many metres, or pixels if that is more."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """How to trace a class raster.

    background: names of classes to leave out. min_area: square metres; smaller polygons are left out, or, with fill,
    dissolve into their largest neighbour, the background included. simplify: metres by which borders may be smoothed,
    neighbours together; 0 keeps the pixels' steps. regularize: names of classes that get right angles (buildings), each
    polygon by itself, so that it may overlap its neighbours; the tolerance is `simplify`, else one metre, or 2.5 pixels
    if that is more. confidence: a raster on the mask's grid in [0, 1]; its mean over each polygon's pixels becomes a
    column.

    All but background and confidence need a georeference.
    """

    background: tuple[str, ...] = ()
    min_area: float = 0.0
    fill: bool = False
    simplify: float = 0.0
    regularize: tuple[str, ...] = ()
    confidence: AnyPath | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_area < math.inf:
            raise SettingError(f"wanted a least area of 0 square metres or more, got {self.min_area}")
        if not 0 <= self.simplify < math.inf:
            raise SettingError(f"wanted to simplify by 0 metres or more, got {self.simplify}")
        if self.fill and self.min_area == 0:
            raise SettingError("wanted a least area (--min-area) below which polygons are filled, got none")
        both = sorted(set(self.regularize) & set(self.background))
        if both:
            raise SettingError(
                f"wanted right angles for classes that are kept, got {', '.join(both)} as background too"
            )

    @property
    def measures(self) -> bool:
        """Whether metres play a part."""
        return self.min_area > 0 or self.simplify > 0 or bool(self.regularize)


def polygons(
    mask_path: AnyPath, tracing: Tracing | None = None, *, progress: Progress | None = None
) -> geopandas.GeoDataFrame:
    """Trace the classes of a class raster: one band of uint8 file values.

    progress: told of rows read and rows in all (twice the raster's with `fill`); the raster is read band by band.

    Returns:
        A frame in the raster's CRS with the columns class (its name, or its value as text where the raster names
        none), value, area_m2 (geodesic; NaN throughout for a raster without a georeference), confidence where asked for
        (mean over the polygon's pixels), iou where right angles are (of a polygon that has them with its pixels; 1 for
        others), and geometry, valid polygons ordered by value.

    Raises:
        RasterError: no raster, a damaged one, or a confidence on another grid.
        VectorError: not a class raster, an unknown class, metres without a georeference.
        LegendError: the class names in the file are malformed.

    """
    tracing = Tracing() if tracing is None else tracing
    with ExitStack() as stack:
        stack.enter_context(bounded_cache())
        dataset = stack.enter_context(open_raster(mask_path))
        grid, names = grid_of(dataset), class_names(dataset)
        _check(dataset, grid, tracing)
        values = {name: _values_of(wanted, names, dataset.name) for name, wanted in _wanted(tracing).items()}
        sure = None if tracing.confidence is None else stack.enter_context(open_raster(tracing.confidence))
        if sure is not None:
            _check_confidence(sure, dataset.name, grid)
        found = list(_patches(dataset, sure, grid, tracing, dropped=values["background"], progress=progress))
    frame = geopandas.GeoDataFrame(
        {
            "class": np.array([names.get(patch.value, str(patch.value)) for patch in found], dtype=object),
            "value": np.array([patch.value for patch in found], np.uint8),
            "area_m2": np.nan,
            "confidence": np.array([patch.confidence for patch in found], np.float64),
            "iou": 1.0,
        },
        geometry=[patch.outline for patch in found],
    )
    if tracing.min_area > 0 and not tracing.fill:
        large = areas(on_map(_outlines(frame), grid.transform), grid) >= tracing.min_area
        frame = frame[large]
    frame = frame.sort_values("value", kind="stable", ignore_index=True)
    frame["geometry"], frame["iou"] = _redrawn(frame, values["regularize"], grid, tracing)
    frame["geometry"] = on_map(_outlines(frame), grid.transform)
    frame["area_m2"] = areas(_outlines(frame), grid)
    unasked = {"confidence": tracing.confidence is None, "iou": not tracing.regularize}
    frame = frame.drop(columns=[name for name, out in unasked.items() if out])
    return frame if grid.crs is None else frame.set_crs(grid.crs.to_wkt())


def export(
    mask_path: AnyPath,
    target: AnyPath,
    tracing: Tracing | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the polygons of a class raster to a file and count them.

    The suffix of `target` says what it is: .gpkg, .geojson (RFC 7946, WGS 84), .fgb or .parquet (GeoParquet).

    Raises:
        OutputError: the target cannot be written.
        VectorError: an unknown suffix, GeoJSON of a raster without a georeference, or as `polygons`.
        RasterError, LegendError: as `polygons`.

    """
    tracing, path = Tracing() if tracing is None else tracing, Path(target)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise VectorError(f"wanted a file ending in {', '.join(DRIVERS)}, got {path.name}")
    sources = (mask_path,) if tracing.confidence is None else (mask_path, tracing.confidence)
    check_target(path, overwrite=overwrite, sources=sources)
    with open_raster(mask_path) as dataset:
        grid = grid_of(dataset)
        tags = {name: text for name, text in dataset.tags().items() if name.startswith("SEGPRIOR_")}
    if driver == "GeoJSON" and not grid.georeferenced:
        raise VectorError(f"GeoJSON is in degrees on Earth and {mask_path} has no georeference; write .gpkg instead")
    frame = polygons(mask_path, tracing, progress=progress)
    if driver == "GeoJSON":
        frame = frame.to_crs(CRS.from_epsg(4326).to_wkt())
    tags.pop(LEGEND_TAG, None)
    with replacing(path, overwrite=overwrite) as fresh:
        try:
            written = _write(frame, fresh, path.stem, driver, tags)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, pyarrow.ArrowException, OSError) as error:
            raise OutputError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        if written != len(frame):
            raise OutputError(f"cannot write {path}: the last of it did not reach the disk; is it full?")
    return len(frame)


def _write(frame: geopandas.GeoDataFrame, fresh: Path, layer: str, driver: str, tags: dict[str, str]) -> int:
    """Write the file and count what can be read back: closing flushes what is cached and keeps errors to itself."""
    if driver == "GeoParquet":
        frame.to_parquet(fresh, index=False, write_covering_bbox=True)
        return int(parquet.read_metadata(fresh).num_rows)
    options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}
    metadata = tags if driver == "GPKG" and tags else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # a raster without CRS has such polygons
        pyogrio.write_dataframe(
            frame,
            fresh,
            layer=layer,
            driver=driver,
            geometry_type="Polygon",
            layer_options=options,
            layer_metadata=metadata,
        )
    return int(pyogrio.read_info(fresh, force_feature_count=True)["features"])


def _wanted(tracing: Tracing) -> dict[str, tuple[str, ...]]:
    return {"background": tracing.background, "regularize": tracing.regularize}


def _check(dataset: DatasetReader, grid: Grid, tracing: Tracing) -> None:
    if dataset.count != 1 or dataset.dtypes[0] != "uint8":
        raise VectorError(
            f"wanted a class raster with one 8-bit band, {dataset.name} has {dataset.count} of {dataset.dtypes[0]}"
        )
    if tracing.measures and not grid.georeferenced:
        raise VectorError(
            f"cannot measure in metres: {dataset.name} has no georeference; "
            "leave least area, simplifying and right angles out"
        )


def _check_confidence(sure: DatasetReader, mask: str, grid: Grid) -> None:
    other, known = grid_of(sure), f"wanted the confidence on the mask's grid, {sure.name} is on another"
    if other.georeferenced != grid.georeferenced or other.crs != grid.crs:
        raise RasterError(f"{known}; segment both at once")
    try:
        check_grids(mask, grid, sure.name, other)
    except RasterError as error:
        raise RasterError(f"{known}; segment both at once") from error
    if sure.count != 1 or "complex" in sure.dtypes[0]:
        raise RasterError(f"wanted one band of confidence, {sure.name} has {sure.count} of {sure.dtypes[0]}")


def _values_of(wanted: Iterable[str], names: dict[int, str], raster: str) -> set[int]:
    unknown = sorted(set(wanted) - set(names.values()))
    if unknown:
        known = ", ".join(names.values()) or "unnamed classes only"
        raise VectorError(f"no class {', '.join(unknown)} in {raster}, which has {known}")
    return {value for value, name in names.items() if name in set(wanted)}


def _patches(
    dataset: DatasetReader,
    sure: DatasetReader | None,
    grid: Grid,
    tracing: Tracing,
    *,
    dropped: set[int],
    progress: Progress | None,
) -> Iterable[Patch]:
    passes: list[int] = []

    def read() -> Iterable[Band]:
        passes.append(1)
        before = (len(passes) - 1) * grid.height
        for band in bands(dataset, confidence=sure):
            yield band
            if progress is not None:
                progress(before + band.end, grid.height * (2 if tracing.fill else 1))

    source = filled(read, grid, min_area=tracing.min_area) if tracing.fill else read()
    return patches(source, height=grid.height, dropped=dropped)


def _redrawn(
    frame: geopandas.GeoDataFrame, regular: set[int], grid: Grid, tracing: Tracing
) -> tuple[Outlines, npt.NDArray[np.float64]]:
    """Simplify, and set right angles, in metres: outlines in pixels, and what those of the latter kept (IoU)."""
    traced, chosen = _outlines(frame), frame["value"].isin(regular).to_numpy()
    if not (tracing.simplify or regular) or grid.res is None:
        return traced, np.ones(len(frame))
    size = Affine.scale(grid.res[1], grid.res[0])
    before = on_map(traced, size)
    outlines = before.copy()
    if tracing.simplify:
        outlines = simplified(on_map(on_pixel_corners(traced), size), tracing.simplify)
    outlines[chosen] = regularized(outlines[chosen], tracing.simplify or max(_METRES, _PIXELS * max(grid.res)))
    share = np.ones(len(frame))
    share[chosen] = overlap(before[chosen], outlines[chosen])
    return on_map(outlines, ~size), share


def _outlines(frame: geopandas.GeoDataFrame) -> Outlines:
    return np.asarray(frame.geometry, dtype=object)
