"""Shares of zones, against counting by hand, the transport problem solved exactly, and whole runs."""

from __future__ import annotations

from collections.abc import Iterator
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
from rasters import write_raster
from scipy.optimize import linear_sum_assignment
from tiny import LEGEND, tiny_prior

from segprior import census
from segprior.census import Rows, SharesSource, Tally, Tilt, Zones, open_zones
from segprior.errors import SettingError
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.raster import Grid
from segprior.segmentation import segment

UTM: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
GRID = Grid(90, 110, UTM["transform"], UTM["crs"])
OPTIONS = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32, batch_size=2)

Probabilities = npt.NDArray[np.float32]


def raster(seed: int = 0) -> Probabilities:
    """Class probabilities (3, 90, 110) with a corner of no data."""
    p = np.random.default_rng(seed).dirichlet([0.6, 0.5, 0.2], size=(90, 110)).transpose(2, 0, 1).astype(np.float32)
    p[:, 70:, :30] = np.nan
    return p


def by_rows(p: Probabilities, step: int = 40) -> Rows:
    def rows() -> Iterator[tuple[int, Probabilities]]:
        return ((row, p[:, row : row + step]) for row in range(0, p.shape[1], step))

    return rows


def zones_file(path: Path, **columns: Any) -> Path:
    """Two zones, the second on top of a part of the first, and one that lies elsewhere."""
    boxes = [shapely.box(10, 10, 60, 50), shapely.box(40, 30, 110, 90), shapely.box(500, 0, 510, 10)]
    shapes = [shapely.transform(b, lambda xy: (500_000, 3_000_000) + xy * (0.5, -0.5)) for b in boxes]
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=32645).to_crs("EPSG:4326").to_file(path)
    return path


def table(path: Path, text: str) -> Path:
    path.write_text(f"[shares]\n{text}\n", encoding="utf-8")
    return path


def decided(p: Probabilities, index: npt.NDArray[np.int32], zone: int) -> npt.NDArray[np.float64]:
    """Shares of the decided classes in a zone."""
    inside = (index == zone) & np.isfinite(p[0])
    return np.bincount(p[:, inside].argmax(axis=0), minlength=3) / inside.sum()


def test_zones_are_where_their_pixels_are_the_last_on_top(tmp_path: Path) -> None:
    path = zones_file(tmp_path / "zones.gpkg", roof=[0.2, None, 0.5], road=[0.1, 0.3, 0.5])
    found = open_zones(SharesSource(str(path)), GRID, LEGEND)
    expected = np.full((90, 110), -1)
    expected[10:50, 10:60] = 0
    expected[30:90, 40:110] = 1
    np.testing.assert_array_equal(np.concatenate([found.index(row, 30) for row in (0, 30, 60)]), expected)
    np.testing.assert_allclose(found.shares, [[np.nan, 0.2, 0.1], [np.nan, np.nan, 0.3]])


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_decided_classes_keep_the_shares_of_every_zone(tmp_path: Path, tolerance: float) -> None:
    wanted = {"background": [0.2, 0.8, 1.0], "roof": [0.3, 0.1, 0.0], "road": [0.5, 0.1, 0.0]}
    zones = open_zones(SharesSource(str(zones_file(tmp_path / "zones.gpkg", **wanted))), GRID, LEGEND)
    p, index = raster(), zones.index(0, 90)
    before = [decided(p, index, zone) for zone in range(2)]
    tilted = Tilt.of(by_rows(p), zones, tolerance=tolerance)(0, p)
    for zone in range(2):
        off = np.abs(decided(tilted, index, zone) - zones.shares[zone])
        assert off.max() < tolerance + 0.015
        assert np.abs(before[zone] - zones.shares[zone]).max() > tolerance + 0.1
        if tolerance:
            assert off.max() > tolerance - 0.015, "no farther than asked"
    np.testing.assert_array_equal(tilted[:, index < 0], p[:, index < 0])
    np.testing.assert_array_equal(np.isnan(tilted), np.isnan(p))
    np.testing.assert_allclose(np.nansum(tilted, axis=0)[np.isfinite(p[0])], 1.0, atol=1e-5)


def test_the_map_is_the_likeliest_of_those_that_keep_the_shares() -> None:
    """The transport problem: log-likelihood of the decided map against an exact assignment with the same counts."""
    p = raster(1)[:, :20, :30]
    shares = np.array([[0.2, 0.3, 0.5]], np.float32)
    tilted = Tilt.of(by_rows(p), Zones(shares, None, ("all",), 30))(0, p)
    mine = tilted.reshape(3, -1).argmax(axis=0)
    logs = np.log(np.maximum(p.reshape(3, -1), 1e-6))
    seats = np.repeat(np.arange(3), np.bincount(mine, minlength=3))
    pixels, places = linear_sum_assignment(-logs[seats].T)
    best = logs[seats[places], pixels].sum()
    got = logs[mine, np.arange(600)].sum()
    assert got == pytest.approx(best, rel=1e-4)
    assert logs.max(axis=0).sum() > best + 100, "the free map is another one"


def test_a_sample_is_enough_and_every_zone_has_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "SAMPLE", 3000)
    monkeypatch.setattr(census, "ZONE_LEAST", 800)
    zones = open_zones(SharesSource(str(zones_file(tmp_path / "zones.gpkg", roof=[0.5, 0.1, 0.0]))), GRID, LEGEND)
    p, index = raster(), zones.index(0, 90)
    tilted = Tilt.of(by_rows(p), zones)(0, p)
    assert decided(tilted, index, 0)[1] == pytest.approx(0.5, abs=0.05)
    assert decided(tilted, index, 1)[1] == pytest.approx(0.1, abs=0.05)


def test_many_zones_do_not_make_a_sample_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is asked of a zone without a pixel, which would never be met."""
    monkeypatch.setattr(census, "SAMPLE", 600)
    monkeypatch.setattr(census, "ZONE_LEAST", 4000)
    drawn: list[tuple[int, ...]] = []
    found = census.decided_tilts

    def spy(p: Any, index: Any, shares: Any, **more: Any) -> Any:
        drawn.append(tuple(p.shape))
        assert bool(shares[2].isnan().all())
        return found(p, index, shares, **more)

    monkeypatch.setattr(census, "decided_tilts", spy)
    p = raster()
    p[:, 60:, 60:] = np.nan
    boxes = [shapely.box(10, 10, 60, 50), shapely.box(0, 50, 60, 70), shapely.box(70, 70, 100, 90)]
    shapes = [shapely.transform(b, lambda xy: (500_000, 3_000_000) + xy * (0.5, -0.5)) for b in boxes]
    frame = geopandas.GeoDataFrame({"roof": [0.5, 0.1, 0.3]}, geometry=shapes, crs=32645)
    frame.to_file(tmp_path / "zones.gpkg")
    Tilt.of(by_rows(p), open_zones(SharesSource(str(tmp_path / "zones.gpkg")), GRID, LEGEND))
    assert 400 < drawn[0][0] < 900


def test_the_tally_counts_and_finds_what_is_farthest_off() -> None:
    zones = Zones(np.array([[0.5, 0.5, np.nan]], np.float32), None, ("all",), 4)
    tally = Tally(LEGEND, zones)
    tally.add(0, np.array([[0, 0, 4, 255]], np.uint8))
    tally.add(1, np.array([[0, 0, 0, 2]], np.uint8))
    assert tally.valid == 7
    assert tally.shares == pytest.approx({"background": 5 / 7, "roof": 1 / 7, "road": 1 / 7})
    off = tally.off()
    assert off is not None
    assert (off.zone, off.name, off.wanted) == ("all", "roof", 0.5)
    assert off.share == pytest.approx(1 / 7)
    assert Tally(LEGEND, None).off() is None


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """No two pixels alike, so that any share can be had."""
    noise = np.random.default_rng(0).integers(1, 255, (3, 90, 110), dtype=np.uint8)
    return write_raster(tmp_path / "image.tif", noise, **UTM)


def test_a_mask_with_the_shares_it_was_asked_for(
    tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = table(tmp_path / "shares.toml", "roof = 0.31\nroad = 0.4")
    mask, bands = tmp_path / "mask.tif", tmp_path / "p.tif"
    settings = ("--prior", prior, "--shares", f"{shares}:tolerance=0.01", "--probabilities", bands)
    found = call(capsys, "segment", image, "-o", mask, *settings)
    assert (found.code, found.stderr) == (0, "")
    assert "is farthest off" in found.stdout
    with rasterio.open(mask) as dataset, rasterio.open(bands) as q:
        classes, tags, decisions = dataset.read(1), dataset.tags(), q.read().argmax(axis=0)
    assert np.mean(classes == 4) == pytest.approx(0.31, abs=0.02)
    assert np.mean(classes == 2) == pytest.approx(0.4, abs=0.02)
    np.testing.assert_array_equal(LEGEND.to_value(decisions.astype(np.uint8)), classes)
    assert tags["SEGPRIOR_SHARES"].endswith("tolerance 0.01")


def test_shares_of_zones_and_an_interruption(tmp_path: Path, image: Path, prior: Path) -> None:
    """Zones of their own, and the same mask after an interruption as without one."""
    path = zones_file(tmp_path / "zones.gpkg", roof=[0.9, 0.1, 0.0])
    options = Options(solver=OPTIONS.solver, tile_size=64, overlap=32, shares=SharesSource(str(path)))

    def stopped(done: int, rows: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    def run(name: str, **more: Any) -> npt.NDArray[np.uint8]:
        segment(image, tmp_path / name, prior=prior, options=options, confidence=tmp_path / f"c{name}", **more)
        with rasterio.open(tmp_path / name) as dataset:
            found: npt.NDArray[np.uint8] = dataset.read(1)
        return found

    whole = run("a.tif")
    index = open_zones(SharesSource(str(path)), GRID, LEGEND).index(0, 90)
    assert np.mean(whole[index == 0] == 4) == pytest.approx(0.9, abs=0.02)
    assert np.mean(whole[index == 1] == 4) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(KeyboardInterrupt):
        run("b.tif", progress=stopped)
    np.testing.assert_array_equal(run("b.tif"), whole)
    with rasterio.open(tmp_path / "ca.tif") as first, rasterio.open(tmp_path / "cb.tif") as second:
        np.testing.assert_array_equal(first.read(), second.read())


def test_shares_no_map_can_have(tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "roof = 0.9\nroad = 0.4": "wanted shares that sum to at most 1 for {}, got 1.3",
        "roof = 0.1\nroad = 0.1\nbackground = 0.1": "wanted shares that sum to 1 for {}, got 0.3",
        "lake = 0.9": "wanted classes of the prior (background, roof, road) for {}, got lake",
        "roof = 34": "wanted a share of roof from 0 to 1 for {}, got 34",
        "roof = 'much'": "wanted a number as the share of roof for {}, got 'much'",
        "": "wanted one table [shares] of class = share in {}, got shares",
        "roof = ": "wanted a table of shares in {}: Invalid value",
    }
    for text, words in cases.items():
        path = table(tmp_path / "shares.toml", text)
        found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--shares", path)
        assert (found.code, found.stderr.count("\n")) == (2, 1)
        assert words.format(path) in found.stderr
        assert not (tmp_path / "mask.tif").exists()


def test_zones_that_cannot_be_used(
    tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = tmp_path / "far.gpkg"
    geopandas.GeoDataFrame({"roof": [0.1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32645).to_file(far)
    empty = tmp_path / "empty.gpkg"
    geopandas.GeoDataFrame({"roof": [0.1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32645).iloc[:0].to_file(empty)
    cases = {
        str(zones_file(tmp_path / "a.gpkg", people=[1, 2, 3])): "wanted columns of",
        str(zones_file(tmp_path / "b.gpkg", roof=[0.1, 1.3, 0.1])): "wanted a share of roof from 0 to 1 for zone 1",
        str(far): "none of the 1 in",
        str(empty): "none of the 0 in",
        str(tmp_path / "none.gpkg"): "there is no file",
        str(tmp_path / "none.toml"): "No such file or directory",
        f"{far}:tolerance=2": "wanted a tolerance from 0 to 1",
        f"{far}:tolerance=x": "wanted a number for tolerance",
        f"{far}:within=2": "wanted tolerance after the file",
    }
    for text, words in cases.items():
        found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--shares", text)
        assert (found.code, found.stderr.count("\n")) == (2, 1), text
        assert words in found.stderr
        assert not (tmp_path / "mask.tif").exists()


def test_a_source_says_what_it_may_be() -> None:
    assert SharesSource.parse("a.toml") == SharesSource("a.toml")
    assert SharesSource.parse("a b.gpkg:tolerance=0.05") == SharesSource("a b.gpkg", 0.05)
    with pytest.raises(SettingError, match="tolerance"):
        SharesSource("a.toml", float("nan"))
