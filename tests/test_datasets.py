"""The shape of the descriptors under datasets/, and whether the real files are those they describe."""

import hashlib
import itertools
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry import box

from segprior.legend import Legend
from segprior.windows import Window

ALL = sorted((Path(__file__).resolve().parents[1] / "datasets").glob("*/dataset.toml"))
DESCRIPTORS = [path for path in ALL if path.parent.name != "enviroatlas"]
"""Those whose files are at hand; enviroatlas has tests of its own."""

EVERYTHING = Window(0, 0, 10**9, 10**9)
TEXTS = {"name", "title", "licence", "source", "attribution"}


@pytest.fixture(params=DESCRIPTORS, ids=lambda path: path.parent.name)
def descriptor(request: pytest.FixtureRequest) -> dict[str, Any]:
    with request.param.open("rb") as file:
        return {**tomllib.load(file), "folder": request.param.parent.name}


def window_of(entry: dict[str, Any]) -> Window:
    return Window(*entry["window"]) if "window" in entry else EVERYTHING


def overlap(a: Window, b: Window) -> bool:
    rows = min(a.row + a.height, b.row + b.height) - max(a.row, b.row)
    cols = min(a.col + a.width, b.col + b.width) - max(a.col, b.col)
    return rows > 0 and cols > 0


def test_the_data_sets_are_described() -> None:
    assert [path.parent.name for path in ALL] == ["dubai", "enviroatlas", "fair"]


def test_head(descriptor: dict[str, Any]) -> None:
    keys = TEXTS | {"bands", "res", "classes", "scenes", "windows", "folder"}
    assert keys <= set(descriptor) <= keys | {"pixel_res"}
    assert all(isinstance(descriptor[key], str) and descriptor[key].strip() for key in TEXTS)
    assert descriptor["name"] == descriptor["folder"]
    assert descriptor["bands"] == [1, 2, 3]
    assert all(descriptor.get(key, 1.0) > 0 for key in ("res", "pixel_res"))
    assert len(Legend.from_dict({"classes": descriptor["classes"]})) >= 2


def test_scenes(descriptor: dict[str, Any]) -> None:
    scenes = descriptor["scenes"]
    sums = [scene[key] for scene in scenes for key in ("image_sha256", "labels_sha256")]
    files = [scene[key] for scene in scenes for key in ("image", "labels")]
    assert all(set(s) == {"name", "image", "labels", "image_sha256", "labels_sha256"} for s in scenes)
    assert all(len(bytes.fromhex(text)) == 32 and text == text.lower() for text in sums)
    assert not any(Path(file).is_absolute() or ".." in Path(file).parts for file in files)
    for unique in (sums, files, [scene["name"] for scene in scenes]):
        assert len(set(unique)) == len(unique)


def test_windows(descriptor: dict[str, Any]) -> None:
    for entry in descriptor["windows"]:
        assert {"scene", "split", "use"} <= set(entry) <= {"scene", "split", "use", "window"}
        assert entry["split"] in {"train", "val", "test"}
        assert entry["use"] in {"pairs", "images", "labels"}
        assert window_of(entry)
    assert {entry["scene"] for entry in descriptor["windows"]} == {scene["name"] for scene in descriptor["scenes"]}
    assert {entry["split"] for entry in descriptor["windows"]} == {"train", "val", "test"}


def test_windows_of_different_splits_are_disjoint(descriptor: dict[str, Any]) -> None:
    for a, b in itertools.combinations(descriptor["windows"], 2):
        if a["scene"] == b["scene"] and a["split"] != b["split"]:
            assert not overlap(window_of(a), window_of(b)), f"{a} and {b} share pixels"


def test_nairobi_is_never_a_pair_nor_a_headline() -> None:
    fair = tomllib.loads(DESCRIPTORS[1].read_text(encoding="utf-8"))
    uses = [(entry["split"], entry["use"]) for entry in fair["windows"] if entry["scene"] == "nairobi_a"]
    assert uses == [("train", "images"), ("train", "labels")]


def test_real_files_are_those_described(descriptor: dict[str, Any], data_dir: Path) -> None:
    folder = data_dir / descriptor["name"]
    values = {entry["value"] for entry in descriptor["classes"]} | {255}
    shapes = {}
    for scene in descriptor["scenes"]:
        for kind in ("image", "labels"):
            found = hashlib.sha256((folder / scene[kind]).read_bytes()).hexdigest()
            assert found == scene[f"{kind}_sha256"], scene[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # dubai has no CRS
            with rasterio.open(folder / scene["image"]) as image, rasterio.open(folder / scene["labels"]) as labels:
                assert (image.shape, image.transform, image.crs) == (labels.shape, labels.transform, labels.crs)
                assert image.count >= max(descriptor["bands"])
                assert set(np.unique(labels.read(1)).tolist()) <= values
                shapes[scene["name"]] = image.shape
    for entry in descriptor["windows"]:
        if "window" in entry:
            window = window_of(entry)
            assert window.intersection(*shapes[entry["scene"]]) == window


def test_splits_share_no_ground(data_dir: Path) -> None:
    fair = tomllib.loads(DESCRIPTORS[1].read_text(encoding="utf-8"))
    files = {scene["name"]: data_dir / "fair" / scene["image"] for scene in fair["scenes"]}
    ground = []
    for entry in fair["windows"]:
        with rasterio.open(files[entry["scene"]]) as image:
            window, t = window_of(entry).intersection(*image.shape), image.transform
        cols, rows = (window.col, window.col + window.width), (window.row, window.row + window.height)
        (left, right), (top, bottom) = (t.c + t.a * np.array(cols), t.f + t.e * np.array(rows))  # north is up
        ground.append((entry["split"], box(left, bottom, right, top)))
    for (split, a), (other, b) in itertools.combinations(ground, 2):
        assert split == other or not a.intersects(b)
