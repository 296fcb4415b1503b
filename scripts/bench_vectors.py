"""Time and peak memory of `export` against rasterio.features.shapes with geopandas.

    python scripts/bench_vectors.py

Makes a class raster of `--size` x `--size` pixels, five classes in blobs of some ten pixels, and writes its polygons to
a GeoPackage in several ways, each in a process of its own. The reference reads the whole raster, takes
`rasterio.features.shapes` (4-connected) and writes a GeoDataFrame of its geometries and values; `export` besides
measures every polygon's area on the ellipsoid. Peak memory is that of the process, less that of one that has only
imported the same things. The table goes to scripts/results/bench_vectors.md; ratios are to the reference of that run.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import geopandas
import numpy as np
import rasterio
import shapely
import typer
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import shapes
from scipy import ndimage

from segprior.findings import publish
from segprior.geotiff import write_classes
from segprior.legend import Legend, LegendClass
from segprior.provenance import commit
from segprior.raster import Grid
from segprior.terminal import run_script
from segprior.vector import Tracing, export

RESULTS = Path(__file__).parent / "results"
BAND = 500
WAYS = {
    "shapes + geopandas": None,
    "export": Tracing(),
    "export --min-area 20 --fill": Tracing(min_area=20.0, fill=True),
}
SIMPLIFIED = {
    "export --simplify 1": Tracing(simplify=1.0),
    "export --min-area 20 --fill --simplify 1": Tracing(min_area=20.0, fill=True, simplify=1.0),
}
"""Only with --simplified: minutes each."""


def main(
    *,
    size: Annotated[int, typer.Option(help="rows and columns of the raster")] = 10_000,
    simplified: Annotated[bool, typer.Option("--simplified", help="measure --simplify too")] = False,
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
    way: Annotated[str | None, typer.Option(help="measure this way alone, or 'imports', and print it")] = None,
    raster: Annotated[Path | None, typer.Option(help="the raster, with --way")] = None,
) -> None:
    """Measure ways to write polygons."""
    if way is not None:
        print(json.dumps(measured(way, raster)))
        return
    with TemporaryDirectory(prefix="segprior-vectors-") as place:
        path = Path(place) / "classes.tif"
        make(path, size)
        runs = {}
        for name in ("imports", *WAYS, *(SIMPLIFIED if simplified else ())):
            command = [sys.executable, __file__, "--way", name, "--raster", str(path)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[name] = json.loads(answer)
            print(name, runs[name], flush=True)
    write(results, runs, size)


def make(path: Path, size: int) -> None:
    """Write the raster: blobs from one smooth field of noise, repeated with mirrors, and specks on it."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal((1000, 1000)), 6, mode="wrap")
    tile = np.digitize(smooth, np.quantile(smooth, (0.2, 0.45, 0.7, 0.9))).astype(np.uint8)
    specks = rng.random(tile.shape) < 0.002
    tile[specks] = rng.integers(0, 5, specks.sum())
    row = np.tile(np.concatenate([tile, tile[:, ::-1]], axis=1), (1, -(-size // 2000)))[:, :size]
    legend = Legend(tuple(LegendClass(f"class {n}", n, (50 * n, 99, 9)) for n in range(5)))
    grid = Grid(size, size, Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), CRS.from_epsg(32645))
    strips = ((first, row[first % 1000 : first % 1000 + BAND][: size - first]) for first in range(0, size, BAND))
    write_classes(path, grid, legend, strips)


def measured(way: str, raster: Path | None) -> dict[str, float | int]:
    """Seconds, polygons and peak memory of this process in bytes."""
    began, count = time.perf_counter(), 0
    if way != "imports" and raster is not None:
        target = raster.with_name(f"{way}.gpkg")
        tracing = {**WAYS, **SIMPLIFIED}[way]
        count = plain(raster, target) if tracing is None else export(raster, target, tracing)
    peak = peak_bytes()
    return {"seconds": round(time.perf_counter() - began, 1), "polygons": count, "peak_bytes": peak}


def plain(raster: Path, target: Path) -> int:
    """Write the polygons as one would without segprior."""
    with rasterio.open(raster) as dataset:
        values, mask = dataset.read(1), dataset.dataset_mask() > 0
        found = [(shapely.geometry.shape(g), int(v)) for g, v in shapes(values, mask, 4, dataset.transform)]
        crs = dataset.crs
    frame = geopandas.GeoDataFrame({"value": [v for _, v in found]}, geometry=[g for g, _ in found], crs=crs)
    frame.to_file(target)
    return len(frame)


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux); getrusage would tell that of the process it was forked from too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def write(results: Path, runs: dict[str, dict[str, Any]], size: int) -> None:
    """Put the table into words."""
    base = runs["imports"]["peak_bytes"]
    least = runs["shapes + geopandas"]
    rows = [
        f"| {name} | {run['polygons']} | {run['seconds']:.0f} | {run['seconds'] / max(0.1, least['seconds']):.2f} "
        f"| {(run['peak_bytes'] - base) / 2**30:.2f} "
        f"| {(run['peak_bytes'] - base) / (least['peak_bytes'] - base):.2f} |"
        for name, run in runs.items()
        if name != "imports"
    ]
    text = f"""# Polygons of a class raster of {size} x {size} pixels

Made by `scripts/bench_vectors.py` at commit {commit(Path(__file__))}: five classes, half a metre a pixel, GeoPackage.
Memory is the peak above that of the imports ({base / 2**30:.2f} GiB).

| way | polygons | seconds | to the first | memory, GiB | to the first |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
    publish(results / "bench_vectors", text, runs)
    print(text)


if __name__ == "__main__":
    run_script(main)
