"""What is kept and written of class probabilities: decided classes, the probabilities, the largest, their entropy."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segprior.census import Tilt
from segprior.legend import NO_INDEX, Legend
from segprior.rows import BLOCK
from segprior.unfinished import Layer, Unfinished

EXTRAS = ("novelty", "disagreement")
"""Layers that have a channel of their own behind those of the classes, in their order."""

Made = dict[str, NDArray[Any]]
"""Layers by name, (bands, rows, columns) each."""


def layers_of(names: Iterable[str], classes: int, *, tilted: bool) -> dict[str, Layer]:
    """What to keep of every row until all are there, for layers of these names.

    tilted: probabilities may still change when all rows are there, so they alone are kept.
    """
    if tilted:
        return {name: Layer(classes if name == "probabilities" else 1, "float32") for name in _waiting(names)}
    return {
        name: Layer(1, "uint8") if name == "classes" else Layer(classes if name == "probabilities" else 1, "float32")
        for name in names
    }


def _waiting(names: Iterable[str]) -> tuple[str, ...]:
    """Layers that all others are made from when all rows are there."""
    return ("probabilities", *extras_of(names))


def extras_of(names: Iterable[str]) -> tuple[str, ...]:
    """Those of these layers that are no function of probabilities, in the order of their channels."""
    chosen = set(names)
    return tuple(name for name in EXTRAS if name in chosen)


def make_layers(p: NDArray[np.float32], legend: Legend, names: Iterable[str]) -> Made:
    """Compute layers of probabilities (classes, rows, columns), NaN where there is no data, and extras behind them."""
    names = tuple(names)
    p, extras = p[: len(legend)], dict(zip(extras_of(names), p[len(legend) :, None], strict=True))
    made: Made = {}
    for name in names:
        match name:
            case "classes":
                valid = np.isfinite(p[0])
                index = np.where(valid, np.where(valid, p, 0).argmax(axis=0), NO_INDEX).astype(np.uint8)
                made[name] = legend.to_value(index)[None]
            case "probabilities":
                made[name] = p
            case "novelty" | "disagreement":
                made[name] = extras[name]
            case "confidence":
                made[name] = p.max(axis=0, keepdims=True)
            case _:
                made[name] = relative_entropy(p)
    return made


def finished_layers(
    done: Unfinished, names: Iterable[str], height: int, legend: Legend, tilt: Tilt | None
) -> Iterator[tuple[int, Made]]:
    """Read all rows again: first row and layers."""
    if tilt is not None:
        for parts in zip(*(done.rows(name, height, BLOCK) for name in _waiting(names)), strict=True):
            (row, p), *rest = parts
            yield row, make_layers(np.concatenate([tilt(row, p), *(values for _, values in rest)]), legend, names)
        return
    for parts in zip(*(done.rows(name, height, BLOCK) for name in names), strict=True):
        yield parts[0][0], dict(zip(names, (values for _, values in parts), strict=True))


def relative_entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy over the first axis as a share of log(classes), (1, ...); NaN stays NaN."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=~(probabilities <= 0))
    share: NDArray[np.float32] = -(probabilities * logs).sum(axis=0, keepdims=True) / np.float32(
        np.log(len(probabilities))
    )
    return np.clip(share, 0.0, 1.0)
