"""One lever of the training changed, all else as it is: what it gives on the validation split.

    python scripts/levers.py dubai/sixteenth -o runs/levers --name default --encoder-weights imagenet.safetensors
    python scripts/levers.py dubai/sixteenth -o runs/levers --name pairs --kinds 0.625,0.375,0,0,0 \
        --encoder-weights imagenet.safetensors

Every run trains a prior into the folder and adds a row to levers_DATASET.md and .json (levers_DATASET_LABEL with
`--label`): the scores of one step and of the default solver, by themselves and against the row `default` of that table,
with 95 % intervals by the block bootstrap, which know nothing of other trainings: seeds move mIoU by a point. A row of
the same name is replaced. The counts of every row stay beside the table (.npz).
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from segprior.augment import Augmentation
from segprior.checkpoint import read_card
from segprior.commands.flags import CutMix, Device, MeanTeacher, Noise, ScaleJitter, forewarn
from segprior.counts import Counts, Score
from segprior.data import load_dataset
from segprior.errors import SettingError
from segprior.evaluate import SCORES, evaluate, pooled
from segprior.findings import bounds, points, publish, publish_counts, read_counts
from segprior.fit import Plan, fit
from segprior.mix import Kind, Mix
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.prior.network import NetworkShape
from segprior.provenance import commit
from segprior.target import check_target
from segprior.terminal import follow, run_script
from segprior.train import Settings

RESULTS = Path(__file__).parent / "results"
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE"}
WAYS = {"one step": FixedPoint(times=(1.0,)), "3 steps": FixedPoint()}
DEFAULT = "default"
SETTINGS, MIX = Settings(), Mix()


def main(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, a protocol, or a dataset.toml")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="an existing folder for the priors")],
    name: Annotated[str, typer.Option(help="what to call the row")],
    kinds: Annotated[str, typer.Option(help="shares of pair, segment, joint, image, label")] = ",".join(
        map(str, MIX.kinds)
    ),
    alone: Annotated[float, typer.Option(help="share of the run with first draws alone")] = MIX.alone,
    own: Annotated[float, typer.Option(help="share of pairs that noise the network's own map")] = MIX.own,
    clean: Annotated[
        bool, typer.Option("--clean/--noisy", help="whether the U-Net learns from clean images alone; the mix stays")
    ] = True,
    image_weight: Annotated[float, typer.Option(help="of the image's loss")] = SETTINGS.image_weight,
    average: Annotated[float, typer.Option(help="decay of the moving average")] = SETTINGS.average,
    label_scale: Annotated[float | None, typer.Option(help="b, by default 0.3 or that of --start")] = None,
    widths: Annotated[
        str | None, typer.Option(help="channels of the label path at strides 4, 8 and 16, against 96,160,224")
    ] = None,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels")] = SETTINGS.tile,
    batch: Annotated[int, typer.Option(help="tiles a step")] = SETTINGS.batch,
    steps: Annotated[int, typer.Option(help="steps")] = 1600,
    colour: Annotated[float, typer.Option(help="strength of the changes of colour")] = SETTINGS.augmentation.colour,
    cut_mix: CutMix = SETTINGS.augmentation.cut_mix,
    noise: Noise = SETTINGS.augmentation.noise,
    scale_jitter: ScaleJitter = SETTINGS.augmentation.scale,
    mean_teacher: MeanTeacher = SETTINGS.mean_teacher,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16")] = SETTINGS.precision,
    encoder_weights: Annotated[str, typer.Option(help="imagenet, none, or a safetensors file")] = "imagenet",
    start: Annotated[str | None, typer.Option(help="a prior or a U-Net to start from")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="whether the U-Net of --start stays as it is")] = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    label: Annotated[str, typer.Option(help="what to call the files besides the data set")] = "",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Train with one lever changed, and add the row."""
    data, target = load_dataset(dataset), output / f"{name}.safetensors"
    forewarn(precision, device)
    settings = Settings(
        steps=steps,
        batch=batch,
        tile=tile,
        average=average,
        image_weight=image_weight,
        validate_every=steps,
        seed=seed,
        mix=replace(MIX, kinds=shares(kinds), alone=alone, own=own),
        precision=precision,
        augmentation=Augmentation(colour, cut_mix, noise, scale_jitter),
        mean_teacher=mean_teacher,
    )
    shape = NetworkShape(len(data.bands), len(data.legend), clean=clean)
    plan = Plan(
        data,
        target,
        settings,
        encoder_weights=encoder_weights,
        start=start,
        hold=hold,
        label_scale=label_scale,
        clean=clean,
        shape=None if widths is None else replace(shape, label_path=channels(widths)),
        drawn=0,
        device=device,
    )
    stem = results / "_".join(part for part in ["levers", *data.name.split("/"), label] if part)
    if not trained(plan):
        check_target(target, overwrite=False)
        follow(fit(plan), steps)
    found = earlier(stem)  # after the training: another one may have added its row meanwhile
    for way, solver in WAYS.items():
        options = Options(solver=solver)
        found[f"{name}, {way}"] = pooled(list(evaluate(data, "val", prior=target, options=options))).counts
    results.mkdir(parents=True, exist_ok=True)
    publish_counts(stem.with_suffix(".npz"), found, data.legend.names)
    write(stem, found, data.name, told(stem) | {name: about(plan, read_card(target).training["seconds"])})


def trained(plan: Plan) -> bool:
    """Whether the prior is there, trained so: what was stopped between training and scoring is scored."""
    if not plan.target.is_file():
        return False
    card, wanted = read_card(plan.target), json.loads(json.dumps(asdict(plan.settings)))
    found = (card.training.get("settings"), card.training.get("dataset"), card.training.get("start"))
    same = (card.network, card.label_scale) == (plan.card.network, plan.card.label_scale)
    return same and found == (wanted, plan.dataset.name, plan.start)


def shares(text: str) -> tuple[float, ...]:
    """Read shares of the kinds, checked by `Mix`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        wanted = ", ".join(kind.name.lower() for kind in Kind)
        raise SettingError(f"wanted shares of {wanted} as numbers with commas, got {text!r}") from error


def channels(text: str) -> tuple[int, int, int]:
    """Read the channels of the label path."""
    try:
        fine, middle, coarse = (int(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"wanted three whole numbers with commas as widths, got {text!r}") from error
    if min(fine, middle, coarse) < 1:
        raise SettingError(f"wanted widths above 0, got {text!r}")
    return fine, middle, coarse


def earlier(stem: Path) -> dict[str, Counts]:
    """Counts of the rows that are there."""
    path = stem.with_suffix(".npz")
    return read_counts(path)[0] if path.exists() else {}


def told(stem: Path) -> dict[str, Any]:
    """What is told of the rows that are there."""
    path = stem.with_suffix(".json")
    if not path.exists():
        return {}
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["trainings"]
    return rows


def about(plan: Plan, seconds: float) -> dict[str, Any]:
    """How a row was trained."""
    return {
        "settings": repr(plan.settings),
        "label_scale": plan.card.label_scale,
        "clean": plan.card.network.clean,
        "widths": plan.card.network.label_path,
        "start": None if plan.start is None else Path(plan.start).name,
        "hold": plan.hold,
        "seconds": seconds,
        "commit": commit(Path(__file__)),
    }


def write(stem: Path, found: dict[str, Counts], dataset: str, trainings: dict[str, Any]) -> None:
    """Put all rows into words."""
    scores: dict[str, Score] = {title: SCORES[key] for key, title in SHOWN.items()}
    rows = {}
    for row, counts in found.items():
        first = found.get(f"{DEFAULT}, {row.rpartition(', ')[2]}")
        rows[row] = {
            title: (bounds(counts, score), None if first is None else bounds(counts, score, first))
            for title, score in scores.items()
        }
    lines = [
        f"| {row} | {' | '.join(f'{each[t][0][0]:.3f}' for t in scores)} | "
        f"{' | '.join('-' if (to := each[t][1]) is None else points(to) for t in scores)} | "
        f"{trainings[row.rpartition(', ')[0]]['seconds']:.0f} s |"
        for row, each in rows.items()
    ]
    head = f"| training, solver | {' | '.join(scores)} | {' | '.join(f'{t} to {DEFAULT}' for t in scores)} | training |"
    text = f"""# Levers of the training, {dataset}, val

Made by `scripts/levers.py`, which tells how; levers_*.json has the settings of every row. One training a row.
Differences to `{DEFAULT}` in points (hundredths) with 95 % intervals by a bootstrap over blocks.

{head}
|{"---|" * (2 * len(scores) + 2)}
{chr(10).join(lines)}
"""
    publish(stem, text, {"trainings": trainings, "rows": rows})
    print(text)


if __name__ == "__main__":
    run_script(main)
