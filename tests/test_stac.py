"""STAC items in and out, against pystac's own schema and the grid's corners."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from commands import Outcome, call
from rasters import checkered, write_raster
from tiny import tiny_prior

from segprior import stac
from segprior.errors import OutputError, RasterError, SettingError
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.raster import grid_of
from segprior.segmentation import segment
from segprior.stac import asset_href, write_item

SMALL = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32)
UTM: dict[str, Any] = {"crs": "EPSG:32645", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
TAKEN = datetime(2021, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


def made(folder: Path, prior: Path, **place: Any) -> dict[str, Path]:
    """A mask, with its confidence and probabilities."""
    image = write_raster(folder / "image.tif", checkered(3, 60, 80), **place)
    files = {name: folder / f"{name}.tif" for name in ("mask", "confidence", "probabilities")}
    others = {name: path for name, path in files.items() if name != "mask"}
    segment(image, files["mask"], prior=prior, options=SMALL, **others)  # type: ignore[call-overload]  # names of files
    return {"image": image, **files}


def good(outcome: Outcome) -> Outcome:
    assert (outcome.code, outcome.stderr) == (0, "")
    return outcome


def an_item(path: Path, assets: dict[str, str], **more: Any) -> Path:
    item = pystac.Item("scene", {"type": "Point", "coordinates": [0, 0]}, [0, 0, 0, 0], TAKEN, {}, **more)
    for key, href in assets.items():
        kind = pystac.MediaType.JSON if href.endswith(".json") else pystac.MediaType.COG
        item.add_asset(key, pystac.Asset(href, media_type=kind))
    path.write_text(json.dumps(item.to_dict(include_self_link=False)))
    return path


def valid_by_the_core_schema(path: Path) -> pystac.Item:
    """Schemas of extensions lie on the net; that of the core comes with pystac."""
    item = pystac.Item.from_file(path)
    core = item.clone()
    core.stac_extensions = []
    core.validate()
    return item


@pytest.mark.parametrize(
    "place",
    [
        UTM,
        {"crs": "EPSG:4326", "transform": Affine(1e-5, 0, 85.0, 0, -1e-5, 27.0)},
        {"crs": "EPSG:32645", "transform": Affine(0.4, 0.3, 500_000, 0.3, -0.4, 3_000_000)},
    ],
)
def test_an_item_for_a_result(prior: Path, tmp_path: Path, place: dict[str, Any]) -> None:
    files = made(tmp_path, prior, **place)
    others = {name: files[name] for name in ("confidence", "probabilities")}
    path = write_item(files["mask"], others=others)
    assert path == tmp_path / "mask.json"
    item = valid_by_the_core_schema(path)
    assert item.id == "mask"
    assert item.properties["proj:code"] == place["crs"]
    assert item.properties["proj:shape"] == [60, 80]
    assert item.properties["proj:transform"] == list(place["transform"])[:6]
    assert item.properties["segprior:prior"] == "tiny"
    assert item.properties["processing:software"].keys() == {"segprior"}
    classes = item.assets["classes"].extra_fields["classification:classes"]
    assert [(c["value"], c["name"], c["color_hint"]) for c in classes] == [
        (0, "background", "DECBA4"),
        (2, "road", "5A5A6E"),
        (4, "roof", "D64541"),
    ]
    for key, name in (("classes", "mask"), ("confidence", "confidence"), ("probabilities", "probabilities")):
        assert item.assets[key].get_absolute_href() == str(files[name])
    assert item.assets["confidence"].extra_fields == {"data_type": "float32", "nodata": "nan"}
    named = item.assets["probabilities"].extra_fields["bands"]
    assert [band["name"] for band in named] == ["background", "roof", "road"]
    outline = shapely.geometry.shape(item.geometry)
    assert outline.exterior.is_ccw
    assert outline.bounds == pytest.approx(item.bbox)
    transform = place["transform"]
    corners = np.array([transform @ corner for corner in ((0, 0), (80, 0), (80, 60), (0, 60))])
    to_degrees = pyproj.Transformer.from_crs(place["crs"], 4326, always_xy=True)
    ring = shapely.Polygon(np.column_stack(to_degrees.transform(*corners.T)))
    assert outline.symmetric_difference(ring).area < 1e-5 * ring.area


def test_when_it_was_taken(prior: Path, tmp_path: Path) -> None:
    """As the source item says; else the time of making, for nothing is known."""
    files = made(tmp_path, prior, **UTM)
    source = an_item(tmp_path / "scene.json", {"visual": "image.tif"})
    item = valid_by_the_core_schema(write_item(files["mask"], source=source))
    assert item.datetime == TAKEN
    (link,) = item.get_links("derived_from")
    assert link.get_absolute_href() == str(source)
    again = pystac.Item.from_file(write_item(files["mask"], overwrite=True))
    assert again.datetime is not None
    assert abs(again.datetime.timestamp() - files["mask"].stat().st_mtime) < 1
    with pytest.raises(OutputError, match="it exists"):
        write_item(files["mask"])


def test_the_image_says_when_it_was_taken(prior: Path, tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", checkered(3, 60, 80), **UTM)
    with rasterio.open(image, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2021:05:06 07:08:09", TIFFTAG_SOFTWARE="a camera")
    segment(image, tmp_path / "mask.tif", prior=prior, options=SMALL, confidence=tmp_path / "sure.tif")
    for name in ("mask.tif", "sure.tif"):
        with rasterio.open(tmp_path / name) as dataset:
            assert dataset.tags()["TIFFTAG_DATETIME"] == "2021:05:06 07:08:09"
            assert "TIFFTAG_SOFTWARE" not in dataset.tags()
    assert valid_by_the_core_schema(write_item(tmp_path / "mask.tif")).datetime == TAKEN


@pytest.mark.parametrize(
    ("place", "west", "east", "parts"),
    [
        ({"crs": "EPSG:32660", "transform": Affine(500, 0, 800_000, 0, -500, 2_000_000)}, 179.83, -179.79, 2),
        ({"crs": "EPSG:4326", "transform": Affine(0.01, 0, 179.6, 0, -0.01, 60)}, 179.6, -179.6, 2),
        ({"crs": "EPSG:4326", "transform": Affine(0.01, 0, 180.4, 0, -0.01, 60)}, -179.6, -178.8, 1),
        ({"crs": "EPSG:4326", "transform": Affine(0.01, 0, 179.2, 0, -0.01, 60)}, 179.2, 180, 1),
        ({"crs": "EPSG:4326", "transform": Affine(4.5, 0, 0, 0, -3, 90)}, -180, 180, 1),
    ],
)
def test_places_at_180_degrees(place: dict[str, Any], west: float, east: float, parts: int, tmp_path: Path) -> None:
    """RFC 7946, 3.1.9 and 5.2: cut there, and the box's west is east of its east."""
    with rasterio.open(write_raster(tmp_path / "a.tif", checkered(3, 60, 80), **place)) as dataset:
        outline = stac._footprint(grid_of(dataset), tmp_path)
    found = shapely.geometry.shape(outline)
    assert [found.is_valid, shapely.get_num_geometries(found)] == [True, parts]
    assert all(part.exterior.is_ccw for part in shapely.get_parts(found))
    assert all(-180 <= bound <= 180 for bound in found.bounds)
    assert stac._box(outline)[::2] == pytest.approx([west, east], abs=0.01)


def test_assets(tmp_path: Path) -> None:
    one = an_item(tmp_path / "one.json", {"visual": "./a/image.tif", "notes": "notes.json"})
    two = an_item(tmp_path / "two.json", {"visual": "https://example.com/v.tif", "red": "r.tif"})
    assert asset_href(one) == asset_href(one, "visual") == str(tmp_path / "a" / "image.tif")
    assert asset_href(two, "visual") == "https://example.com/v.tif"
    with pytest.raises(RasterError, match=r"name of one asset of .*, its assets are visual, red; give --asset NAME"):
        asset_href(two)
    with pytest.raises(RasterError, match=r"wanted the asset green of .*, its assets are visual, red"):
        asset_href(two, "green")
    for name, text in (("text.json", "text"), ("list.json", "[]"), ("other.json", '{"type": "FeatureCollection"}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(RasterError, match=r"wanted a STAC item, .* is none"):
            asset_href(tmp_path / name)
    with pytest.raises(RasterError, match="is none"):
        asset_href(tmp_path / "gone.json")


def test_no_place_no_item(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made(tmp_path, prior)
    with pytest.raises(RasterError, match="wanted a raster with a place on Earth for a STAC item"):
        write_item(files["mask"])
    assert not (tmp_path / "mask.json").exists()
    monkeypatch.setitem(sys.modules, "pystac", None)
    with pytest.raises(SettingError, match=r'pip install "segprior\[stac\]"'):
        write_item(files["mask"])


def test_from_the_command_line(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_raster(tmp_path / "image.tif", checkered(3, 60, 80), **UTM)
    source = an_item(tmp_path / "scene.json", {"visual": image.name, "red": image.name})
    small = ("--prior", prior, "--steps", 1, "--tile-size", 64, "--overlap", 32, "--stac")
    found = good(call(capsys, "segment", source, "--asset", "visual", "-o", tmp_path / "mask.tif", *small))
    assert "mask.json: its STAC item" in found.stdout
    assert valid_by_the_core_schema(tmp_path / "mask.json").datetime == TAKEN
    refused = call(capsys, "segment", source, "--asset", "visual", "-o", tmp_path / "scene.tif", *small)
    assert refused.code == 2
    assert "scene.json: it is the input itself" in refused.stderr
    assert not (tmp_path / "scene.tif").exists()
    many = ("segment", source, "--asset", "visual", "--output-dir", tmp_path / "out", *small)
    good(call(capsys, *many))
    assert valid_by_the_core_schema(tmp_path / "out" / "scene.json").get_links("derived_from")
    (tmp_path / "out" / "scene.json").unlink()
    assert "done before" in good(call(capsys, *many)).stdout
    assert (tmp_path / "out" / "scene.json").exists()
