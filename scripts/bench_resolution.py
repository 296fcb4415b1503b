"""Resolution shift: networks compared on imagery of other resolutions than they were trained at.

    python scripts/bench_resolution.py fair dubai --prior buildings --prior landcover \
        --opponent unet_fair_equal.safetensors --opponent unet_dubai_equal.safetensors

Two things are changed of the scenes of a split, each by a half and by two:

    detail    what the imagery resolves: 2x is pixels of half the working resolution, 0.5x of twice that. The image is
              averaged to such pixels and brought back to its own grid (cubic), so that the labels stay as they are;
              where it is no finer than asked it is left alone. The resolution is known, as it is of most rasters.
    scale     the size of things in pixels: the resolution is told wrongly, so that at 2x a building is twice as wide
              in what the network sees, as in a raster whose resolution nobody knows.

Both networks are asked once as they are, and once with three turns of the image. Differences are to the U-Net
in the same form under the same condition, with 95 % intervals by the paired block bootstrap of `segprior.counts`.
Boundaries count as met within two working pixels of the true resolution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import rasterio
import typer

from segprior.counts import Counts, joined
from segprior.data import Dataset, Region, load_dataset, split_named
from segprior.errors import SettingError
from segprior.evaluate import SCORES, evaluate_pair
from segprior.findings import bounds, points, publish
from segprior.geotiff import crop
from segprior.options import Options
from segprior.provenance import commit
from segprior.raster import describe, opening
from segprior.solvers import solver_named
from segprior.terminal import counted, run_script
from segprior.windows import Window

RESULTS = Path(__file__).parent / "results"
FACTORS = (2.0, 1.0, 0.5)
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE"}
"""Scores by their names in `segprior.evaluate`; the first two are shown."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What is changed, detail or scale, and by how much."""

    what: str
    factor: float

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.what} {self.factor:g}x"


CONDITIONS = (*(Condition("detail", f) for f in FACTORS), *(Condition("scale", f) for f in FACTORS if f != 1))


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    opponent: Annotated[list[str], typer.Option(help="a plain segmenter for each data set")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    label: Annotated[str, typer.Option(help="what to call the files besides the split")] = "",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Compare networks at other resolutions and write bench_resolution_SPLIT.md and .json."""
    if not len(datasets) == len(prior) == len(opponent):
        raise SettingError(f"wanted a prior and an opponent for each of {len(datasets)} data sets")
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own, other in zip(datasets, prior, opponent, strict=True):
        dataset = load_dataset(name)
        regions = dataset.select(split_named(split), "pairs")
        with counted(name, "conditions", len(CONDITIONS)) as advance:
            table[name] = {}
            for condition in CONDITIONS:
                table[name][condition.name] = compared(dataset, regions, condition, own, other)
                advance()
    networks = [f"{Path(own).stem} against {Path(other).stem}" for own, other in zip(prior, opponent, strict=True)]
    write(results, table, "_".join([split, *([label] if label else [])]), networks)


def compared(
    dataset: Dataset, regions: tuple[Region, ...], condition: Condition, own: str, other: str
) -> dict[str, dict[str, Any]]:
    """Scores of both networks in both forms, with what the prior has over the U-Net."""
    found: dict[str, list[Counts]] = {}
    # in metres as they are told
    tolerance = 2 * dataset.res * (condition.factor if condition.what == "scale" else 1.0)
    for region in regions:
        with scene_under(dataset, region, condition) as (image, labels, res):
            for form, turns in (("", 1), (", 3 turns", 3)):
                options = Options(solver=solver_named("fixed_point", turns=turns), res=res)
                for kind, network in (("U-Net", other), ("prior", own)):
                    result = evaluate_pair(
                        image, labels, prior=network, options=options, legend=dataset.legend, tolerance=tolerance
                    )
                    found.setdefault(kind + form, []).append(result.counts)
    counts = {way: joined(parts) for way, parts in found.items()}
    return {
        way: {
            title: [
                bounds(own_counts, SCORES[key]),
                bounds(own_counts, SCORES[key], counts[way.replace("prior", "U-Net")]),
            ]
            for key, title in SHOWN.items()
        }
        for way, own_counts in counts.items()
    }


@contextmanager
def scene_under(dataset: Dataset, region: Region, condition: Condition) -> Iterator[tuple[Path, Path, float | None]]:
    """Image and labels of a region under a condition, and the pixel size to be told (None: what the CRS says)."""
    scene = region.scene
    grid = describe(scene.image).grid
    if scene.labels is None:
        raise SettingError(f"wanted labels of {scene.name}, found none")
    pixel = scene.pixel_res
    true = pixel if pixel is not None else (grid.res or (dataset.res,) * 2)[0]
    with TemporaryDirectory() as folder:
        image, labels = (Path(folder) / name for name in ("image.tif", "labels.tif"))
        window = region.window or Window(0, 0, grid.height, grid.width)
        crop(scene.image, window, image)
        crop(scene.labels, window, labels)
        if condition.what == "scale":
            # things look `factor` times as wide where a pixel is told to be so many times as wide
            pixel = true * condition.factor
        else:
            blur(image, dataset.res / condition.factor / true)
        yield image, labels, pixel


def blur(path: Path, pixels: float) -> None:
    """Let a raster resolve no more than pixels that are `pixels` of its own wide."""
    if pixels <= 1.01:
        return
    with opening(), rasterio.open(path, "r+") as raster:
        values = raster.read().transpose(1, 2, 0)
        height, width = values.shape[:2]
        coarse = (max(1, round(width / pixels)), max(1, round(height / pixels)))
        small = cv2.resize(values, coarse, interpolation=cv2.INTER_AREA)
        raster.write(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1))


def write(results: Path, table: dict[str, dict[str, dict[str, Any]]], what: str, networks: list[str]) -> None:
    """Put the tables into words."""
    parts = []
    for (name, conditions), who in zip(table.items(), networks, strict=True):
        lines = [
            f"| {condition} | {way} | {' | '.join(f'{row[t][0][0]:.3f}' for t in SHOWN.values())} "
            f"| {points(row['mIoU'][1])} | {points(row['boundary F1'][1])} |"
            for condition, ways in conditions.items()
            for way, row in ways.items()
        ]
        head = f"| condition | network | {' | '.join(SHOWN.values())} | mIoU to the U-Net | boundary F1 to it |"
        parts.append(f"## {name}\n\nPrior {who}.\n\n{head}\n|{'---|' * (len(SHOWN) + 4)}\n" + "\n".join(lines) + "\n")
    text = f"""# Imagery of other resolutions, {what.replace("_", ", ")}

Made by `scripts/bench_resolution.py` at commit {commit(Path(__file__))}; the script tells what the conditions are. One
training of each network, one noise seed. Differences in points (hundredths), 95 % intervals by a bootstrap over blocks
of 128 pixels.

{chr(10).join(parts)}"""
    publish(results / f"bench_resolution_{what}", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
