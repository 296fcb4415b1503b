"""Segmenting a raster into files: strips of class probabilities -> finished rows -> rasters, which appear together.

The numbers come from `segprior.inference`; `segprior.unfinished` keeps what is done of them until all is there.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from rasterio.io import DatasetReader

from segprior.arrays import class_array, is_array, path_of, stored
from segprior.census import Off, Tally, Tilt, Zones, open_zones
from segprior.checkpoint import locate_prior, read_card
from segprior.errors import OutputError, SettingError
from segprior.geotiff import band_writer, class_writer
from segprior.inference import Map, open_for, strips
from segprior.layers import finished_layers, layers_of, make_layers
from segprior.legend import Legend
from segprior.options import Options
from segprior.origin import format_tag, provenance_tags
from segprior.prior.familiar import CELL, unfamiliar
from segprior.provenance import fingerprint
from segprior.raster import Grid, bounded_cache
from segprior.rows import BLOCK, Sink
from segprior.sidecar import style_of
from segprior.survey import open_survey
from segprior.target import Together, check_target, replacing
from segprior.unfinished import State, Unfinished, Work

if TYPE_CHECKING:
    import xarray

AnyPath = str | PathLike[str]
Progress = Callable[[int, int], None]
"""Called with native rows done and native rows in all."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a segmentation came to.

    mask: its path. pixels: all of them; valid: those with data; shares: of each class in these. continued_from: rows
    that an unfinished run had left. state: of what was found there: "new" for nothing, "continued", or "anew" where the
    rows of another work (input, prior or settings differ) were dropped. off: the share that is farthest from what was
    asked for, if any was. unlike: share of the valid pixels that are unlike the training images, where that was asked;
    unfamiliar: whether that is more than chance makes of familiar rasters of this size. silent: files of known places
    and of other maps that say nothing of this raster, for they lie elsewhere.
    """

    mask: Path
    pixels: int
    valid: int
    shares: dict[str, float]
    continued_from: int = 0
    state: State = "new"
    off: Off | None = None
    unlike: float | None = None
    unfamiliar: bool = False
    silent: tuple[str, ...] = ()


@overload
def segment(
    image: AnyPath | DatasetReader,
    mask: AnyPath,
    *,
    prior: AnyPath = ...,
    options: Options | None = ...,
    probabilities: AnyPath | None = ...,
    confidence: AnyPath | None = ...,
    entropy: AnyPath | None = ...,
    novelty: AnyPath | None = ...,
    disagreement: AnyPath | None = ...,
    dtype: Literal["float32", "uint8"] = ...,
    cog: bool = ...,
    style: bool = ...,
    overwrite: bool = ...,
    map: Map = ...,
    progress: Progress | None = ...,
) -> Summary: ...


@overload
def segment(
    image: "xarray.DataArray",
    mask: None = None,
    *,
    prior: AnyPath = ...,
    options: Options | None = ...,
    map: Map = ...,
    progress: Progress | None = ...,
) -> "xarray.DataArray": ...


def segment(
    image: "AnyPath | DatasetReader | xarray.DataArray",
    mask: AnyPath | None = None,
    *,
    prior: AnyPath = "landcover",
    options: Options | None = None,
    probabilities: AnyPath | None = None,
    confidence: AnyPath | None = None,
    entropy: AnyPath | None = None,
    novelty: AnyPath | None = None,
    disagreement: AnyPath | None = None,
    dtype: Literal["float32", "uint8"] = "float32",
    cog: bool = False,
    style: bool = False,
    overwrite: bool = False,
    map: Map = map,  # noqa: A002  # it is one
    progress: Progress | None = None,
) -> "Summary | xarray.DataArray":
    """Write the class raster of `image` to `mask`, on the image's own grid, nodata where the image has none.

    image: a path, or a dataset that rasterio has open for reading. A rioxarray DataArray (band, y, x) is taken without
    a mask and gives a DataArray (y, x) of classes with its coordinates.

    probabilities: a GeoTIFF with one named band per class. confidence: the largest of them, one band. entropy: theirs,
    one band, as a share of the greatest possible: 0 where one class is sure, 1 where all are alike. novelty: how unlike
    the training images a place is, float32, above 1 for what is farther than all but a fiftieth of their like; it
    takes four times the time. disagreement: of 2 or more samples, their mutual information as a share of the
    greatest possible: 0 where they say the same. dtype: of the others, uint8 with the scale 1/254. cog: make all of
    them cloud-optimised. style: write MASK.qml, which QGIS loads with the mask. All files appear together at the end or
    not at all. A run that is interrupted leaves its finished rows in a hidden folder beside the mask; the same call
    goes on from them to the same result. Raises RasterError, CheckpointError, OutputError or SettingError.
    """
    look = _Look(probabilities, confidence, entropy, novelty, disagreement, dtype, cog=cog, style=style)
    if is_array(image):
        if mask is not None or look != _Look():
            raise SettingError("wanted no files for a DataArray, which gives a DataArray; store it first to have them")
        with stored(image) as path:
            segment(path, path.with_name("mask.tif"), prior=prior, options=options, map=map, progress=progress)
            return class_array(path.with_name("mask.tif"), image, read_card(prior).legend)
    if mask is None:
        raise SettingError("wanted a path for the mask, got none; only a DataArray does without")
    return _segment(
        path_of(image), mask, prior, options or Options(), look, overwrite=overwrite, map=map, progress=progress
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """Which files there are besides the mask, and how they are stored."""

    probabilities: AnyPath | None = None
    confidence: AnyPath | None = None
    entropy: AnyPath | None = None
    novelty: AnyPath | None = None
    disagreement: AnyPath | None = None
    dtype: Literal["float32", "uint8"] = "float32"
    cog: bool = False
    style: bool = False

    @property
    def shares(self) -> dict[str, AnyPath]:
        """The rasters of shares that are asked for."""
        all_of_them = {
            "probabilities": self.probabilities,
            "confidence": self.confidence,
            "entropy": self.entropy,
            "novelty": self.novelty,
            "disagreement": self.disagreement,
        }
        return {name: path for name, path in all_of_them.items() if path is not None}


def _segment(
    image: AnyPath,
    mask: AnyPath,
    prior: AnyPath,
    options: Options,
    look: _Look,
    *,
    overwrite: bool,
    map: Map,  # noqa: A002  # it is one
    progress: Progress | None,
) -> Summary:
    card = read_card(prior)
    options = replace(options, novelty=look.novelty is not None, disagreement=look.disagreement is not None)
    targets = [mask, *([_qml(mask)] if look.style else []), *look.shares.values()]
    sources = (image, locate_prior(prior), *options.files)
    names = ("classes", *look.shares)
    layers = layers_of(names, len(card.legend), tilted=options.shares is not None)
    with ExitStack() as stack:
        stack.enter_context(bounded_cache())
        scene = stack.enter_context(open_for(image, card, options))
        grid, options = scene.grid, replace(options, bands=scene.bands, stretch=scene.stretch)
        silent = options.sources.check(scene, card.legend)
        if options.survey:
            open_survey(options.survey, scene, card.legend)  # refused before any work
        zones = None if options.shares is None else open_zones(options.shares, grid, card.legend, raster=str(image))
        tags = {**provenance_tags(card, options, prior), "SEGPRIOR_IMAGE": fingerprint(image)}
        about = {**tags, "path": str(Path(image).resolve()), "options": repr(options)}
        tags |= {"SEGPRIOR_FORMAT": format_tag(look.dtype, cog=look.cog), **_taken(scene.dataset)}
        work = Work(Path(mask), about, layers, grid.width)
        # a run that was killed while it gave its files their names has left some of them, which are ours to replace
        named = work.named()
        ours = {path for path in targets if overwrite or str(Path(path).resolve()) in named}
        _check_targets(targets, sources, ours)
        done = stack.enter_context(Unfinished(work))
        if progress is not None and done.start.native:
            progress(done.start.native, grid.height)
        for strip in strips(image, scene, prior=prior, options=options, map=map, start=done.start):
            known = np.where(strip.valid, strip.values, np.float32(np.nan))
            done.put(strip.start, make_layers(known, card.legend, layers))
            if progress is not None:
                progress(strip.row + len(strip.valid), grid.height)
        done.complete()
        tally, unlike = Tally(card.legend, zones), 0
        with (
            Together(partial(done.naming, [Path(path) for path in targets])) as together,
            _writing(mask, look, grid, card.legend, tags=tags, ours=ours, together=together) as sinks,
        ):
            for row, made in finished_layers(done, names, grid.height, card.legend, _tilt(done, zones, grid, options)):
                for name, values in made.items():
                    sinks[name](row, values)
                tally.add(row, made["classes"][0])
                unlike += int((made["novelty"] > 1).sum()) if "novelty" in made else 0
    share, data = unlike / max(1, tally.valid), tally.valid / (grid.height * grid.width)
    return Summary(
        mask=Path(mask),
        pixels=grid.height * grid.width,
        valid=tally.valid,
        shares=tally.shares,
        continued_from=done.start.native,
        state=done.state,
        off=tally.off(),
        unlike=share if look.novelty is not None else None,
        silent=silent,
        unfamiliar=unfamiliar(share, max(1, round(data * scene.height * scene.width / CELL**2))),
    )


@contextmanager
def _writing(
    mask: AnyPath,
    look: _Look,
    grid: Grid,
    legend: Legend,
    *,
    tags: dict[str, str],
    ours: Container[AnyPath],
    together: Together,
) -> Iterator[dict[str, Sink]]:
    """Give what takes the rows of every file; the mask is finished last. ours: files that may be replaced."""
    with ExitStack() as stack:
        classes_of = partial(class_writer, tags=tags, cog=look.cog, together=together)
        bands_of = partial(band_writer, tags=tags, cog=look.cog, together=together)
        put = {"classes": classes_of(mask, grid, legend, overwrite=mask in ours)}
        for name, path in look.shares.items():
            bands = legend.names if name == "probabilities" else (name,)
            dtype = "float32" if name == "novelty" else look.dtype
            put[name] = bands_of(path, grid, bands, dtype=dtype, overwrite=path in ours)
        sinks = {name: stack.enter_context(writer) for name, writer in put.items()}
        if look.style:
            qml = stack.enter_context(replacing(_qml(mask), overwrite=_qml(mask) in ours, together=together))
            qml.write_text(style_of(legend), encoding="utf-8")
        yield sinks


def _qml(mask: AnyPath) -> Path:
    return Path(mask).with_suffix(".qml")


def _taken(dataset: DatasetReader) -> dict[str, str]:
    """When the image was taken, if it says so, as its own metadata has it."""
    return {name: text for name, text in dataset.tags().items() if name == "TIFFTAG_DATETIME"}


def _tilt(done: Unfinished, zones: Zones | None, grid: Grid, options: Options) -> Tilt | None:
    if zones is None or options.shares is None:
        return None
    rows = partial(done.rows, "probabilities", grid.height, BLOCK)
    return Tilt.of(rows, zones, tolerance=options.shares.tolerance)


def _check_targets(targets: Sequence[AnyPath], sources: Sequence[AnyPath], ours: Container[AnyPath]) -> None:
    for path in targets:
        check_target(path, overwrite=path in ours, sources=sources)
    if len({Path(path).resolve() for path in targets}) < len(targets):
        raise OutputError(f"wanted a file of its own for every result, got {', '.join(map(str, targets))}")
