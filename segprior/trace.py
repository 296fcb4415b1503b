"""Patches of one class, traced band by band of rows and joined where bands meet.

A patch is a set of pixels of one value that touch along sides. In every band of rows the patches are labelled and
traced by themselves; where two bands meet, pixels of one value in the same column join their patches into one
(union-find), and the parts of a patch are united as soon as no row to come can reach it. All this is done in pixel
coordinates, whole numbers, so that uniting is exact: the patches are those of the raster traced at once. Held at once
are one band of pixels, and the parts of the patches that reach its last row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes
from rasterio.io import DatasetReader
from scipy import ndimage

from segprior.raster import read_window
from segprior.windows import Window

ROWS = 512
"""Rows of a band."""

NONE = 0
"""Label of pixels that belong to no patch."""

Progress = Callable[[int, int], None]
"""Called with rows traced and rows in all."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch: its value, and its outline in pixels, x along columns and y down the rows."""

    value: int
    outline: shapely.Polygon


def patches(
    dataset: DatasetReader, *, dropped: Collection[int] = (), rows: int = ROWS, progress: Progress | None = None
) -> Iterator[Patch]:
    """Trace the first band of an open raster of bytes, without pixels that hold no data or one of the `dropped` values.

    rows: of a band. Raises RasterError where the file is damaged.
    """
    joints = _Joints()
    above = _Edge.none(dataset.width)
    parts: dict[int, list[shapely.Polygon]] = defaultdict(list)
    values: dict[int, int] = {}
    for row in range(0, dataset.height, rows):
        window = Window(row, 0, min(rows, dataset.height - row), dataset.width)
        pixels, valid = read_window(dataset, window, bands=(1,))
        kept = valid & ~np.isin(pixels[0], list(dropped))
        labels, found = _labelled(pixels[0], kept, first=joints.count)
        joints.add(len(found))
        top = _Edge(pixels[0][0], labels[0])
        for mine, yours in above.meetings(top):
            joints.join(mine, yours)
        for label, outline in _outlines(labels, row):
            parts[label].append(outline)
        values.update(found)
        last = row + window.height == dataset.height
        above = _Edge(pixels[0][-1], labels[-1])
        yield from _finished(parts, values, joints, open_labels=() if last else np.unique(above.labels).tolist())
        if progress is not None:
            progress(row + window.height, dataset.height)


@dataclass(frozen=True, slots=True, eq=False)
class _Edge:
    """One row of pixels: values and labels."""

    values: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]

    @classmethod
    def none(cls, width: int) -> _Edge:
        return cls(np.zeros(width, np.uint8), np.full(width, NONE, np.int32))

    def meetings(self, below: _Edge) -> list[tuple[int, int]]:
        """Pairs of labels whose pixels stand above each other and have one value."""
        touch = (self.labels != NONE) & (below.labels != NONE) & (self.values == below.values)
        pairs = np.unique(np.stack([self.labels[touch], below.labels[touch]]), axis=1)
        return list(zip(*pairs.tolist(), strict=True))


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


def _labelled(
    pixels: npt.NDArray[np.uint8], kept: npt.NDArray[np.bool_], *, first: int
) -> tuple[npt.NDArray[np.int32], dict[int, int]]:
    """Label the patches of a band, counting from `first`; give the value of each label too."""
    labels = np.full(pixels.shape, NONE, np.int32)
    values: dict[int, int] = {}
    for value in np.unique(pixels[kept]).tolist():
        mine, count = ndimage.label(kept & (pixels == value))
        start = first + len(values)
        labels += np.where(mine > 0, mine + np.int32(start - 1), 0).astype(np.int32)
        values.update(dict.fromkeys(range(start, start + count), value))
    return labels, values


def _outlines(labels: npt.NDArray[np.int32], row: int) -> Iterator[tuple[int, shapely.Polygon]]:
    for geometry, label in shapes(labels, mask=labels != NONE, connectivity=4):
        rings = [[(x, y + row) for x, y in ring] for ring in geometry["coordinates"]]
        yield int(label), shapely.Polygon(rings[0], rings[1:])


def _finished(
    parts: dict[int, list[shapely.Polygon]],
    values: dict[int, int],
    joints: _Joints,
    *,
    open_labels: Sequence[int],
) -> Iterator[Patch]:
    """Unite and forget the parts of patches of which none is open any more."""
    still = {joints.root(label) for label in open_labels if label != NONE}
    together: dict[int, list[int]] = defaultdict(list)
    for label in parts:
        together[joints.root(label)].append(label)
    for root, labels in sorted(together.items()):
        if root in still:
            continue
        value, shares = values[labels[0]], [part for label in labels for part in parts.pop(label)]
        for label in labels:
            del values[label]
        yield Patch(value, shares[0] if len(shares) == 1 else _united(shares))


def _united(parts: Sequence[shapely.Polygon]) -> shapely.Polygon:
    """Unite parts that meet along pixel edges, without the corners that the meeting left on straight edges."""
    united = shapely.simplify(shapely.union_all(parts), 0)
    assert isinstance(united, shapely.Polygon)  # noqa: S101  # its pixels touch along sides
    return united
