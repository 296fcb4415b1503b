"""A prior and its file: what goes in comes out, and what is no prior is refused in one line."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import segprior.checkpoint as checkpoint_module
from segprior.checkpoint import Card, Prior, build_denoiser, load_prior, locate_prior, read_card, save_prior
from segprior.errors import CheckpointError, OutputError, SettingError
from segprior.legend import Legend, LegendClass
from segprior.prior.joint import Times
from segprior.prior.network import NetworkShape
from segprior.prior.schedule import LinearSchedule

LEGEND = Legend((LegendClass("ground", 3, (90, 140, 70)), LegendClass("roof", 7, (200, 60, 50))), nodata=254)
CARD = Card(
    name="test",
    legend=LEGEND,
    bands=(3, 2, 1),
    res=0.3,
    mean=(10.5, 20.0, 30.0),
    std=(1.0, 2.0, 3.5),
    network=NetworkShape(3, 2, "resnet18", decoder=(16, 16, 8, 8, 8), label_path=(8, 8, 8)),
    label_scale=0.2,
    schedule="linear",
    licence="CC0",
    training={"steps": 3, "scenes": ["a", "b"]},
    scores={"val": {"miou": 0.5}},
)


@pytest.fixture(scope="module")
def prior() -> Prior:
    torch.manual_seed(0)
    denoiser = build_denoiser(CARD).eval()
    denoiser.log_tilt.copy_(torch.tensor([-0.25, 0.5]))
    return Prior(CARD, denoiser)


@pytest.fixture(scope="module")
def file(prior: Prior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_prior(prior, path)
    return path


def predict(prior: Prior) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(1, 5, 32, 32, generator=generator)
    times = Times(torch.full((1, 1, 1, 1), 0.1), torch.full((1, 1, 1, 1), 0.6))
    with torch.no_grad():
        return prior.denoiser.predict(x_t, times).logits


def test_weights_come_back_in_half_precision(prior: Prior, file: Path) -> None:
    loaded = load_prior(file)
    assert not loaded.denoiser.training
    state, again = prior.denoiser.state_dict(), loaded.denoiser.state_dict()
    assert state.keys() == again.keys()
    for key, tensor in state.items():
        assert again[key].dtype == tensor.dtype
        torch.testing.assert_close(again[key], tensor, rtol=1e-3, atol=1e-6, msg=key)
    torch.testing.assert_close(predict(loaded), predict(prior), rtol=0, atol=0.02)
    assert isinstance(loaded.denoiser.schedule, LinearSchedule)
    assert loaded.denoiser.layout.label_scale == 0.2


def test_the_file_is_half_the_size_and_holds_no_code(prior: Prior, file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        types = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118  # not a dict
    assert types <= {"F16", "I64"}
    numbers = sum(v.numel() for v in prior.denoiser.state_dict().values())
    assert file.stat().st_size < 2.2 * numbers


def test_the_card_comes_back_as_it_was(file: Path) -> None:
    assert read_card(file) == CARD
    assert load_prior(str(file)).card == CARD


def test_saving_again_changes_nothing(file: Path, tmp_path: Path) -> None:
    save_prior(load_prior(file), tmp_path / "again.safetensors")
    assert torch.equal(predict(load_prior(tmp_path / "again.safetensors")), predict(load_prior(file)))


def test_a_plain_prior_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    card = replace(CARD, plain=True)
    plain = Prior(card, build_denoiser(card).eval())
    save_prior(plain, tmp_path / "plain.safetensors")
    loaded = load_prior(tmp_path / "plain.safetensors")
    assert loaded.card.plain
    torch.testing.assert_close(predict(loaded), predict(plain), rtol=0, atol=0.02)


def test_normalise_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    normal = CARD.normalise(image)
    assert normal.dtype == torch.float32
    expected = (image - np.array(CARD.mean)[:, None, None]) / np.array(CARD.std)[:, None, None]
    np.testing.assert_allclose(normal.numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(CARD.denormalise(normal), image)


Change = Callable[[dict[str, Any]], Any]


def without(key: str) -> Change:
    return lambda card: {k: v for k, v in card.items() if k != key}


def with_(**changes: Any) -> Change:
    return lambda card: {**card, **changes}


BROKEN: dict[str, tuple[Change, str]] = {
    "other format": (with_(format=99), "format is not 1"),
    "no format": (without("format"), "lacks 'format'"),
    "no legend": (without("legend"), "lacks 'legend'"),
    "no bands": (without("bands"), "bands"),
    "no network": (without("network"), "lacks 'network'"),
    "a list": (lambda card: [card], "no table"),
    "a text": (lambda _: "card", "no table"),
    "a network of text": (with_(network="big"), "no table"),
    "an unknown key": (with_(colour="blue"), "colour"),
    "an unknown schedule": (with_(schedule="square"), "schedule"),
    "means of other bands": (with_(mean=[1.0]), "mean"),
    "a res of zero": (with_(res=0), "res"),
    "a res of text": (with_(res="fine"), "valid metadata"),
    "three classes in the network": (
        lambda card: {**card, "network": {**card["network"], "classes": 3}},
        "network of 2 classes",
    ),
    "an unknown encoder": (
        lambda card: {**card, "network": {**card["network"], "encoder": "no-such-net"}},
        "no-such-net",
    ),
    "another network": (lambda card: {**card, "network": {**card["network"], "label_path": [8, 8, 12]}}, "size"),
    "a decoder of three": (lambda card: {**card, "network": {**card["network"], "decoder": [8, 8, 8]}}, "weights"),
}


def refused(path: Path | str, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_prior(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_card_is_refused_in_one_line(file: Path, tmp_path: Path, case: str) -> None:
    change, match = BROKEN[case]
    with safe_open(file, framework="pt") as opened:
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a dict
        card = json.loads(opened.metadata()["segprior"])
    path = tmp_path / "broken.safetensors"
    save_file(weights, path, metadata={"segprior": json.dumps(change(card))})
    refused(path, match)


def test_files_that_are_no_prior_are_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    refused(tmp_path, "a directory")
    refused(tmp_path / "nothing.safetensors", "no such file")
    text = tmp_path / "text.safetensors"
    text.write_text("this is not a prior\n" * 20)
    refused(text, "safetensors format")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    refused(empty, "safetensors format")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-1000])
    refused(cut, "safetensors format")
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(1)}, bare)
    refused(bare, "metadata")
    garbled = tmp_path / "garbled.safetensors"
    save_file({"a": torch.zeros(1)}, garbled, metadata={"segprior": "{"})
    refused(garbled, "valid metadata")


@pytest.mark.parametrize("missing", ["network.image.head.weight", "log_tilt"])
def test_missing_weights_are_refused_in_one_line(file: Path, tmp_path: Path, missing: str) -> None:
    with safe_open(file, framework="pt") as opened:
        weights = {key: opened.get_tensor(key) for key in opened.keys() if key != missing}  # noqa: SIM118  # not a dict
        metadata = opened.metadata()
    path = tmp_path / "partial.safetensors"
    save_file(weights, path, metadata=metadata)
    refused(path, missing)


def test_nothing_is_left_when_saving_fails(prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "prior.safetensors"
    target.write_text("what was there before")

    def half(path: Path, content: bytes) -> None:
        path.write_text("half a file")
        assert content
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match="no space left") as caught:
        save_prior(prior, target)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"]
    assert target.read_text() == "what was there before"


def test_nothing_is_left_when_saving_is_interrupted(
    prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, content: bytes) -> None:
        path.write_text("half a file")
        assert content
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_prior(prior, tmp_path / "prior.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_file_is_as_open_to_others_as_the_umask_lets_it_be(prior: Prior, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_prior(prior, tmp_path / "prior.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "prior.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_is_missing_or_a_file_is_refused(prior: Prior, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        with pytest.raises(OutputError, match="wanted to write"):
            save_prior(prior, tmp_path / folder / "prior.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_embedded_prior_is_found_by_name(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roofs.safetensors").write_bytes(file.read_bytes())
    monkeypatch.setattr(checkpoint_module, "_embedded", lambda: tmp_path)
    assert checkpoint_module.prior_names() == ("roofs",)
    assert locate_prior("roofs") == tmp_path / "roofs.safetensors"
    assert load_prior("roofs").card == CARD
    with pytest.raises(CheckpointError, match="roofs"):
        locate_prior("roads")


@pytest.mark.parametrize(
    "wrong",
    [{"bands": (0, 1, 2)}, {"bands": (1, 2)}, {"std": (1.0, 0.0, 1.0)}, {"label_scale": 0.0}, {"schedule": ""}],
    ids=["band 0", "two bands", "std 0", "label scale 0", "schedule"],
)
def test_an_impossible_card_is_refused_at_birth(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="wanted"):
        replace(CARD, **wrong)
