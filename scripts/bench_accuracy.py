"""Networks and ways to use them, compared on a split: scores with intervals, and paired differences to the first.

    python scripts/bench_accuracy.py fair --split val \
        --entry "U-Net=runs/unet_fair.safetensors" --entry "U-Net, 8 turns=runs/unet_fair.safetensors,turns=8" \
        --entry "prior, one step=buildings,steps=1" --entry "prior=buildings"

An entry is NAME=CHECKPOINT with settings after commas: solver, steps, turns, samples, seed, t_image, times (label times
of fixed_point with slashes, 1/0.5/0.25), clusters, start, and hint, a file with {stem} for a scene's name, as
`scripts/make_hints.py` writes them. --kept NAME=FILE.npz puts the row of that name in before them, from the counts of
an earlier table of the same split: a network that is gone can still be compared with, and rows of several tables be set
side by side without an --entry. The first row is what the others are compared with. Intervals (95 %) come from the
block bootstrap of `segprior.counts`, those of a difference from the same draws of the same blocks; they hold the chance
of the scenes, not that of another training. The results are bench_accuracy_DATASET_SPLIT.md and .json, with --label
another name in between, and where there is an --entry the counts block by block as .npz, from which `across_seeds.py`
puts several trainings together. The split `test` is for the end: choose by validation.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from segprior.checkpoint import locate_prior, read_card
from segprior.counts import Counts, Score
from segprior.data import Dataset, Split, load_dataset, split_named
from segprior.errors import SettingError
from segprior.evaluate import SCORES, evaluate, pooled, report
from segprior.findings import bounds, check_classes, points, publish, publish_counts, read_counts
from segprior.hint import HintSource
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.provenance import commit, digest
from segprior.solvers import solver_named
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE", "brier": "Brier"}
"""Scores of the tables, by their names in `segprior.evaluate`."""
NUMBERS = {"steps": int, "turns": int, "samples": int, "seed": int, "t_image": float, "clusters": int}
"""Settings of an entry besides its solver."""
WORDS = ("solver", "hint", "start", "times")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """What to compare: a name, a checkpoint, and how to segment with it."""

    name: str
    checkpoint: str
    options: Options

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Read NAME=CHECKPOINT,setting=value,..."""
        name, _, rest = text.partition("=")
        checkpoint, *settings = rest.split(",")
        pairs = dict(setting.partition("=")[::2] for setting in settings)
        strange = pairs.keys() - {*WORDS, *NUMBERS}
        if not name or not checkpoint or strange:
            wanted = ", ".join((*WORDS, *NUMBERS))
            raise SettingError(f"wanted NAME=CHECKPOINT,setting=value with {wanted}, got {text!r}")
        try:
            given = {key: NUMBERS[key](value) for key, value in pairs.items() if key not in WORDS}
            times = tuple(float(t) for t in pairs["times"].split("/")) if "times" in pairs else None
        except ValueError as error:
            raise SettingError(f"wanted numbers in {text!r}: {error}") from error
        t_image, turns = given.get("t_image", 0.0), given.get("turns", 1)
        if times is None:
            way = pairs.get("solver", "fixed_point")
            solver = solver_named(way, given.get("steps"), t_image=t_image, turns=turns)
        elif {"solver", "steps"} & pairs.keys():
            raise SettingError(f"wanted times alone, which go with fixed_point and give the steps, got {text!r}")
        else:
            solver = FixedPoint(times, t_image, turns=turns)
        options = Options(
            solver=solver,
            samples=given.get("samples", 1),
            seed=given.get("seed", 0),
            hints=(HintSource(pairs["hint"]),) if "hint" in pairs else (),
            clusters=given.get("clusters", 0),
            start=pairs.get("start"),
        )
        return cls(name, checkpoint, options)


def main(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    entry: Annotated[list[str] | None, typer.Option(help="NAME=CHECKPOINT,setting=value; may be repeated")] = None,
    kept: Annotated[list[str] | None, typer.Option(help="NAME=FILE.npz of an earlier table; may be repeated")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    headline: Annotated[str | None, typer.Option(help="a class whose IoU is shown too")] = None,
    tolerance: Annotated[float | None, typer.Option(help="metres; by default two working pixels")] = None,
    label: Annotated[str, typer.Option(help="what to call the files besides data set and split")] = "",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Compare checkpoints on a split."""
    entries = [Entry.parse(text) for text in entry or []]
    data, chosen = load_dataset(dataset), split_named(split)
    check_classes(data.name, data.legend.names, *(read_card(each.checkpoint).legend.names for each in entries))
    counts, rows = earlier(kept or [], data, tolerance)
    names = [*counts, *(e.name for e in entries)]
    if not names:
        raise SettingError("wanted what to compare, by --entry or --kept, got neither")
    if len(set(names)) < len(names):
        raise SettingError(f"wanted names that differ, got {', '.join(names)}")
    scores: dict[str, Score] = {title: SCORES[key] for key, title in SHOWN.items()}
    if headline is not None:
        k = data.legend.index(headline)
        scores = {f"IoU {headline}": iou_of(k), **scores}
    results.mkdir(parents=True, exist_ok=True)
    with counted("comparing", "entries", len(entries)) as advance:
        for each in entries:
            counts[each.name], row = scored(each, data, chosen, tolerance)
            rows.append(row)
            advance()
    first = counts[names[0]]
    if any(not np.array_equal(each.filled(), first.filled()) for each in counts.values()):
        raise SettingError(
            f"wanted counts of the scenes of {data.name}, {split}, got those of others in {', '.join(kept or [])}"
        )
    classes = by_class(first, data.legend.names)
    for row in rows:
        own = counts[row["entry"]]
        row["scores"] = {title: bounds(own, score) for title, score in scores.items()}
        row["differences"] = {title: bounds(own, score, first) for title, score in scores.items()}
        row["iou"] = {name: bounds(own, score) for name, score in classes.items()}
        row["iou_differences"] = {name: bounds(own, score, first) for name, score in classes.items()}
    table = {
        "dataset": data.name,
        "split": split,
        "tolerance": tolerance,
        "commit": commit(Path(__file__)),
        "threads": torch.get_num_threads(),
        "blocks": int(first.filled().sum()),
        "rows": rows,
    }
    name = "_".join(["bench_accuracy", *data.name.split("/"), split, *([label] if label else [])])
    if entries:
        publish_counts(results / f"{name}.npz", counts, data.legend.names)
    write(results / name, table)


def earlier(texts: Sequence[str], data: Dataset, tolerance: float | None) -> tuple[dict[str, Counts], list[Row]]:
    """Counts and rows of entries that earlier tables hold, read from NAME=FILE.npz, and from FILE.json where it is."""
    counts: dict[str, Counts] = {}
    rows: list[Row] = []
    for text in texts:
        name, _, file = text.partition("=")
        found, classes = read_counts(Path(file))
        if name not in found or classes != data.legend.names:
            raise SettingError(f"wanted NAME=FILE.npz with counts of {data.name}, got {text!r}: {', '.join(found)}")
        counts[name] = found[name]
        beside = Path(file).with_suffix(".json")
        table = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {"rows": []}
        if table.get("tolerance", tolerance) != tolerance:
            wanted, got = words(tolerance), words(table["tolerance"])
            raise SettingError(f"wanted boundaries met within {wanted}, those of {beside} are within {got}")
        own: Row = next((row for row in table["rows"] if row["entry"] == name), {})
        told = {key: own[key] for key in TOLD if key in own}  # a table may be written over its own file
        rows.append({"entry": name, "checkpoint": None, **told, "kept": own.get("kept", Path(file).name)})
    return counts, rows


TOLD = ("checkpoint", "sha256", "training_seconds", "options")
"""What a row says of its network."""


def by_class(counts: Counts, names: Sequence[str]) -> dict[str, Score]:
    """Find the IoU of each class that is in the truth."""
    there = counts.confusion.sum(axis=(0, 2))
    return {name: iou_of(k) for k, name in enumerate(names) if there[k]}


def iou_of(k: int) -> Score:
    """Give the IoU of class k as a score."""
    return lambda counts: counts.scores.iou[k]


def scored(entry: Entry, data: Dataset, split: Split, tolerance: float | None) -> tuple[Counts, Row]:
    """Counts of an entry, and what its row says besides its scores."""
    began = time.perf_counter()
    found = list(evaluate(data, split, prior=entry.checkpoint, options=entry.options, tolerance=tolerance))
    seconds = round(time.perf_counter() - began, 1)
    card = read_card(entry.checkpoint)
    return pooled(found).counts, {
        "entry": entry.name,
        "checkpoint": card.name,
        "sha256": digest(locate_prior(entry.checkpoint)),
        "training_seconds": card.training.get("seconds"),
        "options": repr(entry.options),
        "seconds": seconds,
        "report": report(found, card.legend),
    }


def write(stem: Path, table: Mapping[str, Any]) -> None:
    """Write the table as Markdown and JSON, and print it."""
    text = markdown(table)
    publish(stem, text, table)
    print(text)


def markdown(table: Mapping[str, Any]) -> str:
    """Lay the table out: scores with intervals, then differences to the first entry in points."""
    rows: Sequence[Row] = table["rows"]
    titles = list(rows[0]["scores"])
    head = f"| entry | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}"
    absolute = [f"| {r['entry']} | {' | '.join(interval(r['scores'][t]) for t in titles)} | {cost(r)} |" for r in rows]
    classes = [f"| {r['entry']} | {' | '.join(class_cells(r, r is not rows[0]))} |" for r in rows]
    apart = [f"| {r['entry']} | {' | '.join(points(r['differences'][t], 2) for t in titles)} |" for r in rows[1:]]
    return f"""# Compared on {table["dataset"]}, {table["split"]}

- Made by `scripts/bench_accuracy.py` at commit {table["commit"]}, {table["threads"]} threads.
- 95 % intervals by a bootstrap over {table["blocks"]} blocks of 128 x 128 pixels; one training of each network.
- Boundary tolerance {words(table["tolerance"])}.

| entry | {" | ".join(titles)} | training, this run |
|{"---|" * (len(titles) + 2)}
{chr(10).join(absolute)}

Differences to {rows[0]["entry"]}, in points (hundredths), on the same draws of the same blocks; lower is better for
ECE and Brier:

{head}
{chr(10).join(apart)}

IoU of each class, and behind it the difference to {rows[0]["entry"]}:

| entry | {" | ".join(rows[0]["iou"])} |
|{"---|" * (len(rows[0]["iou"]) + 1)}
{chr(10).join(classes)}
"""


def words(tolerance: float | None) -> str:
    """Name a tolerance."""
    return "two working pixels" if tolerance is None else f"{tolerance:g} m"


def interval(stated: Sequence[float]) -> str:
    """Value and bounds."""
    return f"{stated[0]:.3f} ({stated[1]:.3f} to {stated[2]:.3f})"


def class_cells(row: Row, differs: bool) -> list[str]:
    """IoU class by class, with the differences to the first row unless it is that."""
    return [
        f"{iou[0]:.3f}" + (f", {points(row['iou_differences'][name])}" if differs else "")
        for name, iou in row["iou"].items()
    ]


def cost(row: Row) -> str:
    """Seconds of training and of this evaluation, or the table that has them."""
    if "kept" in row:
        return f"of {row['kept']}"
    trained = "?" if row["training_seconds"] is None else f"{row['training_seconds']:.0f} s"
    return f"{trained}, {row['seconds']:.0f} s"


if __name__ == "__main__":
    run_script(main)
