"""Networks of smp that were trained elsewhere, as files that segprior reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from commands import call
from generated import write_dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segprior.adopt import adopt
from segprior.beginning import denoiser_from
from segprior.checkpoint import load_prior, read_card
from segprior.data import Dataset, load_dataset
from segprior.errors import CheckpointError, OutputError, SettingError, TrainingError

IMAGE = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64))).float()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(str(write_dataset(tmp_path_factory.mktemp("rectangles"))))


@pytest.fixture(scope="module")
def classes(dataset: Dataset) -> Dataset:
    """The same without anything to validate with."""
    return replace(dataset, regions=tuple(region for region in dataset.regions if region.split == "train"))


def network(make: Callable[..., nn.Module], folder: Path, **options: object) -> nn.Module:
    """A network whose statistics are not those of the beginning, saved as smp saves it."""
    torch.manual_seed(3)
    built = make(encoder_name="mobilenet_v2", encoder_weights=None, **options)
    with torch.no_grad():
        for _ in range(3):
            built.train()(torch.randn(4, 3, 64, 64))
    built.eval().save_pretrained(folder)  # type: ignore[operator]  # of smp's mixin
    return built


def logits(path: Path) -> Tensor:
    denoiser = load_prior(path).denoiser
    with torch.no_grad():
        return denoiser.encode(IMAGE, torch.zeros(1, 1, 64, 64)).logits


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (smp.Unet, {"classes": 2}),
        (smp.Unet, {"classes": 2, "decoder_channels": (32, 32, 16, 16, 8)}),
        (smp.Unet, {"classes": 2, "encoder_depth": 4, "decoder_channels": (32, 16, 16, 8)}),
        (smp.Unet, {"classes": 2, "decoder_attention_type": "scse", "decoder_interpolation": "bilinear"}),
        (smp.FPN, {"classes": 2, "activation": "softmax2d"}),
        (smp.UnetPlusPlus, {"classes": 2}),
        (smp.DeepLabV3Plus, {"classes": 2, "decoder_channels": 64}),
    ],
)
def test_it_says_what_the_network_says(
    classes: Dataset, tmp_path: Path, make: Callable[..., nn.Module], options: dict[str, object]
) -> None:
    its = network(make, tmp_path / "its", **options)
    its.segmentation_head[2] = nn.Identity()  # type: ignore[operator]  # the activation
    card = adopt(tmp_path / "its", classes, tmp_path / "mine.safetensors")
    assert card == read_card(tmp_path / "mine.safetensors")
    assert (card.plain, card.legend, card.res, card.scores) == (True, classes.legend, classes.res, {})
    with torch.no_grad():
        wanted = its(IMAGE)
    torch.testing.assert_close(logits(tmp_path / "mine.safetensors"), wanted, atol=0.02, rtol=0.02)  # half precision


def test_one_channel_and_a_sigmoid_become_two_and_a_softmax(classes: Dataset, tmp_path: Path) -> None:
    its = network(smp.Unet, tmp_path / "its", classes=1, activation="sigmoid")
    adopt(tmp_path / "its", classes, tmp_path / "mine.safetensors")
    with torch.no_grad():
        wanted = its(IMAGE)
    found = torch.softmax(logits(tmp_path / "mine.safetensors"), dim=1)
    torch.testing.assert_close(found[:, 1:], wanted, atol=0.005, rtol=0.01)
    assert wanted.std() > 0.01, "a network that says something"


def test_the_command_scores_it_and_fits_its_temperature(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network(smp.FPN, tmp_path / "its", classes=2)
    descriptor, mine = dataset.scenes[0].image.parent, tmp_path / "mine.safetensors"
    found = call(capsys, "adopt", tmp_path / "its", descriptor, "-o", mine)
    assert (found.code, found.stderr) == (0, "")
    card = read_card(mine)
    score = card.scores["val"]["miou_one_step"]
    assert found.stdout == f"{mine}: FPN on mobilenet_v2, mIoU {score:.3f} on the validation split\n"
    assert card.temperature != 1.0
    assert call(capsys, "info", mine).stdout.startswith("mine: plain segmenter (no label path)")
    image, mask = dataset.scenes[0].image, tmp_path / "mask.tif"
    made = call(capsys, "segment", image, "-o", mask, "--prior", mine, "--res", 1, "--tile-size", 64, "--overlap", 32)
    assert made.code == 0
    assert mask.exists()


def test_a_prior_grows_on_a_usual_unet_alone(classes: Dataset, tmp_path: Path) -> None:
    network(smp.Unet, tmp_path / "usual", classes=2, decoder_channels=(32, 32, 16, 16, 8))
    network(smp.Unet, tmp_path / "smooth", classes=2, decoder_interpolation="bilinear")
    for name in ("usual", "smooth"):
        adopt(tmp_path / name, classes, tmp_path / f"{name}.safetensors")
    path = tmp_path / "usual.safetensors"
    card = replace(read_card(path), plain=False)
    for widths in (card.network.label_path, (16, 24, 32)):  # of a label path, which the U-Net has none of
        grown = denoiser_from(str(path), replace(card, network=replace(card.network, label_path=widths))).eval()
        assert grown.network.shape.label_path == widths
        with torch.no_grad():
            found = grown.encode(IMAGE, torch.zeros(1, 1, 64, 64)).logits
        torch.testing.assert_close(found, logits(path), atol=1e-5, rtol=1e-5)
    path = tmp_path / "smooth.safetensors"
    with pytest.raises(TrainingError, match=r"to grow a prior on, got Unet \{'decoder_interpolation': 'bilinear'\}"):
        denoiser_from(str(path), replace(read_card(path), plain=False))


def spoil(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unlike(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda its: (its / "model.safetensors").unlink(), "wanted weights in safetensors format"),
    "no description": (lambda its: (its / "config.json").unlink(), "wanted the folder of smp's save_pretrained"),
    "no JSON": (lambda its: (its / "config.json").write_text("{"), "wanted the folder of smp's save_pretrained"),
    "other JSON": (lambda its: (its / "config.json").write_text("{}"), "got other contents"),
    "no network of smp": (lambda its: spoil(its, _model_class="Abacus"), "got a Abacus"),
    "no network at all": (lambda its: spoil(its, _model_class="metrics"), "got a metrics"),
    "no encoder of smp": (lambda its: spoil(its, encoder_name="abacus"), "can build from"),
    "other classes": (
        lambda its: spoil(its, classes=3),
        "of 3 bands and 2 classes, as rectangles has, got one of 3 and 3",
    ),
    "other bands": (lambda its: spoil(its, in_channels=4), "got one of 4 and 2"),
    "classes that overlap": (lambda its: spoil(its, activation="sigmoid"), "exclude each other, got the activation"),
    "two answers": (lambda its: spoil(its, aux_params={"classes": 4}), "got one with aux_params"),
    "a small map": (lambda its: spoil(its, upsampling=1), r"got \(1, 2, 16, 16\) for 64 x 64"),
    "another network": (lambda its: unlike(its, lambda w: w.pop("segmentation_head.0.weight")), "can build from"),
    "no numbers": (
        lambda its: unlike(its, lambda w: w["segmentation_head.0.weight"].fill_(np.nan)),
        "got others in segm",
    ),
    "too large numbers": (lambda its: unlike(its, lambda w: w["segmentation_head.0.bias"].fill_(1e6)), "got others in"),
}


@pytest.fixture(scope="module")
def fpn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fpn")
    network(smp.FPN, folder, classes=2)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_adopted(classes: Dataset, fpn: Path, tmp_path: Path, name: str) -> None:
    its = tmp_path / "its"
    its.mkdir()
    for path in fpn.iterdir():
        (its / path.name).write_bytes(path.read_bytes())
    change, words = WRONG[name]
    change(its)
    with pytest.raises(CheckpointError, match=words) as caught:
        adopt(its, classes, tmp_path / "mine.safetensors")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["its"]


def test_targets(classes: Dataset, fpn: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="it exists"):
        adopt(fpn, classes, tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text() == "mine"
    with pytest.raises(SettingError, match=r"ends in \.safetensors"):
        adopt(fpn, classes, tmp_path / "mine.pt")
    adopt(fpn, classes, tmp_path / "mine.safetensors", overwrite=True)
    assert read_card(tmp_path / "mine.safetensors").network.arch == "fpn"


def test_the_network_itself_is_never_written(classes: Dataset, fpn: Path) -> None:
    before = (fpn / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="the input itself"):
        adopt(fpn, classes, fpn / "model.safetensors", overwrite=True)
    assert (fpn / "model.safetensors").read_bytes() == before
