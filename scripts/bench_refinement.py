"""Classic refinement: what a guided filter makes of the maps of a U-Net and of a prior.

    python scripts/bench_refinement.py fair dubai --prior buildings --prior landcover \
        --opponent unet_fair_equal.safetensors --opponent unet_dubai_equal.safetensors

The cheap rival of a prior at boundaries: class probabilities are smoothed along the colours of the image (the guided
filter of He et al. 2013, as kornia has it). All of `--kernel` (working pixels a side) with all of `--eps` (variance of
colours in [0, 1] that counts as flat) are tried on both networks; choose by validation, then name the chosen one alone
for the split `test`. A scene is one window. Differences are to the U-Net as it is, with 95 % intervals by the paired
block bootstrap of `segprior.counts`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from kornia.filters import guided_blur

from segprior.checkpoint import Prior, load_prior
from segprior.counts import Counter, Counts, joined
from segprior.data import load_dataset, split_named
from segprior.errors import SettingError
from segprior.evaluate import SCORES
from segprior.findings import bounds, check_classes, points, publish
from segprior.inference import solver_for
from segprior.options import Options
from segprior.plots import Plot, read_plots
from segprior.prior.infer import infer
from segprior.provenance import commit
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE"}
Probabilities = npt.NDArray[np.float32]


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    opponent: Annotated[list[str], typer.Option(help="a plain segmenter for each data set")],
    kernel: Annotated[list[int] | None, typer.Option(help="odd; by default 5 and 9")] = None,
    eps: Annotated[list[float] | None, typer.Option(help="by default 1e-3 and 1e-2")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Refine maps and write bench_refinement_SPLIT.md and .json."""
    if not len(datasets) == len(prior) == len(opponent):
        raise SettingError(f"wanted a prior and an opponent for each of {len(datasets)} data sets")
    filters = [(k, e) for k in kernel or (5, 9) for e in eps or (1e-3, 1e-2)]
    table: dict[str, dict[str, Any]] = {}
    for name, own, other in zip(datasets, prior, opponent, strict=True):
        dataset = load_dataset(name)
        plots = read_plots(dataset, split_named(split), "pairs")
        networks = {"U-Net": load_prior(other), "prior": load_prior(own)}
        check_classes(name, dataset.legend.names, *(network.card.legend.names for network in networks.values()))
        found: dict[str, list[Counts]] = {}
        with counted(name, "scenes", len(plots)) as advance:
            for plot in plots:
                for way, counts in compared(plot, networks, filters, dataset.res):
                    found.setdefault(way, []).append(counts)
                advance()
        totals = {way: joined(parts) for way, parts in found.items()}
        table[name] = {
            way: {
                title: [bounds(counts, SCORES[key]), bounds(counts, SCORES[key], totals["U-Net"])]
                for key, title in SHOWN.items()
            }
            for way, counts in totals.items()
        }
    write(results, table, split)


def compared(
    plot: Plot, networks: dict[str, Prior], filters: list[tuple[int, float]], res: float
) -> Iterator[tuple[str, Counts]]:
    """Counts of both networks as they are and under every filter."""
    image, truth, seen = plot.pair(32)
    guide = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255

    def counts(p: Probabilities) -> Counts:
        counter = Counter(*truth.shape, classes=len(p))
        counter.add(0, truth, p)
        return counter.finish(pixel=(res, res), tolerance=2 * res)

    for kind, network in networks.items():
        y = network.card.normalise(image.transpose(2, 0, 1))[None]
        valid = torch.from_numpy(seen)[None, None]
        *_, last = infer(network.denoiser, y, valid=valid, solver=solver_for(network.card, Options()))
        yield kind, counts(last.probabilities[0].numpy())
        for kernel, eps in filters:
            q = guided_blur(guide, last.probabilities, kernel_size=kernel, eps=eps).clamp(min=0)
            yield f"{kind}, guided filter {kernel}, {eps:g}", counts((q / q.sum(dim=1, keepdim=True))[0].numpy())


def write(results: Path, table: dict[str, dict[str, Any]], split: str) -> None:
    """Put the tables into words."""
    titles = (*SHOWN.values(), "mIoU to the U-Net", "boundary F1 to it")
    parts = []
    for name, ways in table.items():
        lines = [
            f"| {way} | {' | '.join(f'{row[t][0][0]:.3f}' for t in SHOWN.values())} | {points(row['mIoU'][1])} "
            f"| {points(row['boundary F1'][1])} |"
            for way, row in ways.items()
        ]
        head = f"| way | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}"
        parts.append(f"## {name}\n\n{head}\n" + "\n".join(lines) + "\n")
    text = f"""# Maps refined by a guided filter, {split}

Made by `scripts/bench_refinement.py` at commit {commit(Path(__file__))}. The numbers of a filter are its kernel in
working pixels and its eps. One training of each network, one noise seed; a scene is one window. Differences in points
(hundredths), 95 % intervals by a bootstrap over blocks of 128 pixels.

{chr(10).join(parts)}"""
    publish(results / f"bench_refinement_{split}", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
