"""What stands beside a class raster: the names of its classes, where GIS programs look for them.

TIFF has a place for a colour table but none for class names. They go where GDAL keeps them, into the sidecar
NAME.tif.aux.xml: as category names, and as a raster attribute table with value, name, colour and pixel count of every
class. As JSON they also stand in the tag SEGPRIOR_LEGEND, which survives when the sidecar is lost. NAME.qml is the
style that QGIS loads with a raster of that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from rasterio.io import DatasetReader

from segprior.errors import LegendError, OutputError
from segprior.legend import Legend

LEGEND_TAG = "SEGPRIOR_LEGEND"

# name, type (0 integer, 2 text) and usage of the columns, as GDAL numbers them (GDALRATFieldType, GDALRATFieldUsage)
_COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Count", 0, 1), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))


def class_names(dataset: DatasetReader) -> dict[int, str]:
    """Read the names of the values of an open class raster: category names, else the legend tag, else none."""
    sidecar = Path(dataset.name + ".aux.xml")
    if sidecar.is_file():
        try:
            root = ElementTree.parse(sidecar).getroot()  # noqa: S314  # expat refuses entity bombs by itself
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


def write_names(raster: Path, legend: Legend, counts: Mapping[int, int]) -> None:
    """Add names and attribute table to the sidecar, which GDAL may have begun with a CRS that GeoTIFF cannot say.

    counts: pixels of each value. Raises OutputError.
    """
    sidecar = raster.with_name(raster.name + ".aux.xml")
    root = ElementTree.Element("PAMDataset")
    if sidecar.exists():
        root = ElementTree.parse(sidecar).getroot()  # noqa: S314  # GDAL has just written it
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    names = dict(zip(legend.values, legend.names, strict=True))
    for value in range(max(names) + 1):
        ElementTree.SubElement(categories, "Category").text = names.get(value, "")
    band.append(_attribute_table(legend, counts))
    ElementTree.indent(root)
    try:
        ElementTree.ElementTree(root).write(sidecar, encoding="utf-8", xml_declaration=False)
    except OSError as error:
        raise OutputError(f"cannot write {sidecar.name}: {error.strerror}") from error


def _attribute_table(legend: Legend, counts: Mapping[int, int]) -> ElementTree.Element:
    table = ElementTree.Element("GDALRasterAttributeTable", tableType="thematic")
    for index, column in enumerate(_COLUMNS):
        field = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in zip(("Name", "Type", "Usage"), column, strict=True):
            ElementTree.SubElement(field, tag).text = str(text)
    for index, entry in enumerate(sorted(legend.classes, key=lambda c: c.value)):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for value in (entry.value, entry.name, counts.get(entry.value, 0), *entry.color):
            ElementTree.SubElement(row, "F").text = str(value)
    return table


def style_of(legend: Legend) -> str:
    """Give the QGIS style of a class raster: one named colour per class."""
    root = ElementTree.Element("qgis", version="3.28.0", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for entry in legend.classes:
        colour = "#{:02x}{:02x}{:02x}".format(*entry.color)
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(entry.value), color=colour, alpha="255", label=entry.name
        )
    ElementTree.indent(root)
    document = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return document + ElementTree.tostring(root, encoding="unicode") + "\n"
