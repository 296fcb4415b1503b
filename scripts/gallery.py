"""What each constraint does, in pictures: a row for each, before | constraint | after.

    python scripts/gallery.py fair kampala_b --prior buildings --opponent runs/unet_fair_equal.safetensors

The constraints are made from the true labels of the scene, written as the files a user would have (points, shares, a
coarse raster, probabilities) and given to `segprior.segment`. The picture goes into docs/, which git ignores: the
imagery is not ours to publish. Scenes need a georeference; those longer than `--side` pixels are cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
import typer
from affine import Affine

from segprior.census import SharesSource
from segprior.checkpoint import read_card
from segprior.clicks import largest_errors
from segprior.data import load_dataset
from segprior.errors import DatasetError
from segprior.geotiff import crop, write_bands
from segprior.hint import HintSource
from segprior.known import KnownSource
from segprior.legend import Legend
from segprior.metrics import confusion, scores
from segprior.opinion import UnarySource
from segprior.options import Options
from segprior.picture import Panel, colour, panels, rgb, shade
from segprior.raster import Grid, grid_of
from segprior.segmentation import segment
from segprior.survey import SurveySource
from segprior.terminal import counted, run_script
from segprior.windows import Window

DOCS = Path(__file__).parent.parent / "docs"
CLICKS, SURVEYED, CELL = 10, 40, 8.0
"""Clicks, surveyed points, and metres of the side of a hint's cell."""

Index = npt.NDArray[np.uint8]
Rgb = npt.NDArray[np.uint8]


def main(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
    scene: Annotated[str, typer.Argument(help="a scene of it with labels and a georeference")],
    *,
    prior: Annotated[str, typer.Option(help="the prior")],
    opponent: Annotated[str | None, typer.Option(help="a plain segmenter whose map is the other opinion")] = None,
    side: Annotated[int, typer.Option(help="most pixels of a side")] = 1024,
    output: Annotated[Path, typer.Option(help="folder of the picture")] = DOCS,
) -> None:
    """Draw the gallery of a scene."""
    found = {each.name: each for each in load_dataset(dataset).scenes}.get(scene)
    if found is None or found.image is None or found.labels is None:
        raise DatasetError(f"wanted a scene of {dataset} with image and labels, got {scene}")
    legend = read_card(prior).legend
    with TemporaryDirectory() as name:
        folder = Path(name)
        with rasterio.open(found.image) as source:
            window = Window(0, 0, min(side, source.height), min(side, source.width))
        for path, kind in ((found.image, "image"), (found.labels, "labels")):
            crop(path, window, folder / f"{kind}.tif")
        items = rows(folder, legend, prior, opponent)
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"gallery_{scene}.png"
    panels(target, items, legend, columns=3, overwrite=True)
    print(target)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The scene: its folder, what is seen and true, and the map without constraints."""

    folder: Path
    legend: Legend
    grid: Grid
    picture: Rgb
    truth: Index
    before: Index


Told = tuple[dict[str, Any], Rgb]
"""Fields of `Options`, and a picture of what they say."""


def rows(folder: Path, legend: Legend, prior: str, opponent: str | None) -> list[Panel]:
    """Three panels for each constraint."""
    with rasterio.open(folder / "image.tif") as image, rasterio.open(folder / "labels.tif") as labels:
        picture, grid, truth = rgb(image.read()), grid_of(image), legend.to_index(labels.read(1))
    before = mapped(folder, legend, prior)
    view = View(folder, legend, grid, picture, truth, before)
    told: dict[str, Callable[[View], Told]] = {
        "known": clicks,
        "survey": survey,
        "shares": shares,
        "hint": hint,
        "clusters": clusters,
    }
    if opponent is not None:
        told["unary"] = partial(opinion, opponent=opponent)
    first = [Panel("image", picture), Panel("labels", colour(truth, legend))]
    items = [*first, Panel(f"no constraint: mIoU {miou(before, truth, legend):.3f}", colour(before, legend))]
    with counted("drawing", "constraints", len(told)) as advance:
        for kind, tell in told.items():
            options, shown = tell(view)
            after = mapped(folder, legend, prior, **options)
            items += [
                Panel("before", colour(before, legend)),
                Panel(TITLES[kind], shown),
                Panel(f"after: mIoU {miou(after, truth, legend):.3f}", colour(after, legend)),
            ]
            advance()
    return items


TITLES = {
    "known": f"known: {CLICKS} points",
    "survey": f"survey: {SURVEYED} random points",
    "shares": "shares of the raster",
    "hint": f"hint: shares in cells of {CELL:g} m",
    "clusters": "clusters of colours: 5",
    "unary": "unary: a U-Net's map",
}


def mapped(folder: Path, legend: Legend, prior: str, **settings: Any) -> Index:
    """Segment the scene and read the class index."""
    segment(folder / "image.tif", folder / "mask.tif", prior=prior, options=Options(**settings), overwrite=True)
    with rasterio.open(folder / "mask.tif") as mask:
        return legend.to_index(mask.read(1))


def miou(found: Index, truth: Index, legend: Legend) -> float:
    """Mean IoU of a map."""
    return float(scores(confusion(truth, found, classes=len(legend))).miou)


def clicks(view: View) -> Told:
    """Points in the middle of the largest patches that are wrong."""
    shown = placed(view, "known.gpkg", largest_errors(view.before, view.truth, CLICKS))
    return {"known": (KnownSource(str(view.folder / "known.gpkg"), buffer=0.6),)}, shown


def survey(view: View) -> Told:
    """Points drawn at random."""
    there = np.argwhere(view.truth < len(view.legend))
    drawn = there[np.random.default_rng(0).choice(len(there), min(SURVEYED, len(there)), replace=False)]
    shown = placed(view, "survey.gpkg", [(int(row), int(col)) for row, col in drawn])
    return {"survey": (SurveySource(str(view.folder / "survey.gpkg")),)}, shown


def placed(view: View, file: str, places: Sequence[tuple[int, int]]) -> Rgb:
    """Write places with their true classes to a file, and draw them."""
    legend, grid = view.legend, view.grid
    points = [shapely.Point(*(grid.transform @ (col + 0.5, row + 0.5))) for row, col in places]
    names = [legend.names[int(view.truth[place])] for place in places]
    geopandas.GeoDataFrame({"class": names}, geometry=points, crs=grid.crs).to_file(view.folder / file)
    shown = view.picture.copy()
    for (row, col), name in zip(places, names, strict=True):
        at = (slice(max(0, row - 6), row + 7), slice(max(0, col - 6), col + 7))
        shown[at] = 255
        inner = (slice(max(0, row - 4), row + 5), slice(max(0, col - 4), col + 5))
        shown[inner] = legend.classes[legend.index(name)].color
    return shown


def shares(view: View) -> Told:
    """The shares of the scene, as a bar across it."""
    truth, legend = view.truth, view.legend
    count = np.bincount(truth[truth < len(legend)], minlength=len(legend))
    named = [f'"{name}" = {n / count.sum():.4f}' for name, n in zip(legend.names, count, strict=True)]
    (view.folder / "shares.toml").write_text("[shares]\n" + "\n".join(named) + "\n", encoding="utf-8")
    ends = np.cumsum(count / count.sum() * truth.shape[1]).round()
    bar = np.searchsorted(ends, np.arange(truth.shape[1]), side="right").clip(max=len(legend) - 1).astype(np.uint8)
    shown, height = view.picture.copy(), truth.shape[0] // 10
    shown[-height:] = colour(np.tile(bar, (height, 1)), legend)
    return {"shares": SharesSource(str(view.folder / "shares.toml"))}, shown


def hint(view: View) -> Told:
    """Shares in cells; shown is that of the last class."""
    truth, legend, grid = view.truth, view.legend, view.grid
    res = grid.res or (1.0, 1.0)
    step = max(1, round(CELL / float(np.mean(res))))
    high, wide = (-(-n // step) for n in truth.shape)
    padded = np.pad(truth, ((0, high * step - truth.shape[0]), (0, wide * step - truth.shape[1])), constant_values=255)
    blocks = padded.reshape(high, step, wide, step)
    count = np.stack([(blocks == k).sum(axis=(1, 3)) for k in range(len(legend))]).astype(np.float32)
    told = count / np.maximum(1, count.sum(axis=0))
    coarse = Grid(high, wide, grid.transform @ Affine.scale(step), grid.crs)
    write_bands(view.folder / "hint.tif", coarse, legend.names, [(0, told)])
    spread = np.kron(told[-1], np.ones((step, step)))[: truth.shape[0], : truth.shape[1]]
    return {"hints": (HintSource(str(view.folder / "hint.tif")),)}, shade(spread)


def clusters(view: View) -> Told:
    """Five clusters of colours a window."""
    return {"clusters": 5}, view.picture


def opinion(view: View, *, opponent: str) -> Told:
    """The probabilities of another network."""
    folder, legend = view.folder, view.legend
    image, mask, other = folder / "image.tif", folder / "mask.tif", folder / "other.tif"
    segment(image, mask, prior=opponent, probabilities=other, overwrite=True)
    with rasterio.open(mask) as dataset:
        shown = colour(legend.to_index(dataset.read(1)), legend)
    return {"unary": (UnarySource(str(other)),)}, shown


if __name__ == "__main__":
    run_script(main)
