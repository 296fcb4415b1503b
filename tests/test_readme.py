"""The README's Python is run as it is written there; its TOML is read."""

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

import segprior
from segprior.census import SharesSource, open_zones
from segprior.checkpoint import read_card
from segprior.data import load_dataset
from segprior.raster import Grid


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), flags=re.S)


def write(path: Path, bands: int, most: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, most, (bands, 64, 96), dtype=np.uint8)
    profile = {"driver": "GTiff", "height": 64, "width": 96, "count": bands, "dtype": "uint8"}
    place = Affine(1.0, 0.0, 500_000.0, 0.0, -1.0, 4_000_000.0)
    with rasterio.open(path, "w", crs="EPSG:32640", transform=place, **profile) as file:
        file.write(pixels)


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # of rioxarray's
def test_the_python_runs_as_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "image.tif", 3, 255)
    code = blocks(root, "python")
    assert len(code) == 6
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102  # our own README
    assert "torch.Size([1, 5, 128, 128])" in capsys.readouterr().out
    with rasterio.open(tmp_path / "mask.tif") as mask, rasterio.open(tmp_path / "image.tif") as image:
        assert (mask.shape, mask.transform, mask.crs) == (image.shape, image.transform, image.crs)


def test_the_example_of_a_data_set_is_one(root: Path, tmp_path: Path) -> None:
    _, text = blocks(root, "toml")
    tomllib.loads(text)
    (tmp_path / "dataset.toml").write_text(text, encoding="utf-8")
    for folder in ("train", "val", "more"):
        write(tmp_path / folder / "a.tif" if folder != "more" else tmp_path / "more" / "b.tif", 3, 255)
    for folder in ("train_labels", "val_labels"):
        write(tmp_path / folder / "a.tif", 1, 2)
    shutil.copy(tmp_path / "val" / "a.tif", tmp_path / "val" / "c.tif")
    shutil.copy(tmp_path / "val_labels" / "a.tif", tmp_path / "val_labels" / "c.tif")
    dataset = load_dataset(str(tmp_path / "dataset.toml"))
    assert [(r.split, r.use) for r in dataset.regions] == [
        ("train", "pairs"),
        ("val", "pairs"),
        ("val", "pairs"),
        ("train", "images"),
    ]


def test_every_public_name_is_there() -> None:
    assert all(hasattr(segprior, name) for name in segprior.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = segprior.nothing


def test_the_example_of_shares_is_one(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "shares.toml"
    path.write_text(blocks(root, "toml")[0], encoding="utf-8")
    grid = Grid(10, 10, Affine.identity(), None)
    zones = open_zones(SharesSource(str(path)), grid, read_card("landcover").legend)
    assert np.isfinite(zones.shares).sum() == 2
