"""The script for EnviroAtlas, on a tiny folder of the same layout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from generated import card_of
from rasters import write_raster

from segprior.checkpoint import Prior, build_denoiser, save_prior
from segprior.data import load_dataset
from segprior.plots import read_plots

PLACE: dict[str, Any] = {"crs": "EPSG:26917", "transform": Affine(1.0, 0, 580_000, 0, -1.0, 4_480_000)}
RAW = np.array([[10, 20, 30, 40], [52, 70, 80, 82], [91, 92, 0, 99], [20, 40, 70, 10]], np.uint8)
"""Values of the labels, in squares of 16 pixels; the last two of the third row are no class."""

MERGED = np.array([[0, 1, 2, 3], [3, 4, 4, 4], [3, 4, 255, 255], [1, 3, 4, 0]], np.uint8)
FOLDERS = (
    "pittsburgh_pa-2010_1m-train",
    "pittsburgh_pa-2010_1m-val",
    "pittsburgh_pa-2010_1m-test",
    "durham_nc-2012_1m-test",
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive with a tile in each of four folders; the hint is the truth, made soft."""
    monkeypatch.setenv("SEGPRIOR_DATA", str(tmp_path))
    root = tmp_path / "enviroatlas"
    raw, merged = np.kron(RAW, np.ones((16, 16), np.uint8)), np.kron(MERGED, np.ones((16, 16), np.uint8))
    told = np.stack([np.where(merged == k, 215, 10) for k in range(5)]).astype(np.uint8)
    told[:, :16, :16] = 0  # nothing is known there
    for number, name in enumerate(FOLDERS):
        folder = root / "enviroatlas_lotp" / f"{name}_tiles-debuffered"
        folder.mkdir(parents=True)
        stem = f"300972{number}_sw"
        noise = np.random.default_rng(number).integers(0, 255, (4, 64, 64), dtype=np.uint8)
        write_raster(folder / f"{stem}_a_naip.tif", noise, **PLACE)
        write_raster(folder / f"{stem}_h_highres_labels.tif", raw[None], **PLACE)
        write_raster(folder / f"{stem}_prior_from_cooccurrences_101_31.tif", told, **PLACE)
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own."""
    command = [sys.executable, str(root / "scripts" / "enviroatlas.py"), *words]
    paths = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, capture_output=True, text=True, env=paths, check=False)  # our own


@pytest.mark.slow
def test_the_archive_is_prepared_trained_on_and_scored(root: Path, data: Path, tmp_path: Path) -> None:
    before = run(root, "score", "--prior", "landcover")
    assert (before.returncode, before.stderr.count("\n")) == (2, 1)
    done = run(root, "prepare")
    assert (done.returncode, done.stderr) == (0, "")
    assert run(root, "prepare").returncode == 0, "what is there stays"
    with rasterio.open(data / "labels" / "3009720_sw_a_naip.tif") as labels:
        np.testing.assert_array_equal(labels.read(1), np.kron(MERGED, np.ones((16, 16), np.uint8)))
    with rasterio.open(data / "hints" / "3009723_sw_a_naip.tif") as hint:
        assert hint.descriptions == ("water", "impervious", "barren", "trees", "grass")
        shares = hint.read(masked=True) * np.array(hint.scales)[:, None, None]
        np.testing.assert_allclose(shares[:, 20, 40], [0.04, 0.04, 0.04, 0.04, 0.84], atol=0.02)
        assert shares.mask[:, :16, :16].all()
    dataset = load_dataset("enviroatlas")
    assert [(r.split, r.scene.name.split("/")[1].split("_")[0]) for r in dataset.regions] == [
        ("train", "pittsburgh"),
        ("val", "pittsburgh"),
        ("test", "durham"),
        ("test", "pittsburgh"),
    ]
    (plot,) = read_plots(dataset, "train", "pairs")
    assert plot.image is not None
    assert plot.image.shape == (64, 64, 4)
    card = replace(card_of(dataset), name="tiny")
    save_prior(Prior(card, build_denoiser(card).eval()), tmp_path / "tiny.safetensors")
    found = {}
    for words in ((), ("--hint", "--window", "1"), ("--hint", "--clusters", "3")):
        scored = run(root, "score", "--prior", str(tmp_path / "tiny.safetensors"), *words)
        assert (scored.returncode, scored.stderr) == (0, "")
        durham, pittsburgh = sorted(scored.stdout.splitlines())
        assert durham.endswith(", published 49.5")
        found[words] = float(pittsburgh.removeprefix("pittsburgh: mIoU "))
    assert found["--hint", "--window", "1"] > found[()] + 40


@pytest.mark.slow
def test_without_the_archive_it_says_what_is_missing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGPRIOR_DATA", str(tmp_path))
    found = run(root, "prepare")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "wanted the tiles of Zenodo record 6268150" in found.stderr


def test_the_descriptor_names_its_licence_and_source(root: Path) -> None:
    table = tomllib.loads((root / "datasets" / "enviroatlas" / "dataset.toml").read_text(encoding="utf-8"))
    assert all(table[key].strip() for key in ("name", "title", "licence", "source", "attribution"))
