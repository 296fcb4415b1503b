"""Make synthetic hints from true labels: class shares over blocks, every fifth of them told the scene's shares.

    python scripts/make_hints.py fair/newregion -o runs/hints --cell 8 --split val --split test
    segprior segment scene.tif -o mask.tif --prior buildings --hint 'runs/hints/{stem}.tif'

Real hints (NLCD, census, crop statistics) are coarser, wrong in other ways, and not made from the answer: what these
help is a bound, not a promise. Blocks are about `--cell` metres wide (pixels of the source where a file has no CRS),
and cover every scene whole, whichever part of it is in the split. Which fifth is spoiled is seeded by `--seed` and the
scene's name. The result is, for every scene, a GeoTIFF with a band of shares for every class, named as its image, and
the shares of the whole scene as TOML for --shares; and a table of what the hints are worth alone: spread over their
blocks and decided, on the regions of each split.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from affine import Affine
from numpy.typing import NDArray

from segprior.counts import Counter, Counts, joined
from segprior.data import Dataset, Region, Scene, Split, load_dataset, split_named
from segprior.errors import SettingError
from segprior.evaluate import SCORES
from segprior.findings import bounds, publish
from segprior.geotiff import band_writer
from segprior.provenance import commit
from segprior.raster import Grid, describe, open_raster, read_window
from segprior.target import replacing
from segprior.terminal import counted, run_script
from segprior.windows import Window

RESULTS = Path(__file__).parent / "results"
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1"}
SPOILED = 5
"""Every so manieth block is told the scene's shares."""


def main(
    dataset: Annotated[str, typer.Argument(help="fair, dubai, a protocol, or a dataset.toml")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="an existing folder for the hints")],
    cell: Annotated[float, typer.Option(help="width of a block in metres, or pixels where there is no CRS")],
    split: Annotated[list[str] | None, typer.Option(help="splits whose scenes get hints; may be repeated")] = None,
    seed: Annotated[int, typer.Option(help="seed of the blocks that are spoiled")] = 0,
    results: Annotated[Path, typer.Option(help="folder of the table")] = RESULTS,
) -> None:
    """Write hints of the scenes of some splits, and what they are worth alone."""
    if not cell > 0:
        raise SettingError(f"wanted a cell above 0, got {cell}")
    data, splits = load_dataset(dataset), [split_named(name) for name in split or ["val"]]
    regions = {name: data.select(name, "pairs") for name in splits}
    scenes = {region.scene.name: region.scene for name in splits for region in regions[name]}
    made = {}
    with counted("hints", "scenes", len(scenes)) as advance:
        for name, scene in scenes.items():
            made[name] = hint(data, scene, cell, [seed, zlib.crc32(name.encode())], output)
            advance()
    worth = {
        name: joined([alone(data, region, made[region.scene.name]) for region in chosen])
        for name, chosen in regions.items()
    }
    stem = "_".join(["hints", *data.name.split("/")])
    write(results / stem, worth, {"dataset": data.name, "cell": cell, "seed": seed, "commit": commit(Path(__file__))})


def hint(data: Dataset, scene: Scene, cell: float, seed: list[int], folder: Path) -> NDArray[np.float32]:
    """Write the hint of a scene; its shares (classes, blocks down, blocks across)."""
    if scene.labels is None:
        raise SettingError(f"wanted labels of {scene.name}, it has none")
    grid = describe(scene.labels).grid
    native = grid.res or (1.0, 1.0)
    high, wide = (max(1, round(n * s / cell)) for n, s in zip((grid.height, grid.width), native, strict=True))
    index = labels(data, scene, Window(0, 0, grid.height, grid.width))
    block = blocks(grid.height, high)[:, None] * wide + blocks(grid.width, wide)
    there = index < len(data.legend)
    count = np.zeros((high * wide, len(data.legend)))
    np.add.at(count, (block[there], index[there]), 1)
    mean = count.sum(axis=0) / count.sum()
    shares = np.where(
        count.sum(axis=1, keepdims=True) > 0, count / np.maximum(1, count.sum(axis=1, keepdims=True)), mean
    )
    shares[np.random.default_rng(seed).permutation(len(shares))[: len(shares) // SPOILED]] = mean
    bands: NDArray[np.float32] = shares.T.reshape(-1, high, wide).astype(np.float32)
    transform = grid.transform @ Affine.scale(grid.width / wide, grid.height / high)
    outline = Grid(high, wide, transform if grid.crs else Affine.identity(), grid.crs)
    told = "".join(f"{name} = {share:.6f}\n" for name, share in zip(data.legend.names, mean, strict=True))
    with replacing(folder / f"{scene.image.stem}.toml", overwrite=True) as fresh:
        fresh.write_text(f"[shares]\n{told}", encoding="utf-8")
    with band_writer(folder / f"{scene.image.stem}.tif", outline, data.legend.names, overwrite=True) as put:
        put(0, bands)
    return bands


def labels(data: Dataset, scene: Scene, window: Window) -> NDArray[np.uint8]:
    """Class indices of a window of a scene."""
    assert scene.labels is not None  # noqa: S101  # hint() has asked
    with open_raster(scene.labels) as source:
        values, known = read_window(source, window, bands=(1,))
        known |= source.nodata in data.legend.values  # many tools tag rasters without regard to classes
    found: NDArray[np.uint8] = data.legend.to_index(np.where(known, values[0], data.legend.nodata))
    return found


def blocks(length: int, count: int) -> NDArray[np.int64]:
    """The block of every pixel of a side."""
    return (np.arange(length) * count // length).astype(np.int64)


def alone(data: Dataset, region: Region, shares: NDArray[np.float32]) -> Counts:
    """Count the hint of a region, spread over its blocks, against the truth."""
    assert region.scene.labels is not None  # noqa: S101  # its use is `pairs`
    grid = describe(region.scene.labels).grid
    window = region.window or Window(0, 0, grid.height, grid.width)
    rows, cols = (
        blocks(n, m)[part]
        for n, m, part in zip(
            (grid.height, grid.width), shares.shape[1:], (window.row_slice, window.col_slice), strict=True
        )
    )
    counter = Counter(len(rows), len(cols), classes=len(shares))
    counter.add(0, labels(data, region.scene, window), shares[:, rows[:, None], cols])
    told = region.scene.pixel_res
    native = (told, told) if told is not None else grid.res or (data.res, data.res)
    return counter.finish(pixel=native, tolerance=2 * data.res)


def write(stem: Path, worth: Mapping[Split, Counts], about: dict[str, Any]) -> None:
    """Put the table into words."""
    rows = {
        split: {title: bounds(counts, SCORES[key]) for key, title in SHOWN.items()} for split, counts in worth.items()
    }
    lines = [
        f"| {split} | {' | '.join(f'{v:.3f} ({low:.3f} to {high:.3f})' for v, low, high in row.values())} |"
        for split, row in rows.items()
    ]
    text = f"""# Hints of {about["dataset"]}, alone

Made by `scripts/make_hints.py` at commit {about["commit"]}: synthetic, from the true labels, as class shares over
blocks of {about["cell"]:g} (metres, or source pixels without a CRS), every fifth told the scene's shares, seed
{about["seed"]}. Here they are spread over their blocks and decided; 95 % intervals by a bootstrap over blocks of 128
pixels.

| split | {" | ".join(SHOWN.values())} |
|{"---|" * (len(SHOWN) + 1)}
{chr(10).join(lines)}
"""
    publish(stem, text, {**about, "splits": rows})
    print(text)


if __name__ == "__main__":
    run_script(main)
