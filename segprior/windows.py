"""Stand-in: windows of whole pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Whole pixels: first row and column, rows and columns."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_slice(self) -> slice:
        """Rows as a slice."""
        return slice(self.row, self.row + self.height)

    @property
    def col_slice(self) -> slice:
        """Columns as a slice."""
        return slice(self.col, self.col + self.width)

    def intersection(self, height: int, width: int) -> Window:
        """The part inside a raster of height x width pixels."""
        row, col = max(0, self.row), max(0, self.col)
        bottom, right = min(height, self.row + self.height), min(width, self.col + self.width)
        return Window(row, col, bottom - row, right - col)
