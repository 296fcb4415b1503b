"""An evaluation as a person asks for it: what to compare, a table on the screen, files on disk.

check                may this be asked, and may the files be written? Before any work begins
of_pair, of_split    do the work under a progress bar
Board                shows the table, writes the JSON and the page
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from segprior.checkpoint import locate_prior, read_card
from segprior.data import load_dataset, split_named
from segprior.errors import OutputError, SettingError
from segprior.evaluate import SCORES, SceneResult, evaluate, evaluate_pair, pooled, report
from segprior.folder import check_folder
from segprior.legend import Legend
from segprior.options import Options
from segprior.origin import provenance_tags
from segprior.page import COLUMNS, NAMES, PAGE, SHOWN, write_page
from segprior.target import check_target, replacing
from segprior.terminal import counted, stdout


@dataclass(frozen=True, slots=True)
class Ask:
    """What to evaluate: prior, how to segment, metres within which a boundary is met (None: two working pixels)."""

    prior: str
    options: Options
    tolerance: float | None = None
    pictures: bool = False

    @property
    def shown(self) -> int:
        """Pixels a side of the maps to keep."""
        return SHOWN if self.pictures else 0


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """The results, the classes they are in, and the words that say what was evaluated."""

    title: str
    facts: dict[str, str]
    legend: Legend
    results: list[SceneResult]

    def show(self) -> None:
        """Print the table."""
        table = Table("scene", *(f"IoU {name}" for name in self.legend.names), *COLUMNS.values())
        for result in (*self.results, *([pooled(self.results)] if len(self.results) > 1 else [])):
            values = (*result.scores.iou, *(SCORES[key](result.counts) for key in COLUMNS))
            table.add_row(result.name, *("–" if np.isnan(value) else f"{value:.3f}" for value in values))
        # a file or a pipe has no width to squeeze columns into
        (stdout if stdout.is_terminal else Console(markup=False, emoji=False, width=1000)).print(table)

    def write_json(self, path: Path) -> None:
        """Write the scores, with the intervals of the pooled ones."""
        table = report(self.results, self.legend, intervals=True)
        with replacing(path, overwrite=True) as fresh:
            fresh.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    def write_page(self, folder: Path, *, overwrite: bool) -> Path:
        """Write the page and give its path."""
        write_page(folder, self.results, self.legend, title=self.title, facts=self.facts, overwrite=overwrite)
        return folder / PAGE


def check(
    dataset: str | None,
    split: str,
    sources: Sequence[Path],
    *,
    json_file: Path | None,
    page: Path | None,
    overwrite: bool,
) -> None:
    """Raise SettingError unless there is a split or a pair, and OutputError unless the files can be written."""
    split_named(split)
    if json_file is not None:
        check_target(json_file, overwrite=overwrite, sources=sources)
    if page is not None:
        if json_file is not None and json_file.resolve() in {(page / name).resolve() for name in NAMES}:
            raise OutputError(
                f"wanted a file of its own for the scores, got {json_file}, which the page has; rename it"
            )
        check_folder(page, NAMES, overwrite=overwrite, sources=sources)
    if (dataset is None) != (len(sources) == 2) or len(sources) == 1:
        raise SettingError("wanted either a data set, or --image and --labels; got neither or both")


def of_pair(image: Path, labels: Path, ask: Ask) -> Board:
    """Evaluate one image against its labels."""
    found = evaluate_pair(image, labels, prior=ask.prior, options=ask.options, tolerance=ask.tolerance, shown=ask.shown)
    return _board(f"{image.name} against {labels.name}", {"image": str(image), "labels": str(labels)}, [found], ask)


def of_split(dataset: str, split: str, ask: Ask) -> Board:
    """Evaluate the labelled scenes of a split."""
    chosen, loaded = split_named(split), load_dataset(dataset)
    results = []
    with counted("evaluating", "scenes", len(loaded.select(chosen, "pairs"))) as advance:
        for result in evaluate(
            loaded, chosen, prior=ask.prior, options=ask.options, tolerance=ask.tolerance, shown=ask.shown
        ):
            results.append(result)
            advance()
    facts = {"data set": f"{loaded.name}: {loaded.title}", "split": split, "licence": loaded.licence}
    return _board(f"{loaded.name}, {split}", facts, results, ask)


def _board(what: str, facts: dict[str, str], results: list[SceneResult], ask: Ask) -> Board:
    card = read_card(ask.prior)
    tags = provenance_tags(card, ask.options, locate_prior(ask.prior))
    words = {key.removeprefix("SEGPRIOR_").replace("_", " ").lower(): value for key, value in tags.items()}
    tolerance = 2 * card.res if ask.tolerance is None else ask.tolerance
    facts = {**facts, **words, "working pixel": f"{card.res:g} m", "boundary tolerance": f"{tolerance:g} m"}
    return Board(f"{card.name} on {what}", facts, card.legend, results)
