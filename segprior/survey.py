"""A survey: places that were looked up without regard to the map, and what they say of all that looks alike; clicks.

    SurveySource    a vector file and which class its features are of
    surveyed        the function of the features that they make known, see `segprior.prior.alike`
    clicked         that of points that are known for certain, which may lie where the map was wrong

Every feature of a survey counts once, at a point inside it. Of more than MOST, as many are taken evenly from their
list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from segprior.checkpoint import Prior
from segprior.errors import VectorError
from segprior.known import KnownSource, Spots, open_places, spots
from segprior.legend import NO_INDEX, Legend
from segprior.prior.alike import CLICKS, MOST, QUIET, Alike, Surveyed, alike, quiet_places, shown
from segprior.prior.label_path import STRIDE
from segprior.scene import Scene
from segprior.settings import parsed
from segprior.sight import Sight, stacked
from segprior.windows import Window, cover


@dataclass(frozen=True, slots=True)
class SurveySource:
    """A vector file of surveyed places.

    path: any file that GDAL reads vectors from. kind: a class of the prior, which all features are of, or the column
    that names the class of each; None for the column "class".
    """

    path: str
    kind: str | None = None

    @classmethod
    def parse(cls, text: str) -> SurveySource:
        """Read PATH or PATH:class=NAME. Raises SettingError."""
        path, settings = parsed(text, ("class",))
        return cls(path, settings.get("class"))


def open_survey(sources: Sequence[SurveySource], scene: Scene, legend: Legend) -> Spots:
    """Read the surveyed places that lie on a scene.

    Raises VectorError for a file that cannot be read or has no CRS, a raster without one, an unknown class, and where
    no place lies on the raster.
    """
    places = open_places([KnownSource(source.path, source.kind) for source in sources], scene, legend)
    sample = spots(places.outlines, places.index).within(Window(0, 0, scene.height, scene.width))
    if not len(sample):
        names, count = ", ".join(source.path for source in sources), len(places.index)
        raise VectorError(f"wanted surveyed places on {scene.dataset.name}, got none there of {count} in {names}")
    if len(sample) > MOST:
        sample = sample.taken(np.unique(np.linspace(0, len(sample) - 1, MOST).round().astype(np.int64)))
    return sample


@dataclass(frozen=True, slots=True)
class Look:
    """A prior's network looking at a scene as it will when it maps it, in windows.

    tile_size, overlap, batch_size, device: as of `Options`. told: what a survey said.
    """

    scene: Scene
    prior: Prior
    tile_size: int
    overlap: int
    batch_size: int
    device: str
    told: Alike | None = None

    def at(
        self, spots: Spots
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Features (n, d), logits, classes and places of the spots that hold data; mean and spread of all features."""
        windows = cover(self.scene.height, self.scene.width, size=self.tile_size, overlap=self.overlap)
        centres = [(w.row + w.height / 2, w.col + w.width / 2) for w in windows]
        # the window whose middle is nearest: a place has most to see around it there
        _, home = cKDTree(centres).query(np.column_stack([spots.rows, spots.cols]) + 0.5, p=np.inf)
        needed = np.unique(home)
        moments, found = _Moments(), []
        for first in range(0, len(needed), self.batch_size):
            numbers = needed[first : first + self.batch_size]
            sights = [Sight.of(self.scene, windows[n]) for n in numbers]
            for number, sight, context, logits in zip(numbers, sights, *self._encoded(sights), strict=True):
                moments.add(context[:, torch.from_numpy(sight.valid[::STRIDE, ::STRIDE])].T)
                found.append(_at(spots.taken(home == number), sight, context, logits))
        features, logits, index, at = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, logits, index, at, moments.finish()

    @torch.no_grad()
    def _encoded(self, sights: Sequence[Sight]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (windows, d, h/4, w/4) and class logits at the prior's temperature."""
        y, seen = stacked(sights, self.prior.card, torch.device(self.device))
        denoiser = self.prior.denoiser
        asked = denoiser if self.told is None else Surveyed(denoiser, self.told.to(y.device))
        features = asked.encode(*shown(y, seen))
        return features.context.float().cpu(), features.logits.float().cpu() / denoiser.temperature


def surveyed(sample: Spots, look: Look) -> Alike:
    """Look at the places of a survey and find what the network lacks.

    Raises VectorError where the raster holds no data at any place, and RasterError where it is damaged.
    """
    features, logits, index, _, (mean, std) = look.at(sample)
    if not len(index):
        name = look.scene.dataset.name
        raise VectorError(f"wanted surveyed places where {name} holds data, got none of {len(sample)}")
    return alike(features, logits, index, mean=mean, std=std)


def clicked(clicks: Spots, look: Look) -> Alike | None:
    """Find what clicks say, with quiet places beside them; None where the raster holds no data at any click.

    Of very many the last ones count. Raises RasterError where the raster is damaged.
    """
    scene = look.scene
    clicks = clicks.within(Window(0, 0, scene.height, scene.width))
    clicks = clicks.taken(np.arange(len(clicks))[-(MOST - QUIET) :])
    if not len(clicks):
        return None
    quiet = quiet_places(scene.height, scene.width)
    every = Spots(
        np.concatenate([clicks.rows, quiet[:, 0]]),
        np.concatenate([clicks.cols, quiet[:, 1]]),
        np.concatenate([clicks.index, np.full(len(quiet), NO_INDEX, np.uint8)]),
    )
    features, logits, index, at, (mean, std) = look.at(every)
    if not bool((index != NO_INDEX).any()):
        return None
    return alike(features, logits, index, mean=mean, std=std, law=CLICKS, at=at)


class _Moments:
    """Mean and spread of features, summed up batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[torch.Tensor] = []

    def add(self, features: torch.Tensor) -> None:
        """Add (n, d)."""
        given = features.double()
        self.count += len(given)
        self.sums.append(torch.stack([given.sum(dim=0), (given**2).sum(dim=0)]))

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, (d,) each."""
        mean, squares = torch.stack(self.sums).sum(dim=0) / max(1, self.count)
        return mean, torch.sqrt((squares - mean**2).clamp(min=0.0))


def _at(
    spots: Spots, sight: Sight, context: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (n, d), logits (n, classes), classes (n,) and places (n, 2) of those that hold data in a window."""
    rows, cols = spots.rows - sight.window.row, spots.cols - sight.window.col
    good = sight.valid[rows, cols]
    rows, cols = rows[good], cols[good]
    at = torch.from_numpy(np.column_stack([spots.rows, spots.cols])[good])
    index = torch.from_numpy(spots.index[good])
    return context[:, rows // STRIDE, cols // STRIDE].T, logits[:, rows, cols].T, index, at
