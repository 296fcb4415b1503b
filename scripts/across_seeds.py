"""Tables of `bench_accuracy.py` from several trainings, put together: means over them, and what they differ by.

    python scripts/across_seeds.py scripts/results/bench_accuracy_dubai_test_seed0.npz \
        scripts/results/bench_accuracy_dubai_test_seed1.npz -o scripts/results/across_seeds_dubai_test

Every file holds the counts of the same entries, by name, over the same blocks; networks are not needed any more. A
score is the mean over the trainings, with the lowest and the highest of them. A difference to the first entry is the
mean of the trainings' differences, entry by entry of the same file; its 95 % interval is that of the block bootstrap,
with the same draws of blocks for all trainings: it holds the chance of the scenes, and the spread beside it shows that
of the trainings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from segprior.counts import Counts, Score
from segprior.errors import SettingError
from segprior.evaluate import SCORES
from segprior.findings import mean_bounds, points, publish, read_counts
from segprior.provenance import commit
from segprior.terminal import run_script

SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE", "brier": "Brier"}


def main(
    files: Annotated[list[Path], typer.Argument(help="counts that bench_accuracy.py wrote, one file a training")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="the table's file, without its ending")],
    headline: Annotated[list[str] | None, typer.Option(help="a class whose IoU is shown too; may be repeated")] = None,
) -> None:
    """Put trainings together and write OUTPUT.md and .json."""
    read = [read_counts(path) for path in files]
    trainings, (_, classes) = [found for found, _ in read], read[0]
    names = list(trainings[0])
    for path, (found, other) in zip(files, read, strict=True):
        if list(found) != names or other != classes:
            wanted, got = (f"entries {', '.join(n)} of {', '.join(c)}" for n, c in ((names, classes), (found, other)))
            raise SettingError(f"wanted {wanted}, got {got} in {path}")
    if strange := set(headline or ()) - set(classes):
        raise SettingError(f"wanted a class of {', '.join(classes)}, got {', '.join(sorted(strange))}")
    scores: dict[str, Score] = {f"IoU {name}": iou(classes.index(name)) for name in headline or ()}
    scores |= {title: SCORES[key] for key, title in SHOWN.items()}
    rows = [row(name, trainings, names[0], scores) for name in names]
    table = {"files": [path.name for path in files], "commit": commit(Path(__file__)), "rows": rows}
    text = markdown(table)
    publish(output, text, table)
    print(text)


def iou(number: int) -> Score:
    """IoU of one class."""
    return lambda counts: counts.scores.iou[number]


def row(
    name: str, trainings: Sequence[Mapping[str, Counts]], first: str, scores: Mapping[str, Score]
) -> dict[str, Any]:
    """Scores of an entry, and its differences to the first one."""
    own, other = [t[name] for t in trainings], [t[first] for t in trainings]
    return {
        "entry": name,
        "scores": {title: [round(score(c.total()), 5) for c in own] for title, score in scores.items()},
        "differences": {title: mean_bounds(own, score, other) for title, score in scores.items()},
        "apart": {
            title: [round(score(a.total()) - score(b.total()), 5) for a, b in zip(own, other, strict=True)]
            for title, score in scores.items()
        },
    }


def markdown(table: Mapping[str, Any]) -> str:
    """Lay the table out."""
    rows = table["rows"]
    titles = list(rows[0]["scores"])
    head = f"| entry | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}"
    absolute = [f"| {r['entry']} | {' | '.join(spread(r['scores'][t]) for t in titles)} |" for r in rows]
    apart = [
        f"| {r['entry']} | {' | '.join(difference(r['differences'][t], r['apart'][t]) for t in titles)} |"
        for r in rows[1:]
    ]
    return f"""# {len(table["files"])} trainings together

- Made by `scripts/across_seeds.py` at commit {table["commit"]} from {", ".join(table["files"])}.
- Scores are means over the trainings, with the lowest and the highest of them.

{head}
{chr(10).join(absolute)}

Differences to {rows[0]["entry"]}, in points (hundredths): the mean over the trainings, its 95 % interval by a bootstrap
over blocks, and every training's; lower is better for ECE and Brier.

{head}
{chr(10).join(apart)}
"""


def spread(values: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def difference(stated: Sequence[float], each: Sequence[float]) -> str:
    """Mean difference with its interval, and those of the trainings."""
    return f"{points(stated)}; {', '.join(f'{100 * v:+.1f}' for v in each)}"


if __name__ == "__main__":
    run_script(main)
