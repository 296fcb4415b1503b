"""Commands that take a prior to a new region: adapt, distill."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segprior.commands.flags import (
    BatchSize,
    Clusters,
    CutMix,
    Device,
    Hint,
    HintTable,
    Known,
    Overlap,
    Overwrite,
    Precision,
    Res,
    Samples,
    ScaleJitter,
    Seed,
    Shares,
    Survey,
    TileSize,
    Turns,
    Unary,
    Weight,
    forewarn,
    options_of,
    told_of,
)
from segprior.terminal import note, say, stages

if TYPE_CHECKING:
    from segprior.adapt import Judged

Images = Annotated[list[str], typer.Argument(help="rasters of the region, 8 bit; patterns like dir/*.tif")]
Teacher = Annotated[str, typer.Argument(help="buildings, landcover, or a prior's file")]


def adapt(
    prior: Teacher,
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="the prior to write, ending in .safetensors")],
    given: Annotated[
        str | None, typer.Option("--with", help="a data set whose training labels are trained on too, half of the time")
    ] = None,
    rounds: Annotated[int, typer.Option(help="rounds of inferring and training, at most")] = 2,
    steps: Annotated[int, typer.Option(help="steps of the optimiser in a round")] = 700,
    batch: Annotated[int, typer.Option(help="tiles a step")] = 8,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels, a multiple of 32")] = 128,
    rate: Annotated[float, typer.Option(help="learning rate; the encoder's is a tenth")] = 1e-3,
    cut_mix: CutMix = 0.0,
    scale_jitter: ScaleJitter = 2.0,
    precision: Precision = "float32",
    known: Known = None,
    survey: Survey = None,
    unary: Unary = None,
    hint: Hint = None,
    hint_table: HintTable = None,
    clusters: Clusters = 0,
    weight: Weight = None,
    shares: Shares = None,
    res: Res = None,
    turns: Turns = 1,
    samples: Samples = 1,
    tile_size: TileSize = 256,
    overlap: Overlap = 64,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Adapt a prior to a new region without labels: infer them under what is told, train on, a few rounds.

    The result is a prior. What is told of many images is named with {stem} for their names. The same command takes up
    an interrupted run.
    """
    from segprior.adapt import Adaptation
    from segprior.adapt import adapt as run
    from segprior.augment import Augmentation
    from segprior.batch import expand
    from segprior.data import load_dataset
    from segprior.train import Settings

    forewarn(precision, device)
    options = options_of(
        "fixed_point", None, turns, samples, None, res, None, tile_size, overlap, batch_size, device, seed
    )
    told = told_of(
        known=known,
        survey=survey,
        unary=unary,
        hint=hint,
        hint_table=hint_table,
        shares=shares,
        clusters=clusters,
        weight=weight,
    )
    plan = Adaptation(
        prior,
        expand(images),
        output,
        replace(options, **told),
        None if given is None else load_dataset(given),
        rounds,
        Settings(
            steps=steps,
            batch=batch,
            tile=tile,
            rate=rate,
            warmup=min(50, steps),
            average=0.99,
            validate_every=steps,
            seed=seed,
            precision=precision,
            augmentation=Augmentation(cut_mix=cut_mix, scale=scale_jitter),
        ),
    )
    with stages() as watch:
        for each in run(plan, overwrite=overwrite, watch=watch):
            if each.number == 1 and not any((known, survey, unary, hint, shares, clusters)):
                note("nothing is told of the region: a prior that learns from its own map alone may get worse")
            kept = "kept" if each.kept else "no better, dropped"
            note(f"round {each.number}: {_judged(each.before)} -> {_judged(each.after)}; {kept}")
    say(f"{output}: adapted to {len(plan.images)} images")


def _judged(found: "Judged") -> str:
    loss = "" if found.image_loss is None else f", image loss {found.image_loss:.3f}"
    return f"agreement {found.agreement:.3f}{loss}"


def distill(
    prior: Teacher,
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="the student to write, ending in .safetensors")],
    arch: Annotated[
        str, typer.Option(help="any network of segmentation-models-pytorch: unet, fpn, segformer")
    ] = "unet",
    encoder: Annotated[str, typer.Option(help="any encoder of it")] = "timm-tf_efficientnet_lite0",
    encoder_weights: Annotated[
        str, typer.Option(help="imagenet (downloaded), none, or a safetensors file")
    ] = "imagenet",
    steps: Annotated[int, typer.Option(help="steps of the optimiser")] = 2000,
    batch: Annotated[int, typer.Option(help="tiles a step")] = 8,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels, a multiple of 32")] = 128,
    rate: Annotated[float, typer.Option(help="learning rate; the encoder's is a tenth")] = 1e-3,
    validate_every: Annotated[int, typer.Option(help="steps between validations")] = 500,
    cut_mix: CutMix = 0.0,
    scale_jitter: ScaleJitter = 2.0,
    precision: Precision = "float32",
    known: Known = None,
    survey: Survey = None,
    unary: Unary = None,
    hint: Hint = None,
    hint_table: HintTable = None,
    clusters: Clusters = 0,
    weight: Weight = None,
    shares: Shares = None,
    res: Res = None,
    turns: Turns = 1,
    samples: Samples = 1,
    tile_size: TileSize = 256,
    overlap: Overlap = 64,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a network on what a prior infers of rasters under what is told, so that mapping the rest is fast.

    The result is a plain segmenter, for segment --prior STUDENT or --start STUDENT, with its log (.csv) and loss curve
    (.png) beside it. The same command takes up an interrupted run.
    """
    from segprior.augment import Augmentation
    from segprior.batch import expand
    from segprior.distill import Distillation
    from segprior.distill import distill as run
    from segprior.train import Settings

    forewarn(precision, device)
    options = options_of(
        "fixed_point", None, turns, samples, None, res, None, tile_size, overlap, batch_size, device, seed
    )
    told = told_of(
        known=known,
        survey=survey,
        unary=unary,
        hint=hint,
        hint_table=hint_table,
        shares=shares,
        clusters=clusters,
        weight=weight,
    )
    plan = Distillation(
        prior,
        expand(images),
        output,
        replace(options, **told),
        arch,
        encoder,
        encoder_weights,
        Settings(
            steps=steps,
            batch=batch,
            tile=tile,
            rate=rate,
            validate_every=validate_every,
            seed=seed,
            precision=precision,
            augmentation=Augmentation(cut_mix=cut_mix, scale=scale_jitter),
        ),
    )
    agreement = float("nan")
    with stages() as watch:
        for step in run(plan, overwrite=overwrite, watch=watch):
            watch("training the student", step.number, steps)
            if step.validation is not None:
                agreement = step.validation.one_step
    say(f"{output}: agrees with what was inferred on held-out parts of {len(plan.images)} images, mIoU {agreement:.3f}")
