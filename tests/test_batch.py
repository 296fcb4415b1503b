"""Many rasters at once: bad ones among them, some done before, and the virtual raster that shows them as one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from commands import call
from rasters import checkered, write_raster
from tiny import tiny_prior

from segprior.batch import Item, Outcome, expand, plan, segment_all
from segprior.errors import OutputError, RasterError, SettingError
from segprior.options import Options
from segprior.solvers import solver_named
from segprior.vrt import mosaic

PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
OPTIONS = Options(solver=solver_named("fixed_point", 1), tile_size=64, overlap=0)


def scene(path: Path, *, row: int = 0, col: int = 0, seed: int = 0, shape: tuple[int, int] = (50, 60)) -> Path:
    transform = PLACE @ Affine.translation(col, row)
    return write_raster(path, checkered(3, *shape, seed=seed), crs="EPSG:32645", transform=transform)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


def mosaic_text(paths: list[Path]) -> str:
    """A virtual raster whose bands are the first ones of these rasters."""
    bands = []
    for number, path in enumerate(paths, 1):
        with rasterio.open(path) as dataset:
            kind = {"uint8": "Byte", "uint16": "UInt16"}[dataset.dtypes[0]]
        bands.append(
            f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource><SourceFilename>{path}</SourceFilename>'
            "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        )
    place = "<SRS>EPSG:32645</SRS><GeoTransform>500000, 0.5, 0, 3000000, 0, -0.5</GeoTransform>"
    return f'<VRTDataset rasterXSize="60" rasterYSize="50">{place}{"".join(bands)}</VRTDataset>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images beside each other and a bad one between them in the alphabet."""
    scene(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_text("no raster")
    scene(tmp_path / "c.tif", col=60, row=10, seed=1)
    return tmp_path


def all_of(folder: Path, prior: Path, **wishes: Any) -> list[Outcome]:
    items = plan(expand([str(folder / "*.tif")]), folder / "out", {"confidence": folder / "out" / "{stem}_sure.tif"})
    (folder / "out").mkdir(exist_ok=True)
    return list(segment_all(items, prior=prior, **({"options": OPTIONS} | wishes)))


def test_patterns_and_names(folder: Path) -> None:
    (folder / "[x].tif").write_text("a name like a pattern")
    files = [str(folder / name) for name in ("c.tif", "*.tif", "[x].tif")]
    assert [Path(name).name for name in expand(files)] == ["c.tif", "[x].tif", "a.tif", "b.tif"]
    with pytest.raises(RasterError, match=r"no file fits .*\*\.png"):
        expand([str(folder / "*.png")])
    items = plan(["x/a.tif", "y/b.jp2"], "out", {"confidence": "sure/{stem}.tif", "entropy": None})
    assert items == (
        Item("x/a.tif", Path("out/a.tif"), {"confidence": Path("sure/a.tif")}),
        Item("y/b.jp2", Path("out/b.tif"), {"confidence": Path("sure/b.tif")}),
    )
    for images, extras in ((["x/a.tif", "y/a.jp2"], {}), (["a.tif", "b.tif"], {"confidence": "one.tif"})):
        with pytest.raises(OutputError, match="both would write"):
            plan(images, "out", extras)


def test_a_bad_image_does_not_stop_the_rest_and_what_is_done_is_skipped(folder: Path, prior: Path) -> None:
    told: list[tuple[float, float]] = []
    first = all_of(folder, prior, progress=lambda done, whole: told.append((done, whole)))
    assert [outcome.state for outcome in first] == ["done", "failed", "done"]
    assert "is not one that GDAL can open" in first[1].reason
    assert told[-1] == (pytest.approx(0.006), pytest.approx(0.006))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    again = all_of(folder, prior)
    assert [outcome.state for outcome in again] == ["skipped", "failed", "skipped"]
    (folder / "out" / "a_sure.tif").unlink()
    scene(folder / "c.tif", col=60, row=10, seed=2)
    third = all_of(folder, prior)
    assert [outcome.state for outcome in third] == ["failed", "failed", "failed"]
    assert "it exists" in third[0].reason
    assert "it exists" in third[2].reason, "another image by now: not to be passed off as done"
    last = all_of(folder, prior, overwrite=True)
    assert [outcome.state for outcome in last] == ["done", "failed", "done"]
    other = all_of(folder, prior, options=Options(solver=OPTIONS.solver, tile_size=64, overlap=0, seed=1))
    assert [outcome.state for outcome in other] == ["failed"] * 3
    for look in ({"cog": True}, {"dtype": "uint8"}, {"style": True}):
        asked = all_of(folder, prior, **look)
        assert [outcome.state for outcome in asked] == ["failed"] * 3, f"{look} was not what was made before"


def test_a_file_that_holds_something_else_is_not_done(folder: Path, prior: Path) -> None:
    def states(**wishes: Any) -> list[str]:
        extras = {wishes.pop("layer", "confidence"): folder / "out" / "{stem}_x.tif"}
        (folder / "out").mkdir(exist_ok=True)
        items = plan([str(folder / "a.tif")], folder / "out", extras)
        return [o.state for o in segment_all(items, prior=prior, **({"options": OPTIONS} | wishes))]

    assert states() == ["done"]
    assert states() == ["skipped"]
    assert states(layer="entropy") == ["failed"], "it holds the confidence"
    assert states(options=replace(OPTIONS, on_error="nodata")) == ["failed"], "there, damage would be no error"
    assert states() == ["skipped"]


def test_the_mosaic_shows_what_was_made_of_these_images(
    folder: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").mkdir()
    shutil.copy(folder / "a.tif", folder / "out" / "a.tif")
    command = ("segment", folder / "a.tif", folder / "c.tif", "--output-dir", folder / "out", "--prior", prior)
    found = call(capsys, *command, "--steps", 1, "--tile-size", 64, "--overlap", 0, "--mosaic", folder / "all.vrt")
    assert found.code == 1
    assert found.stdout.splitlines()[-2:] == [f"{folder / 'all.vrt'}: 1 rasters as one", "1 done, 0 skipped, 1 failed"]
    assert "a.tif" not in (folder / "all.vrt").read_text()


def test_what_is_told_is_not_written_over(folder: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = folder / "hint.vrt"
    mosaic([folder / "a.tif"], told)
    (folder / "area.json").write_text("{}")
    before = told.read_text()
    command = ("segment", folder / "a.tif", "--prior", prior)
    for more, words in (
        (("--output-dir", folder / "out", "--unary", told, "--mosaic", told), "it is the input itself"),
        (
            ("-o", folder / "area.tif", "--known", folder / "area.json", "--stac", "--overwrite"),
            "it is the input itself",
        ),
        (("--output-dir", folder / "out", "--mosaic", folder / "all.tif"), r"wanted a mosaic ending in .vrt"),
    ):
        found = call(capsys, *command, *more)
        assert (found.code, found.stderr.count("\n")) == (2, 1)
        assert words in found.stderr
    assert told.read_text() == before
    assert (folder / "area.json").read_text() == "{}"
    assert not (folder / "out").exists()


def test_wrong_settings_stop_at_once(folder: Path, prior: Path) -> None:
    with pytest.raises(SettingError, match="wanted 3 bands"):
        all_of(folder, prior, options=Options(solver=OPTIONS.solver, bands=(1,)))


def test_the_command(folder: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "masks"
    command = ("segment", folder / "a.tif", folder / "[bc].tif", "--output-dir", out, "--prior", prior, "--steps", 1)
    found = call(capsys, *command, "--tile-size", 64, "--overlap", 0, "--mosaic", folder / "all.vrt")
    assert found.code == 1
    lines = found.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [str(out / "a.tif"), str(out / "c.tif")]
    assert lines[2:] == [f"{folder / 'all.vrt'}: 2 rasters as one", "2 done, 0 skipped, 1 failed"]
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith(f"{folder / 'b.tif'}: wanted a raster")
    (folder / "b.tif").unlink()
    found = call(capsys, *command, "--tile-size", 64, "--overlap", 0)
    assert (found.code, found.stderr) == (0, "")
    assert found.stdout.splitlines()[-1] == "0 done, 2 skipped, 0 failed"
    for wrong in (("-o", out / "x.tif"), ("-o", out / "x.tif", "--output-dir", out), ()):
        found = call(capsys, "segment", folder / "a.tif", folder / "c.tif", *wrong, "--prior", prior)
        assert found.code == 2
        assert "--output-dir DIR" in found.stderr


def test_bands_of_several_types_are_one_line(folder: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = write_raster(folder / "deep.tif", checkered(3, 50, 60).astype(np.uint16), crs="EPSG:32645", transform=PLACE)
    text = mosaic_text([folder / "a.tif", folder / "a.tif", deep])
    (folder / "mixed.vrt").write_text(text)
    found = call(capsys, "segment", folder / "mixed.vrt", "-o", folder / "m.tif", "--prior", prior)
    assert (found.code, found.stderr.count("\n")) == (2, 1)
    assert "wanted bands of one type" in found.stderr
    assert "uint16, uint8" in found.stderr


def test_a_bad_file_of_one_image_does_not_stop_the_rest(
    folder: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.toml").write_text("[shares]\nroof = 0.5\n")
    command = ("segment", folder / "a.tif", folder / "c.tif", "--output-dir", folder / "out", "--prior", prior)
    found = call(capsys, *command, "--steps", 1, "--tile-size", 64, "--overlap", 0, "--shares", folder / "{stem}.toml")
    assert found.code == 1
    assert found.stderr.count("\n") == 1
    assert "a.toml" in found.stderr
    assert found.stdout.splitlines()[-1] == "1 done, 0 skipped, 1 failed"


def test_an_image_is_not_written_over_by_the_mosaic_of_the_masks(
    folder: Path, prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = folder / "image.vrt"
    mosaic([folder / "a.tif", folder / "c.tif"], image)
    before = image.read_text()
    command = ("segment", image, "--output-dir", folder / "out", "--prior", prior, "--mosaic", image)
    found = call(capsys, *command)
    assert (found.code, found.stderr.count("\n")) == (2, 1)
    assert "the input itself" in found.stderr
    assert image.read_text() == before


def test_a_stac_item_is_not_written_over_by_that_of_its_mask(folder: Path, prior: Path) -> None:
    source = folder / "a.json"
    source.write_text(before := '{"type": "Feature"}')
    items = [Item(str(folder / "a.tif"), folder / "out" / "a.tif", source=str(source))]
    (folder / "out").mkdir()
    (folder / "out" / "a.json").hardlink_to(source)
    for _ in range(2):
        (outcome,) = segment_all(items, prior=prior, options=OPTIONS, stac=True, overwrite=True)
        assert outcome.state == "failed"
        assert "the input itself" in outcome.reason
    assert source.read_text() == before
    assert not (folder / "out" / "a.tif").exists()


def test_the_mosaic_shows_every_part_in_its_place(folder: Path, prior: Path) -> None:
    all_of(folder, prior)
    (folder / "b.tif").unlink()
    masks = [folder / "out" / name for name in ("a.tif", "c.tif")]
    mosaic(masks, folder / "all.vrt")
    shutil.copytree(folder, folder.parent / f"{folder.name}-moved")
    with rasterio.open(folder.parent / f"{folder.name}-moved" / "all.vrt") as got:
        assert (got.shape, got.crs.to_epsg(), got.nodata) == ((60, 120), 32645, 255)
        assert got.transform.almost_equals(PLACE)
        assert got.colorinterp[0].name == "palette"
        values, table = got.read(1), got.colormap(1)
    for path, rows, cols in zip(masks, (slice(0, 50), slice(10, 60)), (slice(0, 60), slice(60, 120)), strict=True):
        with rasterio.open(path) as part:
            np.testing.assert_array_equal(values[rows, cols], part.read(1))
            assert table[4] == part.colormap(1)[4]
    assert (values[50:, :60] == 255).all()
    assert "<Category>roof</Category>" in (folder / "all.vrt").read_text()


def test_rasters_that_make_no_mosaic(folder: Path) -> None:
    good = scene(folder / "a.tif")
    rotated = write_raster(
        folder / "r.tif", checkered(1, 9, 9), crs="EPSG:32645", transform=Affine(0.5, 0.1, 5e5, 0.1, -0.5, 3e6)
    )
    nowhere = write_raster(folder / "n.tif", checkered(1, 9, 9))
    twice = Affine(1, 0, 5e5, 0, -1, 3e6)
    coarse = write_raster(folder / "k.tif", checkered(1, 9, 9), crs="EPSG:32645", transform=twice)
    for bad, words in ((rotated, "is rotated"), (nowhere, "no place on Earth"), (coarse, "CRS or pixel size differ")):
        with pytest.raises(RasterError, match=words):
            mosaic([good, bad], folder / "x.vrt")
    with pytest.raises(OutputError, match=r"ending in \.vrt"):
        mosaic([good], folder / "x.tif")
