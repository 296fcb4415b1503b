"""What another map says: read on any grid, and weighed by Bayes' rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from commands import call
from rasterio.crs import CRS
from rasterio.vrt import WarpedVRT
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

from segprior.errors import RasterError, SettingError
from segprior.geotiff import write_bands
from segprior.opinion import UnarySource, read_opinion
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.raster import Grid
from segprior.scene import open_scene
from segprior.segmentation import segment
from segprior.windows import Window

ONE = FixedPoint(times=(1.0,))
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
UTM: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": PLACE}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", checkered(3, 90, 110), **UTM)


def shares() -> npt.NDArray[np.float32]:
    """Smooth probabilities (3, 90, 110), a corner of which is unknown."""
    rows, cols = np.mgrid[:90, :110]
    logits = np.stack([np.sin(rows / 20), np.cos(cols / 15), np.sin((rows + cols) / 25)])
    found = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
    found[:, :16, :32] = np.nan
    return found


def opinion(path: Path, values: npt.NDArray[np.float32], *, names: tuple[str, ...] = LEGEND.names, **more: Any) -> Path:
    grid = Grid(*values.shape[1:], PLACE, UTM["crs"])
    write_bands(path, grid, names, [(0, values)], **more)
    return path


def whole(path: Path, image: Path, *, res: float = 0.5, shape: tuple[int, int] = (90, 110)) -> npt.NDArray[np.float32]:
    with open_scene(image, res=res) as scene:
        return read_opinion(UnarySource(str(path)), scene, LEGEND, Window(0, 0, *shape))


def test_on_the_same_grid_it_is_what_it_is(tmp_path: Path, image: Path) -> None:
    """Bands are found by name, bytes by their scale; windows that stick out are unknown there."""
    expected = shares()
    np.testing.assert_allclose(whole(opinion(tmp_path / "a.tif", expected), image), expected, atol=1e-6)
    order = ("road", "background", "roof")
    mixed = expected[[LEGEND.index(name) for name in order]]
    found = whole(opinion(tmp_path / "b.tif", mixed, names=order, dtype="uint8"), image)
    np.testing.assert_allclose(found, expected, atol=0.5 / 254 + 1e-6)
    outside = whole(tmp_path / "a.tif", image, shape=(96, 128))
    assert np.isnan(outside[:, 90:]).all()
    assert np.isnan(outside[:, :, 110:]).all()
    np.testing.assert_allclose(outside[:, :90, :110], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["another CRS", "coarser", "finer"])
def test_on_other_grids_it_is_resampled(tmp_path: Path, image: Path, kind: str) -> None:
    expected = shares()
    source = opinion(tmp_path / "a.tif", expected)
    if kind == "another CRS":
        with rasterio.open(source) as dataset, WarpedVRT(dataset, crs="EPSG:4326") as view:
            profile = {"driver": "GTiff", "count": 3, "dtype": "float32", "nodata": np.nan, "crs": view.crs}
            profile |= {"transform": view.transform, "width": view.width, "height": view.height}
            with rasterio.open(tmp_path / "b.tif", "w", **profile) as file:
                file.write(view.read())
                file.descriptions = dataset.descriptions
        found = whole(tmp_path / "b.tif", image)
        inner = (slice(None), slice(20, -3), slice(3, -3))
        np.testing.assert_allclose(found[inner], expected[inner], atol=0.02)
    else:
        res, shape = (0.25, (180, 220)) if kind == "coarser" else (1.0, (45, 55))
        found = whole(source, image, res=res, shape=shape)
        rows, cols = (np.arange(n) * (90 / shape[0]) for n in shape)
        picked = expected[:, rows.astype(int)][:, :, cols.astype(int)]
        known = np.isfinite(found) & np.isfinite(picked)
        assert known.mean() > 0.9
        np.testing.assert_allclose(found[known], picked[known], atol=0.06)


def probabilities(image: Path, prior: Path, folder: Path, *unary: UnarySource, **more: Any) -> npt.NDArray[np.float32]:
    options = Options(**{"solver": ONE, "tile_size": 128, "overlap": 32, "unary": unary, **more})
    segment(image, folder / "m.tif", prior=prior, options=options, probabilities=folder / "p.tif", overwrite=True)
    with rasterio.open(folder / "p.tif") as dataset:
        found: npt.NDArray[np.float32] = dataset.read()
    return found


def test_beyond_its_edges_it_says_nothing(tmp_path: Path, image: Path) -> None:
    """Also if the raster has no value for what is missing."""
    values = shares()[:, 20:, 40:]
    path = tmp_path / "part.tif"
    write_raster(path, values[:, :, :30], crs=UTM["crs"], transform=PLACE @ Affine.translation(40, 20))
    with rasterio.open(path, "r+") as dataset:
        assert dataset.nodata is None
        dataset.descriptions = LEGEND.names
    found = whole(path, image)
    np.testing.assert_allclose(found[:, 20:, 40:70], values[:, :, :30], atol=1e-6)
    assert np.isnan(found[:, :20]).all()
    assert np.isnan(found[:, :, :40]).all()
    assert np.isnan(found[:, :, 70:]).all()


def test_one_step_is_the_logarithmic_pool(tmp_path: Path, image: Path, prior: Path) -> None:
    q = shares()
    path = opinion(tmp_path / "q.tif", q)
    plain = probabilities(image, prior, tmp_path)
    for temperature, weight in ((1.0, 1.0), (2.0, 0.5)):
        source = UnarySource(str(path), temperature=temperature, weight=weight)
        told = probabilities(image, prior, tmp_path, source, samples=2)
        tempered = q ** (1 / temperature)
        posterior = (plain * (tempered / tempered.sum(axis=0)) ** weight) ** (1 / (1 + weight))
        posterior /= posterior.sum(axis=0)
        known = np.isfinite(q[0])
        np.testing.assert_allclose(told[:, known], posterior[:, known], atol=2e-3)
        np.testing.assert_allclose(told[:, ~known], plain[:, ~known], atol=1e-5)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.tags()["SEGPRIOR_UNARY"].endswith("temperature 2, weight 0.5")


def test_rasters_without_a_place_go_pixel_by_pixel(tmp_path: Path, prior: Path) -> None:
    image = write_raster(tmp_path / "image.tif", checkered(3, 90, 110))
    q = shares()
    grid = Grid(90, 110, Affine.identity(), None)
    write_bands(tmp_path / "q.tif", grid, LEGEND.names, [(0, q)])
    np.testing.assert_allclose(whole(tmp_path / "q.tif", image), q, atol=1e-6)
    write_bands(tmp_path / "small.tif", Grid(9, 9, Affine.identity(), None), LEGEND.names, [(0, q[:, :9, :9])])
    for bad in (tmp_path / "small.tif", opinion(tmp_path / "placed.tif", q)):
        with pytest.raises(RasterError, match="without a CRS it must have the 90 x 110 pixels"):
            whole(bad, image)


def test_bad_opinions_are_one_line(
    tmp_path: Path, image: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = opinion(tmp_path / "good.tif", shares())
    opinion(tmp_path / "names.tif", shares(), names=("a", "b", "roof"))
    write_raster(tmp_path / "large.tif", 300 * np.ones((3, 90, 110), np.float32), **UTM)
    with rasterio.open(tmp_path / "large.tif", "r+") as file:
        file.descriptions = LEGEND.names
    cases = {
        f"{tmp_path / 'gone.tif'}": "there is no file",
        f"{tmp_path / 'names.tif'}": "wanted a band for each class of the prior (background, roof, road)",
        f"{tmp_path / 'large.tif'}": "wanted probabilities in [0, 1]",
        f"{good}:temperature=0": "wanted a temperature above 0",
        f"{good}:weight=-1": "wanted a weight of 0 or more",
        f"{good}:weight=much": "wanted numbers for temperature and weight",
        f"{good}:colour=red": "wanted temperature, weight after the file, got colour",
    }
    before = sorted(tmp_path.iterdir())
    for text, words in cases.items():
        found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--unary", text)
        assert (found.code, found.stderr.count("\n")) == (2, 1), found.stderr
        assert words in found.stderr
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(SettingError, match="got nothing"):
        UnarySource.parse("")
