"""The command line: parse, call, draw progress, turn an error into one line.

Exit codes: 0 done, 1 something was found wrong (`data verify`), 2 bad input, 130 interrupted. Results go to stdout,
progress and errors to stderr; progress is quiet when stderr is not a terminal. torch is imported only where it is used,
so that help answers at once.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from segprior import __version__
from segprior.errors import SegpriorError, SettingError

if TYPE_CHECKING:
    from segprior.evaluate import SceneResult
    from segprior.legend import Legend
    from segprior.segmentation import Options

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
data_app = typer.Typer(no_args_is_help=True, help="Data sets and their files.")
app.add_typer(data_app, name="data")
# paths and class names are shown as they are: no [markup], no :emoji:
stdout = Console(markup=False, emoji=False)
stderr = Console(markup=False, emoji=False, stderr=True)

Prior = Annotated[str, typer.Option(help="buildings, landcover, or a prior's file")]
Solver = Annotated[str, typer.Option(help="fixed_point, stop or full")]
Steps = Annotated[int | None, typer.Option(help="steps of the solver; without it 3, or 50 for stop and full")]
Samples = Annotated[int, typer.Option(help="independent solutions that are averaged")]
Bands = Annotated[str | None, typer.Option(help="bands to read, from 1, such as 1,2,3; without it the prior's")]
Res = Annotated[float | None, typer.Option(help="metres on the ground of a pixel, against what the file says")]
TileSize = Annotated[int, typer.Option(help="side of a window in pixels of the prior's resolution, a multiple of 32")]
Overlap = Annotated[int, typer.Option(help="what neighbouring windows share, a multiple of 32")]
BatchSize = Annotated[int, typer.Option(help="windows solved at once")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Seed = Annotated[int, typer.Option(help="seed of the noise")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that exist")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: an error is one line on stderr and code 2."""
    try:
        code = app(args=arguments, prog_name="segprior", standalone_mode=False)
    except SegpriorError as error:
        _fail(str(error))
    except typer.exceptions.TyperException as error:  # wrong arguments
        if error.format_message():
            _fail(f"{error.format_message()} (try 'segprior --help')")
        sys.exit(2)  # no arguments at all: the help has been shown
    except OSError as error:  # what the disk or the system refuses
        _fail(f"{error.strerror or error}{'' if error.filename is None else f': {error.filename}'}")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:  # typer makes this of Ctrl-C
        _fail("interrupted; no half-written file is left", code=130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, *, code: int = 2) -> None:
    print(f"segprior: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201  # the one place that prints errors
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"segprior {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Land-cover and building masks from aerial GeoTIFFs, with diffusion priors over image and labels."""


@app.command()
def segment(
    image: Annotated[str, typer.Argument(help="a GeoTIFF, or any raster GDAL reads")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the class raster to write")],
    prior: Prior = "landcover",
    solver: Solver = "fixed_point",
    steps: Steps = None,
    samples: Samples = 1,
    probabilities: Annotated[Path | None, typer.Option(help="write class probabilities here too, a band each")] = None,
    confidence: Annotated[Path | None, typer.Option(help="write the probability of the chosen class here too")] = None,
    bands: Bands = None,
    res: Res = None,
    tile_size: TileSize = 256,
    overlap: Overlap = 64,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Segment a raster of any size.

    The result is a class raster on the image's own grid, with colours and class names, 255 where the image has no data.
    """
    from segprior.segmentation import segment as run

    options = _options(solver, steps, samples, bands, res, tile_size, overlap, batch_size, device, seed)
    with _raster_progress("segmenting", _megapixels(image)) as advance:
        summary = run(
            image,
            output,
            prior=prior,
            options=options,
            probabilities=probabilities,
            confidence=confidence,
            overwrite=overwrite,
            progress=advance,
        )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in summary.shares.items())
    stdout.print(
        f"{summary.mask}: {shares if summary.valid else 'no pixel holds data'}", highlight=False, soft_wrap=True
    )


@app.command()
def export(
    mask: Annotated[Path, typer.Argument(help="a class raster")],
    output: Annotated[Path, typer.Argument(help="the file to write: .gpkg, .geojson or .fgb")],
    background: Annotated[list[str] | None, typer.Option(help="a class to leave out; may be repeated")] = None,
    min_area: Annotated[float, typer.Option(help="leave out polygons smaller than this, in square metres")] = 0.0,
    overwrite: Overwrite = False,
) -> None:
    """Turn a class raster into polygons.

    The result is a vector file of polygons with class, value and geodesic area in square metres.
    """
    from segprior.vector import export as run

    count = run(mask, output, background=background or (), min_area=min_area, overwrite=overwrite)
    stdout.print(f"{output}: {count} polygons", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    dataset: Annotated[str | None, typer.Argument(help="fair, dubai, or a dataset.toml")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    image: Annotated[Path | None, typer.Option(help="one image instead of a data set")] = None,
    labels: Annotated[Path | None, typer.Option(help="its labels, on the same grid")] = None,
    prior: Prior = "landcover",
    solver: Solver = "fixed_point",
    steps: Steps = None,
    samples: Samples = 1,
    bands: Bands = None,
    res: Res = None,
    tile_size: TileSize = 256,
    overlap: Overlap = 64,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    seed: Seed = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the scores here too")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare a prior's masks with given labels.

    The result is a table of IoU, F1, accuracy and calibration error, per scene and pooled.
    """
    from segprior.checkpoint import read_card
    from segprior.evaluate import evaluate_pair, report
    from segprior.target import check_target

    if json_file is not None:
        sources = [path for path in (image, labels) if path is not None]
        check_target(json_file, overwrite=overwrite, sources=sources)
    if (dataset is None) == (image is None) or (image is None) != (labels is None):
        raise SettingError("wanted either a data set, or --image and --labels; got neither or both")
    options = _options(solver, steps, samples, bands, res, tile_size, overlap, batch_size, device, seed)
    legend = read_card(prior).legend
    if image is not None and labels is not None:
        results = [evaluate_pair(image, labels, prior=prior, options=options)]
    else:
        results = _evaluate_split(str(dataset), split, prior, options)
    _print_scores(results, legend)
    if json_file is not None:
        _write_text(json_file, json.dumps(report(results, legend), indent=2) + "\n")


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the prior to write, ending in .safetensors")],
    steps: Annotated[int, typer.Option(help="steps of the optimiser")] = 4000,
    batch: Annotated[int, typer.Option(help="tiles a step")] = 8,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels, a multiple of 32")] = 128,
    rate: Annotated[float, typer.Option(help="learning rate; the encoder's is a tenth")] = 1e-3,
    validate_every: Annotated[int, typer.Option(help="steps between validations")] = 500,
    label_scale: Annotated[float, typer.Option(help="b: label channels are one-hot in {-b, b}")] = 0.3,
    encoder: Annotated[
        str, typer.Option(help="any encoder of segmentation-models-pytorch")
    ] = "timm-tf_efficientnet_lite0",
    encoder_weights: Annotated[
        str, typer.Option(help="imagenet (downloaded), none, or a safetensors file")
    ] = "imagenet",
    start: Annotated[str | None, typer.Option(help="a prior to start from")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a joint prior on image and labels. The same command takes up an interrupted run.

    The result is a prior, with its log (.csv), loss curve (.png) and drawn samples (.samples.png) beside it.
    """
    from segprior.data import load_dataset
    from segprior.fit import Plan, fit
    from segprior.train import Settings

    settings = Settings(steps=steps, batch=batch, tile=tile, rate=rate, validate_every=validate_every, seed=seed)
    plan = Plan(
        load_dataset(dataset),
        output,
        settings,
        encoder=encoder,
        encoder_weights=encoder_weights,
        start=start,
        label_scale=label_scale,
    )
    follow(fit(plan, overwrite=overwrite), steps)
    stdout.print(f"{output}: trained for {steps} steps", highlight=False, soft_wrap=True)


@app.command()
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
    from segprior.samples import Drawing, write_samples
    from segprior.segmentation import Options

    drawing = Drawing(size=(size, size), steps=steps, seed=seed)
    chosen = Options(device=device).resolved_device
    files = write_samples(output, prior=prior, count=count, drawing=drawing, overwrite=overwrite, device=chosen)
    with _bar("drawing", "pairs") as bar:
        task = bar.add_task("drawing", total=count)
        for _ in files:
            bar.advance(task)
    stdout.print(f"{output}: {count} pairs", highlight=False, soft_wrap=True)


@app.command()
def info(file: Annotated[str, typer.Argument(help="a prior (name or file) or a raster")]) -> None:
    """Describe a prior or a raster.

    The result is its description in words.
    """
    from segprior.describe import describe_file

    stdout.print(describe_file(file), highlight=False, markup=False, soft_wrap=True)


@app.command()
def demo(
    image: Annotated[Path | None, typer.Argument(help="a GeoTIFF; without one a scene is drawn from the prior")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder for the files")] = Path("segprior-demo"),
    prior: Prior = "landcover",
    seed: Seed = 0,
    res: Res = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Show what a prior does, with no data at all: draw a scene, segment it, trace it.

    The result is a folder with scene, mask, confidence, polygons, and demo.png with all of it side by side.
    """
    from segprior.demo import demo as run
    from segprior.samples import Drawing
    from segprior.segmentation import Options

    options = Options(seed=seed, device=device, res=res)
    with _raster_progress("segmenting", None if image is None else _megapixels(str(image))) as advance:
        result = run(
            output,
            image=image,
            prior=prior,
            drawing=Drawing(seed=seed),
            options=options,
            overwrite=overwrite,
            progress=advance,
        )
    for path in (result.scene, result.mask, result.confidence, result.polygons, result.picture):
        stdout.print(str(path), highlight=False, soft_wrap=True)
    stdout.print(f"{result.polygon_count} polygons; look at {result.picture}", highlight=False, soft_wrap=True)


@data_app.command()
def verify(name: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")]) -> None:
    """Check a data set's files against the checksums of its descriptor.

    The result is a line per file; exit code 1 if one is missing or altered.
    """
    from segprior.data import load_dataset
    from segprior.data import verify as run

    states = list(run(load_dataset(name)))
    for path, state in states:
        stdout.print(f"{state:12} {path}", highlight=False, soft_wrap=True)
    if any(state in ("missing", "altered") for _, state in states):
        raise typer.Exit(1)


def follow(steps: "Iterator[Any]", total: int) -> None:
    """Run a training to its end under a progress bar with loss, rate and time left; a line for every validation."""
    with _bar("training", "steps") as bar:
        task = bar.add_task("training", total=total, note="")
        mean = None
        for step in steps:
            mean = step.one_step if mean is None else 0.98 * mean + 0.02 * step.one_step
            bar.update(task, completed=step.number, note=f"loss {mean:.3f}")
            if step.validation is not None:
                one, few = step.validation.one_step, step.validation.few_step
                line = f"step {step.number}: loss {mean:.3f}, validation mIoU {one:.4f} (one step), {few:.4f} (few)"
                stderr.print(line, highlight=False)


def _options(
    solver: str,
    steps: int | None,
    samples: int,
    bands: str | None,
    res: float | None,
    tile_size: int,
    overlap: int,
    batch_size: int,
    device: str,
    seed: int,
) -> "Options":
    from segprior.segmentation import Options
    from segprior.solvers import solver_named

    return Options(
        solver=solver_named(solver, steps),
        samples=samples,
        tile_size=tile_size,
        overlap=overlap,
        batch_size=batch_size,
        seed=seed,
        bands=None if bands is None else _numbers(bands),
        res=res,
        device=device,
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingError(f"wanted band numbers like 1,2,3, got {text!r}") from None


def _evaluate_split(dataset: str, split: str, prior: str, options: "Options") -> "list[SceneResult]":
    from segprior.data import load_dataset, split_named
    from segprior.evaluate import evaluate as run

    chosen, loaded = split_named(split), load_dataset(dataset)
    scenes = len(loaded.select(chosen, "pairs"))
    results = []
    with _bar("evaluating", "scenes") as bar:
        task = bar.add_task("evaluating", total=scenes)
        for result in run(loaded, chosen, prior=prior, options=options):
            results.append(result)
            bar.advance(task)
    return results


def _print_scores(results: "Sequence[SceneResult]", legend: "Legend") -> None:
    from segprior.evaluate import pooled

    table = Table("scene", *(f"IoU {name}" for name in legend.names), "mIoU", "F1", "accuracy", "ECE")
    for result in (*results, *([pooled(results)] if len(results) > 1 else [])):
        s = result.scores
        values = (*s.iou, s.miou, s.mean_f1, s.accuracy, result.calibration.ece)
        table.add_row(result.name, *(f"{value:.3f}" for value in values))
    # a file or a pipe has no width to squeeze columns into
    (stdout if stdout.is_terminal else Console(markup=False, emoji=False, width=1000)).print(table)


def _write_text(path: Path, text: str) -> None:
    from segprior.target import replacing

    with replacing(path, overwrite=True) as fresh:
        fresh.write_text(text, encoding="utf-8")


def _megapixels(path: str) -> float:
    from segprior.raster import describe

    grid = describe(path).grid
    return grid.height * grid.width / 1e6


def _bar(label: str, unit: str) -> Progress:
    return Progress(
        TextColumn(label),
        BarColumn(),
        TextColumn(f"{{task.completed:g}}/{{task.total:g}} {unit}"),
        TextColumn("{task.fields[note]}" if label == "training" else ""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not sys.stderr.isatty(),
    )


@contextmanager
def _raster_progress(label: str, megapixels: float | None) -> Iterator[Callable[[int, int], None]]:
    """A bar in megapixels with their rate; gives what takes rows done and rows in all."""
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.1f} Mpx, {task.fields[rate]} Mpx/s"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        total = 1.0 if megapixels is None else megapixels
        task = bar.add_task(label, total=total, rate="-")

        def advance(done: int, rows: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            megas = total * done / rows
            bar.update(task, completed=megas, rate=f"{megas / elapsed:.2f}" if elapsed > 0 else "-")

        yield advance
