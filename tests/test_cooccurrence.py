"""Tables of hints, against counting, and against the truth that simulated probabilities were drawn from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from commands import call
from rasterio.crs import CRS
from rasters import write_raster
from tiny import LEGEND, tiny_prior

from segprior.cooccurrence import CoOccurrence, learn
from segprior.errors import RasterError
from segprior.hint import HintTable

UTM: dict[str, Any] = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
COARSE: dict[str, Any] = {"crs": UTM["crs"], "transform": Affine(5.0, 0, 500_005, 0, -5.0, 3_000_000)}
"""Ten pixels of the map each, from its eleventh column on."""

TRUTH = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
"""P(class | value) for the values 3 and 9."""


def hint(path: Path) -> Path:
    """9 x 8 cells of the values 3 and 9, and a corner of nodata."""
    values = np.where(np.random.default_rng(0).random((1, 9, 8)) < 0.5, 3, 9).astype(np.uint16)
    values[0, 8, :2] = 0
    return write_raster(path, values, nodata=0, **COARSE)


def spread(path: Path) -> npt.NDArray[np.int64]:
    """The hint's value under every pixel of a map of 90 x 110, 0 for none."""
    with rasterio.open(path) as dataset:
        values = np.kron(dataset.read(1), np.ones((10, 10), np.int64))
    return np.pad(values, ((0, 0), (10, 20)))


def drawn(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Class index of every pixel, by the TRUTH of its value."""
    rng = np.random.default_rng(1)
    rows = TRUTH[(values == 9).astype(int)]
    return (rng.random((*values.shape, 1)) > rows.cumsum(axis=-1)).sum(axis=-1)


def test_labels_are_counted(tmp_path: Path) -> None:
    coarse = hint(tmp_path / "hint.tif")
    values, index = spread(coarse), drawn(spread(coarse))
    labels = LEGEND.to_value(index.astype(np.uint8))
    labels[:5] = 255  # not labelled
    found = learn(coarse, [write_raster(tmp_path / "labels.tif", labels[None], **UTM)], LEGEND)
    assert found.values.tolist() == [3, 9]
    for number, value in enumerate((3, 9)):
        there = (values == value) & (np.arange(90)[:, None] >= 5)
        np.testing.assert_allclose(found.shares[number], np.bincount(index[there], minlength=3) / there.sum())
        assert found.pixels[number] == there.sum()


def test_probabilities_are_estimated_better_than_by_their_means(tmp_path: Path) -> None:
    """Probabilities by Bayes' rule from a noisy view of the class, with the shares of the region as the prior."""
    coarse = hint(tmp_path / "hint.tif")
    values, index = spread(coarse), drawn(spread(coarse))
    rng = np.random.default_rng(2)
    view = np.eye(3)[index] + rng.normal(scale=0.7, size=(*index.shape, 3))
    here = values > 0
    shares = np.bincount(index[here], minlength=3) / here.sum()
    p = shares * np.exp(view / 0.49)
    p /= p.sum(axis=-1, keepdims=True)
    path = write_raster(tmp_path / "p.tif", p.transpose(2, 0, 1).astype(np.float32), **UTM)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = LEGEND.names
    found = learn(coarse, [path], LEGEND)
    means = np.stack([p[values == value].mean(axis=0) for value in (3, 9)])
    np.testing.assert_allclose(found.shares, TRUTH, atol=0.04)
    assert np.abs(found.shares - TRUTH).max() < 0.3 * np.abs(means - TRUTH).max()


def test_the_command_writes_what_segment_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = hint(tmp_path / "hint.tif")
    labels = LEGEND.to_value(drawn(spread(coarse)).astype(np.uint8))
    image = write_raster(tmp_path / "image.tif", np.full((3, 90, 110), 99, np.uint8), **UTM)
    prior, table = tiny_prior(tmp_path / "tiny.safetensors"), tmp_path / "table.toml"
    path = write_raster(tmp_path / "labels.tif", labels[None], **UTM)
    found = call(capsys, "hint-table", coarse, path, "-o", table, "--prior", prior)
    assert (found.code, found.stderr) == (0, "")
    assert found.stdout == f"{table}: 2 values from 7000 pixels\n"
    assert list(tomllib.loads(table.read_text())) == ["3", "9"]
    rows = HintTable.read(str(table), LEGEND).rows
    np.testing.assert_allclose([rows[3], rows[9]], TRUTH, atol=0.03)
    words = ("segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, "--steps", 1, "--hint", coarse)
    assert call(capsys, *words, "--hint-table", table).code == 0
    again = call(capsys, "hint-table", coarse, path, "-o", table, "--prior", prior)
    assert (again.code, again.stderr.count("\n")) == (2, 1)


def test_names_that_need_quotes(tmp_path: Path) -> None:
    from segprior.legend import Legend, LegendClass

    legend = Legend((LegendClass('bare "soil"', 0, (0, 0, 0)), LegendClass("Weg & Straße", 1, (1, 1, 1))))
    shares = np.array([[0.25, 0.75]])
    CoOccurrence(np.array([7]), shares, np.array([4])).write(tmp_path / "t.toml", legend)
    np.testing.assert_allclose(HintTable.read(str(tmp_path / "t.toml"), legend).rows[7], shares[0])


def test_what_teaches_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse, prior = hint(tmp_path / "hint.tif"), tiny_prior(tmp_path / "tiny.safetensors")
    labels = np.zeros((1, 90, 110), np.uint8)
    far = write_raster(tmp_path / "far.tif", labels, crs=UTM["crs"], transform=Affine(0.5, 0, 9e5, 0, -0.5, 3e6))
    floats = write_raster(tmp_path / "floats.tif", labels.astype(np.float32), **UTM)
    cases = {
        (coarse, far): "none of 1 has a known pixel on it",
        (coarse, floats): "wanted a map of classes (one band of whole numbers) or of probabilities",
        (floats, far): "wanted a hint with one band of whole numbers",
        (tmp_path / "none.tif", far): "there is no file",
    }
    for words, expected in cases.items():
        found = call(capsys, "hint-table", *words, "-o", tmp_path / "t.toml", "--prior", prior)
        assert (found.code, found.stderr.count("\n")) == (2, 1)
        assert expected in found.stderr
        assert not (tmp_path / "t.toml").exists()
    with pytest.raises(RasterError, match="none of 0"):
        learn(coarse, [], LEGEND)
