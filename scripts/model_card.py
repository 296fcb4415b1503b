"""What a model card says about memory: losses seen and unseen, and whether samples copy training tiles.

    python scripts/model_card.py landcover dubai

The result is appended to scripts/results/NAME_card.md, with the numbers in NAME_card.json, NAME being the prior's.

(a) The denoising loss on tiles of the training split and of the validation split: the labels' cross-entropy (nats per
pixel, sampling tilt off) given the image, and the image's velocity error, both at several times; mean and standard
error over tiles. Validation tiles come from other places, so the gap holds the change of place as well as memory.
The labels' loss falls with t_labels where the path uses what it is told; on held-out tiles it shows whether the path
does harm by correcting, from the image alone, what it should leave to the labels.

(b) The nearest training tile of drawn samples. A tile is averaged to 16 x 16 pixels, freed of its mean by band and
scaled to length 1; the distance is 1 - correlation. It is sought at every place (to half a small pixel, 4 pixels of a
tile of 128), at nine scales from 0.5 to 2, which are those that training cuts at, in all eight turns and flips, by
template matching. Two yardsticks: validation tiles, which cannot be copies, and augmented tiles as training draws them,
which are copies by construction. A sample is called memorised if it is nearer than all but 5 % of the validation tiles;
the share of the augmented tiles that would be called so is the power of the test. A PNG of sample | nearest goes into
--sheets, which git must ignore.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray

from segprior.checkpoint import Prior, load_prior
from segprior.data import Dataset, load_dataset
from segprior.errors import DatasetError, SettingError
from segprior.picture import Panel, panels
from segprior.plots import Plot, read_plots
from segprior.prior.joint import UNLABELLED, Times
from segprior.provenance import commit
from segprior.samples import Drawing, draw_sample
from segprior.target import replacing
from segprior.terminal import run_script
from segprior.tiles import TilePool

RESULTS = Path(__file__).parent / "results"
SMALL = 16
"""Side in pixels to which tiles are averaged before they are compared."""
BANDS = 4
"""Bands that are compared at most: as many as OpenCV matches at once."""
SCALES = tuple(2.0 ** (n / 4) for n in range(-4, 5))
FLAT = 4.0
"""Contrast in grey levels below which a tile is not scaled to length 1: two calm waters are not one place."""
FALSE_ALARMS = 0.05
"""Share of the validation tiles that the test may call memorised."""
LEVELS = (
    ("label cross-entropy", 0.0, 1.0),
    ("label cross-entropy", 0.0, 0.9),
    ("label cross-entropy", 0.0, 0.7),
    ("label cross-entropy", 0.0, 0.4),
    ("image velocity error", 0.2, 1.0),
    ("image velocity error", 0.5, 1.0),
    ("image velocity error", 0.8, 1.0),
)
"""What is measured at which (t_image, t_labels)."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """For every query: distance to the nearest training tile, and that tile as it was cut and scaled."""

    distance: Floats
    tiles: list[Pixels]


def main(
    prior: Annotated[str, typer.Argument(help="buildings, landcover, or a prior's file")],
    dataset: Annotated[str, typer.Argument(help="the data set it was trained on")],
    *,
    tiles: Annotated[int, typer.Option(help="tiles of each split")] = 64,
    samples: Annotated[int, typer.Option(help="samples to draw")] = 16,
    tile: Annotated[int, typer.Option(help="side of a tile in pixels, a multiple of 32")] = 128,
    seed: Annotated[int, typer.Option(help="seed of tiles, noise and samples")] = 0,
    sheets: Annotated[Path, typer.Option(help="folder of the picture, ignored by git")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Measure what a prior remembers and append it to its card."""
    began = time.perf_counter()
    loaded, data = load_prior(prior), load_dataset(dataset)
    sheets.mkdir(parents=True, exist_ok=True)
    check_ignored(sheets)
    loaded.denoiser.log_tilt.zero_()  # tiles are drawn evenly here
    train, val = (read_plots(data, split, "pairs") for split in ("train", "val"))
    if not val:
        raise DatasetError(f"wanted labelled scenes in the split 'val' of {data.name}, found none")
    losses = {name: denoising(loaded, plots, tiles, tile, seed) for name, plots in (("train", train), ("val", val))}
    every = (*train, *read_plots(data, "train", "images"))
    memory = remembered(loaded, data, every, val, count=(samples, tiles), tile=tile, seed=seed, to=sheets)
    table = {
        "prior": loaded.card.name,
        "dataset": data.name,
        "commit": commit(Path(__file__)),
        "seed": seed,
        "tiles": tiles,
        "tile": tile,
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "losses": losses,
        "memory": memory,
    }
    results.mkdir(parents=True, exist_ok=True)
    append(results, table)


def check_ignored(folder: Path) -> None:
    """Refuse a folder inside a git checkout that git does not ignore: imagery must not be committed."""
    answer = subprocess.run(["git", "check-ignore", "-q", "x.png"], cwd=folder, check=False, capture_output=True)
    if answer.returncode == 1:
        raise SettingError(f"wanted a folder for imagery that git ignores, got {folder}; take runs/ or one outside")


def cuts(plots: Sequence[Plot], count: int, side: int, rng: np.random.Generator) -> Iterator[tuple[Plot, slice, slice]]:
    """Cut `count` tiles at random places, plots in proportion to their area."""
    fitting = [p for p in plots if min(p.shape) >= side and p.image is not None]
    if not fitting:
        raise DatasetError(f"wanted scenes of {side} working pixels a side or more, found none")
    shares = np.array([p.shape[0] * p.shape[1] for p in fitting], float)
    for _ in range(count):
        plot = fitting[rng.choice(len(fitting), p=shares / shares.sum())]
        row, col = (int(rng.integers(length - side + 1)) for length in plot.shape)
        yield plot, slice(row, row + side), slice(col, col + side)


@torch.no_grad()
def denoising(prior: Prior, plots: Sequence[Plot], count: int, side: int, seed: int) -> dict[str, dict[str, float]]:
    """Loss at every level: mean and standard error over tiles."""
    values: list[list[float]] = [[] for _ in LEVELS]
    for number, (plot, rows, cols) in enumerate(cuts(plots, count, side, np.random.default_rng([seed, 1]))):
        assert plot.image is not None  # noqa: S101  # `cuts` takes care
        assert plot.index is not None  # noqa: S101  # the use is `pairs`
        image = prior.card.normalise(plot.image[rows, cols].transpose(2, 0, 1))[None]
        index = torch.from_numpy(plot.index[rows, cols])[None]
        x_0 = prior.denoiser.layout.join(image, prior.denoiser.layout.encode(index))
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))
        for found, (what, t_image, t_labels) in zip(values, LEVELS, strict=True):
            times = Times(
                image.new_full((1, 1, side, side), t_image), torch.where(index == UNLABELLED, 1.0, t_labels)[:, None]
            )
            x_t = prior.denoiser.schedule.add_noise(x_0, eps, prior.denoiser.layout.spread(times))
            loss = prior.denoiser.loss(prior.denoiser.predict(x_t, times), image, index, times)
            if what == "image velocity error":
                found.append(float(loss.image))
            elif bool((index != UNLABELLED).any()):
                found.append(float(loss.labels))
    return {
        f"{what}, t_image {t_image}, t_labels {t_labels}": {
            "mean": float(np.mean(found)),
            "standard_error": float(np.std(found, ddof=1) / len(found) ** 0.5),
        }
        for found, (what, t_image, t_labels) in zip(values, LEVELS, strict=True)
    }


def remembered(
    prior: Prior,
    dataset: Dataset,
    train: Sequence[Plot],
    val: Sequence[Plot],
    *,
    count: tuple[int, int],
    tile: int,
    seed: int,
    to: Path,
) -> dict[str, Any]:
    """Distances of samples, validation tiles and augmented training tiles to their nearest training tiles."""
    drawing = Drawing(size=(tile, tile), seed=seed)
    drawn = [draw_sample(prior, n, drawing=drawing).image.transpose(1, 2, 0) for n in range(count[0])]
    rng = np.random.default_rng([seed, 2])
    unseen = [p.image[rows, cols] for p, rows, cols in cuts(val, count[1], tile, rng) if p.image is not None]
    pool = TilePool(train, classes=len(dataset.legend), size=tile, bands=len(dataset.bands))
    copies = [pool.draw(rng).image for _ in range(count[1])]
    found = nearest([*drawn, *unseen, *copies], train, tile=tile)
    ends = np.cumsum([len(drawn), len(unseen)])
    of_samples, of_unseen, of_copies = np.split(found.distance, ends)
    limit = float(np.quantile(of_unseen, FALSE_ALARMS))
    sheet(to / f"{prior.card.name}_nearest.png", drawn, found)
    return {
        "samples": [round(float(v), 4) for v in of_samples],
        "unseen_quantiles": quantiles(of_unseen),
        "copies_quantiles": quantiles(of_copies),
        "limit": round(limit, 4),
        "ratio_of_medians": round(float(np.median(of_samples) / np.median(of_unseen)), 3),
        "least_ratio": round(float(of_samples.min() / np.median(of_unseen)), 3),
        "memorised": int((of_samples < limit).sum()),
        "power": round(float((of_copies < limit).mean()), 3),
    }


def nearest(queries: Sequence[Pixels], plots: Sequence[Plot], *, tile: int) -> Nearest:
    """Find the nearest training tile of every query, over places, scales, turns and flips."""
    templates = [[described(shape) for shape in turns(small(q))] for q in queries]
    best = np.full(len(queries), -np.inf, np.float32)
    tiles = [np.zeros((SMALL, SMALL, queries[0].shape[2]), np.uint8)] * len(queries)
    for plot, scale in ((p, s) for p in plots for s in SCALES if p.image is not None):
        side = round(tile / scale)
        # the same plot twice, half a small pixel apart
        for shift in sorted({0, side // (2 * SMALL)}):
            field = averaged(plot, shift, side)
            if min(field.shape[:2]) < SMALL:
                continue
            length = lengths(field)
            for query, shapes in enumerate(templates):
                match = np.max([cv2.matchTemplate(field, shape, cv2.TM_CCORR) for shape in shapes], axis=0) / length
                row, col = np.unravel_index(match.argmax(), match.shape)
                if match[row, col] > best[query]:
                    best[query] = match[row, col]
                    tiles[query] = crop(plot, (int(row), int(col)), shift, side)
    if not np.isfinite(best).all():
        raise DatasetError(f"wanted training scenes of {tile} working pixels a side or more, found none")
    return Nearest(1.0 - best, tiles)


def averaged(plot: Plot, shift: int, side: int) -> Floats:
    """Average a plot's image, less its first `shift` rows and columns, so that `side` pixels become SMALL."""
    assert plot.image is not None  # noqa: S101  # plots are chosen so
    image = plot.image[shift:, shift:, :BANDS]
    rows, cols = (max(1, round(n * SMALL / side)) for n in image.shape[:2])
    small = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).reshape(rows, cols, -1)


def lengths(field: Floats) -> Floats:
    """Length of every tile (SMALL, SMALL, bands) of a field, free of its mean, but at least that of a FLAT one."""
    count = SMALL * SMALL
    inside = (slice(0, field.shape[0] - SMALL + 1), slice(0, field.shape[1] - SMALL + 1))
    sums, squares = (
        f(field, cv2.CV_64F, (SMALL, SMALL), anchor=(0, 0), normalize=False).reshape(field.shape)[inside]
        for f in (cv2.boxFilter, cv2.sqrBoxFilter)
    )
    square = (squares - sums**2 / count).sum(axis=2)
    least = FLAT * (count * field.shape[2]) ** 0.5
    return np.asarray(np.sqrt(np.maximum(square, least**2)), np.float32)


def crop(plot: Plot, at: tuple[int, int], shift: int, side: int) -> Pixels:
    """Cut the tile of a plot's image that stands at `at` in its average."""
    assert plot.image is not None  # noqa: S101  # plots are chosen so
    row, col = (min(round(n * side / SMALL) + shift, length - side) for n, length in zip(at, plot.shape, strict=True))
    return plot.image[row : row + side, col : col + side]


def small(image: Pixels) -> Floats:
    """Average an image (side, side, bands) to (SMALL, SMALL, bands)."""
    shrunk = cv2.resize(image[..., :BANDS], (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    return shrunk.astype(np.float32).reshape(SMALL, SMALL, -1)


def turns(image: Floats) -> Iterator[Floats]:
    """Give the eight turns and flips of (side, side, bands)."""
    for quarter in range(4):
        turned = np.rot90(image, quarter)
        yield turned
        yield turned[:, ::-1]


def described(image: Floats) -> Floats:
    """(SMALL, SMALL, bands) to length 1 without the mean of each band; a FLAT one gets shorter than that."""
    centred = image - image.mean(axis=(0, 1), keepdims=True)
    scaled: Floats = centred / max(float(np.linalg.norm(centred)), FLAT * centred.size**0.5)
    return np.ascontiguousarray(scaled)


def quantiles(values: Floats) -> dict[str, float]:
    """Least, 5 %, median and greatest."""
    return {str(q): round(float(np.quantile(values, q)), 4) for q in (0, 0.05, 0.5, 1)}


def sheet(path: Path, drawn: Sequence[Pixels], found: Nearest) -> None:
    """Draw sample | nearest training tile."""
    items = []
    for number, (sample, tile) in enumerate(zip(drawn, found.tiles, strict=False)):
        shown = cv2.resize(tile[..., :3], sample.shape[:2], interpolation=cv2.INTER_AREA)
        for title, image in ((f"sample {number}", sample), (f"nearest, {found.distance[number]:.2f}", shown)):
            colours = image[..., :3] if image.shape[-1] >= 3 and image.ndim == 3 else np.dstack([image[..., :1]] * 3)
            items.append(Panel(title, np.ascontiguousarray(colours, np.uint8)))
    panels(path, items, None, columns=min(6, len(items)), overwrite=True)


def append(folder: Path, table: dict[str, Any]) -> None:
    """Add a section to the card and a record to its JSON."""
    card, record = (folder / f"{table['prior']}_card.{kind}" for kind in ("md", "json"))
    before = card.read_text(encoding="utf-8") + "\n" if card.exists() else ""
    records = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    text = section(table)
    for path, content in ((card, before + text), (record, json.dumps([*records, table], indent=1) + "\n")):
        with replacing(path, overwrite=True) as fresh:
            fresh.write_text(content, encoding="utf-8")
    print(text)


def section(table: dict[str, Any]) -> str:
    """Put the measurements into words and tables."""
    losses, memory = table["losses"], table["memory"]
    rows = [f"| {name} | {value(losses['train'][name])} | {value(losses['val'][name])} |" for name in losses["train"]]
    spread = {
        name: " | ".join(f"{v:.2f}" for v in memory[f"{name}_quantiles"].values()) for name in ("unseen", "copies")
    }
    drawn = " | ".join(f"{v:.2f}" for v in quantiles(np.array(memory["samples"], np.float32)).values())
    # of 16 samples 5 % is one: as many as held-out tiles are called so by chance
    called = "memorised" if memory["memorised"] > 2 * FALSE_ALARMS * len(memory["samples"]) else "not memorised"
    return f"""## What {table["prior"]} remembers of {table["dataset"]}

Made by `scripts/model_card.py` at commit {table["commit"]}, seed {table["seed"]}, in {table["seconds"]:.0f} s with
{table["threads"]} threads.

Denoising loss on {table["tiles"]} tiles of {table["tile"]} pixels of each split (mean and standard error over tiles,
which share scenes; validation tiles show other places, so the gap is not memory alone):

| loss | training | held out |
|---|---|---|
{chr(10).join(rows)}

Distance (1 - correlation) to the nearest training tile, over all places, nine scales, eight turns and flips:

| tiles | least | 5 % | median | greatest |
|---|---|---|---|---|
| samples of the prior ({len(memory["samples"])}) | {drawn} |
| held-out tiles | {spread["unseen"]} |
| augmented training tiles, copies by construction | {spread["copies"]} |

- Ratio to the median of the held-out tiles: samples' median {memory["ratio_of_medians"]:.2f}, nearest sample
  {memory["least_ratio"]:.2f}.
- Nearer than all but {100 * FALSE_ALARMS:.0f} % of the held-out tiles ({memory["limit"]:.2f}): {memory["memorised"]} of
  {len(memory["samples"])} samples, so **{called}**.
- The same limit finds {100 * memory["power"]:.0f} % of the copies.
"""


def value(stated: dict[str, float]) -> str:
    """Mean and standard error."""
    return f"{stated['mean']:.4f} ± {stated['standard_error']:.4f}"


if __name__ == "__main__":
    run_script(main)
