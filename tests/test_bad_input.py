"""Bad input on the command line: one line on stderr, exit code 2, and no file left or changed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from commands import DESCRIPTOR, call
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasters import checkered, write_raster
from safetensors.torch import save_file
from tiny import LEGEND, tiny_prior
from torch import zeros

from segprior.geotiff import write_classes
from segprior.provenance import digest
from segprior.raster import Grid

UTM = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
OUTPUT = ("-o", "out.tif")
SEGMENT = ("segment", "image.tif", *OUTPUT, "--prior", "tiny.safetensors")
EVALUATE = ("evaluate", "--prior", "tiny.safetensors", "--image", "image.tif", "--labels")
TRAIN = ("train", "good.toml", "-o", "new.safetensors", "--encoder", "mobilenet_v2", "--encoder-weights", "none")
SAMPLE = ("sample", "--prior", "tiny.safetensors", "--size", "32", "--steps", "2", "-o", "drawn")
DEMO = ("demo", "--prior", "tiny.safetensors", "-o", "shown")


def cut(path: Path, source: Path) -> None:
    """A copy of a file without its second half."""
    data = source.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_priors(folder: Path) -> None:
    tiny_prior(folder / "tiny.safetensors")
    tiny_prior(folder / "plain.safetensors", plain=True)
    (folder / "text.safetensors").write_text("no prior")
    save_file({"a": zeros(1)}, folder / "bare.safetensors")
    save_file({"a": zeros(1)}, folder / "hollow.safetensors", metadata={"segprior": "{}"})
    save_file({"a": zeros(1)}, folder / "garbled.safetensors", metadata={"segprior": "{"})
    cut(folder / "short.safetensors", folder / "tiny.safetensors")


def write_rasters(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 160, 150)).astype(np.uint8)
    write_raster(folder / "image.tif", pixels, **UTM)
    write_raster(folder / "one_band.tif", pixels[:1], **UTM)
    write_raster(folder / "deep.tif", pixels.astype(np.uint16), **UTM)
    write_raster(folder / "deep_empty.tif", 0 * pixels.astype(np.uint16), nodata=0, **UTM)
    write_raster(folder / "complex.tif", pixels.astype(np.complex64), **UTM)
    corners = [GroundControlPoint(r, c, 85.0 + c / 1e4, 27.0 - r / 1e4) for r in (0, 160) for c in (0, 150)]
    write_raster(folder / "points.tif", pixels, gcps=corners, crs="EPSG:4326")
    for name, profile in (("plain", {}), ("packed", {"compress": "deflate"}), ("jpeg", {"compress": "jpeg"})):
        write_raster(folder / f"{name}.tif", pixels, tiled=True, blockxsize=64, blockysize=64, **profile, **UTM)
        cut(folder / f"cut_{name}.tif", folder / f"{name}.tif")
        (folder / f"{name}.tif").unlink()
    (folder / "cut_short.tif").write_bytes((folder / "image.tif").read_bytes()[:90])
    (folder / "text.tif").write_text("This is no raster.\n")
    (folder / "empty.tif").write_bytes(b"")
    labels = checkered(1, 160, 150)[0] % 2 * 4
    grid = Grid(160, 150, UTM["transform"], UTM["crs"])  # type: ignore[arg-type]  # a mixed dict
    write_classes(folder / "labels.tif", grid, LEGEND, [(0, labels)])
    write_classes(folder / "val_labels.tif", grid, LEGEND, [(0, labels)])
    write_raster(folder / "small_labels.tif", labels[None, :-1], **UTM)
    moved = {**UTM, "transform": UTM["transform"] @ Affine.translation(3, 0)}  # type: ignore[operator]  # a mixed dict
    write_raster(folder / "moved_labels.tif", labels[None], **moved)
    write_raster(folder / "strange_labels.tif", labels[None] + np.uint8(1), **UTM)
    write_raster(folder / "float_labels.tif", labels[None].astype(np.float32), **UTM)
    write_raster(folder / "bare_mask.tif", labels[None])
    cut(folder / "cut_mask.tif", folder / "labels.tif")


def write_descriptors(folder: Path) -> None:
    def scene(image: str, split: str, rest: str | None = None) -> str:
        own = "val_labels.tif" if split == "val" else "labels.tif"
        rest = f'labels = "{own}"\n' if rest is None else rest
        return f'[[scenes]]\nname = "{split}"\nimage = "{image}"\nsplit = "{split}"\n{rest}'

    head = DESCRIPTOR.replace("value = 1", "value = 4")
    outside = 'labels = "val_labels.tif"\nwindow = [900, 0, 9, 9]\n'
    texts = {
        "good": head + scene("image.tif", "train") + scene("image.tif", "val"),
        "leak": head + scene("image.tif", "train") + scene("image.tif", "val", 'labels = "labels.tif"\n'),
        "no_val": head + scene("image.tif", "train"),
        "no_pairs": head + scene("image.tif", "train", "") + scene("image.tif", "val"),
        "lost": head + scene("gone.tif", "train") + scene("gone.tif", "val"),
        "damaged": head + scene("cut_packed.tif", "train") + scene("image.tif", "val"),
        "deep": head + scene("deep.tif", "train") + scene("image.tif", "val"),
        "no_scenes": head,
        "no_classes": "res = 1\n" + scene("image.tif", "train"),
        "bad_split": head + scene("image.tif", "sometimes"),
        "bad_number": head.replace("res = 0.5", 'res = "fine"') + scene("image.tif", "train"),
        "bad_classes": head.replace("value = 4", "value = 0") + scene("image.tif", "train"),
        "bad_window": head + scene("image.tif", "train", "window = [1, 2]\n"),
        "outside": head + scene("image.tif", "train") + scene("image.tif", "val", outside),
        "no_toml": "[[classes\nname",
    }
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    (folder / "bytes.toml").write_bytes(b"name = '\xff\xfe'")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that can be wrong."""
    folder = tmp_path_factory.mktemp("bad")
    write_priors(folder)
    write_rasters(folder)
    write_descriptors(folder)
    (folder / "folder").mkdir()
    (folder / "folder.tif").mkdir()
    (folder / "there.tif").write_text("mine")
    (folder / "there.gpkg").write_text("mine")
    (folder / "there.json").write_text("mine")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, which no command may change."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("SEGPRIOR_DATA", str(place / "nowhere"))
    before = contents(place)
    yield place
    assert contents(place) == before


def contents(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): digest(path) if path.is_file() else None for path in folder.rglob("*")}


def image(name: str) -> tuple[str, ...]:
    return ("segment", name, *OUTPUT, "--prior", "tiny.safetensors")


def prior(name: str) -> tuple[str, ...]:
    return ("segment", "image.tif", *OUTPUT, "--prior", name)


def spliced(command: tuple[str, ...], **wishes: str) -> tuple[str, ...]:
    """The command with some of its words replaced by position: w1 for the first after the command."""
    words = list(command)
    for key, value in wishes.items():
        words[int(key[1:])] = value
    return tuple(words)


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    # images
    "missing image": (image("gone.tif"), "there is no file gone.tif"),
    "directory": (image("folder"), "folder is a folder"),
    "directory named .tif": (image("folder.tif"), "folder.tif is a folder"),
    "text named .tif": (image("text.tif"), "text.tif is not one that GDAL can open"),
    "empty file": (image("empty.tif"), "empty.tif is not one that GDAL can open"),
    "no place for an image": (image("gone/image.tif"), "there is no file gone/image.tif"),
    "not a folder": (image("text.tif/image.tif"), "there is no file text.tif/image.tif"),
    "cut in the header": (image("cut_short.tif"), "cut_short.tif"),
    "cut in the pixels": (image("cut_plain.tif"), "damaged or cut short"),
    "cut in packed pixels": (image("cut_packed.tif"), "cut_packed.tif"),
    "cut in JPEG pixels": (image("cut_jpeg.tif"), "cut_jpeg.tif"),
    "too few bands": (image("one_band.tif"), "wanted bands 1, 2, 3 of one_band.tif, which has 1"),
    "complex numbers": (image("complex.tif"), "wanted bands of real numbers, complex.tif has complex64"),
    "points instead of a grid": (image("points.tif"), "warp it first: gdalwarp -r bilinear"),
    "deep and empty": (image("deep_empty.tif"), "met none in a sample; give the scale"),
    "a prior as an image": (image("tiny.safetensors"), "tiny.safetensors is not one that GDAL can open"),
    # priors
    "missing prior": (prior("gone.safetensors"), "gone.safetensors: no such file"),
    "unknown prior": (prior("gardens"), "gardens: no such file"),
    "directory as a prior": (prior("folder"), "folder: a directory"),
    "text as a prior": (prior("text.safetensors"), "safetensors format, got text.safetensors"),
    "raster as a prior": (prior("image.tif"), "safetensors format, got image.tif"),
    "cut prior": (prior("short.safetensors"), "safetensors format, got short.safetensors"),
    "prior without metadata": (prior("bare.safetensors"), "which has none"),
    "prior with half its metadata": (prior("hollow.safetensors"), "hollow.safetensors"),
    "prior with garbled metadata": (prior("garbled.safetensors"), "valid metadata"),
    # outputs
    "no output folder": (spliced(SEGMENT, w3="gone/out.tif"), "there is no folder gone"),
    "existing output": (spliced(SEGMENT, w3="there.tif"), "there.tif: it exists"),
    "folder as output": ((*spliced(SEGMENT, w3="folder.tif"), "--overwrite"), "folder.tif: it is a folder"),
    "output is the input": ((*spliced(SEGMENT, w3="image.tif"), "--overwrite"), "it is the input itself"),
    "output is the prior": ((*spliced(SEGMENT, w3="tiny.safetensors"), "--overwrite"), "it is the input itself"),
    "existing probabilities": ((*SEGMENT, "--probabilities", "there.tif"), "there.tif: it exists"),
    "no folder for confidence": ((*SEGMENT, "--confidence", "gone/a.tif"), "there is no folder gone"),
    "one file twice": ((*SEGMENT, "--confidence", "out.tif"), "a file of its own"),
    "missing output": (("segment", "image.tif"), "wanted -o FILE for one image or --output-dir DIR"),
    # settings
    "tile size 0": ((*SEGMENT, "--tile-size", "0"), "multiple of 32 pixels, not 0"),
    "tile size -32": ((*SEGMENT, "--tile-size", "-32"), "multiple of 32 pixels, not -32"),
    "tile size in words": ((*SEGMENT, "--tile-size", "large"), "'--tile-size': Input should be a valid integer"),
    "overlap 33": ((*SEGMENT, "--overlap", "33"), "not 33"),
    "overlap above half": ((*SEGMENT, "--tile-size", "64", "--overlap", "64"), "half the tile size"),
    "training on an abacus": ((*TRAIN, "--device", "abacus"), "wanted the device auto, cpu or cuda, got 'abacus'"),
    "batch size 0": ((*SEGMENT, "--batch-size", "0"), "1 or more, got 1 and 0"),
    "unknown solver": ((*SEGMENT, "--solver", "guess"), "got 'guess'"),
    "steps 0": ((*SEGMENT, "--steps", "0"), "1 step or more, got 0"),
    "turns 0": ((*SEGMENT, "--turns", "0"), "from 1 to 8 turns, got 0"),
    "nine turns": ((*SEGMENT, "--turns", "9"), "from 1 to 8 turns, got 9"),
    "more turns than steps": ((*SEGMENT, "--turns", "3", "--steps", "2"), "each of 3 turns, got 2 steps"),
    "turns of another solver": ((*SEGMENT, "--turns", "2", "--solver", "stop"), "solver fixed_point, got stop"),
    "a tolerance below 0": ((*EVALUATE, "labels.tif", "--tolerance", "-1"), "tolerance of 0 metres or more"),
    "an unknown split": ((*EVALUATE, "labels.tif", "--split", "tset"), "wanted the split train, val, test, got 'tset'"),
    "a report over a file": ((*EVALUATE, "labels.tif", "--report", "text.tif"), "it is a file"),
    "scores that are the report's": (
        (*EVALUATE, "labels.tif", "--report", ".", "--json", "scores.json"),
        "a file of its own for the scores",
    ),
    "a report nowhere": ((*EVALUATE, "labels.tif", "--report", "gone/look"), "gone"),
    "samples 0": ((*SEGMENT, "--samples", "0"), "got 0"),
    "two colours": ((*SEGMENT, "--bands", "red,green"), "wanted 3 bands, as the prior"),
    "a colour that is not there": ((*SEGMENT, "--bands", "red,green,nir"), "its bands are red, green, blue"),
    "no bands": ((*SEGMENT, "--bands", ""), "wanted 3 bands"),
    "an empty band": ((*SEGMENT, "--bands", "1,,3"), "wanted a band for '' in image.tif"),
    "another end": ((*SEGMENT, "--on-error", "hope"), "to stop at damage or to take it as nodata, got 'hope'"),
    "a scale of one end": ((*SEGMENT, "--scale", "3000"), "wanted a scale like 0,3000"),
    "a scale upside down": ((*SEGMENT, "--scale", "9,1"), "the least below the greatest"),
    "a scale for two bands": ((*SEGMENT, "--scale", "0,1,0,1"), "one pair or 3, one per band, got 2"),
    "two bands": ((*SEGMENT, "--bands", "1,2"), "wanted 3 bands"),
    "band 0": ((*SEGMENT, "--bands", "0,1,2"), "counted from 1"),
    "band 7": ((*SEGMENT, "--bands", "1,2,7"), "which has 3"),
    "negative res": ((*SEGMENT, "--res", "-1"), "above 0, got -1"),
    "res nan": ((*SEGMENT, "--res", "nan"), "above 0, got nan"),
    "coarse res": ((*SEGMENT, "--res", "500"), "too coarse"),
    "unknown device": ((*SEGMENT, "--device", "abacus"), "got 'abacus'"),
    "negative seed": ((*SEGMENT, "--seed", "-1"), "a seed from 0"),
    "endless seed": ((*SEGMENT, "--seed", "9" * 30), "a seed from 0"),
    "unknown command": (("divine", "image.tif"), "No such command 'divine'"),
    "unknown option": ((*SEGMENT, "--magic"), "No such option: --magic"),
    "one argument too many": ((*SEGMENT, "more.tif"), "wanted one image and no mosaic with -o, got 2"),
    "no image": (("segment", *OUTPUT), "Missing argument"),
    # export
    "export of nothing": (("export", "gone.tif", "out.gpkg"), "there is no file gone.tif"),
    "export of text": (("export", "text.tif", "out.gpkg"), "not one that GDAL can open"),
    "export of a folder": (("export", "folder", "out.gpkg"), "is a folder"),
    "export of an image": (("export", "image.tif", "out.gpkg"), "class raster with one 8-bit band"),
    "export of a cut mask": (("export", "cut_mask.tif", "out.gpkg"), "cut_mask.tif"),
    "export to what": (("export", "labels.tif", "out.xyz"), "ending in .gpkg, .geojson, .fgb, .parquet, got out.xyz"),
    "export to no folder": (("export", "labels.tif", "gone/out.gpkg"), "there is no folder gone"),
    "export to an existing file": (("export", "labels.tif", "there.gpkg"), "there.gpkg: it exists"),
    "unknown class": (("export", "labels.tif", "out.gpkg", "--background", "sea"), "no class sea"),
    "negative area": (("export", "labels.tif", "out.gpkg", "--min-area", "-1"), "0 square metres or more, got -1"),
    "area nan": (("export", "labels.tif", "out.gpkg", "--min-area", "nan"), "got nan"),
    "area of no place": (("export", "bare_mask.tif", "out.gpkg", "--min-area", "1"), "no georeference"),
    "GeoJSON of no place": (("export", "bare_mask.tif", "out.geojson"), "no georeference"),
    # evaluate
    "labels of another size": ((*EVALUATE, "small_labels.tif"), "159 x 150 in small_labels.tif"),
    "labels elsewhere": ((*EVALUATE, "moved_labels.tif"), "got another place or CRS in moved_labels.tif"),
    "unknown label value": ((*EVALUATE, "strange_labels.tif"), "no class has the value"),
    "labels in fractions": ((*EVALUATE, "float_labels.tif"), "whole numbers"),
    "missing labels": ((*EVALUATE, "gone.tif"), "there is no file gone.tif"),
    "cut labels": ((*EVALUATE, "cut_mask.tif"), "cut_mask.tif"),
    "labels alone": (("evaluate", "--labels", "labels.tif", "--prior", "tiny.safetensors"), "got neither or both"),
    "image alone": ((*EVALUATE[:-1], "--prior", "tiny.safetensors"), "got neither or both"),
    "set and image": ((*EVALUATE, "labels.tif", "good.toml"), "got neither or both"),
    "unknown set": (
        ("evaluate", "mars", "--prior", "tiny.safetensors"),
        "wanted a data set (dubai, dubai/quarter, ",
    ),
    "unknown split": (("evaluate", "good.toml", "--split", "all", "--prior", "tiny.safetensors"), "got 'all'"),
    "set of other classes": (("evaluate", "good.toml", "--prior", "tiny.safetensors"), "got ground, roof"),
    "set without files": (("evaluate", "fair", "--prior", "tiny.safetensors"), "got background, building"),
    "existing scores": ((*EVALUATE, "labels.tif", "--json", "there.json"), "there.json: it exists"),
    "no folder for scores": ((*EVALUATE, "labels.tif", "--json", "gone/a.json"), "there is no folder gone"),
    "scores over labels": (
        (*EVALUATE, "labels.tif", "--json", "labels.tif", "--overwrite"),
        "it is the input itself",
    ),
    # train
    "train on nothing": (spliced(TRAIN, w1="gone.toml"), "found no file at gone.toml"),
    "train on an unknown set": (spliced(TRAIN, w1="mars"), "wanted a data set (dubai, dubai/quarter, "),
    "no TOML": (spliced(TRAIN, w1="no_toml.toml"), "in TOML at no_toml.toml"),
    "no text": (spliced(TRAIN, w1="bytes.toml"), "in TOML at bytes.toml"),
    "no scenes": (spliced(TRAIN, w1="no_scenes.toml"), "'scenes'"),
    "no classes": (spliced(TRAIN, w1="no_classes.toml"), "'classes'"),
    "bad split": (spliced(TRAIN, w1="bad_split.toml"), "'sometimes'"),
    "bad number": (spliced(TRAIN, w1="bad_number.toml"), "bad_number.toml"),
    "bad classes": (spliced(TRAIN, w1="bad_classes.toml"), "bad_classes.toml"),
    "bad window": (spliced(TRAIN, w1="bad_window.toml"), "bad_window.toml"),
    "window outside": (spliced(TRAIN, w1="outside.toml"), "lies outside a raster"),
    "scenes that are gone": (spliced(TRAIN, w1="lost.toml"), "there is no file gone.tif"),
    "damaged scene": (spliced(TRAIN, w1="damaged.toml"), "cut_packed.tif"),
    "sixteen bits": (spliced(TRAIN, w1="deep.toml"), "8-bit bands to train on, deep.tif has uint16"),
    "the same labels twice": (spliced(TRAIN, w1="leak.toml"), "wanted no training labels in what is scored"),
    "nothing to validate on": (spliced(TRAIN, w1="no_val.toml"), "'val'"),
    "nothing to train on": (spliced(TRAIN, w1="no_pairs.toml"), "at least one region"),
    "target of another kind": (spliced(TRAIN, w3="new.pt"), "ends in .safetensors"),
    "existing target": (spliced(TRAIN, w3="tiny.safetensors"), "tiny.safetensors: it exists"),
    "no folder for a target": (spliced(TRAIN, w3="gone/new.safetensors"), "there is no folder gone"),
    "train no steps": ((*TRAIN, "--steps", "0"), "wanted steps"),
    "tile 33": ((*TRAIN, "--tile", "33"), "multiple of 32"),
    "negative rate": ((*TRAIN, "--rate", "-1"), "learning rate above 0"),
    "more than all tiles mixed": ((*TRAIN, "--cut-mix", "2"), "a share of tiles with cut-mix from 0 to 1, got 2"),
    "all tiles without labels": ((*TRAIN, "--mean-teacher", "1"), "mean teacher from 0 to below 1, got 1"),
    "tiles scaled to dust": ((*TRAIN, "--scale-jitter", "9"), "a change of scale from 1 to 4, got 9"),
    "negative seed of a training": ((*TRAIN, "--seed", "-1"), "a seed from 0"),
    "label scale 0": ((*TRAIN, "--label-scale", "0"), "label scale"),
    "unknown encoder": ((*TRAIN, "--encoder", "abacus"), "got 'abacus'"),
    "missing encoder weights": ((*TRAIN, "--encoder-weights", "gone.safetensors"), "gone.safetensors"),
    "other encoder weights": ((*TRAIN, "--encoder-weights", "bare.safetensors"), "fit the encoder"),
    "missing start": ((*TRAIN, "--start", "gone.safetensors"), "gone.safetensors: no such file"),
    "other start": ((*TRAIN, "--start", "plain.safetensors"), "to start from, got one of 3 bands and background, roof"),
    "nothing to hold": ((*TRAIN, "--hold"), "wanted a network to start from"),
    # sample, demo, info, data
    "no samples": ((*SAMPLE, "-n", "0"), "got 0"),
    "size 33": ((*SAMPLE, "--size", "33"), "33 x 33"),
    "sample no steps": ((*SAMPLE, "--steps", "0"), "2 steps or more"),
    "samples of a segmenter": ((*SAMPLE, "--prior", "plain.safetensors"), "a plain segmenter"),
    "samples into a file": (spliced(SAMPLE, w8="there.tif"), "there.tif"),
    "samples into nowhere": (spliced(SAMPLE, w8="gone/drawn"), "there is no folder gone"),
    "sample of nothing": ((*SAMPLE, "--prior", "gone.safetensors"), "no such file"),
    "demo of nothing": ((*DEMO, "gone.tif"), "there is no file gone.tif"),
    "demo of text": ((*DEMO, "text.tif"), "not one that GDAL can open"),
    "demo of a cut image": ((*DEMO, "cut_packed.tif"), "cut_packed.tif"),
    "demo of one band": ((*DEMO, "one_band.tif"), "which has 1"),
    "demo into a file": ((*spliced(DEMO, w4="there.tif"), "image.tif"), "there.tif: it is a file"),
    "info of nothing": (("info", "gone.tif"), "there is no file gone.tif"),
    "info of text": (("info", "text.tif"), "not one that GDAL can open"),
    "info of a folder": (("info", "folder"), "is a folder"),
    "info of no prior": (("info", "text.safetensors"), "safetensors format"),
    "info of a bare prior": (("info", "bare.safetensors"), "segprior's metadata"),
    "verify the unknown": (("data", "verify", "mars"), "wanted a data set (dubai, dubai/quarter, "),
    "verify no TOML": (("data", "verify", "no_toml.toml"), "in TOML"),
    "unknown order": (("data", "forget", "fair"), "No such command 'forget'"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """`capfd` sees what GDAL itself might print."""
    command, message = CASES[name]
    found = call(capfd, *command)
    assert found.code == 2
    assert found.stdout == ""
    assert found.stderr.startswith("segprior: ")
    assert found.stderr.count("\n") == 1
    assert found.stderr.endswith("\n")
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr) < 400


@pytest.mark.usefixtures("here")
@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_folder_closed_to_writing(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    found = call(capfd, "segment", here / "image.tif", "-o", closed / "out.tif", "--prior", here / "tiny.safetensors")
    assert (found.code, found.stderr.count("\n")) == (2, 1)
    assert "closed to writing" in found.stderr


@pytest.mark.usefixtures("here")
def test_what_the_system_refuses_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    found = call(capfd, "info", "x" * 5000 + ".safetensors")
    assert (found.code, found.stderr.count("\n")) == (2, 1)
    assert "too long" in found.stderr


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["cut_packed.tif", "cut_jpeg.tif"])
def test_a_cut_image_in_a_process_of_its_own(name: str) -> None:
    """With the file descriptors as they are: GDAL prints nothing."""
    options = ("--tile-size", "64", "--overlap", "0", "--steps", "1")
    with start("-m", "segprior", *image(name), *options) as process:
        printed, errors = process.communicate(timeout=120)
    assert (process.returncode, printed) == (2, "")
    assert errors.startswith("segprior: ")
    assert errors.count("\n") == 1


SLOW = """
import signal, sys, time
# a background job of a shell is born deaf to Ctrl-C, and so are its children
signal.signal(signal.SIGINT, signal.default_int_handler)
import segprior.inference as module
solve = module.solve
def slow(job):
    print("solving", flush=True)
    time.sleep(0.2)
    return solve(job)
module.solve = slow
from segprior.cli import main
main(sys.argv[1:])
"""
"""The command line, its windows slowed down."""


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal there")
@pytest.mark.parametrize("command", [SEGMENT, (*DEMO, "image.tif")])
def test_an_interrupt_leaves_nothing(command: tuple[str, ...]) -> None:
    options = ("--tile-size", "32", "--overlap", "0", "--batch-size", "1") if command is SEGMENT else ()
    with start("-c", SLOW, *command, *options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "solving\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == (
        "segprior: interrupted; no half-written file is left, and the same command goes on where it can\n"
    )
    if command is SEGMENT:
        unfinished = Path(".out.tif-unfinished")
        assert {path.name for path in unfinished.iterdir()} == {"lock", "journal", "classes"}
        shutil.rmtree(unfinished)
