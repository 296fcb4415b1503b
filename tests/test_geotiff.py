"""GeoTIFFs written: read back by rasterio, by GDAL's own tools, and not there at all when something goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetWriter
from rasters import checkered, write_raster
from rio_cogeo.cogeo import cog_validate

from segprior.errors import LegendError, OutputError
from segprior.geotiff import band_writer, class_writer, write_bands, write_classes
from segprior.legend import Legend, LegendClass
from segprior.raster import Grid, describe, open_raster
from segprior.sidecar import LEGEND_TAG, class_names, style_of

LEGEND = Legend(
    (
        LegendClass("ground & sand", 0, (10, 20, 30)),
        LegendClass("roof", 1, (200, 0, 0)),
        LegendClass("Fluß", 4, (0, 9, 250)),
    )
)
UTM = CRS.from_epsg(32645)
PLACE = Affine(0.3, 0, 350000, 0, -0.3, 3050000)


def classes(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).choice(np.array([0, 1, 4, 255], np.uint8), (height, width))


def cut(values: npt.NDArray[Any], heights: list[int]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    row, turn = 0, 0
    while row < values.shape[-2]:
        height = heights[turn % len(heights)]
        yield row, values[..., row : row + height, :]
        row, turn = row + height, turn + 1


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def read(path: Path) -> npt.NDArray[Any]:
    with open_raster(path) as dataset:
        pixels: npt.NDArray[Any] = dataset.read()
    return pixels


@pytest.mark.parametrize("shape", [(700, 530), (1, 1000), (1000, 1), (1, 1), (255, 600), (256, 256)])
@pytest.mark.parametrize("heights", [[1000], [32], [1, 300, 7], [256]])
def test_classes_come_back(tmp_path: Path, shape: tuple[int, int], heights: list[int]) -> None:
    values = classes(*shape)
    path = tmp_path / "mask.tif"
    grid = Grid(*shape, PLACE, UTM)
    write_classes(path, grid, LEGEND, cut(values, heights), tags={"SEGPRIOR_PRIOR": "buildings"})
    np.testing.assert_array_equal(read(path)[0], values)
    info = describe(path)
    assert info.grid == grid
    assert (info.dtypes, info.nodata, info.compression, info.colorinterp) == (
        ("uint8",),
        (255.0,),
        "deflate",
        ("palette",),
    )
    assert info.blocks[0] == ((256, 256) if min(shape) >= 256 else (min(256, shape[0]), shape[1]))
    with open_raster(path) as dataset:
        table = dataset.colormap(1)
        assert [table[v] for v in (0, 1, 4)] == [(10, 20, 30, 255), (200, 0, 0, 255), (0, 9, 250, 255)]
        assert class_names(dataset) == {0: "ground & sand", 1: "roof", 4: "Fluß"}
        assert dataset.tags()["SEGPRIOR_PRIOR"] == "buildings"
        assert Legend.from_dict(json.loads(dataset.tags()[LEGEND_TAG])) == LEGEND
    assert listing(tmp_path) == ["mask.tif", "mask.tif.aux.xml"]
    found = ElementTree.parse(tmp_path / "mask.tif.aux.xml").getroot().findall("PAMRasterBand/CategoryNames/Category")  # noqa: S314  # ours
    assert [category.text for category in found] == ["ground & sand", "roof", None, None, "Fluß"]


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:2263", "+proj=eqearth", "rotated", "site", None])
def test_the_grid_comes_back(tmp_path: Path, crs: str | None) -> None:
    known = {
        "rotated": (UTM, Affine(0.2, 0.1, 350000, 0.1, -0.2, 3050000)),
        "site": (CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), PLACE),
        None: (None, Affine.identity()),
    }
    system, transform = known.get(crs) or (CRS.from_user_input(crs), PLACE)
    grid = Grid(20, 30, transform, system)
    write_classes(tmp_path / "a.tif", grid, LEGEND, cut(classes(20, 30), [7]))
    again = describe(tmp_path / "a.tif").grid
    assert again.transform.almost_equals(transform)
    assert (again.crs is None) == (system is None)
    if crs not in ("site", None):
        assert again == grid
    with open_raster(tmp_path / "a.tif") as dataset:
        assert class_names(dataset)[1] == "roof"


def test_gdalinfo_sees_names_and_colours(tmp_path: Path) -> None:
    if shutil.which("gdalinfo") is None:
        pytest.skip("gdalinfo is not installed")
    write_classes(tmp_path / "a.tif", Grid(20, 30, PLACE, UTM), LEGEND, cut(classes(20, 30), [7]))
    run = subprocess.run(["gdalinfo", "-json", tmp_path / "a.tif"], capture_output=True, text=True, check=True)
    band = json.loads(run.stdout)["bands"][0]
    assert band["colorTable"]["entries"][1] == [200, 0, 0, 255]
    plain = subprocess.run(["gdalinfo", tmp_path / "a.tif"], capture_output=True, text=True, check=True).stdout
    assert "4: Fluß" in plain
    end = "</GDALRasterAttributeTable>"
    table = plain[plain.index("<GDALRasterAttributeTable") : plain.index(end) + len(end)]
    rows = [[cell.text for cell in row] for row in ElementTree.fromstring(table).iter("Row")]  # noqa: S314  # ours
    count = int((classes(20, 30) == 1).sum())
    assert rows[1] == ["1", "roof", str(count), "200", "0", "0"]


def test_gdal_itself_copies_the_category_names(tmp_path: Path) -> None:
    """GDAL writes category names into a VRT only if it has understood them."""
    write_classes(tmp_path / "a.tif", Grid(20, 30, PLACE, UTM), LEGEND, cut(classes(20, 30), [7]))
    from rasterio.shutil import copy

    copy(str(tmp_path / "a.tif"), str(tmp_path / "a.vrt"), driver="VRT")
    found = ElementTree.parse(tmp_path / "a.vrt").getroot().findall("VRTRasterBand/CategoryNames/Category")  # noqa: S314  # ours
    assert [category.text or "" for category in found] == ["ground & sand", "roof", "", "", "Fluß"]


def test_the_attribute_table_counts_every_class(tmp_path: Path) -> None:
    values = classes(300, 520)
    write_classes(tmp_path / "a.tif", Grid(300, 520, PLACE, UTM), LEGEND, cut(values, [77]))
    table = ElementTree.parse(tmp_path / "a.tif.aux.xml").getroot().find("PAMRasterBand/GDALRasterAttributeTable")  # noqa: S314  # ours
    assert table is not None
    assert [f.findtext("Name") for f in table.iter("FieldDefn")] == ["Value", "Class", "Count", "Red", "Green", "Blue"]
    rows = [[cell.text for cell in row] for row in table.iter("Row")]
    assert [row[:2] + row[3:] for row in rows] == [
        ["0", "ground & sand", "10", "20", "30"],
        ["1", "roof", "200", "0", "0"],
        ["4", "Fluß", "0", "9", "250"],
    ]
    assert [row[2] for row in rows] == [str((values == value).sum()) for value in (0, 1, 4)]


def coarse(path: Path, factor: int) -> npt.NDArray[Any]:
    """The overview of this factor."""
    with rasterio.open(path) as dataset:
        level = dataset.overviews(1).index(factor)
    with rasterio.open(path, OVERVIEW_LEVEL=level) as dataset:
        pixels: npt.NDArray[Any] = dataset.read()
        return pixels


@pytest.mark.parametrize("cog", [False, True])
def test_overviews_are_majorities_and_means(tmp_path: Path, cog: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(np.repeat(rng.choice(np.array([0, 1, 4, 255], np.uint8), (300, 400)), 4, 0), 4, 1)
    grid = Grid(1200, 1600, PLACE, UTM)
    with class_writer(tmp_path / "a.tif", grid, LEGEND, cog=cog) as put:
        put(0, values[None])
    np.testing.assert_array_equal(coarse(tmp_path / "a.tif", 2)[0], values[::2, ::2])
    np.testing.assert_array_equal(coarse(tmp_path / "a.tif", 4)[0], values[::4, ::4])
    shares = rng.random((2, 1200, 1600), dtype=np.float32)
    with band_writer(tmp_path / "p.tif", grid, ("a", "b"), cog=cog) as put:
        put(0, shares)
    np.testing.assert_allclose(
        coarse(tmp_path / "p.tif", 2), shares.reshape(2, 600, 2, 800, 2).mean(axis=(2, 4)), atol=1e-5
    )
    np.testing.assert_array_equal(read(tmp_path / "p.tif"), shares)
    assert listing(tmp_path) == ["a.tif", "a.tif.aux.xml", "p.tif"]


@pytest.mark.parametrize("shape", [(1100, 700), (40, 30), (1, 900)])
def test_cloud_optimised_files_are_valid_and_the_same(tmp_path: Path, shape: tuple[int, int]) -> None:
    """By rio-cogeo's own judgement, and by pixels, colours, names and tags."""
    values, grid = classes(*shape), Grid(*shape, PLACE, UTM)
    shares = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    shares[:, 0, :5] = np.nan
    with class_writer(tmp_path / "a.tif", grid, LEGEND, tags={"K": "v"}, cog=True) as put:
        put(0, values[None])
    for name, kind in (("p.tif", "float32"), ("q.tif", "uint8")):
        with band_writer(tmp_path / name, grid, ("a", "b", "c"), dtype=kind, cog=True) as put:  # type: ignore[arg-type]  # a literal
            put(0, shares)
    for name in ("a.tif", "p.tif", "q.tif"):
        valid, errors, warned = cog_validate(tmp_path / name, strict=True)
        assert (valid, errors, warned) == (True, [], []), name
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], values)
    np.testing.assert_array_equal(read(tmp_path / "p.tif"), shares)
    with open_raster(tmp_path / "a.tif") as dataset:
        assert dataset.colormap(1)[4] == (0, 9, 250, 255)
        assert dataset.nodata == 255
        assert class_names(dataset) == {0: "ground & sand", 1: "roof", 4: "Fluß"}
        assert dataset.tags()["K"] == "v"
        assert Legend.from_dict(json.loads(dataset.tags()[LEGEND_TAG])) == LEGEND
    assert describe(tmp_path / "q.tif").descriptions == ("a", "b", "c")
    assert listing(tmp_path) == ["a.tif", "a.tif.aux.xml", "p.tif", "q.tif"]


def test_the_style_names_and_colours_every_class() -> None:
    root = ElementTree.fromstring(style_of(LEGEND).split("\n", 1)[1])  # noqa: S314  # ours
    renderer = root.find("pipe/rasterrenderer")
    assert renderer is not None
    assert renderer.get("type") == "paletted"
    found = [(e.get("value"), e.get("label"), e.get("color")) for e in renderer.iter("paletteEntry")]
    assert sorted(found) == [("0", "ground & sand", "#0a141e"), ("1", "roof", "#c80000"), ("4", "Fluß", "#0009fa")]


def test_no_block_is_written_twice(tmp_path: Path) -> None:
    """A file written in thin strips is as small as one written at once."""
    values = classes(1000, 700)
    grid = Grid(1000, 700, PLACE, UTM)
    write_classes(tmp_path / "once.tif", grid, LEGEND, cut(values, [1000]))
    write_classes(tmp_path / "thin.tif", grid, LEGEND, cut(values, [13]))
    assert (tmp_path / "thin.tif").stat().st_size <= 1.001 * (tmp_path / "once.tif").stat().st_size


def test_bands_come_back(tmp_path: Path) -> None:
    shares = np.random.default_rng(0).random((3, 600, 300), dtype=np.float32)
    shares[:, :30, 7] = np.nan
    grid = Grid(600, 300, PLACE, UTM)
    write_bands(tmp_path / "p.tif", grid, ("a", "b", "ü"), cut(shares, [100]))
    write_bands(tmp_path / "q.tif", grid, ("a", "b", "ü"), cut(shares, [100]), dtype="uint8", tags={"K": "v"})
    exact, coarse = describe(tmp_path / "p.tif"), describe(tmp_path / "q.tif")
    assert exact.descriptions == coarse.descriptions == ("a", "b", "ü")
    assert (exact.dtypes, coarse.dtypes) == (("float32",) * 3, ("uint8",) * 3)
    assert exact.grid == coarse.grid == grid
    np.testing.assert_array_equal(read(tmp_path / "p.tif"), shares)
    with open_raster(tmp_path / "q.tif") as dataset:
        masked = dataset.read(masked=True) * np.array(dataset.scales)[:, None, None]
        assert dataset.tags()["K"] == "v"
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, ~np.isnan(shares[0]))
    np.testing.assert_array_equal(masked.mask, np.isnan(shares))
    assert abs(masked - shares).max() <= 0.5 / 254 + 1e-6
    with open_raster(tmp_path / "p.tif") as dataset:
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, ~np.isnan(shares[0]))


class TroubleError(Exception):
    pass


@pytest.mark.parametrize("trouble", [TroubleError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("kind", ["classes", "bands"])
def test_trouble_leaves_nothing_behind(tmp_path: Path, trouble: type[BaseException], existing: bool, kind: str) -> None:
    path, grid = tmp_path / "a.tif", Grid(600, 300, PLACE, UTM)
    if existing:
        write_classes(path, grid, LEGEND, cut(classes(600, 300), [600]))
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)}

    def strips(values: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        yield 0, values[..., :400, :]
        assert len(listing(tmp_path)) == len(before) + 1  # the hidden folder
        raise trouble

    with pytest.raises(trouble):  # noqa: PT012  # the block is the point
        if kind == "classes":
            write_classes(path, grid, LEGEND, strips(classes(600, 300)), overwrite=True)
        else:
            write_bands(path, grid, ("a",), strips(np.zeros((1, 600, 300), np.float32)), overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


def test_overwriting_takes_the_old_sidecars_away(tmp_path: Path) -> None:
    path, grid = tmp_path / "a.tif", Grid(300, 300, PLACE, UTM)
    write_classes(path, grid, LEGEND, cut(classes(300, 300), [300]))
    (tmp_path / "a.tif.ovr").write_bytes(b"overviews of the old raster")
    write_bands(path, grid, ("a",), cut(np.ones((1, 300, 300), np.float32), [300]), overwrite=True)
    assert listing(tmp_path) == ["a.tif"]
    write_classes(path, grid, LEGEND, cut(classes(300, 300), [300]), overwrite=True)
    assert listing(tmp_path) == ["a.tif", "a.tif.aux.xml"]


@pytest.mark.parametrize(
    ("strips", "words"),
    [
        ([(0, (8, 5))], "wanted 10 rows, got 8"),
        ([], "wanted 10 rows, got 0"),
        ([(0, (8, 5)), (9, (1, 5))], "from row 8 on, got 1 rows of 5 columns from row 9"),
        ([(0, (10, 4))], "rows of 5 columns from row 0 on, got 10 rows of 4 columns"),
        ([(0, (11, 5))], "got 11 rows"),
    ],
)
def test_strips_must_cover_the_grid(tmp_path: Path, strips: list[tuple[int, tuple[int, int]]], words: str) -> None:
    given = ((row, np.zeros(shape, np.uint8)) for row, shape in strips)
    with pytest.raises(OutputError, match=words):
        write_classes(tmp_path / "a.tif", Grid(10, 5, PLACE, UTM), LEGEND, given)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("limit", "side"), [(100, 64), (1000, 64), (10_000, 64), (200_000, 512), (860_000, 512), (300_000, 1024)]
)
def test_a_full_disk_is_one_line_and_no_file(tmp_path: Path, limit: int, side: int) -> None:
    """A process that may write no larger file than `limit` bytes stands in for a full disk."""
    pytest.importorskip("resource", reason="no limits on file sizes on this system")
    code = f"""
import resource, signal, numpy as np
from affine import Affine
from segprior.errors import OutputError
from segprior.geotiff import write_bands
from segprior.raster import Grid
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
noise = np.random.default_rng(0).random((1, {side}, {side}), dtype=np.float32)
try:
    write_bands({str(tmp_path / "a.tif")!r}, Grid({side}, {side}, Affine.identity(), None), ("a",), [(0, noise)])
except OutputError as error:
    print("refused:", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("refused: cannot write")
    assert "See previous exception" not in run.stdout
    assert run.stdout.count("\n") == 1
    assert listing(tmp_path) == []


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RasterioError("no\nroom")

    for place, name in ((rasterio, "open"), (DatasetWriter, "write")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(OutputError, match=r"cannot write .*: no room"):
                write_classes(tmp_path / "a.tif", Grid(9, 9, PLACE, UTM), LEGEND, [(0, classes(9, 9))])
        assert listing(tmp_path) == []


def test_names_fall_back_to_the_tag_and_to_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_classes(path, Grid(20, 30, PLACE, UTM), LEGEND, cut(classes(20, 30), [7]))
    sidecar = tmp_path / "a.tif.aux.xml"
    sidecar.write_text("<PAMDataset><PAMRasterBand band='1'/></PAMDataset>")
    with open_raster(path) as dataset:
        assert class_names(dataset) == {0: "ground & sand", 1: "roof", 4: "Fluß"}
    sidecar.write_text("<PAMDataset><PAM")
    with open_raster(path) as dataset, pytest.raises(LegendError, match="cannot read the class names"):
        class_names(dataset)
    sidecar.unlink()
    with open_raster(path) as dataset:
        assert class_names(dataset) == {0: "ground & sand", 1: "roof", 4: "Fluß"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(**{LEGEND_TAG: "{"})
    with open_raster(path) as dataset, pytest.raises(LegendError, match=LEGEND_TAG):
        class_names(dataset)
    with open_raster(write_raster(tmp_path / "b.tif", checkered(1, 4, 4))) as dataset:
        assert class_names(dataset) == {}
