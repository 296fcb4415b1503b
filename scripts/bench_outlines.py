"""What smoothing and right angles do to building outlines: IoU with the true labels before and after.

    python scripts/bench_outlines.py fair --prior buildings --class building

The scenes of the validation split are segmented by the default solver and traced in several ways; the polygons are
drawn again on the scene's grid (pixel centres) and compared with the labels: IoU of the class, number of polygons and
of their corners. Pixels without a label do not count.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import rasterio
import shapely
import typer
from rasterio.features import rasterize

from segprior.data import load_dataset
from segprior.errors import DatasetError
from segprior.findings import publish
from segprior.geotiff import crop
from segprior.options import Options
from segprior.provenance import commit
from segprior.scene import open_scene
from segprior.segmentation import segment
from segprior.terminal import counted, run_script
from segprior.vector import Tracing, polygons
from segprior.windows import Window

RESULTS = Path(__file__).parent / "results"


def main(
    dataset: Annotated[str, typer.Argument(help="fair, or a dataset.toml whose scenes have a place")],
    *,
    prior: Annotated[str, typer.Option(help="buildings, or a prior's file")] = "buildings",
    kind: Annotated[str, typer.Option("--class", help="the class to trace")] = "building",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Compare ways to trace and write bench_outlines.md and .json."""
    d = load_dataset(dataset)
    regions = d.select("val", "pairs")
    if not regions:
        raise DatasetError(f"wanted labelled scenes in the split 'val' of {d.name}, found none")
    value = d.legend.values[d.legend.index(kind)]
    ways = {
        "pixels": Tracing(),
        "--min-area 5 --fill": Tracing(min_area=5.0, fill=True),
        "... --simplify 0.6": Tracing(min_area=5.0, fill=True, simplify=0.6),
        f"... --regularize {kind}": Tracing(min_area=5.0, fill=True, regularize=(kind,)),
        f"... --regularize {kind} --simplify 0.6": Tracing(min_area=5.0, fill=True, regularize=(kind,), simplify=0.6),
        f"... --regularize {kind} --simplify 1.5": Tracing(min_area=5.0, fill=True, regularize=(kind,), simplify=1.5),
    }
    totals = {name: np.zeros(4, np.int64) for name in ways}
    with (
        TemporaryDirectory(prefix="segprior-outlines-") as place,
        counted("tracing", "scenes", len(regions)) as advance,
    ):
        for number, region in enumerate(regions):
            with open_scene(region.scene.image, res=d.res) as scene:
                window = region.window or Window(0, 0, scene.grid.height, scene.grid.width)
            image, labels, mask = (Path(place) / f"{number}-{name}.tif" for name in ("image", "labels", "mask"))
            crop(region.scene.image, window, image)
            crop(str(region.scene.labels), window, labels)
            segment(image, mask, prior=prior, options=Options(res=region.scene.pixel_res))
            with rasterio.open(labels) as source:
                truth = source.read(1)
            for name, tracing in ways.items():
                totals[name] += compared(mask, tracing, kind, truth == value, truth != d.legend.nodata)
            advance()
    write(results, {name: row(total) for name, total in totals.items()}, d.name, prior, kind)


def compared(mask: Path, tracing: Tracing, kind: str, truth: Any, told: Any) -> Any:
    """Pixels in both, in one or both; polygons; corners."""
    frame = polygons(mask, tracing)
    outlines = frame[frame["class"] == kind].geometry
    with rasterio.open(mask) as grid:
        drawn = np.zeros(grid.shape, bool)
        if len(outlines):
            drawn = rasterize(outlines, out_shape=grid.shape, transform=grid.transform) > 0
    both, either = (drawn & truth & told).sum(), ((drawn | truth) & told).sum()
    return np.array([both, either, len(outlines), shapely.get_num_coordinates(np.asarray(outlines)).sum()])


def row(total: Any) -> dict[str, float]:
    """Scores of a way."""
    return {"iou": total[0] / max(1, total[1]), "polygons": int(total[2]), "corners": int(total[3])}


def write(results: Path, rows: dict[str, dict[str, float]], dataset: str, prior: str, kind: str) -> None:
    """Put the table into words."""
    lines = [f"| {name} | {r['iou']:.4f} | {r['polygons']} | {r['corners']} |" for name, r in rows.items()]
    text = f"""# Outlines of {kind}, before and after

Made by `scripts/bench_outlines.py` at commit {commit(Path(__file__))}: {dataset}, validation split, prior {prior}, the
default solver.

| way | IoU with the labels | polygons | corners |
|---|---|---|---|
{chr(10).join(lines)}
"""
    publish(results / "bench_outlines", text, rows)
    print(text)


if __name__ == "__main__":
    run_script(main)
