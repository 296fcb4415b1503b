"""Segmenting a raster of any size: windows in, strips of class probabilities out, one pass from top to bottom.

    scene -> windows -> tiles -> joint tensors -> solver -> probabilities -> blended strips -> native strips -> files

The unit of work is a batch of windows (`Job`), which names its raster and its prior by path: `map` may be any ordered,
lazy map, here or on other machines. Noise is a function of the seed and the absolute position of a pixel, so
overlapping windows share it and batches may be cut anywhere. Memory is bounded by one band of windows, whatever the
raster's height.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segprior import __version__
from segprior.checkpoint import Card, Prior, load_prior, locate_prior, read_card
from segprior.errors import OutputError, RasterError, SettingError
from segprior.geotiff import BLOCK, band_writer, class_writer
from segprior.legend import NO_INDEX, Legend
from segprior.mosaic import Tile, blend
from segprior.prior.infer import FixedPoint, Noise, Solver, infer
from segprior.provenance import digest
from segprior.raster import open_raster
from segprior.scene import BEGINNING, NativeStrip, Scene, Start, open_scene, to_native
from segprior.sidecar import style_of
from segprior.stretch import Stretch
from segprior.target import check_target, replacing
from segprior.unfinished import Layer, State, Unfinished, Work
from segprior.windows import ALIGNMENT, Window, cover

AnyPath = str | PathLike[str]
Progress = Callable[[int, int], None]
"""Called with native rows done and native rows in all."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to segment.

    solver: see `segprior.prior.solver`; a plain segmenter takes one step whatever it is. samples: particles averaged.
    tile_size, overlap: working pixels, multiples of 32. batch_size: windows solved at once. seed: of the noise. bands:
    numbers from 1 or colours ("red"), None for the prior's. res: metres on the ground of a native pixel, None for what
    the georeference says. stretch: the values that become 0 and 255; None takes 8-bit bands as they are and others by
    their percentiles. on_error: what damaged blocks of the image are, the end ("stop") or without data ("nodata").
    device: "auto", "cpu" or "cuda".
    """

    solver: Solver = field(default_factory=FixedPoint)
    samples: int = 1
    tile_size: int = 256
    overlap: int = 64
    batch_size: int = 4
    seed: int = 0
    bands: tuple[int | str, ...] | None = None
    res: float | None = None
    stretch: Stretch | None = None
    on_error: Literal["stop", "nodata"] = "stop"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise SettingError(f"wanted samples and batch size of 1 or more, got {self.samples} and {self.batch_size}")
        if not 0 <= self.seed < 1 << 63:
            raise SettingError(f"wanted a seed from 0 to 2^63 - 1, got {self.seed}")
        if self.on_error not in ("stop", "nodata"):
            raise SettingError(f"wanted to stop at damage or to take it as nodata, got {self.on_error!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise SettingError(f"wanted the device auto, cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingError("wanted a CUDA device, found none; use --device cpu")
        cover(1, 1, size=self.tile_size, overlap=self.overlap)  # raises for what windows cannot be

    @property
    def resolved_device(self) -> str:
        """The device that "auto" stands for here."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


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


@dataclass(frozen=True, slots=True)
class Summary:
    """What a segmentation came to.

    mask: its path. pixels: all of them; valid: those with data; shares: of each class in these. continued_from: rows
    that an unfinished run had left. state: of what was found there: "new" for nothing, "continued", or "anew" where the
    rows of another work (input, prior or settings differ) were dropped.
    """

    mask: Path
    pixels: int
    valid: int
    shares: dict[str, float]
    continued_from: int = 0
    state: State = "new"


def segment(
    image: AnyPath,
    mask: AnyPath,
    *,
    prior: AnyPath = "landcover",
    options: Options | None = None,
    probabilities: AnyPath | None = None,
    confidence: AnyPath | None = None,
    entropy: AnyPath | None = None,
    dtype: Literal["float32", "uint8"] = "float32",
    cog: bool = False,
    style: bool = False,
    overwrite: bool = False,
    map: Map = map,  # noqa: A002  # it is one
    progress: Progress | None = None,
) -> Summary:
    """Write the class raster of `image` to `mask`, on the image's own grid, nodata where the image has none.

    probabilities: a GeoTIFF with one named band per class. confidence: the largest of them, one band. entropy: theirs,
    one band, as a share of the greatest possible: 0 where one class is sure, 1 where all are alike. dtype: of these,
    uint8 with the scale 1/254. cog: make all of them cloud-optimised. style: write MASK.qml, which QGIS loads with the
    mask. All files appear together at the end or not at all. A run that is interrupted leaves its finished rows in a
    hidden folder beside the mask, and the same call goes on from them to the same result. Raises RasterError,
    CheckpointError, OutputError or SettingError.
    """
    options = Options() if options is None else options
    card = read_card(prior)
    qml = Path(mask).with_suffix(".qml")
    targets = [path for path in (mask, qml if style else None, probabilities, confidence, entropy) if path is not None]
    sources = (image, locate_prior(prior))
    layers = _layers(len(card.legend), probabilities=probabilities, confidence=confidence, entropy=entropy)
    with ExitStack() as stack:
        scene = stack.enter_context(open_for(image, card, options))
        grid, options = scene.grid, replace(options, bands=scene.bands, stretch=scene.stretch)
        tags = {**provenance_tags(card, options, prior), "SEGPRIOR_IMAGE": _fingerprint(image)}
        about = {**tags, "path": str(Path(image).resolve()), "options": repr(options)}
        tags["SEGPRIOR_FORMAT"] = _format(dtype, cog=cog)
        work = Work(Path(mask), about, layers, grid.width)
        # a run that was killed while it gave its files their names has left some of them, which are ours to replace
        overwrite = overwrite or ((left := work.left()) is not None and left.native == grid.height)
        _check_targets(targets, sources, overwrite)
        done = stack.enter_context(Unfinished(work))
        if progress is not None and done.start.native:
            progress(done.start.native, grid.height)
        for strip in strips(image, scene, prior=prior, options=options, map=map, start=done.start):
            done.put(strip.start, _rows(strip, card.legend, layers))
            if progress is not None:
                progress(strip.row + len(strip.valid), grid.height)
        # renamed last to first, so the mask is the last to appear
        put = {"classes": class_writer(mask, grid, card.legend, overwrite=overwrite, tags=tags, cog=cog)}
        for name, path in (("probabilities", probabilities), ("confidence", confidence), ("entropy", entropy)):
            if path is not None:
                names = card.legend.names if name == "probabilities" else (name,)
                put[name] = band_writer(path, grid, names, dtype=dtype, overwrite=overwrite, tags=tags, cog=cog)
        sinks = {name: stack.enter_context(writer) for name, writer in put.items()}
        if style:
            stack.enter_context(replacing(qml, overwrite=overwrite)).write_text(style_of(card.legend), encoding="utf-8")
        counts = np.zeros(256, np.int64)
        for name, sink in sinks.items():
            for row, values in done.rows(name, grid.height, BLOCK):
                sink(row, values)
                if name == "classes":
                    counts += np.bincount(values.ravel(), minlength=256)
    by_class = dict(zip(card.legend.names, counts[list(card.legend.values)].tolist(), strict=True))
    valid = sum(by_class.values())
    shares = {name: count / max(1, valid) for name, count in by_class.items()}
    return Summary(Path(mask), grid.height * grid.width, valid, shares, done.start.native, done.state)


def _layers(classes: int, **wanted: AnyPath | None) -> dict[str, Layer]:
    """What is kept of every row until all are there."""
    bands = {"probabilities": classes, "confidence": 1, "entropy": 1}
    kept = {name: Layer(bands[name], "float32") for name, path in wanted.items() if path is not None}
    return {"classes": Layer(1, "uint8"), **kept}


def _rows(strip: NativeStrip, legend: Legend, layers: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Compute the layers of a strip, (bands, rows, columns) each; NaN where there is no data."""
    known = np.where(strip.valid, strip.values, np.float32(np.nan))
    made: dict[str, NDArray[Any]] = {}
    for name in layers:
        match name:
            case "classes":
                index = np.where(strip.valid, strip.values.argmax(axis=0), NO_INDEX).astype(np.uint8)
                made[name] = legend.to_value(index)[None]
            case "probabilities":
                made[name] = known
            case "confidence":
                made[name] = known.max(axis=0, keepdims=True)
            case _:
                made[name] = relative_entropy(known)
    return made


def _format(dtype: str, *, cog: bool) -> str:
    return f"{'cloud-optimised' if cog else 'plain'}, shares as {dtype}"


def is_result(
    path: AnyPath,
    image: AnyPath,
    *,
    prior: AnyPath,
    options: Options,
    dtype: Literal["float32", "uint8"] = "float32",
    cog: bool = False,
) -> bool:
    """Say whether `path` is what `segment` makes of `image` as it is now, with this prior, options and format.

    Raises RasterError, CheckpointError or SettingError, as `segment` would, if `path` is there.
    """
    if not Path(path).is_file():
        return False
    card = read_card(prior)
    with open_for(image, card, options) as scene:
        options = replace(options, bands=scene.bands, stretch=scene.stretch)
    made = {"SEGPRIOR_IMAGE": _fingerprint(image), "SEGPRIOR_FORMAT": _format(dtype, cog=cog)}
    wanted = {**provenance_tags(card, options, prior), **made}
    try:
        with open_raster(path) as dataset:
            found = dataset.tags()
    except RasterError:
        return False
    return all(found.get(name) == value for name, value in wanted.items())


def _fingerprint(image: AnyPath) -> str:
    """What tells that a file is still the same: its name, and its size and time of change where it is a file here."""
    path = Path(image)
    if not path.is_file():
        return path.name
    state = path.stat()
    return f"{path.name}, {state.st_size} bytes, changed {state.st_mtime_ns}"


def relative_entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy over the first axis as a share of log(classes), (1, ...); NaN stays NaN."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=~(probabilities <= 0))
    share: NDArray[np.float32] = -(probabilities * logs).sum(axis=0, keepdims=True) / np.float32(
        np.log(len(probabilities))
    )
    return np.clip(share, 0.0, 1.0)


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

    start: go on from there; windows are batched as from the beginning, so that the same numbers come out.
    """
    if start.native == scene.grid.height:
        return iter(())
    options = replace(options, bands=scene.bands, stretch=scene.stretch)  # found once, not by every job
    windows = cover(scene.height, scene.width, size=options.tile_size, overlap=options.overlap)
    name, size = str(locate_prior(prior)), options.batch_size
    first = max(w.row for w in windows if w.row <= start.top)
    needed = (batch for batch in _batches(windows, size) if any(w.row + w.height > first for w in batch))
    jobs = (Job(fspath(image), name, batch, options) for batch in needed)
    tiles = (tile for solved in map(solve, jobs) for tile in solved)
    blended = blend(tiles, height=scene.height, width=scene.width, overlap=options.overlap, first=first)
    return to_native(blended, scene, start=start)


def open_for(image: AnyPath, card: Card, options: Options) -> AbstractContextManager[Scene]:
    """The scene that a prior sees of a raster. Raises RasterError or SettingError."""
    bands = card.bands if options.bands is None else options.bands
    if len(bands) != len(card.bands):
        wanted = f"{len(card.bands)} bands, as the prior {card.name} was trained on"
        raise SettingError(f"wanted {wanted}, got {len(bands)}: {', '.join(map(str, bands))}")
    lenient = options.on_error == "nodata"
    return open_scene(image, res=card.res, bands=bands, pixel_res=options.res, stretch=options.stretch, lenient=lenient)


@dataclass(frozen=True, slots=True, eq=False)
class _Sight:
    """What the network sees of a window: pixels outside the raster are mirrored, those without data are missing."""

    window: Window
    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, scene: Scene, window: Window) -> "_Sight":
        image, valid = scene.read(window)
        inside = window.intersection(scene.height, scene.width)
        rest = ((0, window.height - inside.height), (0, window.width - inside.width))
        return cls(window, image, valid, np.pad(valid[: inside.height, : inside.width], rest, mode="symmetric"))


def solve(job: Job) -> list[Tile]:
    """Class probabilities of a batch of windows; windows without a valid pixel cost nothing."""
    with _LOADING:
        prior = _loaded(job.prior, job.options.resolved_device)
    with open_for(job.image, prior.card, job.options) as scene:
        sights = [_Sight.of(scene, window) for window in job.windows]
    worth = [sight for sight in sights if sight.valid.any()]
    nothing = np.zeros((len(prior.card.legend), *sights[0].valid.shape), np.float32)
    values = dict(zip((s.window for s in worth), _probabilities(prior, job.options, worth), strict=True))
    return [Tile(s.window, values.get(s.window, nothing), s.valid) for s in sights]


def _probabilities(prior: Prior, options: Options, sights: Sequence[_Sight]) -> NDArray[np.float32]:
    """(windows, classes, height, width)."""
    if not sights:
        return np.zeros((0, len(prior.card.legend), 1, 1), np.float32)
    device = torch.device(options.resolved_device)
    y = prior.card.normalise(np.stack([s.image for s in sights])).to(device, memory_format=torch.channels_last)
    seen = torch.from_numpy(np.stack([s.seen for s in sights]))[:, None].to(device)
    layout = prior.denoiser.layout
    noise = position_noise(
        options.seed,
        [s.window for s in sights],
        channels=layout.bands + layout.classes,
        particles=options.samples,
        device=device,
    )
    solver = _solver(prior.card, options)
    *_, last = infer(prior.denoiser, y, valid=seen, solver=solver, particles=options.samples, noise=noise)
    return last.probabilities.float().cpu().numpy()


def _solver(card: Card, options: Options) -> Solver:
    """Choose one step (a turn) for a plain segmenter: more would feed it its own map."""
    if not card.plain:
        return options.solver
    turns = options.solver.turns if isinstance(options.solver, FixedPoint) else 1
    return FixedPoint(times=(1.0,) * turns, turns=turns)


def position_noise(
    seed: int, windows: Sequence[Window], *, channels: int, particles: int = 1, device: torch.device | str = "cpu"
) -> Noise:
    """Standard normal noise that is a function of seed, draw, particle, channel and absolute pixel position.

    The plane is cut into blocks of ALIGNMENT x ALIGNMENT pixels, each with a counter-based generator of its own
    (Philox, Salmon et al. 2011); windows must be aligned to blocks, as `cover` makes them.
    """
    size = ALIGNMENT

    def block(number: int, particle: int, row: int, col: int) -> NDArray[np.float32]:
        generator = np.random.Generator(np.random.Philox(key=[seed, number << 32 | particle], counter=[0, 0, row, col]))
        return generator.standard_normal((channels, size, size), dtype=np.float32)

    def draw(number: int) -> Tensor:
        height, width = windows[0].height, windows[0].width
        out = np.empty((particles, len(windows), channels, height, width), np.float32)
        for particle in range(particles):
            for item, window in enumerate(windows):
                for row in range(0, height, size):
                    for col in range(0, width, size):
                        where = ((window.row + row) // size, (window.col + col) // size)
                        at = (slice(None), slice(row, row + size), slice(col, col + size))
                        out[particle, item][at] = block(number, particle, *where)
        return torch.from_numpy(out.reshape(-1, channels, height, width)).to(device)

    return draw


_LOADING = threading.Lock()
"""Held while a prior is loaded, so that threads that want the same one share it."""


@lru_cache(maxsize=2)
def _loaded(path: str, device: str) -> Prior:
    """A prior, read once per process."""
    return load_prior(path, device=device)


def _batches(windows: Sequence[Window], size: int) -> Iterator[tuple[Window, ...]]:
    return (tuple(windows[first : first + size]) for first in range(0, len(windows), size))


def _check_targets(targets: Sequence[AnyPath], sources: Sequence[AnyPath], overwrite: bool) -> None:
    for path in targets:
        check_target(path, overwrite=overwrite, sources=sources)
    if len({Path(path).resolve() for path in targets}) < len(targets):
        raise OutputError(f"wanted a file of its own for every result, got {', '.join(map(str, targets))}")


def provenance_tags(card: Card, options: Options, prior: AnyPath) -> dict[str, str]:
    """What made this raster, as GeoTIFF metadata."""
    return {
        "SEGPRIOR_VERSION": __version__,
        "SEGPRIOR_PRIOR": card.name,
        "SEGPRIOR_PRIOR_SHA256": digest(locate_prior(prior)),
        "SEGPRIOR_SOLVER": repr(_solver(card, options)),
        "SEGPRIOR_SAMPLES": str(options.samples),
        "SEGPRIOR_SEED": str(options.seed),
        "SEGPRIOR_WINDOWS": f"{options.tile_size}, overlap {options.overlap}",
        "SEGPRIOR_PIXEL": "georeference" if options.res is None else f"{options.res:g} m",
        "SEGPRIOR_BANDS": ",".join(map(str, card.bands if options.bands is None else options.bands)),
        "SEGPRIOR_SCALE": "none" if options.stretch is None else str(options.stretch),
    }
