"""Samples of a small random prior, and their files as GDAL reads them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from tiny import LEGEND, tiny_prior

from segprior.checkpoint import Prior, load_prior
from segprior.errors import CheckpointError, OutputError, SettingError
from segprior.samples import Drawing, draw_sample, save_sample, sheet, write_samples
from segprior.sidecar import class_names

SMALL = Drawing(size=(64, 96), steps=2)


@pytest.fixture(scope="module")
def prior_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="module")
def prior(prior_file: Path) -> Prior:
    return load_prior(prior_file)


def opened(path: Path) -> rasterio.io.DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        return rasterio.open(path)


def test_a_sample_is_an_image_and_its_classes(prior: Prior) -> None:
    drawn = draw_sample(prior, drawing=SMALL)
    assert (drawn.image.dtype, drawn.image.shape) == (np.uint8, (3, 64, 96))
    assert (drawn.index.dtype, drawn.index.shape) == (np.uint8, (64, 96))
    assert drawn.image.std() > 5
    assert drawn.index.max() < len(LEGEND)


def test_a_sample_depends_on_seed_and_number_alone(prior: Prior) -> None:
    first, again = (draw_sample(prior, 1, drawing=SMALL) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.index, again.index)
    others = [draw_sample(prior, 2, drawing=SMALL), draw_sample(prior, 0, drawing=Drawing((64, 96), steps=2, seed=1))]
    assert all(np.mean(first.image != other.image) > 0.5 for other in others)


def test_the_files_hold_the_sample(prior_file: Path, prior: Prior, tmp_path: Path) -> None:
    written = list(write_samples(tmp_path / "new", prior=prior_file, count=2, drawing=SMALL))
    names = [f"pair_00{n}{end}" for n in (0, 1) for end in (".png", ".tif", "_labels.tif")]
    assert {path.name for path in (tmp_path / "new").iterdir() if path.suffix != ".xml"} == set(names)
    assert [w.number for w in written] == [0, 1]
    drawn = draw_sample(prior, 1, drawing=SMALL)
    with opened(written[1].image) as image, opened(written[1].labels) as labels, opened(written[1].picture) as picture:
        assert np.array_equal(image.read(), drawn.image)
        assert np.array_equal(labels.read(1), LEGEND.to_value(drawn.index))
        assert image.crs is None
        assert labels.crs is None
        assert class_names(labels) == {0: "background", 4: "roof", 2: "road"}
        assert labels.colormap(1)[4] == (214, 69, 65, 255)
        assert "drawn, not photographed: prior tiny" in image.tags()["SEGPRIOR_ORIGIN"]
        assert picture.driver == "PNG"
        assert picture.width > 1.5 * picture.height, "image and labels stand side by side"


def test_other_bands_than_three(tmp_path: Path) -> None:
    prior = load_prior(tiny_prior(tmp_path / "four.safetensors", bands=4))
    drawn = draw_sample(prior, drawing=SMALL)
    save_sample(drawn, LEGEND, image=tmp_path / "a.tif", labels=tmp_path / "b.tif")
    with opened(tmp_path / "a.tif") as image:
        assert np.array_equal(image.read(), drawn.image)
    sheet(tmp_path / "sheet.png", [drawn] * 3, LEGEND)
    with opened(tmp_path / "sheet.png") as picture:
        assert picture.width > picture.height > 0


def test_existing_files_stop_everything_before_it_begins(prior_file: Path, tmp_path: Path) -> None:
    (tmp_path / "pair_001_labels.tif").write_text("mine")
    with pytest.raises(OutputError, match=r"pair_001_labels\.tif: it exists"):
        write_samples(tmp_path, prior=prior_file, count=2, drawing=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["pair_001_labels.tif"]
    assert len(list(write_samples(tmp_path, prior=prior_file, count=2, drawing=SMALL, overwrite=True))) == 2


def test_an_interrupted_run_leaves_whole_pairs(prior_file: Path, tmp_path: Path) -> None:
    run = write_samples(tmp_path / "new", prior=prior_file, count=3, drawing=SMALL)
    next(run)
    run.close()  # type: ignore[attr-defined]  # a generator
    assert {path.stem for path in (tmp_path / "new").iterdir() if path.suffix != ".xml"} == {
        "pair_000",
        "pair_000_labels",
    }


def test_bad_input(prior_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="plain segmenter"):
        write_samples(tmp_path, prior=tiny_prior(tmp_path / "plain.safetensors", plain=True))
    with pytest.raises(SettingError, match="got 0"):
        write_samples(tmp_path, prior=prior_file, count=0)
    with pytest.raises(OutputError, match="no folder"):
        write_samples(tmp_path / "a" / "b", prior=prior_file)
    with pytest.raises(CheckpointError):
        write_samples(tmp_path, prior=tmp_path / "missing.safetensors")
    with pytest.raises(SettingError, match="multiples of 32"):
        Drawing(size=(100, 128))
    with pytest.raises(SettingError, match="2 steps"):
        Drawing(steps=0)
    with pytest.raises(OutputError, match="no folder"):
        save_sample(
            draw_sample(load_prior(prior_file), drawing=SMALL), LEGEND, image=tmp_path / "x" / "a.tif", labels=tmp_path
        )
