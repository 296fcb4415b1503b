"""A prior or a raster in words, for `segprior info`."""

from collections.abc import Mapping
from typing import Any

from segprior.checkpoint import Card, locate_prior, prior_names, read_card
from segprior.legend import Legend
from segprior.raster import RasterInfo, describe, open_raster
from segprior.sidecar import class_names


def describe_file(file: str) -> str:
    """Describe a prior (by name, or a file ending in .safetensors) or a raster. Raises CheckpointError, RasterError."""
    if file in prior_names() or file.endswith(".safetensors"):
        return prior_in_words(read_card(file), size=locate_prior(file).stat().st_size)
    with open_raster(file) as dataset:
        names = class_names(dataset)
    return raster_in_words(describe(file), names)


def prior_in_words(card: Card, *, size: int) -> str:
    """What a prior holds and where it comes from, some lines; size in bytes."""
    kind = "plain segmenter (no label path)" if card.plain else "joint prior over image and labels"
    lines = [
        f"{card.name}: {kind}, {size / 2**20:.1f} MiB",
        f"classes: {_classes(card.legend)}",
        f"bands: {', '.join(map(str, card.bands))} at {card.res:g} m per pixel",
        f"network: {card.network.arch} on {card.network.encoder}, label scale {card.label_scale:g}, "
        f"{card.schedule} schedule, temperature {card.temperature:g}",
        f"licence: {' '.join(card.licence.split())}",
        *_items("training", card.training),
        *_items("scores", card.scores),
    ]
    return "\n".join(lines)


def raster_in_words(info: RasterInfo, names: Mapping[int, str]) -> str:
    """What a raster holds, some lines; names: of its values, where it is a class raster."""
    grid = info.grid
    res = grid.res
    ground = "no place on Earth" if res is None else f"{res[1]:.3f} x {res[0]:.3f} m on the ground (columns x rows)"
    nodata = sorted({str(v) for v in info.nodata})
    lines = [
        f"{info.path}: {info.driver}, {grid.height} rows x {grid.width} columns, {info.count} band(s)",
        f"type: {', '.join(sorted(set(info.dtypes)))}; colours: {', '.join(info.colorinterp)}",
        f"CRS: {grid.crs.to_string() if grid.crs else 'none'}; pixel: {ground}",
        f"nodata: {', '.join(nodata)}; blocks: {info.blocks[0][0]} x {info.blocks[0][1]}; "
        f"compression: {info.compression or 'none'}",
        *([f"classes: {', '.join(f'{value} {name}' for value, name in names.items())}"] if names else []),
    ]
    return "\n".join(lines)


def _classes(legend: Legend) -> str:
    return ", ".join(f"{c.value} {c.name}" for c in legend.classes)


def _items(title: str, table: Mapping[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return "(" + ", ".join(f"{k} {text(v)}" for k, v in value.items()) + ")"
        return " ".join(str(value).split())

    return [f"{title}, {key}: {text(value)}" for key, value in table.items()]
