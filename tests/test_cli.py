"""Every command of the command line from end to end, on small generated rasters and a small random prior."""

import csv
import hashlib
import importlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from commands import DESCRIPTOR, Outcome, call
from generated import write_dataset
from rasterio.crs import CRS
from rasters import checkered, write_raster
from rich.console import Console
from tiny import LEGEND, tiny_prior

import segprior
import segprior.terminal as module
from segprior import inference
from segprior.augment import Augmentation
from segprior.checkpoint import Prior, load_prior, read_card, save_prior
from segprior.data import load_dataset
from segprior.fit import Plan, fit
from segprior.mix import NOISY
from segprior.mosaic import Tile
from segprior.samples import Drawing
from segprior.train import Settings, Step
from segprior.validation import Validation

UTM = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
QUICK = ("--steps", 1, "--tile-size", 64, "--overlap", 32)
COMMANDS = ("segment", "export", "evaluate", "train", "sample", "info", "demo", "data verify")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", checkered(3, 70, 80), **UTM)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).choice([0, 2, 4, 255], (1, 70, 80)).astype(np.uint8)
    return write_raster(tmp_path / "labels.tif", values, nodata=255, **UTM)


def done(found: Outcome) -> str:
    """The output of a command that did what it was asked for, without a word on stderr."""
    assert (found.code, found.stderr) == (0, ""), found
    return found.stdout


def test_segment_and_export(prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask, shares, sure, unsure = (tmp_path / name for name in ("mask.tif", "shares.tif", "sure.tif", "unsure.tif"))
    files = ("-o", mask, "--probabilities", shares, "--confidence", sure, "--entropy", unsure)
    looks = ("--as-bytes", "--cog", "--style", "--bands", "red,green,blue", "--scale", "0,255")
    text = done(call(capsys, "segment", image, *files, *looks, "--prior", prior, *QUICK))
    assert text.count("\n") == 1
    assert text.startswith(f"{mask}: background ")
    assert text.count("%") == 3
    with rasterio.open(mask) as got, rasterio.open(image) as wanted:
        assert (got.shape, got.transform, got.crs) == (wanted.shape, wanted.transform, wanted.crs)
        values = got.read(1)
        assert got.tags()["SEGPRIOR_SCALE"] == "0,255,0,255,0,255"
        assert got.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    for path in (shares, sure, unsure):
        with rasterio.open(path) as got:
            assert (got.shape, set(got.dtypes)) == (values.shape, {"uint8"})
    assert mask.with_suffix(".qml").exists()
    target = tmp_path / "out.gpkg"
    text = done(call(capsys, "export", mask, target, "--background", "background", "--min-area", 1))
    frame = geopandas.read_file(target)
    assert text == f"{target}: {len(frame)} polygons\n"
    assert set(frame["class"]) <= {"roof", "road"}
    assert (frame["area_m2"] >= 1).all()
    whole = tmp_path / "whole.geojson"
    done(call(capsys, "export", mask, whole))
    area = geopandas.read_file(whole)["area_m2"].sum()
    assert area == pytest.approx(0.25 * values.size, rel=5e-3)


def test_an_interrupted_segmentation_goes_on(
    prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so, or that it could not."""
    mask, sides = tmp_path / "mask.tif", ("--tile-size", 32, "--overlap", 0, "--batch-size", 1)
    command = ("segment", image, "-o", mask, "--prior", prior, "--steps", 1, *sides)
    solve, calls = inference.solve, []

    def stopped(job: inference.Job) -> list[Tile]:
        calls.append(job)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return solve(job)

    for seed, words in ((0, "went on from row "), (5, "began anew: an unfinished run had another")):
        calls.clear()
        monkeypatch.setattr(inference, "solve", stopped)
        found = call(capsys, *command)
        assert found.code == 130
        assert "goes on where it can" in found.stderr
        assert not mask.exists()
        monkeypatch.setattr(inference, "solve", solve)
        found = call(capsys, *command, "--seed", seed)
        assert found.code == 0
        assert found.stderr.startswith(words)
        assert found.stderr.count("\n") == 1
        mask.unlink()


def test_turns(prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prior takes a step a turn; a plain segmenter one step in each."""
    plain = tiny_prior(tmp_path / "plain.safetensors", plain=True)
    sides = ("--tile-size", 64, "--overlap", 0)
    for network, solver in (
        (prior, "FixedPoint(times=(1.0, 0.9333333333333333, 0.8666666666666667, 0.8), "),
        (plain, "FixedPoint(times=(1.0, 1.0, 1.0, 1.0), "),
    ):
        mask = tmp_path / "mask.tif"
        done(call(capsys, "segment", image, "-o", mask, "--prior", network, "--turns", 4, *sides, "--overwrite"))
        with rasterio.open(mask) as written:
            assert written.tags()["SEGPRIOR_SOLVER"].startswith(solver)
            assert "turns=4" in written.tags()["SEGPRIOR_SOLVER"]


@pytest.mark.parametrize("solver", [("fixed_point", 2), ("stop", 2), ("full", 2)])
def test_every_solver(
    prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], solver: tuple[str, int]
) -> None:
    name, steps = solver
    draws = ("--solver", name, "--steps", steps, "--samples", 2, "--seed", 20261122)
    settings = (*draws, "--bands", "3,2,1", "--res", 0.6)
    sides = ("--tile-size", 64, "--overlap", 0, "--batch-size", 3, "--device", "cpu")
    done(call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, *settings, *sides))
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.tags()["SEGPRIOR_SEED"] == "20261122"
        assert mask.tags()["SEGPRIOR_SAMPLES"] == "2"


def test_segment_says_when_there_is_nothing(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 40, 40), np.uint8), nodata=0)
    text = done(call(capsys, "segment", empty, "-o", tmp_path / "mask.tif", "--prior", prior, *QUICK))
    assert text == f"{tmp_path / 'mask.tif'}: no pixel holds data\n"
    assert "overwriting" in call(capsys, "segment", empty, "-o", tmp_path / "mask.tif", "--prior", prior).stderr
    done(call(capsys, "segment", empty, "-o", tmp_path / "mask.tif", "--prior", prior, "--overwrite", *QUICK))


def test_names_are_shown_as_they_are(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are no markup."""
    folder = tmp_path / "a [red] :car: folder"
    folder.mkdir()
    image = write_raster(folder / "[bold]image.tif", checkered(3, 40, 40), **UTM)
    text = done(call(capsys, "segment", image, "-o", folder / "[x].tif", "--prior", prior, *QUICK))
    assert str(folder / "[x].tif") in text
    assert str(folder / "[x].tif") in done(call(capsys, "info", folder / "[x].tif"))
    assert "a [red] :car: folder" in call(capsys, "info", folder / "gone.tif").stderr


def test_evaluate_a_pair(
    prior: Path, image: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "scores.json"
    pair = ("--image", image, "--labels", labels)
    text = done(call(capsys, "evaluate", *pair, "--prior", prior, *QUICK, "--json", target))
    scores = ("IoU background", "IoU roof", "IoU road", "mIoU", "F1", "boundary F1", "accuracy", "ECE", "Brier")
    for word in (*scores, str(image)):
        assert word in text, "no column is squeezed where there is no terminal"
    assert "pooled" not in text
    table = json.loads(target.read_text())
    assert list(table) == [str(image), "pooled"]
    assert f"{table['pooled']['miou']:.3f}" in text
    assert table["pooled"]["pixels"] > 0


def test_evaluate_a_data_set(
    prior: Path, image: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its classes come in another order than the prior's, and keep their names."""
    descriptor = tmp_path / "set" / "dataset.toml"
    descriptor.parent.mkdir()
    classes = "".join(
        f'[[classes]]\nname = "{c.name}"\nvalue = {c.value}\ncolor = {list(c.color)}\n' for c in LEGEND.classes[::-1]
    )
    scenes = "".join(
        f'[[scenes]]\nname = "{name}"\nimage = "{image}"\nlabels = "{labels}"\nsplit = "val"\n'
        for name in ("one", "two")
    )
    descriptor.write_text(f"res = 0.5\n{classes}{scenes}")
    scores = tmp_path / "scores.json"
    text = done(call(capsys, "evaluate", descriptor, "--prior", prior, *QUICK, "--json", scores))
    assert all(word in text for word in ("one", "two", "pooled"))
    alone = tmp_path / "alone.json"
    pair = ("--image", image, "--labels", labels)
    done(call(capsys, "evaluate", *pair, "--prior", prior, *QUICK, "--json", alone))
    found, wanted = (json.loads(path.read_text()) for path in (scores, alone))
    assert found["one"]["iou"] == wanted[str(image)]["iou"]
    assert list(found) == ["one", "two", "pooled"]


def test_a_report(prior: Path, image: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "look"
    command = ("evaluate", "--image", image, "--labels", labels, "--prior", prior, *QUICK, "--tolerance", 0.5)
    text = done(call(capsys, *command, "--report", folder))
    assert text.splitlines()[-1] == f"{folder / 'index.html'}: look at it in a browser"
    page = (folder / "index.html").read_text()
    for words in ("tiny on image.tif against labels.tif", "boundary tolerance", "0.5 m", str(labels)):
        assert words in page
    table = json.loads((folder / "scores.json").read_text())
    assert table["seed"] == "0"
    assert table["scores"]["pooled"]["intervals_95"]["miou"]
    again = call(capsys, *command, "--report", folder)
    assert (again.code, again.stdout) == (2, "")
    assert "it exists" in again.stderr
    done(call(capsys, *command, "--report", folder, "--overwrite"))


def test_sample(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "drawn"
    small = ("--size", 32, "--steps", 2, "--seed", 20261122)
    text = done(call(capsys, "sample", "-o", folder, "--prior", prior, "-n", 2, *small))
    assert text == f"{folder}: 2 pairs\n"
    names = {path.name for path in folder.iterdir() if path.suffix != ".xml"}
    assert names == {f"pair_00{n}{end}" for n in (0, 1) for end in (".png", ".tif", "_labels.tif")}


@pytest.fixture
def small_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration's scene has no option for its size."""
    importlib.import_module("segprior.demo")  # it takes the name as a type
    monkeypatch.setattr("segprior.samples.Drawing", lambda seed: Drawing(size=(64, 64), steps=2, seed=seed))


@pytest.mark.usefixtures("small_scenes")
def test_demo(prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shown"
    text = done(call(capsys, "demo", "-o", folder, "--prior", prior, "--seed", 7))
    names = ["scene.tif", "mask.tif", "confidence.tif", "polygons.gpkg", "demo.png"]
    assert text.splitlines()[:5] == [str(folder / name) for name in names]
    assert all((folder / name).exists() for name in names)
    assert text.splitlines()[5].endswith(f"look at {folder / 'demo.png'}")
    again = call(capsys, "demo", "-o", folder, "--prior", prior)
    assert (again.code, again.stdout) == (2, "")
    done(call(capsys, "demo", "-o", folder, "--prior", prior, "--overwrite"))
    text = done(call(capsys, "demo", image, "-o", tmp_path / "own", "--prior", prior, "--res", 0.5))
    assert text.splitlines()[0] == str(image)
    with rasterio.open(tmp_path / "own" / "mask.tif") as mask, rasterio.open(image) as wanted:
        assert (mask.shape, mask.crs) == (wanted.shape, wanted.crs)


def test_info(prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = done(call(capsys, "info", prior))
    for words in (
        "tiny: joint prior",
        "MiB",
        "0 background, 4 roof, 2 road",
        "bands: 1, 2, 3 at 0.5 m",
        "mobilenet_v2",
    ):
        assert words in text
    plain = tiny_prior(tmp_path / "plain.safetensors", plain=True)
    assert "plain segmenter" in done(call(capsys, "info", plain))
    text = done(call(capsys, "info", image))
    for words in ("70 rows x 80 columns, 3 band(s)", "uint8", "EPSG:32645", "0.500 x 0.500 m", "compression: none"):
        assert words in text
    bare = write_raster(tmp_path / "bare.tif", checkered(1, 5, 6))
    assert "CRS: none; pixel: no place on Earth" in done(call(capsys, "info", bare))


def test_info_names_the_classes_of_a_mask(
    prior: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, *QUICK))
    legend = read_card(prior).legend
    named = ", ".join(f"{value} {name}" for value, name in sorted(zip(legend.values, legend.names, strict=True)))
    assert f"classes: {named}" in done(call(capsys, "info", tmp_path / "mask.tif"))
    assert "\nclasses: " not in done(call(capsys, "info", image))


def test_info_of_a_trained_prior(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_prior(prior)
    training = {"dataset": "here", "settings": {"steps": 3}}
    card = replace(loaded.card, training=training, scores={"val": {"miou_few_step": 0.5}}, licence="CC0\nindeed")
    save_prior(Prior(card, loaded.denoiser), tmp_path / "new.safetensors")
    text = done(call(capsys, "info", tmp_path / "new.safetensors"))
    assert "training, settings: (steps 3)\n" in text
    assert "scores, val: (miou_few_step 0.5)\n" in text
    assert "licence: CC0 indeed\n" in text


def test_data_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.tif").write_text(name)
    digest = hashlib.sha256(b"a").hexdigest()
    scenes = "".join(
        f'[[scenes]]\nname = "{name}"\nimage = "{name}.tif"\nsplit = "train"\n{rest}'
        for name, rest in (("a", f'image_sha256 = "{digest}"\n'), ("c", ""))
    )
    descriptor = tmp_path / "dataset.toml"
    descriptor.write_text(DESCRIPTOR + scenes)
    text = done(call(capsys, "data", "verify", descriptor))
    assert text == f"ok           {tmp_path / 'a.tif'}\nno checksum  {tmp_path / 'c.tif'}\n"
    (tmp_path / "a.tif").write_text("other")
    (tmp_path / "c.tif").unlink()
    found = call(capsys, "data", "verify", tmp_path)
    assert (found.code, found.stderr) == (1, "")
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["altered", "missing"]


@pytest.mark.real_data
def test_data_verify_of_the_real_files(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGPRIOR_DATA", str(data_dir))
    lines = done(call(capsys, "data", "verify", "dubai")).splitlines()
    assert len(lines) == 12
    assert all(line.startswith("ok ") for line in lines)


def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segprior.fit.Drawing", lambda size, seed: Drawing(size=(32, 32), steps=2, seed=seed))
    descriptor = write_dataset(tmp_path / "set")
    target = tmp_path / "roofs.safetensors"
    settings = ("--steps", 2, "--batch", 3, "--tile", 32, "--rate", 1e-3, "--validate-every", 1, "--seed", 3)
    encoder = ("--encoder", "mobilenet_v2", "--encoder-weights", "none", "--label-scale", 0.2)
    found = call(capsys, "train", descriptor, "-o", target, *settings, *encoder)
    assert (found.code, found.stdout) == (0, f"{target}: trained for 2 steps\n")
    # what a validation finds is told even without a bar
    lines = found.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2"]
    card = read_card(target)
    assert (card.label_scale, card.network.encoder) == (0.2, "mobilenet_v2")
    assert card.training["settings"]["augmentation"] == asdict(Augmentation())
    for suffix in (".csv", ".png", ".samples.png"):
        assert target.with_suffix(suffix).exists()
    assert not target.with_suffix(".run").exists()


def test_noisy_images_may_train_a_prior_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segprior.fit.Drawing", lambda size, seed: Drawing(size=(32, 32), steps=2, seed=seed))
    descriptor, target = write_dataset(tmp_path / "set"), tmp_path / "roofs.safetensors"
    few = ("--steps", 2, "--batch", 8, "--tile", 32, "--encoder", "mobilenet_v2", "--encoder-weights", "none")
    assert call(capsys, "train", descriptor, "-o", target, *few, "--noisy").code == 0
    card = read_card(target)
    assert not card.network.clean
    assert card.training["settings"]["mix"] == json.loads(json.dumps(asdict(NOISY)))
    with target.with_suffix(".csv").open() as log:
        later = [float(row["later"]) for row in csv.DictReader(log)]
    assert min(later) > 0.0  # second draws from the first step on; by default those of the first half are none
    found = call(capsys, "train", descriptor, "-o", tmp_path / "more.safetensors", *few, "--noisy", "--start", target)
    assert found.code == 2
    assert "wanted a new prior for noisy images to train whole, got" in found.stderr


def test_a_prior_grows_on_a_unet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segprior.fit.Drawing", lambda size, seed: Drawing(size=(32, 32), steps=2, seed=seed))
    descriptor, unet, target = (
        write_dataset(tmp_path / "set"),
        tmp_path / "unet.safetensors",
        tmp_path / "grown.safetensors",
    )
    settings = Settings(steps=1, batch=2, tile=32)
    list(
        fit(
            Plan(
                load_dataset(str(descriptor)),
                unet,
                settings,
                encoder="mobilenet_v2",
                encoder_weights="none",
                plain=True,
            )
        )
    )
    few = ("--steps", 1, "--batch", 4, "--tile", 32)
    found = call(capsys, "train", descriptor, "-o", target, *few, "--start", unet, "--hold")
    assert found.code == 0
    card = read_card(target)
    assert not card.plain
    assert card.training["start"] == str(unet)
    assert card.network.encoder == "mobilenet_v2", "that of the U-Net"
    assert card.scores["val"]["miou_one_step"] == read_card(unet).scores["val"]["miou_one_step"]


def test_bars_on_a_terminal(
    prior: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Console(force_terminal=True, stderr=True, width=100)
    monkeypatch.setattr(module, "stderr", screen)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    found = call(capsys, "segment", image, "-o", tmp_path / "mask.tif", "--prior", prior, *QUICK)
    assert found.code == 0
    assert "Mpx/s" in found.stderr
    assert "segmenting" in found.stderr
    steps = [Step(1, 2.0, 2.0, 1.0, 0.1), Step(2, 1.0, 1.0, 1.0, 0.2, Validation(0.5, 0.625))]
    module.follow(iter(steps), 2)
    text = capsys.readouterr().err
    assert "10.00 steps/s, loss 1.980" in text
    assert "0.5000 (one step), 0.6250 (few)" in text
    assert "2/2 steps" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert done(call(capsys, "--version")) == f"segprior {segprior.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_result_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = done(call(capsys, *command.split(), "--help"))
    assert "The result is" in " ".join(text.split())


def test_help_swallows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets in a help text would be markup."""
    words = " ".join(done(call(capsys, "segment", "--help")).replace("│", " ").split())
    assert "without it 3, or 50 for stop and full" in words
    assert "without it the prior's" in words


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("data",)):
        found = call(capsys, *arguments)
        assert found.code == 2
        assert "Usage: segprior" in found.stdout + found.stderr
        assert "Traceback" not in found.stderr


def test_help_does_without_the_slow_imports(root: Path) -> None:
    code = (
        "import sys\nfrom segprior.cli import main\n"
        "try:\n    main(['segment', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "slow = {'torch', 'rasterio', 'numpy', 'geopandas', 'matplotlib', 'albumentations', 'segprior.inference'}\n"
        "sys.exit(', '.join(slow & set(sys.modules)) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "The result is" in ran.stdout


def test_the_package_runs_as_a_module(root: Path) -> None:
    command = [sys.executable, "-m", "segprior", "--version"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"segprior {segprior.__version__}\n", "")
