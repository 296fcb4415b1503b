"""What a survey is worth: points looked up at random, more and more of them, against clicks where the map is wrong.

    python scripts/bench_survey.py fair dubai --prior buildings --prior landcover

Points are drawn from the labels of a split, as many in every scene, several times; the network's logits get what
`segprior.prior.alike` makes of them (one step, a scene as one window). Clicks are no sample: they lie in the middles of
the largest errors, one after the other, and are told as if they were one, to show what that does. The result is
bench_survey_SPLIT.md and .json: mIoU over all scenes, and the mean gain with its standard deviation over the draws,
in accuracy too. --base takes another constant part of the process than `segprior.prior.alike.SURVEYS` has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor
from torch.nn import functional

from segprior.checkpoint import Prior, load_prior
from segprior.clicks import largest_errors
from segprior.data import load_dataset, split_named
from segprior.errors import SettingError
from segprior.findings import check_classes, publish
from segprior.metrics import confusion, scores
from segprior.plots import Plot, read_plots
from segprior.prior.alike import SURVEYS, Law, alike
from segprior.prior.joint import UNLABELLED
from segprior.prior.label_path import STRIDE
from segprior.provenance import commit
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
COUNTS = (5, 10, 20, 50, 100)
DRAWS, CLICKS = 5, 20

Index = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior, or plain segmenter, of each data set, in their order")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    base: Annotated[float, typer.Option(help="variance of what all places lack alike")] = SURVEYS.base,
    label: Annotated[str, typer.Option(help="what to call the files besides the split")] = "",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Measure surveys and write bench_survey_SPLIT.md and .json."""
    if len(datasets) != len(prior):
        raise SettingError(f"wanted a prior for each of {len(datasets)} data sets, got {len(prior)}")
    table, law = {}, replace(SURVEYS, base=base)
    for name, own in zip(datasets, prior, strict=True):
        dataset, loaded = load_dataset(name), load_prior(own)
        check_classes(name, dataset.legend.names, loaded.card.legend.names)
        scenes = [Scene.of(plot, loaded, law) for plot in read_plots(dataset, split_named(split), "pairs")]
        table[name] = {"prior": loaded.card.name, "base": base, **measured(scenes, len(dataset.legend), name)}
    write(results / "_".join(["bench_survey", split, *([label] if label else [])]), table, split, base)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A scene as its network sees it.

    context: features (d, h/4, w/4). logits: (classes, h, w), at the prior's temperature. mean, std: of the features.
    truth: class index. law: of surveys.
    """

    context: Tensor
    logits: Tensor
    mean: Tensor
    std: Tensor
    truth: Index
    law: Law

    @classmethod
    @torch.no_grad()
    def of(cls, plot: Plot, prior: Prior, law: Law) -> "Scene":
        """Encode a plot."""
        image, truth, seen = plot.pair(32)
        there = torch.from_numpy(seen)[None, None]
        y = torch.where(there, prior.card.normalise(image.transpose(2, 0, 1))[None], 0.0)
        features = prior.denoiser.encode(y, torch.where(there, 0.0, 1.0))
        context = features.context[0]
        given = context[:, there[0, 0, ::STRIDE, ::STRIDE]]
        logits = features.logits[0] / prior.denoiser.temperature
        return cls(context, logits, given.mean(dim=1), given.std(dim=1), truth, law)

    @property
    def alone(self) -> Index:
        """The map without a survey."""
        return self.logits.argmax(dim=0).numpy().astype(np.uint8)

    def told(self, places: Places) -> Index:
        """The map under a survey of (row, column) places."""
        rows, cols = places.T
        found = alike(
            self.context[:, rows // STRIDE, cols // STRIDE].T,
            self.logits[:, rows, cols].T,
            torch.from_numpy(self.truth[rows, cols]),
            mean=self.mean,
            std=self.std,
            law=self.law,
        )
        g = functional.interpolate(found.offset(self.context[None]), scale_factor=STRIDE, mode="bilinear")[0]
        return (self.logits + g).argmax(dim=0).numpy().astype(np.uint8)

    def random(self, count: int, seed: Sequence[int]) -> Places:
        """Labelled places, drawn evenly."""
        there = np.argwhere(self.truth != UNLABELLED)
        return there[np.random.default_rng(seed).choice(len(there), min(count, len(there)), replace=False)]

    def clicks(self, count: int) -> Places:
        """The middles of the largest errors of the map alone."""
        return np.array(largest_errors(self.alone, self.truth, count), np.int64).reshape(-1, 2)


def measured(scenes: Sequence[Scene], classes: int, name: str) -> dict[str, Any]:
    """Alone, under surveys, and under clicks told as if they were one."""

    def scored(maps: Sequence[Index]) -> npt.NDArray[np.float64]:
        each = [confusion(s.truth, m, classes=classes) for s, m in zip(scenes, maps, strict=True)]
        found = scores(np.sum(each, axis=0))
        return np.array([found.miou, found.accuracy])

    alone = scored([scene.alone for scene in scenes])
    rows: dict[str, list[npt.NDArray[np.float64]]] = {}
    with counted(name, "surveys", len(COUNTS) * DRAWS + 1) as advance:
        for count in COUNTS:
            for draw in range(DRAWS):
                maps = [scene.told(scene.random(count, [draw, number])) for number, scene in enumerate(scenes)]
                rows.setdefault(f"{count} random points", []).append(scored(maps) - alone)
                advance()
        wrong = [scene.clicks(CLICKS) for scene in scenes]
        maps = [s.told(places) if len(places) else s.alone for s, places in zip(scenes, wrong, strict=True)]
        rows[f"{CLICKS} clicks on errors, told as a survey"] = [scored(maps) - alone]
        advance()
    gains, in_accuracy = ({row: [round(v[k], 5) for v in values] for row, values in rows.items()} for k in range(2))
    return {"alone": round(alone[0], 5), "gains": gains, "gains_in_accuracy": in_accuracy}


def write(stem: Path, table: dict[str, Any], split: str, base: float) -> None:
    """Put the tables into words."""
    parts = []
    for name, found in table.items():
        lines = [
            f"| {row} | {found['alone'] + np.mean(gains):.3f} | {100 * np.mean(gains):+.1f}{spread(gains)} | "
            f"{100 * np.mean(found['gains_in_accuracy'][row]):+.1f} |"
            for row, gains in found["gains"].items()
        ]
        columns = "| in every scene | mIoU | points to no survey | points of accuracy |"
        head = f"{columns}\n|---|---|---|---|\n| nothing | {found['alone']:.3f} | | |"
        parts.append(f"## {name}, {found['prior']}\n\n{head}\n" + "\n".join(lines) + "\n")
    text = f"""# Surveys, {split}

Made by `scripts/bench_survey.py` at commit {commit(Path(__file__))}, which tells how. Points are drawn {DRAWS} times;
behind ± is the standard deviation over the draws. One training of each network. The base is {base:g}.

{chr(10).join(parts)}"""
    publish(stem, text, table)
    print(text)


def spread(gains: Sequence[float]) -> str:
    """Standard deviation in points, where there is one."""
    return f" ± {100 * np.std(gains, ddof=1):.1f}" if len(gains) > 1 else ""


if __name__ == "__main__":
    run_script(main)
