"""Ways to solve, compared on validation scenes: accuracy, calibration, network evaluations, time.

One step; the mean of four one-step draws; the fixed point at 2, 3, 5, 10 steps, and at 3 with lower last times; the
stop-gradient form at 20 and 50; the full gradient at 50; and two controls at 3 steps of the fixed point: a blind label
path (the network sees what it sees at t_labels = 1 at every step, so that only Bayes' rule brings the last step's
labels in), and a noisy image (t_image = 0.1 and 0.3). Every number comes from `segprior.evaluate`, timing included.

    python scripts/compare_solvers.py fair dubai --prior buildings --prior landcover

One prior per data set. By default on the whole validation split; `--cells N` takes N cells of 256 x 256 working pixels
instead, spread evenly over the list of the split's whole cells, and writes down which. The tables and the JSON are
written after every row, and a row that is there for the same code, prior, cells and device is not computed again, so
the script may be stopped and started at will. Tables of data sets that are not asked for stay as they are. The ratio
to one step is measured within one process.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from segprior.checkpoint import Prior, load_prior, locate_prior, read_card, save_prior
from segprior.data import Dataset, Region, load_dataset
from segprior.errors import DatasetError, SettingError
from segprior.evaluate import evaluate, report
from segprior.findings import publish
from segprior.options import Options
from segprior.prior.infer import FixedPoint, infer
from segprior.prior.network import JointNetwork
from segprior.prior.solver import Solver, falling
from segprior.provenance import commit, digest
from segprior.scene import open_scene
from segprior.solvers import solver_named
from segprior.terminal import run_script
from segprior.windows import Window

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table: a solver, draws averaged, and whether the label path is blind."""

    name: str
    solver: Solver
    samples: int = 1
    blind: bool = False


ONE_STEP = Way("one step", FixedPoint(times=(1.0,)))
WAYS = (
    ONE_STEP,
    Way("mean of four one-step draws", FixedPoint(times=(1.0,)), samples=4),
    *(Way(f"fixed_point, {n} steps", solver_named("fixed_point", n)) for n in (2, 3, 5, 10)),
    *(Way(f"fixed_point, 3 steps down to {t}", FixedPoint(times=falling(1.0, t, 3))) for t in (0.6, 0.4)),
    *(Way(f"stop, {n} steps", solver_named("stop", n)) for n in (20, 50)),
    Way("full, 50 steps", solver_named("full", 50)),
    Way("fixed_point, 3 steps, labels' input zeroed", solver_named("fixed_point", 3), blind=True),
    *(Way(f"fixed_point, 3 steps, t_image = {t}", solver_named("fixed_point", 3, t_image=t)) for t in (0.1, 0.3)),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a table is measured on: scenes, prior, its blind twin, and what tells its rows from others."""

    dataset: Dataset
    prior: Path
    blind: Path
    device: str
    key: Row


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="a prior for each data set, in their order")],
    seeds: Annotated[int, typer.Option(help="seeds of the noise")] = 2,
    cells: Annotated[int, typer.Option(help="cells of the validation split, 0 for all of it")] = 0,
    crop: Annotated[int, typer.Option(help="side of a cell in working pixels")] = 256,
    only: Annotated[list[str] | None, typer.Option(help="rows whose name begins so; may be repeated")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    results: Annotated[Path, typer.Option(help="folder of the tables")] = RESULTS,
) -> None:
    """Compare the solvers and write compare_solvers.md and .json."""
    if len(prior) != len(datasets):
        raise SettingError(f"wanted a --prior for each of {len(datasets)} data sets, got {len(prior)}")
    results.mkdir(parents=True, exist_ok=True)
    done = previous(results)
    ways = [w for w in WAYS if only is None or w.name.startswith(tuple(only))]
    with TemporaryDirectory() as folder:
        benches = [
            bench(load_dataset(d), p, cells=cells, crop=crop, device=device, twin=Path(folder) / f"{n}.safetensors")
            for n, (d, p) in enumerate(zip(datasets, prior, strict=True))
        ]
        asked = {b.dataset.name for b in benches}
        kept = [r for r in done if r["dataset"] not in asked or any(r.items() >= b.key.items() for b in benches)]
        for row in (row for b in benches for row in missing(b, ways, kept, seeds)):
            kept.append(row)
            print(f"{row['dataset']}: {row['way']}, seed {row['seed']}: mIoU {row['pooled']['miou']:.4f}", flush=True)
            write(results, kept)
        write(results, kept)


def bench(dataset: Dataset, prior: str, *, cells: int, crop: int, device: str, twin: Path) -> Bench:
    """Choose the cells, make the blind twin, and note what the rows depend on."""
    if read_card(prior).plain:
        raise SettingError(f"wanted a prior with a label path, got the plain segmenter {prior}")
    if not dataset.select("val", "pairs"):
        raise DatasetError(f"wanted labelled scenes in the split 'val' of {dataset.name}, found none")
    if cells:
        dataset = replace(dataset, regions=chosen_cells(dataset, cells, crop))
    save_prior(blinded(load_prior(prior)), twin)
    path = locate_prior(prior)
    key = {
        "dataset": dataset.name,
        "prior": path.stem,
        "prior_sha256": digest(path),
        "code": commit(Path(__file__)),
        "regions": [[r.scene.name, *place(window_of(r))] for r in dataset.select("val", "pairs")],
        "device": Options(device=device).resolved_device,
    }
    return Bench(dataset, path, twin, str(key["device"]), key)


def window_of(region: Region) -> Window:
    """Give the region's window in source pixels, the whole scene where it has none."""
    if region.window is not None:
        return region.window
    with open_scene(region.scene.image, res=1.0, pixel_res=1.0, bands=(1,)) as scene:
        return Window(0, 0, scene.grid.height, scene.grid.width)


def place(window: Window) -> tuple[int, int, int, int]:
    """(row, col, height, width)."""
    return window.row, window.col, window.height, window.width


def chosen_cells(dataset: Dataset, count: int, crop: int) -> tuple[Region, ...]:
    """Choose `count` cells, spread evenly over the split's cells in reading order; cells at an edge may be smaller."""
    cells = [cell for region in dataset.select("val", "pairs") for cell in cells_of(dataset, region, crop)]
    if count >= len(cells):
        return tuple(cells)
    return tuple(cells[int((n + 0.5) * len(cells) / count)] for n in range(count))


def cells_of(dataset: Dataset, region: Region, crop: int) -> Iterator[Region]:
    """Cut a region into cells of `crop` working pixels; what is left at the edges is not used unless all is smaller."""
    bounds = window_of(region)
    with open_scene(
        region.scene.image, res=dataset.res, pixel_res=region.scene.pixel_res, bands=dataset.bands
    ) as scene:
        rows, cols = (min(round(crop * s), n) for s, n in zip(scene.scale, place(bounds)[2:], strict=True))
    for row in range(bounds.row, bounds.row + bounds.height - rows + 1, rows):
        for col in range(bounds.col, bounds.col + bounds.width - cols + 1, cols):
            name = f"{region.scene.name} at {row}, {col}"
            yield replace(region, scene=replace(region.scene, name=name), window=Window(row, col, rows, cols))


def blinded(prior: Prior) -> Prior:
    """Take away what the label path says: at every time the network gives its logits of t_labels = 1."""
    network = prior.denoiser.network
    assert isinstance(network, JointNetwork)  # noqa: S101  # the card says so
    with torch.no_grad():
        for parameter in network.path.label_head.parameters():
            parameter.zero_()
    return prior


def missing(bench: Bench, ways: Sequence[Way], rows: Sequence[Row], seeds: int) -> Iterator[Row]:
    """Compute the rows that are not there yet."""
    done = {(r["way"], r["seed"]) for r in rows if r.items() >= bench.key.items()}
    wanted = [(w, s) for w in ways for s in range(seeds) if (w.name, s) not in done]
    if not wanted:
        return
    for path in (bench.prior, bench.blind):
        timed(bench, ONE_STEP, 0, path=path, dataset=small(bench.dataset))  # reads the prior, wakes the device
    reference = timed(bench, ONE_STEP, 0)["seconds_per_megapixel"]
    prior = load_prior(bench.prior)
    for way, seed in wanted:
        row = timed(bench, way, seed)
        ratio = row["seconds_per_megapixel"] / reference
        yield {**bench.key, **row, "evaluations": evaluations(prior, way), "times_one_step": round(ratio, 3)}


def small(dataset: Dataset) -> Dataset:
    """Keep one corner of one scene."""
    first = dataset.select("val", "pairs")[0]
    window = window_of(first)
    corner = replace(window, height=min(64, window.height), width=min(64, window.width))
    return replace(dataset, regions=(replace(first, window=corner),))


def timed(bench: Bench, way: Way, seed: int, *, path: Path | None = None, dataset: Dataset | None = None) -> Row:
    """Evaluate once: scores and seconds per megapixel of the scenes as they lie on disk."""
    options = Options(solver=way.solver, samples=way.samples, seed=seed, device=bench.device)
    path = path or (bench.blind if way.blind else bench.prior)
    began = time.perf_counter()
    found = list(evaluate(dataset or bench.dataset, "val", prior=path, options=options))
    seconds = time.perf_counter() - began
    scores = report(found, read_card(path).legend)
    return {
        "way": way.name,
        "seed": seed,
        "seconds": round(seconds, 2),
        "seconds_per_megapixel": seconds / megapixels(bench.key["regions"]),
        "threads": torch.get_num_threads(),
        "pooled": scores.pop("pooled"),
        "scenes": scores,
    }


def evaluations(prior: Prior, way: Way) -> int:
    """Count network evaluations as the solver does, over all draws."""
    *_, last = infer(prior.denoiser, torch.zeros(1, len(prior.card.bands), 32, 32), solver=way.solver)
    return last.evaluations * way.samples


def previous(folder: Path) -> list[Row]:
    """Read the rows of an earlier run."""
    path = folder / "compare_solvers.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def megapixels(regions: Sequence[Sequence[Any]]) -> float:
    """Size of regions (name, row, col, height, width) in millions of source pixels."""
    return float(sum(height * width for *_, height, width in regions)) / 1e6


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write all rows as JSON and a table for each data set."""
    order = {w.name: n for n, w in enumerate(WAYS)}
    rows = sorted(rows, key=lambda r: (r["dataset"], order.get(r["way"], len(order)), r["seed"]))
    tables = [table([r for r in rows if r["dataset"] == name]) for name in dict.fromkeys(r["dataset"] for r in rows)]
    text = "# Ways to solve, compared on validation scenes\n\nMade by `scripts/compare_solvers.py`.\n" + "".join(tables)
    publish(folder / "compare_solvers", text, rows)


def table(rows: Sequence[Row]) -> str:
    """Lay out the rows of a data set, a line for each way, over its seeds."""
    key = rows[0]
    ways = {name: [r for r in rows if r["way"] == name] for name in dict.fromkeys(r["way"] for r in rows)}
    lines = [line(name, found) for name, found in ways.items()]
    regions = "; ".join(f"{name} [{', '.join(map(str, at))}]" for name, *at in key["regions"])
    seeds, threads = (", ".join(map(str, sorted({r[k] for r in rows}))) for k in ("seed", "threads"))
    return f"""
## {key["dataset"]}, prior {key["prior"]}

- Code {key["code"]}; the prior's SHA-256 begins {key["prior_sha256"][:12]}.
- Noise seeds {seeds}; {key["device"]}, {threads} threads, {sum(r["seconds"] for r in rows):.0f} s in all.
- Validation scenes [row, column, height, width]: {regions}.
- These are {megapixels(key["regions"]):.2f} megapixels as they lie on disk, to which the seconds refer.
- Mean over the noise seeds, with half their range if there are several (it says nothing about other trainings).
- At t_image = 0 an evaluation is one of the label path, for the image's features are computed once and one step knows
  no noise, so that its draws are all the same; a gradient through the network counts as one evaluation more.

| way | network evaluations | mIoU | ECE | s per megapixel | times one step |
|---|---|---|---|---|---|
{chr(10).join(lines)}

{verdict(ways)}
"""


def line(name: str, rows: Sequence[Row]) -> str:
    """One way: mean and half the range over the seeds."""
    miou, ece = (spread([r["pooled"][k] for r in rows]) for k in ("miou", "ece"))
    cost, ratio = (f"{mean(r[k] for r in rows):.2f}" for k in ("seconds_per_megapixel", "times_one_step"))
    return f"| {name} | {rows[0]['evaluations']} | {miou} | {ece} | {cost} | {ratio} |"


def spread(values: Sequence[float]) -> str:
    """Mean and half the range; one value says nothing about the range."""
    half = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{half}"


def verdict(ways: dict[str, list[Row]]) -> str:
    """Say whether many steps beat one; averaged draws of one step are one step."""
    scores = {name: mean(r["pooled"]["miou"] for r in rows) for name, rows in ways.items()}
    single = {w.name for w in WAYS if w.solver.count == 1}
    many = {name: value for name, value in scores.items() if name not in single}
    if ONE_STEP.name not in scores or not many:
        return ""
    best = max(many, key=lambda name: many[name])
    gain = 100 * (many[best] - scores[ONE_STEP.name])
    plain = "One step is as good as many here. " if gain < 0.3 else ""
    return f"{plain}The best with more steps, {best}, is {gain:+.2f} points of mIoU from one step."


if __name__ == "__main__":
    run_script(main)
