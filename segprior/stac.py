"""STAC: items as input, and items for results (SpatioTemporal Asset Catalog 1.1).

    is_item      whether a name is that of an item, not of a raster
    asset_href   where an asset of an item lies, for GDAL to open
    check_stac   whether pystac is there
    write_item   an item beside a class raster, with all that came of the same run as its assets

An item says when its imagery was taken, so that of a result takes the time of the item it derives from, else the
TIFFTAG_DATETIME of the mask's image, else the time of the mask's own making. pystac is needed for these alone:
`pip install "segprior[stac]"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import shapely.affinity
from rasterio.crs import CRS
from rasterio.warp import transform_geom

from segprior.errors import RasterError, SettingError
from segprior.raster import AnyPath, Grid, describe, grid_of, open_raster
from segprior.sidecar import LEGEND_TAG, class_names
from segprior.target import replacing

if TYPE_CHECKING:
    import pystac

_EDGE = 8
"""Pieces of an edge of the footprint, which may bend in degrees."""

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)


def is_item(name: AnyPath) -> bool:
    """Say whether a name is that of a STAC item: it ends in .json."""
    return str(name).lower().endswith(".json")


def asset_href(item_path: AnyPath, asset: str | None = None) -> str:
    """Tell where an asset of the item lies: `asset` is its key, None if there is but one raster among them.

    Raises RasterError for no item, an unknown asset or several.
    """
    item = _read(item_path)
    rasters = {key for key, found in item.assets.items() if "image" in (found.media_type or "image")}
    known = ", ".join(item.assets) or "none"
    if asset is None and len(rasters) != 1:
        raise RasterError(f"wanted the name of one asset of {item_path}, its assets are {known}; give --asset NAME")
    key = asset if asset is not None else rasters.pop()
    if key not in item.assets:
        raise RasterError(f"wanted the asset {key} of {item_path}, its assets are {known}")
    href = item.assets[key].get_absolute_href()
    if href is None:
        raise RasterError(f"wanted a place for the asset {key} of {item_path}, its href is relative to nothing")
    return href


def write_item(
    mask: AnyPath,
    *,
    others: Mapping[str, AnyPath] | None = None,
    source: AnyPath | None = None,
    overwrite: bool = False,
) -> Path:
    """Write MASK.json, an item for a class raster that `segment` has written.

    others: more rasters of the same run by name (probabilities, confidence, entropy, novelty, ...). source: the item it
    derives from. Raises RasterError for a mask without a place on Earth, OutputError.
    """
    pystac = _pystac()
    mask, told = Path(mask), None if source is None else _read(source)
    with open_raster(mask) as dataset:
        grid, names, tags = grid_of(dataset), class_names(dataset), dataset.tags()
        colours, nodata = dataset.colormap(1), dataset.nodata
    made = datetime.fromtimestamp(mask.stat().st_mtime, UTC)
    item = pystac.Item(
        id=mask.stem,
        geometry=(outline := _footprint(grid, mask)),
        bbox=_box(outline),
        datetime=_taken(told, tags) or made,
        properties={
            "created": made.isoformat().replace("+00:00", "Z"),
            **_projection(grid),
            "processing:software": {"segprior": tags.get("SEGPRIOR_VERSION", "unknown")},
            **{name.lower().replace("_", ":", 1): text for name, text in tags.items() if _is_ours(name)},
        },
        stac_extensions=list(EXTENSIONS),
    )
    classes = [
        {"value": value, "name": name, "color_hint": "{:02X}{:02X}{:02X}".format(*colours[value])}
        for value, name in sorted(names.items())
    ]
    target = mask.with_suffix(".json")
    kind = pystac.MediaType.GEOTIFF
    fields = {"data_type": "uint8", "nodata": _plain(nodata), "classification:classes": classes}
    item.add_asset(
        "classes", pystac.Asset(mask.name, title="classes", media_type=kind, roles=["data"], extra_fields=fields)
    )
    for name, path in (others or {}).items():
        info = describe(path)
        more: dict[str, Any] = {"data_type": info.dtypes[0], "nodata": _plain(info.nodata[0])}
        if len(info.dtypes) > 1:
            more["bands"] = [{"name": band} for band in info.descriptions]
        place = _relative(Path(path), target.parent)
        item.add_asset(name, pystac.Asset(place, title=name, media_type=kind, roles=["metadata"], extra_fields=more))
    if told is not None:
        item.add_link(pystac.Link("derived_from", told.self_href or str(source), media_type=pystac.MediaType.GEOJSON))
    with replacing(target, overwrite=overwrite) as fresh:
        pystac.StacIO.default().save_json(str(fresh), item.to_dict(include_self_link=False))
    return target


def _is_ours(name: str) -> bool:
    return name.startswith("SEGPRIOR_") and name not in (LEGEND_TAG, "SEGPRIOR_VERSION")


def _plain(nodata: float | None) -> float | str | None:
    """JSON has no NaN; STAC spells it."""
    return "nan" if nodata is not None and np.isnan(nodata) else nodata


def _relative(path: Path, folder: Path) -> str:
    return path.name if path.parent.resolve() == folder.resolve() else str(path.resolve())


def _projection(grid: Grid) -> dict[str, Any]:
    """Fields of the projection extension; proj:code is null for a CRS without a code."""
    authority = None if grid.crs is None else grid.crs.to_authority()
    wkt = {} if authority is not None or grid.crs is None else {"proj:wkt2": grid.crs.to_wkt()}
    return {
        "proj:code": None if authority is None else ":".join(authority),
        **wkt,
        "proj:shape": [grid.height, grid.width],
        "proj:transform": list(grid.transform)[:6],
    }


def _footprint(grid: Grid, mask: Path) -> dict[str, Any]:
    """Outline of the grid in degrees (RFC 7946), in two parts where it crosses the meridian of 180 degrees."""
    if grid.crs is None or not grid.georeferenced:
        raise RasterError(f"wanted a raster with a place on Earth for a STAC item, {mask} has none")
    box = shapely.segmentize(shapely.box(0, 0, grid.width, grid.height), max(grid.width, grid.height) / _EDGE)
    a, b, c, d, e, f = grid.transform[:6]
    placed = shapely.transform(box, lambda uv: np.column_stack([uv @ [a, b] + c, uv @ [d, e] + f]))
    geometry: dict[str, Any] = transform_geom(grid.crs, CRS.from_epsg(4326), shapely.geometry.mapping(placed))
    outline = shapely.geometry.shape(geometry)
    worlds = [(turn, shapely.box(turn - 180, -90, turn + 180, 90)) for turn in (-360, 0, 360)]
    cut = [shapely.affinity.translate(outline.intersection(world), -turn) for turn, world in worlds]
    parts = [shapely.geometry.polygon.orient(part) for part in shapely.get_parts(shapely.union_all(cut)) if part.area]
    return dict(shapely.geometry.mapping(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)))


def _box(outline: dict[str, Any]) -> list[float]:
    """West, south, east, north in degrees; west is above east where the outline crosses 180 degrees (RFC 7946, 5.2)."""
    bounds = np.array([part.bounds for part in shapely.get_parts(shapely.geometry.shape(outline))])
    west, south, east, north = bounds.T
    inner = west[west > -180].min(initial=180), east[east < 180].max(initial=-180)
    ends = inner if len(bounds) > 1 and inner[0] > inner[1] else (west.min(), east.max())
    return [float(end) for end in (ends[0], south.min(), ends[1], north.max())]


def _taken(item: pystac.Item | None, tags: Mapping[str, str]) -> datetime | None:
    """When the imagery was taken, if that is known."""
    if item is not None:
        return item.datetime or item.common_metadata.start_datetime
    text = tags.get("TIFFTAG_DATETIME", "")
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _read(path: AnyPath) -> pystac.Item:
    module = _pystac()
    try:
        found = module.Item.from_file(str(path))
    except (
        module.STACError,
        module.STACTypeError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise RasterError(f"wanted a STAC item, {path} is none: {' '.join(str(error).split())}") from error
    item: pystac.Item = found
    return item


def check_stac() -> None:
    """Raise SettingError unless items can be read and written here."""
    _pystac()


def _pystac() -> Any:
    try:
        import pystac  # noqa: PLC0415  # needed for items alone
    except ImportError as error:
        raise SettingError('STAC items need pystac; pip install "segprior[stac]"') from error
    return pystac
