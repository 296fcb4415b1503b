"""What a script has measured, as it goes into the repository: a table in words, and the same in numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from segprior.counts import Counts, Score, bootstrap, bootstrap_mean
from segprior.errors import SettingError
from segprior.target import replacing


def publish(stem: Path, text: str, table: Any) -> None:
    """Write a text to STEM.md, the numbers to STEM.json; earlier ones are replaced. Raises OutputError.

    table: what JSON can hold.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, content in ((".md", text), (".json", json.dumps(table, indent=1) + "\n")):
        with replacing(stem.with_name(stem.name + kind), overwrite=True) as fresh:
            fresh.write_text(content, encoding="utf-8")


def bounds(counts: Counts, score: Score, against: Counts | None = None) -> list[float]:
    """Give a score, or its difference to that of other counts, with its 95 % interval: value, low, high, rounded."""
    found = bootstrap(counts, score, against=against)
    return [round(v, 5) for v in (found.value, found.low, found.high)]


def mean_bounds(trainings: Sequence[Counts], score: Score, against: Sequence[Counts] | None = None) -> list[float]:
    """Give the mean over several trainings of a score, or of its differences: value, low, high, rounded."""
    found = bootstrap_mean(trainings, score, against=against)
    return [round(v, 5) for v in (found.value, found.low, found.high)]


def publish_counts(path: Path, counts: Mapping[str, Counts], classes: Sequence[str]) -> None:
    """Write the counts of several predictions of the same blocks, by name, to a .npz; an earlier one is replaced.

    So networks of other days can be compared with them, block by block, without their weights. Raises OutputError.
    """
    arrays = {"names": np.array(list(counts)), "classes": np.array(list(classes))}
    for number, each in enumerate(counts.values()):
        arrays |= {f"{number}.{field.name}": getattr(each, field.name) for field in fields(Counts)}
    with replacing(path, overwrite=True) as fresh, fresh.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_counts(path: Path) -> tuple[dict[str, Counts], tuple[str, ...]]:
    """Read what `publish_counts` wrote: counts by name, and the names of the classes. Raises SettingError."""
    try:
        with np.load(path) as file:
            names, classes = ([str(name) for name in file[key]] for key in ("names", "classes"))
            parts = [[file[f"{n}.{field.name}"] for field in fields(Counts)] for n in range(len(names))]
    except (OSError, ValueError, KeyError) as error:
        raise SettingError(
            f"wanted counts of predictions, as bench_accuracy.py writes, in {path}, got: {error}"
        ) from None
    return {name: Counts(*arrays) for name, arrays in zip(names, parts, strict=True)}, tuple(classes)


def check_classes(dataset: str, wanted: Sequence[str], *networks: Sequence[str]) -> None:
    """Raise SettingError unless networks know the classes of a data set, in their order."""
    for found in networks:
        if tuple(found) != tuple(wanted):
            raise SettingError(
                f"wanted the classes of {dataset} in their order, {', '.join(wanted)}, got {', '.join(found)}"
            )


def check_one_image(*looks: object) -> None:
    """Raise SettingError unless networks see one image: `looks` are the bands, mean and std of each."""
    if len(set(looks)) > 1:
        raise SettingError(f"wanted networks of the same bands, mean and std, got {', '.join(map(str, looks))}")


def points(stated: Sequence[float], digits: int = 1) -> str:
    """Put a difference, value, low and high, into points (hundredths)."""
    value, low, high = (f"{100 * v:+.{digits}f}" for v in stated)
    return f"{value} ({low} to {high})"
