"""Seams: whether the borders of windows show in masks of real scenes.

    python scripts/seams.py fair dubai --prior buildings --prior landcover

Every scene that is not for training alone is segmented whole, with the default windows (256 working pixels, 64 shared)
and with windows of 320, whose borders lie elsewhere. Two things would show a seam in the first mask:

    disagreement    of the two masks, as a share of the pixels near its borders, against the share elsewhere
    change          of class between pixels side by side, near its borders against elsewhere, in that one mask alone

Near means within 4 working pixels of a line where a window begins or ends; pixels near a border of the second mask are
left out. A ratio of 1 is no seam. The same with windows that share more shows what that buys, and with windows that
share nothing what the measure sees where there are seams. Intervals (95 %) come from a bootstrap over blocks of
128 x 128 native pixels of all scenes. Labels are not read.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from segprior.checkpoint import read_card
from segprior.data import Dataset, load_dataset
from segprior.errors import SettingError
from segprior.findings import publish
from segprior.inference import open_for, strips
from segprior.options import Options
from segprior.provenance import commit
from segprior.scene import Scene
from segprior.terminal import counted, run_script
from segprior.windows import cover

RESULTS = Path(__file__).parent / "results"
BLOCK, NEAR, DRAWS = 128, 4.0, 1000
SIZES = {"64 shared": (256, 64), "128 shared": (256, 128), "none shared": (256, 0)}
OTHER = 320

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Shares near borders and elsewhere, and what one is of the other, with its interval."""

    near: float
    elsewhere: float
    ratio: float
    low: float
    high: float


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or descriptors")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Measure seams and write seams.md and seams.json."""
    if len(datasets) != len(prior):
        raise SettingError(f"wanted a prior for each data set, got {len(datasets)} and {len(prior)}")
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in zip(datasets, prior, strict=True):
        scenes = held_out(load_dataset(name))
        with counted(f"segmenting {name}", "scenes", len(scenes)) as advance:
            counts: dict[str, list[npt.NDArray[np.int64]]] = {f"{s}, {k}": [] for s in SIZES for k in KINDS}
            for path in scenes:
                for kind, found in measured(path, own):
                    counts[kind].append(found)
                advance()
        table[name] = {kind: asdict(ratio(np.concatenate(found))) for kind, found in counts.items()}
    write(results, table, prior)


def held_out(dataset: Dataset) -> list[Path]:
    """Images of the scenes that are not for training alone."""
    found = {r.scene.image: None for r in dataset.regions if r.split != "train"}
    return [path for path in found if path is not None]


KINDS = ("disagreement", "change")


def measured(path: Path, prior: str) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Counts by block, (blocks, 4): near and so, near, elsewhere and so, elsewhere."""
    with open_for(path, read_card(prior), Options()) as scene:
        for shared, (size, overlap) in SIZES.items():
            lines, other_near = near(scene, size, overlap), near(scene, OTHER, overlap)
            mine, valid = segmented(path, scene, prior, size, overlap)
            yours, _ = segmented(path, scene, prior, OTHER, overlap)
            told = valid & ~other_near
            yield f"{shared}, disagreement", blocks(mine != yours, lines, told)
            changed = np.zeros(mine.shape, np.bool_)
            changed[1:] |= mine[1:] != mine[:-1]
            changed[:, 1:] |= mine[:, 1:] != mine[:, :-1]
            yield f"{shared}, change", blocks(changed, lines, told)


def near(scene: Scene, size: int, overlap: int) -> Mask:
    """Native pixels within NEAR working pixels of a line where a window begins or ends, inside the raster."""
    windows = cover(scene.height, scene.width, size=size, overlap=overlap)
    rows = {edge for w in windows for edge in (w.row, w.row + w.height) if 0 < edge < scene.height}
    cols = {edge for w in windows for edge in (w.col, w.col + w.width) if 0 < edge < scene.width}
    down, across = scene.scale

    def close(edges: set[int], length: int, scale: float) -> Mask:
        centres = (np.arange(length) + 0.5) / scale
        found: Mask = np.zeros(length, np.bool_)
        for edge in edges:
            found |= np.abs(centres - edge) <= NEAR
        return found

    return close(rows, scene.grid.height, down)[:, None] | close(cols, scene.grid.width, across)[None]


def segmented(path: Path, scene: Scene, prior: str, size: int, overlap: int) -> tuple[npt.NDArray[np.int64], Mask]:
    """Class index and validity of the whole scene on its native grid."""
    options = replace(Options(), tile_size=size, overlap=overlap)
    done = list(strips(path, scene, prior=prior, options=options))
    return np.concatenate([s.values.argmax(axis=0) for s in done]), np.concatenate([s.valid for s in done])


def blocks(so: Mask, lines: Mask, told: Mask) -> npt.NDArray[np.int64]:
    """Count by block."""
    parts = [so & lines & told, lines & told, so & ~lines & told, ~lines & told]
    rows, cols = range(0, so.shape[0], BLOCK), range(0, so.shape[1], BLOCK)
    return np.array([[p[r : r + BLOCK, c : c + BLOCK].sum() for p in parts] for r in rows for c in cols], np.int64)


def ratio(counts: npt.NDArray[np.int64]) -> Ratio:
    """Pool the blocks; the interval from draws of blocks with replacement."""

    def of(summed: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        shares: npt.NDArray[np.float64] = (summed[..., 0] / summed[..., 1]) / (summed[..., 2] / summed[..., 3])
        return shares

    whole = counts.sum(axis=0)
    rng = np.random.default_rng(0)
    drawn = np.stack([counts[rng.integers(len(counts), size=len(counts))].sum(axis=0) for _ in range(DRAWS)])
    low, high = np.quantile(of(drawn), (0.025, 0.975))
    return Ratio(whole[0] / whole[1], whole[2] / whole[3], float(of(whole)), float(low), float(high))


def write(results: Path, table: dict[str, dict[str, dict[str, Any]]], priors: list[str]) -> None:
    """Put the table into words."""
    rows = [
        f"| {name} | {kind} | {r['near']:.2%} | {r['elsewhere']:.2%} "
        f"| {r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f}) |"
        for name, kinds in table.items()
        for kind, r in kinds.items()
    ]
    text = f"""# Seams at the borders of windows

Made by `scripts/seams.py` at commit {commit(Path(__file__))}, priors {" and ".join(priors)}, the default solver. Shares
of pixels near the borders of windows and elsewhere; a ratio of 1 is no seam. 95 % intervals from a bootstrap over
blocks.

| scenes | measure | near | elsewhere | ratio |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
    publish(results / "seams", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
