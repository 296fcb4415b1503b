"""Shares from a census: how much of a raster, or of each of its zones, every class covers.

    SharesSource   where the shares stand, and how far the mask may be off them
    open_zones     the zones on a raster's own grid, with their shares
    Tally          classes of the mask as they are written, and how far their shares are off
    Tilt           what to multiply the odds of the classes by in each zone, so that the decided classes keep the shares

Shares are of the pixels with data that a zone holds, counted in decided classes: what the mask will show. The odds are
found over the whole raster at once, see `segprior.prior.shares`, from a bounded sample of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import torch
from rasterio.features import rasterize

from segprior.errors import SettingError, VectorError
from segprior.features import outlines_in_pixels, read_features
from segprior.legend import Legend
from segprior.prior.shares import LEAST, decided_tilts
from segprior.raster import Grid
from segprior.settings import parsed
from segprior.tables import read_toml, shares_row

SAMPLE, ZONE_LEAST = 1 << 20, 4096
"""Pixels that the odds are found from, in all, and at least of each zone."""

Rows = Callable[[], Iterable[tuple[int, npt.NDArray[np.float32]]]]
"""Reads the raster again: first row and class probabilities (classes, rows, columns), NaN without data."""


@dataclass(frozen=True, slots=True)
class SharesSource:
    """A file of shares.

    path: a .toml with a table [shares] of class = share, for the whole raster; or any vector file of zones with a
    column for each class that is known. Shares are in [0, 1]; a class that is not named is free. tolerance: how far a
    share may be off, in [0, 1].
    """

    path: str
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.tolerance) and 0 <= self.tolerance <= 1):
            raise SettingError(f"wanted a tolerance from 0 to 1 for {self.path}, got {self.tolerance}")

    @classmethod
    def parse(cls, text: str) -> SharesSource:
        """Read PATH or PATH:tolerance=0.02. Raises SettingError."""
        path, settings = parsed(text, ("tolerance",))
        try:
            return cls(path, float(settings.get("tolerance", "0")))
        except ValueError as error:
            raise SettingError(f"wanted a number for tolerance in {text!r}: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Zones:
    """Zones of a raster.

    shares: (zones, classes), NaN where free. outlines: in pixels of the raster, later ones on top; None for one zone
    that is the whole raster. names: what to call each.
    """

    shares: npt.NDArray[np.float32]
    outlines: npt.NDArray[np.object_] | None
    names: tuple[str, ...]
    width: int

    def index(self, row: int, rows: int) -> npt.NDArray[np.int32]:
        """Zone (rows, columns) of the pixels of some rows, by their centres; -1 for none."""
        if self.outlines is None:
            return np.zeros((rows, self.width), np.int32)
        found = np.full((rows, self.width), -1, np.int32)
        box = shapely.box(0, row, self.width, row + rows)
        chosen = np.flatnonzero(shapely.intersects(self.outlines, box))
        if len(chosen):
            moved = shapely.transform(self.outlines[chosen], lambda xy: xy - (0, row))
            rasterize(zip(moved, chosen.tolist(), strict=True), out=found)
        return found


def open_zones(source: SharesSource, grid: Grid, legend: Legend, *, raster: str = "the raster") -> Zones:
    """Read the zones of a raster and their shares.

    Raises SettingError: shares that no map can have, or of no class of the legend. VectorError: a file that cannot be
    read or placed, or whose zones all lie elsewhere.
    """
    if Path(source.path).suffix.lower() == ".toml":
        shares = shares_row(_table(source.path), legend, source.path)
        return Zones(shares[None], None, ("the raster",), grid.width)
    frame = read_features(source.path, "zones")
    named = [name for name in legend.names if name in frame.columns]
    if not named:
        columns = ", ".join(name for name in frame.columns if name != frame.geometry.name) or "none"
        raise SettingError(
            f"wanted columns of {source.path} named by classes of the prior ({', '.join(legend.names)}), got {columns}"
        )
    outlines = outlines_in_pixels(frame, grid, path=source.path, raster=raster)
    flat = shapely.get_dimensions(outlines) == 2
    inside = flat & shapely.intersects(outlines, shapely.box(0, 0, grid.width, grid.height))
    if not inside.any():
        raise VectorError(f"wanted zones on {raster}, none of the {len(frame)} in {source.path} has pixels of it")
    names = tuple(f"zone {number}" for number in np.flatnonzero(inside))
    named_rows = zip(names, frame.loc[inside, named].to_dict("records"), strict=True)
    shares = np.stack([shares_row(row, legend, f"{name} of {source.path}") for name, row in named_rows])
    return Zones(shares, outlines[inside], names, grid.width)


def _table(path: str) -> dict[str, object]:
    table = read_toml(path, "a table of shares")
    shares = table.get("shares")
    if not isinstance(shares, dict) or not shares or table.keys() != {"shares"}:
        raise SettingError(f"wanted one table [shares] of class = share in {path}, got {', '.join(table) or 'nothing'}")
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class Tilt:
    """What the zones do to class probabilities. lam: (zones, classes), added to their logarithms."""

    zones: Zones
    lam: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Rows, zones: Zones, *, tolerance: float = 0.0) -> Tilt:
        """Find the odds from a sample of the raster's pixels, of which each zone has its part."""
        count = np.zeros(len(zones.shares), np.int64)
        for row, p in rows():
            inside = zones.index(row, p.shape[1])[np.isfinite(p[0])]
            count += np.bincount(inside[inside >= 0], minlength=len(count))
        quota = np.maximum(SAMPLE * count / max(1, count.sum()), min(ZONE_LEAST, SAMPLE / len(count)))
        rate = np.append(np.minimum(1.0, quota / np.maximum(count, 1)), 0.0)  # the last is that of no zone
        values, where = [], []
        for row, p in rows():
            index = zones.index(row, p.shape[1])
            drawn = np.random.default_rng(row).random(index.shape) < rate[index]
            drawn &= np.isfinite(p[0])
            values.append(p[:, drawn].T)
            where.append(index[drawn])
        drawn_p = torch.from_numpy(np.concatenate(values))
        drawn_index = torch.from_numpy(np.concatenate(where)).long()
        # nothing can be asked of a zone without a pixel
        shares = np.where(count[:, None] > 0, zones.shares, np.float32(np.nan))
        lam = decided_tilts(drawn_p, drawn_index, torch.from_numpy(shares), tolerance=tolerance)
        return cls(zones, lam.numpy())

    def __call__(self, row: int, p: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Tilted probabilities of some rows, (classes, rows, columns); NaN stays, and so do pixels in no zone."""
        index = self.zones.index(row, p.shape[1])
        logs = np.log(np.maximum(p, LEAST))
        logs += np.append(self.lam, np.zeros_like(self.lam[:1]), axis=0)[index].transpose(2, 0, 1)
        odds = np.exp(logs - logs.max(axis=0))
        tilted: npt.NDArray[np.float32] = np.where(index < 0, p, odds / odds.sum(axis=0))
        return tilted


@dataclass(frozen=True, slots=True)
class Off:
    """A share that is off what was asked for: of a class in a zone, what it is and what it was to be."""

    zone: str
    name: str
    share: float
    wanted: float


class Tally:
    """Pixels of every class, and of every zone, as they are decided."""

    def __init__(self, legend: Legend, zones: Zones | None) -> None:
        self.legend, self.zones = legend, zones
        self.counts = np.zeros((1 if zones is None else len(zones.shares) + 1, 256), np.int64)

    def add(self, row: int, classes: npt.NDArray[np.uint8]) -> None:
        """Count class values (rows, columns) from `row` on."""
        shape = self.counts.shape
        index = np.zeros(classes.shape, np.int64) if self.zones is None else self.zones.index(row, len(classes))
        place = (index % shape[0]) * 256 + classes  # pixels in no zone, -1, have the last row
        self.counts += np.bincount(place.ravel(), minlength=self.counts.size).reshape(shape)

    @property
    def by_class(self) -> npt.NDArray[np.int64]:
        """(zones, classes)."""
        return self.counts[:, list(self.legend.values)]

    @property
    def valid(self) -> int:
        """Pixels with data."""
        return int(self.by_class.sum())

    @property
    def shares(self) -> dict[str, float]:
        """Share of every class in the pixels with data."""
        return dict(zip(self.legend.names, (self.by_class.sum(axis=0) / max(1, self.valid)).tolist(), strict=True))

    def off(self) -> Off | None:
        """Find the share that is farthest from what was asked for, in zones that hold data."""
        if self.zones is None:
            return None
        count = self.by_class[: len(self.zones.shares)]
        share = count / np.maximum(1, count.sum(axis=1, keepdims=True))
        apart = np.where(count.sum(axis=1, keepdims=True) > 0, np.abs(share - self.zones.shares), np.nan)
        if not np.isfinite(apart).any():
            return None
        zone, number = np.unravel_index(int(np.nanargmax(apart)), apart.shape)
        wanted = float(self.zones.shares[zone, number])
        return Off(self.zones.names[int(zone)], self.legend.names[int(number)], float(share[zone, number]), wanted)
