"""Protocols: descriptors that extend another, and the shipped ones with few labels and a new region."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from commands import DESCRIPTOR

from segprior.data import Dataset, dataset_names, load_dataset
from segprior.errors import DatasetError
from segprior.plots import read_plots
from segprior.windows import Window

SCENES = """
[[scenes]]
image = "a.tif"
labels = "a_labels.tif"
split = "train"

[[scenes]]
image = "b.tif"
split = "train"
"""
WINDOW = """
[[windows]]
scene = "a"
split = "val"
window = [1, 2, 3, 4]
"""


def write(folder: Path, protocol: str) -> str:
    (folder / "dataset.toml").write_text(f'name = "base"\n{DESCRIPTOR}{SCENES}')
    (folder / "new.toml").write_text(protocol)
    return str(folder / "new.toml")


def test_a_protocol_takes_over_all_but_what_is_used_for_what(tmp_path: Path) -> None:
    found = load_dataset(write(tmp_path, f'extends = "dataset.toml"\nname = "base/new"\nres = 2.0\n{WINDOW}'))
    base = load_dataset(str(tmp_path / "dataset.toml"))
    assert (found.name, found.res, found.legend) == ("base/new", 2.0, base.legend)
    (region,) = found.regions
    assert (region.scene, region.split, region.use) == (base.regions[0].scene, "val", "pairs")
    assert region.window == Window(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        (f'extends = "gone.toml"\n{WINDOW}', "found no file at .*gone.toml"),
        (f'extends = "new.toml"\n{WINDOW}', "extends none, got new.toml"),
        ('extends = "dataset.toml"\n', "at least one scene or window"),
    ],
)
def test_protocols_that_are_refused(tmp_path: Path, protocol: str, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        load_dataset(write(tmp_path, protocol))


def pixels(dataset: Dataset) -> int:
    return sum(
        plot.index.size for plot in read_plots(dataset, "train", "pairs") if plot.index is not None
    )  # as many as labels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fair", "dubai"])
def test_few_labels_are_among_the_many_and_cover_their_share(name: str, data_dir: Path, root: Path) -> None:
    whole, quarter, sixteenth = (load_dataset(n) for n in (name, f"{name}/quarter", f"{name}/sixteenth"))
    assert {f"{name}/quarter", f"{name}/sixteenth"} < set(dataset_names())
    few, some = ({(r.scene.name, r.window) for r in d.select("train", "pairs")} for d in (sixteenth, quarter))
    assert few < some
    everything = pixels(whole)
    assert pixels(quarter) / everything == pytest.approx(1 / 4, rel=0.02)
    assert pixels(sixteenth) / everything == pytest.approx(1 / 16, rel=0.02)
    for d in (quarter, sixteenth):
        assert [d.select(split, "pairs") for split in ("val", "test")] == [
            whole.select(split, "pairs") for split in ("val", "test")
        ]
        labelled = {r.scene.name for r in whole.select("train", "pairs")}
        assert labelled <= {r.scene.name for r in d.select("train", "images")}
    write_text = runpy.run_path(str(root / "scripts" / "few_labels.py"))["protocol_text"]
    published = (root / "datasets" / name / "quarter.toml").read_text()
    assert write_text(whole, name, "quarter", part=4, seed=0) == published


@pytest.mark.parametrize("held", ["tile6", "tile8"])
def test_a_scene_that_is_left_out_is_all_that_is_validated_on(held: str, data_dir: Path, root: Path) -> None:
    """Its labels and imagery are in no training, the others' windows stay, and the test scene is not there at all."""
    few, without = load_dataset("dubai/sixteenth"), load_dataset(f"dubai/sixteenth_without_{held}")
    (region,) = (r for r in without.regions if r.split != "train")
    assert (region.scene.name, region.split, region.use, region.window) == (held, "val", "pairs", None)
    assert [r for r in without.regions if r.split == "train"] == [
        r for r in few.regions if r.split == "train" and r.scene.name != held
    ]
    write_text = runpy.run_path(str(root / "scripts" / "few_labels.py"))["protocol_text"]
    published = (root / "datasets" / "dubai" / f"sixteenth_without_{held}.toml").read_text()
    whole, name = load_dataset("dubai"), f"sixteenth_without_{held}"
    assert write_text(whole, "dubai", name, part=16, seed=0, held=held) == published


def test_the_new_region_has_no_label_of_the_target() -> None:
    dataset = load_dataset("fair/newregion")
    seen = {r.scene.name for r in dataset.regions if r.split == "train"}
    judged = {r.scene.name for r in dataset.regions if r.split != "train"}
    assert seen == {"zanzibar_a", "kampala_a", "kampala_b", "nairobi_a"}
    assert judged == {"banepa_a", "panauti_a", "catanduanes_b"}
    published = load_dataset("fair")
    assert dataset.select("test", "pairs") == published.select("test", "pairs")
    val, test = (
        [r.window for r in dataset.regions if r.scene.name == "banepa_a" and r.split == split]
        for split in ("val", "test")
    )
    assert all(v is not None and t is not None and v.row + v.height + 256 <= t.row for v in val for t in test)
    assert np.all([r.window is None for r in dataset.select("train", "pairs")])


def test_the_imagery_of_the_new_region_is_seen_without_labels() -> None:
    """All else is as in the protocol that does not see it."""
    plain, seeing = load_dataset("fair/newregion"), load_dataset("fair/newregion_imagery")
    more = [region for region in seeing.regions if region not in plain.regions]
    assert [region for region in seeing.regions if region in plain.regions] == list(plain.regions)
    assert {(r.scene.name, r.split, r.use, r.window) for r in more} == {
        (name, "train", "images", None) for name in ("banepa_a", "panauti_a", "catanduanes_b")
    }
