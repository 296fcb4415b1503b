"""What another map says: a raster of class probabilities, which is pooled with the prior's.

    UnarySource    the raster, how far it is believed, how much it weighs
    read_opinion   its probabilities in a window of a scene's working grid

The raster may lie on any grid in any CRS: it is brought to the working grid window by window (bilinear, or the mean
where its pixels are finer). Its bands are found by their descriptions, which name the classes, as
`segment --probabilities` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from segprior.errors import RasterError, SettingError
from segprior.legend import Legend
from segprior.raster import grid_of, open_raster
from segprior.scene import Scene
from segprior.settings import parsed
from segprior.windows import Window

ANY_CRS = "EPSG:3857"
"""Stands for the CRS of rasters that have none: pixels to pixels."""


@dataclass(frozen=True, slots=True)
class UnarySource:
    """A raster of class probabilities.

    path: any raster that GDAL reads, with a band for every class of the prior, in [0, 1] after its scale. temperature:
    above 1 it is believed less than it says, below 1 more. weight: 1 trusts it as much as the prior, see
    `segprior.prior.unary`.
    """

    path: str
    temperature: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise SettingError(f"wanted a temperature above 0 for {self.path}, got {self.temperature}")
        if not (isfinite(self.weight) and self.weight >= 0):
            raise SettingError(f"wanted a weight of 0 or more for {self.path}, got {self.weight}")

    def weighed(self, factor: float) -> UnarySource:
        """Return the same with `factor` times its weight."""
        return replace(self, weight=factor * self.weight)

    @classmethod
    def parse(cls, text: str) -> UnarySource:
        """Read PATH or PATH:temperature=2,weight=0.5, either of these. Raises SettingError."""
        path, settings = parsed(text, ("temperature", "weight"))
        try:
            return cls(path, **{name: float(value) for name, value in settings.items()})
        except ValueError as error:
            raise SettingError(f"wanted numbers for temperature and weight in {text!r}: {error}") from error


def read_opinion(source: UnarySource, scene: Scene, legend: Legend, window: Window) -> npt.NDArray[np.float32]:
    """Read probabilities (classes, height, width) of a window; NaN where the raster says nothing.

    Raises RasterError: no raster, a class without a band, or a raster or scene that cannot be placed.
    """
    with open_raster(source.path) as dataset:
        bands = _bands(dataset, legend, source)
        inside = window.intersection(scene.height, scene.width)
        place = RasterioWindow(inside.col, inside.row, inside.width, inside.height)
        try:
            with _on_working_grid(dataset, scene, source) as view:
                raw = view.read(bands, window=place, masked=True)
        except RasterioError as error:
            raise RasterError(f"cannot read {source.path}: {' '.join(str(error).split())}") from error
        scales = np.array([dataset.scales[band - 1] for band in bands], np.float32)[:, None, None]
    shares = raw.astype(np.float32).filled(np.nan) * scales
    told = np.isfinite(shares).all(axis=0)
    if told.any() and not (shares[:, told].min() > -1e-3 and shares[:, told].max() < 1 + 1e-3):
        found = f"{shares[:, told].min():g} to {shares[:, told].max():g}"
        raise RasterError(f"wanted probabilities in [0, 1], {source.path} has {found}")
    shares[:, ~told] = np.nan
    out = np.full((len(legend), window.height, window.width), np.nan, np.float32)
    out[:, : inside.height, : inside.width] = shares
    return out


def _bands(dataset: DatasetReader, legend: Legend, source: UnarySource) -> list[int]:
    named = {str(name): band for band, name in zip(dataset.indexes, dataset.descriptions, strict=True)}
    missing = [name for name in legend.names if name not in named]
    if missing:
        found = ", ".join(named) or "none"
        raise RasterError(
            f"wanted a band for each class of the prior ({', '.join(legend.names)}), named by its description, "
            f"{source.path} has {found}"
        )
    return [named[name] for name in legend.names]


def _on_working_grid(dataset: DatasetReader, scene: Scene, source: UnarySource) -> WarpedVRT:
    """The raster seen on the scene's working grid."""
    grid, (down, across) = scene.grid, scene.scale
    transform, crs, own = grid.transform, grid.crs, {}
    if crs is None or dataset.crs is None:
        same = (dataset.height, dataset.width) == (grid.height, grid.width)
        if not same or crs is not None or dataset.crs is not None:
            raise RasterError(
                f"cannot place {source.path}: without a CRS it must have the {grid.height} x {grid.width} pixels of "
                f"{scene.dataset.name}"
            )
        transform = Affine.identity()
        crs, own = ANY_CRS, {"src_crs": ANY_CRS, "src_transform": transform}
    res = grid_of(dataset).res
    finer = res is not None and grid.res is not None and res[0] < 0.75 * grid.res[0] * down
    return WarpedVRT(
        dataset,
        crs=crs,
        transform=transform @ Affine.scale(across, down),
        height=scene.height,
        width=scene.width,
        resampling=Resampling.average if finer else Resampling.bilinear,
        dtype="float32",
        nodata=np.nan,  # beyond its edges the raster says nothing; without this, zeros
        **own,
    )
