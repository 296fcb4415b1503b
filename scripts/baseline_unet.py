"""The opponent: smp's U-Net with plain cross-entropy, on the tiles, augmentation, moving average and time of a prior.

--arch takes another network of smp instead.

The result is a checkpoint that `segprior evaluate` and `segprior segment` read as they read a prior (they take one
step, whatever solver is asked for), and a report of its validation scores. Give the time of a prior, seconds, or steps:

    python scripts/baseline_unet.py dubai -o runs/unet_dubai.safetensors --like runs/landcover.safetensors \
        --encoder-weights runs/efficientnet_lite0.safetensors
    segprior evaluate dubai --prior runs/unet_dubai.safetensors

--start goes on from an earlier checkpoint as `segprior train --start` does: the learning rate rises and falls again.
With --like or --seconds the script first measures the time of a step in a throwaway run and sets the number of steps
from it; --like also takes batch, tile and rate from the prior's card. Time is that of training steps alone, as on a
prior's card: without validation, reading and saving. It is only equal time on the machine, with the threads and the
load that the prior had. The same command takes up an interrupted run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from segprior.augment import Augmentation
from segprior.checkpoint import read_card
from segprior.commands.flags import CutMix, Device, MeanTeacher, Noise, ScaleJitter, forewarn
from segprior.data import load_dataset
from segprior.errors import SettingError
from segprior.evaluate import evaluate, report
from segprior.fit import Plan, fit
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.prior.network import NetworkShape
from segprior.provenance import commit
from segprior.target import check_target, replacing
from segprior.terminal import follow, run_script
from segprior.train import Settings

RESULTS = Path(__file__).parent / "results"
DEFAULT = Settings()
FIRST, LAST = 30, 110
"""Steps between which the throwaway run is timed; the first ones are slower, by a tenth even after the eighth."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long to train: steps, and where they come from (seconds asked for, seconds of a step, of a prior)."""

    steps: int
    seconds: float | None = None
    step_seconds: float | None = None


def main(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="the checkpoint to write, ending in .safetensors")],
    like: Annotated[Path | None, typer.Option(help="a prior whose training time to take, less that of --start")] = None,
    seconds: Annotated[float | None, typer.Option(help="training time to take")] = None,
    steps: Annotated[int | None, typer.Option(help="steps to take")] = None,
    encoder_weights: Annotated[
        str, typer.Option(help="imagenet (downloaded), none, or a safetensors file")
    ] = "imagenet",
    encoder: Annotated[str, typer.Option(help="any encoder of smp")] = "timm-tf_efficientnet_lite0",
    arch: Annotated[str, typer.Option(help="any network of smp: unet, fpn, unetplusplus, deeplabv3plus")] = "unet",
    start: Annotated[str | None, typer.Option(help="a checkpoint of this script to go on from")] = None,
    batch: Annotated[int, typer.Option(help="tiles a step")] = DEFAULT.batch,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels")] = DEFAULT.tile,
    rate: Annotated[float, typer.Option(help="learning rate; the encoder's is a tenth")] = DEFAULT.rate,
    validate_every: Annotated[int, typer.Option(help="steps between validations")] = 500,
    colour: Annotated[float, typer.Option(help="strength of the changes of colour")] = DEFAULT.augmentation.colour,
    cut_mix: CutMix = DEFAULT.augmentation.cut_mix,
    noise: Noise = DEFAULT.augmentation.noise,
    scale_jitter: ScaleJitter = DEFAULT.augmentation.scale,
    mean_teacher: MeanTeacher = DEFAULT.mean_teacher,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16, as the prior was trained")] = DEFAULT.precision,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a checkpoint that exists")] = False,
) -> None:
    """Train the opponent of a prior."""
    if [like, seconds, steps].count(None) != 2:
        raise SettingError("wanted one of --like, --seconds and --steps")
    check_target(output, overwrite=overwrite)
    forewarn(precision, device)
    settings = Settings(
        batch=batch,
        tile=tile,
        rate=rate,
        validate_every=validate_every,
        seed=seed,
        precision=precision,
        augmentation=Augmentation(colour, cut_mix, noise, scale_jitter),
        mean_teacher=mean_teacher,
    )
    if like is not None:
        training = read_card(like).training
        seconds = trained_seconds(training, like)
        if start is not None:
            seconds -= trained_seconds(read_card(start).training, Path(start))
            if seconds <= 0:
                raise SettingError(f"wanted a prior that was trained for longer than {start}, got {like}")
        settings = replace(settings, **{k: training["settings"][k] for k in ("batch", "tile", "rate")})
    data = load_dataset(dataset)
    shape = NetworkShape(len(data.bands), len(data.legend), encoder=encoder, arch=arch)
    plan = Plan(data, output, settings, encoder, encoder_weights, start, plain=True, shape=shape, device=device)
    length = Length(steps) if steps is not None else remembered(plan, seconds or 0.0)
    follow(fit(replace(plan, settings=replace(settings, steps=length.steps)), overwrite=overwrite), length.steps)
    plan.beside(".length.json").unlink(missing_ok=True)
    write_report(plan, length, results)


def trained_seconds(training: Mapping[str, Any], path: Path) -> float:
    """Add up the training time on a card, with that of the priors it started from."""
    if "seconds" not in training:
        raise SettingError(f"wanted a prior whose card tells its training seconds, got {path}; give --seconds")
    before = training.get("before")
    return float(training["seconds"]) + (trained_seconds(before, path) if before else 0.0)


def remembered(plan: Plan, seconds: float) -> Length:
    """Find the length of the unfinished run, if there is one: another number of steps would be another run."""
    path = plan.beside(".length.json")
    if plan.beside(".run").exists() and path.exists():
        return Length(**json.loads(path.read_text(encoding="utf-8")))
    one = step_seconds(plan)
    length = Length(max(1, round(seconds / one)), seconds, one)
    print(f"{one:.3f} s a step with {torch.get_num_threads()} threads: {length.steps} steps in {seconds:.0f} s")
    path.write_text(json.dumps(asdict(length)), encoding="utf-8")
    return length


def step_seconds(plan: Plan) -> float:
    """Mean time of a step in a throwaway run."""
    settings = replace(plan.settings, steps=LAST + 1, validate_every=LAST + 1)
    with TemporaryDirectory() as folder:
        trial = replace(plan, target=Path(folder) / "trial.safetensors", settings=settings)
        run = fit(trial)
        ends = {step.number: step.seconds for step, _ in zip(run, range(LAST), strict=False)}
        run.close()  # type: ignore[attr-defined]  # a generator; its log lies in the folder that goes
    return (ends[LAST] - ends[FIRST]) / (LAST - FIRST)


def write_report(plan: Plan, length: Length, folder: Path) -> None:
    """Evaluate on the validation split and write NAME.json and NAME.md."""
    card = read_card(plan.target)
    options = Options(solver=FixedPoint(times=(1.0,)))
    found = report(list(evaluate(plan.dataset, "val", prior=plan.target, options=options)), card.legend)
    table = {
        "commit": commit(Path(__file__)),
        "dataset": plan.dataset.name,
        "length": asdict(length),
        "training": dict(card.training),
        "validation": found,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{card.name}.json", overwrite=True) as fresh:
        fresh.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    before = 0.0 if plan.start is None else trained_seconds(card.training["before"], plan.target)
    began = f", after {before:.0f} s before" if before else ""
    rows = [
        f"| {name} | {score(s['miou'])} | {score(s['accuracy'])} | {score(s['ece'])} |" for name, s in found.items()
    ]
    asked = "by steps" if length.seconds is None else f"to last {length.seconds:.0f} s"
    text = f"""# {card.name}: smp's {card.network.arch} on {plan.dataset.name}

- Made by `scripts/baseline_unet.py` at commit {table["commit"]}, seed {plan.settings.seed}.
- Encoder {card.network.encoder}, weights from {card.training["encoder_weights"]}.
- {card.training["settings"]["steps"]} steps of {plan.settings.batch} tiles of {plan.settings.tile} pixels, set {asked}.
- {card.training["seconds"]} s of training with {card.training["threads"]} threads{began}.

Validation split, on the labels' own grid:

| scene | mIoU | accuracy | ECE |
|---|---|---|---|
{chr(10).join(rows)}
"""
    with replacing(folder / f"{card.name}.md", overwrite=True) as fresh:
        fresh.write_text(text, encoding="utf-8")
    print(text)


def score(value: float | None) -> str:
    """Three digits, or a dash where a score is not defined."""
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    run_script(main)
