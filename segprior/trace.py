"""The outlines of patches, traced band by band of rows and joined where bands meet.

In every band of rows the patches are labelled and traced by themselves; where two bands meet, pixels of one value in
the same column join their patches into one (union-find), and the parts of a patch are united as soon as no row to come
can reach it. All this is done in pixel coordinates, whole numbers, so that uniting is exact: the patches are those of
the raster traced at once. Held at once are one band of pixels, and the parts of the patches that reach its last row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.features import shapes

from segprior.patchwork import NONE, Band, Edge, labelled

Progress = Callable[[int, int], None]
"""Called with rows traced and rows in all."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch: its value, its outline in pixels, x along columns and y down the rows, and its mean confidence.

    The confidence is the mean over pixels of which it is known, NaN if there is none.
    """

    value: int
    outline: shapely.Polygon
    confidence: float


def patches(
    bands: Iterable[Band], *, height: int, dropped: Collection[int] = (), progress: Progress | None = None
) -> Iterator[Patch]:
    """Trace the patches of a raster of `height` rows that is read as `bands`, without those of the `dropped` values."""
    joints, above = _Joints(), Edge.none()
    parts: dict[int, _Part] = {}
    for whole in bands:
        band = replace(whole, kept=whole.kept & ~np.isin(whole.pixels, list(dropped)))
        first = joints.count
        labels, values = labelled(band, first=first)
        joints.add(len(values))
        for mine, yours in above.meetings(Edge.top(band, labels), same=True).tolist():
            joints.join(mine, yours)
        parts.update(_parts(band, labels, values, first))
        above = Edge.bottom(band, labels)
        reached = () if band.end == height else np.unique(above.labels).tolist()
        yield from _finished(parts, joints, open_labels=reached)
        if progress is not None:
            progress(band.end, height)


Ring = npt.NDArray[np.float64]
"""Corners (points, 2), the first one again at the end."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The part of a patch that lies in the rows from `row` to `end`.

    rings: the outer one, then holes. confidence: its sum over the `known` pixels of which it is known.
    """

    value: int
    rings: Sequence[Ring]
    row: int
    end: int
    confidence: float
    known: int


class _Joints:
    """Union-find over labels from 1."""

    def __init__(self) -> None:
        self.parent = [NONE]

    @property
    def count(self) -> int:
        return len(self.parent)

    def add(self, count: int) -> None:
        self.parent.extend(range(self.count, self.count + count))

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.root(a), self.root(b)))
        self.parent[high] = low


def _parts(
    band: Band, labels: npt.NDArray[np.int32], values: npt.NDArray[np.uint8], first: int
) -> Iterator[tuple[int, _Part]]:
    sums: npt.NDArray[Any] = np.zeros(len(values))
    known: npt.NDArray[Any] = np.zeros(len(values), np.int64)
    if band.confidence is not None:
        told = (labels != NONE) & np.isfinite(band.confidence)
        local = labels[told] - first
        sums = np.bincount(local, weights=band.confidence[told], minlength=len(values))
        known = np.bincount(local, minlength=len(values))
    place = Affine.translation(0, band.row)
    for geometry, number in shapes(labels, mask=labels != NONE, connectivity=4, transform=place):
        rings = [np.array(ring) for ring in geometry["coordinates"]]
        label = int(number)
        at = label - first
        yield label, _Part(int(values[at]), rings, band.row, band.end, float(sums[at]), int(known[at]))


def _finished(parts: dict[int, _Part], joints: _Joints, *, open_labels: Sequence[int]) -> Iterator[Patch]:
    """Unite and forget the parts of patches of which none is open any more."""
    still = {joints.root(label) for label in open_labels if label != NONE}
    together: dict[int, list[int]] = defaultdict(list)
    for label in parts:
        together[joints.root(label)].append(label)
    for root, labels in sorted(together.items()):
        if root not in still:
            yield _united([parts.pop(label) for label in labels])


def _united(parts: Sequence[_Part]) -> Patch:
    """Unite parts that meet along pixel edges, without the corners that the meeting left on straight edges."""
    if len(parts) == 1:
        outline = shapely.Polygon(parts[0].rings[0], parts[0].rings[1:])
    else:
        apart = [ring for part in parts for ring in part.rings[1:] if not _meets(ring, part)]
        # a hole within one band cannot change, and there are many
        cut = [
            [_cut(ring, part) for n, ring in enumerate(part.rings) if n == 0 or _meets(ring, part)] for part in parts
        ]
        united = shapely.coverage_union_all([shapely.Polygon(rings[0], rings[1:]) for rings in cut])
        assert isinstance(united, shapely.Polygon)  # noqa: S101  # its pixels touch along sides
        outer, *inner = (_straight(shapely.get_coordinates(ring)) for ring in (united.exterior, *united.interiors))
        outline = shapely.Polygon(outer, [*inner, *apart])
    known = sum(part.known for part in parts)
    confidence = sum(part.confidence for part in parts) / known if known else float("nan")
    return Patch(parts[0].value, outline, confidence)


def _meets(ring: Ring, part: _Part) -> bool:
    """Whether a ring reaches a line where bands meet; holes that do not are no business of the part's neighbours."""
    return bool(ring[:, 1].min() <= part.row or ring[:, 1].max() >= part.end)


def _cut(ring: Ring, part: _Part) -> Ring:
    """Give the edges of a ring that lie where bands meet a vertex at every pixel corner.

    Then the parts of a patch match vertex by vertex, and uniting them is to leave out what they have in common.
    """
    y = ring[:, 1]
    along = (y[:-1] == y[1:]) & ((y[:-1] == part.row) | (y[:-1] == part.end))
    if not along.any():
        return ring
    pieces = np.where(along, np.abs(np.diff(ring[:, 0])), 1).astype(np.int64)
    edge = np.repeat(np.arange(len(pieces)), pieces)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    points = ring[edge] + (ring[edge + 1] - ring[edge]) * (step / pieces[edge])[:, None]
    return np.vstack([np.rint(points), ring[-1:]])


def _straight(ring: Ring) -> Ring:
    """Leave out the corners of a ring of pixel edges that are none."""
    heading = np.sign(np.diff(ring, axis=0))
    turns = (heading != np.roll(heading, 1, axis=0)).any(axis=1)
    corners = ring[:-1][turns]
    return np.vstack([corners, corners[:1]])
