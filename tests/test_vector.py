"""Polygons against areas known in closed form, another way of measuring, and other readers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasters import checkered, write_raster
from scipy.ndimage import gaussian_filter, label

from segprior.errors import OutputError, RasterError, SettingError, VectorError
from segprior.geotiff import write_bands, write_classes
from segprior.legend import Legend, LegendClass
from segprior.raster import Grid
from segprior.vector import Tracing, export, polygons

LEGEND = Legend(
    (LegendClass("ground", 0, (0, 0, 0)), LegendClass("roof", 1, (255, 0, 0)), LegendClass("road", 3, (9, 9, 9)))
)
PLACES: dict[str, tuple[int | None, Affine]] = {
    "utm": (32645, Affine(0.3, 0, 350000, 0, -0.3, 3050000)),
    "web mercator": (3857, Affine(0.15, 0, 9520461, 0, -0.15, 3201259)),
    "degrees": (4326, Affine(1.4e-4, 0, 25, 0, -1.1e-4, 60)),
    "feet": (2263, Affine(2.0, 0, 980000, 0, -2.0, 200000)),
    "rotated": (32645, Affine(0.2, 0.1, 350000, 0.1, -0.2, 3050000)),
    "nowhere": (None, Affine.identity()),
}


def mask(path: Path, values: npt.NDArray[np.uint8], place: str = "utm") -> Path:
    code, transform = PLACES[place]
    grid = Grid(*values.shape, transform, None if code is None else CRS.from_epsg(code))
    write_classes(path, grid, LEGEND, [(0, values)], overwrite=True)
    return path


def patches(height: int, width: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random patches a few pixels wide, with nodata among them."""
    small = np.random.default_rng(seed).choice(np.array([0, 1, 3, 255], np.uint8), (height // 3 + 1, width // 3 + 1))
    return np.repeat(np.repeat(small, 3, 0), 3, 1)[:height, :width]


def test_a_ring_has_a_hole(tmp_path: Path) -> None:
    values = np.zeros((12, 12), np.uint8)
    values[2:10, 3:9] = 1
    values[4:6, 4:8] = 0
    values[7, 5] = 3
    frame = polygons(mask(tmp_path / "a.tif", values), Tracing(background=("ground",)))
    assert frame["class"].tolist() == ["roof", "road"]
    assert frame["value"].tolist() == [1, 3]
    ring = frame.geometry[0]

    def box(row: int, col: int, height: int, width: int) -> shapely.Polygon:
        left, top = 350000 + 0.3 * col, 3050000 - 0.3 * row
        return shapely.box(left, top - 0.3 * height, left + 0.3 * width, top)

    expected = box(2, 3, 8, 6) - box(4, 4, 2, 4) - box(7, 5, 1, 1)
    assert shapely.normalize(ring).equals_exact(shapely.normalize(expected), 1e-6)
    assert len(ring.interiors) == 2
    whole = polygons(mask(tmp_path / "a.tif", values))
    assert whole["class"].tolist() == ["ground", "ground", "roof", "road"]
    # The background's outer patch touches the raster's edge and has the ring's outline for a hole.
    assert sorted(len(p.interiors) for p in whole.geometry) == [0, 0, 1, 2]


def test_corners_do_not_join(tmp_path: Path) -> None:
    frame = polygons(mask(tmp_path / "a.tif", np.array([[1, 0], [0, 1]], np.uint8)), Tracing(background=("ground",)))
    assert len(frame) == 2


@pytest.mark.parametrize("place", PLACES)
def test_patches_are_those_scipy_finds_and_add_up(tmp_path: Path, place: str) -> None:
    values = patches(50, 70)
    frame = polygons(mask(tmp_path / "a.tif", values, place))
    _, transform = PLACES[place]
    pixel = abs(transform.determinant)
    assert frame.geometry.is_valid.all()
    assert set(frame["value"]) == {0, 1, 3}
    for value in (0, 1, 3):
        mine = frame[frame["value"] == value]
        assert len(mine) == label(values == value)[1]
        assert shapely.area(np.asarray(mine.geometry)).sum() == pytest.approx(pixel * (values == value).sum(), rel=1e-6)
    assert shapely.union_all(np.asarray(frame.geometry)).area == pytest.approx(pixel * (values != 255).sum(), rel=1e-6)
    assert (frame.crs is None) == (place == "nowhere")


def test_single_pixels_make_valid_polygons(tmp_path: Path) -> None:
    values = np.random.default_rng(1).choice(np.array([0, 1], np.uint8), (60, 60))
    assert polygons(mask(tmp_path / "a.tif", values)).geometry.is_valid.all()


def test_a_square_in_utm_is_its_map_area_over_the_scale_squared(tmp_path: Path) -> None:
    values = np.zeros((400, 400), np.uint8)
    values[100:300, 100:300] = 1
    frame = polygons(mask(tmp_path / "a.tif", values), Tracing(background=("ground",)))
    x, y = 350000 + 60, 3050000 - 60
    lon, lat = pyproj.Transformer.from_crs(32645, 4326, always_xy=True).transform(x, y)
    areal = pyproj.Proj(32645).get_factors(lon, lat).areal_scale
    assert frame["area_m2"].tolist() == pytest.approx([60.0**2 / areal], rel=1e-6)


@pytest.mark.parametrize("place", ["utm", "web mercator", "degrees", "feet", "rotated"])
def test_areas_agree_with_an_equal_area_projection(tmp_path: Path, place: str) -> None:
    code, _ = PLACES[place]
    frame = polygons(mask(tmp_path / "a.tif", patches(50, 70), place))
    datum = "NAD83" if place == "feet" else "WGS84"
    lon = frame.to_crs(4326).geometry.iloc[0].centroid.x
    to_cea = pyproj.Transformer.from_crs(
        pyproj.CRS.from_epsg(code), f"+proj=cea +lon_0={lon} +datum={datum}", always_xy=True
    )
    finer = shapely.segmentize(frame.geometry.values, 5 * math.sqrt(abs(PLACES[place][1].determinant)))
    flat = shapely.transform(np.asarray(finer), lambda xy: np.column_stack(to_cea.transform(xy[:, 0], xy[:, 1])))
    # Pixels of a few square decimetres: the ellipsoid's own sums are good to some 1e-5 square metres.
    np.testing.assert_allclose(frame["area_m2"], shapely.area(flat), rtol=2e-6, atol=1e-4)


def test_a_band_of_the_globe_in_degrees_is_its_zone(tmp_path: Path) -> None:
    """Long edges along a parallel are no geodesics: 40 x 10 degrees at 50 to 60 north, in closed form."""
    path = tmp_path / "a.tif"
    grid = Grid(100, 400, Affine(0.1, 0, 0, 0, -0.1, 60), CRS.from_epsg(4326))
    write_classes(path, grid, LEGEND, [(0, np.ones((100, 400), np.uint8))])
    e = math.sqrt(1 / 298.257223563 * (2 - 1 / 298.257223563))
    b = 6378137.0 * (1 - 1 / 298.257223563)

    def zone(latitude: float) -> float:
        s = math.sin(math.radians(latitude))
        return b**2 / 2 * (math.atanh(e * s) / e + s / (1 - (e * s) ** 2))

    expected = math.radians(40) * (zone(60) - zone(50))
    assert polygons(path)["area_m2"].tolist() == pytest.approx([expected], rel=1e-6)


def test_min_area_leaves_small_patches_out(tmp_path: Path) -> None:
    values = np.zeros((20, 20), np.uint8)
    values[1:3, 1:3] = 1  # 0.36 square metres
    values[5:15, 5:15] = 1  # 9 square metres
    path = mask(tmp_path / "a.tif", values)
    assert len(polygons(path, Tracing(background=("ground",), min_area=0.35))) == 2
    assert polygons(path, Tracing(background=("ground",), min_area=1.0))["area_m2"].tolist() == pytest.approx(
        [9.0], rel=1e-3
    )
    assert polygons(path, Tracing(background=("ground",), min_area=10.0)).empty


def test_no_georeference_no_areas(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.tif", patches(20, 20), "nowhere")
    frame = polygons(path)
    assert frame["area_m2"].isna().all()
    assert frame.crs is None
    with pytest.raises(VectorError, match="has no georeference; leave least area"):
        polygons(path, Tracing(min_area=1.0))
    with pytest.raises(VectorError, match=r"write \.gpkg instead"):
        export(path, tmp_path / "a.geojson")
    assert export(path, tmp_path / "a.gpkg") == len(frame)
    again = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert again["area_m2"].isna().all()
    assert set(again.total_bounds) == {0.0, 20.0}


def test_values_without_names_are_named_by_number(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", np.array([[[0, 7]]], np.uint8), crs="EPSG:32645", transform=PLACES["utm"][1], nodata=0
    )
    assert polygons(path)["class"].tolist() == ["7"]
    with pytest.raises(VectorError, match=r"no class ground in .*, which has unnamed classes only"):
        polygons(path, Tracing(background=("ground",)))


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".GPKG"])
def test_files_read_back(tmp_path: Path, suffix: str) -> None:
    path = mask(tmp_path / "a.tif", patches(50, 70))
    target = tmp_path / f"out{suffix}"
    frame = polygons(path, Tracing(background=("ground",)))
    assert export(path, target, Tracing(background=("ground",))) == len(frame) > 0
    again = pyogrio.read_dataframe(target).sort_values(["value", "area_m2"], kind="stable")
    wanted = frame.sort_values(["value", "area_m2"], kind="stable")
    assert again["class"].tolist() == wanted["class"].tolist()
    np.testing.assert_allclose(again["area_m2"], wanted["area_m2"])
    assert again.crs == frame.crs
    assert again.geometry.union_all().symmetric_difference(frame.geometry.union_all()).area < 1e-6
    assert pyogrio.list_layers(target)[:, 0].tolist() == ["out"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.tif", "a.tif.aux.xml", target.name}


def outlines(geometry: dict[str, Any]) -> list[shapely.LinearRing]:
    return [shapely.LinearRing(ring) for ring in geometry["coordinates"]]


@pytest.mark.parametrize("place", ["utm", "web mercator", "degrees", "feet"])
def test_geojson_is_in_degrees_and_wound_as_the_standard_wants(tmp_path: Path, place: str) -> None:
    path = mask(tmp_path / "a.tif", patches(50, 70), place)
    count = export(path, tmp_path / "a.geojson")
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert "crs" not in collection
    assert len(collection["features"]) == count
    for feature in collection["features"]:
        outer, *inner = outlines(feature["geometry"])
        assert outer.is_ccw
        assert not any(ring.is_ccw for ring in inner)
        assert set(feature["properties"]) == {"class", "value", "area_m2"}
    code, transform = PLACES[place]
    corner = pyproj.Transformer.from_crs(code, 4326, always_xy=True).transform(transform.c, transform.f)
    points = np.concatenate(
        [shapely.get_coordinates(shapely.from_geojson(json.dumps(f["geometry"]))) for f in collection["features"]]
    )
    np.testing.assert_allclose([points[:, 0].min(), points[:, 1].max()], corner, atol=2e-5 if place == "feet" else 2e-6)


def test_nothing_found_is_an_empty_file(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.tif", np.full((5, 5), 255, np.uint8))
    for name in ("a.gpkg", "a.geojson", "a.fgb"):
        tracing = Tracing(simplify=1.0, regularize=("roof",))
        assert export(path, tmp_path / name, tracing) == 0
        assert len(pyogrio.read_dataframe(tmp_path / name)) == 0


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.tif", patches(9, 9))
    image = write_raster(tmp_path / "rgb.tif", checkered(3, 9, 9))
    bands = write_raster(tmp_path / "bands.tif", checkered(3, 9, 9), crs="EPSG:32645", transform=PLACES["utm"][1])
    nowhere = mask(tmp_path / "nowhere.tif", patches(9, 9), "nowhere")
    small = {"crs": "EPSG:4326", "transform": Affine(3e-6, 0, 85, 0, -3e-6, 27)}  # pixels of 0.3 m
    degrees = write_raster(tmp_path / "degrees.tif", patches(9, 9)[None], **small)
    small["transform"] = Affine(3e-6, 0, 85 + 6e-6, 0, -3e-6, 27)  # two pixels further
    shifted = write_raster(tmp_path / "shifted.tif", np.ones((1, 9, 9), np.float32), **small)
    (tmp_path / "text.tif").write_text("text")
    (tmp_path / "old.gpkg").write_text("old")
    gpkg = tmp_path / "new.gpkg"
    cases: list[tuple[Path, Path, dict[str, Any], type[Exception], str]] = [
        (
            path,
            tmp_path / "a.shp",
            {},
            VectorError,
            r"wanted a file ending in \.gpkg, \.geojson, \.fgb, \.parquet, got a\.shp",
        ),
        (path, tmp_path / "none" / "a.gpkg", {}, OutputError, "there is no folder"),
        (path, tmp_path / "old.gpkg", {}, OutputError, "it exists"),
        (path, gpkg, {"background": ("lake",)}, VectorError, "no class lake in .*, which has ground, roof, road"),
        (path, gpkg, {"min_area": -1.0}, SettingError, "least area of 0 square metres or more, got -1"),
        (path, gpkg, {"simplify": -1.0}, SettingError, "simplify by 0 metres or more, got -1"),
        (path, gpkg, {"fill": True}, SettingError, "wanted a least area .* below which polygons are filled, got none"),
        (path, gpkg, {"regularize": ("tent",)}, VectorError, "no class tent in .*, which has ground, roof, road"),
        (path, gpkg, {"regularize": ("roof",), "background": ("roof",)}, SettingError, "got roof as background too"),
        (path, gpkg, {"confidence": image}, RasterError, "confidence on the mask's grid, .* is on another"),
        (degrees, gpkg, {"confidence": shifted}, RasterError, "confidence on the mask's grid, .* is on another"),
        (path, gpkg, {"confidence": bands}, RasterError, "wanted one band of confidence, .* has 3 of uint8"),
        (path, gpkg, {"confidence": tmp_path / "gone.tif"}, RasterError, "there is no file"),
        (nowhere, gpkg, {"simplify": 1.0}, VectorError, "cannot measure in metres: .* has no georeference"),
        (image, gpkg, {}, VectorError, r"wanted a class raster with one 8-bit band, .* has 3 of uint8"),
        (tmp_path / "text.tif", gpkg, {}, RasterError, "not one that GDAL can open"),
        (tmp_path / "gone.tif", gpkg, {}, RasterError, "there is no file"),
    ]
    before = sorted(tmp_path.iterdir())
    for source, target, settings, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            export(source, target, Tracing(**settings))
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert export(path, tmp_path / "old.gpkg", overwrite=True) > 0


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mask(tmp_path / "a.tif", patches(9, 9))

    def fail(*_: object, **__: object) -> None:
        raise pyogrio.errors.DataSourceError("disk\nfull")

    monkeypatch.setattr(pyogrio, "write_dataframe", fail)
    with pytest.raises(OutputError, match="disk full"):
        export(path, tmp_path / "a.gpkg")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tif", "a.tif.aux.xml"]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_full_disk_is_one_line_and_no_file(tmp_path: Path, suffix: str, share: float) -> None:
    """A process that may write no larger file than `limit` bytes stands in for a full disk.

    A GeoPackage that lacks room for its spatial index alone is whole without it.
    """
    pytest.importorskip("resource", reason="no limits on file sizes on this system")
    path = mask(tmp_path / "a.tif", patches(150, 150))
    export(path, tmp_path / f"whole{suffix}")
    limit = int(share * (tmp_path / f"whole{suffix}").stat().st_size)
    code = f"""
import resource, signal
from segprior.errors import OutputError
from segprior.vector import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    export({str(path)!r}, {str(tmp_path / f"cut{suffix}")!r})
except OutputError as error:
    print("refused:", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if (suffix, share) == (".gpkg", 0.95):
        wanted, got = (pyogrio.read_dataframe(tmp_path / f"{name}{suffix}") for name in ("whole", "cut"))
        assert wanted.equals(got)
        return
    assert run.stdout.startswith("refused: cannot write")
    assert run.stdout.count("\n") == 1
    assert not any("cut" in entry.name for entry in tmp_path.iterdir())


def shares(path: Path, values: npt.NDArray[np.float32], *, as_bytes: bool = False, place: str = "utm") -> Path:
    code, transform = PLACES[place]
    grid = Grid(*values.shape, transform, None if code is None else CRS.from_epsg(code))
    write_bands(path, grid, ["confidence"], [(0, values[None])], dtype="uint8" if as_bytes else "float32")
    return path


@pytest.mark.parametrize("as_bytes", [False, True])
def test_confidence_is_the_mean_over_the_polygons_pixels(tmp_path: Path, as_bytes: bool) -> None:
    values = patches(1100, 40)  # more than two bands of rows
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.3, 1, values.shape).astype(np.float32)
    sure[rng.uniform(size=sure.shape) < 0.2] = np.nan
    values[:3, :3], values[:3, 3:6], values[3:6, :6], sure[:3, :3] = 1, 3, 3, np.nan  # one of which nothing is known
    tracing = Tracing(confidence=shares(tmp_path / "sure.tif", sure, as_bytes=as_bytes))
    frame = polygons(mask(tmp_path / "a.tif", values), tracing)
    assert frame.columns.tolist() == ["class", "value", "area_m2", "confidence", "geometry"]
    expected = []
    for value in (0, 1, 3):
        numbers, count = label(values == value)
        known = np.isfinite(sure)
        pixels = np.bincount(numbers[known], minlength=count + 1)[1:]
        sums = np.bincount(numbers[known], weights=sure[known], minlength=count + 1)[1:]
        with np.errstate(invalid="ignore"):
            expected += (sums / pixels).tolist()
    tolerance = 0.5 / 254 if as_bytes else 1e-6
    np.testing.assert_allclose(np.sort(frame["confidence"]), np.sort(expected), atol=tolerance)
    assert frame["confidence"].isna().any()


def test_fill_dissolves_what_is_small(tmp_path: Path) -> None:
    """Everything stays covered, and nothing is small any more; the background takes part."""
    values = patches(80, 90)
    values[values == 255] = 0
    path, told = mask(tmp_path / "a.tif", values), []
    frame = polygons(path, Tracing(min_area=10.0, fill=True), progress=lambda done, of: told.append(done / of))
    assert frame["area_m2"].min() >= 10.0
    assert frame["area_m2"].sum() == pytest.approx(polygons(path)["area_m2"].sum())
    assert told == [0.5, 1.0]
    roofs = polygons(path, Tracing(min_area=10.0, fill=True, background=("ground", "road")))
    assert roofs["class"].unique().tolist() == ["roof"]
    wanted = frame[frame["class"] == "roof"]["area_m2"]
    np.testing.assert_allclose(np.sort(roofs["area_m2"]), np.sort(wanted))


@pytest.mark.parametrize("place", ["utm", "web mercator", "degrees", "feet", "rotated"])
def test_simplified_neighbours_share_their_borders(tmp_path: Path, place: str) -> None:
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal((60, 70)), 3)
    values = np.array([0, 1, 3], np.uint8)[np.digitize(smooth, np.quantile(smooth, (0.4, 0.7)))]
    path = mask(tmp_path / "a.tif", values, place)
    grid = Grid(60, 70, PLACES[place][1], CRS.from_epsg(PLACES[place][0]))
    assert grid.res is not None
    before = polygons(path)
    frame = polygons(path, Tracing(simplify=1.5 * max(grid.res)))
    assert len(frame) == len(before)
    assert frame.geometry.is_valid.all()
    outlines = np.asarray(frame.geometry)
    assert shapely.area(outlines).sum() == pytest.approx(shapely.area(shapely.union_all(outlines)), rel=1e-6)
    assert len(shapely.get_coordinates(outlines)) < len(shapely.get_coordinates(np.asarray(before.geometry)))
    assert frame["area_m2"].sum() == pytest.approx(before["area_m2"].sum(), rel=0.02)


def test_roofs_get_right_angles_and_the_rest_does_not(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:120, :120]
    u, v = 0.8 * (cols - 60) + 0.6 * (rows - 60), -0.6 * (cols - 60) + 0.8 * (rows - 60)
    values = np.where((np.abs(u) < 40) & (np.abs(v) < 22), 1, 0).astype(np.uint8)
    values[100:110, 100:110] = 3
    path = mask(tmp_path / "a.tif", values)
    frame = polygons(path, Tracing(regularize=("roof",), background=("ground",)))
    assert frame["class"].tolist() == ["roof", "road"]
    roof, road = frame.geometry
    box = roof.minimum_rotated_rectangle
    assert roof.area == pytest.approx(box.area, rel=0.1)
    assert len(shapely.get_coordinates(roof)) <= 9
    assert roof.area == pytest.approx(0.09 * 80 * 44, rel=0.05)
    assert road.equals(polygons(path).geometry.iloc[-1])
    assert frame["iou"].iloc[1] == 1
    steps = polygons(path)[lambda found: found["class"] == "roof"].geometry.iloc[0]
    assert frame["iou"].iloc[0] == pytest.approx(steps.intersection(roof).area / steps.union(roof).area, abs=1e-3)


def test_geoparquet_and_what_made_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    grid = Grid(50, 70, PLACES["utm"][1], CRS.from_epsg(32645))
    write_classes(path, grid, LEGEND, [(0, patches(50, 70))], tags={"SEGPRIOR_PRIOR": "landcover"})
    frame = polygons(path)
    assert export(path, tmp_path / "a.parquet") == len(frame)
    again = geopandas.read_parquet(tmp_path / "a.parquet")
    assert again.crs == frame.crs
    assert again.columns.tolist() == frame.columns.tolist()
    assert again.geometry.geom_equals_exact(frame.geometry, 0).all()
    west = geopandas.read_parquet(tmp_path / "a.parquet", bbox=(350000, 3049990, 350001, 3050000))
    assert 0 < len(west) < len(frame), "the bounds of every polygon stand in the file"
    export(path, tmp_path / "a.gpkg")
    told = pyogrio.read_info(tmp_path / "a.gpkg")["layer_metadata"]
    assert told == {"SEGPRIOR_PRIOR": "landcover"}


@pytest.mark.slow
def test_sixteen_megapixels_take_seconds(tmp_path: Path) -> None:
    values = np.kron(patches(400, 400), np.ones((10, 10), np.uint8))
    path = mask(tmp_path / "a.tif", values)
    start = time.perf_counter()
    frame = polygons(path)
    assert len(frame) > 5_000
    assert time.perf_counter() - start < 60
