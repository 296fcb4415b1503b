"""A mosaic: overlapping tiles become finished strips, from top to bottom, in one pass.

With tiles k of values v_k, validity m_k in {0, 1} and weights w_k (see `windows.taper`), a pixel of the mosaic is

    v = sum_k w_k m_k v_k / sum_k w_k m_k,      valid where the denominator is positive.

Tiles come row by row of windows, so all rows above the current window row are final: they are divided, handed out and
forgotten. Only one band of windows is held, however high the raster is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segprior.errors import SettingError
from segprior.windows import Window, taper


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A window with its pixels.

    `values` is float32 (channels, window height, window width); `valid` is bool (window height, window width), and
    what stands in `values` where it is False does not matter, not even NaN. Raises SettingError on other shapes.
    """

    window: Window
    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        shape = (self.window.height, self.window.width)
        if self.values.ndim != 3 or self.values.shape[1:] != shape or self.valid.shape != shape:
            raise SettingError(
                f"a tile of {self.window} needs values (channels, height, width) and valid (height, width); "
                f"{self.values.shape} and {self.valid.shape} came"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Finished rows of a raster, full width: `row` is the first.

    `values` is float32 (channels, rows, raster width), 0 where `valid`, bool (rows, raster width), is False.
    """

    row: int
    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


def blend(tiles: Iterable[Tile], *, height: int, width: int, overlap: int, first: int = 0) -> Iterator[Strip]:
    """Average overlapping tiles into consecutive strips that hold every row of a height x width raster once.

    `tiles` come in the order of `windows.cover`, with the same `overlap` in pixels; parts of them outside the raster
    are cut. Lazy: a strip is yielded as soon as its rows are final. first: where a row of windows begins; strips begin
    there, bit by bit those of the whole raster, and only tiles that reach it are needed. Raises SettingError if window
    rows go upwards or leave rows out, or if the number of channels changes.
    """
    band: _Band | None = None
    for tile in tiles:
        if band is None:
            band = _Band(channels=len(tile.values), width=width, first=first)
        if tile.window.row > band.row:
            yield band.release(tile.window.row)
        band.add(tile, height=height, overlap=overlap)
    if band is None:
        raise SettingError("a mosaic needs one tile or more, none came")
    yield band.release(height)


class _Band:
    """Weighted sums of the rows from `row` on that tiles have reached and that are not released yet."""

    def __init__(self, *, channels: int, width: int, first: int) -> None:
        self.row = self.first = first
        self.total = np.zeros((channels, 0, width), dtype=np.float32)
        self.weight = np.zeros((0, width), dtype=np.float32)

    def add(self, tile: Tile, *, height: int, overlap: int) -> None:
        """Add a tile's part inside the raster to the sums."""
        channels, _, width = self.total.shape
        if len(tile.values) != channels or tile.window.row < self.row > self.first:
            raise SettingError(
                f"the mosaic is at row {self.row} with {channels} channels and goes downwards; "
                f"a tile of {len(tile.values)} channels at {tile.window} came"
            )
        inside = tile.window.intersection(height, width)
        above = max(0, self.row - inside.row)  # rows before the first strip
        if above >= inside.height:
            return
        self._reach(inside.row + inside.height - self.row)
        weight = taper(tile.window.height, tile.window.width, overlap) * tile.valid
        weight = weight[above : inside.height, : inside.width]
        values = tile.values[:, above : inside.height, : inside.width]
        rows = slice(inside.row + above - self.row, inside.row - self.row + inside.height)
        # NaN times weight 0 would be NaN, hence the choice before the product
        self.total[:, rows, inside.col_slice] += np.where(weight > 0, values, 0) * weight
        self.weight[rows, inside.col_slice] += weight

    def release(self, end: int) -> Strip:
        """Divide the rows before `end`, hand them out and forget them."""
        rows = end - self.row
        if rows > len(self.weight):
            raise SettingError(
                f"tiles reach row {self.row + len(self.weight)} and go on at row {end}: rows are missing"
            )
        total, weight = self.total[:, :rows], self.weight[:rows]
        valid = weight > 0
        strip = Strip(self.row, np.divide(total, weight, out=np.zeros_like(total), where=valid), valid)
        # copies: a view would keep the released rows in memory
        self.row, self.total, self.weight = end, self.total[:, rows:].copy(), self.weight[rows:].copy()
        return strip

    def _reach(self, rows: int) -> None:
        missing = rows - len(self.weight)
        if missing > 0:
            self.total = np.pad(self.total, ((0, 0), (0, missing), (0, 0)))
            self.weight = np.pad(self.weight, ((0, missing), (0, 0)))
