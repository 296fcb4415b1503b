"""How well a prior tells images unlike those it was trained on: AUROC of the distance of `segprior.prior.familiar`.

    python scripts/bench_novelty.py fair dubai --prior buildings --prior landcover

The unit is a cell of 128 x 128 working pixels. Familiar are the cells of a data set's validation images: the distance
is learned from one half of each (the longer side cut in two) and asked of the other, then the other way round. Against
them stand

    other regions        the images of the other data set, at most 150 cells
    no aerial images     the photographs, drawings and micrographs that come with scikit-image

`one level` is the loss at t = 0.5 alone, as its distance from the mean; `too large` its plain value. No label is read.
"""

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
from segprior.prior.familiar import CELL, LEAST_CELLS, TIMES, Familiarity, image_losses
from segprior.prior.infer import generator_noise
from segprior.provenance import commit
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
PICTURES = (
    *("astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "colorwheel", "grass", "gravel", "horse"),
    *("hubble_deep_field", "immunohistochemistry", "logo", "moon", "page", "retina", "rocket", "text"),
)
MOST, ONE = 150, TIMES.index(0.5)

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
        rng = np.random.default_rng(0)
        chosen = [others[i] for i in rng.permutation(len(others))[:MOST]]
        strange = {"other regions": chosen, "no aerial images": cells(photographs())}
        table[own] = measured(loaded, pictures(name, ("val",)), strange)
    write(results, table)


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
    """Log losses (cells, times)."""
    found = []
    noise = generator_noise(0, (1, len(prior.card.bands) + len(prior.card.legend), CELL, CELL))(0)
    with counted("denoising", "cells", len(tiles)) as advance:
        for tile in tiles:
            y = prior.card.normalise(tile.transpose(2, 0, 1))[None]
            found.append(
                image_losses(prior.denoiser, y, torch.ones_like(y[:, :1], dtype=torch.bool), noise)[0, :, 0, 0]
            )
            advance()
    return torch.stack(found)


def measured(prior: Prior, own: list[Picture], strange: dict[str, list[Picture]]) -> dict[str, Any]:
    """AUROC by what the cells are compared with and how, mean of two halves."""
    far = {kind: losses(prior, tiles) for kind, tiles in strange.items()}
    scores: dict[str, dict[str, list[float]]] = {kind: {} for kind in strange}
    halves = [tuple(np.array_split(image, 2, axis=int(np.argmax(image.shape[:2])))) for image in own]
    for learned, asked in ((0, 1), (1, 0)):
        parts = [half[learned] for half in halves]
        offsets = [(row, col) for row in (0, CELL // 2) for col in (0, CELL // 2)]
        known = losses(prior, [cell for row, col in offsets for cell in cells(parts, row=row, col=col)])
        near = losses(prior, cells([half[asked] for half in halves]))
        familiar, mean = Familiarity.of(known, overlap=max(1, len(known) // LEAST_CELLS)), known.mean(dim=0)
        for kind, found in far.items():
            for way, score in (
                ("distance", lambda v, f=familiar: f.distance(v.T[None, :, :, None]).flatten()),
                ("one level", lambda v, m=mean: (v[:, ONE] - m[ONE]).abs()),
                ("too large", lambda v: v[:, ONE]),
            ):
                truth = np.r_[np.zeros(len(near)), np.ones(len(found))]
                area = roc_auc_score(truth, torch.cat([score(near), score(found)]).numpy())
                scores[kind].setdefault(way, []).append(float(area))
    return {
        "familiar cells": sum(len(cells([part])) for pair in halves for part in pair),
        "strange cells": {kind: len(tiles) for kind, tiles in strange.items()},
        "auroc": {kind: {way: float(np.mean(v)) for way, v in ways.items()} for kind, ways in scores.items()},
    }


def write(results: Path, table: dict[str, dict[str, Any]]) -> None:
    """Put the table into words."""
    lines = [
        f"| {name} | {kind} | {found['familiar cells']} / {found['strange cells'][kind]} "
        f"| {ways['distance']:.3f} | {ways['one level']:.3f} | {ways['too large']:.3f} |"
        for name, found in table.items()
        for kind, ways in found["auroc"].items()
    ]
    text = f"""# Novelty

Made by `scripts/bench_novelty.py` at commit {commit(Path(__file__))}. AUROC over cells of {CELL} x {CELL} working
pixels, mean of two halves of the validation images; 0.5 is guessing. The familiar cells are few.

| prior | against | cells, familiar / strange | distance | one level | too large |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    publish(results / "bench_novelty", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
