"""Adapting and distilling, on generated rasters with a tiny prior: what is learned, what is left, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from commands import call
from generated import card_of, rectangles, write_dataset, write_tiff
from safetensors.torch import load_file

import segprior.fit as fitting
import segprior.inferred as inferring
from segprior.adapt import Adaptation, Judged, Round, adapt
from segprior.augment import Augmentation
from segprior.checkpoint import Card, Prior, build_denoiser, load_prior, read_card, save_prior
from segprior.data import Dataset, load_dataset
from segprior.distill import Distillation, distill
from segprior.errors import DatasetError, OutputError, SettingError
from segprior.inferred import infer_labels, inferred_dataset, joined, label_items
from segprior.legend import Legend
from segprior.opinion import UnarySource
from segprior.options import Options
from segprior.plots import read_plots
from segprior.segmentation import segment
from segprior.solvers import solver_named
from segprior.train import Settings
from segprior.validation import temperature

SIZE = 128
ONE = Options(solver=solver_named("fixed_point", 1), tile_size=64, overlap=0)
SHORT = Settings(steps=2, batch=2, tile=32, warmup=1, average=0.5, validate_every=2)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Hold few rows out; count classes in few tiles."""
    tilt = fitting.class_tilt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferring, "HELD", 64)
        patch.setattr(fitting, "class_tilt", lambda pool, classes: tilt(pool, classes=classes, tiles=40))
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(str(write_dataset(tmp_path_factory.mktemp("rectangles"))))


@pytest.fixture(scope="module")
def prior(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prior that has learned nothing yet."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("prior") / "rectangles.safetensors"
    card = small_card(dataset)
    save_prior(Prior(card, build_denoiser(card).eval()), path)
    return str(path)


def small_card(dataset: Dataset, *, plain: bool = False) -> Card:
    """With an encoder whose norms learn fast."""
    card = card_of(dataset)
    return replace(card, network=replace(card.network, encoder="mobilenet_v2"), plain=plain)


@pytest.fixture(scope="module")
def plain(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    card = small_card(dataset, plain=True)
    save_prior(Prior(card, build_denoiser(card).eval()), path)
    return str(path)


def opinion(path: Path, index: np.ndarray[Any, Any], sure: int) -> None:
    """Write probabilities, in bytes of 1/100, that are right with `sure`."""
    right = np.where(index == 1, sure, 100 - sure)
    with rasterio.open(
        path, "w", driver="GTiff", count=2, height=SIZE, width=SIZE, dtype="uint8", crs="EPSG:32645", transform=PLACE
    ) as target:
        target.write(np.stack([100 - right, right]).astype(np.uint8))
        target.scales = (0.01, 0.01)
        target.descriptions = ("ground", "roof")


PLACE = rasterio.Affine(1.0, 0, 500_000, 0, -1.0, 3_000_000)


@pytest.fixture
def region(tmp_path: Path) -> Path:
    """Two rasters of a region, seen in another light, and what another map says of them."""
    for seed, name in ((11, "east"), (12, "west")):
        image, labels = rectangles(SIZE, seed)
        with rasterio.open(
            tmp_path / f"{name}.tif",
            "w",
            driver="GTiff",
            count=3,
            height=SIZE,
            width=SIZE,
            dtype="uint8",
            crs="EPSG:32645",
            transform=PLACE,
        ) as target:
            target.write(image[::-1])  # red is blue here
        opinion(tmp_path / f"{name}_says.tif", (labels == 7).astype(np.uint8), 99)
        np.save(tmp_path / f"{name}.npy", labels)
    return tmp_path


def images(region: Path) -> tuple[str, ...]:
    return tuple(str(region / f"{name}.tif") for name in ("east", "west"))


def told(region: Path) -> Options:
    return replace(ONE, unary=(UnarySource(str(region / "{stem}_says.tif"), weight=3.0),))


def right(prior: Path | str, region: Path) -> float:
    """Share of pixels of a scene that a prior maps right by the image alone."""
    segment(region / "east.tif", region / "look.tif", prior=prior, options=ONE, overwrite=True)
    with rasterio.open(region / "look.tif") as mask:
        return float((mask.read(1) == np.load(region / "east.npy")).mean())


@pytest.mark.slow
def test_a_prior_learns_what_was_told_of_a_region_it_did_not_know(prior: str, region: Path) -> None:
    settings = replace(SHORT, steps=100, batch=4, rate=3e-3, warmup=10, validate_every=100)
    plan = Adaptation(prior, images(region), region / "new.safetensors", told(region), rounds=1, settings=settings)
    watched: list[str] = []
    (only,) = adapt(plan, watch=lambda what, done, of: watched.append(what))
    assert only.kept
    assert only.after.agreement > max(0.7, only.before.agreement)
    assert right(plan.target, region) > max(0.85, right(prior, region))
    assert list(dict.fromkeys(watched)) == ["inferring labels", "round 1: training"]
    card, start = read_card(plan.target), read_card(prior)
    assert (card.name, card.legend, card.res, card.plain) == ("new", start.legend, start.res, False)
    assert card.training["images"] == ["east.tif", "west.tif"]
    assert card.training["rounds"][0]["kept"] is True
    assert not plan.folder.exists()


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


@pytest.mark.slow
def test_stops_in_between_leave_no_trace(plain: str, region: Path) -> None:
    """A plain segmenter takes all rounds, whatever they come to."""
    whole, broken = (
        Adaptation(plain, images(region), region / f"{name}.safetensors", told(region), rounds=2, settings=SHORT)
        for name in ("whole", "broken")
    )
    first = list(adapt(whole))
    assert len(first) == 2
    run = adapt(broken)
    next(run)
    run.close()  # type: ignore[attr-defined]  # a generator
    assert broken.folder.exists()
    assert not broken.target.exists()
    done = (broken.folder / "round1.safetensors").stat().st_mtime_ns
    again = adapt(broken)
    assert next(again) == first[0]
    assert (broken.folder / "round1.safetensors").stat().st_mtime_ns == done, "not trained again"
    assert list(again) == first[1:]
    one, other = weights(whole.target), weights(broken.target)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not broken.folder.exists()


def test_an_adapted_network_is_as_sure_as_what_it_learned(plain: str, region: Path) -> None:
    """The temperature of the network that inferred is in the probabilities it inferred, and not told once more."""
    timid = region / "timid.safetensors"
    before = load_prior(plain)
    save_prior(replace(before, card=replace(before.card, temperature=3.0)), timid)
    plan = Adaptation(str(timid), images(region), region / "new.safetensors", told(region), rounds=1, settings=SHORT)
    list(adapt(plan))
    (region / "again").mkdir()
    items = label_items(plan.images, region / "again")
    infer_labels(items, prior=timid, options=plan.options)
    held = read_plots(inferred_dataset("again", items, read_card(timid), options=plan.options), "val", "pairs")
    found = read_card(plan.target).temperature
    assert found == pytest.approx(temperature(load_prior(plan.target), held), rel=0.02)
    assert found < 1, "two steps do not make it as sure as the other map"


def test_what_other_work_left_is_dropped(prior: str, region: Path) -> None:
    plan = Adaptation(prior, images(region), region / "new.safetensors", told(region), rounds=1, settings=SHORT)
    run = adapt(plan)
    next(run)
    run.close()  # type: ignore[attr-defined]  # a generator
    (plan.folder / "mine").write_text("left")
    list(adapt(replace(plan, settings=replace(SHORT, seed=5))))
    assert plan.target.exists()
    assert not plan.folder.exists()


def test_rounds_that_were_told_otherwise_are_done_again(prior: str, region: Path) -> None:
    """What another map says has changed since: the round that was done is not gone on from."""
    plan = Adaptation(prior, images(region), region / "new.safetensors", told(region), rounds=1, settings=SHORT)
    run = adapt(plan)
    next(run)
    run.close()  # type: ignore[attr-defined]  # a generator
    done = (plan.folder / "round1.safetensors").stat().st_mtime_ns
    opinion(region / "east_says.tif", (np.load(region / "east.npy") != 7).astype(np.uint8), 99)
    again = adapt(plan)
    next(again)
    assert (plan.folder / "round1.safetensors").stat().st_mtime_ns != done
    again.close()  # type: ignore[attr-defined]  # a generator


def test_rounds_are_judged() -> None:
    start = Judged(0.8, -1.0)
    assert not Judged(0.9, -0.9).worse_than(start)
    assert not Judged(0.7, -1.1).worse_than(start)
    assert Judged(0.8, -1.0).worse_than(start)
    assert Judged(0.7, -0.9).worse_than(start)
    assert not Judged(0.7, None).worse_than(Judged(0.8, None)), "a plain segmenter is not judged"


def test_a_round_that_is_no_better_is_dropped(prior: str, region: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segprior.adapt.judge", lambda prior, held: Judged(0.5, 0.0))
    plan = Adaptation(prior, images(region), region / "new.safetensors", told(region), settings=SHORT)
    rounds = list(adapt(plan))
    assert rounds == [Round(1, Judged(0.5, 0.0), Judged(0.5, 0.0), kept=False)]
    start, found = weights(Path(prior)), weights(plan.target)
    assert all(torch.equal(start[key], found[key]) for key in start)


def test_given_labels_are_trained_on_beside_inferred_ones(
    plain: str, dataset: Dataset, region: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def spy(plan: fitting.Plan, watch: object, what: str) -> None:
        seen[what] = plan.dataset
        save_prior(load_prior(plan.start or ""), plan.target)

    monkeypatch.setattr("segprior.adapt.train", spy)
    monkeypatch.setattr("segprior.adapt._seconds", lambda folder, each: 1.0)
    plan = Adaptation(
        plain, images(region), region / "new.safetensors", told(region), dataset, rounds=2, settings=SHORT
    )
    assert [each.kept for each in adapt(plan)] == [True, True]
    assert list(seen) == ["round 1: training", "round 2: training"]
    plots = read_plots(seen["round 1: training"], "train", "pairs") if plan.folder.exists() else ()
    regions = seen["round 1: training"].regions
    assert [(r.scene.name, r.split, r.scene.belief is None) for r in regions] == [
        ("east", "train", False),
        ("east", "val", False),
        ("west", "train", False),
        ("west", "val", False),
        ("one", "train", True),
        ("two", "train", True),
    ]
    assert plots == ()
    other = replace(dataset, res=2.0)
    swapped = [replace(c, value=value) for c, value in zip(dataset.legend.classes, (7, 3), strict=True)]
    for wrong, words in (
        (other, "2 m"),
        (replace(dataset, legend=Legend(tuple(swapped))), "ground = 7, roof = 3"),
        (replace(dataset, legend=replace(dataset.legend, nodata=9)), "nodata = 9"),
    ):
        with pytest.raises(DatasetError, match=f"classes with their values, nodata, bands and resolution.* {words}"):
            joined(seen["round 1: training"], wrong)
    sizes = {(region.scene.belief is None, region.scene.pixel_res) for region in regions}
    assert sizes == {(False, None), (True, 1.0)}, "the region's georeference tells, those that were given have none"


def test_inferred_labels_are_probabilities(prior: str, region: Path) -> None:
    card, folder = read_card(prior), region / "labels"
    folder.mkdir()
    items = label_items(images(region), folder)
    infer_labels(items, prior=prior, options=told(region))
    found = inferred_dataset("region", items, card, options=ONE)
    split = [(r.split, r.window.height if r.window else None) for r in found.regions]
    assert split == [("train", 64), ("val", 64), ("train", 64), ("val", 64)]
    plot = read_plots(found, "train", "pairs")[0]
    assert plot.belief is not None
    assert plot.index is not None
    assert plot.belief.shape == (64, SIZE, 2)
    np.testing.assert_array_equal(plot.belief.argmax(axis=2), plot.index)
    assert np.abs(plot.belief.sum(axis=2, dtype=np.int64) - 254).max() <= 1
    assert 127 <= plot.belief.max(axis=2).min() < 254


@pytest.mark.slow
def test_a_student_learns_what_was_inferred(prior: str, region: Path) -> None:
    settings = replace(SHORT, steps=100, batch=4, rate=3e-3, warmup=10, validate_every=100)
    plan = Distillation(
        prior, images(region), region / "student.safetensors", told(region), "unet", "mobilenet_v2", "none", settings
    )
    *_, last = distill(plan)
    assert last.validation is not None
    assert last.validation.one_step > 0.7
    card = read_card(plan.target)
    assert (card.plain, card.network.arch, card.network.encoder) == (True, "unet", "mobilenet_v2")
    assert right(plan.target, region) > 0.85
    assert not plan.folder.exists()


@pytest.mark.slow
def test_from_the_command_line(prior: str, region: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--steps", 2, "--batch", 2, "--tile", 32, "--tile-size", 64, "--overlap", 0)
    say = ("--unary", region / "{stem}_says.tif", "--weight", "unary=3")
    new, student = region / "new.safetensors", region / "student.safetensors"
    mixed = ("--cut-mix", 0.5, "--scale-jitter", 1.25)
    found = call(capsys, "adapt", prior, region / "????.tif", "-o", new, "--rounds", 1, *say, *short, *mixed)
    assert found.code == 0, found.stderr
    changes = read_card(new).training["settings"]["augmentation"]
    assert (changes["cut_mix"], changes["scale"]) == (0.5, 1.25)
    assert found.stdout == f"{new}: adapted to 2 images\n"
    assert "round 1: agreement" in found.stderr
    assert "nothing is told" not in found.stderr
    network = ("--arch", "fpn", "--encoder", "mobilenet_v2", "--encoder-weights", "none")
    found = call(capsys, "distill", new, region / "????.tif", "-o", student, *say, *short, *network)
    assert found.code == 0, found.stderr
    assert "agrees with what was inferred on held-out parts of 2 images" in found.stdout
    assert read_card(student).training["settings"]["augmentation"] == asdict(Augmentation())
    found = call(capsys, "adapt", new, region / "east.tif", "-o", region / "next.safetensors", "--rounds", 1, *short)
    assert "nothing is told of the region" in found.stderr
    found = call(capsys, "segment", region / "east.tif", "-o", region / "m.tif", "--prior", student, *short[6:])
    assert found.code == 0, found.stderr


@pytest.mark.parametrize("command", ["adapt", "distill"])
def test_bad_input_is_one_line(command: str, prior: str, region: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, east = region / "new.safetensors", region / "east.tif"
    network = () if command == "adapt" else ("--encoder", "mobilenet_v2", "--encoder-weights", "none")
    deep = region / "deep.tif"
    with rasterio.open(east) as source:
        profile = source.profile | {"dtype": "uint16"}
        with rasterio.open(deep, "w", **profile) as target:
            target.write(source.read().astype(np.uint16) * 200)
    write_tiff(region / "low.tif", np.zeros((3, 96, SIZE), np.uint8))
    cases = [
        ((prior, east, "-o", region / "new.txt", *network), "ends in .safetensors"),
        ((prior, region / "gone.tif", "-o", new, *network), "gone.tif"),
        ((prior, region / "*.jp2", "-o", new, *network), "no file fits"),
        (("nothing", east, "-o", new, *network), "wanted a prior"),
        ((prior, east, "-o", new, "--hint", region / "{stem}_gone.tif", *network), "east_gone.tif"),
        ((prior, region / "low.tif", "-o", new, "--res", 1, *network), "128 or more rows of 1 m"),
        ((prior, deep, "-o", new, *network), "8-bit bands to train on"),
        ((prior, east, "-o", new, "--tile", 33, *network), "multiple of 32"),
    ]
    if command == "adapt":
        cases += [
            ((prior, east, "-o", new, "--rounds", 0), "1 round or more"),
            ((prior, east, "-o", new, "--with", "nowhere"), "wanted a data set"),
        ]
    else:
        cases += [
            ((prior, east, "-o", new, "--arch", "mynet", *network), "mynet"),
            ((prior, east, "-o", new, "--encoder", "mine", "--encoder-weights", "none"), "mine"),
            ((prior, east, "-o", new, "--encoder-weights", region / "none.safetensors"), "none.safetensors"),
        ]
    for arguments, said in cases:
        found = call(capsys, command, *arguments)
        assert (found.code, found.stderr.count("\n")) == (2, 1), found.stderr
        assert said in found.stderr
        assert not new.exists()
    if command == "distill":
        (region / "new.png").write_text("mine")
        found = call(capsys, command, prior, east, "-o", new, *network)
        assert (found.code, found.stderr.count("\n")) == (2, 1)
        assert "new.png: it exists" in found.stderr
    assert not list(region.glob(".new*")), "nothing was begun"
    new.write_text("mine")
    found = call(capsys, command, prior, east, "-o", new, *network)
    assert found.code == 2
    assert "it exists" in found.stderr
    assert new.read_text() == "mine"


def test_plans_that_cannot_be(prior: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="1 image"):
        Adaptation(prior, (), tmp_path / "new.safetensors")
    with pytest.raises(SettingError, match="1 image"):
        Distillation(prior, (), tmp_path / "new.safetensors")
    with pytest.raises(OutputError, match="no folder"):
        next(adapt(Adaptation(prior, ("a.tif",), tmp_path / "no" / "new.safetensors")))


def test_a_solver_starts_from_a_student(
    prior: str, plain: str, region: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    east, mask = region / "east.tif", region / "mask.tif"
    short = ("--tile-size", 64, "--overlap", 0, "--overwrite")
    found = call(capsys, "segment", east, "-o", mask, "--prior", prior, "--start", plain, *short)
    assert found.code == 0, found.stderr
    with rasterio.open(mask) as made:
        assert len(made.tags()["SEGPRIOR_START_SHA256"]) == 64
    other = region / "other.safetensors"
    card = replace(small_card(dataset, plain=True), res=3.0)
    save_prior(Prior(card, build_denoiser(card).eval()), other)
    for arguments, said in (
        ((prior, prior), "wanted a plain segmenter to start from"),
        ((plain, plain), "that goes on from another map"),
        ((prior, other), "classes, bands and resolution"),
        ((prior, "nothing"), "wanted a prior"),
    ):
        found = call(capsys, "segment", east, "-o", mask, "--prior", arguments[0], "--start", arguments[1], *short)
        assert (found.code, found.stderr.count("\n")) == (2, 1), found.stderr
        assert said in found.stderr
    found = call(capsys, "segment", east, "-o", mask, "--prior", prior, "--start", plain, "--steps", 1, *short)
    assert (found.code, found.stderr.count("\n")) == (2, 1)
    assert "take more steps" in found.stderr
