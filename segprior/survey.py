"""A survey: places that were looked up without regard to the map, and what they say of all that looks alike.

    SurveySource    a vector file and which class its features are of
    surveyed        the function of the features that they make known, see `segprior.prior.alike`

Every feature counts once, at a point inside it. Of more than MOST, as many are taken evenly from their list.
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
from segprior.legend import Legend
from segprior.prior.alike import MOST, Alike, alike
from segprior.prior.network import STRIDE
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


def surveyed(
    sample: Spots, scene: Scene, prior: Prior, *, tile_size: int, overlap: int, batch_size: int, device: str
) -> Alike:
    """Look at the places with the prior's network, in the windows that it will see them in, and find what it lacks.

    Raises VectorError where the raster holds no data at any place, and RasterError where it is damaged.
    """
    windows = cover(scene.height, scene.width, size=tile_size, overlap=overlap)
    centres = [(w.row + w.height / 2, w.col + w.width / 2) for w in windows]
    # the window whose middle is nearest: the place has most to see around it there
    _, home = cKDTree(centres).query(np.column_stack([sample.rows, sample.cols]) + 0.5, p=np.inf)
    needed = np.unique(home)
    moments, found = _Moments(), []
    for first in range(0, len(needed), batch_size):
        numbers = needed[first : first + batch_size]
        sights = [Sight.of(scene, windows[n]) for n in numbers]
        for number, sight, context, logits in zip(numbers, sights, *_encoded(prior, sights, device), strict=True):
            moments.add(context[:, torch.from_numpy(sight.valid[::STRIDE, ::STRIDE])].T)
            found.append(_at(sample.taken(home == number), sight, context, logits))
    features, logits, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not len(index):
        raise VectorError(f"wanted surveyed places where {scene.dataset.name} holds data, got none of {len(sample)}")
    mean, std = moments.finish()
    return alike(features, logits, index, mean=mean, std=std)


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


@torch.no_grad()
def _encoded(prior: Prior, sights: Sequence[Sight], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (windows, d, h/4, w/4) and class logits at the prior's temperature."""
    y, seen = stacked(sights, prior.card, torch.device(device))
    features = prior.denoiser.encode(torch.where(seen, y, 0.0), torch.where(seen, 0.0, 1.0))
    return features.context.float().cpu(), features.logits.float().cpu() / prior.denoiser.temperature


def _at(
    sample: Spots, sight: Sight, context: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (n, d), logits (n, classes) and classes (n,) at the places of a window that hold data."""
    rows, cols = sample.rows - sight.window.row, sample.cols - sight.window.col
    good = sight.valid[rows, cols]
    rows, cols = rows[good], cols[good]
    return context[:, rows // STRIDE, cols // STRIDE].T, logits[:, rows, cols].T, torch.from_numpy(sample.index[good])
