"""Scenes: windows against the whole, strips against all at once, on rasters of every make."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasters import checkered, write_raster
from scipy.ndimage import binary_erosion, map_coordinates

from segprior import native as native_module
from segprior import scene as scene_module
from segprior.errors import RasterError, SettingError
from segprior.native import to_native
from segprior.scene import Scene, open_scene
from segprior.stretch import Stretch
from segprior.windows import Window

NEPAL = Affine(0.15, 0, 9520461, 0, -0.15, 3201259)

PLACES: dict[str, dict[str, Any]] = {
    "web mercator": {"crs": "EPSG:3857", "transform": NEPAL},
    "degrees": {"crs": "EPSG:4326", "transform": Affine(1.4e-6, 0, 25, 0, -1.1e-6, 60)},
    "feet": {"crs": "EPSG:2263", "transform": Affine(0.4, 0, 980000, 0, -0.4, 200000)},
    "utm": {"crs": "EPSG:32645", "transform": Affine(0.2, 0, 350000, 0, -0.2, 3050000)},
    "rotated": {"crs": "EPSG:32645", "transform": Affine(0.1, 0.08, 350000, 0.08, -0.1, 3050000)},
    "nowhere": {},
}


@dataclass(frozen=True)
class Strip:
    row: int
    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


def cut(values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], heights: list[int]) -> Iterator[Strip]:
    row = 0
    while row < len(valid):
        height = heights[row % len(heights)]
        yield Strip(row, values[:, row : row + height], valid[row : row + height])
        row += height


def whole(scene: Scene) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    return scene.read(Window(0, 0, scene.height, scene.width))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("res", [0.3, 0.1])
def test_working_pixels_have_the_size_asked_for(tmp_path: Path, place: str, res: float) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(3, 220, 330), **PLACES[place])
    with open_scene(path, res=res, pixel_res=0.15 if place == "nowhere" else None) as scene:
        native = scene.grid.res or (0.15, 0.15)
        assert native[0] * scene.scale[0] == pytest.approx(res, rel=0.006)
        assert native[1] * scene.scale[1] == pytest.approx(res, rel=0.006)
        image, valid = whole(scene)
        assert image.shape == (3, scene.height, scene.width)
        assert image.dtype == np.float32
        assert valid.all()
        assert abs(image.mean() - checkered(3, 220, 330).mean()) < 1


@pytest.mark.parametrize("mask_kind", ["none", "nodata", "internal", "alpha"])
@pytest.mark.parametrize("pixel_res", [0.3 / 2.26, 0.6, 0.3, 0.25])
def test_windows_are_cuts_of_the_whole(tmp_path: Path, mask_kind: str, pixel_res: float) -> None:
    pixels = checkered(3, 150, 210)
    mask = np.add.outer((np.arange(150) - 75) ** 2, (np.arange(210) - 100) ** 2) < 70**2
    path = write_raster(tmp_path / "a.tif", np.where(mask, pixels | 1, 0), mask=mask, mask_kind=mask_kind, tiled=True)
    rng = np.random.default_rng(0)
    with open_scene(path, res=0.3, pixel_res=pixel_res) as scene:
        image, valid = whole(scene)
        assert valid.all() == (mask_kind == "none")
        assert (image[:, ~valid] == 0).all()
        for _ in range(15):
            row, col = int(rng.integers(scene.height)), int(rng.integers(scene.width))
            height = int(rng.integers(1, scene.height - row + 1))
            width = int(rng.integers(1, scene.width - col + 1))
            part, known = scene.read(Window(row, col, height, width))
            np.testing.assert_allclose(part, image[:, row : row + height, col : col + width], atol=1e-3)
            np.testing.assert_array_equal(known, valid[row : row + height, col : col + width])


def test_whole_factors_are_block_means(tmp_path: Path) -> None:
    pixels = checkered(3, 80, 120)
    with open_scene(write_raster(tmp_path / "a.tif", pixels), res=1.0, pixel_res=0.5) as scene:
        assert scene.scale == (2.0, 2.0)
        image, _ = whole(scene)
    np.testing.assert_allclose(image, pixels.reshape(3, 40, 2, 60, 2).mean((2, 4)), atol=1e-4)


def test_scale_one_is_the_file_itself(tmp_path: Path) -> None:
    pixels = checkered(4, 33, 57)
    path = write_raster(tmp_path / "a.tif", pixels, photometric="minisblack")
    for settings in ({}, {"pixel_res": 0.3}, {"pixel_res": 0.298}):
        with open_scene(path, res=0.3, bands=(4, 2), **settings) as scene:
            assert scene.scale == (1.0, 1.0)
            np.testing.assert_array_equal(whole(scene)[0], pixels[[3, 1]])


@pytest.mark.parametrize("pixel_res", [0.3, 0.133, 0.6])
def test_what_sticks_out_is_mirrored_and_not_valid(tmp_path: Path, pixel_res: float) -> None:
    with open_scene(write_raster(tmp_path / "a.tif", checkered(3, 40, 50)), res=0.3, pixel_res=pixel_res) as scene:
        image, valid = whole(scene)
        h, w = valid.shape
        padded = np.pad(image, ((0, 0), (0, 300), (0, 31)), mode="symmetric")
        part, known = scene.read(Window(0, 0, h + 300, w + 31))
        np.testing.assert_allclose(part, padded, atol=1e-4)
        np.testing.assert_array_equal(known, np.pad(valid, ((0, 300), (0, 31))))
        part, known = scene.read(Window(h - 5, w - 6, 32, 32))
        np.testing.assert_allclose(part, padded[:, h - 5 : h + 27, w - 6 : w + 26], atol=1e-4)
        assert known.sum() == 30
        assert not scene.read(Window(h, 0, 32, 32))[1].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("pixel_res", [0.133, 0.3, 0.6])
def test_thin_rasters(tmp_path: Path, shape: tuple[int, int], pixel_res: float) -> None:
    pixels = np.full((3, *shape), 77, np.uint8)
    with open_scene(write_raster(tmp_path / "a.tif", pixels), res=0.3, pixel_res=pixel_res) as scene:
        image, valid = scene.read(Window(0, 0, 32, 32))
        np.testing.assert_allclose(image, 77, atol=1e-3)
        assert valid.sum() == min(32, scene.height) * min(32, scene.width)
        native = list(to_native(cut(*whole(scene), [32]), scene))
        np.testing.assert_allclose(np.concatenate([s.values for s in native], axis=1), pixels, atol=1e-3)


def test_a_pixel_is_valid_if_anything_under_it_is_and_is_the_mean_of_that(tmp_path: Path) -> None:
    pixels = np.full((3, 8, 8), 0, np.uint8)
    pixels[:, 3, 4] = 200
    with open_scene(write_raster(tmp_path / "a.tif", pixels, nodata=0), res=1.0, pixel_res=0.25) as scene:
        image, valid = whole(scene)
    assert valid.tolist() == [[False, True], [False, False]]
    assert image[0].tolist() == [[0, 200], [0, 0]]


def test_reading_in_small_pieces_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(3, 200, 100), mask=checkered(1, 200, 100)[0] > 90)
    with open_scene(path, res=0.3, pixel_res=0.07) as scene:
        image, valid = whole(scene)
        monkeypatch.setattr(scene_module, "_CHUNK", 3000)
        pieces, known = whole(scene)
    np.testing.assert_allclose(pieces, image, atol=1e-4)
    np.testing.assert_array_equal(known, valid)


@pytest.mark.parametrize("pixel_res", [0.3 / 2.26, 0.6, 0.3, 0.2, 0.45])
@pytest.mark.parametrize("heights", [[32], [1], [7, 3, 90], [1000]])
@pytest.mark.parametrize("masked", [False, True])
def test_to_native_by_strips_is_to_native_at_once(
    tmp_path: Path, pixel_res: float, heights: list[int], masked: bool
) -> None:
    mask = np.add.outer(np.arange(330), np.arange(75)) > 60
    pixels = np.where(mask, checkered(3, 330, 75) | 1, 0).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, mask=mask, mask_kind="nodata" if masked else "none")
    with open_scene(path, res=0.3, pixel_res=pixel_res) as scene:
        values = np.random.default_rng(0).random((4, scene.height, scene.width), dtype=np.float32)
        _, valid = whole(scene)
        once = list(to_native(cut(values, valid, [10**6]), scene))
        parts = list(to_native(cut(values, valid, heights), scene))
    for strips in (once, parts):
        ends = np.cumsum([0] + [len(s.valid) for s in strips])
        assert [s.row for s in strips] == ends[:-1].tolist()
        assert ends[-1] == 330
    got, expected = (np.concatenate([s.values for s in strips], axis=1) for strips in (parts, once))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    known = np.concatenate([s.valid for s in parts])
    np.testing.assert_array_equal(known, mask if masked else np.ones_like(mask))
    assert (got[:, ~known] == 0).all()
    assert 0 <= got.min() <= got.max() <= 1 + 1e-6


def test_to_native_is_bilinear(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(3, 113, 226))
    with open_scene(path, res=0.226, pixel_res=0.1) as scene:
        values = np.random.default_rng(0).random((2, scene.height, scene.width), dtype=np.float32)
        strips = list(to_native(cut(values, np.ones((scene.height, scene.width), bool), [20]), scene))
        rows = (np.arange(113) + 0.5) / scene.scale[0] - 0.5
        cols = (np.arange(226) + 0.5) / scene.scale[1] - 0.5
    places = np.meshgrid(rows, cols, indexing="ij")
    expected = np.stack([map_coordinates(v.astype(np.float64), places, order=1, mode="nearest") for v in values])
    np.testing.assert_allclose(np.concatenate([s.values for s in strips], axis=1), expected, atol=1e-5)


def test_there_and_back_is_nearly_the_image(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:200, :300]
    pixels = np.stack([127 + 100 * np.sin(rows / 25) * np.cos(cols / 31)] * 3).astype(np.uint8)
    with open_scene(write_raster(tmp_path / "a.tif", pixels), res=0.3, pixel_res=0.14) as scene:
        strips = list(to_native(cut(*whole(scene), [32]), scene))
    assert abs(np.concatenate([s.values for s in strips], axis=1) - pixels).mean() < 1


def test_to_native_forgets_rows_it_has_used(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((3, 2000, 4), np.uint8))
    with open_scene(path, res=0.2, pixel_res=0.1) as scene:
        band = native_module._Band(scene)
        ones = np.ones((1000, 2), bool)
        for strip in cut(np.zeros((1, 1000, 2), np.float32), ones, [50]):
            band.add(strip)
            assert sum(len(s.valid) for s in band.take()) >= 80
            assert band.values.shape[1] <= 50 + 8


def test_strips_out_of_order_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(3, 64, 64))
    with open_scene(path, res=0.2, pixel_res=0.1) as scene:
        first = Strip(0, np.zeros((1, 8, 32), np.float32), np.ones((8, 32), bool))
        with pytest.raises(SettingError, match="from row 8, got 32 columns from row 0"):
            list(to_native([first, first], scene))


def test_bad_settings_and_bands(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(2, 8, 8), **PLACES["utm"])
    complex_ones = write_raster(tmp_path / "b.tif", checkered(3, 8, 8).astype(np.complex64))
    paletted = write_raster(tmp_path / "p.tif", checkered(1, 8, 8), photometric="palette")
    cases: list[tuple[Path, dict[str, Any], type[Exception], str]] = [
        (path, {"res": 0.3}, RasterError, r"wanted bands 1, 2, 3 of .*a\.tif, which has 2"),
        (path, {"res": 0.3, "bands": (0, 1)}, SettingError, "counted from 1, got 0, 1"),
        (path, {"res": 0.3, "bands": ()}, SettingError, "got none"),
        (path, {"res": 0.0, "bands": (1,)}, SettingError, "resolution in metres above 0, got 0.0"),
        (path, {"res": float("nan"), "bands": (1,)}, SettingError, "got nan"),
        (path, {"res": 1.0, "bands": (1,), "pixel_res": -1.0}, SettingError, "pixel size in metres above 0"),
        (path, {"res": 0.001, "bands": (1,)}, RasterError, "200 times too coarse"),
        (complex_ones, {"res": 0.3}, RasterError, "wanted bands of real numbers, .* has complex64"),
        (paletted, {"res": 0.3}, RasterError, "which has 1; expand its colour table with gdal_translate -expand rgb"),
        (
            path,
            {"res": 0.3, "bands": ("red",)},
            RasterError,
            "wanted a band for 'red' in .*, its bands are gray, undef",
        ),
        (path, {"res": 0.3, "bands": (1,), "stretch": Stretch((0, 0), (1, 1))}, SettingError, "one pair or 1, "),
        (tmp_path / "none.tif", {"res": 0.3}, RasterError, "there is no file"),
    ]
    for target, settings, kind, words in cases:
        with pytest.raises(kind, match=words) as caught, open_scene(target, **settings):
            pass
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("told", ["points", "model"])
def test_a_place_that_no_transform_tells_is_refused_with_advice(tmp_path: Path, told: str) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(3, 20, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        with rasterio.open(path, "r+") as dataset:
            if told == "points":
                corners = [GroundControlPoint(r, c, 85.0 + c / 1e4, 27.0 - r / 1e4) for r in (0, 20) for c in (0, 20)]
                dataset.gcps = (corners, rasterio.crs.CRS.from_epsg(4326))
            else:
                line = [1.0] + [0.0] * 19
                dataset.rpcs = RPC(100, 100, 27, 0.1, line, line, 10, 10, 85, 0.1, line, line, 10, 10)
    option = "-r" if told == "points" else "-rpc -r"
    with pytest.raises(RasterError, match=f"warp it first: gdalwarp {option} bilinear"), open_scene(path, res=0.3):
        pass


def test_bands_go_by_their_colours(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(4, 40, 40), **PLACES["utm"])
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    with (
        open_scene(path, res=0.2, bands=("red", "Green", "blue")) as scene,
        open_scene(path, res=0.2, bands=(3, 2, 1)) as same,
    ):
        assert scene.bands == (3, 2, 1)
        assert np.array_equal(whole(scene)[0], whole(same)[0])


@pytest.mark.parametrize("res", [0.2, 0.3])
@pytest.mark.parametrize("kind", ["uint16", "int16", "float32"])
def test_deeper_bands_are_seen_as_their_8_bit_original(tmp_path: Path, kind: str, res: float) -> None:
    """However they were requantised, and their NaN are no data at either resolution."""
    pixels = checkered(3, 90, 130)
    deep = (pixels * 12.0 + 250).astype(kind)
    plain = write_raster(tmp_path / "a.tif", pixels, **PLACES["utm"])
    holes = np.zeros((90, 130), bool)
    if kind == "float32":
        holes[30:50, 20:70] = True
        deep[1, holes] = np.nan
    path = write_raster(tmp_path / "b.tif", deep, **PLACES["utm"])
    with (
        open_scene(path, res=res, stretch=Stretch((250,), (250 + 12 * 255,))) as scene,
        open_scene(plain, res=res) as eight,
    ):
        assert eight.stretch is None
        image, valid = whole(scene)
        expected = whole(eight)[0]
        assert valid.all() == (kind != "float32")
        far = binary_erosion(valid, iterations=3, border_value=1)
        np.testing.assert_allclose(image[:, far], expected[:, far], atol=0.02)
        assert np.array_equal(scene.native_valid(10, 60), ~holes[10:70])
        native = np.concatenate([s.valid for s in to_native(cut(image, valid, [20]), scene)])
        assert not native[holes].any()
        assert native[~holes].all()
        assert np.abs(scene.thinned((45, 65)).astype(int) - eight.thinned((45, 65)))[:, :10].max() <= 1
    with open_scene(path, res=res) as scene:
        low, high = np.percentile(deep[:, ~holes].astype(float), (2, 98), axis=1)
        assert scene.stretch == Stretch(tuple(low), tuple(high))


@pytest.mark.parametrize("res", [0.2, 0.4])
def test_damaged_blocks_may_be_without_data(tmp_path: Path, res: float) -> None:
    """And nothing else: at either resolution the rest is what it is in the whole file."""
    pixels = checkered(3, 300, 330)
    profile = {
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
        "interleave": "pixel",
        **PLACES["utm"],
    }
    whole_file = write_raster(tmp_path / "a.tif", pixels, **profile)
    with rasterio.open(whole_file) as dataset:
        offset, size = (int(dataset.get_tag_item(f"BLOCK_{w}_2_1", "TIFF", bidx=1)) for w in ("OFFSET", "SIZE"))
    path = tmp_path / "b.tif"
    content = bytearray(whole_file.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    holes = np.zeros((300, 330), bool)
    holes[64:128, 128:192] = True
    with open_scene(path, res=res, pixel_res=0.2) as scene, pytest.raises(RasterError, match="damaged or cut short"):
        whole(scene)
    with (
        open_scene(path, res=res, pixel_res=0.2, lenient=True) as scene,
        open_scene(whole_file, res=res, pixel_res=0.2) as sound,
    ):
        assert np.array_equal(scene.native_valid(50, 100), ~holes[50:150])
        image, valid = whole(scene)
        expected = whole(sound)[0]
        step = round(res / 0.2)
        assert np.array_equal(~valid, holes[::step, ::step])
        far = binary_erosion(valid, iterations=2, border_value=1)
        np.testing.assert_allclose(image[:, far], expected[:, far], atol=0.02)


def test_a_cut_file_is_found_while_reading(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", checkered(3, 512, 300), tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_scene(path, res=0.3, pixel_res=0.15) as scene:
        scene.read(Window(0, 0, 20, 20))
        with pytest.raises(RasterError, match=r"cannot read rows .* cut short"):
            scene.read(Window(scene.height - 32, 0, 32, 32))


DATA = Path(os.environ.get("SEGPRIOR_DATA", "nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SEGPRIOR_DATA names no folder")


@pytest.mark.real_data
@needs_data
def test_panauti_at_thirty_centimetres() -> None:
    with open_scene(DATA / "fair/panauti_a.tif", res=0.3) as scene:
        assert abs(scene.height - 451) <= 2
        assert scene.scale[0] == pytest.approx(0.3 / 0.1323, rel=0.01)
        image, valid = whole(scene)
        part, _ = scene.read(Window(64, 128, 256, 256))
        np.testing.assert_allclose(part, image[:, 64:320, 128:384], atol=1e-3)
        assert valid.all()
        strips = list(to_native(cut(image, valid, [96]), scene))
    with rasterio.open(DATA / "fair/panauti_a.tif") as dataset:
        native = dataset.read()
    assert abs(np.concatenate([s.values for s in strips], axis=1) - native).mean() < 10


@pytest.mark.real_data
@needs_data
def test_dubai_at_half_its_resolution() -> None:
    with open_scene(DATA / "dubai/tile2.tif", res=1.0, pixel_res=0.5) as scene:
        assert (scene.grid.height, scene.grid.width) == (1632, 1528)
        assert scene.scale == (2.0, 2.0)
        image, valid = scene.read(Window(0, 0, 512, 512))
        native = scene.dataset.read(window=rasterio.windows.Window(0, 0, 1024, 1024))
    np.testing.assert_allclose(image, native.reshape(3, 512, 2, 512, 2).mean((2, 4)), atol=1e-3)
    assert valid.all()
