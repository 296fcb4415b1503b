"""Regions of rasters held in memory whole at a prior's resolution: what training reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from segprior.errors import RasterError
from segprior.raster import AnyPath, read_mask, read_resampled, read_window
from segprior.resample import most_frequent, resample
from segprior.scene import Scene, open_scene
from segprior.windows import Window


def read_region(
    path: AnyPath,
    window: Window | None = None,
    *,
    res: float,
    pixel_res: float | None = None,
    bands: tuple[int, ...] = (1,),
    classes: Sequence[int] | None = None,
    shape: tuple[int, ...] | None = None,
) -> npt.NDArray[np.uint8]:
    """Read a region of a raster whole at `res` metres per pixel, uint8 (bands, rows, columns): for training.

    Args:
        path: the raster, 8 bits per band.
        window: the region in native pixels, None for all of it.
        res: metres on the ground of a working pixel.
        pixel_res: as in `open_scene`.
        bands: bands to read, from 1.
        classes: values of classes, for labels: take the most frequent value under a pixel, not the mean, and of a
            nodata value of the file that is a class no notice, since many tools tag rasters without regard to classes.
        shape: working rows and columns, against those that `res` makes: of labels, their image's.

    Raises:
        RasterError: no raster, too few bands, another type than uint8, damaged.
        SettingError: a region outside the raster, or a number out of range.

    """
    with open_scene(path, res=res, bands=bands, pixel_res=pixel_res) as scene:
        check_bytes(scene, labels=classes is not None)
        region, own = _region(scene, window)
        shape = own if shape is None else shape
        if classes is None:
            method = Resampling.average if min(scene.scale) > 1 else Resampling.bilinear
        elif scene.dataset.nodata not in classes:
            method = Resampling.mode
        else:
            return most_frequent(read_window(scene.dataset, region, bands=bands)[0], shape)
        return read_resampled(scene.dataset, region, bands=bands, shape=shape, method=method)


def region_shape(
    path: AnyPath, window: Window | None = None, *, res: float, pixel_res: float | None = None
) -> tuple[int, int]:
    """Working rows and columns of `read_region`; the arguments are its, and so are the errors."""
    with open_scene(path, res=res, bands=(1,), pixel_res=pixel_res) as scene:
        return _region(scene, window)[1]


def region_valid(
    path: AnyPath, window: Window | None = None, *, res: float, pixel_res: float | None = None, bands: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Say for every pixel of `read_region` whether all native pixels under it hold data, bool (rows, columns).

    The arguments are those of `read_region`, and so are the errors.
    """
    with open_scene(path, res=res, bands=bands, pixel_res=pixel_res) as scene:
        region, shape = _region(scene, window)
        valid = read_mask(scene.dataset, region)
    step = (region.height / shape[0], region.width / shape[1])
    share = resample(valid[None].astype(np.float32), offset=(0, 0), step=step, window=Window(0, 0, *shape))[0]
    return np.asarray(share > 1 - 1e-3)


def check_bytes(scene: Scene, *, labels: bool = False) -> None:
    """Refuse what training cannot read yet, though `segment` can; `labels` hold classes. Raises RasterError."""
    if scene.stretch is not None:
        kinds = ", ".join(sorted({scene.dataset.dtypes[band - 1] for band in scene.bands}))
        how = "-ot Byte" if labels else "-ot Byte -scale"  # to stretch classes would make others of them
        raise RasterError(
            f"wanted 8-bit {'classes' if labels else 'bands'} to train on, {scene.dataset.name} has {kinds}; "
            f"convert it with gdal_translate {how}"
        )


def _region(scene: Scene, window: Window | None) -> tuple[Window, tuple[int, int]]:
    """The region in native pixels, and its working rows and columns."""
    whole = Window(0, 0, scene.grid.height, scene.grid.width)
    region = whole if window is None else window.intersection(scene.grid.height, scene.grid.width)
    rows, cols = (max(1, round(n / s)) for n, s in zip((region.height, region.width), scene.scale, strict=True))
    return region, (rows, cols)
