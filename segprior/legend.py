"""A legend: the classes of a data set by name, value and colour.

Two numberings of the same K classes meet here. *Values* v_0 ... v_{K-1} are what label and class rasters hold: any K
different numbers from 0 to 254. *Indices* 0 ... K-1 are places in the legend, which the network counts in. "No class
here" is `nodata` among the values and always 255 among the indices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segprior.errors import LegendError

NO_INDEX = 255
"""The index of a pixel that has no class."""


def _is_byte(number: object, *, highest: int = 255) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= highest


@dataclass(frozen=True, slots=True)
class LegendClass:
    """One class.

    `name` is what people call it, `value` (0 to 254) its number in label and class rasters, `color` its red, green and
    blue (0 to 255 each). Raises LegendError on anything else.
    """

    name: str
    value: int
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise LegendError(f"a class needs a name of one letter or more, not {self.name!r}")
        if not _is_byte(self.value, highest=254):
            raise LegendError(f"class {self.name!r} needs a whole value from 0 to 254, not {self.value!r}")
        if not isinstance(self.color, tuple) or len(self.color) != 3 or not all(map(_is_byte, self.color)):
            raise LegendError(f"class {self.name!r} needs a color of three numbers from 0 to 255, not {self.color!r}")


@dataclass(frozen=True, slots=True)
class Legend:
    """Two or more classes in a fixed order, with different names and values; `nodata` (0 to 255) is none of the values.

    Raises LegendError if a name or value stands twice, if there are fewer than two classes, or if `nodata` is a class.
    """

    classes: tuple[LegendClass, ...]
    nodata: int = 255

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise LegendError(f"a legend needs two classes or more, {len(self.classes)} came")
        for what, entries in (("names", self.names), ("values", self.values)):
            if len(set(entries)) < len(entries):
                raise LegendError(f"the {what} of a legend must differ from each other, {list(entries)} came")
        if not _is_byte(self.nodata):
            raise LegendError(f"nodata must be a whole number from 0 to 255, not {self.nodata!r}")
        if self.nodata in self.values:
            raise LegendError(f"nodata is {self.nodata}, which is also the value of a class; choose another of the two")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the indices."""
        return tuple(entry.name for entry in self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        """The values in label and class rasters, in the order of the indices."""
        return tuple(entry.value for entry in self.classes)

    def index(self, name: str) -> int:
        """Find the index of the class called `name`; LegendError, with the names there are, if there is none."""
        if name not in self.names:
            raise LegendError(f"no class is called {name!r}; the classes are {', '.join(self.names)}")
        return self.names.index(name)

    def to_index(self, array: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Turn values, of any shape and integer type, into class indices: 0 ... K-1, and 255 where nodata.

        Raises LegendError, naming them, if there are values that belong to no class, or if the type is no integer.
        """
        pairs = {value: index for index, value in enumerate(self.values)}
        return _translate(np.asarray(array), {**pairs, self.nodata: NO_INDEX}, noun="value")

    def to_value(self, array: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Turn class indices into values, nodata where 255: `to_index` backwards, with the same errors."""
        return _translate(np.asarray(array), {**dict(enumerate(self.values)), NO_INDEX: self.nodata}, noun="index")

    def colormap(self) -> dict[int, tuple[int, int, int, int]]:
        """Give red, green, blue and alpha (0 to 255 each) by value; nodata is transparent."""
        colors = {entry.value: (*entry.color, 255) for entry in self.classes}
        return {**colors, self.nodata: (0, 0, 0, 0)}

    def to_dict(self) -> dict[str, Any]:
        """Write the legend in strings, numbers, lists and dicts, as JSON and TOML hold it."""
        classes = [{"name": entry.name, "value": entry.value, "color": list(entry.color)} for entry in self.classes]
        return {"classes": classes, "nodata": self.nodata}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Legend":
        """Read what `to_dict` wrote (`nodata` may be left out and is 255 then); LegendError if malformed."""
        _expect_keys(data, wanted={"classes"}, allowed={"classes", "nodata"}, noun="a legend")
        entries = data["classes"]
        if not isinstance(entries, list | tuple):
            raise LegendError(f"the classes of a legend must be a list, not {entries!r}")
        return cls(tuple(_class_from_dict(entry) for entry in entries), nodata=data.get("nodata", 255))


def _class_from_dict(entry: Mapping[str, Any]) -> LegendClass:
    keys = {"name", "value", "color"}
    _expect_keys(entry, wanted=keys, allowed=keys, noun="a class")
    color = entry["color"]
    return LegendClass(entry["name"], entry["value"], tuple(color) if isinstance(color, list) else color)


def _expect_keys(data: Mapping[str, Any], *, wanted: set[str], allowed: set[str], noun: str) -> None:
    if not isinstance(data, Mapping) or not wanted <= set(data) <= allowed:
        came = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)
        raise LegendError(f"{noun} must be written with the keys {', '.join(sorted(allowed))}; {came} came")


def _translate(array: npt.NDArray[Any], pairs: Mapping[int, int], *, noun: str) -> npt.NDArray[np.uint8]:
    if array.dtype.kind not in "iu":
        raise LegendError(f"classes are whole numbers, an array of {array.dtype} came; convert it first")
    strange = np.unique(array[~np.isin(array, list(pairs))])
    if strange.size:
        listed = ", ".join(map(str, strange[:8].tolist())) + (", ..." if strange.size > 8 else "")
        raise LegendError(f"no class has the {noun} {listed}; known are {', '.join(map(str, sorted(pairs)))}")
    table = np.zeros(256, dtype=np.uint8)
    table[list(pairs)] = list(pairs.values())
    indexed: npt.NDArray[np.uint8] = table[array]
    return indexed
