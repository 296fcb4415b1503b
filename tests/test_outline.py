"""Outlines drawn anew: what they keep in common, and their angles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from rasterio.features import shapes
from scipy import ndimage

from segprior.outline import LEAST, on_pixel_corners, overlap, regularized, simplified


def patches(seed: int, grain: float = 3.0) -> npt.NDArray[np.object_]:
    """Every patch of a random class raster of 90 x 120 pixels, a part of it without data."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((90, 120)), grain)
    values = np.digitize(smooth / smooth.std(), (-0.5, 0.4)).astype(np.uint8)
    data = ndimage.gaussian_filter(rng.standard_normal((90, 120)), 8) < 0.06
    found = [shapely.geometry.shape(g) for g, _ in shapes(values, mask=data, connectivity=4)]
    outlines = np.empty(len(found), object)
    outlines[:] = found
    return outlines


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grain", [0.3, 3.0])
def test_neighbours_keep_one_border(seed: int, grain: float) -> None:
    """No gaps and no overlaps: areas add up to that of the union, and the coverage is valid."""
    before = on_pixel_corners(patches(seed, grain))
    assert shapely.coverage_is_valid(before)
    after = simplified(before, 1.5)
    assert shapely.coverage_is_valid(after)
    assert shapely.is_valid(after).all()
    assert shapely.area(after).sum() == pytest.approx(shapely.area(shapely.union_all(after)), rel=1e-9)
    count = [len(shapely.get_coordinates(outlines)) for outlines in (patches(seed, grain), after)]
    assert count[1] < (0.95 if grain < 1 else 0.5) * count[0]


def test_a_slanted_border_loses_its_steps() -> None:
    rows, cols = np.mgrid[:60, :60]
    values = (rows > 0.5 * cols + 10.3).astype(np.uint8)
    found = np.array([shapely.geometry.shape(g) for g, _ in shapes(values)], object)
    for before, after in zip(found, simplified(on_pixel_corners(found), 2.0), strict=True):
        assert len(shapely.get_coordinates(before)) > 60
        assert len(shapely.get_coordinates(after)) < 12
        assert after.hausdorff_distance(before) < 2.0


def test_corners_of_pixels() -> None:
    box = np.array([shapely.box(2, 3, 6, 5)], object)
    assert len(shapely.get_coordinates(on_pixel_corners(box))) == 2 * (4 + 2) + 1


def house(angle: float) -> npt.NDArray[np.uint8]:
    """An L of 40 x 30 pixels, turned, with rough edges."""
    shape = shapely.box(-20, -15, 20, 15) - shapely.box(0, 0, 20, 15)
    rows, cols = np.mgrid[:100, :100]
    turn = np.radians(angle)
    x, y = cols - 50, rows - 50
    u, v = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    inside = shapely.contains_xy(shape, u.ravel(), v.ravel()).reshape(100, 100)
    rough = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((100, 100)), 1.0) > 0.5
    edge = inside ^ ndimage.binary_erosion(inside)
    return (inside & ~(edge & rough)).astype(np.uint8)


def corners(outline: shapely.Polygon) -> npt.NDArray[np.float64]:
    """Angles between following edges of the outer ring, in degrees."""
    ring = shapely.get_coordinates(outline.exterior)[:-1]
    edges = np.roll(ring, -1, axis=0) - ring
    heading = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    return np.abs((heading - np.roll(heading, 1) + 180) % 360 - 180)


@pytest.mark.parametrize("angle", [0, 17, 38, 61])
def test_a_house_gets_right_angles(angle: float) -> None:
    field = house(angle)
    outlines = np.array([shapely.geometry.shape(g) for g, v in shapes(field, mask=field > 0)], object)
    traced = max(outlines, key=shapely.area)
    drawn = regularized(np.array([traced], object), 2.5)
    np.testing.assert_allclose(corners(drawn[0]), 90, atol=1.0)
    assert 6 <= len(corners(drawn[0])) <= 16
    assert len(shapely.get_coordinates(drawn[0])) < len(shapely.get_coordinates(traced))
    assert traced.intersection(drawn[0]).area / traced.union(drawn[0]).area > 0.9


def test_what_cannot_be_regular_stays() -> None:
    """Ragged patches, of some of which right angles would leave little."""
    ragged = patches(0, 0.8)
    drawn = regularized(ragged, 4.0)
    same = np.array([new.equals_exact(old) for new, old in zip(drawn, shapely.simplify(ragged, 2.0), strict=True)])
    assert same.any()
    assert not same.all()
    common, both = (shapely.area(of(ragged, drawn)) for of in (shapely.intersection, shapely.union))
    np.testing.assert_allclose(overlap(ragged, drawn), common / both, rtol=1e-6)
    assert (common / both)[~same].min() >= LEAST
    assert shapely.is_valid(drawn).all()
    assert len(regularized(np.zeros(0, object), 1.0)) == 0
