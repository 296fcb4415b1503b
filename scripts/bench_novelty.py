"""How well a prior tells images unlike those it was trained on: AUROC of the distance of `segprior.prior.familiar`.

    python scripts/bench_novelty.py fair dubai --prior buildings --prior landcover

The unit is a cell of 128 x 128 working pixels. The distance is learned from at most 150 cells of a data set's training
images (a prior itself learns it from its validation images too). Familiar should be the cells of its validation images;
against them stand

    other regions        the images of the other data set, at most 150 cells
    no aerial images     the photographs, drawings and micrographs that come with scikit-image
    its test scenes      the data set's own: the nearer to 0.5, and the fewer of them far, the better

`two levels` is the distance by the losses at TWO alone and what tells the bands apart, `levels` that by all levels
without what tells the bands apart, `shrunk` has a tenth of the covariance replaced by its diagonal. `far` is the share
of cells that are called so. No label is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
import typer
from sklearn.metrics import roc_auc_score
from torch import Tensor

from segprior.checkpoint import Prior, load_prior
from segprior.data import Split, load_dataset
from segprior.errors import SettingError
from segprior.findings import publish
from segprior.plots import read_plots
from segprior.prior.familiar import CELL, TIMES, Familiarity, image_losses
from segprior.provenance import commit
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
PICTURES = (
    *("astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "colorwheel", "grass", "gravel", "horse"),
    *("hubble_deep_field", "immunohistochemistry", "logo", "moon", "page", "retina", "rocket", "text"),
)
MOST, HELD = 150, "its validation images"
TWO, SHRINK = (0.1, 0.9), 0.1

Picture = npt.NDArray[np.uint8]


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Measure novelty and write bench_novelty.md and .json."""
    if len(datasets) != len(prior) or len(datasets) < 2:
        raise SettingError(f"wanted two data sets or more and a prior for each, got {len(datasets)} and {len(prior)}")
    table = {}
    for name, own in zip(datasets, prior, strict=True):
        loaded = load_prior(own)
        others = [cell for other in datasets if other != name for cell in cells(pictures(other, ("val", "train")))]
        strange = {"other regions": drawn(others), "no aerial images": cells(photographs())}
        strange |= {"its test scenes": tested} if (tested := cells(pictures(name, ("test",)))) else {}
        far = {kind: losses(loaded, tiles) for kind, tiles in strange.items()}
        near = losses(loaded, cells(pictures(name, ("val",))))
        table[own] = measured(loaded, drawn(cells(pictures(name, ("train",)))), near, far)
    write(results, table)


def drawn(tiles: list[Picture]) -> list[Picture]:
    """MOST of them at most, drawn at random."""
    return [tiles[number] for number in np.random.default_rng(0).permutation(len(tiles))[:MOST]]


def pictures(name: str, splits: tuple[Split, ...]) -> list[Picture]:
    """Images (rows, columns, bands) of the splits of a data set."""
    dataset = load_dataset(name)
    plots = [plot for split in splits for plot in read_plots(dataset, split, "pairs")]
    return [plot.image for plot in plots if plot.image is not None]


def photographs() -> list[Picture]:
    """Colour pictures that nobody took from above."""
    found = []
    for name in PICTURES:
        image = np.asarray(getattr(skimage.data, name)())
        image = image.astype(np.uint8) * (255 if image.dtype == np.bool_ else 1)
        found.append(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3])
    return found


def cells(images: list[Picture], *, row: int = 0, col: int = 0) -> list[Picture]:
    """Whole cells side by side, from (row, col) on."""
    return [
        image[r : r + CELL, c : c + CELL]
        for image in images
        for r in range(row, image.shape[0] - CELL + 1, CELL)
        for c in range(col, image.shape[1] - CELL + 1, CELL)
    ]


def losses(prior: Prior, tiles: list[Picture]) -> Tensor:
    """Losses (cells, n), see `image_losses`."""
    found = []
    with counted("denoising", "cells", len(tiles)) as advance:
        for tile in tiles:
            y = prior.card.normalise(tile.transpose(2, 0, 1))[None]
            found.append(image_losses(prior.denoiser, y, torch.ones_like(y[:, :1], dtype=torch.bool))[0, :, 0, 0])
            advance()
    return torch.stack(found)


def distances(familiar: Familiarity, found: Tensor) -> Tensor:
    """Distance of every cell (cells, n)."""
    return familiar.distance(found.T[None, :, :, None]).flatten()


def learned(known: Tensor, columns: Sequence[int]) -> tuple[Familiarity, Sequence[int]]:
    """What some of the losses (cells, n) tell is familiar, and which."""
    return Familiarity.of(known[:, columns]), columns


def shrunk(familiar: Familiarity) -> Familiarity:
    """The same, with the covariance drawn towards its diagonal."""
    covariance = torch.linalg.inv(torch.tensor(familiar.precision, dtype=torch.float64))
    covariance = (1 - SHRINK) * covariance + SHRINK * torch.diag(covariance.diagonal())
    return replace(familiar, precision=tuple(tuple(row) for row in torch.linalg.inv(covariance).tolist()))


def measured(prior: Prior, trained: list[Picture], near: Tensor, far: dict[str, Tensor]) -> dict[str, Any]:
    """AUROC by what the cells are compared with and how, and how much is called far."""
    known = losses(prior, trained)
    whole = range(known.shape[1])
    ways = {
        "distance": (familiar := Familiarity.of(known), whole),
        "two levels": learned(known, [*map(TIMES.index, TWO), *whole[len(TIMES) :]]),
        "levels": learned(known, whole[: len(TIMES)]),
        "shrunk": (shrunk(familiar), whole),
    }
    rows = {}
    for kind, found in {HELD: near, **far}.items():
        truth = np.r_[np.zeros(len(near)), np.ones(len(found))]
        rows[kind] = {
            "cells": len(found),
            "far": float((distances(familiar, found) > 1).double().mean()),
            "auroc": {
                way: float(roc_auc_score(truth, distances(by, torch.cat([near, found])[:, columns]).numpy()))
                for way, (by, columns) in ways.items()
            },
        }
    return {"familiar cells": len(known), "rows": rows}


def write(results: Path, table: dict[str, dict[str, Any]]) -> None:
    """Put the table into words."""
    lines = [
        f"| {name} | {kind} | {found['familiar cells']} / {row['cells']} | {row['auroc']['distance']:.3f} "
        f"| {row['auroc']['two levels']:.3f} | {row['auroc']['levels']:.3f} | {row['auroc']['shrunk']:.3f} "
        f"| {100 * row['far']:.0f} % |"
        for name, found in table.items()
        for kind, row in found["rows"].items()
    ]
    text = f"""# Novelty

Made by `scripts/bench_novelty.py` at commit {commit(Path(__file__))}. AUROC of the distance over cells of
{CELL} x {CELL} working pixels, familiar being those of the validation images; 0.5 is guessing. It is learned from
training images.

| prior | of | cells, learned from / asked | distance | two levels | levels | shrunk | called far |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    publish(results / "bench_novelty", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
