"""Small patches dissolved, against GDAL's sieve and against what the words say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import sieve
from rasters import write_raster
from scipy import ndimage

from segprior.errors import VectorError
from segprior.fill import filled, row_areas
from segprior.patchwork import bands
from segprior.raster import Grid, grid_of, open_raster

EQUAL_AREA = {"crs": "EPSG:6933", "transform": Affine(1, 0, 0, 0, -1, 0)}  # a pixel is a square metre everywhere


def dissolved(
    folder: Path, values: npt.NDArray[np.uint8], min_area: float, *, rows: int = 512, **place: Any
) -> npt.NDArray[np.uint8]:
    """The whole raster after filling; 255 where there is no patch."""
    path = write_raster(folder / "a.tif", values[None], nodata=255, **{**EQUAL_AREA, **place})
    with open_raster(path) as dataset:
        done = list(
            filled(lambda: bands(dataset, rows=rows), grid_of(dataset), min_area=min_area - 0.01)
        )  # measured on an ellipsoid, not counted
    assert [band.row for band in done] == list(range(0, len(values), rows))
    return np.concatenate([np.where(band.kept, band.pixels, 255) for band in done]).astype(np.uint8)


def blobs(shape: tuple[int, int], grain: float, seed: int) -> npt.NDArray[np.uint8]:
    """Four classes in blobs, pixels without data among them."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), grain)
    classes = np.digitize(smooth / smooth.std(), (-0.7, 0.1, 0.9)).astype(np.uint8)
    classes[ndimage.gaussian_filter(rng.standard_normal(shape), 4) > 0.1] = 255
    return classes


def sizes(values: npt.NDArray[np.uint8]) -> list[int]:
    """Pixels of every patch."""
    return [
        size
        for value in np.unique(values[values != 255])
        for size in np.bincount(ndimage.label(values == value)[0].ravel())[1:].tolist()
    ]


def test_the_smallest_goes_first_into_its_largest_neighbour(tmp_path: Path) -> None:
    values = np.zeros((8, 12), np.uint8)
    values[:, 6:] = 1
    values[2:4, 5] = values[2, 6] = 2  # between the left half, 46 pixels, and the right
    values[7, 10:] = 0  # when these have joined the right half it has 47; before it had 45
    expected = np.zeros((8, 12), np.uint8)
    expected[:, 6:] = 1
    only_two = expected.copy()
    expected[2:4, 5] = 1
    np.testing.assert_array_equal(dissolved(tmp_path, values, 4), expected)
    only_two[2:4, 5] = only_two[2, 6] = 2
    np.testing.assert_array_equal(dissolved(tmp_path, values, 2.9), only_two)
    np.testing.assert_array_equal(dissolved(tmp_path, values, 1.9), values)


def test_patches_within_patches(tmp_path: Path) -> None:
    """What a small patch separated grows together, and may be large enough then."""
    values = np.zeros((1, 30), np.uint8)
    values[0, 10:13], values[0, 13], values[0, 14:17] = 1, 2, 1  # two of 3 pixels and one between them
    assert dissolved(tmp_path, values, 7).tolist() == [[0] * 10 + [1] * 7 + [0] * 13]
    assert not dissolved(tmp_path, values, 8).any()


def test_an_island_without_neighbours_is_dropped(tmp_path: Path) -> None:
    values = np.full((9, 9), 255, np.uint8)
    values[1, 1], values[4:8, 4:8] = 0, 1
    values[5, 5] = 0
    expected = np.full((9, 9), 255, np.uint8)
    expected[4:8, 4:8] = 1
    np.testing.assert_array_equal(dissolved(tmp_path, values, 3), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows", [7, 512])
def test_what_the_words_say(tmp_path: Path, seed: int, rows: int) -> None:
    values = blobs((90, 70), 1.0 + seed / 3, seed)
    least = 15
    got = dissolved(tmp_path, values, least, rows=rows)
    np.testing.assert_array_equal(got, dissolved(tmp_path, values, least), err_msg="bands play no part")
    assert min(sizes(got)) >= least > min(sizes(values))
    lost = (got == 255) & (values != 255)
    isolated, _ = ndimage.label(values != 255)
    for island in np.unique(isolated[lost]).tolist():
        assert (isolated == island).sum() < least, "only islands below the least area are dropped"
    assert not ((got != 255) & (values == 255)).any(), "nodata stays"
    for value in range(4):  # large patches only grow
        patches, count = ndimage.label(values == value)
        for number in range(1, count + 1):
            if (patches == number).sum() >= least:
                assert (got[patches == number] == value).all()


@pytest.mark.parametrize("seed", range(4))
def test_gdal_agrees_where_all_neighbours_are_large(tmp_path: Path, seed: int) -> None:
    """Small squares far apart on a ground of large patches: whose neighbours are, there is nothing to argue about."""
    rng = np.random.default_rng(seed)
    values = blobs((120, 140), 12, seed)
    values[sieve(values, 200, mask=values != 255) != values] = 255  # the ground: large patches only
    for row, col in rng.integers(1, (16, 19), (60, 2)) * 7:
        side = int(rng.integers(1, 4))
        here = values[row : row + side, col : col + side]
        values[row : row + side, col : col + side] = np.where(here == 255, 255, 5)
    assert min(sizes(values)) < 10
    got = dissolved(tmp_path, values, 20)
    expected = sieve(values, 20, mask=values != 255)
    for value in np.unique(expected[expected != 255]):
        patches, count = ndimage.label(expected == value)
        large = np.isin(patches, 1 + np.flatnonzero(np.bincount(patches.ravel())[1:] >= 20)) if count else patches > 0
        np.testing.assert_array_equal(got[large], expected[large])  # the rest are islands, which GDAL leaves


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        (32645, Affine(0.3, 0, 350000, 0, -0.3, 3050000)),
        (4326, Affine(1e-4, 0, 25, 0, -2e-4, 60)),
        (32645, Affine(2, 1, 350000, 1, -2, 3050000)),
    ],
)
def test_the_area_of_a_row(code: int, transform: Affine) -> None:
    grid = Grid(40, 30, transform, CRS.from_epsg(code))
    areas = row_areas(grid)
    lonlat = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
    geod = pyproj.Geod(ellps="WGS84")
    for row in (0, 39):
        ring = [transform @ (15 + x, row + y) for x, y in ((0, 0), (1000, 0), (1000, 1), (0, 1))]
        lon, lat = lonlat.transform(*zip(*ring, strict=True))
        assert areas[row] == pytest.approx(abs(geod.polygon_area_perimeter(lon, lat)[0]) / 1000, rel=2e-3)
    assert areas[0] != areas[39] or code != 4326


def test_nowhere_has_no_areas(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="no georeference"):
        dissolved(tmp_path, np.zeros((3, 3), np.uint8), 2, crs=None, transform=Affine.identity())
