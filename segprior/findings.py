"""What a script has measured, as it goes into the repository: a table in words, and the same in numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segprior.counts import Counts, Score, bootstrap
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


def points(stated: Sequence[float], digits: int = 1) -> str:
    """Put a difference, value, low and high, into points (hundredths)."""
    value, low, high = (f"{100 * v:+.{digits}f}" for v in stated)
    return f"{value} ({low} to {high})"
