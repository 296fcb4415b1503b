"""A training run on disk, on a generated data set: its files, and that stops in between leave no trace."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from generated import write_dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import segprior.fit as module
from segprior.beginning import encoder_of
from segprior.checkpoint import Prior, build_denoiser, load_prior, read_card, save_prior
from segprior.data import Dataset, load_dataset
from segprior.errors import CheckpointError, DatasetError, OutputError, SegpriorError, SettingError, TrainingError
from segprior.fit import COLUMNS, Plan, fit
from segprior.legend import Legend
from segprior.plots import read_plots
from segprior.samples import Drawing
from segprior.train import Settings
from segprior.validation import temperature

SETTINGS = Settings(steps=4, batch=3, tile=32, rate=3e-3, warmup=1, average=0.9, validate_every=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(str(write_dataset(tmp_path_factory.mktemp("rectangles"))))


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Small samples and few tiles to count classes in."""
    tilt = module.class_tilt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Drawing", lambda size, seed: Drawing(size=(32, 32), steps=2, seed=seed))
        patch.setattr(module, "class_tilt", lambda pool, classes: tilt(pool, classes=classes, tiles=40))
        yield


def plan(dataset: Dataset, folder: Path, **wishes: object) -> Plan:
    settings = {"encoder": "mobilenet_v2", "encoder_weights": "none", "settings": SETTINGS, "save_every": 0.0}
    return Plan(dataset, folder / "roofs.safetensors", **(settings | wishes))  # type: ignore[arg-type]  # by name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def log(folder: Path) -> list[dict[str, str]]:
    """The rows of the log, without the column that tells the time."""
    with (folder / "roofs.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def stopped(this: Plan, steps: int) -> None:
    """Begin, and stop after some steps as an interrupt does."""
    run = fit(this)
    assert len(list(islice(run, steps))) == steps
    run.close()  # type: ignore[attr-defined]  # a generator


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "roofs.safetensors")


ALL = {"roofs.safetensors", "roofs.csv", "roofs.png", "roofs.samples.png"}


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    steps = list(fit(plan(dataset, folder)))
    assert [s.number for s in steps] == [1, 2, 3, 4]
    assert [s.validation is not None for s in steps] == [False, False, True, True]
    return folder


def test_the_files_of_a_run(dataset: Dataset, trained: Path) -> None:
    assert names(trained) == ALL
    rows = log(trained)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert (trained / "roofs.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert all(np.isfinite([float(row[k]) for k in ("one_step", "later", "image")]).all() for row in rows)
    assert [bool(row["miou_few_step"]) for row in rows] == [False, False, True, True]
    for name in ("roofs.png", "roofs.samples.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    card = read_card(trained / "roofs.safetensors")
    assert (card.name, card.legend, card.res, card.plain) == ("roofs", dataset.legend, 1.0, False)
    assert card.training["dataset"] == "rectangles"
    assert card.training["scenes"] == ["one:pairs", "two:pairs"]
    assert card.training["settings"]["steps"] == 4
    assert card.scores["val"]["miou_few_step"] == float(rows[-1]["miou_few_step"])
    prior = load_prior(trained / "roofs.safetensors")
    assert prior.denoiser.temperature == card.temperature != 1.0
    assert temperature(prior, read_plots(dataset, "val", "pairs")) == pytest.approx(card.temperature, rel=0.02)
    tilt = load_prior(trained / "roofs.safetensors").denoiser.log_tilt
    assert tilt.shape == (2,)
    assert tilt.any(), "rare classes are drawn more often, and the prior knows by how much"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupted_run_ends_like_another(dataset: Dataset, trained: Path, tmp_path: Path, steps: int) -> None:
    this = plan(dataset, tmp_path)
    stopped(this, steps)
    assert names(tmp_path) == {"roofs.run", "roofs.csv"}
    torch.rand(5)  # what was drawn in between must not matter
    rest = [step.number for step in fit(this)]
    # the state is saved before a step is handed out, so none is done twice
    assert rest == list(range(steps + 1, 5))
    assert names(tmp_path) == ALL
    assert log(tmp_path) == log(trained)
    wanted, found = weights(trained), weights(tmp_path)
    assert wanted.keys() == found.keys()
    assert [k for k in wanted if not torch.equal(wanted[k], found[k])] == []
    for name in ("roofs.png", "roofs.samples.png"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_stop_before_the_first_save_begins_anew(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    this = plan(dataset, tmp_path, save_every=1e9)
    stopped(this, 2)
    assert names(tmp_path) == {"roofs.csv"}
    assert len(list(fit(this))) == 4
    assert log(tmp_path) == log(trained)


@pytest.mark.slow
def test_steps_after_the_last_save_are_done_again(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    stopped(plan(dataset, tmp_path), 2)
    late = fit(plan(dataset, tmp_path, save_every=1e9))
    assert next(late).number == 3
    late.close()  # type: ignore[attr-defined]  # a generator
    assert [row["step"] for row in log(tmp_path)] == ["1", "2", "3"]
    assert [step.number for step in fit(plan(dataset, tmp_path))] == [3, 4]
    assert log(tmp_path) == log(trained)


def test_a_state_of_another_run_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    stopped(plan(dataset, tmp_path), 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for wish in (
        {"settings": replace(SETTINGS, rate=1e-3)},
        {"label_scale": 0.1},
        {"schedule": "linear"},
        {"plain": True},
        {"dataset": replace(dataset, name="triangles")},
        {"dataset": replace(dataset, regions=(dataset.regions[0], dataset.regions[-1]))},
        {"dataset": replace(dataset, std=(60.0, 60.0, 60.0))},
    ):
        with pytest.raises(TrainingError, match="remove it to start anew"):
            next(fit(plan(**({"dataset": dataset, "folder": tmp_path} | wish))))  # type: ignore[arg-type]  # by name
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_state_from_other_files_or_another_start_is_refused(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes((trained / "roofs.safetensors").read_bytes())
    folder = tmp_path / "run"
    folder.mkdir()
    going_on = plan(dataset, folder, start=str(start))
    stopped(going_on, 1)
    before = going_on.origin
    other = load_prior(start)
    save_prior(replace(other, card=replace(other.card, name="other")), start)
    assert going_on.origin != before
    with pytest.raises(TrainingError, match="remove it to start anew"):
        next(fit(going_on))
    own = load_dataset(str(write_dataset(tmp_path)))
    state, image = own.state, own.regions[0].scene.image
    os.utime(image, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns + 10**9))
    assert own.state != state


def test_a_prior_to_start_from_keeps_its_label_scale(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    start = tmp_path / "wide.safetensors"
    wide = load_prior(trained / "roofs.safetensors")
    save_prior(replace(wide, card=replace(wide.card, label_scale=0.6, schedule="linear")), start)
    going_on = plan(dataset, tmp_path, start=str(start))
    assert (going_on.card.label_scale, going_on.card.schedule) == (0.6, "linear")
    with pytest.raises(SettingError, match=r"wanted the label scale of the prior to start from, 0\.6, got 0\.3"):
        plan(dataset, tmp_path, start=str(start), label_scale=0.3).card  # noqa: B018  # it asks
    assert plan(dataset, tmp_path).card.label_scale == 0.3


@pytest.mark.parametrize("plain", [True, False])
def test_tiles_that_the_network_cannot_be_trained_on_are_refused(dataset: Dataset, tmp_path: Path, plain: bool) -> None:
    one = replace(SETTINGS, batch=1)  # a tile of one cell at stride 32, of which there is no variance
    with pytest.raises(SettingError, match="wanted tiles that the network can be trained on, got 1 of 32"):
        next(fit(plan(dataset, tmp_path, settings=one, plain=plain)))
    assert not names(tmp_path)


@pytest.mark.parametrize("name", sorted(ALL))
def test_files_that_exist_are_kept(dataset: Dataset, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="it exists"):
        next(fit(plan(dataset, tmp_path)))
    assert names(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


def test_leave_to_overwrite(dataset: Dataset, tmp_path: Path) -> None:
    for name in ALL:
        (tmp_path / name).write_text("old")
    list(fit(plan(dataset, tmp_path, settings=replace(SETTINGS, steps=1)), overwrite=True))
    assert names(tmp_path) == ALL
    assert all((tmp_path / name).read_bytes() != b"old" for name in ALL)


def test_a_plain_baseline(dataset: Dataset, tmp_path: Path) -> None:
    this = plan(dataset, tmp_path, plain=True, settings=replace(SETTINGS, steps=2, validate_every=2))
    stopped(this, 1)
    assert [step.number for step in fit(this)] == [2]
    assert names(tmp_path) == ALL - {"roofs.samples.png"}, "it has no images to draw"
    assert all(np.isfinite(float(row["one_step"])) for row in log(tmp_path))
    assert read_card(tmp_path / "roofs.safetensors").plain


def test_a_prior_to_start_from(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    start = str(trained / "roofs.safetensors")
    slow = replace(SETTINGS, steps=1, rate=1e-9, average=0.0)
    list(fit(plan(dataset, tmp_path, start=start, settings=slow)))
    wanted, found = weights(trained), weights(tmp_path)
    # batch norm's statistics move with every batch, whatever the rate
    for key in [k for k in wanted if "running_" not in k and "num_batches" not in k]:
        torch.testing.assert_close(found[key].float(), wanted[key].float(), atol=2e-3, rtol=2e-3)
    card = read_card(tmp_path / "roofs.safetensors")
    assert card.training["start"] == start
    assert card.training["before"] == json.loads(json.dumps(read_card(start).training))
    with pytest.raises(TrainingError, match="the same network"):
        next(fit(plan(dataset, tmp_path / "..", start=start, encoder="timm-tf_efficientnet_lite0")))
    with pytest.raises(TrainingError, match="the same network"):
        next(fit(plan(dataset, tmp_path / "..", start=start, plain=True)))
    with pytest.raises(CheckpointError, match="no such file"):
        next(fit(plan(dataset, tmp_path / "..", start="gone.safetensors")))


def test_the_image_network_learns_from_clean_images_alone_unless_a_prior_to_start_from_has_it_otherwise(
    dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    """So priors that were trained before keep what their image network has learnt of noisy images."""
    fresh = trained / "roofs.safetensors"
    assert read_card(fresh).network.clean
    assert not plan(dataset, tmp_path, plain=True).card.network.clean
    card = read_card(fresh)
    card = replace(card, network=replace(card.network, clean=False))
    save_prior(Prior(card, build_denoiser(card)), tmp_path / "before.safetensors")
    start = str(tmp_path / "before.safetensors")
    list(fit(plan(dataset, tmp_path, start=start, settings=replace(SETTINGS, steps=1))))
    assert not read_card(tmp_path / "roofs.safetensors").network.clean


def test_a_prior_that_goes_on_has_all_draws_from_the_first_step_on(dataset: Dataset, trained: Path) -> None:
    fresh = plan(dataset, trained)
    again = plan(dataset, trained, start=str(trained / "roofs.safetensors"))
    assert fresh.settings.mix.alone > 0
    assert again.settings == replace(fresh.settings, mix=replace(fresh.settings.mix, alone=0.0))


@pytest.fixture(scope="module")
def unet(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A U-Net trained on other colours than the data set's, as another data set would have."""
    folder = tmp_path_factory.mktemp("unet")
    other = replace(dataset, mean=(100.0, 90.0, 80.0), std=(50.0, 40.0, 30.0))
    list(fit(plan(other, folder, plain=True)))
    return str(folder / "roofs.safetensors")


def logits(path: str | Path, image: Tensor, hidden: Tensor) -> Tensor:
    """Class logits of the map of one step, with or without holes in the image."""
    denoiser = load_prior(path).denoiser
    with torch.no_grad():
        return denoiser.encode(torch.where(hidden, 0.0, image), hidden.float()).logits


def test_a_prior_grown_on_a_unet_that_is_held_keeps_its_map(dataset: Dataset, unet: str, tmp_path: Path) -> None:
    this = plan(dataset, tmp_path, start=unet, hold=True)
    stopped(this, 2)
    assert [step.number for step in fit(this)] == [3, 4]
    grown, card = tmp_path / "roofs.safetensors", read_card(tmp_path / "roofs.safetensors")
    assert not card.plain
    assert card.network.clean
    assert (card.mean, card.std) == (read_card(unet).mean, read_card(unet).std), "what the U-Net was taught with"
    assert card.training["before"] == json.loads(json.dumps(read_card(unet).training))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64))).float()
    for hidden in (torch.zeros(1, 1, 64, 64, dtype=torch.bool), torch.rand(1, 1, 64, 64) < 0.2):
        torch.testing.assert_close(logits(grown, image, hidden), logits(unet, image, hidden), atol=1e-5, rtol=1e-5)
    path = {key: value for key, value in weights(tmp_path).items() if key.startswith("network.path.label_entry")}
    assert path, "the name of a weight that begins at zero"
    assert all(value.any() for value in path.values()), "the label path learns"


def test_a_prior_grown_on_a_unet_that_is_not_held_begins_with_its_map(
    dataset: Dataset, unet: str, tmp_path: Path
) -> None:
    begun = module._begin(plan(dataset, tmp_path, start=unet), torch.zeros(2)).denoiser.eval()
    image, hidden = torch.randn(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(begun.encode(image, hidden).logits, logits(unet, image, hidden > 0))
    (row,) = [step.one_step for step in fit(plan(dataset, tmp_path, start=unet, settings=replace(SETTINGS, steps=1)))]
    assert np.isfinite(row)
    before = load_prior(unet).denoiser.state_dict()["network.segmenter.segmentation_head.0.weight"]
    assert not torch.equal(weights(tmp_path)["network.image.head.weight"].float(), before)


def test_a_prior_that_is_held_keeps_what_it_knows_of_images(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    start = str(trained / "roofs.safetensors")
    list(fit(plan(dataset, tmp_path, start=start, hold=True)))
    wanted, found = weights(trained), weights(tmp_path)
    same = {key for key in wanted if torch.equal(wanted[key], found[key])}
    inside = {key for key in wanted if key.startswith("network.image.")}
    assert same >= inside, "its statistics as well as its weights"
    assert not same & {key for key in wanted if key.startswith("network.path.label_entry")}


def test_the_mix_of_a_network_that_is_held_has_nothing_that_only_it_learns_from(
    dataset: Dataset, trained: Path
) -> None:
    held = plan(dataset, trained, start=str(trained / "roofs.safetensors"), hold=True).settings.mix
    before = SETTINGS.mix.kinds
    assert (held.alone, held.kinds[1]) == (0.0, 0.0)
    assert sum(held.kinds) == pytest.approx(1.0)
    assert held.kinds[0] / held.kinds[2] == pytest.approx(before[0] / before[2])
    nothing = replace(SETTINGS, mix=replace(SETTINGS.mix, kinds=(0.0, 1.0, 0.0, 0.0, 0.0)))
    with pytest.raises(SettingError, match="other items"):
        plan(dataset, trained, start=str(trained / "roofs.safetensors"), hold=True, settings=nothing)


def test_what_cannot_be_held_or_grown_on(dataset: Dataset, unet: str, tmp_path: Path) -> None:
    for wish in ({}, {"start": unet, "plain": True}, {"start": unet, "settings": replace(SETTINGS, mean_teacher=0.5)}):
        with pytest.raises(SettingError, match="wanted a network to start from"):
            plan(dataset, tmp_path, hold=True, **wish)
    card = replace(
        read_card(unet), network=replace(read_card(unet).network, arch="fpn", decoder=(256, 128, 64, 32, 16))
    )
    save_prior(Prior(card, build_denoiser(card)), tmp_path / "fpn.safetensors")
    with pytest.raises(TrainingError, match="to grow a prior on, got FPN"):
        next(fit(plan(dataset, tmp_path, start=str(tmp_path / "fpn.safetensors"))))
    turned = replace(dataset, legend=Legend(tuple(reversed(dataset.legend.classes))))
    with pytest.raises(TrainingError, match="wanted a prior of 3 bands and "):
        next(fit(plan(turned, tmp_path, start=unet)))


def test_weights_of_an_encoder(dataset: Dataset, tmp_path: Path) -> None:
    given = plan(dataset, tmp_path)
    torch.manual_seed(77)
    encoder = encoder_of(build_denoiser(given.card))
    path = tmp_path / "encoder.safetensors"
    save_file(encoder.state_dict(), path)
    begun = module._begin(replace(given, encoder_weights=str(path)), torch.zeros(2))
    inside = encoder_of(begun.denoiser).state_dict()
    assert all(torch.equal(value, inside[key]) for key, value in encoder.state_dict().items())


def test_runs_that_cannot_begin(dataset: Dataset, tmp_path: Path) -> None:
    save_file({"stem": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    before = names(tmp_path)
    alone = replace(dataset, regions=tuple(r for r in dataset.regions if r.split == "train"))
    cases: list[tuple[dict[str, object], type[SegpriorError], str]] = [
        ({"encoder_weights": str(tmp_path / "gone.safetensors")}, TrainingError, "gone"),
        ({"encoder_weights": str(tmp_path)}, TrainingError, "wanted encoder weights"),
        ({"encoder_weights": str(tmp_path / "text.safetensors")}, TrainingError, "safetensors format"),
        ({"encoder_weights": str(tmp_path / "other.safetensors")}, TrainingError, "that fit the encoder"),
        ({"encoder": "abacus"}, SettingError, "wanted an encoder of segmentation-models-pytorch, got 'abacus'"),
        ({"encoder": "tu-abacus"}, SegpriorError, "tu-abacus"),
        ({"encoder": "abacus", "encoder_weights": "imagenet"}, SettingError, "abacus"),
        ({"dataset": alone}, DatasetError, "split 'val' of rectangles, found none"),
        ({"settings": replace(SETTINGS, mean_teacher=0.5)}, DatasetError, "imagery without labels for a mean teacher"),
        ({"label_scale": 0.0}, SettingError, "label scale"),
        ({"schedule": "lunar"}, SettingError, "schedule"),
    ]
    for wish, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            next(fit(plan(**({"dataset": dataset, "folder": tmp_path} | wish))))  # type: ignore[arg-type]  # by name
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == before
    with pytest.raises(SettingError, match=r"ends in \.safetensors"):
        Plan(dataset, tmp_path / "roofs.pt")
    with pytest.raises(OutputError, match="no folder"):
        next(fit(plan(dataset, tmp_path / "gone")))


def test_weights_that_cannot_be_downloaded(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise OSError("no way\nout")

    monkeypatch.setattr("segprior.beginning.build_denoiser", offline)
    with pytest.raises(TrainingError, match=r"ImageNet weights of mobilenet_v2 \(no way out\); give a file or 'none'"):
        next(fit(plan(dataset, tmp_path, encoder_weights="imagenet")))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": -1.0}, {"rate": np.nan}, {"rate": np.inf}, {"seed": -1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="learning rate above 0 and a seed"):
        replace(SETTINGS, **wrong)  # type: ignore[arg-type]  # by name


def test_a_prior_is_on_disk_in_half_floats(trained: Path) -> None:
    with safe_open(trained / "roofs.safetensors", framework="pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118  # not a dict
    assert torch.float16 in kinds
    assert torch.float32 not in kinds
