"""Clicks where the map is wrong: what the prior makes of them, against what can be done without one.

    python scripts/bench_clicks.py fair dubai --prior buildings --prior landcover

On every cell (256 working pixels) of the validation split the errors of a network's one-step map are cut into patches;
the largest get a click each, in the middle of the patch (where a disc inside it is widest): the true class in a disc of
`--radius` pixels. Every network is shown its own errors. The clicks then go to

    discs        the one-step map with the discs painted on it
    superpixels  the same, each click painting the superpixel it lies in (SLIC, 300 a cell)
    alike        one step, with what the clicks say of what is near and alike (`segprior.prior.alike.CLICKS`)
    known        the prior, with the discs as known places, the default solver
    known, alike both, as `segprior segment --known` does

An --opponent is a plain segmenter, one for each data set, which has all but the last two, with its own features.
Scores are mIoU over all cells, the discs included, and over all pixels but the discs. Working pixels; no blending.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from skimage.segmentation import slic

from segprior.checkpoint import Prior, load_prior
from segprior.clicks import Place, discs, largest_errors
from segprior.data import load_dataset
from segprior.errors import SettingError
from segprior.findings import check_classes, publish
from segprior.metrics import confusion, scores
from segprior.plots import read_plots
from segprior.prior.alike import CLICKS, alike_within, evidence
from segprior.prior.infer import FixedPoint, Known, Solver, generator_noise, infer
from segprior.prior.joint import UNLABELLED
from segprior.prior.unary import Unary
from segprior.provenance import commit
from segprior.terminal import counted, run_script
from segprior.validation import cells

RESULTS = Path(__file__).parent / "results"
CELL, SUPERPIXELS = 256, 300
COUNTS = (1, 3, 5, 10)
ONE = FixedPoint(times=(1.0,))

Index = npt.NDArray[np.uint8]


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    opponent: Annotated[list[str] | None, typer.Option(help="a plain segmenter for each data set")] = None,
    radius: Annotated[int, typer.Option(help="of a click, in working pixels")] = 2,
    label: Annotated[str, typer.Option(help="what to call the files besides")] = "",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Compare ways to use clicks and write bench_clicks.md and .json."""
    others: Sequence[str | None] = opponent or [None] * len(datasets)
    if not len(datasets) == len(prior) == len(others):
        raise SettingError(f"wanted a prior (and an opponent) for each of {len(datasets)} data sets, got {len(prior)}")
    table = {}
    for name, own, other in zip(datasets, prior, others, strict=True):
        networks = {"prior": load_prior(own)} | ({} if other is None else {"opponent": load_prior(other)})
        classes = load_dataset(name).legend.names
        check_classes(name, classes, *(network.card.legend.names for network in networks.values()))
        table[name] = measured(name, networks, radius)
    write(results / "_".join(["bench_clicks", *([label] if label else [])]), table, prior, radius)


def measured(name: str, networks: dict[str, Prior], radius: int) -> dict[str, dict[str, float]]:
    """MIoU by way and number of clicks, with the discs and without them."""
    size = len(networks["prior"].card.legend)
    totals: dict[str, dict[str, npt.NDArray[np.int64]]] = {}
    found = [cell for plot in read_plots(load_dataset(name), "val", "pairs") for cell in cells(plot, CELL)]
    with counted(name, "cells", len(found)) as advance:
        for _, image, truth, _ in found:
            parts = slic(image, n_segments=SUPERPIXELS, compactness=10, start_label=0)
            for whose, network in networks.items():
                plain = mapped(network, image)
                places = largest_errors(plain, truth, max(COUNTS))
                for count in COUNTS:
                    marks = discs(truth, places[:count], radius)
                    outside = np.where(marks == UNLABELLED, truth, np.uint8(UNLABELLED))
                    maps = {
                        "no clicks": plain,
                        "discs": np.where(marks == UNLABELLED, plain, marks),
                        "superpixels": np.where(
                            marks == UNLABELLED, filled(plain, parts, truth, places[:count]), marks
                        ),
                        "alike": mapped(network, image, marks, places[:count], solver=ONE),
                    }
                    if not network.card.plain:
                        maps["known"] = mapped(network, image, marks)
                        maps["known, alike"] = mapped(network, image, marks, places[:count])
                    for way, classes in maps.items():
                        row = totals.setdefault(f"{whose}, {way}", {})
                        for key, wanted in ((str(count), truth), (f"{count}, elsewhere", outside)):
                            row[key] = row.get(key, 0) + confusion(wanted, classes, classes=size)
            advance()
    return {way: {key: float(scores(total).miou) for key, total in row.items()} for way, row in totals.items()}


def filled(plain: Index, parts: npt.NDArray[Any], truth: Index, places: list[Place]) -> Index:
    """Paint the superpixels of clicks."""
    found = plain.copy()
    for row, col in places:
        found[parts == parts[row, col]] = truth[row, col]
    return found


def mapped(
    prior: Prior,
    image: Index,
    known: Index | None = None,
    places: Sequence[Place] = (),
    *,
    solver: Solver | None = None,
) -> Index:
    """Class index: by one step, or by a solver with known classes, and with what their places say around."""
    y = prior.card.normalise(image.transpose(2, 0, 1))[None]
    noise = generator_noise(0, (1, len(prior.card.bands) + len(prior.card.legend), *image.shape[:2]))
    told, said = None, []
    if known is not None:
        index = torch.from_numpy(known.copy())[None]
        told = Known(prior.denoiser.layout.encode(index), (index != UNLABELLED)[:, None])
        if places:
            at, seen = torch.tensor(places), torch.ones_like(y[:, :1], dtype=torch.bool)
            heard = alike_within(prior.denoiser, y, seen, at, index[0][tuple(at.T)], law=CLICKS)
            said = [Unary(evidence(prior.denoiser, y, seen, heard), prior.denoiser.layout)]
    solver = solver or (ONE if known is None else FixedPoint())
    *_, last = infer(prior.denoiser, y, known=told, constraints=said, solver=solver, noise=noise)
    return last.probabilities[0].argmax(dim=0).numpy().astype(np.uint8)


def write(path: Path, table: dict[str, dict[str, dict[str, float]]], priors: list[str], radius: int) -> None:
    """Put the tables into words."""
    parts = []
    for name, rows in table.items():
        head = " | ".join(f"{count} clicks" for count in COUNTS)
        lines = [
            f"| {way} | " + " | ".join(f"{row[str(n)]:.3f} ({row[f'{n}, elsewhere']:.3f})" for n in COUNTS) + " |"
            for way, row in rows.items()
        ]
        parts.append(f"## {name}\n\n| way | {head} |\n|---|{'---|' * len(COUNTS)}\n" + "\n".join(lines) + "\n")
    text = f"""# Clicks where the map is wrong

Made by `scripts/bench_clicks.py` at commit {commit(Path(__file__))}, priors {" and ".join(priors)}, clicks of radius
{radius} in the largest errors of every cell of {CELL} working pixels of the validation split. mIoU over all pixels, in
brackets over those outside the discs.

{chr(10).join(parts)}"""
    publish(path, text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
