"""The official way: a prior of label maps alone, clusters of the image, hints; against the joint prior.

    python scripts/official.py fair/newregion --labels-only labels_only.safetensors --prior newregion.safetensors \
        --opponent unet_newregion.safetensors --cell 8 --encoder-weights imagenet.safetensors

Graikos et al. 2022 (section 4.3, land cover) know no image in their prior: it is trained on label maps; the map of an
image begins as its coarse hint and goes, by the gradient of the noise's squared error through the network at annealed
times, to where the prior is content, clusters of colours share information with the labels, and local means meet the
hint. Here that is done with segprior's own parts, so it is a re-implementation in spirit, not in every number:

    prior        the joint network, trained on label maps alone (the image is always pure noise); trained first if the
                 file is not there
    inference    `Full` from the hint, at the paper's times (falling with ripples, brought to this schedule by equal
                 alpha_bar), with `Hints` and `Clusters`; labels are softmax probabilities instead of free numbers, and
                 the late half of the steps is averaged

Windows of 256 working pixels are taken evenly from the scenes of the split; hints are the shares of true labels in
cells of `--cell` metres, every fifth cell told the window's shares. The controls: the U-Net and the joint prior with
the same hints, the hints alone, clusters and hints without any prior, and the joint prior used as one of labels alone.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor

from segprior.checkpoint import Prior, load_prior, read_card
from segprior.counts import Counter, Counts, joined
from segprior.data import Dataset, load_dataset, split_named
from segprior.errors import SettingError
from segprior.evaluate import SCORES
from segprior.findings import bounds, check_classes, check_one_image, points, publish
from segprior.fit import Plan, fit
from segprior.inference import CLUSTER_SIDE, solver_for
from segprior.mix import Mix
from segprior.options import Options
from segprior.plots import Plot, read_plots
from segprior.prior.clusters import Clusters
from segprior.prior.constraint import Constraint
from segprior.prior.gradient import Full
from segprior.prior.infer import Solver, infer
from segprior.prior.joint import UNLABELLED
from segprior.prior.shares import Hints, Regions
from segprior.provenance import commit
from segprior.terminal import counted, run_script, stages
from segprior.train import Settings

RESULTS = Path(__file__).parent / "results"
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE"}
LABELS = Mix(kinds=(0.0, 0.0, 0.0, 0.0, 1.0), alone=0.0)
"""A training mix of label maps alone."""
SIDE, CLUSTERS = 256, 5

Probabilities = npt.NDArray[np.float32]


def main(
    dataset: Annotated[str, typer.Argument(help="fair/newregion, dubai, or a dataset.toml")],
    *,
    labels_only: Annotated[Path, typer.Option(help="the prior of label maps alone; trained if it is not there")],
    prior: Annotated[str, typer.Option(help="the joint prior")],
    opponent: Annotated[str, typer.Option(help="a plain segmenter")],
    cell: Annotated[float, typer.Option(help="width of the hints' cells in metres")],
    steps: Annotated[int, typer.Option(help="of the training")] = 1500,
    encoder_weights: Annotated[str, typer.Option(help="imagenet, none, or a file; of the training")] = "imagenet",
    iterations: Annotated[int, typer.Option(help="of the inference")] = 200,
    windows: Annotated[int, typer.Option(help="windows of 256 working pixels, at most")] = 16,
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Compare the official way with the joint prior and write official_DATASET_SPLIT.md and .json."""
    data = load_dataset(dataset)
    if not labels_only.exists():
        train(data, labels_only, steps, encoder_weights)
    only, joint, other = (load_prior(path) for path in (labels_only, prior, opponent))
    check_classes(data.name, data.legend.names, *(each.card.legend.names for each in (only, joint, other)))
    check_one_image(*((each.card.bands, each.card.mean, each.card.std) for each in (joint, other)))
    only.denoiser.temperature = 1.0  # it was fitted to maps of images, which this prior does not know
    chosen = spread([*read_plots(data, split_named(split), "pairs")], windows)
    found: dict[str, list[Counts]] = {}
    seconds: dict[str, float] = {}
    with counted(dataset, "windows", len(chosen)) as advance:
        for place in chosen:
            scene = Patch.of(place, joint, max(1, round(cell / data.res)))
            began = time.perf_counter()
            for way, p in ways(scene, only, joint, other, paper_times(iterations)):
                found.setdefault(way, []).append(scene.counts(p, data.res))
                seconds[way] = seconds.get(way, 0.0) + time.perf_counter() - began
                began = time.perf_counter()
            advance()
    counts = {way: joined(parts) for way, parts in found.items()}
    about = {
        "dataset": data.name,
        "split": split,
        "windows": len(chosen),
        "iterations": iterations,
        "training_steps": read_card(labels_only).training["settings"]["steps"],
        "commit": commit(Path(__file__)),
    }
    write(results, counts, seconds, about)


def train(data: Dataset, target: Path, steps: int, encoder_weights: str) -> None:
    """Train a prior on the label maps of a data set; a run that was stopped is taken up."""
    settings = Settings(steps=steps, validate_every=steps, mix=LABELS)
    with stages() as watch:
        for step in fit(Plan(data, target, settings, encoder_weights=encoder_weights, drawn=0)):
            watch("training on label maps", step.number, steps)


def spread(plots: list[Plot], most: int) -> list[Plot]:
    """Windows of SIDE pixels, taken evenly from all that fit into the plots side by side."""
    cut = []
    for plot in plots:
        height, width = plot.shape
        image, index, seen = plot.pair()
        for row in range(0, height - SIDE + 1, SIDE):
            for col in range(0, width - SIDE + 1, SIDE):
                at = (slice(row, row + SIDE), slice(col, col + SIDE))
                cut.append(Plot(plot.region, image[at], index[at], seen[at]))
    if not cut:
        raise SettingError(f"wanted scenes of {SIDE} x {SIDE} working pixels or more, found none")
    return [cut[int(n)] for n in np.unique(np.linspace(0, len(cut) - 1, min(most, len(cut))).round())]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A window and what is known of it: y normalised (1, bands, h, w), seen, truth, and the hint's cells."""

    y: Tensor
    seen: Tensor
    truth: npt.NDArray[np.uint8]
    cells: Regions

    @classmethod
    def of(cls, plot: Plot, prior: Prior, cell: int) -> "Patch":
        """Make the knowledge of a plot; cell: pixels."""
        image, truth, seen = plot.pair()
        classes = len(prior.card.legend)
        rows, cols = (n // cell for n in np.mgrid[:SIDE, :SIDE])
        index = rows * (int(cols.max()) + 1) + cols
        there = truth != UNLABELLED
        count = np.bincount(index[there] * classes + truth[there], minlength=(int(index.max()) + 1) * classes)
        count = count.reshape(-1, classes)
        mean = count.sum(axis=0) / max(1, count.sum())
        shares = count / np.maximum(1, count.sum(axis=1, keepdims=True))
        shares[(count.sum(axis=1) == 0) | (np.arange(len(shares)) % 5 == 0)] = mean
        return cls(
            prior.card.normalise(image.transpose(2, 0, 1))[None],
            torch.from_numpy(seen)[None, None],
            truth,
            Regions(torch.from_numpy(index)[None], torch.from_numpy(shares.astype(np.float32))),
        )

    @property
    def spread(self) -> Tensor:
        """The hint over its cells, (1, classes, h, w)."""
        return self.cells.shares[self.cells.index].movedim(-1, 1)

    def counts(self, p: Probabilities, res: float) -> Counts:
        """Count probabilities against the truth."""
        counter = Counter(*self.truth.shape, classes=len(p))
        counter.add(0, self.truth, p)
        return counter.finish(pixel=(res, res), tolerance=2 * res)


def ways(
    window: Patch, only: Prior, joint: Prior, other: Prior, times: tuple[float, ...]
) -> Iterator[tuple[str, Probabilities]]:
    """Every way's probabilities."""
    layout = joint.denoiser.layout
    hints = Hints(window.cells, layout)
    clusters = Clusters.of(torch.where(window.seen, window.y, 0.0), layout, count=CLUSTERS, side=CLUSTER_SIDE)
    official = Full(times=times)

    def mapped(
        prior: Prior, constraints: tuple[Constraint, ...], solver: Solver | None = None, *, blind: bool = False
    ) -> Probabilities:
        # without an image the prior is one of label maps, and the hint is where to begin
        *_, last = infer(
            prior.denoiser,
            window.y,
            valid=torch.zeros_like(window.seen) if blind else window.seen,
            constraints=constraints,
            solver=solver_for(prior.card, Options()) if solver is None else solver,
            start=window.spread if blind else None,
        )
        p: Probabilities = last.probabilities[0].numpy()
        return p

    yield "hints alone", window.spread[0].numpy()
    yield "labels-only prior, hints", mapped(only, (hints,), official, blind=True)
    yield "labels-only prior, hints and clusters (official)", mapped(only, (hints, clusters), official, blind=True)
    yield "joint prior without the image, hints and clusters", mapped(joint, (hints, clusters), official, blind=True)
    yield "hints and clusters without a prior", no_prior(window, hints, clusters)
    yield "U-Net", mapped(other, ())
    yield "U-Net, hints", mapped(other, (hints,))
    yield "joint prior", mapped(joint, ())
    yield "joint prior, hints", mapped(joint, (hints,))
    yield "joint prior, hints and clusters", mapped(joint, (hints, clusters))


def no_prior(window: Patch, hints: Hints, clusters: Clusters) -> Probabilities:
    """Proximal steps of both from the hint, until they have settled."""
    layout = hints.layout
    eta = layout.join(window.y, layout.place(window.spread.clamp(min=1e-3)))
    for _ in range(20):
        for constraint in (clusters, hints):
            eta = constraint.proximal(eta, eta.new_tensor(1.0))
    p: Probabilities = layout.probabilities(layout.split(eta)[1])[0].numpy()
    return p


def paper_times(count: int) -> tuple[float, ...]:
    """Times of the paper's land-cover experiment, of equal alpha_bar in the cosine schedule."""
    left = [(count - i) / count for i in range(count)]
    linear = [min(1.0, max(0.001, share / 3 + share / 10 * math.cos(500 / 30 * (1 - share)))) for share in left]
    log_alpha_bar = [-(0.1 * t + 19.9 * t * t / 2) for t in linear]  # beta from 1e-4 to 0.02 in 1000 steps
    return tuple(max(0.01, 2 / math.pi * math.acos(math.exp(v / 2))) for v in log_alpha_bar)


def write(results: Path, counts: dict[str, Counts], seconds: dict[str, float], about: dict[str, Any]) -> None:
    """Put the table into words."""
    reference = counts["joint prior, hints and clusters"]
    rows = {}
    for way, found in counts.items():
        rows[way] = {title: bounds(found, SCORES[key]) for key, title in SHOWN.items()}
        rows[way]["mIoU to the last"] = bounds(found, SCORES["miou"], reference)
        rows[way]["seconds a window"] = [round(seconds[way] / about["windows"], 2)]
    lines = [
        f"| {way} | {' | '.join(f'{row[t][0]:.3f}' for t in SHOWN.values())} | {points(row['mIoU to the last'])} "
        f"| {row['seconds a window'][0]:.1f} |"
        for way, row in rows.items()
    ]
    titles = (*SHOWN.values(), "mIoU to the last", "seconds a window")
    text = f"""# The official way, {about["dataset"]}, {about["split"]}

Made by `scripts/official.py` at commit {about["commit"]}; the script tells what is done. {about["windows"]} windows of
256 x 256 working pixels, {about["iterations"]} iterations, a labels-only prior of {about["training_steps"]} steps; one
training of each network. Differences in points (hundredths), 95 % intervals by a bootstrap over blocks of 128 pixels.

| way | {" | ".join(titles)} |
|{"---|" * (len(titles) + 1)}
{chr(10).join(lines)}
"""
    publish(
        results / "_".join(["official", *about["dataset"].split("/"), about["split"]]), text, {**about, "ways": rows}
    )


if __name__ == "__main__":
    run_script(main)
