"""The scripts that measure rasters and vectors: small, and against what they must find."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from generated import CLASSES, card_of, write_dataset
from PIL import Image
from rasters import checkered, write_raster
from tiny import LEGEND, tiny_prior

from segprior.checkpoint import Prior, build_denoiser, save_prior
from segprior.data import load_dataset
from segprior.errors import DatasetError, SettingError
from segprior.findings import check_classes, check_one_image
from segprior.vector import Tracing

PLACE = Affine(1, 0, 500_000, 0, -1, 3_000_000)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read as Linux tells it"),
]


def script(root: Path, name: str) -> dict[str, Any]:
    return runpy.run_path(str(root / "scripts" / f"{name}.py"))


@pytest.mark.slow
def test_polygons_by_all_ways(root: Path, tmp_path: Path) -> None:
    """As many as shapes finds; fewer where small ones are filled; every way in a process of its own."""
    names = script(root, "bench_vectors")
    names["main"](size=150, simplified=True, results=tmp_path, way=None, raster=None)
    runs = json.loads((tmp_path / "bench_vectors.json").read_text())
    assert set(runs) == {"imports", *names["WAYS"], *names["SIMPLIFIED"]}
    count = runs["export"]["polygons"]
    assert count == runs["shapes + geopandas"]["polygons"] == runs["export --simplify 1"]["polygons"]
    assert 0 < runs["export --min-area 20 --fill"]["polygons"] < count
    assert "| shapes + geopandas |" in (tmp_path / "bench_vectors.md").read_text()


@pytest.mark.slow
def test_memory_is_measured(root: Path, tmp_path: Path) -> None:
    names = script(root, "bench_memory")
    names["main"](heights="300,600", width=300, probabilities=True, res=1.0, results=tmp_path, one=None, folder=None)
    runs = json.loads((tmp_path / "bench_memory.json").read_text())
    assert [run["height"] for run in runs] == [0, 300, 600]
    assert all(run["peak_bytes"] > 2**27 for run in runs), "torch alone is more"
    assert "| 600 |" in (tmp_path / "bench_memory.md").read_text()


def test_seams_that_are_there_are_seen(root: Path) -> None:
    """Blocks whose pixels differ near the lines twice as often as elsewhere."""
    names = script(root, "seams")
    rng = np.random.default_rng(0)
    lines = np.zeros((512, 512), np.bool_)
    lines[:, 120:130], lines[250:260] = True, True
    told = rng.random(lines.shape) < 0.9
    for factor in (1.0, 2.0):
        so = rng.random(lines.shape) < np.where(lines, factor * 0.2, 0.2)
        found = names["ratio"](names["blocks"](so, lines, told))
        assert found.low < factor < found.high
        assert found.high - found.low < 0.3
        assert found.near == pytest.approx(so[lines & told].mean())
        assert found.elsewhere == pytest.approx(so[~lines & told].mean())


def test_seams_are_measured_on_a_data_set(root: Path, tmp_path: Path) -> None:
    """A network of random weights sees far, so windows that share nothing show more of a seam than others."""
    names = script(root, "seams")
    write_raster(tmp_path / "a.tif", checkered(3, 400, 420))
    write_raster(tmp_path / "a_labels.tif", np.zeros((1, 400, 420), np.uint8))
    classes = "".join(
        f'[[classes]]\nname = "{c.name}"\nvalue = {c.value}\ncolor = {list(c.color)}\n' for c in LEGEND.classes
    )
    scene = '[[scenes]]\nimage = "a.tif"\nlabels = "a_labels.tif"\nsplit = "val"\n'
    (tmp_path / "dataset.toml").write_text(f"res = 0.5\n{classes}{scene}")
    prior = tiny_prior(tmp_path / "tiny.safetensors")
    names["main"]([str(tmp_path / "dataset.toml")], prior=[str(prior)], results=tmp_path)
    (kinds,) = json.loads((tmp_path / "seams.json").read_text()).values()
    assert set(kinds) == {f"{s}, {k}" for s in names["SIZES"] for k in names["KINDS"]}
    assert kinds["none shared, disagreement"]["ratio"] > 1.2
    assert kinds["none shared, disagreement"]["near"] > kinds["64 shared, disagreement"]["near"]
    assert "| 64 shared, change |" in (tmp_path / "seams.md").read_text()


def test_superpixels_of_clicks_are_painted(root: Path) -> None:
    names = script(root, "bench_clicks")
    truth = np.zeros((64, 64), np.uint8)
    truth[10:21, 10:31] = 1
    parts = np.zeros_like(truth, dtype=int)
    parts[8:23, 8:33] = 1
    painted = names["filled"](np.zeros_like(truth), parts, truth, [(15, 20)])
    np.testing.assert_array_equal(painted, parts)


def test_clicks_are_compared(root: Path, tmp_path: Path) -> None:
    names = script(root, "bench_clicks")
    dataset = write_dataset(tmp_path)
    torch.manual_seed(0)
    for kind in ("joint", "plain"):
        card = replace(card_of(load_dataset(str(dataset))), name=kind, plain=kind == "plain")
        save_prior(Prior(card, build_denoiser(card).eval()), tmp_path / f"{kind}.safetensors")
    own, other = str(tmp_path / "joint.safetensors"), str(tmp_path / "plain.safetensors")
    names["main"]([str(dataset)], prior=[own], opponent=[other], radius=2, results=tmp_path)
    (rows,) = json.loads((tmp_path / "bench_clicks.json").read_text()).values()
    assert list(rows) == [
        *(f"prior, {way}" for way in ("no clicks", "discs", "superpixels", "alike", "known", "known, alike")),
        *(f"opponent, {way}" for way in ("no clicks", "discs", "superpixels", "alike")),
    ]
    assert rows["prior, discs"]["10"] > rows["prior, no clicks"]["10"]
    assert rows["prior, superpixels"]["10"] > rows["prior, discs"]["10"]
    assert rows["opponent, superpixels"]["10"] > rows["opponent, discs"]["10"]
    assert len({rows[f"prior, {way}"]["10"] for way in ("no clicks", "alike", "known", "known, alike")}) == 4
    assert "| prior, known |" in (tmp_path / "bench_clicks.md").read_text()


@pytest.mark.slow
def test_constraints_are_compared_with_their_controls(root: Path, tmp_path: Path) -> None:
    """What is told of the truth helps everyone, here networks that know nothing."""
    names = script(root, "bench_constraints")
    dataset = write_dataset(tmp_path)
    torch.manual_seed(0)
    for kind in ("joint", "plain"):
        card = replace(card_of(load_dataset(str(dataset))), name=kind, plain=kind == "plain")
        save_prior(Prior(card, build_denoiser(card).eval()), tmp_path / f"{kind}.safetensors")
    own, other = str(tmp_path / "joint.safetensors"), str(tmp_path / "plain.safetensors")
    names["main"]([str(dataset)], prior=[own], opponent=[other], cell=[4.0], split="val", results=tmp_path)
    ((_, found),) = json.loads((tmp_path / "bench_constraints_val.json").read_text()).items()
    ways = found["ways"]
    assert {way.partition(":")[0] for way in ways} == {
        "nothing",
        "shares",
        "hints",
        "unary",
        "points",
        "clicks",
        "survey",
    }
    assert ways["nothing: U-Net"]["mIoU"][1] == [0, 0, 0]
    for way in ("hints: prior", "hints: U-Net, softly", "points: prior", "clicks: prior", "survey: prior"):
        assert ways[way]["mIoU"][0][0] > ways["nothing: prior"]["mIoU"][0][0], way
        assert ways[way]["mIoU"][2][0] > 0
    assert "| hints: alone |" in (tmp_path / "bench_constraints_val.md").read_text()


def test_outlines_are_compared(root: Path, tmp_path: Path) -> None:
    names = script(root, "bench_outlines")
    truth = np.zeros((20, 20), np.bool_)
    truth[5:15, 5:15] = True
    mask = write_raster(tmp_path / "m.tif", truth[None].astype(np.uint8), crs="EPSG:32645", transform=PLACE)
    both, either, count, corners = names["compared"](mask, Tracing(), "1", truth, np.ones_like(truth))
    assert (both, either, count, corners) == (100, 100, 1, 5)
    shifted = names["compared"](mask, Tracing(), "1", np.roll(truth, 5, axis=1), np.ones_like(truth))
    assert shifted[:2].tolist() == [50, 150]
    names["write"](tmp_path, {"pixels": names["row"](shifted)}, "squares", "tiny", "1")
    assert "| pixels | 0.3333 | 1 | 5 |" in (tmp_path / "bench_outlines.md").read_text()


def test_the_gallery_has_a_row_for_each_constraint(root: Path, tmp_path: Path) -> None:
    names = script(root, "gallery")
    rows, cols = np.mgrid[:96, :96]
    truth = ((rows // 24 + cols // 24) % 2).astype(np.uint8)
    place: dict[str, Any] = {"crs": "EPSG:32645", "transform": PLACE}
    write_raster(tmp_path / "image.tif", np.repeat(truth[None] * 90 + 60, 3, axis=0), **place)
    write_raster(tmp_path / "labels.tif", truth[None] * 4 + 3, **place)
    scene = '[[scenes]]\nname = "one"\nimage = "image.tif"\nlabels = "labels.tif"\nsplit = "val"\n'
    (tmp_path / "dataset.toml").write_text(f'name = "here"\nres = 1.0\n{CLASSES}{scene}', encoding="utf-8")
    dataset = load_dataset(str(tmp_path / "dataset.toml"))
    for kind in ("joint", "plain"):
        card = replace(card_of(dataset), name=kind, plain=kind == "plain")
        save_prior(Prior(card, build_denoiser(card).eval()), tmp_path / f"{kind}.safetensors")
    own, other = str(tmp_path / "joint.safetensors"), str(tmp_path / "plain.safetensors")
    names["main"](str(tmp_path / "dataset.toml"), "one", prior=own, opponent=other, side=96, output=tmp_path)
    with Image.open(tmp_path / "gallery_one.png") as picture:
        assert picture.height > 1.8 * picture.width, "seven rows of three"
    with pytest.raises(DatasetError, match="wanted a scene"):
        names["main"](str(tmp_path / "dataset.toml"), "two", prior=own, opponent=None, side=96, output=tmp_path)


def test_networks_that_cannot_be_compared_are_refused() -> None:
    """Of other classes or another order of them, or such as see another image."""
    check_classes("a set", ("ground", "roof"), ("ground", "roof"), ("ground", "roof"))
    for found in (("roof", "ground"), ("ground",)):
        with pytest.raises(SettingError, match="wanted the classes of a set in their order, ground, roof, got "):
            check_classes("a set", ("ground", "roof"), ("ground", "roof"), found)
    check_one_image(((1, 2, 3), (0.5,)), ((1, 2, 3), (0.5,)))
    with pytest.raises(SettingError, match="wanted networks of the same bands, mean and std"):
        check_one_image(((1, 2, 3), (0.5,)), ((1, 2, 3), (0.6,)))
