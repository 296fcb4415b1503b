"""What GDAL can open can be segmented: each against the same pixels in a plain GeoTIFF."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy
from rasters import checkered, write_raster
from tiny import tiny_prior

from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.segmentation import segment

ONE = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32)
UTM = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("image") / "image.tif", checkered(3, 70, 90), **UTM)


def classes(image: str | Path, prior: Path, folder: Path) -> npt.NDArray[np.uint8]:
    mask = folder / "mask.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        segment(image, mask, prior=prior, options=ONE, overwrite=True)
        with rasterio.open(mask) as dataset:
            found: npt.NDArray[np.uint8] = dataset.read(1)
    return found


def as_vrt(image: Path, folder: Path) -> str:
    copy(str(image), str(folder / "image.vrt"), driver="VRT")
    return str(folder / "image.vrt")


def as_cog(image: Path, folder: Path) -> str:
    copy(str(image), str(folder / "cog.tif"), driver="COG")
    return str(folder / "cog.tif")


def as_zip(image: Path, folder: Path) -> str:
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(image, "inside/image.tif")
    return f"/vsizip/{folder / 'all.zip'}/inside/image.tif"


def as_zip_url(image: Path, folder: Path) -> str:
    as_zip(image, folder)
    return f"zip://{folder / 'all.zip'}!/inside/image.tif"


def as_png(image: Path, folder: Path) -> str:
    copy(str(image), str(folder / "image.png"), driver="PNG")  # its place goes into a sidecar
    return str(folder / "image.png")


@pytest.mark.parametrize("shape", [as_vrt, as_cog, as_zip, as_zip_url, as_png])
def test_other_containers(image: Path, prior: Path, tmp_path: Path, shape: Callable[[Path, Path], str]) -> None:
    np.testing.assert_array_equal(classes(shape(image, tmp_path), prior, tmp_path), classes(image, prior, tmp_path))


def test_jpeg(image: Path, prior: Path, tmp_path: Path) -> None:
    """Its pixels are those that JPEG made of them."""
    copy(str(image), str(tmp_path / "image.jpg"), driver="JPEG", quality=95)
    with rasterio.open(tmp_path / "image.jpg") as dataset:
        lossy = write_raster(tmp_path / "lossy.tif", dataset.read(), **UTM)
    np.testing.assert_array_equal(classes(tmp_path / "image.jpg", prior, tmp_path), classes(lossy, prior, tmp_path))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A file server in a process of its own: while GDAL waits for it, this one holds Python's lock."""
    command = [sys.executable, str(Path(__file__).with_name("ranges.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


def test_from_the_net(image: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    expected = classes(image, prior, tmp_path)
    with served(image.parent) as place:
        np.testing.assert_array_equal(classes(f"{place}/image.tif", prior, tmp_path), expected)
        np.testing.assert_array_equal(classes(f"/vsicurl/{place}/image.tif", prior, tmp_path), expected)
