"""The command line: parse, call, say what came of it.

torch is imported only where it is used, so that help answers at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from segprior import __version__
from segprior.errors import SettingError
from segprior.terminal import counted, follow, megapixels, note, say
from segprior.terminal import run as run_app

if TYPE_CHECKING:
    from segprior.segmentation import Options, Summary

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
data_app = typer.Typer(no_args_is_help=True, help="Data sets and their files.")
app.add_typer(data_app, name="data")

Prior = Annotated[str, typer.Option(help="buildings, landcover, or a prior's file")]
Solver = Annotated[str, typer.Option(help="fixed_point, stop or full")]
Steps = Annotated[int | None, typer.Option(help="steps of the solver; without it 3, or 50 for stop and full")]
Turns = Annotated[int, typer.Option(help="turns and flips of the image that are averaged, 1 to 8, a step or more each")]
Samples = Annotated[int, typer.Option(help="independent solutions that are averaged")]
Bands = Annotated[
    str | None, typer.Option(help="bands to read, such as 1,2,3 or red,green,blue; without it the prior's numbers")
]
Scale = Annotated[
    str | None,
    typer.Option(help="min,max of the values, or a pair per band; without it 8 bit as it is, else 2 to 98 percent"),
]
Res = Annotated[float | None, typer.Option(help="metres on the ground of a pixel, against what the file says")]
TileSize = Annotated[int, typer.Option(help="side of a window in pixels of the prior's resolution, a multiple of 32")]
Overlap = Annotated[int, typer.Option(help="what neighbouring windows share, a multiple of 32")]
BatchSize = Annotated[int, typer.Option(help="windows solved at once")]
OnError = Annotated[str, typer.Option(help="at a damaged block of the image: stop, or nodata to fill it and go on")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Seed = Annotated[int, typer.Option(help="seed of the noise")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that exist")]


def _version(wanted: bool) -> None:
    if wanted:
        say(f"segprior {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    run_app(app, arguments, name="segprior")


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Land-cover and building masks from aerial GeoTIFFs, with diffusion priors over image and labels."""


@app.command()
def segment(
    images: Annotated[list[str], typer.Argument(help="GeoTIFFs, or any rasters GDAL reads; patterns like dir/*.tif")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the class raster of one image")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="the folder for the class rasters of many images, STEM.tif each")
    ] = None,
    mosaic: Annotated[Path | None, typer.Option(help="write a .vrt that shows them all as one here")] = None,
    prior: Prior = "landcover",
    solver: Solver = "fixed_point",
    steps: Steps = None,
    turns: Turns = 1,
    samples: Samples = 1,
    probabilities: Annotated[
        Path | None, typer.Option(help="write class probabilities here too, a band each; of many images, {stem}.tif")
    ] = None,
    confidence: Annotated[Path | None, typer.Option(help="write the probability of the chosen class here too")] = None,
    entropy: Annotated[Path | None, typer.Option(help="write the entropy here too, 0 sure to 1 no idea")] = None,
    as_bytes: Annotated[bool, typer.Option("--as-bytes", help="write these as bytes of 1/254, not as floats")] = False,
    cog: Annotated[bool, typer.Option("--cog", help="write cloud-optimised GeoTIFFs")] = False,
    style: Annotated[bool, typer.Option("--style", help="write a .qml that QGIS loads with the mask")] = False,
    bands: Bands = None,
    res: Res = None,
    scale: Scale = None,
    tile_size: TileSize = 256,
    overlap: Overlap = 64,
    batch_size: BatchSize = 4,
    on_error: OnError = "stop",
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Segment rasters of any size.

    The result is a class raster on every image's own grid, with colours and class names, 255 where the image has no
    data. With --output-dir a bad image does not stop the rest (exit code 1), and what was done before is skipped.
    """
    options = _options(solver, steps, turns, samples, bands, res, scale, tile_size, overlap, batch_size, device, seed)
    options = replace(options, on_error=cast(Literal["stop", "nodata"], on_error))
    extras: dict[str, Any] = {"probabilities": probabilities, "confidence": confidence, "entropy": entropy}
    looks: dict[str, Any] = {"dtype": "uint8" if as_bytes else "float32", "cog": cog, "style": style}
    if output_dir is not None and output is None:
        _segment_all(images, output_dir, extras, mosaic, prior=prior, options=options, overwrite=overwrite, **looks)
        return
    if output is None or output_dir is not None:
        raise SettingError("wanted -o FILE for one image or --output-dir DIR for many, got both or neither")
    if len(images) > 1 or mosaic is not None:
        raise SettingError(f"wanted one image and no mosaic with -o, got {len(images)} images; give --output-dir DIR")
    from segprior.segmentation import segment as run

    with megapixels("segmenting", _size_of(images[0])) as advance:
        summary = run(
            images[0], output, prior=prior, options=options, overwrite=overwrite, progress=advance, **extras, **looks
        )
    _tell(summary)


def _segment_all(
    images: Sequence[str], folder: Path, extras: "Mapping[str, Path | None]", mosaic: Path | None, **rest: Any
) -> None:
    from segprior.batch import expand, plan, segment_all, size_of
    from segprior.folder import make_folder
    from segprior.target import check_target
    from segprior.vrt import mosaic as build

    items = plan(expand(images), folder, extras)
    if mosaic is not None:
        check_target(mosaic, overwrite=True)
    make_folder(folder)
    count = {"done": 0, "skipped": 0, "failed": 0}
    with megapixels("segmenting", size_of(items)) as advance:
        for outcome in segment_all(items, progress=advance, **rest):
            count[outcome.state] += 1
            if outcome.summary is not None:
                _tell(outcome.summary)
            elif outcome.state == "skipped":
                say(f"{outcome.item.mask}: done before")
            else:
                note(f"{outcome.item.image}: {outcome.reason}")
    masks = [item.mask for item in items if item.mask.exists()]
    if mosaic is not None and masks:
        build(masks, mosaic, overwrite=True)
        say(f"{mosaic}: {len(masks)} rasters as one")
    say(", ".join(f"{number} {state}" for state, number in count.items()))
    if count["failed"]:
        raise typer.Exit(1)


def _tell(summary: "Summary") -> None:
    if summary.state == "continued":
        note(f"went on from row {summary.continued_from} of an unfinished run")
    elif summary.state == "anew":
        note("began anew: an unfinished run had another input, prior or settings, and its rows were dropped")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in summary.shares.items())
    say(f"{summary.mask}: {shares if summary.valid else 'no pixel holds data'}")


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

    with megapixels("tracing", _size_of(str(mask))) as advance:
        count = run(mask, output, background=background or (), min_area=min_area, overwrite=overwrite, progress=advance)
    say(f"{output}: {count} polygons")


@app.command()
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
    scoreboard.check(dataset, sources, json_file=json_file, page=report, overwrite=overwrite)
    options = _options(solver, steps, turns, samples, bands, res, scale, tile_size, overlap, batch_size, device, seed)
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
    say(f"{output}: trained for {steps} steps")


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
    with counted("drawing", "pairs", count) as advance:
        for _ in files:
            advance()
    say(f"{output}: {count} pairs")


@app.command()
def info(file: Annotated[str, typer.Argument(help="a prior (name or file) or a raster")]) -> None:
    """Describe a prior or a raster.

    The result is its description in words.
    """
    from segprior.describe import describe_file

    say(describe_file(file))


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
    with megapixels("segmenting", None if image is None else _size_of(str(image))) as advance:
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
        say(str(path))
    say(f"{result.polygon_count} polygons; look at {result.picture}")


@data_app.command()
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


def _options(
    solver: str,
    steps: int | None,
    turns: int,
    samples: int,
    bands: str | None,
    res: float | None,
    scale: str | None,
    tile_size: int,
    overlap: int,
    batch_size: int,
    device: str,
    seed: int,
) -> "Options":
    from segprior.segmentation import Options
    from segprior.solvers import solver_named
    from segprior.stretch import Stretch

    return Options(
        solver=solver_named(solver, steps, turns=turns),
        samples=samples,
        tile_size=tile_size,
        overlap=overlap,
        batch_size=batch_size,
        seed=seed,
        bands=None
        if bands is None
        else tuple(int(b) if b.strip().isdecimal() else b.strip() for b in bands.split(",")),
        res=res,
        stretch=None if scale is None else Stretch.parse(scale),
        device=device,
    )


def _size_of(path: str) -> float:
    """Megapixels of a raster."""
    from segprior.raster import describe

    grid = describe(path).grid
    return grid.height * grid.width / 1e6
