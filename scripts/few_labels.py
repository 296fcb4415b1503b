"""Write the protocols with few labels: fixed windows that hold a quarter and a sixteenth of the labelled area.

Every training region with labels is cut into a grid of cells (8 x 8; 4 x 4 where those would be narrower than 240
pixels), the cells are shuffled by a seed without a look at image or labels, and the first quarter and sixteenth of them
keep their labels, so that the few are among the many. All the rest is imagery without labels. The result is
datasets/NAME/quarter.toml and sixteenth.toml, which are published; the same command writes them again:

    python scripts/few_labels.py fair dubai

With --leave-out SCENE it writes sixteenth_without_SCENE.toml too: the sixteenth without that training scene, which is
the validation split there, alone. With it, choices can be made on more scenes than the validation split has, and the
test split, which is not in it, stays unseen:

    python scripts/few_labels.py dubai --leave-out tile6 --leave-out tile8
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from segprior.data import Dataset, Region, load_dataset
from segprior.errors import SettingError
from segprior.raster import describe
from segprior.target import replacing
from segprior.terminal import run_script
from segprior.windows import Window

DATASETS = Path(__file__).parent.parent / "datasets"
PARTS = {"quarter": 4, "sixteenth": 16}
LEAST = 240
"""Source pixels of a cell's side, at least."""


def main(
    names: Annotated[list[str], typer.Argument(help="data sets that ship with segprior")],
    *,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="a training scene to validate on; may be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of which cells keep their labels")] = 0,
    folder: Annotated[Path, typer.Option(help="where the data sets' folders are")] = DATASETS,
) -> None:
    """Write the protocols of the data sets."""
    for name in names:
        dataset = load_dataset(name)
        trained = {region.scene.name for region in dataset.select("train", "pairs")}
        if strange := set(leave_out or []) - trained:
            raise SettingError(f"wanted training scenes of {name} to leave out, got {', '.join(sorted(strange))}")
        for protocol, part, held in (
            *((protocol, part, None) for protocol, part in PARTS.items()),
            *((f"sixteenth_without_{scene}", 16, scene) for scene in leave_out or []),
        ):
            path = folder / name / f"{protocol}.toml"
            with replacing(path, overwrite=True) as fresh:
                fresh.write_text(protocol_text(dataset, name, protocol, part=part, seed=seed, held=held), "utf-8")
            print(path)


def protocol_text(dataset: Dataset, name: str, protocol: str, *, part: int, seed: int, held: str | None = None) -> str:
    """Write the descriptor in which 1 / `part` of the labelled training area keeps its labels.

    held: a training scene to validate on instead of what is validated and tested on otherwise.
    """
    rng = np.random.default_rng(seed)
    entries = []
    for region in dataset.regions:
        scene = region.scene.name
        if region.split != "train" or region.use != "pairs":
            if held is None or (region.split == "train" and scene != held):
                entries.append(entry(scene, region.split, region.use, region.window))
            continue
        windows = list(few(region, part, rng))  # drawn of the scene that is left out too, so that the others stay
        if scene == held:
            entries.append(entry(scene, "val", "pairs", region.window))
            continue
        entries += [entry(scene, "train", "pairs", kept) for kept in windows]
        entries.append(entry(scene, "train", "images", region.window))
    without = "" if held is None else f", {held} left out and validated on"
    head = f"""# 1/{part} of the labelled training area in fixed windows, the rest as imagery without labels. Written by
# scripts/few_labels.py, seed {seed}{without}.
extends = "dataset.toml"
name = "{name}/{protocol}"
title = "{dataset.title}, 1/{part} of the labels{"" if held is None else f", without {held}"}"
"""
    return "\n".join([head, *entries])


def few(region: Region, part: int, rng: np.random.Generator) -> Iterator[Window]:
    """Windows with 1 / `part` of a region: the first cells of a shuffled grid."""
    whole = region.window
    if whole is None:
        grid = describe(region.scene.image).grid
        whole = Window(0, 0, grid.height, grid.width)
    count = 8 if min(whole.height, whole.width) // 8 >= LEAST else 4
    rows, cols = (np.linspace(0, n, count + 1).round().astype(int) for n in (whole.height, whole.width))
    for cell in sorted(rng.permutation(count**2)[: count**2 // part]):
        r, c = divmod(int(cell), count)
        row, col = int(rows[r]), int(cols[c])
        yield Window(whole.row + row, whole.col + col, int(rows[r + 1]) - row, int(cols[c + 1]) - col)


def entry(scene: str, split: str, use: str, window: Window | None) -> str:
    """Write one window of a descriptor."""
    lines = ["[[windows]]", f'scene = "{scene}"', f'split = "{split}"', f'use = "{use}"']
    if window is not None:
        lines.append(f"window = [{window.row}, {window.col}, {window.height}, {window.width}]")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run_script(main)
