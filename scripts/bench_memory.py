"""Peak memory of `segment` on rasters of growing height.

    python scripts/bench_memory.py

Makes a three-band raster of `--width` columns for every height, repeating one noisy block, and segments it with five
classes, confidence included. The network is replaced by a stub that answers from the image's colours, so what is left
is what segprior itself holds: windows, blended sums, strips, files. Each run is a process of its own; its peak resident
memory is compared with that of a process that has only imported segprior and loaded the prior (the network's share).
The table goes to scripts/results/bench_memory.md. The reference of the ratios is the least height.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import rasterio
import typer
from affine import Affine

from segprior.checkpoint import load_prior
from segprior.findings import publish
from segprior.inference import Job, open_for
from segprior.mosaic import Tile
from segprior.options import Options
from segprior.provenance import commit
from segprior.segmentation import segment
from segprior.terminal import run_script

RESULTS = Path(__file__).parent / "results"
CLASSES = 5
BLOCK = 512


def main(
    *,
    heights: Annotated[str, typer.Option(help="rows of the rasters")] = "5000,15000,30000",
    width: Annotated[int, typer.Option(help="columns of the rasters")] = 30000,
    probabilities: Annotated[bool, typer.Option(help="write the probabilities too")] = False,
    res: Annotated[float, typer.Option(help="metres of a pixel; the prior works at 1 m")] = 1.0,
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
    one: Annotated[int | None, typer.Option(help="measure this height alone, 0 for imports, and print it")] = None,
    folder: Annotated[Path | None, typer.Option(help="of the rasters, with --one")] = None,
) -> None:
    """Measure peak memory against the height of a raster."""
    if one is not None:
        print(json.dumps(measured(one, width, res, folder, probabilities=probabilities)))
        return
    with TemporaryDirectory(prefix="segprior-memory-") as place:
        runs = []
        for height in (0, *map(int, heights.split(","))):
            if height:
                make(Path(place) / f"{height}.tif", height, width, res)
            options = ("--one", height, "--width", width, "--res", res, "--folder", place)
            more = ["--probabilities"] if probabilities else []
            command = [sys.executable, __file__, *map(str, options), *more]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append({"height": height, **json.loads(answer)})
            print(runs[-1], flush=True)
    write(results, runs, width, res, probabilities=probabilities)


def make(path: Path, height: int, width: int, res: float) -> None:
    """Write a raster that repeats one noisy block."""
    block = np.random.default_rng(0).integers(0, 255, (3, BLOCK, BLOCK), dtype=np.uint8)
    row = np.tile(block, (1, 1, -(-width // BLOCK)))[:, :, :width]
    profile = {"crs": "EPSG:32645", "transform": Affine(res, 0, 300_000, 0, -res, 3_000_000)}
    tiled = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "if_safer"}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", **profile, **tiled
    ) as target:
        for first in range(0, height, BLOCK):
            rows = min(BLOCK, height - first)
            target.write(row[:, :rows], window=rasterio.windows.Window(0, first, width, rows))


def measured(
    height: int, width: int, res: float, folder: Path | None, *, probabilities: bool
) -> dict[str, float | int]:
    """Peak memory of this process in bytes, and seconds."""
    began = time.perf_counter()
    card = load_prior("landcover").card
    if height:
        assert folder is not None  # noqa: S101  # `main` gives it
        image, out = folder / f"{height}.tif", folder / f"{height}-mask.tif"
        extra: dict[str, Any] = {"confidence": folder / f"{height}-sure.tif"}
        if probabilities:
            extra["probabilities"] = folder / f"{height}-shares.tif"

        def stub(function: Callable[[Job], list[Tile]], jobs: Iterable[Job], /) -> Iterator[list[Tile]]:
            del function  # what `solve` would compute with the network
            for job in jobs:
                yield answers(job)

        def answers(job: Job) -> list[Tile]:
            with open_for(job.image, card, job.options) as scene:
                read = [(window, *scene.read(window)) for window in job.windows]
            return [Tile(window, softened(pixels), valid) for window, pixels, valid in read]

        segment(image, out, prior="landcover", options=Options(), map=stub, **extra)
    peak = peak_bytes()
    return {"peak_bytes": peak, "seconds": round(time.perf_counter() - began, 1)}


def softened(image: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make five shares of three colours."""
    raw = np.concatenate([image, 255 - image[:2]]) + 1
    shares: np.ndarray[Any, np.dtype[np.float32]] = raw / raw.sum(axis=0)
    return shares


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux); getrusage would tell that of the process it was forked from too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def write(results: Path, runs: list[dict[str, Any]], width: int, res: float, *, probabilities: bool) -> None:
    """Put the table into words."""
    base, least = runs[0]["peak_bytes"], max(1, runs[1]["peak_bytes"] - runs[0]["peak_bytes"])
    rows = [
        f"| {run['height']} | {run['peak_bytes'] / 2**30:.2f} | {(own := run['peak_bytes'] - base) / 2**30:.2f} | "
        f"{own / least:.2f} | {run['seconds']:.0f} |"
        for run in runs[1:]
    ]
    written = "confidence and probabilities" if probabilities else "confidence"
    text = f"""# Peak memory of `segment`

Made by `scripts/bench_memory.py` at commit {commit(Path(__file__))}: rasters of {width} columns, three bands,
{CLASSES} classes, pixels of {res:g} m for a prior of 1 m, {written} written too, a stub instead of the
network. A process that has imported segprior and loaded the prior holds {base / 2**30:.2f} GiB.

| rows | peak, GiB | above imports and prior, GiB | times the least height | seconds |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
    publish(results / "bench_memory", text, runs)
    print(text)


if __name__ == "__main__":
    run_script(main)
