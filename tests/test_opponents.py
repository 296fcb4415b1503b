"""The scripts that ask more of a prior's opponents, on a generated data set; and how findings are written."""

import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from generated import card_of, save_random, write_dataset, write_tiff

from segprior.checkpoint import load_prior
from segprior.counts import Counter
from segprior.data import load_dataset
from segprior.errors import SettingError
from segprior.evaluate import SCORES
from segprior.findings import bounds, points, publish


def script(root: Path, name: str) -> dict[str, Any]:
    return runpy.run_path(str(root / "scripts" / f"{name}.py"))


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("rectangles"), size=288)


@pytest.fixture(scope="module")
def prior(descriptor: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prior of random layers."""
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    save_random(card_of(load_dataset(str(descriptor))), path, seed=2)
    return str(path)


def test_findings_are_words_and_numbers(tmp_path: Path) -> None:
    publish(tmp_path / "new" / "a_0.5", "words\n", {"b": [1]})
    publish(tmp_path / "new" / "a_0.5", "other words\n", {"b": [2]})
    assert (tmp_path / "new" / "a_0.5.md").read_text() == "other words\n"
    assert json.loads((tmp_path / "new" / "a_0.5.json").read_text()) == {"b": [2]}
    assert points([0.0123, -0.004, 0.02]) == "+1.2 (-0.4 to +2.0)"
    assert points([0.0123, -0.004, 0.02], 2) == "+1.23 (-0.40 to +2.00)"


def test_bounds_are_paired() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (512, 512)).astype(np.uint8)
    right = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth)
    counts = []
    for classes in (right, truth):
        counter = Counter(*truth.shape, classes=2)
        counter.add(0, truth, np.stack([1.0 - classes, classes]).astype(np.float32))
        counts.append(counter.finish(pixel=(1.0, 1.0), tolerance=1.0))
    value, low, high = bounds(counts[0], SCORES["accuracy"])
    assert low < value < high
    assert value == pytest.approx(0.8, abs=0.01)
    assert bounds(counts[1], SCORES["accuracy"]) == [1.0, 1.0, 1.0]
    apart = bounds(counts[0], SCORES["accuracy"], counts[1])
    assert apart == pytest.approx([value - 1, low - 1, high - 1], abs=2e-5)


@pytest.mark.slow
def test_resolutions_are_shifted(root: Path, descriptor: Path, prior: str, tmp_path: Path) -> None:
    names = script(root, "bench_resolution")
    names["main"]([str(descriptor)], prior=[prior], opponent=[prior], results=tmp_path)
    (table,) = json.loads((tmp_path / "bench_resolution_val.json").read_text()).values()
    assert list(table) == ["detail 2x", "detail 1x", "detail 0.5x", "scale 2x", "scale 0.5x"]
    for ways in table.values():
        assert list(ways) == ["U-Net", "prior", "U-Net, 3 turns", "prior, 3 turns"]
        assert ways["prior"]["mIoU"] == [ways["U-Net"]["mIoU"][0], [0, 0, 0]], "they are the same network"
    # the scene is no finer than 1 m, so that there is nothing to take away above
    assert table["detail 2x"] == table["detail 1x"]
    assert table["detail 0.5x"] != table["detail 1x"]
    apart = {table[name]["prior"]["mIoU"][0][0] for name in ("detail 1x", "scale 2x", "scale 0.5x")}
    assert len(apart) == 3
    with pytest.raises(SettingError, match="for each of 1"):
        names["main"]([str(descriptor)], prior=[prior, prior], opponent=[prior], results=tmp_path)


def test_blur_takes_detail_and_leaves_the_grid(root: Path, tmp_path: Path) -> None:
    """A chequerboard of single pixels becomes flat, one of four pixels keeps its means."""
    blur = script(root, "bench_resolution")["blur"]
    path = tmp_path / "a.tif"
    rows, cols = np.indices((32, 32))
    image = np.stack([(rows + cols) % 2, (rows // 4 + cols // 4) % 2]).astype(np.uint8) * 200
    for pixels, finest, coarse in ((1.0, 200, 200), (2.0, 0, 150)):
        write_tiff(path, image)
        blur(path, pixels)
        with rasterio.open(path) as file:
            found = file.read().astype(int)
        assert found.shape == image.shape
        assert np.ptp(found[0]) == finest
        assert np.ptp(found[1]) >= coarse


@pytest.mark.slow
def test_maps_are_refined(root: Path, descriptor: Path, prior: str, tmp_path: Path) -> None:
    main = script(root, "bench_refinement")["main"]
    main([str(descriptor)], prior=[prior], opponent=[prior], kernel=[5], eps=[1e-6, 1e3], results=tmp_path)
    (ways,) = json.loads((tmp_path / "bench_refinement_val.json").read_text()).values()
    filters = ["guided filter 5, 1e-06", "guided filter 5, 1000"]
    assert list(ways) == ["U-Net", *(f"U-Net, {f}" for f in filters), "prior", *(f"prior, {f}" for f in filters)]
    assert ways["prior"]["mIoU"] == [ways["U-Net"]["mIoU"][0], [0, 0, 0]]
    flat, followed = (ways[f"prior, {f}"]["mIoU"][0][0] for f in reversed(filters))
    assert flat != followed, "colours are followed, or not"
    assert "| prior, guided filter 5, 1000 |" in (tmp_path / "bench_refinement_val.md").read_text()


@pytest.mark.slow
def test_the_official_way_is_compared(root: Path, descriptor: Path, prior: str, tmp_path: Path) -> None:
    names = script(root, "official")
    only = tmp_path / "only.safetensors"
    given = {
        "labels_only": only,
        "prior": prior,
        "opponent": prior,
        "cell": 16.0,
        "steps": 2,
        "encoder_weights": "none",
    }
    names["main"](str(descriptor), **given, iterations=2, windows=3, results=tmp_path)
    assert load_prior(only).card.training["settings"]["mix"]["kinds"] == [0, 0, 0, 0, 1]
    table = json.loads((tmp_path / "official_rectangles_val.json").read_text())
    assert (table["windows"], table["iterations"], table["training_steps"]) == (1, 2, 2)
    ways = table["ways"]
    assert ways["U-Net"]["mIoU"] == ways["joint prior"]["mIoU"], "they are the same network"
    assert ways["U-Net, hints"]["mIoU"][0] > ways["U-Net"]["mIoU"][0], "hints help a network that knows nothing"
    assert ways["joint prior, hints and clusters"]["mIoU to the last"] == [0, 0, 0]
    assert len(ways) == 10


def test_the_papers_times_fall_with_ripples(root: Path) -> None:
    times = script(root, "official")["paper_times"](500)
    assert len(times) == 500
    assert 0.6 < times[0] < 0.8
    assert times[-1] == pytest.approx(0.01, abs=0.01)
    rises = sum(b > a for a, b in pairwise(times))
    assert 50 < rises < 250
