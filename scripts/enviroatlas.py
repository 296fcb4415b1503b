"""EnviroAtlas: a prior of Pittsburgh, and other cities without labels but with a hint.

    python scripts/enviroatlas.py prepare
    segprior train enviroatlas -o pittsburgh.safetensors
    python scripts/enviroatlas.py score --prior pittsburgh.safetensors --hint --clusters 5

The files are those of Zenodo record 6268150 (enviroatlas_lotp.zip), unpacked in $SEGPRIOR_DATA/enviroatlas. `prepare`
writes labels/STEM.tif, the labels merged to five classes as Rolf et al. 2022 do (shrub and woody wetland are trees;
agriculture and orchard are grass, and emergent wetland too, which is our reading), and hints/STEM.tif, the files'
`prior_from_cooccurrences_101_31` (shares made of NLCD, roads, water and buildings), bands named by the classes. `score`
prints mIoU of every city, all tiles of its test split together, beside the best published for it. Maps are made without
a label of the city; with --hint they take the hint cell by cell of `--window` metres.

The real files were not at hand when this was written: it was run on generated folders of the same layout alone.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import rasterio
import typer

from segprior.checkpoint import read_card
from segprior.data import load_dataset
from segprior.errors import DatasetError
from segprior.geotiff import band_writer, class_writer
from segprior.hint import HintSource
from segprior.inference import open_for, strips
from segprior.legend import Legend
from segprior.metrics import confusion, scores
from segprior.options import Options
from segprior.raster import grid_of, open_raster
from segprior.rows import BLOCK
from segprior.terminal import counted, run

MERGED = {"water": (10,), "impervious": (20,), "barren": (30,), "trees": (40, 52, 91), "grass": (70, 80, 82, 92)}
"""Values of the files by class; what is none of them is not labelled."""

PUBLISHED = {"durham": 49.5, "austin": 52.0, "phoenix": 46.0}
"""Best published mIoU, of Rolf et al. 2022."""

HINT = "prior_from_cooccurrences_101_31"
NAIP, LABELS = "a_naip", "h_highres_labels"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of the archive."""

    image: Path

    @property
    def city(self) -> str:
        """First word of its folder."""
        return self.image.parent.name.partition("_")[0]

    def beside(self, kind: str) -> Path:
        """Another file of the archive for the same tile."""
        return self.image.with_name(self.image.name.replace(NAIP, kind))

    def made(self, root: Path, folder: str) -> Path:
        """A file that `prepare` writes."""
        return root / folder / self.image.name


def home() -> Path:
    """Where the archive is unpacked."""
    return Path(os.environ.get("SEGPRIOR_DATA", "../shared/data")) / "enviroatlas"


def tiles(root: Path, pattern: str = "*") -> list[Tile]:
    """Tiles in folders that fit. Raises DatasetError if there are none."""
    found = sorted(root.glob(f"enviroatlas_lotp/{pattern}_tiles-debuffered/*_{NAIP}.tif"))
    if not found:
        raise DatasetError(
            f"wanted the tiles of Zenodo record 6268150 in {root / 'enviroatlas_lotp'}, found none; set SEGPRIOR_DATA"
        )
    return [Tile(path) for path in found]


@app.command()
def prepare(*, overwrite: Annotated[bool, typer.Option("--overwrite", help="write files anew")] = False) -> None:
    """Merge the labels of all tiles, and name the bands of their hints."""
    root, legend = home(), legend_of()
    found = tiles(root)
    for folder in ("labels", "hints"):
        (root / folder).mkdir(exist_ok=True)
    with counted("preparing", "tiles", len(found)) as advance:
        for tile in found:
            if overwrite or not tile.made(root, "labels").exists():
                merge(tile.beside(LABELS), tile.made(root, "labels"), legend, overwrite=overwrite)
            if overwrite or not tile.made(root, "hints").exists():
                name_bands(tile.beside(HINT), tile.made(root, "hints"), legend, overwrite=overwrite)
            advance()


def legend_of() -> Legend:
    """The legend of the descriptor, which is whole before there are files."""
    card = Path(__file__).parent.parent / "datasets" / "enviroatlas" / "dataset.toml"
    return Legend.from_dict({"classes": tomllib.loads(card.read_text(encoding="utf-8"))["classes"], "nodata": 255})


def rows_of(dataset: rasterio.DatasetReader) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """First row and values (bands, rows, columns)."""
    for row in range(0, dataset.height, BLOCK):
        window = rasterio.windows.Window(0, row, dataset.width, min(BLOCK, dataset.height - row))
        yield row, dataset.read(window=window)


def merge(source: Path, target: Path, legend: Legend, *, overwrite: bool) -> None:
    """Write merged labels."""
    table = np.full(256, legend.nodata, np.uint8)
    for name, values in MERGED.items():
        table[list(values)] = legend.values[legend.index(name)]
    with open_raster(source) as dataset, class_writer(target, grid_of(dataset), legend, overwrite=overwrite) as put:
        for row, found in rows_of(dataset):
            put(row, table[found])


def name_bands(source: Path, target: Path, legend: Legend, *, overwrite: bool) -> None:
    """Write the hint as shares with named bands; where all are 0 nothing is known."""
    with open_raster(source) as dataset:
        if dataset.count != len(legend):
            raise DatasetError(f"wanted {len(legend)} bands in {source}, one for each class, got {dataset.count}")
        with band_writer(target, grid_of(dataset), legend.names, dtype="uint8", overwrite=overwrite) as put:
            for row, values in rows_of(dataset):
                total = values.sum(axis=0, dtype=np.float32)
                put(row, np.where(total > 0, values / np.maximum(total, 1), np.nan).astype(np.float32))


@app.command()
def score(
    *,
    prior: Annotated[str, typer.Option(help="a prior of Pittsburgh")],
    hint: Annotated[bool, typer.Option("--hint", help="give the hint of every tile")] = False,
    window: Annotated[float, typer.Option(help="width of the hint's cells in metres")] = 31.0,
    clusters: Annotated[int, typer.Option(help="clusters of colours that labels follow, 0 for none")] = 0,
) -> None:
    """Print mIoU of every city."""
    root, card = home(), read_card(prior)
    load_dataset("enviroatlas")  # says what is missing
    found = tiles(root, "*-test")
    totals: dict[str, npt.NDArray[np.int64]] = {}
    with counted("scoring", "tiles", len(found)) as advance:
        for tile in found:
            hints = (HintSource(str(tile.made(root, "hints")), window=window),) if hint else ()
            options = Options(hints=hints, clusters=clusters)
            total = totals.setdefault(tile.city, np.zeros((len(card.legend),) * 2, np.int64))
            with open_for(tile.image, card, options) as scene, open_raster(tile.made(root, "labels")) as labels:
                for strip in strips(tile.image, scene, prior=prior, options=options):
                    rows = rasterio.windows.Window(0, strip.row, labels.width, len(strip.valid))
                    truth = card.legend.to_index(labels.read(1, window=rows))
                    truth[~strip.valid] = 255
                    total += confusion(truth, strip.values.argmax(axis=0).astype(np.uint8), classes=len(card.legend))
            advance()
    for city, total in totals.items():
        published = f", published {PUBLISHED[city]}" if city in PUBLISHED else ""
        print(f"{city}: mIoU {100 * float(scores(total).miou):.1f}{published}")


if __name__ == "__main__":
    run(app, None, name="enviroatlas.py")
