"""The demonstration with a small random prior: its files, and that nothing is left when it cannot be done."""

import warnings
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

from segprior.demo import demo
from segprior.errors import OutputError, RasterError, SegpriorError, SettingError
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.samples import Drawing

SMALL = Drawing(size=(64, 96), steps=2)
QUICK = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32)
DRAWN = {"scene.tif", "labels.tif", "mask.tif", "confidence.tif", "polygons.gpkg", "demo.png"}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".aux.xml")}


def read(path: Path) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        with rasterio.open(path) as dataset:
            return dataset.read()


def georeferenced(path: Path) -> Path:
    """A scene of 80 x 70 pixels of half a metre, its top rows without data."""
    pixels = checkered(3, 80, 70)
    pixels[:, :10] = 0
    mask = np.ones((80, 70), bool)
    mask[:10] = False
    place = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
    return write_raster(path, pixels, mask=mask, mask_kind="nodata", crs=CRS.from_epsg(32645), transform=place)


def test_embedded_priors_serve_where_none_is_named(tmp_path: Path) -> None:
    """One that finds its own drawings again, and one for land cover."""
    drawn = demo(tmp_path / "drawn", drawing=SMALL, options=QUICK)
    given = demo(tmp_path / "given", image=georeferenced(tmp_path / "image.tif"), options=QUICK)
    for found, name in ((drawn, "buildings"), (given, "landcover")):
        with rasterio.open(found.mask) as dataset:
            assert dataset.tags()["SEGPRIOR_PRIOR"] == name


def test_without_an_image_the_scene_is_drawn(prior: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = demo(
        tmp_path / "out",
        prior=prior,
        drawing=SMALL,
        options=QUICK,
        progress=lambda done, rows: told.append((done, rows)),
    )
    assert files(tmp_path / "out") == DRAWN
    assert found.labels is not None
    scene, labels, mask, confidence = map(read, (found.scene, found.labels, found.mask, found.confidence))
    assert scene.shape == (3, 64, 96)
    assert labels.shape == mask.shape == confidence.shape == (1, 64, 96)
    assert set(np.unique(mask)) <= {0, 2, 4}
    assert (confidence >= 1 / 3).all()
    assert found.agreement == pytest.approx((labels == mask).mean())
    assert len(geopandas.read_file(found.polygons)) == found.polygon_count
    assert read(found.picture).shape[2] > 3 * read(found.picture).shape[1], "four panels in a row"
    assert told[-1] == (64, 64)


def test_an_image_keeps_its_grid(prior: Path, tmp_path: Path) -> None:
    image = georeferenced(tmp_path / "image.tif")
    found = demo(tmp_path / "out", image=image, prior=prior, options=QUICK)
    assert files(tmp_path / "out") == DRAWN - {"scene.tif", "labels.tif"}
    assert found.scene == image
    assert (found.labels, found.agreement) == (None, None)
    with rasterio.open(image) as wanted, rasterio.open(found.mask) as got:
        assert (got.shape, got.transform, got.crs) == (wanted.shape, wanted.transform, wanted.crs)
    assert (read(found.mask)[0, :10] == 255).all()
    polygons = geopandas.read_file(found.polygons)
    assert set(polygons["class"]) <= {"roof", "road"}, "the background is left out"
    inside = np.isin(read(found.mask), (4, 2)).sum()
    assert polygons.area.sum() == pytest.approx(inside * 0.25)


def test_a_rerun_needs_leave_to_overwrite(prior: Path, tmp_path: Path) -> None:
    first = demo(tmp_path, prior=prior, drawing=SMALL, options=QUICK)
    with pytest.raises(OutputError, match="exists"):
        demo(tmp_path, prior=prior, drawing=SMALL, options=QUICK)
    before = read(first.scene)
    other = Drawing(size=(64, 96), steps=2, seed=1)
    again = demo(tmp_path, prior=prior, drawing=other, options=QUICK, overwrite=True)
    assert not np.array_equal(read(again.scene), before)
    assert files(tmp_path) == DRAWN


def test_large_rasters_are_thinned_for_the_picture(
    prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segprior.demo._SHOWN", 20)
    found = demo(tmp_path / "out", image=georeferenced(tmp_path / "image.tif"), prior=prior, options=QUICK)
    assert read(found.picture).shape[1] > 200


def test_bad_input_leaves_nothing(prior: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    short = georeferenced(tmp_path / "short.tif")
    short.write_bytes(short.read_bytes()[:-9000])
    plain = tiny_prior(tmp_path / "plain.safetensors", plain=True)
    before = files(tmp_path)
    cases: list[tuple[Path | None, Path, type[SegpriorError]]] = [
        (tmp_path / "missing.tif", prior, RasterError),
        (tmp_path, prior, RasterError),
        (text, prior, RasterError),
        (short, prior, RasterError),
        (None, plain, SettingError),
        (None, text, SegpriorError),
    ]
    for image, with_prior, error in cases:
        with pytest.raises(error) as caught:
            demo(tmp_path / "out", image=image, prior=with_prior, drawing=SMALL, options=QUICK)
        assert "\n" not in str(caught.value)
        assert files(tmp_path) == before


def test_the_input_is_never_overwritten(prior: Path, tmp_path: Path) -> None:
    image = georeferenced(tmp_path / "mask.tif")
    with pytest.raises(OutputError, match="input itself"):
        demo(tmp_path, image=image, prior=prior, options=QUICK, overwrite=True)
    assert files(tmp_path) == {"mask.tif"}


def test_a_plain_segmenter_can_show_what_it_does_to_an_image(tmp_path: Path) -> None:
    plain = tiny_prior(tmp_path / "plain.safetensors", plain=True)
    found = demo(tmp_path / "out", image=georeferenced(tmp_path / "image.tif"), prior=plain, options=QUICK)
    assert found.mask.exists()
    assert len(LEGEND) == 3
