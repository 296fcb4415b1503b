"""Rasters that are in memory, against the same ones in files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

import segprior
from segprior.errors import RasterError, SettingError
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.segmentation import segment

# rioxarray multiplies transforms in a way that affine 3.1 is about to give up
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # of rioxarray's

SMALL = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32)
UTM = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 x 110 pixels, a corner without data."""
    pixels = np.maximum(checkered(3, 90, 110), 1)
    pixels[:, :20, :30] = 0
    return write_raster(tmp_path_factory.mktemp("image") / "image.tif", pixels, nodata=0, **UTM)


@pytest.fixture(scope="module")
def classes(prior: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What comes of the file."""
    mask = tmp_path_factory.mktemp("mask") / "mask.tif"
    segment(image, mask, prior=prior, options=SMALL)
    with rasterio.open(mask) as dataset:
        return dataset.read(1)


def test_an_array_gives_an_array_with_its_coordinates(prior: Path, image: Path, classes: Any) -> None:
    array = rioxarray.open_rasterio(image)
    assert isinstance(array, xarray.DataArray)
    found = segprior.segment(array, prior=prior, options=SMALL)
    assert found.dims == ("y", "x")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.values, classes)
    for side in ("x", "y"):
        xarray.testing.assert_identical(found[side], array[side])
    assert found.rio.crs == array.rio.crs
    assert found.rio.transform() == array.rio.transform()
    assert found.rio.nodata == LEGEND.nodata
    assert found.attrs["flag_values"] == list(LEGEND.values)
    assert found.attrs["flag_meanings"] == "background roof road"
    assert found.attrs["SEGPRIOR_PRIOR"] == "tiny"


@pytest.mark.parametrize("kind", ["other names and order", "southward", "masked floats", "lazy"])
def test_arrays_of_all_sorts(prior: Path, image: Path, classes: Any, kind: str, tmp_path: Path) -> None:
    array: Any = rioxarray.open_rasterio(image, masked=kind == "masked floats")
    options = SMALL
    if kind == "other names and order":
        array = array.rename({"y": "lat", "x": "lon"}).transpose("lat", "lon", "band")
        array = array.rio.set_spatial_dims("lon", "lat")
        found = segment(array, prior=prior, options=options)
        assert found.dims == ("lat", "lon")
        np.testing.assert_array_equal(found.values, classes)
    elif kind == "southward":
        found = segment(array.isel(y=slice(None, None, -1)), prior=prior, options=options)
        path = write_raster(
            tmp_path / "s.tif", array.values[:, ::-1], nodata=0, **{**UTM, "transform": array[:, ::-1].rio.transform()}
        )
        segment(path, tmp_path / "mask.tif", prior=prior, options=options)
        with rasterio.open(tmp_path / "mask.tif") as dataset:
            np.testing.assert_array_equal(found.values, dataset.read(1))
    elif kind == "masked floats":
        assert np.isnan(array.values).any()
        found = segment(array, prior=prior, options=options)
        np.testing.assert_array_equal(found.values == 255, classes == 255)
    else:
        found = segment(array.chunk({"x": 40, "y": 40}), prior=prior, options=options)
        np.testing.assert_array_equal(found.values, classes)


def test_open_datasets(prior: Path, image: Path, classes: Any, tmp_path: Path) -> None:
    with rasterio.open(image) as dataset:
        segment(dataset, tmp_path / "a.tif", prior=prior, options=SMALL)
    with MemoryFile(image.read_bytes()) as memory, memory.open() as dataset:
        segprior.segment(dataset, tmp_path / "b.tif", prior=prior, options=SMALL)
    for name in "ab":
        with rasterio.open(tmp_path / f"{name}.tif") as mask:
            np.testing.assert_array_equal(mask.read(1), classes)


def test_what_cannot_be_taken_is_one_line(
    prior: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array: Any = rioxarray.open_rasterio(image)
    mask = tmp_path / "mask.tif"
    with pytest.raises(SettingError, match="wanted no files for a DataArray"):
        segment(array, mask, prior=prior)  # type: ignore[call-overload]  # what is refused
    with pytest.raises(SettingError, match="wanted a path for the mask, got none"):
        segment(image, prior=prior)  # type: ignore[call-overload]  # what is refused
    with pytest.raises(RasterError, match=r"dimensions \(band, y, x\), got \(a, b\)"):
        segment(xarray.DataArray(np.zeros((4, 4)), dims=("a", "b")), prior=prior)
    with pytest.raises(RasterError, match=r"got \(time, band, y, x\)"):
        segment(array.expand_dims("time"), prior=prior)
    with pytest.raises(RasterError, match="cannot take the DataArray for a raster"):
        segment(array.astype(str), prior=prior)
    with rasterio.open(image) as dataset, WarpedVRT(dataset, crs="EPSG:3857") as warped:
        bad: list[Any] = [warped]
        profile = {"driver": "GTiff", "width": 9, "height": 9, "count": 3, "dtype": "uint8", **UTM}
        with rasterio.open(tmp_path / "w.tif", "w", **profile) as new:
            for open_one in (*bad, new):
                with pytest.raises(RasterError, match=r"opened again by its name, got .*driver='VRT'"):
                    segment(open_one, mask, prior=prior)
    assert not mask.exists()
    monkeypatch.setitem(sys.modules, "rioxarray", None)
    with pytest.raises(RasterError, match=r'pip install "segprior\[xarray\]"'):
        segment(array, prior=prior)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_missing_from_a_masked_array_of_bytes_stays_so(prior: Path, tmp_path: Path, lazy: bool) -> None:
    """As clipped or padded arrays of files without nodata have it: floats with NaN that are written as bytes."""
    path = write_raster(tmp_path / "image.tif", checkered(3, 90, 110), **UTM)
    array: Any = rioxarray.open_rasterio(path, masked=True, chunks=64 if lazy else None)
    assert array.encoding["rasterio_dtype"] == "uint8"
    clipped = array.where((array.x > array.x[30]) & (array.y < array.y[20])).assign_attrs(array.attrs)
    clipped.encoding = array.encoding
    found = segprior.segment(clipped, prior=prior, options=SMALL)
    missing = np.asarray(found == LEGEND.nodata)
    assert missing[:21].all()
    assert missing[:, :31].all()
    assert not missing[21:, 31:].any()
