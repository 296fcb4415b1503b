"""Small rasters to test with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning


def checkered(bands: int, height: int, width: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth waves with noise, so that neither resampling nor compression is trivial."""
    rows, cols = np.mgrid[:height, :width]
    waves = [80 * np.sin(rows / (5 + b)) * np.cos(cols / (7 + b)) + 128 for b in range(bands)]
    noise = np.random.default_rng(seed).integers(-40, 40, (bands, height, width))
    return np.clip(np.stack(waves) + noise, 0, 255).astype(np.uint8)


def write_raster(
    path: Path,
    pixels: npt.NDArray[Any],
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    mask_kind: str = "none",
    **profile: Any,
) -> Path:
    """Write (bands, rows, columns) with rasterio; `mask` goes where `mask_kind` says."""
    count, height, width = pixels.shape
    if mask_kind == "nodata":
        profile["nodata"] = 0
    if mask_kind == "alpha":
        count += 1
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask_kind == "internal"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **profile
        ) as target:
            target.write(pixels, list(range(1, len(pixels) + 1)))
            if mask is not None and mask_kind in ("internal", "sidecar"):
                target.write_mask(mask)
            if mask is not None and mask_kind == "alpha":
                target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
                target.write(mask.astype(np.uint8) * 255, count)
    return path
