"""What the values of a coarse map mean: P(class | value), learned from maps of a region that both cover.

From maps of classes (labels, masks) it is counted. From maps of probabilities p, whose classes are not known for sure,
it is estimated by expectation and maximisation (Saerens, Latinne & Decaestecker 2002, for each value by itself):

    q_ik ~ p_ik C[h_i, k] / pi_k         C[h, k] = mean of q_ik over the pixels i with value h_i = h

with pi the mean of p, from C = the means of p by value. Pixels of the hint under the centres of the map's are meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from segprior.errors import RasterError
from segprior.hint import pixels_under
from segprior.legend import Legend
from segprior.raster import grid_of, open_raster
from segprior.target import replacing

AnyPath = str | PathLike[str]

ROWS, ROUNDS, SAMPLE, LEAST = 256, 30, 1 << 21, 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class CoOccurrence:
    """P(class | value).

    values: of the hint, sorted. shares: (values, classes), rows sum to 1. pixels: of the maps with each value.
    """

    values: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.int64]

    def write(self, path: AnyPath, legend: Legend, *, overwrite: bool = False) -> None:
        """Write what `segprior segment --hint` reads: TOML, a table of class = share for each value."""
        parts = ["# P(class | value of the hint); segprior hint-table made it"]
        for value, row, pixels in zip(self.values, self.shares, self.pixels, strict=True):
            parts += ["", f"[{value}]  # from {pixels} pixels"]
            parts += [
                f"{_key(name)} = {share:.4f}" for name, share in zip(legend.names, row, strict=True) if share > 5e-5
            ]
        with replacing(path, overwrite=overwrite) as fresh:
            fresh.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def learn(hint: AnyPath, maps: Sequence[AnyPath], legend: Legend) -> CoOccurrence:
    """Learn the table of a hint from maps with the classes of a legend.

    maps: rasters of class values (one band of whole numbers) or of probabilities (a band for each class, named by its
    description, as `segprior segment --probabilities` writes them); of a large map a sample of about SAMPLE pixels is
    taken. Raises RasterError.
    """
    found = [part for path in maps for part in _pairs(hint, path, legend)]
    values = np.concatenate([np.zeros(0, np.int64), *(v for v, _ in found)])
    p = np.concatenate([np.zeros((0, len(legend)), np.float32), *(p for _, p in found)])
    if not len(values):
        raise RasterError(f"wanted maps of the same place as {hint}, none of {len(maps)} has a known pixel on it")
    known, place, pixels = np.unique(values, return_inverse=True, return_counts=True)
    shares = _means(p, place, len(known))
    if bool(((p > 0) & (p < 1)).any()):
        odds = p / np.maximum(p.mean(axis=0), LEAST)
        for _ in range(ROUNDS):
            q = odds * shares[place]
            shares = _means(q / np.maximum(q.sum(axis=1, keepdims=True), LEAST), place, len(known))
    return CoOccurrence(known, shares / shares.sum(axis=1, keepdims=True), pixels)


def _means(p: npt.NDArray[np.floating], place: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """Mean of p by value."""
    sums = np.stack([np.bincount(place, p[:, k], minlength=count) for k in range(p.shape[1])], axis=1)
    return sums / np.bincount(place, minlength=count)[:, None]


def _pairs(
    hint: AnyPath, path: AnyPath, legend: Legend
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Values of the hint (pixels,) and class probabilities (pixels, classes) of a map, by rows of it."""
    with open_raster(hint) as coarse, open_raster(path) as fine:
        if coarse.count != 1 or not np.issubdtype(np.dtype(coarse.dtypes[0]), np.integer):
            found = f"{coarse.count} of {coarse.dtypes[0]}"
            raise RasterError(f"wanted a hint with one band of whole numbers, {coarse.name} has {found}")
        grid = grid_of(fine)
        rate = min(1.0, SAMPLE / (grid.height * grid.width))
        for row in range(0, grid.height, ROWS):
            rows = min(ROWS, grid.height - row)
            try:
                p, known = _probabilities(fine, RasterioWindow(0, row, grid.width, rows), legend)
                known &= np.random.default_rng(row).random(known.shape) < rate
                y, x = (v.astype(np.float64) + 0.5 for v in np.nonzero(known))
                down, across = pixels_under(y + row, x, grid, coarse, raster=fine.name)
                values, there = _values(coarse, down, across)
            except RasterioError as error:
                raise RasterError(f"cannot read {path} or {hint}: {' '.join(str(error).split())}") from error
            yield values, p[:, known].T[there]


def _probabilities(
    dataset: DatasetReader, place: RasterioWindow, legend: Legend
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """(classes, rows, columns) of a map, and where they are known."""
    named = {str(name): band for band, name in zip(dataset.indexes, dataset.descriptions, strict=True)}
    if set(legend.names) <= set(named):
        bands = [named[name] for name in legend.names]
        raw = dataset.read(bands, window=place, masked=True)
        scales = np.array([dataset.scales[band - 1] for band in bands], np.float32)[:, None, None]
        p = np.ma.filled(raw.astype(np.float32), np.nan) * scales
        return p, np.asarray(np.isfinite(p).all(axis=0))
    if dataset.count != 1 or not np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer):
        raise RasterError(
            f"wanted a map of classes (one band of whole numbers) or of probabilities (bands named "
            f"{', '.join(legend.names)}), {dataset.name} has {dataset.count} bands of {dataset.dtypes[0]}"
        )
    values = dataset.read(1, window=place)
    p = np.stack([values == value for value in legend.values]).astype(np.float32)
    return p, np.asarray(p.any(axis=0))


def _values(
    coarse: DatasetReader, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Values of the hint at places of it, of those that have one, and which have."""
    inside = (down >= 0) & (down < coarse.height) & (across >= 0) & (across < coarse.width)
    if not inside.any():
        return np.zeros(0, np.int64), inside
    rows, cols = down[inside].astype(np.int64), across[inside].astype(np.int64)
    top, left = int(rows.min()), int(cols.min())
    place = RasterioWindow(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
    raw = coarse.read(1, window=place, masked=True)
    told = ~np.ma.getmaskarray(raw)[rows - top, cols - left]
    inside[inside] = told
    return raw.data[rows - top, cols - left][told].astype(np.int64), inside
