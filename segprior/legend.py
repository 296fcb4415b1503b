"""Stand-in: the classes of a prior (name, value in the file, colour)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segprior.errors import LegendError


@dataclass(frozen=True, slots=True)
class LegendClass:
    """One class: its name, its value in label files and its colour."""

    name: str
    value: int
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Legend:
    """The classes in index order."""

    classes: tuple[LegendClass, ...]
    nodata: int = 255

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index."""
        return tuple(c.name for c in self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        """File values by index."""
        return tuple(c.value for c in self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def colormap(self) -> dict[int, tuple[int, int, int, int]]:
        """RGBA colour by file value."""
        return {c.value: (*c.color, 255) for c in self.classes}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        classes = [{"name": c.name, "value": c.value, "color": list(c.color)} for c in self.classes]
        return {"classes": classes, "nodata": self.nodata}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Legend:
        """Legend from its JSON-able form; LegendError when malformed."""
        try:
            classes = tuple(LegendClass(c["name"], c["value"], tuple(c["color"])) for c in data["classes"])
            return cls(classes, data["nodata"])
        except (KeyError, TypeError) as error:
            raise LegendError(f"malformed legend: {error}") from error
