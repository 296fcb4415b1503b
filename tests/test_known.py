"""Known places, against geometry written out, and what they do to masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from commands import call
from rasterio.crs import CRS
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

from segprior.errors import SettingError, VectorError
from segprior.known import KnownSource, Places, open_places
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.scene import open_scene
from segprior.segmentation import segment
from segprior.windows import Window

ONE, TWO = FixedPoint(times=(1.0,)), FixedPoint(times=(1.0, 0.5))
UTM: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
ROOF, ROAD = LEGEND.index("roof"), LEGEND.index("road")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """90 x 110 pixels of half a metre."""
    return write_raster(tmp_path / "image.tif", checkered(3, 90, 110), **UTM)


def on_map(geometry: Any) -> Any:
    """From pixels (x right, y down) to UTM."""
    return shapely.transform(geometry, lambda xy: (500_000, 3_000_000) + xy * (0.5, -0.5))


def features(path: Path, *rows: tuple[str, Any], crs: str | None = "EPSG:4326") -> Path:
    """Write (class, geometry in pixels) in some CRS."""
    frame = geopandas.GeoDataFrame(
        {"class": [name for name, _ in rows]}, geometry=[on_map(shape) for _, shape in rows], crs=32645
    )
    order = {"SPATIAL_INDEX": "NO"} if path.suffix == ".fgb" else {}  # which would sort the features
    (frame if crs is None else frame.to_crs(crs)).to_file(path, **order)
    return path


def places(image: Path, *sources: KnownSource, res: float = 0.5) -> Places:
    with open_scene(image, res=res) as scene:
        return open_places(sources, scene, LEGEND)


def everything(found: Places, shape: tuple[int, int] = (90, 110)) -> npt.NDArray[np.uint8]:
    return found.within(Window(0, 0, *shape))[0]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32645"])
def test_features_of_all_kinds(tmp_path: Path, image: Path, suffix: str, crs: str) -> None:
    """Polygons by pixel centres, lines and points by touch, holes stay open; the last on top."""
    if suffix == ".geojson" and crs != "EPSG:4326":
        crs = "EPSG:4326"
    ring = shapely.box(10, 20, 30, 40) - shapely.box(15, 25, 20, 30)
    path = features(tmp_path / f"a{suffix}", ("roof", ring), ("road", shapely.box(25, 35, 50, 60)), crs=crs)
    expected = np.full((90, 110), 255, np.uint8)
    expected[20:40, 10:30] = ROOF
    expected[25:30, 15:20] = 255
    expected[35:60, 25:50] = ROAD
    np.testing.assert_array_equal(everything(places(image, KnownSource(str(path)))), expected)
    line = features(tmp_path / f"b{suffix}", ("x", shapely.LineString([(3.5, 70.5), (60.5, 70.5)])), crs=crs)
    dot = features(tmp_path / f"c{suffix}", ("x", shapely.Point(80.5, 80.5)), crs=crs)
    found = everything(places(image, KnownSource(str(line), "road"), KnownSource(str(dot), "roof")))
    assert (np.argwhere(found == ROOF) == [(80, 80)]).all()
    assert np.argwhere(found == ROAD).tolist() == [[70, column] for column in range(3, 61)]


def test_windows_see_their_part(tmp_path: Path, image: Path) -> None:
    path = features(tmp_path / "a.gpkg", ("roof", shapely.box(10, 20, 70, 80)), ("road", shapely.Point(40.5, 50.5)))
    found = places(image, KnownSource(str(path), confidence=0.9))
    whole, sure = found.within(Window(0, 0, 128, 128))
    for window in (Window(0, 0, 32, 32), Window(32, 32, 64, 64), Window(64, 64, 64, 64)):
        index, accuracy = found.within(window)
        np.testing.assert_array_equal(index, whole[window.row_slice, window.col_slice])
        np.testing.assert_array_equal(accuracy, sure[window.row_slice, window.col_slice])
    assert set(np.unique(sure[whole != 255]).tolist()) == {np.float32(0.9).item()}
    assert (sure[whole == 255] == 0).all()


def test_buffers_are_metres_on_the_ground(tmp_path: Path, image: Path) -> None:
    """At working pixels of a metre, a point with 4 metres around it is a disc of radius 4."""
    path = features(tmp_path / "a.gpkg", ("roof", shapely.Point(50, 40)))
    found = everything(places(image, KnownSource(str(path), "roof", buffer=4.0), res=1.0), (45, 55))
    rows, cols = np.mgrid[:45, :55] + 0.5
    expected = np.hypot(rows - 20, cols - 25) < 4
    assert ((found == ROOF) != expected).sum() <= 4
    assert (found == ROOF).sum() == pytest.approx(np.pi * 16, rel=0.1)


def test_places_smaller_than_a_pixel_are_places(tmp_path: Path, image: Path) -> None:
    """At working pixels of a metre: a narrow line has no gaps, and neither a small disc nor a small roof is lost."""
    shapes = (
        shapely.Point(20.1, 10.1),
        shapely.LineString([(4, 40.2), (90, 60.3)]),
        shapely.box(50.1, 10.1, 50.9, 10.8),
    )
    path = features(tmp_path / "a.gpkg", *(("roof", shape) for shape in shapes), crs="EPSG:32645")
    bare = everything(places(image, KnownSource(str(path)), res=1.0), (45, 55))
    assert (bare[5, 10], bare[5, 25]) == (ROOF, ROOF)
    for buffer in (0.1, 0.3):
        wide = everything(places(image, KnownSource(str(path), buffer=buffer), res=1.0), (45, 55))
        assert (wide[bare == ROOF] == ROOF).all(), "wider is never less"
    assert (bare[19:32] == ROOF).any(axis=0)[3:44].all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.gpkg", KnownSource("a.gpkg")),
        ("a.gpkg:class=road", KnownSource("a.gpkg", "road")),
        ("/x y/a.gpkg:class=kind,buffer=3m,confidence=0.9", KnownSource("/x y/a.gpkg", "kind", 3.0, 0.9)),
        ("C:\\x\\a.shp:buffer=2.5", KnownSource("C:\\x\\a.shp", None, 2.5)),
        ("https://x.org/a.geojson:confidence=.5", KnownSource("https://x.org/a.geojson", confidence=0.5)),
    ],
)
def test_words_for_a_source(text: str, expected: KnownSource) -> None:
    assert KnownSource.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.gpkg:width=3", "wanted class, buffer, confidence after the file, got width"),
        ("a.gpkg:buffer=wide", "wanted numbers for buffer and confidence"),
        ("a.gpkg:buffer=-1", "buffer of 0 metres or more"),
        ("a.gpkg:confidence=1.5", "confidence above 0, at most 1"),
        ("", "got nothing"),
    ],
)
def test_wrong_words_for_a_source(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        KnownSource.parse(text)


def probabilities(image: Path, prior: Path, folder: Path, *known: KnownSource, **more: Any) -> npt.NDArray[np.float32]:
    options = Options(**{"solver": TWO, "tile_size": 64, "overlap": 32, "known": known, **more})
    segment(image, folder / "m.tif", prior=prior, options=options, probabilities=folder / "p.tif", overwrite=True)
    with rasterio.open(folder / "p.tif") as dataset:
        found: npt.NDArray[np.float32] = dataset.read()
    return found


def test_what_is_certain_is_in_the_mask_and_speaks_to_its_neighbours(tmp_path: Path, image: Path, prior: Path) -> None:
    path = features(tmp_path / "a.gpkg", ("road", shapely.box(30, 30, 50, 55)))
    plain, told = probabilities(image, prior, tmp_path), probabilities(image, prior, tmp_path, KnownSource(str(path)))
    np.testing.assert_allclose(told[ROAD, 30:55, 30:50], 1, atol=1e-5)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert (mask.read(1)[30:55, 30:50] == 2).all()
        assert mask.tags()["SEGPRIOR_KNOWN"].endswith("class class, buffer 0 m, confidence 1")
    beside = np.abs(told - plain)[:, 26:59, 26:54].copy()
    beside[:, 4:-4, 4:-4] = 0
    assert beside.max() > 1e-3, "a network of random weights, but one that listens"
    np.testing.assert_allclose(told[:, :, 109], plain[:, :, 109], atol=0.05)


def test_what_is_likely_is_bayes_rule_at_one_step(tmp_path: Path, image: Path, prior: Path) -> None:
    path = features(tmp_path / "a.gpkg", ("roof", shapely.box(30, 30, 50, 55)))
    plain = probabilities(image, prior, tmp_path, solver=ONE, tile_size=128, overlap=32)
    source = KnownSource(str(path), confidence=0.7)
    told = probabilities(image, prior, tmp_path, source, solver=ONE, tile_size=128, overlap=32, samples=2)
    likelihood = np.full((3, 1, 1), 0.15)
    likelihood[ROOF] = 0.7
    posterior = plain * likelihood / (plain * likelihood).sum(axis=0)
    np.testing.assert_allclose(told[:, 30:55, 30:50], posterior[:, 30:55, 30:50], atol=1e-3)
    outside = np.ones((90, 110), np.bool_)
    outside[30:55, 30:50] = False
    np.testing.assert_allclose(told[:, outside], plain[:, outside], atol=1e-5)


def test_a_file_that_has_changed_is_read_again(tmp_path: Path, image: Path, prior: Path) -> None:
    path = features(tmp_path / "a.gpkg", ("road", shapely.box(0, 0, 20, 20)))
    probabilities(image, prior, tmp_path, KnownSource(str(path)))
    path.unlink()
    features(path, ("roof", shapely.box(0, 0, 20, 20)))
    assert probabilities(image, prior, tmp_path, KnownSource(str(path)))[ROOF, 5, 5] > 0.999


def test_what_lies_elsewhere_is_said_to_say_nothing(
    tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = features(tmp_path / "far.gpkg", ("roof", shapely.box(5000, 0, 5020, 20)))
    near = features(tmp_path / "near.gpkg", ("roof", shapely.box(-10, -10, 5, 5)))
    grid = {"crs": UTM["crs"], "transform": UTM["transform"] @ Affine.translation(0, 500)}
    other = write_raster(tmp_path / "other.tif", np.full((3, 90, 110), 1 / 3, np.float32), **grid)
    with rasterio.open(other, "r+") as dataset:
        dataset.descriptions = LEGEND.names
    command = ("segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--steps", 1, "--tile-size", 64)
    told = ("--known", far, "--known", near, "--unary", other)
    found = call(capsys, *command, "--overlap", 32, *told)
    assert found.code == 0
    assert found.stderr.splitlines() == [
        f"{path} says nothing of this raster: it lies elsewhere" for path in (far, other)
    ]


def test_bad_places_are_one_line(tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = features(tmp_path / "good.gpkg", ("roof", shapely.box(0, 0, 20, 20)))
    strange = features(tmp_path / "strange.gpkg", ("lake", shapely.box(0, 0, 20, 20)))
    (tmp_path / "text.gpkg").write_text("text")
    nowhere = geopandas.GeoDataFrame({"class": ["roof"]}, geometry=[shapely.box(0, 0, 1, 1)])
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        nowhere.to_file(tmp_path / "nowhere.shp")
    (tmp_path / "table.csv").write_text("class\nroof\n")
    ring = "[[500010, 2999990], [500020, 2999990], [500020, 2999980], [500010, 2999985]]"
    (tmp_path / "open.geojson").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"class": "roof"}, '
        f'"geometry": {{"type": "Polygon", "coordinates": [{ring}]}}}}]}}'
    )
    for layer in ("first", "second"):
        geopandas.read_file(good).to_file(tmp_path / "two.gpkg", layer=layer)
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        nowhere.to_file(tmp_path / "plane.gpkg")  # which GDAL gives a Cartesian CRS that has no place
    cases = {
        f"{tmp_path / 'two.gpkg'}": "two.gpkg has first, second; take one out",
        f"{tmp_path / 'plane.gpkg'}": "cannot place",
        f"{tmp_path / 'open.geojson'}": "wanted a vector file",
        f"{tmp_path / 'gone.gpkg'}": "there is no file",
        f"{tmp_path / 'text.gpkg'}": "wanted a vector file",
        f"{tmp_path / 'table.csv'}": "wanted features with geometries",
        f"{tmp_path / 'nowhere.shp'}": "it has no CRS",
        f"{strange}": "wanted classes of the prior (background, roof, road) in the column class",
        f"{good}:class=lake": "(it has class), got lake",
        f"{good}:confidence=0.2": "a confidence of at least 0.33, a guess among 3 classes",
        f"{good}:colour=red": "wanted class, buffer, confidence after the file, got colour",
    }
    before = sorted(tmp_path.iterdir())
    for text, words in cases.items():
        found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--known", text)
        assert (found.code, found.stderr.count("\n")) == (2, 1), found.stderr
        assert words in found.stderr
    plain = write_raster(tmp_path / "plain.tif", checkered(3, 40, 40))
    with open_scene(plain, res=0.5) as scene, pytest.raises(VectorError, match=r"plain\.tif has no georeference"):
        open_places([KnownSource(str(good))], scene, LEGEND)
    plain.unlink()
    assert sorted(tmp_path.iterdir()) == before
