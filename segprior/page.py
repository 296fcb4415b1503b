"""A report to look at: one HTML page that holds everything it shows.

    write_page    results of an evaluation -> FOLDER/index.html and FOLDER/scores.json

The page has the scores of every scene and of all together with their 95 % intervals, the confusion matrix, the
reliability diagram, and for every scene the image, the truth, the prediction, its confidence and its errors. Pictures
lie inside the page as data, so it can be sent around and opened anywhere; it loads nothing and runs no script.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from segprior.counts import BLOCK, IGNORE, Counts, Interval
from segprior.evaluate import Maps, SceneResult, pooled, report, score_intervals
from segprior.folder import filling
from segprior.legend import Legend
from segprior.metrics import Calibration
from segprior.picture import NO_COLOUR, Rgb, colour, rgb, shade
from segprior.target import AnyPath

NAMES = PAGE, TABLE = "index.html", "scores.json"
SHOWN = 900
"""Pixels a side of the pictures at most."""

RIGHT, WRONG = np.array([(225, 229, 233), (203, 24, 29)], np.uint8)
"""Colours of the error map."""

COLUMNS = {
    "miou": "mIoU",
    "mean_f1": "F1",
    "mean_boundary_f1": "boundary F1",
    "accuracy": "accuracy",
    "ece": "ECE",
    "brier": "Brier",
}
"""Titles of the scores over all classes."""


def write_page(
    folder: AnyPath,
    results: Sequence[SceneResult],
    legend: Legend,
    *,
    title: str,
    facts: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Write the page and its numbers into `folder`, which is made if need be.

    Args:
        folder: where index.html and scores.json go; both appear together or not at all.
        results: one per scene, with the maps to show (scenes without maps have none).
        legend: the prior's.
        title: of the page.
        facts: what was evaluated and how, line by line.
        overwrite: whether existing files of these names may be replaced.

    Raises:
        OutputError: a file exists, or the folder cannot be written into.

    """
    whole = pooled(results)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = template.from_string(files("segprior").joinpath("page.html").read_text(encoding="utf-8")).render(
        title=title,
        facts=facts,
        columns=COLUMNS.values(),
        classes=legend.classes,
        rows=[_row(r, legend) for r in (*results, *([whole] if len(results) > 1 else []))],
        intervals=_intervals(whole.counts),
        by_class=_by_class(whole.counts, legend),
        confusion=list(_confusion(whole.confusion, legend)),
        reliability=_png_of(_diagram(whole.calibration)),
        scenes=[(r.name, _pictures(r.maps, legend)) for r in results if r.maps is not None],
        block=BLOCK,
    )
    with filling(folder, NAMES, overwrite=overwrite) as stage:
        (stage / PAGE).write_text(text, encoding="utf-8")
        table = report(results, legend, intervals=True)
        (stage / TABLE).write_text(json.dumps({**facts, "scores": table}, indent=2) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def _row(result: SceneResult, legend: Legend) -> tuple[str, str, list[str]]:
    """Name, pixels and scores of a scene."""
    numbers = report([result], legend)[result.name]
    return result.name, f"{numbers['pixels']:,}".replace(",", " "), [_number(numbers[key]) for key in COLUMNS]


def _intervals(counts: Counts) -> list[str]:
    found = score_intervals(counts)

    def text(interval: Interval | None) -> str:
        return "–" if interval is None else f"{_number(interval.low)} to {_number(interval.high)}"

    return [text(found.get(key)) for key in COLUMNS]


def _by_class(counts: Counts, legend: Legend) -> list[tuple[str, list[str]]]:
    """Scores of every class: IoU, F1, precision, recall, boundary F1; its share of the pixels in truth and map."""
    s = counts.scores
    columns = (s.iou, s.f1, s.precision, s.recall, counts.boundary_f1, s.true_share, s.mapped_share)
    return [(name, [_number(c[k]) for c in columns]) for k, name in enumerate(legend.names)]


def _confusion(matrix: NDArray[np.int64], legend: Legend) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Shares of each true class that were given each class, in per cent, with how dark to paint them."""
    for name, counts in zip(legend.names, matrix, strict=True):
        shares = counts / max(1, counts.sum())
        yield name, [(f"{100 * share:.1f}" if counts.sum() else "–", round(float(share), 3)) for share in shares]


def _pictures(maps: Maps, legend: Legend) -> list[tuple[str, str]]:
    """Title and picture of everything there is to see of a scene."""
    shown: list[tuple[str, Rgb]] = [
        ("image", rgb(maps.image)),
        ("truth", colour(maps.truth, legend)),
        ("prediction", colour(maps.predicted, legend)),
        ("confidence", shade(maps.confidence)),
        ("errors", _errors(maps)),
    ]
    return [(name, _png(picture)) for name, picture in shown]


def _errors(maps: Maps) -> Rgb:
    """Paint what is right, what is wrong, and what does not count."""
    painted = np.where((maps.truth == maps.predicted)[..., None], RIGHT, WRONG)
    known = (maps.truth != IGNORE) & (maps.predicted != IGNORE)
    return np.where(known[..., None], painted, np.array(NO_COLOUR, np.uint8))


def _diagram(found: Calibration) -> Figure:
    """Draw the reliability diagram, and below it how many pixels are how sure."""
    figure = Figure((4.6, 4.6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(found.count)
    filled = found.count > 0
    sure, right = (array[filled] / found.count[filled] for array in (found.confidence, found.correct))
    above.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    above.plot(sure, right, color="C0", marker="o", markersize=4)
    above.set_ylabel("share that is right")
    above.set_ylim(0, 1)
    above.set_xlim(0, 1)
    centres = (np.arange(bins) + 0.5) / bins
    below.bar(centres, found.count / max(1.0, float(found.count.sum())), width=0.9 / bins, color="0.6")
    below.set_ylabel("share of pixels")
    below.set_xlabel("probability of the class predicted")
    return figure


def _png_of(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _png(picture: Rgb) -> str:
    buffer = io.BytesIO()
    imsave(buffer, picture, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
