"""Outlines that are smoother than pixels: simplified together, or made of right angles.

    simplified     neighbours keep one common border: no gaps, no overlaps (shapely's coverage_simplify)
    regularized    right angles, each outline by itself (the library buildingregulariser)
    areas          what outlines on the map enclose on the ellipsoid

To be redrawn, outlines are in metres, so that a tolerance is one on the ground whatever the CRS.
"""

from __future__ import annotations

import math
import warnings

import geopandas
import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from affine import Affine

from segprior.raster import Grid

Outlines = npt.NDArray[np.object_]

LEAST = 0.85
"""Least IoU that right angles may leave of an outline."""

_PIECE = 100.0
"""Metres: an edge is cut into pieces of at most about this length before its area is measured.

A straight edge on the map is no geodesic. With a the Earth's radius, a piece of s metres strays from one by at most
s^2 tan(latitude) / (8 a), 0.3 mm at 60 degrees, and the area of a patch D metres wide is wrong by a share of
s^2 tan(latitude) / (12 a D).
"""


_CHUNK = 20_000
"""Outlines measured at once."""


def on_map(outlines: Outlines, transform: Affine) -> Outlines:
    """Apply a transform to the vertices."""
    a, b, c, d, e, f = transform[:6]

    def moved(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = xy.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    turned: Outlines = shapely.transform(outlines, moved)
    return turned


def on_pixel_corners(outlines: Outlines) -> Outlines:
    """Give outlines in pixels a vertex at every pixel corner on their way, so that neighbours share all of theirs."""
    dense: Outlines = shapely.transform(shapely.segmentize(outlines, 1.0), np.rint)
    return dense


def simplified(outlines: Outlines, tolerance: float) -> Outlines:
    """Simplify outlines that share their vertices; what is narrower than about `tolerance` metres goes.

    Corners are left out as long as the triangle that goes with one is smaller than the square of the tolerance
    (Visvalingam & Whyatt 1993). A border is simplified once, for both sides; points where three outlines meet stay.
    """
    smoother: Outlines = shapely.coverage_simplify(outlines, tolerance)
    return smoother


def regularized(outlines: Outlines, tolerance: float) -> Outlines:
    """Draw outlines anew along one main direction and across it, within about `tolerance` metres.

    What the library splits or gives up, or would share less than LEAST with what it was (IoU), only loses its steps: it
    is simplified by half the tolerance (Douglas & Peucker 1973).
    """
    from buildingregulariser import regularize_geodataframe  # noqa: PLC0415  # slow to import, rarely asked for

    result = outlines.copy()
    if not len(outlines):
        return result
    frame = geopandas.GeoDataFrame({"number": np.arange(len(outlines))}, geometry=outlines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own doing; what it could not do is seen below
        drawn = regularize_geodataframe(
            frame,
            parallel_threshold=tolerance / 2,
            simplify_tolerance=tolerance,
            allow_45_degree=False,
            allow_circles=False,
            num_cores=1,
        )
    for number, pieces in drawn.groupby("number")["geometry"].agg(list).items():
        if len(pieces) == 1 and isinstance(pieces[0], shapely.Polygon) and pieces[0].is_valid:
            result[number] = pieces[0]
    poor = (overlap(outlines, result) < LEAST) | (result == outlines)
    result[poor] = shapely.simplify(outlines[poor], tolerance / 2)
    return result


def overlap(some: Outlines, others: Outlines) -> npt.NDArray[np.float64]:
    """IoU of outlines, pair by pair."""
    common = shapely.area(shapely.intersection(some, others))
    share: npt.NDArray[np.float64] = common / (shapely.area(some) + shapely.area(others) - common)
    return share


def areas(traced: Outlines, grid: Grid) -> npt.NDArray[np.float64]:
    """Square metres on the ellipsoid of outlines on the map of `grid`; NaN without a georeference."""
    res, earth = grid.res, grid.geodesy()
    if res is None or earth is None:
        return np.full(len(traced), np.nan)
    a, b, _, d, e, _ = grid.transform[:6]
    piece = _PIECE * min(math.hypot(b, e) / res[0], math.hypot(a, d) / res[1])
    parts = [_areas(traced[first : first + _CHUNK], *earth, piece) for first in range(0, len(traced), _CHUNK)]
    return np.concatenate([np.zeros(0), *parts])


def _areas(traced: Outlines, to_lonlat: pyproj.Transformer, geod: pyproj.Geod, piece: float) -> npt.NDArray[np.float64]:
    """Square metres of outlines whose edges are cut into pieces of so many units of the map."""
    rings, owner = shapely.get_rings(traced, return_index=True)
    coords, ring = shapely.get_coordinates(rings, return_index=True)
    long = np.hypot(*np.diff(coords, axis=0).T) > piece
    cut = np.unique(ring[1:][long & (ring[1:] == ring[:-1])])
    rings[cut] = shapely.segmentize(rings[cut], piece)
    coords, ring = shapely.get_coordinates(rings, return_index=True)
    lon, lat = to_lonlat.transform(coords[:, 0], coords[:, 1])
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    ends = np.append(starts[1:], len(ring))
    enclosed = [abs(geod.polygon_area_perimeter(lon[i:j], lat[i:j])[0]) for i, j in zip(starts, ends, strict=True)]
    outer = np.diff(owner, prepend=-1) > 0  # the rest are holes
    signed = np.where(outer, enclosed, np.negative(enclosed))
    return np.bincount(owner, weights=signed, minlength=len(traced)).astype(np.float64)
