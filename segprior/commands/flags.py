"""What several commands ask for: options in words, and what they come to."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segprior.errors import SettingError
from segprior.terminal import note

if TYPE_CHECKING:
    from segprior.options import Options

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
Known = Annotated[
    list[str] | None,
    typer.Option(help="places whose class is known: FILE:class=NAME,buffer=3m,confidence=0.9; may be repeated"),
]
Survey = Annotated[
    list[str] | None,
    typer.Option(
        help="places looked up without regard to the map (a random sample, not clicks on errors), which speak for all "
        "that looks alike: FILE:class=NAME; may be repeated"
    ),
]
Unary = Annotated[
    list[str] | None,
    typer.Option(help="class probabilities of another map: FILE:temperature=2,weight=0.5; may be repeated"),
]
Hint = Annotated[
    list[str] | None, typer.Option(help="a coarse map: FILE:table=nlcd.toml,window=90m,weight=2; may be repeated")
]
HintTable = Annotated[
    Path | None, typer.Option(help="what the values of the hints mean, where a hint does not name its own table")
]
Clusters = Annotated[
    int, typer.Option(help="labels follow clusters of colours, so many in a window; 0 for none, else 2 or more")
]
Weight = Annotated[
    list[str] | None,
    typer.Option(help="unary=NUMBER, hint=NUMBER or clusters=NUMBER: times their weight; may be repeated"),
]
Shares = Annotated[
    str | None,
    typer.Option(help="shares of the classes, of the raster (.toml) or of zones (vectors): FILE:tolerance=0.02"),
]
Precision = Annotated[
    str, typer.Option(help="of training: float32, or bfloat16, which is faster where the processor knows it")
]
CutMix = Annotated[float, typer.Option(help="share of training tiles with a piece of another, 0 for none")]
ScaleJitter = Annotated[
    float, typer.Option(help="training tiles are cut at scales between 1 / this and this, 1 for none but the data's")
]
MeanTeacher = Annotated[
    float,
    typer.Option(
        help="share of training tiles without labels, learned from the network's moving average, 0 for none; does harm "
        "where no label is from the same region"
    ),
]
Noise = Annotated[float, typer.Option(help="share of training tiles with white noise, 0 for none")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that exist")]


def options_of(
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
    """Gather what was asked for. Raises SettingError."""
    from segprior.options import Options
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


def forewarn(precision: str, device: str) -> None:
    """Say so on stderr where a precision is slow. Raises SettingError for a device that is not there."""
    from segprior.device import resolved
    from segprior.precision import remark

    text = remark(precision, resolved(device))
    if text is not None:
        note(text)


def size_of(path: str) -> float:
    """Megapixels of a raster."""
    from segprior.raster import describe

    grid = describe(path).grid
    return grid.height * grid.width / 1e6


def told_of(
    *,
    known: Sequence[str] | None,
    survey: Sequence[str] | None,
    unary: Sequence[str] | None,
    hint: Sequence[str] | None,
    hint_table: Path | None,
    shares: str | None,
    clusters: int,
    weight: Sequence[str] | None,
) -> dict[str, Any]:
    """Fields of `Options` that say what is told besides the image. Raises SettingError."""
    from segprior.census import SharesSource
    from segprior.hint import HintSource
    from segprior.known import KnownSource
    from segprior.opinion import UnarySource
    from segprior.survey import SurveySource

    factor = _weights(weight or ())
    there = {"unary": unary, "hint": hint, "clusters": clusters}
    for name in {text.partition("=")[0] for text in weight or ()}:
        if not there[name]:
            raise SettingError(f"wanted --{name} for its weight, got none")
    hints = [HintSource.parse(text).weighed(factor["hint"]) for text in hint or ()]
    if hint_table is not None and not hints:
        raise SettingError(f"wanted a hint for the table {hint_table}, got none; give --hint FILE")
    return {
        "known": tuple(KnownSource.parse(text) for text in known or ()),
        "survey": tuple(SurveySource.parse(text) for text in survey or ()),
        "unary": tuple(UnarySource.parse(text).weighed(factor["unary"]) for text in unary or ()),
        "hints": tuple(h.with_table(hint_table) for h in hints),
        "clusters": clusters,
        "clusters_weight": factor["clusters"],
        "shares": None if shares is None else SharesSource.parse(shares),
    }


def _weights(texts: Sequence[str]) -> dict[str, float]:
    """Factor by name."""
    factor = {"unary": 1.0, "hint": 1.0, "clusters": 1.0}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if name not in factor or not 0 <= value < float("inf"):
            wanted = ", ".join(f"{known}=NUMBER" for known in factor)
            raise SettingError(f"wanted {wanted} as a weight, the number 0 or more, got {text}")
        factor[name] *= value
    return factor
