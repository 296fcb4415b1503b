"""Novelty of rasters: measured by a prior on its own images, told of others."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from commands import call
from generated import card_of, write_dataset
from rasterio.crs import CRS
from rasters import write_raster

from segprior.census import SharesSource
from segprior.checkpoint import Prior, build_denoiser, load_prior, read_card, save_prior
from segprior.data import load_dataset
from segprior.errors import SettingError
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.segmentation import segment

PLACE: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": Affine(1.0, 0, 500_000, 0, -1.0, 3_000_000)}
ONE = Options(solver=FixedPoint(times=(1.0,)), tile_size=128, overlap=32)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A prior of random weights that knows what rectangles look like."""
    folder = tmp_path_factory.mktemp("rectangles")
    dataset = load_dataset(str(write_dataset(folder, size=448)))
    torch.manual_seed(0)
    card = replace(card_of(dataset), name="rectangles")
    path = folder / "prior.safetensors"
    save_prior(Prior(card, build_denoiser(card).eval()), path)
    assert read_card(path).familiarity is None
    main = runpy.run_path(str(root / "scripts" / "familiarise.py"))["main"]
    main(path, str(folder / "dataset.toml"))
    return path


def image(path: Path, name: str, scene: Path) -> Path:
    """The validation scene beside a picture of stripes, which nobody has seen."""
    with rasterio.open(scene) as source:
        known = source.read()[:, :256, :256]
    stripes = np.broadcast_to(255 * (np.arange(256) // 3 % 2), (3, 256, 256))
    return write_raster(path / name, np.concatenate([known, stripes], axis=2).astype(np.uint8), **PLACE)


def test_the_card_keeps_it(prior: Path) -> None:
    found = load_prior(prior).card.familiarity
    assert found is not None
    assert found.cells >= 9
    assert json.loads(json.dumps(read_card(prior).familiar)) == dict(read_card(prior).familiar)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # the rasters lie nowhere
def test_what_is_unlike_the_training_images_is_told(
    tmp_path: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = image(tmp_path, "image.tif", prior.parent / "three.tif")
    novelty = tmp_path / "novelty.tif"
    settings = ("--prior", prior, "--steps", 1, "--tile-size", 128, "--overlap", 32, "--as-bytes")
    found = call(capsys, "segment", path, "-o", tmp_path / "mask.tif", *settings, "--novelty", novelty)
    assert found.code == 0
    assert "% of this raster is unlike anything the prior was trained on" in found.stderr
    with rasterio.open(novelty) as dataset:
        assert (dataset.dtypes, dataset.descriptions) == (("float32",), ("novelty",))
        values = dataset.read(1)
    assert np.median(values[:, 280:]) > 1 > np.median(values[:, :200])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # the rasters lie nowhere
def test_it_goes_with_everything_else(tmp_path: Path, prior: Path) -> None:
    """The same mask and the same novelty with shares, particles and other batches; gaps are gaps."""
    path = image(tmp_path, "image.tif", prior.parent / "three.tif")
    with rasterio.open(path, "r+") as dataset:
        pixels = dataset.read()
        pixels[:, :40, :40] = 0
        dataset.write(pixels)
        dataset.nodata = 0
    shares = tmp_path / "shares.toml"
    shares.write_text("[shares]\nroof = 0.5\n")
    plain = segment(path, tmp_path / "a.tif", prior=prior, options=ONE)
    assert plain.unlike is None
    told = segment(path, tmp_path / "b.tif", prior=prior, options=ONE, novelty=tmp_path / "n.tif")
    assert told.unlike is not None
    with rasterio.open(tmp_path / "a.tif") as first, rasterio.open(tmp_path / "b.tif") as second:
        np.testing.assert_array_equal(first.read(), second.read())
    options = replace(ONE, shares=SharesSource(str(shares)), samples=2, batch_size=1)
    both = segment(path, tmp_path / "c.tif", prior=prior, options=options, novelty=tmp_path / "m.tif")
    assert both.shares["roof"] == pytest.approx(0.5, abs=0.02)
    assert both.unlike == pytest.approx(told.unlike, abs=0.01)
    with rasterio.open(tmp_path / "n.tif") as first, rasterio.open(tmp_path / "m.tif") as second:
        np.testing.assert_allclose(first.read(1), second.read(1), atol=1e-3)
        assert np.isnan(first.read(1)[:40, :40]).all()


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # the rasters lie nowhere
def test_disagreement_is_told_beside_it(tmp_path: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step knows no noise, so its samples agree; three steps' do not. Each file holds its own."""
    path = image(tmp_path, "image.tif", prior.parent / "three.tif")
    words = ("--prior", prior, "--tile-size", 128, "--overlap", 32, "--overwrite")
    files = ("--novelty", tmp_path / "n.tif", "--disagreement", tmp_path / "d.tif")
    found = {}
    for steps in (1, 3):
        run = call(capsys, "segment", path, "-o", tmp_path / "m.tif", *words, *files, "--samples", 2, "--steps", steps)
        assert run.code == 0, run.stderr
        with rasterio.open(tmp_path / "d.tif") as d, rasterio.open(tmp_path / "n.tif") as n:
            assert (d.descriptions, n.descriptions) == (("disagreement",), ("novelty",))
            found[steps] = d.read(1)
            assert n.read(1).max() > 1
    assert np.abs(found[1]).max() < 1e-5
    assert 0 < found[3].max() <= 1
    run = call(capsys, "segment", path, "-o", tmp_path / "m.tif", *words, *files)
    assert (run.code, run.stderr.count("\n")) == (2, 1)
    assert "2 samples or more to disagree" in run.stderr


def test_a_prior_that_does_not_know_says_so(tmp_path: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_prior(prior)
    save_prior(replace(loaded, card=replace(loaded.card, familiar={})), tmp_path / "old.safetensors")
    path = write_raster(tmp_path / "image.tif", np.full((3, 64, 64), 99, np.uint8), **PLACE)
    words = ("--prior", tmp_path / "old.safetensors", "--novelty", tmp_path / "n.tif")
    found = call(capsys, "segment", path, "-o", tmp_path / "mask.tif", *words)
    assert (found.code, found.stderr.count("\n")) == (2, 1)
    assert "wanted a prior that knows what is familiar" in found.stderr
    with pytest.raises(SettingError, match="knows what is familiar"):
        segment(path, tmp_path / "m.tif", prior=tmp_path / "old.safetensors", novelty=tmp_path / "n.tif")


@pytest.mark.slow
def test_novelty_is_measured_between_data_sets(prior: Path, root: Path, tmp_path: Path) -> None:
    """Cells of the same kind are told apart no better than by guessing, bright noise at once."""
    other = write_dataset(tmp_path / "other", size=448)
    bright = write_dataset(tmp_path / "bright", size=448)
    rng = np.random.default_rng(0)
    for path in bright.parent.glob("*.tif"):
        if "labels" not in path.name:
            with rasterio.open(path, "r+") as dataset:
                dataset.write(rng.integers(128, 256, dataset.read().shape).astype(np.uint8))
    main = runpy.run_path(str(root / "scripts" / "bench_novelty.py"))["main"]
    main.__globals__["PICTURES"] = ("astronaut",)
    found = {}
    for strange in (other, bright):
        main([str(prior.parent), str(strange)], prior=[str(prior), str(prior)], results=tmp_path)
        table = json.loads((tmp_path / "bench_novelty.json").read_text())[str(prior)]
        found[strange] = table["rows"]["other regions"]["auroc"]["distance"]
        assert table["rows"]["no aerial images"]["cells"] == 16
        assert table["rows"]["no aerial images"]["auroc"]["distance"] > 0.9
    assert 0.1 < found[other] < 0.85
    assert found[bright] > 0.95
