"""Grids and files: ground sizes against closed forms, and files that are not what they should be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasters import checkered, write_raster

from segprior.errors import RasterError, SettingError
from segprior.raster import Grid, describe, open_raster, read_mask, read_window
from segprior.region import region_valid
from segprior.windows import Window

A, F = 6378137.0, 1 / 298.257223563
E2 = F * (2 - F)


def radii(latitude: float) -> tuple[float, float]:
    """Radii of curvature of WGS 84 along the meridian and along the prime vertical, metres."""
    w = math.sqrt(1 - E2 * math.sin(math.radians(latitude)) ** 2)
    return A * (1 - E2) / w**3, A / w


def test_web_mercator_in_nepal_is_shrunk_to_the_ground() -> None:
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(85.5, 27.62)
    grid = Grid(1, 1, Affine(0.15, 0, x, 0, -0.15, y), CRS.from_epsg(3857))
    meridian, vertical = radii(27.62)
    # Web Mercator is spherical: d(latitude) = cos(latitude) dy / a, d(longitude) = dx / a.
    cos = math.cos(math.radians(27.62))
    assert grid.res == pytest.approx((0.15 * cos * meridian / A, 0.15 * cos * vertical / A), rel=1e-6)
    assert grid.res == pytest.approx((0.133, 0.133), abs=1e-3)


def test_degrees_are_longer_northwards_than_eastwards() -> None:
    grid = Grid(100, 200, Affine(1e-5, 0, 25.0, 0, -2e-5, 60.0), CRS.from_epsg(4326))
    meridian, vertical = radii(60.0 - 100 * 1e-5)
    one = math.radians(1e-5)
    expected = (2 * one * meridian, one * vertical * math.cos(math.radians(60.0 - 100 * 1e-5)))
    assert grid.res == pytest.approx(expected, rel=1e-6)


def test_feet_are_feet() -> None:
    # New York, US survey feet; the projection stretches by less than 1e-4 there.
    grid = Grid(1000, 1000, Affine(0.5, 0, 980000.0, 0, -0.5, 200000.0), CRS.from_epsg(2263))
    assert grid.res == pytest.approx((0.5 * 1200 / 3937,) * 2, rel=1e-4)


@pytest.mark.parametrize(("zone", "easting"), [(45, 500000.0), (45, 300000.0)])
def test_utm_differs_from_the_ground_by_its_scale_factor(zone: int, easting: float) -> None:
    grid = Grid(10, 10, Affine(0.3, 0, easting, 0, -0.3, 3050000.0), CRS.from_epsg(32600 + zone))
    lon, lat = pyproj.Transformer.from_crs(32600 + zone, 4326, always_xy=True).transform(easting, 3050000.0)
    k = pyproj.Proj(32600 + zone).get_factors(lon, lat).meridional_scale
    assert grid.res == pytest.approx((0.3 / k, 0.3 / k), rel=1e-5)


def test_a_rotated_raster_has_the_size_of_its_pixels_sides() -> None:
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    transform = Affine(0.4 * cos, 0.2 * sin, 500000, 0.4 * sin, -0.2 * cos, 3050000)
    res = Grid(50, 70, transform, CRS.from_epsg(32645)).res
    assert res == pytest.approx((0.2 / 0.9996, 0.4 / 0.9996), rel=1e-5)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 4, Affine(1, 0, 5, 0, -1, 5), None),
        Grid(4, 4, Affine.identity(), CRS.from_epsg(32645)),
        Grid(4, 4, Affine(1, 0, 5, 0, -1, 5), CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')),
        Grid(4, 4, Affine(1, 0, 1e9, 0, -1, 1e9), CRS.from_epsg(32645)),
    ],
    ids=["no CRS", "no transform", "a site plan", "off the Earth"],
)
def test_no_place_on_earth_no_ground_size(grid: Grid) -> None:
    assert grid.res is None


def test_a_grid_has_pixels() -> None:
    with pytest.raises(SettingError, match="0 x 5"):
        Grid(0, 5, Affine.identity(), None)


def test_describe(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif",
        checkered(3, 300, 400),
        crs="EPSG:32645",
        transform=Affine(0.3, 0, 350000, 0, -0.3, 3050000),
        nodata=0,
        compress="deflate",
        tiled=True,
        blockxsize=128,
        blockysize=64,
        photometric="rgb",
    )
    info = describe(path)
    assert (info.count, info.dtypes, info.driver) == (3, ("uint8",) * 3, "GTiff")
    assert info.grid == Grid(300, 400, Affine(0.3, 0, 350000, 0, -0.3, 3050000), CRS.from_epsg(32645))
    assert info.colorinterp == ("red", "green", "blue")
    assert (info.nodata, info.compression, info.blocks) == ((0.0,) * 3, "deflate", ((64, 128),) * 3)
    plain = describe(write_raster(tmp_path / "b.tif", checkered(1, 3, 4)))
    assert (plain.grid.crs, plain.grid.georeferenced, plain.compression) == (None, False, None)


def test_bad_files_say_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not a raster\n")
    stub = tmp_path / "stub.tif"
    stub.write_bytes(write_raster(tmp_path / "a.tif", checkered(3, 64, 64)).read_bytes()[:6])
    cases = {
        tmp_path / "missing.tif": "there is no file",
        tmp_path: "is a folder",
        text: "not one that GDAL can open",
        stub: "not one that GDAL can open",
    }
    for path, words in cases.items():
        with pytest.raises(RasterError, match=words) as caught:
            describe(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_container_without_bands_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    for table in ("one", "two"):
        options = {"RASTER_TABLE": table, "APPEND_SUBDATASET": "YES" if path.exists() else "NO"}
        with rasterio.open(
            path,
            "w",
            driver="GPKG",
            width=8,
            height=8,
            count=3,
            dtype="uint8",
            crs="EPSG:3857",
            transform=Affine(1, 0, 9, 0, -1, 9),
            **options,
        ) as target:
            target.write(checkered(3, 8, 8))
    with pytest.raises(RasterError, match="subdataset"):
        describe(path)


@pytest.mark.parametrize("compress", [None, "deflate", "jpeg"])
def test_a_truncated_file_is_found_when_it_is_read(tmp_path: Path, compress: str | None) -> None:
    profile = {} if compress is None else {"compress": compress}
    whole = write_raster(
        tmp_path / "a.tif", checkered(3, 400, 300), tiled=True, blockxsize=64, blockysize=64, **profile
    )
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with (
        pytest.raises(RasterError, match=r"cut short") as caught,
        open_raster(cut) as dataset,
    ):
        read_window(dataset, Window(0, 0, 400, 300), bands=(1, 2, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["nodata", "internal", "sidecar", "alpha", "none"])
def test_the_native_mask_is_seen_however_it_is_kept(tmp_path: Path, kind: str) -> None:
    valid = np.random.default_rng(1).random((40, 50)) > 0.3
    pixels = np.where(valid, np.maximum(checkered(3, 40, 50), 1), 0).astype(np.uint8)
    pixels[1, 0, 0], valid[0, 0] = 7, True  # zero in some bands only: still data
    path = write_raster(tmp_path / "a.tif", pixels, mask=valid, mask_kind=kind)
    with open_raster(path) as dataset:
        seen = read_mask(dataset, Window(3, 5, 30, 40))
    every = valid | (kind == "none")
    np.testing.assert_array_equal(seen, every[3:33, 5:45])
    shrunk = region_valid(path, Window(4, 6, 30, 40), res=2.0, pixel_res=1.0, bands=(1, 2, 3))
    np.testing.assert_array_equal(shrunk, every[4:34, 6:46].reshape(15, 2, 20, 2).all(axis=(1, 3)))
