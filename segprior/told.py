"""What is told of a scene besides its image, window by window, and the constraints that come of it.

`Sources` are the files (known places, other maps, hints), `Told` is what they say of a window, and `constraints` turns
that of a batch of windows into what the solver takes.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from segprior.hint import Cells, HintSource, check_hint, lies_under, read_hint
from segprior.known import KnownSource, Places, open_places
from segprior.legend import NO_INDEX, Legend
from segprior.opinion import UnarySource, read_opinion
from segprior.prior.constraint import Constraint
from segprior.prior.joint import OneHotLayout
from segprior.prior.shares import Hints, Regions
from segprior.prior.solver import Known
from segprior.prior.unary import Opinion, Unary, observed, opinion
from segprior.provenance import fingerprint
from segprior.scene import Scene
from segprior.windows import Window


@dataclass(frozen=True, slots=True)
class Sources:
    """Files that tell of classes, in the order in which they were given."""

    known: tuple[KnownSource, ...] = ()
    unary: tuple[UnarySource, ...] = ()
    hints: tuple[HintSource, ...] = ()

    def check(self, scene: Scene, legend: Legend) -> tuple[str, ...]:
        """Refuse what cannot be used on a scene before any work; give the files that say nothing of it.

        Raises as `Told.of` does.
        """
        box = shapely.box(0, 0, scene.width, scene.height)
        silent = [s.path for s in self.known if not len(open_places([s], scene, legend).tree.query(box, "intersects"))]
        for hint in self.hints:
            check_hint(hint, scene)
        Told.of(Sources(unary=self.unary, hints=self.hints), scene, legend, Window(0, 0, 1, 1), image="")
        return (*silent, *(unary.path for unary in self.unary if not lies_under(unary.path, scene)))


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What is said of a window.

    index, accuracy: of known classes, see `Places`. opinions: what other maps say, see `read_opinion`. hints: see
    `read_hint`.
    """

    index: NDArray[np.uint8]
    accuracy: NDArray[np.float32]
    opinions: tuple[NDArray[np.float32], ...]
    hints: tuple[Cells, ...]

    @classmethod
    def of(cls, sources: Sources, scene: Scene, legend: Legend, window: Window, *, image: str) -> Told:
        """Read what the sources say of a window of `image`. Raises VectorError, RasterError or SettingError."""
        return cls(
            *places_of(sources.known, image, legend, scene).within(window),
            tuple(read_opinion(source, scene, legend, window) for source in sources.unary),
            tuple(read_hint(source, scene, legend, window) for source in sources.hints),
        )


def constraints(
    told: Sequence[Told], sources: Sources, layout: OneHotLayout, *, particles: int, device: torch.device
) -> tuple[Known | None, tuple[Constraint, ...]]:
    """Known classes, those that are certain held and others as evidence; opinions of other maps; hints."""
    index = torch.from_numpy(np.stack([t.index for t in told])).to(device)
    accuracy = torch.from_numpy(np.stack([t.accuracy for t in told])).to(device)
    certain = (index != NO_INDEX) & (accuracy >= 1)
    likely = (index != NO_INDEX) & (accuracy < 1)
    known = Known(layout.encode(index), certain[:, None]) if bool(certain.any()) else None
    said: list[Constraint] = []
    if bool(likely.any()):
        log_l = observed(torch.where(likely, index, NO_INDEX), accuracy, layout.classes)
        said.append(Unary(log_l.repeat(particles, 1, 1, 1), layout))
    for number, source in enumerate(sources.unary):
        q = torch.from_numpy(np.stack([t.opinions[number] for t in told])).to(device)
        log_q = opinion(q, temperature=source.temperature)
        said.append(Opinion(log_q.repeat(particles, 1, 1, 1), layout, source.weight))
    for number, hint in enumerate(sources.hints):
        cells = [t.hints[number] for t in told] * particles
        said.append(Hints(_regions(cells, device), layout, hint.weight))
    return known, tuple(said)


def _regions(cells: Sequence[Cells], device: torch.device) -> Regions:
    """Cells of many windows, each window's numbered after those of the windows before."""
    firsts = np.cumsum([0, *(len(c.shares) for c in cells)])
    index = [np.where(c.index < 0, -1, c.index + first) for c, first in zip(cells, firsts[:-1], strict=True)]
    return Regions(
        torch.from_numpy(np.stack(index)).long().to(device),
        torch.from_numpy(np.concatenate([c.shares for c in cells])).to(device),
        torch.from_numpy(np.concatenate([c.parts for c in cells])).to(device),
    )


_LOADING = threading.Lock()
"""Held while places are read, so that threads that want the same ones share them."""

_PLACES: dict[Hashable, Places] = {}
"""Known places of the raster at work, read once per process."""


def places_of(sources: tuple[KnownSource, ...], image: str, legend: Legend, scene: Scene) -> Places:
    """Known places of `image`, read once for as long as the files stay as they are. Raises VectorError."""
    state = tuple(fingerprint(source.path) for source in sources)
    key = (sources, state, image, legend, scene.grid, scene.scale)
    with _LOADING:
        if key not in _PLACES:
            _PLACES.clear()
            _PLACES[key] = open_places(sources, scene, legend)
        return _PLACES[key]
