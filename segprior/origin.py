"""Where a mask comes from: the metadata that tells it, and whether a file is what would be made anew."""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Literal

from segprior import __version__
from segprior.census import SharesSource
from segprior.checkpoint import Card, locate_prior, read_card
from segprior.errors import RasterError
from segprior.hint import HintSource
from segprior.inference import open_for, solver_for
from segprior.known import COLUMN, KnownSource
from segprior.opinion import UnarySource
from segprior.options import Options
from segprior.provenance import digest, fingerprint
from segprior.raster import open_raster
from segprior.survey import SurveySource

AnyPath = str | PathLike[str]


def provenance_tags(card: Card, options: Options, prior: AnyPath) -> dict[str, str]:
    """What made this raster, as GeoTIFF metadata."""
    return {
        "SEGPRIOR_VERSION": __version__,
        "SEGPRIOR_PRIOR": card.name,
        "SEGPRIOR_PRIOR_SHA256": digest(locate_prior(prior)),
        "SEGPRIOR_SOLVER": repr(solver_for(card, options)),
        "SEGPRIOR_SAMPLES": str(options.samples),
        "SEGPRIOR_SEED": str(options.seed),
        "SEGPRIOR_WINDOWS": f"{options.tile_size}, overlap {options.overlap}",
        "SEGPRIOR_PIXEL": "georeference" if options.res is None else f"{options.res:g} m",
        "SEGPRIOR_BANDS": ",".join(map(str, card.bands if options.bands is None else options.bands)),
        "SEGPRIOR_ON_ERROR": options.on_error,
        "SEGPRIOR_SCALE": "none" if options.stretch is None else str(options.stretch),
        **({"SEGPRIOR_KNOWN": "; ".join(map(_known, options.known))} if options.known else {}),
        **({"SEGPRIOR_SURVEY": "; ".join(map(_survey, options.survey))} if options.survey else {}),
        **({"SEGPRIOR_UNARY": "; ".join(map(_unary, options.unary))} if options.unary else {}),
        **({"SEGPRIOR_HINTS": "; ".join(map(_hint, options.hints))} if options.hints else {}),
        **(
            {"SEGPRIOR_CLUSTERS": f"{options.clusters}, weight {options.clusters_weight:g}"} if options.clusters else {}
        ),
        **({"SEGPRIOR_START_SHA256": digest(locate_prior(options.start))} if options.start else {}),
        **({"SEGPRIOR_SHARES": _shares(options.shares)} if options.shares else {}),
    }


def _unary(source: UnarySource) -> str:
    return f"{fingerprint(source.path)}: temperature {source.temperature:g}, weight {source.weight:g}"


def _hint(source: HintSource) -> str:
    table = "" if source.table is None else f", table {fingerprint(source.table)}"
    window = "" if source.window is None else f", window {source.window:g} m"
    return f"{fingerprint(source.path)}: weight {source.weight:g}{window}{table}"


def _shares(source: SharesSource) -> str:
    return f"{fingerprint(source.path)}: tolerance {source.tolerance:g}"


def _known(source: KnownSource) -> str:
    settings = f"class {source.kind or COLUMN}, buffer {source.buffer:g} m, confidence {source.confidence:g}"
    return f"{fingerprint(source.path)}: {settings}"


def _survey(source: SurveySource) -> str:
    return f"{fingerprint(source.path)}: class {source.kind or COLUMN}"


def format_tag(dtype: str, *, cog: bool) -> str:
    """Tell how results are stored."""
    return f"{'cloud-optimised' if cog else 'plain'}, shares as {dtype}"


def is_result(
    path: AnyPath,
    image: AnyPath,
    *,
    prior: AnyPath,
    options: Options,
    dtype: Literal["float32", "uint8"] = "float32",
    cog: bool = False,
    layer: str | None = None,
) -> bool:
    """Say whether `path` is what `segment` makes of `image` as it is now, with this prior, options and format.

    layer: the name of a raster besides the mask ("confidence", "probabilities", ...), None for the mask. Raises
    RasterError, CheckpointError or SettingError, as `segment` would, if `path` is there.
    """
    if not Path(path).is_file():
        return False
    card = read_card(prior)
    with open_for(image, card, options) as scene:
        options = replace(options, bands=scene.bands, stretch=scene.stretch)
    made = {"SEGPRIOR_IMAGE": fingerprint(image), "SEGPRIOR_FORMAT": format_tag(dtype, cog=cog)}
    wanted = {**provenance_tags(card, options, prior), **made}
    try:
        with open_raster(path) as dataset:
            found, names = dataset.tags(), dataset.descriptions
    except RasterError:
        return False
    bands = {None: (None,), "probabilities": card.legend.names}.get(layer, (layer,))
    return names == bands and all(found.get(name) == value for name, value in wanted.items())
