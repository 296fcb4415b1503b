"""Inference on a raster: windows in, strips of class probabilities out, one pass from top to bottom.

    scene -> windows -> tiles -> joint tensors -> solver -> probabilities -> blended strips -> native strips

The unit of work is a batch of windows (`Job`), which names its raster and its prior by path: `map` may be any ordered,
lazy map, here or on other machines. Noise is a function of the seed and the absolute position of a pixel, so
overlapping windows share it and batches may be cut anywhere. Memory is bounded by one band of windows, whatever the
raster's height.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike, fspath
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from segprior.checkpoint import Card, Prior, load_prior, locate_prior, read_card
from segprior.errors import SettingError
from segprior.mosaic import Tile, blend
from segprior.native import BEGINNING, NativeStrip, Start, to_native
from segprior.noise import position_noise
from segprior.options import Options
from segprior.prior.alike import Surveyed, evidence
from segprior.prior.clusters import Clusters
from segprior.prior.familiar import image_losses, spread_over
from segprior.prior.infer import FixedPoint, Solver, infer
from segprior.prior.particles import disagreement
from segprior.prior.unary import Unary
from segprior.provenance import fingerprint
from segprior.scene import Scene, open_scene
from segprior.sight import Sight, stacked
from segprior.survey import Look, clicked, open_survey, surveyed
from segprior.told import Told, constraints, places_of
from segprior.windows import Window, cover

AnyPath = str | PathLike[str]

CLUSTER_SIDE = 64
"""Working pixels of a window in which colours are clustered."""


@dataclass(frozen=True, slots=True)
class Job:
    """A batch of windows of one raster, to be solved with one prior; small enough to travel."""

    image: str
    prior: str
    windows: tuple[Window, ...]
    options: Options


class Map(Protocol):
    """An ordered, lazy map, like the built-in one."""

    def __call__(self, function: Callable[[Job], list[Tile]], jobs: Iterable[Job], /) -> Iterable[list[Tile]]:
        """Apply the function to every job: results in the jobs' order, made as they are asked for."""


def strips(
    image: AnyPath,
    scene: Scene,
    *,
    prior: AnyPath,
    options: Options,
    map: Map = map,  # noqa: A002  # it is one
    start: Start = BEGINNING,
) -> Iterator[NativeStrip]:
    """Class probabilities of `image`, strip by strip, on its native grid; `scene` is the same raster, open.

    With `options.novelty` a channel more: the distance from familiar images, above 1 where they are unlike. With
    `options.disagreement` another: the mutual information between the samples, as a share of the greatest possible.
    start: go on from there; windows are batched as from the beginning, so that the same numbers come out.
    """
    if start.native == scene.grid.height:
        return iter(())
    options = replace(options, bands=scene.bands, stretch=scene.stretch)  # found once, not by every job
    if options.survey or options.known:
        options = _told_of_places(fspath(image), scene, prior, options)
    windows = cover(scene.height, scene.width, size=options.tile_size, overlap=options.overlap)
    name, size = str(locate_prior(prior)), options.batch_size
    first = max(w.row for w in windows if w.row <= start.top)
    needed = (batch for batch in _batches(windows, size) if any(w.row + w.height > first for w in batch))
    jobs = (Job(fspath(image), name, batch, options) for batch in needed)
    tiles = (tile for solved in map(solve, jobs) for tile in solved)
    blended = blend(tiles, height=scene.height, width=scene.width, overlap=options.overlap, first=first)
    return to_native(blended, scene, start=start)


def _told_of_places(image: str, scene: Scene, prior: AnyPath, options: Options) -> Options:
    """Find what a survey says, and then what points say that are known for certain."""
    device = options.resolved_device
    with _LOADING:
        loaded = _prior_at(locate_prior(prior), device)
    legend = loaded.card.legend
    look = Look(scene, loaded, options.tile_size, options.overlap, options.batch_size, device)
    if options.survey:
        look = replace(look, told=surveyed(open_survey(options.survey, scene, legend), look))
    heard = clicked(places_of(options.known, image, legend, scene).clicks, look) if options.known else None
    return replace(options, alike=look.told, clicked=heard)


def open_for(image: AnyPath, card: Card, options: Options) -> AbstractContextManager[Scene]:
    """The scene that a prior sees of a raster. Raises RasterError or SettingError."""
    bands = card.bands if options.bands is None else options.bands
    if options.novelty and card.familiarity is None:
        raise SettingError(f"wanted a prior that knows what is familiar, {card.name} does not; train it anew")
    if options.start is not None:
        _check_start(read_card(options.start), card)
    if len(bands) != len(card.bands):
        wanted = f"{len(card.bands)} bands, as the prior {card.name} was trained on"
        raise SettingError(f"wanted {wanted}, got {len(bands)}: {', '.join(map(str, bands))}")
    lenient = options.on_error == "nodata"
    return open_scene(image, res=card.res, bands=bands, pixel_res=options.res, stretch=options.stretch, lenient=lenient)


def _check_start(student: Card, card: Card) -> None:
    ours, theirs = ((c.legend.names, len(c.bands), c.res) for c in (card, student))
    if card.plain:
        raise SettingError(f"wanted a prior that goes on from another map, got {card.name}, a plain segmenter")
    if not student.plain:
        raise SettingError(f"wanted a plain segmenter to start from, as 'segprior distill' makes, got {student.name}")
    if ours != theirs:
        raise SettingError(f"wanted a start of the prior's classes, bands and resolution, {ours}, got {theirs}")


def solve(job: Job) -> list[Tile]:
    """Class probabilities of a batch of windows; windows without a valid pixel cost nothing."""
    device = job.options.resolved_device
    with _LOADING:
        prior = _prior_at(job.prior, device)
        student = None if job.options.start is None else _prior_at(locate_prior(job.options.start), device)
    legend, sources = prior.card.legend, job.options.sources
    with open_for(job.image, prior.card, job.options) as scene:
        sights = [Sight.of(scene, window) for window in job.windows]
        told = [Told.of(sources, scene, legend, window, image=job.image) for window in job.windows]
    worth = [number for number, sight in enumerate(sights) if sight.valid.any()]
    nothing = np.zeros((len(legend) + job.options.extras, *sights[0].valid.shape), np.float32)
    found = _probabilities(prior, job.options, [sights[n] for n in worth], [told[n] for n in worth], student)
    values = dict(zip((sights[n].window for n in worth), found, strict=True))
    return [Tile(s.window, values.get(s.window, nothing), s.valid) for s in sights]


def _probabilities(
    prior: Prior, options: Options, sights: Sequence[Sight], told: Sequence[Told], student: Prior | None
) -> NDArray[np.float32]:
    """(windows, classes, height, width)."""
    if not sights:
        return np.zeros((0, len(prior.card.legend) + options.extras, 1, 1), np.float32)
    device = torch.device(options.resolved_device)
    y, seen = stacked(sights, prior.card, device)
    layout = prior.denoiser.layout
    noise = position_noise(
        options.seed,
        [s.window for s in sights],
        channels=layout.bands + layout.classes,
        particles=options.samples,
        device=device,
    )
    known, said = constraints(told, options.sources, layout, particles=options.samples, device=device)
    if options.clusters:
        shown = torch.where(seen, y, 0.0).repeat(options.samples, 1, 1, 1)
        side = CLUSTER_SIDE
        said += (Clusters.of(shown, layout, count=options.clusters, side=side, weight=options.clusters_weight),)
    if options.clicked is not None:
        corners = torch.tensor([(s.window.row, s.window.col) for s in sights], device=device)
        heard = evidence(prior.denoiser, y, seen, options.clicked.to(device), corners)
        said += (Unary(heard.repeat(options.samples, 1, 1, 1), layout),)
    alike = options.alike
    *_, last = infer(
        prior.denoiser if alike is None else Surveyed(prior.denoiser, alike.to(device)),
        y,
        valid=seen,
        solver=solver_for(prior.card, options),
        particles=options.samples,
        noise=noise,
        known=known,
        constraints=said,
        start=None if student is None else _map_of(student, sights, seen),
    )
    found = last.probabilities.float()
    if options.novelty and prior.card.familiarity is not None:
        losses = image_losses(prior.denoiser, y, seen)
        # cells without enough data are called familiar: nothing is known of them
        cells = torch.nan_to_num(prior.card.familiarity.distance(losses), nan=0.0)
        found = torch.cat([found, spread_over(cells, *y.shape[2:])[:, None]], dim=1)
    if options.disagreement:
        found = torch.cat([found, disagreement(last.particles.float())[:, None]], dim=1)
    return found.cpu().numpy()


def _map_of(student: Prior, sights: Sequence[Sight], seen: torch.Tensor) -> torch.Tensor:
    """Probabilities (windows, classes, height, width) of a plain segmenter."""
    y, _ = stacked(sights, student.card, seen.device)
    *_, last = infer(student.denoiser, y, valid=seen, solver=FixedPoint(times=(1.0,)))
    return last.probabilities


def solver_for(card: Card, options: Options) -> Solver:
    """Choose one step (a turn) for a plain segmenter: more would feed it its own map."""
    if not card.plain:
        return options.solver
    turns = options.solver.turns if isinstance(options.solver, FixedPoint) else 1
    return FixedPoint(times=(1.0,) * turns, turns=turns)


_LOADING = threading.Lock()
"""Held while a prior is loaded, so that threads that want the same one share it."""


def _prior_at(path: AnyPath, device: str) -> Prior:
    """A prior, read once per process for as long as its file stays as it is."""
    return _loaded(fspath(path), device, fingerprint(path))


@lru_cache(maxsize=2)
def _loaded(path: str, device: str, state: str) -> Prior:
    del state  # another state of the file is another prior
    return load_prior(path, device=device)


def _batches(windows: Sequence[Window], size: int) -> Iterator[tuple[Window, ...]]:
    return (tuple(windows[first : first + size]) for first in range(0, len(windows), size))
