"""Many rasters: which files come of which, one after another, past those that fail.

    plan          images and patterns -> items, each with files of its own
    segment_all   items -> outcomes: done, skipped because it was done before, or failed, with the reason

A name may hold `{stem}`, for which every image puts the name of its file without the ending; so may the names of what
is told of the images (hints and the like).
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from segprior.errors import OutputError, RasterError, SegpriorError, SettingError
from segprior.options import STEM, Options
from segprior.origin import is_result
from segprior.raster import describe
from segprior.segmentation import Summary, segment
from segprior.stac import asset_href, is_item, write_item
from segprior.target import AnyPath, check_target

Progress = Callable[[float, float], None]
"""Called with megapixels done and megapixels in all."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image and the files that come of it.

    extras: probabilities, confidence, entropy, novelty, disagreement. source: the STAC item that the image is an asset
    of, None if it is not.
    """

    image: str
    mask: Path
    extras: Mapping[str, Path] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item: a summary when it is done, the reason when it failed."""

    item: Item
    state: Literal["done", "skipped", "failed"]
    summary: Summary | None = None
    reason: str = ""


def expand(images: Sequence[str]) -> tuple[str, ...]:
    """Put files for patterns such as dir/*.tif, sorted, each file once. Raises RasterError if a pattern fits none."""
    found: dict[str, None] = {}
    for image in images:
        pattern = glob.has_magic(image) and not Path(image).exists()
        names = sorted(glob.glob(image, recursive=True)) if pattern else [image]  # noqa: PTH207  # any path, not one folder's
        if not names:
            raise RasterError(f"wanted rasters, no file fits {image}; check the pattern")
        found |= dict.fromkeys(names)
    return tuple(found)


def plan(
    images: Sequence[str], folder: AnyPath, extras: Mapping[str, AnyPath | None], *, asset: str | None = None
) -> tuple[Item, ...]:
    """Name the files of every image: folder/STEM.tif, and the extras with their `{stem}`.

    An image may be a STAC item (.json), of which `asset` is taken, or its only raster.

    Raises:
        OutputError: two images would write one file.
        RasterError: a STAC item without such an asset.

    """
    items = []
    for image in images:
        stem = Path(image).stem
        more = {name: Path(str(path).replace(STEM, stem)) for name, path in extras.items() if path is not None}
        target = Path(folder) / f"{stem}.tif"
        if is_item(image):
            items.append(Item(asset_href(image, asset), target, more, source=image))
        else:
            items.append(Item(image, target, more))
    owner: dict[Path, str] = {}
    for item in items:
        for path in (item.mask, *item.extras.values()):
            other = owner.setdefault(path.resolve(), item.image)
            if other != item.image:
                raise OutputError(
                    f"wanted files of their own for {other} and {item.image}, both would write {path}; "
                    f"put {STEM} into its name or give the images different names"
                )
    return tuple(items)


def size_of(items: Sequence[Item]) -> float:
    """Megapixels of the images in all; those that cannot be read count nothing."""
    return sum(_megapixels(item.image) for item in items)


def segment_all(
    items: Sequence[Item],
    *,
    prior: AnyPath,
    options: Options,
    overwrite: bool = False,
    stac: bool = False,
    progress: Progress | None = None,
    **looks: Any,
) -> Iterator[Outcome]:
    """Segment one item after another; a bad one does not stop the rest.

    An item whose files are there, made of the same image by the same prior and settings, is skipped unless `overwrite`.
    stac: write a STAC item beside every mask. looks: as `segment` takes them (dtype, cog, style).
    """
    sizes = [_megapixels(item.image) for item in items]
    whole, before = sum(sizes), 0.0
    for item, size in zip(items, sizes, strict=True):

        def advance(row: int, rows: int, before: float = before, size: float = size) -> None:
            if progress is not None:
                progress(before + size * row / rows, whole)

        yield _outcome(item, advance, prior=prior, options=options, overwrite=overwrite, stac=stac, **looks)
        before += size
        advance(0, 1, before)


def _outcome(
    item: Item,
    advance: Callable[[int, int], None],
    *,
    prior: AnyPath,
    options: Options,
    overwrite: bool,
    stac: bool,
    **looks: Any,
) -> Outcome:
    own, its_item = options.of(item.source or item.image), item.mask.with_suffix(".json")
    try:
        if stac and item.source is not None:
            check_target(its_item, overwrite=True, sources=[item.source])
        files: list[tuple[str | None, Path]] = [(None, item.mask), *item.extras.items()]
        named = cast(dict[str, Any], dict(item.extras))
        kind = {name: looks[name] for name in ("dtype", "cog") if name in looks}
        styled = not looks.get("style") or item.mask.with_suffix(".qml").exists()
        there = (is_result(path, item.image, prior=prior, options=own, layer=layer, **kind) for layer, path in files)
        if not overwrite and styled and all(there):
            if stac and not its_item.exists():
                write_item(item.mask, others=item.extras, source=item.source)
            return Outcome(item, "skipped")
        if stac:
            check_target(its_item, overwrite=overwrite, sources=own.files)
        summary = segment(
            item.image,
            item.mask,
            prior=prior,
            options=own,
            overwrite=overwrite,
            progress=advance,
            **named,
            **looks,
        )
        if stac:
            write_item(item.mask, others=item.extras, source=item.source, overwrite=overwrite)
    except (SegpriorError, OSError) as error:
        if isinstance(error, SettingError) and own == options:
            raise  # neither the fault of this image nor of files that are told of it alone
        return Outcome(item, "failed", reason=" ".join(str(error).split()))
    return Outcome(item, "done", summary)


def _megapixels(image: str) -> float:
    try:
        grid = describe(image).grid
    except RasterError:
        return 0.0
    return grid.height * grid.width / 1e6
