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
import shapely
from affine import Affine

from segprior.raster import Grid

Outlines = npt.NDArray[np.object_]

LEAST = 0.6
"""Least IoU that right angles may leave of an outline."""

_PIECE = 100.0
"""Metres: an edge is cut into pieces of at most about this length before its area is measured.

A straight edge on the map is no geodesic. With a the Earth's radius, a piece of s metres strays from one by at most
s^2 tan(latitude) / (8 a), 0.3 mm at 60 degrees, and the area of a patch D metres wide is wrong by a share of
s^2 tan(latitude) / (12 a D).
"""


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

    What the library splits or gives up, or would share less than LEAST with what it was (IoU), stays.
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
    poor = overlap(outlines, result) < LEAST
    result[poor] = outlines[poor]
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
    to_lonlat, geod = earth
    a, b, _, d, e, _ = grid.transform[:6]
    units_per_metre = min(math.hypot(b, e) / res[0], math.hypot(a, d) / res[1])
    pieces = shapely.segmentize(traced, _PIECE * units_per_metre)
    turned = shapely.transform(pieces, lambda xy: np.column_stack(to_lonlat.transform(xy[:, 0], xy[:, 1])))

    def enclosed(ring: shapely.LinearRing) -> float:
        lon, lat = shapely.get_coordinates(ring).T
        return abs(float(geod.polygon_area_perimeter(lon, lat)[0]))

    return np.array([enclosed(p.exterior) - sum(map(enclosed, p.interiors)) for p in turned], np.float64)
