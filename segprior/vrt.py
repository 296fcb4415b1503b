"""A virtual raster that shows class rasters side by side as one (GDAL's VRT format).

The rasters share CRS and pixel size and lie north up; where they overlap the last one is on top. Their paths are kept
relative to the virtual raster's folder, so that the folder may move.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from segprior.errors import OutputError, RasterError
from segprior.raster import Grid, grid_of, open_raster
from segprior.sidecar import class_names
from segprior.target import AnyPath, replacing

_LIKE = 1e-6  # relative difference of pixel sizes that counts as none


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    grid: Grid
    nodata: float | None
    colours: dict[int, tuple[int, int, int, int]]
    names: dict[int, str]
    block: tuple[int, int]


def mosaic(rasters: Sequence[AnyPath], target: AnyPath, *, overwrite: bool = False) -> None:
    """Write the virtual raster of one class raster or more to `target`, a .vrt file.

    Raises:
        RasterError: a raster cannot be read, has no place, is rotated, or differs in CRS or pixel size.
        OutputError: the target cannot be written or does not end in .vrt.

    """
    check_mosaic(target)
    path = Path(target)
    parts = [_part(Path(raster)) for raster in rasters]
    for part in parts:
        _check(part, parts[0])
    root = _tree(parts, path.parent)
    ElementTree.indent(root)
    with replacing(path, overwrite=overwrite) as fresh:
        fresh.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def check_mosaic(target: AnyPath) -> None:
    """Raise OutputError unless a mosaic may be called so: it ends in .vrt."""
    if Path(target).suffix.lower() != ".vrt":
        raise OutputError(f"wanted a mosaic ending in .vrt, got {Path(target).name}")


def _part(path: Path) -> _Part:
    with open_raster(path) as dataset:
        try:
            colours = dict(dataset.colormap(1))
        except ValueError:  # it has none
            colours = {}
        names, block = class_names(dataset), dataset.block_shapes[0]
        return _Part(path, grid_of(dataset), dataset.nodata, colours, names, block)


def _check(part: _Part, first: _Part) -> None:
    grid, other = part.grid, first.grid
    size = (grid.transform.a, grid.transform.e)
    if not grid.georeferenced or grid.transform.b or grid.transform.d:
        raise RasterError(
            f"cannot put {part.path} into a mosaic: it has no place on Earth, or is rotated; warp it first"
        )
    if grid.crs != other.crs or any(
        abs(a - b) > _LIKE * abs(b) for a, b in zip(size, (other.transform.a, other.transform.e), strict=True)
    ):
        raise RasterError(
            f"cannot put {part.path} into a mosaic with {first.path}: CRS or pixel size differ; warp one to the other's"
        )


def _tree(parts: Sequence[_Part], folder: Path) -> ElementTree.Element:
    first = parts[0].grid.transform
    ends = [(p.grid.transform.c, p.grid.transform.f, p.grid) for p in parts]
    left, right = min(x for x, _, _ in ends), max(x + g.width * first.a for x, _, g in ends)
    edges = [y for _, top, g in ends for y in (top, top + g.height * first.e)]
    top, bottom = (max(edges), min(edges)) if first.e < 0 else (min(edges), max(edges))
    width, height = round((right - left) / first.a), round((bottom - top) / first.e)
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    crs = parts[0].grid.crs
    assert crs is not None  # noqa: S101  # they are georeferenced
    ElementTree.SubElement(root, "SRS").text = crs.to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = f"{left!r}, {first.a!r}, 0.0, {top!r}, 0.0, {first.e!r}"
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    if parts[0].nodata is not None:
        ElementTree.SubElement(band, "NoDataValue").text = f"{parts[0].nodata:g}"
    _legend(band, parts[0])
    for part in parts:
        _source(band, part, folder, ((part.grid.transform.c - left) / first.a, (part.grid.transform.f - top) / first.e))
    return root


def _legend(band: ElementTree.Element, part: _Part) -> None:
    ElementTree.SubElement(band, "ColorInterp").text = "Palette"
    if part.names:
        categories = ElementTree.SubElement(band, "CategoryNames")
        for value in range(max(part.names) + 1):
            ElementTree.SubElement(categories, "Category").text = part.names.get(value, "")
    table = ElementTree.SubElement(band, "ColorTable")
    for value in sorted(part.colours):
        fields = dict(zip(("c1", "c2", "c3", "c4"), map(str, part.colours[value]), strict=True))
        ElementTree.SubElement(table, "Entry", fields)


def _source(band: ElementTree.Element, part: _Part, folder: Path, at: tuple[float, float]) -> None:
    source = ElementTree.SubElement(band, "ComplexSource")
    name = ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1")
    name.text = Path(os.path.relpath(part.path.resolve(), folder.resolve())).as_posix()
    ElementTree.SubElement(source, "SourceBand").text = "1"
    size = {"xSize": str(part.grid.width), "ySize": str(part.grid.height)}
    blocks = {"BlockXSize": str(part.block[1]), "BlockYSize": str(part.block[0])}
    shape = {"RasterXSize": size["xSize"], "RasterYSize": size["ySize"], "DataType": "Byte", **blocks}
    ElementTree.SubElement(source, "SourceProperties", shape)
    ElementTree.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    ElementTree.SubElement(source, "DstRect", {"xOff": f"{at[0]:.10g}", "yOff": f"{at[1]:.10g}", **size})
    if part.nodata is not None:
        ElementTree.SubElement(source, "NODATA").text = f"{part.nodata:g}"
