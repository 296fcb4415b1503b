"""Hints, against cells counted by hand, other libraries' warps, and what they do to masks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from commands import call
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

from segprior.errors import SettingError
from segprior.hint import Cells, HintSource, HintTable, read_hint
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.raster import grid_of
from segprior.scene import open_scene
from segprior.segmentation import segment
from segprior.windows import Window

UTM: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
COARSE: dict[str, Any] = {"crs": UTM["crs"], "transform": Affine(5.0, 0, 500_005, 0, -5.0, 3_000_000)}
"""Ten pixels of the image each, from its eleventh column on."""
LOCAL = CRS.from_wkt('LOCAL_CS["a site",UNIT["metre",1]]')

ONE = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """90 x 110 pixels of half a metre."""
    return write_raster(tmp_path / "image.tif", checkered(3, 90, 110), **UTM)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


def shares_of(seed: int = 0, shape: tuple[int, int] = (9, 8)) -> npt.NDArray[np.float32]:
    """Shares (3, rows, columns) of cells."""
    return np.random.default_rng(seed).dirichlet([1, 1, 1], size=shape).transpose(2, 0, 1).astype(np.float32)


def shares_file(path: Path, shares: npt.NDArray[Any], names: tuple[str, ...] = LEGEND.names, **place: Any) -> Path:
    write_raster(path, shares, **(place or COARSE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # some are not
        with rasterio.open(path, "r+") as dataset:
            dataset.descriptions = names
    return path


def read(image: Path, source: HintSource, window: Window | None = None, *, res: float = 0.5) -> Cells:
    with open_scene(image, res=res) as scene:
        return read_hint(source, scene, LEGEND, window or Window(0, 0, scene.height, scene.width))


def spread(cells: Cells) -> npt.NDArray[np.float32]:
    """Shares of every pixel (3, rows, columns), NaN for none."""
    rows = np.append(cells.shares, np.full((1, 3), np.nan, np.float32), axis=0)
    return rows[cells.index].transpose(2, 0, 1)


def test_cells_are_the_pixels_of_the_hint(tmp_path: Path, image: Path) -> None:
    shares = shares_of()
    path = shares_file(tmp_path / "hint.tif", shares)
    cells = read(image, HintSource(str(path)))
    expected = np.full((3, 90, 110), np.nan, np.float32)
    expected[:, :, 10:90] = np.kron(shares, np.ones((10, 10)))
    np.testing.assert_allclose(spread(cells), expected, atol=1e-6)
    for row in range(9):
        block = cells.index[row * 10 : row * 10 + 10, 10:20]
        assert len(np.unique(block)) == 1
    part = read(image, HintSource(str(path)), Window(25, 64, 64, 64))
    wanted = np.full((3, 64, 64), np.nan, np.float32)
    wanted[:, :, :46] = expected[:, 25:89, 64:110]
    np.testing.assert_allclose(spread(part), wanted, atol=1e-6)


def test_a_window_knows_how_much_of_a_cell_it_sees(tmp_path: Path, image: Path) -> None:
    """By area, at the working resolution; cells that the raster or the window cuts are seen in part."""
    path = shares_file(tmp_path / "hint.tif", shares_of(shape=(20, 20)))
    for res, pixels in ((0.5, 1.0), (1.0, 2.0)):
        cells = read(image, HintSource(str(path)), Window(0, 0, 64, 64), res=res)
        seen = np.bincount(cells.index[cells.index >= 0], minlength=len(cells.parts)) * pixels**2 / 100
        np.testing.assert_allclose(cells.parts, seen, rtol=1e-5)
    assert cells.parts.max() == pytest.approx(1)
    turned = {"crs": UTM["crs"], "transform": Affine(4, 3, 500_000, 3, -4, 2_999_990)}
    tilted = shares_file(tmp_path / "tilted.tif", shares_of(shape=(20, 20)), **turned)
    cells = read(image, HintSource(str(tilted)), Window(0, 0, 64, 64))
    seen = np.bincount(cells.index[cells.index >= 0], minlength=len(cells.parts))
    assert (seen == 0).any(), "cells in the corners of what is read have no pixel"
    np.testing.assert_allclose(cells.parts, np.where(seen > 0, np.minimum(1, seen / 100), 1), rtol=1e-5)
    wide = read(image, HintSource(str(path), window=50.0), Window(0, 0, 64, 64))
    np.testing.assert_allclose(wide.parts, [64 * 54 / 100**2], rtol=1e-5)


def test_a_window_averages_blocks_and_leaves_out_what_is_not_known(tmp_path: Path, image: Path) -> None:
    shares = shares_of()
    shares[:, 0, 0] = np.nan
    path = shares_file(tmp_path / "hint.tif", shares)
    cells = read(image, HintSource(str(path), window=15.0))
    expected = np.nanmean(shares[:, :3, :3].reshape(3, -1), axis=1)
    np.testing.assert_allclose(cells.shares[cells.index[5, 25]], expected, atol=1e-6)
    assert len(np.unique(cells.index[:30, 10:40])) == 1
    np.testing.assert_allclose(cells.shares[cells.index[80, 85]], shares[:, 6:9, 6:8].mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_other_coordinates_are_found_as_gdal_finds_them(tmp_path: Path, image: Path, crs: str) -> None:
    """Cells by the centres of the pixels, against rasterio's own transform of them; at a coarser working grid too."""
    with rasterio.open(image) as dataset:
        bounds = rasterio.warp.transform_bounds(dataset.crs, crs, *dataset.bounds)
    west, south, east, north = bounds
    step = Affine((east - west) / 8, 0, west, 0, (south - north) / 9, north)
    place: dict[str, Any] = {"crs": CRS.from_string(crs), "transform": step}
    shares = shares_of(1)
    path = shares_file(tmp_path / "hint.tif", shares, **place)
    for res, size in ((0.5, 1), (1.0, 2)):
        cells = read(image, HintSource(str(path)), res=res)
        rows, cols = np.mgrid[: 90 // size, : 110 // size]
        x, y = UTM["transform"] @ np.stack([((cols + 0.5) * size).ravel(), ((rows + 0.5) * size).ravel()])
        x, y = transform(UTM["crs"], place["crs"], x, y)
        across, down = (~place["transform"]) @ np.stack([np.asarray(x), np.asarray(y)])
        inside = (across >= 0) & (across < 8) & (down >= 0) & (down < 9)
        expected = np.full((3, rows.size), np.nan, np.float32)
        expected[:, inside] = shares[:, down[inside].astype(int), across[inside].astype(int)]
        np.testing.assert_allclose(spread(cells).reshape(3, -1), expected, atol=1e-6)
        assert inside.mean() > 0.95


TABLE = """
[11]
road = 0.9
background = 0.1

[42]
roof = 1.0
"""


def test_a_map_of_classes_is_translated_by_its_table(tmp_path: Path, image: Path) -> None:
    values = np.full((1, 9, 8), 42, np.uint8)
    values[0, 0, :3] = 11
    values[0, 1] = 7  # in no row of the table
    values[0, 2] = 255  # nodata
    path = write_raster(tmp_path / "nlcd.tif", values, nodata=255, **COARSE)
    (tmp_path / "nlcd.toml").write_text(TABLE, encoding="utf-8")
    found = spread(read(image, HintSource(str(path), table=str(tmp_path / "nlcd.toml"))))
    np.testing.assert_allclose(found[:, 5, 15], [0.1, 0.0, 0.9], atol=1e-6)
    np.testing.assert_allclose(found[:, 55, 15], [0.0, 1.0, 0.0], atol=1e-6)
    assert np.isnan(found[:, 10:30]).all()
    (tmp_path / "nlcd.toml").write_text("[42]\nroad = 1.0\n", encoding="utf-8")
    again = spread(read(image, HintSource(str(path), table=str(tmp_path / "nlcd.toml"))))
    np.testing.assert_allclose(again[:, 55, 15], [0.0, 0.0, 1.0], atol=1e-6)


def test_pictures_without_a_place_lie_on_each_other(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", checkered(3, 90, 110))
    shares = shares_of(shape=(9, 11))
    path = shares_file(tmp_path / "hint.tif", shares, crs=None)
    expected = np.kron(shares, np.ones((10, 10)))
    np.testing.assert_allclose(spread(read(image, HintSource(str(path)))), expected, atol=1e-6)


def test_bytes_with_a_scale_and_some_of_the_classes(tmp_path: Path, image: Path) -> None:
    shares = np.full((1, 9, 8), 127, np.uint8)
    path = shares_file(tmp_path / "hint.tif", shares, ("roof",))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (1 / 254,)
    found = spread(read(image, HintSource(str(path))))
    np.testing.assert_allclose(found[1, :, 10:90], 0.5, atol=1e-6)
    assert np.isnan(found[[0, 2]]).all()


def test_a_mask_that_listens(tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell's mean probability comes nearer to its hint; at weight 0 the mask is the one without."""
    shares = shares_of()
    path = shares_file(tmp_path / "hint.tif", shares)

    def cells_of(name: str, *words: object) -> npt.NDArray[np.float64]:
        bands = tmp_path / f"{name}.p.tif"
        settings = ("--prior", prior, "--steps", 1, "--tile-size", 64, "--overlap", 32, "--probabilities", bands)
        found = call(capsys, "segment", image, "-o", tmp_path / f"{name}.tif", *settings, *words)
        assert (found.code, found.stderr) == (0, "")
        with rasterio.open(bands) as dataset:
            p = dataset.read()[:, :, 10:90]
        return p.reshape(3, 9, 10, 8, 10).mean(axis=(2, 4))

    free = cells_of("free")
    off = [np.abs(cells_of(f"w{w}", "--hint", f"{path}:weight={w}") - shares).mean() for w in (0, 1, 20)]
    assert off[0] == pytest.approx(np.abs(free - shares).mean(), abs=1e-6)
    assert off[0] > off[1] > off[2]
    twice = np.abs(cells_of("twice", "--hint", f"{path}:weight=2", "--weight", "hint=5", "--weight", "hint=2") - shares)
    assert twice.mean() == pytest.approx(off[2], abs=1e-6)
    assert off[2] < 0.05
    with rasterio.open(tmp_path / "w20.tif") as dataset:
        assert dataset.tags()["SEGPRIOR_HINTS"].endswith("weight 20")


def test_two_hints_and_two_particles_in_python(tmp_path: Path, image: Path, prior: Path) -> None:
    """Windows of a batch have cells of their own: batches of any size give the same."""
    first = HintSource(str(shares_file(tmp_path / "a.tif", shares_of(0))))
    second = HintSource(str(shares_file(tmp_path / "b.tif", shares_of(1))), window=10.0)

    def mask(name: str, batch: int, *hints: HintSource) -> npt.NDArray[np.uint8]:
        options = Options(solver=ONE.solver, tile_size=64, overlap=32, batch_size=batch, samples=2, hints=hints)
        segment(image, tmp_path / name, prior=prior, options=options)
        with rasterio.open(tmp_path / name) as dataset:
            found: npt.NDArray[np.uint8] = dataset.read(1)
        return found

    both = mask("c.tif", 4, first, second)
    np.testing.assert_array_equal(mask("d.tif", 1, first, second), both)
    assert (mask("e.tif", 4, first) != both).any()


def test_bad_hints_are_one_line(tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = shares_file(tmp_path / "good.tif", shares_of())
    table, empty, sums = tmp_path / "t.toml", tmp_path / "empty.toml", tmp_path / "sums.toml"
    table.write_text(TABLE)
    empty.write_text("")
    sums.write_text("[11]\nroof = 0.9\nroad = 0.4\n")
    far = shares_file(tmp_path / "far.tif", shares_of(), crs=UTM["crs"], transform=Affine(5, 0, 9e5, 0, -5, 3e6))
    cases: dict[tuple[object, ...], str] = {
        (tmp_path / "none.tif",): "none.tif",
        (shares_file(tmp_path / "names.tif", shares_of(), ("a", "b", "c")),): "its band names are a, b, c",
        (shares_file(tmp_path / "much.tif", shares_of() * 100),): "wanted shares in [0, 1]",
        (shares_file(tmp_path / "nowhere.tif", shares_of(), crs=None),): "one of it and",
        (far,): "has no pixel under",
        (shares_file(tmp_path / "local.tif", shares_of(), crs=LOCAL, transform=COARSE["transform"]),): "cannot place",
        (good, "--weight", "clusters=2"): "wanted --clusters for its weight, got none",
        (f"{good}:table={table}",): "wanted one band of whole numbers for a table",
        (f"{good}:table={empty}",): "wanted tables [VALUE] of class = share",
        (f"{good}:table={sums}",): "wanted shares that sum to 1 for [11]",
        (f"{good}:table={tmp_path / 'none.toml'}",): "No such file or directory",
        (f"{good}:window=0",): "wanted a window above 0 metres",
        (f"{good}:weight=-1",): "wanted a weight of 0 or more",
        (f"{good}:weight=much",): "wanted numbers for window and weight",
        (good, "--hint-table", empty): "wanted tables [VALUE]",
    }
    for words, expected in cases.items():
        found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--hint", *words)
        assert (found.code, found.stderr.count("\n")) == (2, 1), found.stderr
        assert expected in found.stderr
        assert not (tmp_path / "mask.tif").exists()
    for wrong in ("hint=-1", "hint=much", "roof=2", "hint"):
        words = ("--prior", prior, "--hint", good, "--weight", wrong)
        found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", *words)
        assert (found.code, found.stderr.count("\n")) == (2, 1)
        assert "wanted unary=NUMBER, hint=NUMBER, clusters=NUMBER as a weight" in found.stderr
    alone = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--hint-table", table)
    assert (alone.code, alone.stderr.count("\n")) == (2, 1)


def test_a_source_says_what_it_may_be() -> None:
    assert HintSource.parse("a.tif") == HintSource("a.tif")
    assert HintSource.parse("a.tif:table=t.toml,window=90m,weight=2") == HintSource("a.tif", "t.toml", 90.0, 2.0)
    with pytest.raises(SettingError, match="window"):
        HintSource("a.tif", window=float("nan"))


def test_the_cells_of_a_hint_know_their_ground(tmp_path: Path) -> None:
    with rasterio.open(shares_file(tmp_path / "a.tif", shares_of())) as dataset:
        assert grid_of(dataset).res == pytest.approx((5.0, 5.0), rel=1e-3)


def test_values_of_a_table_may_be_below_zero(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("[-1]\nroof = 1.0\n\n[7]\nroad = 1.0\n")
    found = HintTable.read(str(path), LEGEND).translate(np.array([[-1, 7, 3]]))
    np.testing.assert_array_equal(found[1, 0], [1.0, 0.0, np.nan])
    for wrong in ("a", '"²"', "1-"):
        path.write_text(f"[{wrong}]\nroof = 1.0\n")
        with pytest.raises(SettingError, match=r"wanted tables \[VALUE\]"):
            HintTable.read(str(path), LEGEND)
