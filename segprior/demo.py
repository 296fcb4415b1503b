"""The demonstration: one folder that shows what a prior does to a scene.

    scene.tif, labels.tif    drawn from the prior, where no image is given: no data are needed
    mask.tif                 the classes of the scene
    confidence.tif           the probability of the class chosen, 0 to 1
    polygons.gpkg            the mask as polygons
    demo.png                 all of it side by side

All files appear together when everything is done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segprior.checkpoint import Card, load_prior, read_card
from segprior.folder import filling
from segprior.inference import open_for
from segprior.legend import Legend
from segprior.options import Options
from segprior.picture import Panel, colour, panels, rgb, shade
from segprior.raster import open_raster
from segprior.samples import Drawing, draw_sample, save_sample
from segprior.segmentation import segment
from segprior.target import AnyPath
from segprior.vector import Tracing, export

Progress = Callable[[int, int], None]
"""Called with rows segmented and rows in all."""

SCENE, LABELS = "scene.tif", "labels.tif"
RESULTS = MASK, CONFIDENCE, POLYGONS, PICTURE = "mask.tif", "confidence.tif", "polygons.gpkg", "demo.png"

BACKGROUND = "background"
"""The class of this name, where a prior has it, is left out of the polygons."""

PRIOR_FOR_IMAGE, PRIOR_TO_DRAW = "landcover", "buildings"
"""By default; of the embedded priors `buildings` is the one that finds again what it has drawn."""

_SHOWN = 1024
"""Pixels: the longer side of a raster in demo.png at most."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demonstration came to.

    `scene` is the image itself where one was given; then `labels` and `agreement` are None. `polygon_count` is the
    number of polygons, `agreement` the share of pixels that the mask has as they were drawn, 0 to 1.
    """

    scene: Path
    labels: Path | None
    mask: Path
    confidence: Path
    polygons: Path
    picture: Path
    polygon_count: int
    agreement: float | None


def demo(
    folder: AnyPath,
    *,
    image: AnyPath | None = None,
    prior: str | Path | None = None,
    drawing: Drawing | None = None,
    options: Options | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Demo:
    """Segment a scene and show the result in `folder`, which is made if need be.

    Args:
        folder: where the files go.
        image: the scene; without one it is drawn from the prior.
        prior: name or file; by default `landcover` for an image, and `buildings` to draw from.
        drawing: how to draw the scene: its size, its seed.
        options: how to segment it.
        overwrite: whether existing files of the demonstration's names may be replaced.
        progress: told of the segmentation row by row.

    Raises:
        SegpriorError: an image or prior that cannot be used, files that exist or cannot be written; nothing is left.

    """
    prior = (PRIOR_TO_DRAW if image is None else PRIOR_FOR_IMAGE) if prior is None else prior
    card, place = read_card(prior), Path(folder)
    options = Options() if options is None else options
    names = RESULTS if image is not None else (SCENE, LABELS, *RESULTS)
    sources = () if image is None else (image,)
    with filling(place, names, overwrite=overwrite, sources=sources) as stage:
        scene = _draw(stage, prior, drawing, options) if image is None else Path(image)
        mask, confidence, polygons, picture = (stage / name for name in RESULTS)
        segment(scene, mask, prior=prior, options=options, confidence=confidence, progress=progress)
        background = tuple({BACKGROUND} & set(card.legend.names))
        count = export(mask, polygons, Tracing(background=background))
        agreement = None if image is not None else float((_pixels(stage / LABELS) == _pixels(mask)).mean())
        panels(picture, _panels(stage, scene, card, options), card.legend, gaps=_has_gaps(mask))
    return Demo(
        scene=place / SCENE if image is None else Path(image),
        labels=place / LABELS if image is None else None,
        mask=place / MASK,
        confidence=place / CONFIDENCE,
        polygons=place / POLYGONS,
        picture=place / PICTURE,
        polygon_count=count,
        agreement=agreement,
    )


def _draw(stage: Path, prior: str | Path, drawing: Drawing | None, options: Options) -> Path:
    """Draw the scene with its labels into `stage`."""
    loaded = load_prior(prior, device=options.resolved_device)
    drawn = draw_sample(loaded, drawing=drawing)
    save_sample(drawn, loaded.card.legend, image=stage / SCENE, labels=stage / LABELS)
    return stage / SCENE


def _panels(stage: Path, scene: Path, card: Card, options: Options) -> list[Panel]:
    """Collect what demo.png shows: scene, labels where they were drawn with it, mask, confidence."""
    drawn = (stage / LABELS).exists()
    labels = [Panel("labels drawn with it", _painted(stage / LABELS, card.legend))] if drawn else []
    return [
        Panel("scene drawn from the prior" if drawn else "scene", rgb(_seen(scene, card, options))),
        *labels,
        Panel("mask", _painted(stage / MASK, card.legend)),
        Panel("confidence of the mask", shade(_pixels(stage / CONFIDENCE)[0]), bar=True),
    ]


def _has_gaps(mask: Path) -> bool:
    with open_raster(mask) as dataset:
        return bool((dataset.dataset_mask(out_shape=_shown(dataset.height, dataset.width)) == 0).any())


def _painted(path: Path, legend: Legend) -> NDArray[np.uint8]:
    return colour(legend.to_index(_pixels(path)[0]), legend)


def _seen(path: Path, card: Card, options: Options) -> NDArray[np.uint8]:
    """Read the image as the prior sees it (bands, height, width), thinned out if there is more than can be shown."""
    with open_for(path, card, options) as scene:
        return scene.thinned(_shown(scene.grid.height, scene.grid.width))


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Read the first band (1, height, width), thinned out if there is more than can be shown."""
    with open_raster(path) as dataset:
        pixels: NDArray[np.uint8] = dataset.read([1], out_shape=(1, *_shown(dataset.height, dataset.width)))
        return pixels


def _shown(height: int, width: int) -> tuple[int, int]:
    """Give the size that a raster is shown at."""
    factor = min(1.0, _SHOWN / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))
