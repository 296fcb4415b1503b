"""Commands that make maps: segment, export, demo."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from segprior.commands.flags import (
    Bands,
    BatchSize,
    Clusters,
    Device,
    Hint,
    HintTable,
    Known,
    OnError,
    Overlap,
    Overwrite,
    Prior,
    Res,
    Samples,
    Scale,
    Seed,
    Shares,
    Solver,
    Steps,
    Survey,
    TileSize,
    Turns,
    Unary,
    Weight,
    options_of,
    size_of,
    told_of,
)
from segprior.errors import SettingError
from segprior.terminal import megapixels, note, say

if TYPE_CHECKING:
    from segprior.segmentation import Summary


def segment(
    images: Annotated[
        list[str], typer.Argument(help="GeoTIFFs, or any rasters GDAL reads; patterns like dir/*.tif; STAC items")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the class raster of one image")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="the folder for the class rasters of many images, STEM.tif each")
    ] = None,
    mosaic: Annotated[Path | None, typer.Option(help="write a .vrt that shows them all as one here")] = None,
    asset: Annotated[str | None, typer.Option(help="of images that are STAC items (.json), this asset")] = None,
    stac: Annotated[bool, typer.Option("--stac", help="write a STAC item beside every class raster")] = False,
    prior: Prior = "landcover",
    solver: Solver = "fixed_point",
    steps: Steps = None,
    turns: Turns = 1,
    samples: Samples = 1,
    start: Annotated[
        str | None, typer.Option(help="a plain segmenter, as distill makes, from whose map the solver starts")
    ] = None,
    probabilities: Annotated[
        Path | None, typer.Option(help="write class probabilities here too, a band each; of many images, {stem}.tif")
    ] = None,
    confidence: Annotated[Path | None, typer.Option(help="write the probability of the chosen class here too")] = None,
    entropy: Annotated[Path | None, typer.Option(help="write the entropy here too, 0 sure to 1 no idea")] = None,
    novelty: Annotated[
        Path | None, typer.Option(help="write how unlike the training images a place is here too, above 1 unlike; slow")
    ] = None,
    disagreement: Annotated[
        Path | None, typer.Option(help="write how much --samples disagree here too, 0 not at all to 1")
    ] = None,
    as_bytes: Annotated[bool, typer.Option("--as-bytes", help="write these as bytes of 1/254, not as floats")] = False,
    cog: Annotated[bool, typer.Option("--cog", help="write cloud-optimised GeoTIFFs")] = False,
    style: Annotated[bool, typer.Option("--style", help="write a .qml that QGIS loads with the mask")] = False,
    bands: Bands = None,
    res: Res = None,
    scale: Scale = None,
    known: Known = None,
    survey: Survey = None,
    unary: Unary = None,
    hint: Hint = None,
    hint_table: HintTable = None,
    clusters: Clusters = 0,
    weight: Weight = None,
    shares: Shares = None,
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
    options = options_of(solver, steps, turns, samples, bands, res, scale, tile_size, overlap, batch_size, device, seed)
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
    options = replace(options, on_error=cast(Literal["stop", "nodata"], on_error), start=start, **told)
    extras: dict[str, Any] = {
        "probabilities": probabilities,
        "confidence": confidence,
        "entropy": entropy,
        "novelty": novelty,
        "disagreement": disagreement,
    }
    looks: dict[str, Any] = {"dtype": "uint8" if as_bytes else "float32", "cog": cog, "style": style}
    if output_dir is not None and output is None:
        looks |= {"prior": prior, "options": options, "overwrite": overwrite, "stac": stac}
        _segment_all(images, output_dir, extras, mosaic, asset, **looks)
        return
    if output is None or output_dir is not None:
        raise SettingError("wanted -o FILE for one image or --output-dir DIR for many, got both or neither")
    if len(images) > 1 or mosaic is not None:
        raise SettingError(f"wanted one image and no mosaic with -o, got {len(images)} images; give --output-dir DIR")
    from segprior.segmentation import segment as run
    from segprior.stac import asset_href, check_stac, is_item, write_item
    from segprior.target import check_target

    source = images[0] if is_item(images[0]) else None
    image = images[0] if source is None else asset_href(source, asset)
    if stac:
        check_stac()
        check_target(output.with_suffix(".json"), overwrite=overwrite, sources=[*images, *options.files])
    with megapixels("segmenting", size_of(image)) as advance:
        summary = run(
            image, output, prior=prior, options=options, overwrite=overwrite, progress=advance, **extras, **looks
        )
    _tell(summary)
    for path in summary.silent:
        note(f"{path} says nothing of this raster: it lies elsewhere")
    if stac:
        others = {name: path for name, path in extras.items() if path is not None}
        say(f"{write_item(output, others=others, source=source, overwrite=overwrite)}: its STAC item")


def _segment_all(
    images: Sequence[str],
    folder: Path,
    extras: "Mapping[str, Path | None]",
    mosaic: Path | None,
    asset: str | None,
    **rest: Any,
) -> None:
    from segprior.batch import expand, plan, segment_all, size_of
    from segprior.folder import make_folder
    from segprior.stac import check_stac
    from segprior.target import check_target
    from segprior.vrt import check_mosaic
    from segprior.vrt import mosaic as build

    items = plan(expand(images), folder, extras, asset=asset)
    if mosaic is not None:
        told = [file for item in items for file in rest["options"].of(item.source or item.image).files]
        check_mosaic(mosaic)
        check_target(mosaic, overwrite=True, sources=[*images, *(item.image for item in items), *told])
    if rest["stac"]:
        check_stac()
    make_folder(folder)
    count, masks = {"done": 0, "skipped": 0, "failed": 0}, []
    with megapixels("segmenting", size_of(items)) as advance:
        for outcome in segment_all(items, progress=advance, **rest):
            count[outcome.state] += 1
            if outcome.state != "failed":
                masks.append(outcome.item.mask)
            if outcome.summary is not None:
                _tell(outcome.summary)
            elif outcome.state == "skipped":
                say(f"{outcome.item.mask}: done before")
            else:
                note(f"{outcome.item.image}: {outcome.reason}")
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
    if summary.unfamiliar:
        note(f"{summary.unlike:.0%} of this raster is unlike anything the prior was trained on; do not trust it there")
    if (off := summary.off) is not None:
        say(f"shares asked for: {off.name} in {off.zone} is farthest off, {off.share:.2%} of {off.wanted:.2%}")


def export(
    mask: Annotated[Path, typer.Argument(help="a class raster")],
    output: Annotated[Path, typer.Argument(help="the file to write: .gpkg, .geojson, .fgb or .parquet")],
    background: Annotated[list[str] | None, typer.Option(help="a class to leave out; may be repeated")] = None,
    min_area: Annotated[float, typer.Option(help="leave out polygons smaller than this, in square metres")] = 0.0,
    fill: Annotated[
        bool, typer.Option("--fill", help="dissolve small polygons into their largest neighbour instead")
    ] = False,
    simplify: Annotated[
        float, typer.Option(help="smooth borders by so many metres; neighbours keep one common border")
    ] = 0.0,
    regularize: Annotated[
        list[str] | None, typer.Option(help="a class, such as building, that gets right angles; may be repeated")
    ] = None,
    confidence: Annotated[
        Path | None, typer.Option(help="the raster that segment --confidence wrote: its mean becomes a column")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a class raster into polygons.

    The result is a vector file of polygons with class, value and geodesic area in square metres.
    """
    from segprior.vector import Tracing
    from segprior.vector import export as run

    tracing = Tracing(
        background=tuple(background or ()),
        min_area=min_area,
        fill=fill,
        simplify=simplify,
        regularize=tuple(regularize or ()),
        confidence=confidence,
    )

    with megapixels("tracing", size_of(str(mask))) as advance:
        count = run(mask, output, tracing, overwrite=overwrite, progress=advance)
    say(f"{output}: {count} polygons")


def demo(
    image: Annotated[Path | None, typer.Argument(help="a GeoTIFF; without one a scene is drawn from the prior")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder for the files")] = Path("segprior-demo"),
    prior: Annotated[
        str | None,
        typer.Option(
            help="buildings, landcover, or a prior's file; without it landcover for an image, buildings to draw from"
        ),
    ] = None,
    seed: Seed = 0,
    res: Res = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Show what a prior does, with no data at all: draw a scene, segment it, trace it.

    The result is a folder with scene, mask, confidence, polygons, and demo.png with all of it side by side.
    """
    from segprior.demo import demo as run
    from segprior.options import Options
    from segprior.samples import Drawing

    options = Options(seed=seed, device=device, res=res)
    with megapixels("segmenting", None if image is None else size_of(str(image))) as advance:
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
