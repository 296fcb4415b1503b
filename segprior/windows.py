"""Windows: which pixels of a raster are worked on together, in which order, and with which weight.

A raster of H x W pixels is covered by overlapping windows, row by row. Sides, strides and offsets are multiples of
ALIGNMENT, the largest stride of the image encoders, so that the encoder's cells lie on one grid in every window.

Where windows overlap, their results are averaged with the weights of `taper`, a product of raised cosines

    w(i) = sin^2( pi (i + 1/2) / (2 overlap) ),   i < overlap pixels from the edge;   w = 1 further inside,

which sum to 1 over two windows that overlap by just that many pixels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segprior.errors import SettingError

ALIGNMENT = 32
"""Sides, strides and offsets of covering windows are multiples of this many pixels."""


@dataclass(frozen=True, slots=True)
class Window:
    """Whole pixels [row, row + height) x [col, col + width) of a raster, counted from its upper left corner.

    It may reach beyond the raster's lower and right edges. Raises SettingError on negative offsets or empty sides.
    """

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.row, self.col) < 0 or min(self.height, self.width) < 1:
            raise SettingError(f"a window needs row, col >= 0 and height, width >= 1; {self} came")

    @property
    def row_slice(self) -> slice:
        """Its rows, to index an array of the whole raster."""
        return slice(self.row, self.row + self.height)

    @property
    def col_slice(self) -> slice:
        """Its columns, to index an array of the whole raster."""
        return slice(self.col, self.col + self.width)

    def holds(self, other: "Window") -> bool:
        """Whether all pixels of the other window are among its own."""
        return (
            self.row <= other.row
            and self.col <= other.col
            and other.row + other.height <= self.row + self.height
            and other.col + other.width <= self.col + self.width
        )

    def meets(self, other: "Window") -> bool:
        """Whether some pixels are in both."""
        return (
            self.row < other.row + other.height
            and other.row < self.row + self.height
            and self.col < other.col + other.width
            and other.col < self.col + self.width
        )

    def intersection(self, height: int, width: int) -> "Window":
        """Cut off what lies outside a raster of height x width pixels; SettingError if nothing remains."""
        if self.row >= height or self.col >= width:
            raise SettingError(f"{self} lies outside a raster of {height} x {width} pixels; move it inside")
        return Window(self.row, self.col, min(self.height, height - self.row), min(self.width, width - self.col))


def cover(height: int, width: int, *, size: int, overlap: int) -> tuple[Window, ...]:
    """Lay windows over every pixel of a raster of height x width pixels, row by row.

    `size` is the side of a window and `overlap` what neighbours share, in pixels: multiples of 32, with
    0 <= overlap <= size / 2. The last window of a row or column moves inwards as far as covering the edge allows, so it
    sticks out by less than 32 pixels; a raster shorter than `size` gets windows as short as covering it allows.
    Raises SettingError on other sizes.
    """
    if height < 1 or width < 1:
        raise SettingError(f"a raster to cover needs at least one pixel, {height} x {width} came")
    if size < 1 or size % ALIGNMENT:
        raise SettingError(f"the tile size must be a positive multiple of {ALIGNMENT} pixels, not {size}")
    if overlap < 0 or overlap % ALIGNMENT or 2 * overlap > size:
        raise SettingError(
            f"the overlap must be a multiple of {ALIGNMENT} from 0 to half the tile size ({size}), not {overlap}"
        )
    rows, window_height = _cover_axis(height, size=size, overlap=overlap)
    cols, window_width = _cover_axis(width, size=size, overlap=overlap)
    return tuple(Window(row, col, window_height, window_width) for row in rows for col in cols)


def _cover_axis(length: int, *, size: int, overlap: int) -> tuple[list[int], int]:
    """Offsets of the windows along one axis, and their side."""
    if length <= size:
        return [0], _round_up(length)
    last = _round_up(length - size)
    return [*range(0, last, size - overlap), last], size


def _round_up(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def taper(height: int, width: int, overlap: int) -> npt.NDArray[np.float32]:
    """Weigh each pixel of a window by its distance to the four edges: float32 (height, width) in (0, 1].

    Raised-cosine ramps over `overlap` pixels (>= 0) at each side, 1 inside. Where a window is shorter than two
    ramps the lower of both counts, so no weight is ever 0.
    """
    return np.outer(_ramps(height, overlap), _ramps(width, overlap)).astype(np.float32)


def _ramps(length: int, overlap: int) -> npt.NDArray[np.float64]:
    steps = np.arange(length)
    distance = np.minimum(steps, steps[::-1]) + 0.5  # to the nearer edge, from pixel centres
    phase = np.minimum(distance / max(overlap, 0.5), 1.0)
    return np.asarray(np.sin(np.pi / 2 * phase) ** 2)
