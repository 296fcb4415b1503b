"""Surveyed places on rasters: where they lie, what they change, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from commands import call
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

from segprior.adapt import Adaptation
from segprior.checkpoint import load_prior
from segprior.errors import SettingError, VectorError
from segprior.inference import strips
from segprior.known import KnownSource, Spots
from segprior.options import Options
from segprior.prior.alike import MOST, QUIET
from segprior.prior.infer import FixedPoint
from segprior.scene import open_scene
from segprior.segmentation import segment
from segprior.survey import Look, SurveySource, clicked, open_survey, surveyed

UTM: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
ROOF = LEGEND.index("roof")
SMALL: dict[str, Any] = {"tile_size": 64, "overlap": 32, "batch_size": 2}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("plain") / "tiny.safetensors", plain=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """90 x 110 pixels of half a metre, 30 x 30 of them without data."""
    pixels = checkered(3, 90, 110)
    pixels[:, :30, :30] = 0
    return write_raster(tmp_path / "image.tif", pixels, nodata=0, **UTM)


def survey(path: Path, *rows: tuple[str, Any]) -> Path:
    """Write (class, geometry in pixels) in degrees."""
    shapes = [shapely.transform(shape, lambda xy: (500_000, 3_000_000) + xy * (0.5, -0.5)) for _, shape in rows]
    geopandas.GeoDataFrame({"class": [name for name, _ in rows]}, geometry=shapes, crs=32645).to_crs(4326).to_file(path)
    return path


def test_places_lie_where_they_are(tmp_path: Path, image: Path) -> None:
    """At half the resolution; polygons and lines at a point inside, what lies off the raster not at all."""
    path = survey(
        tmp_path / "a.gpkg",
        ("roof", shapely.Point(40.2, 50.9)),
        ("road", shapely.LineString([(61, 10), (61, 20)])),
        ("background", shapely.box(70, 60, 90, 80)),
        ("roof", shapely.Point(-3, 5)),
        ("roof", shapely.Point(20, 95)),
    )
    with open_scene(image, res=1.0) as scene:
        sample = open_survey([SurveySource(str(path))], scene, LEGEND)
    assert sample.index.tolist() == [ROOF, LEGEND.index("road"), LEGEND.index("background")]
    assert (sample.rows[0], sample.cols[0]) == (25, 20)
    assert sample.cols[1] == 30
    assert 5 <= sample.rows[1] <= 10
    assert 30 <= sample.rows[2] < 40
    assert 35 <= sample.cols[2] < 45


def test_of_very_many_places_some_are_taken(tmp_path: Path, image: Path) -> None:
    points = np.random.default_rng(0).uniform((0, 0), (110, 90), (MOST + 500, 2))
    path = survey(tmp_path / "a.gpkg", *(("roof", shapely.Point(*at)) for at in points))
    with open_scene(image, res=0.5) as scene:
        assert len(open_survey([SurveySource(str(path))], scene, LEGEND)) == MOST


@pytest.mark.parametrize("which", ["prior", "plain"])
@pytest.mark.parametrize("tile_size", [64, 128])
def test_the_network_is_asked_at_the_places(
    request: pytest.FixtureRequest, image: Path, which: str, tile_size: int
) -> None:
    """At the places g + logits give the class probabilities whose residuals were found, whatever the windows."""
    loaded = load_prior(request.getfixturevalue(which))
    rng = np.random.default_rng(1)
    sample = Spots(rng.integers(30, 90, 25), rng.integers(0, 110, 25), rng.integers(0, 3, 25).astype(np.uint8))
    with open_scene(image, res=0.5) as scene:
        found = surveyed(sample, Look(scene, loaded, tile_size, overlap=32, batch_size=2, device="cpu"))
    assert found.features.shape[0] == 25
    assert float(found.residuals.abs().max()) <= 1
    # a place that nothing else is like has its own residual alone: g is s^2 a there
    assert bool((found.residuals.gather(1, torch.from_numpy(sample.index).long()[:, None]) >= -1e-4).any())
    again = found.features - found.features.mean(dim=0)
    assert float(again.abs().max()) > 0


def test_places_without_data_say_nothing(image: Path, prior: Path) -> None:
    loaded = load_prior(prior)
    sample = Spots(np.array([5, 60]), np.array([5, 60]), np.array([0, 1], np.uint8))
    with open_scene(image, res=0.5) as scene:
        assert len(surveyed(sample, Look(scene, loaded, **SMALL, device="cpu")).features) == 1
        with pytest.raises(VectorError, match=r"wanted surveyed places where .* holds data, got none of 1"):
            surveyed(sample.taken(np.array([0])), Look(scene, loaded, **SMALL, device="cpu"))


@pytest.mark.parametrize("which", ["prior", "plain"])
def test_a_survey_moves_the_map_towards_it(
    request: pytest.FixtureRequest, tmp_path: Path, image: Path, which: str
) -> None:
    """Told that a sample of the raster is roof throughout, the map holds more roof, also away from the places."""
    network = request.getfixturevalue(which)
    points = np.random.default_rng(2).uniform((30, 30), (110, 90), (60, 2))
    path = survey(tmp_path / "a.gpkg", *(("roof", shapely.Point(*at)) for at in points))
    options = Options(solver=FixedPoint(times=(1.0,)), **SMALL)
    before = segment(image, tmp_path / "before.tif", prior=network, options=options)
    told = Options(solver=FixedPoint(times=(1.0,)), survey=(SurveySource(str(path)),), **SMALL)
    after = segment(image, tmp_path / "after.tif", prior=network, options=told)
    assert after.shares["roof"] > before.shares["roof"] + 0.1
    assert after.valid == before.valid
    with rasterio.open(tmp_path / "after.tif") as mask:
        assert mask.tags()["SEGPRIOR_SURVEY"].startswith("a.gpkg, ")
    with rasterio.open(tmp_path / "before.tif") as mask:
        assert "SEGPRIOR_SURVEY" not in mask.tags()


def test_the_command_takes_a_survey(
    tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survey(tmp_path / "image_survey.gpkg", ("roof", shapely.Point(50, 50)), ("road", shapely.Point(80, 70)))
    told = f"{tmp_path}/{{stem}}_survey.gpkg:class=class"
    done = call(capsys, "segment", image, "--output-dir", tmp_path / "masks", "--prior", prior, "--survey", told)
    assert done.code == 0, done.stderr
    with rasterio.open(tmp_path / "masks" / "image.tif") as mask:
        assert "class class" in mask.tags()["SEGPRIOR_SURVEY"]


@pytest.mark.parametrize(
    "case",
    [
        ("none.gpkg", "there is no file none.gpkg"),
        ("away.gpkg", "wanted surveyed places on "),
        ("here.gpkg:class=sea", "wanted a class of the prior"),
        ("here.gpkg:buffer=3m", "wanted class after the file, got buffer"),
    ],
)
def test_a_survey_that_cannot_be_used_is_refused(
    case: tuple[str, str], image: Path, prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (told, message) = image.parent, case
    monkeypatch.chdir(folder)
    survey(folder / "here.gpkg", ("roof", shapely.Point(50, 50)))
    survey(folder / "away.gpkg", ("roof", shapely.Point(5000, 50)))
    before = sorted(folder.iterdir())
    done = call(capsys, "segment", image, "-o", "mask.tif", "--prior", prior, "--survey", told)
    assert done.code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_survey_has_no_settings_but_its_class() -> None:
    assert SurveySource.parse("a.gpkg:class=roof") == SurveySource("a.gpkg", "roof")
    assert SurveySource.parse("a.gpkg") == SurveySource("a.gpkg")
    with pytest.raises(SettingError, match="wanted class after the file"):
        SurveySource.parse("a.gpkg:confidence=1")


def test_regions_may_be_adapted_under_a_survey(tmp_path: Path, image: Path, prior: Path) -> None:
    path = survey(tmp_path / "a.gpkg", ("roof", shapely.Point(50, 50)))
    source = (SurveySource(str(path)),)
    plan = Adaptation(str(prior), (str(image),), tmp_path / "new.safetensors", Options(survey=source))
    tags = plan.about["images"][0][1]
    assert tags["SEGPRIOR_SURVEY"].startswith("a.gpkg, ")


@pytest.mark.parametrize("which", ["prior", "plain"])
def test_a_click_turns_what_is_around_it(
    request: pytest.FixtureRequest, tmp_path: Path, image: Path, which: str
) -> None:
    """A certain point changes more of the map than its pixel, for the class it names; an uncertain one does not."""
    network = request.getfixturevalue(which)
    path = survey(tmp_path / "a.gpkg", ("roof", shapely.Point(70.5, 60.5)))
    near = (slice(50, 71), slice(60, 81))

    def probabilities(known: tuple[KnownSource, ...]) -> NDArray[np.float32]:
        options = Options(solver=FixedPoint(times=(1.0,)), known=known, **SMALL)
        with open_scene(image, res=0.5) as scene:
            parts = [strip.values for strip in strips(image, scene, prior=network, options=options)]
        found: NDArray[np.float32] = np.concatenate(parts, axis=1)[ROOF]
        return found

    before, after = probabilities(()), probabilities((KnownSource(str(path)),))
    doubtful = probabilities((KnownSource(str(path), confidence=0.9),))
    assert after[60, 70] > 0.99
    assert (after > before + 1e-3)[near].mean() > 0.2
    assert (np.abs(doubtful - before) > 1e-3).sum() == 1


def test_clicks_are_looked_at_with_quiet_places(image: Path, prior: Path) -> None:
    loaded = load_prior(prior)
    clicks = Spots(np.array([60, 5, 500]), np.array([60, 5, 60]), np.array([1, 1, 1], np.uint8))
    with open_scene(image, res=0.5) as scene:
        look = Look(scene, loaded, **SMALL, device="cpu")
        found = clicked(clicks, look)
        assert found is not None
        assert found.at is not None
        assert [60, 60] in found.at.tolist()
        assert [5, 5] not in found.at.tolist()  # no data there
        assert 1 + 0.8 * QUIET < len(found.at) <= 1 + QUIET
        assert clicked(clicks.taken(np.array([1])), look) is None
        assert clicked(clicks.taken(np.array([2])), look) is None
