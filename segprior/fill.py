"""Small patches dissolve into what surrounds them.

The smallest patch goes first: it takes the value of its largest neighbour (4-neighbours) and belongs to it from then
on, as do other neighbours of that value, which it now joins. This goes on until no patch below the least area has a
neighbour; one that has none, such as an island in nodata, is dropped. The raster is read twice, band by band: once to
survey its patches, once to give the pixels their new values. Memory grows with the number of patches, not of pixels.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from segprior.errors import VectorError
from segprior.patchwork import NONE, Band, Edge, labelled, pairs
from segprior.raster import Grid

_DROPPED = -1

Pairs = npt.NDArray[np.int32]


def filled(read: Callable[[], Iterable[Band]], grid: Grid, *, min_area: float) -> Iterator[Band]:
    """Give the bands that `read` reads with patches smaller than `min_area` square metres dissolved.

    Areas are sums over pixels, each row's by the ellipsoid in the middle of the row. Raises VectorError for a raster
    without a georeference, and what reading raises.
    """
    values = _merged(_surveyed(read(), row_areas(grid)), min_area)
    first = 1
    for band in read():
        labels, found = labelled(band, first=first)
        first += len(found)
        new = values[labels]
        kept = band.kept & (new != _DROPPED)
        yield replace(band, pixels=np.where(kept, new, 0).astype(np.uint8), kept=kept)


def row_areas(grid: Grid) -> npt.NDArray[np.float64]:
    """Square metres on the ellipsoid of a pixel in the middle of each row, (rows,). VectorError without a place."""
    earth = grid.geodesy()
    if earth is None or grid.res is None:
        raise VectorError("cannot measure small patches: the raster has no georeference; leave the least area out")
    to_lonlat, geod = earth
    rows, col = np.arange(grid.height), grid.width // 2
    a, b, c, d, e, f = grid.transform[:6]

    def place(down: int, right: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        u, v = float(col + right), rows + float(down)
        lon, lat = to_lonlat.transform(a * u + b * v + c, d * u + e * v + f)
        return np.asarray(lon), np.asarray(lat)

    corner, below, beside = place(0, 0), place(1, 0), place(0, 1)
    azimuth_down, _, down = geod.inv(*corner, *below)
    azimuth_right, _, right = geod.inv(*corner, *beside)
    area: npt.NDArray[np.float64] = down * right * np.abs(np.sin(np.radians(azimuth_down - azimuth_right)))
    return area


@dataclass(frozen=True, slots=True, eq=False)
class _Survey:
    """The patches of a raster: value, area and neighbours of each, and the patch that each label belongs to."""

    patch_of: npt.NDArray[np.int32]
    values: npt.NDArray[np.uint8]
    areas: npt.NDArray[np.float64]
    neighbours: sparse.csr_array


def _surveyed(bands: Iterable[Band], areas: npt.NDArray[np.float64]) -> _Survey:
    joined: list[Pairs] = [np.zeros((0, 2), np.int32)]
    touching: list[Pairs] = [np.zeros((0, 2), np.int32)]
    values = [np.zeros(1, np.uint8)]  # label NONE
    sizes: list[npt.NDArray[Any]] = [np.zeros(1)]
    first, above = 1, Edge.none()
    for band in bands:
        labels, found = labelled(band, first=first)
        weights = np.repeat(areas[band.row : band.end], labels.shape[1])
        local = np.where(labels == NONE, 0, labels - (first - 1)).ravel()
        sizes.append(np.bincount(local, weights=weights, minlength=1 + len(found))[1:])
        values.append(found)
        first += len(found)
        top = Edge.top(band, labels)
        joined.append(above.meetings(top, same=True))
        touching += [above.meetings(top, same=False), _touching(labels[:-1], labels[1:])]
        touching.append(_touching(labels[:, :-1], labels[:, 1:]))
        above = Edge.bottom(band, labels)
    return _assembled(np.concatenate(joined), np.concatenate(touching), np.concatenate(values), np.concatenate(sizes))


def _touching(mine: npt.NDArray[np.int32], yours: npt.NDArray[np.int32]) -> Pairs:
    """Pairs of different patches along an axis of a band."""
    differ = (mine != yours) & (mine != NONE) & (yours != NONE)
    return pairs(mine[differ], yours[differ])


def _assembled(
    joined: Pairs, touching: Pairs, values: npt.NDArray[np.uint8], sizes: npt.NDArray[np.float64]
) -> _Survey:
    count = len(values)
    ones = np.ones(len(joined), np.int8)
    same = sparse.coo_array((ones, (joined[:, 0], joined[:, 1])), shape=(count, count))
    number, patch_of = csgraph.connected_components(same, directed=False)
    patch_values = np.zeros(number, np.uint8)
    patch_values[patch_of] = values
    ends = patch_of[touching]
    both = np.concatenate([ends, ends[:, ::-1]])
    neighbours = sparse.coo_array((np.ones(len(both), np.int8), (both[:, 0], both[:, 1])), shape=(number, number))
    areas: npt.NDArray[Any] = np.bincount(patch_of, weights=sizes, minlength=number)
    return _Survey(patch_of, patch_values, areas, neighbours.tocsr())


def _merged(survey: _Survey, min_area: float) -> npt.NDArray[np.int16]:
    """New value of every label, _DROPPED for those that go."""
    work = _Merging(survey, min_area)
    queue = [(area, patch) for patch, area in enumerate(survey.areas.tolist()) if 0 < area < min_area]
    heapq.heapify(queue)
    dropped = []
    while queue:
        area, patch = heapq.heappop(queue)
        if work.root(patch) != patch or area != work.areas[patch]:
            continue  # it was merged, or has grown and waits with its new area
        host = work.dissolve(patch)
        if host is None:
            dropped.append(patch)
        elif work.areas[host] < min_area:
            heapq.heappush(queue, (work.areas[host], host))
    roots = np.array([work.root(patch) for patch in range(len(survey.areas))])
    values: npt.NDArray[np.int16] = survey.values.astype(np.int16)
    values[dropped] = _DROPPED
    by_label: npt.NDArray[np.int16] = values[roots][survey.patch_of]
    return by_label


class _Merging:
    """Patches that grow by others: union-find whose roots keep value, area and neighbours."""

    def __init__(self, survey: _Survey, min_area: float) -> None:
        self.survey = survey
        self.min_area = min_area
        self.parent = list(range(len(survey.areas)))
        self.areas: list[float] = survey.areas.tolist()
        self.grown: dict[int, set[int]] = {}

    def root(self, patch: int) -> int:
        while self.parent[patch] != patch:
            self.parent[patch] = self.parent[self.parent[patch]]
            patch = self.parent[patch]
        return patch

    def around(self, patch: int) -> set[int]:
        """Roots of the neighbours."""
        graph = self.survey.neighbours
        known = self.grown.get(patch)
        if known is None:
            known = set(graph.indices[graph.indptr[patch] : graph.indptr[patch + 1]].tolist())
        return {self.root(other) for other in known} - {patch}

    def dissolve(self, patch: int) -> int | None:
        """Give a patch to its largest neighbour, with the neighbours that it now joins; None if it has none."""
        around = self.around(patch)
        if not around:
            return None
        host = max(around, key=lambda other: (self.areas[other], -other))
        values = self.survey.values
        guests = [patch, *(n for n in around if n != host and values[n] == values[host])]
        area = self.areas[host] + sum(self.areas[guest] for guest in guests)
        if area < self.min_area:  # else it stays, and who its neighbours are does not matter
            self.grown[host] = self.around(host).union(*map(self.around, guests)) - {host, *guests}
        for guest in guests:
            self.parent[guest] = host
            self.grown.pop(guest, None)
        self.areas[host] = area
        return host
