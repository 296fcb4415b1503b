"""From the working grid back to the file's own: strips of values at a prior's resolution -> strips on the native grid.

    to_native    strips at that resolution -> strips on the raster's own grid
    Start        where a run that stopped goes on

The grids are those of `segprior.scene`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from segprior.errors import SettingError
from segprior.resample import reach, resample_valid
from segprior.scene import Scene
from segprior.windows import Window

_ROWS = 256  # native rows in a strip at most


class StripLike(Protocol):
    """Whole rows from `row` on: values float32 (channels, rows, columns), valid bool (rows, columns)."""

    @property
    def row(self) -> int: ...  # noqa: D102  # told by the class
    @property
    def values(self) -> npt.NDArray[np.float32]: ...  # noqa: D102  # told by the class
    @property
    def valid(self) -> npt.NDArray[np.bool_]: ...  # noqa: D102  # told by the class


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run that stopped goes on.

    native: native rows that are done. working: working rows whose strips were taken in for them. top: the first working
    row that native rows still to come draw from.
    """

    native: int
    working: int
    top: int


BEGINNING = Start(0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class NativeStrip:
    """Whole rows of the native grid: values float32 (channels, rows, columns), 0 where not valid.

    start: where a run that has these rows may go on; None in the middle of a working strip.
    """

    row: int
    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    start: Start | None = None


def to_native(strips: Iterable[StripLike], scene: Scene, *, start: Start = BEGINNING) -> Iterator[NativeStrip]:
    """Bring strips of the working grid, top to bottom and without gaps, to the scene's native grid.

    Values are interpolated over valid working pixels alone; a native pixel is valid where the file's own mask says so
    and a valid working pixel is near. At scale 1 strips pass through. Held at once: one strip, its neighbourhood and
    256 native rows. start: what an earlier run came to; then strips begin at start.top or above it, and what is given
    is bit by bit what that run would have gone on with.

    Raises:
        RasterError: the file is damaged.
        SettingError: a strip does not begin where the one before it ended, or has not the scene's width.

    """
    band = _Band(scene, start)
    for strip in strips:
        if scene.scale == (1.0, 1.0):
            end = strip.row + len(strip.valid)
            if end > start.native:
                values = np.where(strip.valid, strip.values, 0).astype(np.float32)
                yield NativeStrip(strip.row, values, strip.valid, Start(end, end, end))
        else:
            band.add(strip)
            yield from band.take()


class _Band:
    """The working rows that native rows still to come may draw from."""

    def __init__(self, scene: Scene, start: Start = BEGINNING) -> None:
        self.scene, self.start = scene, start
        self.step = (scene.height / scene.grid.height, scene.width / scene.grid.width)
        self.top = start.top  # first working row held
        self.end: int | None = None  # first working row not yet seen
        self.done = start.native  # first native row not yet given
        self.values: npt.NDArray[np.float32] = np.zeros((0, 0, 0), np.float32)
        self.valid: npt.NDArray[np.bool_] = np.zeros((0, 0), np.bool_)

    def add(self, strip: StripLike) -> None:
        """Take in the next strip and forget rows that no native row to come needs."""
        fits = strip.row <= self.start.top if self.end is None else strip.row == self.end
        if not fits or strip.values.shape[2] != self.scene.width:
            first = self.start.top if self.end is None else self.end
            raise SettingError(
                f"wanted a strip of {self.scene.width} columns from row {first}, "
                f"got {strip.values.shape[2]} columns from row {strip.row}"
            )
        cut = slice(max(0, self.top - strip.row), None)
        if self.end is None:
            self.values, self.valid = strip.values[:, cut], strip.valid[cut]
        else:
            # what an earlier run held is not trimmed: the pixels to come depend, in their last bit, on where it began
            needed = self.top if strip.row < self.start.working else max(self.top, self._needed())
            rest = slice(needed - self.top, None)
            self.values = np.concatenate([self.values[:, rest], strip.values[:, cut]], axis=1)
            self.valid = np.concatenate([self.valid[rest], strip.valid[cut]])
            self.top = needed
        self.end = strip.row + len(strip.valid)

    def _needed(self) -> int:
        """First working row that native rows still to come draw from."""
        return math.floor(self.done * self.step[0]) - reach(self.step[0])

    def take(self) -> Iterator[NativeStrip]:
        """Give the native rows that no later strip can change."""
        grid = self.scene.grid
        if self.end is None or self.end <= self.start.working < self.scene.height:
            return
        ready = math.floor((self.end - reach(self.step[0])) / self.step[0])
        stop = grid.height if self.end >= self.scene.height else min(grid.height, ready)
        while self.done < stop:
            window = Window(self.done, 0, min(_ROWS, stop - self.done), grid.width)
            values, known = resample_valid(self.values, self.valid, offset=(self.top, 0), step=self.step, window=window)
            valid = self.scene.native_valid(window.row, window.height) & known
            self.done += window.height
            start = Start(self.done, self.end, max(self.top, self._needed())) if self.done == stop else None
            yield NativeStrip(window.row, np.where(valid, values, 0).astype(np.float32), valid, start)
