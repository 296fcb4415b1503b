"""Commands that make priors, look at them and judge them, and learn what maps mean."""

from pathlib import Path
from typing import Annotated

import typer

from segprior.commands.flags import (
    Bands,
    BatchSize,
    CutMix,
    Device,
    MeanTeacher,
    Overlap,
    Overwrite,
    Precision,
    Prior,
    Res,
    Samples,
    Scale,
    ScaleJitter,
    Seed,
    Solver,
    Steps,
    TileSize,
    Turns,
    forewarn,
    options_of,
)
from segprior.terminal import counted, follow, say


def train(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the prior to write, ending in .safetensors")],
    steps: Annotated[int, typer.Option(help="steps of the optimiser")] = 4000,
    batch: Annotated[int, typer.Option(help="tiles a step")] = 8,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels, a multiple of 32")] = 128,
    rate: Annotated[float, typer.Option(help="learning rate; the encoder's is a tenth")] = 1e-3,
    validate_every: Annotated[int, typer.Option(help="steps between validations")] = 500,
    label_scale: Annotated[
        float | None, typer.Option(help="b: label channels are one-hot in {-b, b}; by default 0.3, or that of --start")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="any encoder of segmentation-models-pytorch, by default timm-tf_efficientnet_lite0, or that of --start"
        ),
    ] = None,
    encoder_weights: Annotated[
        str, typer.Option(help="imagenet (downloaded), none, or a safetensors file; without --start")
    ] = "imagenet",
    start: Annotated[
        str | None, typer.Option(help="a prior to start from, or a U-Net of distill or of smp to grow a prior on")
    ] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="leave the U-Net of --start, and so its map of one step, as it is")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean/--noisy", help="noisy: its U-Net learns from noisy images too, for new regions")
    ] = True,
    cut_mix: CutMix = 0.0,
    scale_jitter: ScaleJitter = 2.0,
    mean_teacher: MeanTeacher = 0.0,
    precision: Precision = "float32",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a joint prior on image and labels. The same command takes up an interrupted run.

    The result is a prior, with its log (.csv), loss curve (.png) and drawn samples (.samples.png) beside it.
    """
    from segprior.augment import Augmentation
    from segprior.data import load_dataset
    from segprior.fit import Plan, fit
    from segprior.mix import NOISY, Mix
    from segprior.train import Settings

    forewarn(precision, device)
    settings = Settings(
        steps=steps,
        batch=batch,
        tile=tile,
        rate=rate,
        validate_every=validate_every,
        seed=seed,
        mix=Mix() if clean else NOISY,
        precision=precision,
        augmentation=Augmentation(cut_mix=cut_mix, scale=scale_jitter),
        mean_teacher=mean_teacher,
    )
    plan = Plan(
        load_dataset(dataset),
        output,
        settings,
        encoder=encoder,
        encoder_weights=encoder_weights,
        start=start,
        hold=hold,
        label_scale=label_scale,
        clean=clean,
        device=device,
    )
    follow(fit(plan, overwrite=overwrite), steps)
    say(f"{output}: trained for {steps} steps")


def adopt(
    network: Annotated[Path, typer.Argument(help="the folder of smp's save_pretrained")],
    dataset: Annotated[
        str, typer.Argument(help="fair, dubai, or a dataset.toml: its classes, bands, resolution and normalisation")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write, ending in .safetensors")],
    overwrite: Overwrite = False,
) -> None:
    """Take a network of segmentation-models-pytorch that was trained elsewhere, for any --prior.

    The result is a plain segmenter, with its temperature and scores where the data set has labels to validate with.
    """
    from segprior.adopt import adopt as run
    from segprior.data import load_dataset

    card = run(network, load_dataset(dataset), output, overwrite=overwrite)
    found = card.scores.get("val")
    told = "" if found is None else f", mIoU {found['miou_one_step']:.3f} on the validation split"
    say(f"{output}: {card.training['adopted']} on {card.network.encoder}{told}")


def sample(
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder for the files")],
    prior: Prior = "landcover",
    count: Annotated[int, typer.Option("-n", "--count", help="pairs to draw")] = 8,
    size: Annotated[int, typer.Option(help="side in pixels, a multiple of 32")] = 256,
    steps: Annotated[int, typer.Option(help="network evaluations a pair")] = 60,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw image and label pairs from a prior.

    The result is a folder with a PNG and two GeoTIFFs, image and labels, for every pair.
    """
    from segprior.options import Options
    from segprior.samples import Drawing, write_samples

    drawing = Drawing(size=(size, size), steps=steps, seed=seed)
    chosen = Options(device=device).resolved_device
    files = write_samples(output, prior=prior, count=count, drawing=drawing, overwrite=overwrite, device=chosen)
    with counted("drawing", "pairs", count) as advance:
        for _ in files:
            advance()
    say(f"{output}: {count} pairs")


def info(file: Annotated[str, typer.Argument(help="a prior (name or file) or a raster")]) -> None:
    """Describe a prior or a raster.

    The result is its description in words.
    """
    from segprior.describe import describe_file

    say(describe_file(file))


def evaluate(
    dataset: Annotated[str | None, typer.Argument(help="fair, dubai, or a dataset.toml")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    image: Annotated[Path | None, typer.Option(help="one image instead of a data set")] = None,
    labels: Annotated[Path | None, typer.Option(help="its labels, on the same grid")] = None,
    prior: Prior = "landcover",
    solver: Solver = "fixed_point",
    steps: Steps = None,
    turns: Turns = 1,
    samples: Samples = 1,
    bands: Bands = None,
    res: Res = None,
    scale: Scale = None,
    tile_size: TileSize = 256,
    overlap: Overlap = 64,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    seed: Seed = 0,
    tolerance: Annotated[
        float | None, typer.Option(help="metres within which a boundary is met; without it two working pixels")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the scores here too")] = None,
    report: Annotated[Path | None, typer.Option(help="a folder for a page with tables, plots and pictures")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare a prior's masks with given labels.

    The result is a table of IoU, F1, boundary F1, accuracy, calibration error and Brier score, per scene and pooled.
    """
    from segprior import scoreboard

    sources = [path for path in (image, labels) if path is not None]
    scoreboard.check(dataset, split, sources, json_file=json_file, page=report, overwrite=overwrite)
    options = options_of(solver, steps, turns, samples, bands, res, scale, tile_size, overlap, batch_size, device, seed)
    ask = scoreboard.Ask(prior, options, tolerance, pictures=report is not None)
    if image is not None and labels is not None:
        board = scoreboard.of_pair(image, labels, ask)
    else:
        board = scoreboard.of_split(str(dataset), split, ask)
    board.show()
    if json_file is not None:
        board.write_json(json_file)
    if report is not None:
        say(f"{board.write_page(report, overwrite=overwrite)}: look at it in a browser")


def verify(name: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")]) -> None:
    """Check a data set's files against the checksums of its descriptor.

    The result is a line per file; exit code 1 if one is missing or altered.
    """
    from segprior.data import load_dataset
    from segprior.data import verify as run

    states = list(run(load_dataset(name)))
    for path, state in states:
        say(f"{state:12} {path}")
    if any(state in ("missing", "altered") for _, state in states):
        raise typer.Exit(1)


def hint_table(
    hint: Annotated[str, typer.Argument(help="the coarse map, one band of whole numbers")],
    maps: Annotated[
        list[str], typer.Argument(help="maps of the same region: labels, masks, or what segment --probabilities wrote")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the table to write, TOML")],
    prior: Prior = "landcover",
    overwrite: Overwrite = False,
) -> None:
    """Learn what the values of a coarse map mean in the classes of a prior, for segment --hint FILE:table=TABLE.

    The result is a table of P(class | value).
    """
    from segprior.checkpoint import read_card
    from segprior.cooccurrence import learn
    from segprior.target import check_target

    check_target(output, overwrite=overwrite, sources=(hint, *maps))
    legend = read_card(prior).legend
    found = learn(hint, maps, legend)
    found.write(output, legend, overwrite=overwrite)
    say(f"{output}: {len(found.values)} values from {int(found.pixels.sum())} pixels")
