"""Samples of a prior: scenes that never were, each with its labels, and their files.

    draw_sample      one sample, as arrays
    save_sample      one sample -> two GeoTIFFs, image and labels
    sheet            samples -> one PNG, image | labels side by side
    write_samples    any number of samples -> a folder of PNGs and GeoTIFFs

A sample depends on the prior, the seed, its own number, its size and the steps, and on nothing else: number 3 is the
same whether 4 or 40 are drawn. Samples lie nowhere on Earth, so their GeoTIFFs have no CRS.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from segprior.checkpoint import Card, Prior, load_prior, read_card
from segprior.errors import OutputError, SettingError
from segprior.folder import check_folder, filling
from segprior.geotiff import write_classes
from segprior.legend import Legend
from segprior.picture import Panel, colour, panels, rgb
from segprior.prior.infer import generator_noise
from segprior.prior.sample import class_index, labels_first, sample
from segprior.raster import Grid
from segprior.target import AnyPath, replacing
from segprior.windows import ALIGNMENT

_NUMBERS = 1 << 20
"""Samples that one seed stands for, so that no two seeds share one."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How to draw.

    size: (height, width) in working pixels, multiples of 32. steps: network evaluations a sample. churn: in [0, 1], as
    in `segprior.prior.sample`. seed: 0 or more.
    """

    size: tuple[int, int] = (256, 256)
    steps: int = 60
    churn: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if any(side < ALIGNMENT or side % ALIGNMENT for side in self.size):
            raise SettingError(f"wanted a size in multiples of {ALIGNMENT} pixels, got {self.size[0]} x {self.size[1]}")
        if self.steps < 2 or self.seed < 0 or not 0.0 <= self.churn <= 1.0:
            raise SettingError(f"wanted 2 steps or more, a churn from 0 to 1 and a seed of 0 or more, got {self}")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A drawn scene: image uint8 (bands, height, width), class indices uint8 (height, width), and what drew it."""

    image: NDArray[np.uint8]
    index: NDArray[np.uint8]
    origin: str


@dataclass(frozen=True, slots=True)
class Written:
    """The files of sample `number`, counted from 0."""

    number: int
    picture: Path
    image: Path
    labels: Path


def draw_sample(prior: Prior, number: int = 0, *, drawing: Drawing | None = None) -> Sample:
    """Draw sample `number` (from 0) from a prior, on the prior's device.

    Raises:
        SettingError: the prior has no label path, so that it knows labels given an image but no images.

    """
    _check_generates(prior.card)
    drawing = Drawing() if drawing is None else drawing
    height, width = drawing.size
    layout = prior.denoiser.layout
    device = next(prior.denoiser.parameters()).device
    noise = generator_noise(
        drawing.seed * _NUMBERS + number, (1, layout.bands + layout.classes, height, width), device=device
    )
    path = labels_first(drawing.steps)
    *_, last = sample(prior.denoiser, (1, height, width), path=path, churn=drawing.churn, noise=noise)
    image, labels = layout.split(last.x)
    index: NDArray[np.uint8] = class_index(layout.probabilities(labels))[0].cpu().numpy()
    origin = f"drawn, not photographed: prior {prior.card.name}, seed {drawing.seed}, number {number}"
    return Sample(prior.card.denormalise(image)[0], index, origin)


def save_sample(sample: Sample, legend: Legend, *, image: AnyPath, labels: AnyPath, overwrite: bool = False) -> None:
    """Write the image and the labels (file values, colour table, class names) as uint8 GeoTIFFs without a CRS.

    Raises:
        OutputError: a file cannot be written.

    """
    tags = {"SEGPRIOR_ORIGIN": sample.origin}
    _write_image(image, sample.image, tags, overwrite=overwrite)
    height, width = sample.index.shape
    grid = Grid(height, width, Affine.identity(), None)
    write_classes(labels, grid, legend, [(0, legend.to_value(sample.index))], overwrite=overwrite, tags=tags)


def sheet(path: AnyPath, samples: Sequence[Sample], legend: Legend, *, pairs: int = 2, overwrite: bool = False) -> None:
    """Draw samples as image | labels into one PNG, `pairs` of them in a row; OutputError as `picture.panels`."""
    items = [
        panel for s in samples for panel in (Panel("image", rgb(s.image)), Panel("labels", colour(s.index, legend)))
    ]
    panels(path, items, legend, columns=2 * min(pairs, len(samples)), overwrite=overwrite)


def write_samples(
    folder: AnyPath,
    *,
    prior: str | Path,
    count: int = 8,
    drawing: Drawing | None = None,
    overwrite: bool = False,
    device: str | torch.device = "cpu",
) -> Iterator[Written]:
    """Draw `count` samples into `folder` (made if need be), yielding each as soon as its three files are there.

    The files are pair_000.png, pair_000.tif and pair_000_labels.tif, and so on. Everything is checked at the call,
    before the first sample is asked for.

    Raises:
        CheckpointError: not a prior.
        SettingError: no samples asked for, or a prior without a label path.
        OutputError: some file exists and `overwrite` is not given, or the folder cannot be written into.

    """
    if not 1 <= count <= _NUMBERS:
        raise SettingError(f"wanted from 1 to {_NUMBERS} samples, got {count}")
    _check_generates(read_card(prior))
    check_folder(folder, [name for number in range(count) for name in _names(number)], overwrite=overwrite)
    return _write_all(Path(folder), load_prior(prior, device=device), count, drawing or Drawing(), overwrite=overwrite)


def _write_all(folder: Path, prior: Prior, count: int, drawing: Drawing, *, overwrite: bool) -> Iterator[Written]:
    for number in range(count):
        drawn = draw_sample(prior, number, drawing=drawing)
        names = _names(number)
        with filling(folder, names, overwrite=overwrite) as stage:
            picture, image, labels = (stage / name for name in names)
            save_sample(drawn, prior.card.legend, image=image, labels=labels)
            sheet(picture, [drawn], prior.card.legend)
        picture, image, labels = (folder / name for name in names)
        yield Written(number, picture, image, labels)


def _names(number: int) -> tuple[str, str, str]:
    return f"pair_{number:03}.png", f"pair_{number:03}.tif", f"pair_{number:03}_labels.tif"


def _check_generates(card: Card) -> None:
    if card.plain:
        raise SettingError(
            f"wanted a prior that can draw, got {card.name}, a plain segmenter without a label path; "
            "take one made by 'segprior train'"
        )


def _write_image(path: AnyPath, pixels: NDArray[np.uint8], tags: dict[str, str], *, overwrite: bool) -> None:
    bands, height, width = pixels.shape
    photometric = "rgb" if bands == 3 else "minisblack"
    with replacing(path, overwrite=overwrite) as fresh, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # what is drawn lies nowhere
        try:
            with rasterio.open(
                fresh,
                "w",
                driver="GTiff",
                dtype="uint8",
                count=bands,
                height=height,
                width=width,
                photometric=photometric,
                compress="deflate",
            ) as target:
                target.write(pixels)
                target.update_tags(**tags)
        except (RasterioError, OSError) as error:
            raise OutputError(f"cannot write {path}: {' '.join(str(error).split())}") from error
