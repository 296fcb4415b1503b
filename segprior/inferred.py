"""Labels inferred on rasters by a prior, as a data set to train on: the E-step of adapting, and what a student learns.

Every raster is segmented under whatever is told of it, into a folder: classes, and beside them the probabilities that
are learned (`Scene.belief`). The lower part of every raster that is large enough, an eighth of its rows, is held out:
the split `val`, which training does not see and whose inferred labels judge it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from segprior.batch import Item, plan, segment_all
from segprior.checkpoint import Card, read_card
from segprior.data import Dataset, Region, Scene
from segprior.errors import DatasetError, OutputError, SegpriorError, SettingError
from segprior.options import Options
from segprior.origin import provenance_tags
from segprior.provenance import fingerprint
from segprior.raster import describe
from segprior.region import check_bytes
from segprior.scene import open_scene
from segprior.windows import Window

BELIEF = "belief"
"""Beside the classes' name in that of the file with their probabilities."""

HELD = 192
"""Working rows that are held out of a raster at least, if it has twice as many."""

JOURNAL = "journal.json"
"""Says what the work in a folder is."""

Watch = Callable[[str, float, float], None]
"""Called with what is being done, how much of it is, and of how much."""


def label_items(images: Sequence[str], folder: Path) -> tuple[Item, ...]:
    """Name the files that the labels of `images` go into. Raises OutputError if two images would share one."""
    return plan(images, folder, {"probabilities": folder / f"{{stem}}_{BELIEF}.tif"})


def infer_labels(items: Sequence[Item], *, prior: Path | str, options: Options, watch: Watch | None = None) -> None:
    """Segment images; what was done before is not done again. Raises DatasetError at the first that fails."""

    def progress(done: float, of: float) -> None:
        if watch is not None:
            watch("inferring labels", done, of)

    for outcome in segment_all(items, prior=prior, options=options, progress=progress, dtype="uint8"):
        if outcome.state == "failed":
            raise DatasetError(f"cannot infer the labels of {outcome.item.image}: {outcome.reason}")


def inferred_dataset(name: str, items: Sequence[Item], card: Card, *, options: Options) -> Dataset:
    """Describe labels, inferred or yet to be, as a data set: `train` and, of rasters that are large enough, `val`.

    Raises SettingError if no raster is large enough, RasterError if one cannot be trained on.
    """
    if options.bands is not None or options.stretch is not None:
        raise SettingError(
            "wanted rasters in the bands and the 8 bits that the prior was trained on; convert them first"
        )
    regions = [region for item in items for region in _regions(item, card, options)]
    if not any(region.split == "val" for region in regions):
        high = 2 * HELD
        raise SettingError(
            f"wanted a raster of {high} or more rows of {card.res:g} m, to hold a part of it out, got none among "
            f"{len(items)}; give more imagery"
        )
    return Dataset(
        name=name,
        title=name,
        licence=card.licence,
        source="labels inferred by segprior",
        legend=card.legend,
        bands=card.bands,
        res=card.res,
        mean=card.mean,
        std=card.std,
        regions=tuple(regions),
    )


def _regions(item: Item, card: Card, options: Options) -> Iterator[Region]:
    (belief,) = item.extras.values()
    scene = Scene(item.mask.stem, Path(item.image), item.mask, pixel_res=options.res, belief=belief)
    grid = describe(item.image).grid
    with open_scene(item.image, res=card.res, bands=card.bands, pixel_res=options.res) as opened:
        check_bytes(opened)
        rows, scale = opened.height, opened.scale[0]
    if rows < 2 * HELD:
        yield Region(scene, "train", "pairs")
        return
    cut = grid.height - ceil(max(HELD, rows // 8) * scale)
    yield Region(scene, "train", "pairs", Window(0, 0, cut, grid.width))
    yield Region(scene, "val", "pairs", Window(cut, 0, grid.height - cut, grid.width))


def about(prior: str, images: Sequence[str], options: Options) -> dict[str, Any]:
    """What inferred labels depend on, as plain values: the prior, each image and the files that tell of it."""
    card = read_card(prior)
    sources = [[fingerprint(image), provenance_tags(card, options.of(image), prior)] for image in images]
    return {"images": sources, "options": repr(options)}


@contextmanager
def work_folder(folder: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """Give the folder of a piece of work, which goes when it is done; what other work left there goes first.

    After an interrupt it stays, and after an error unless nothing is in it. Raises OutputError.
    """
    head = json.dumps(about)
    journal = folder / JOURNAL
    try:
        if folder.exists() and not (journal.is_file() and journal.read_text(encoding="utf-8") == head):
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        journal.write_text(head, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from error
    try:
        yield folder
    except SegpriorError:
        if all(path == journal or path.is_dir() for path in folder.rglob("*")):
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def joined(inferred: Dataset, given: Dataset | None) -> Dataset:
    """Add the training split of a data set with given labels. Raises DatasetError if they do not fit together."""
    if given is None:
        return inferred
    ours, theirs = (
        (dict(zip(d.legend.names, d.legend.values, strict=True)), d.legend.nodata, d.bands, d.res)
        for d in (inferred, given)
    )
    if ours != theirs:
        raise DatasetError(
            "wanted a data set of the prior's classes with their values, nodata, bands and resolution, "
            f"{_said(ours)}, got {given.name} with {_said(theirs)}"
        )
    scenes = {region.scene.name for region in inferred.regions}
    renamed = [
        replace(r, scene=replace(r.scene, name=f"{given.name}:{r.scene.name}")) if r.scene.name in scenes else r
        for r in given.regions
        if r.split == "train"
    ]
    return replace(inferred, regions=(*inferred.regions, *renamed))


def _said(looks: tuple[Mapping[str, int], int, tuple[int, ...], float]) -> str:
    classes, nodata, bands, res = looks
    named = ", ".join(f"{name} = {value}" for name, value in classes.items())
    return f"{named}; nodata = {nodata}; bands {bands}; {res:g} m"
