"""Adopting: a network of segmentation-models-pytorch that was trained elsewhere becomes a file that segprior reads.

What smp's `save_pretrained` leaves in a folder (config.json, model.safetensors) says how the network is built and what
it weighs, not what it sees: classes, bands, resolution and normalisation come from the descriptor of a data set. The
result is a plain segmenter: `segment --prior`, `evaluate --prior`, the other map of `segment --unary` (by way of
`--probabilities`), and `train --start`, which grows a prior on it. Nothing is unpickled and nothing is downloaded.

A network of one channel, trained with a sigmoid for the second of two classes, becomes one of two with the same
probabilities: softmax((0, z)) = (1 - sigmoid(z), sigmoid(z)).
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segprior.checkpoint import Card, Prior, build_denoiser, save_prior
from segprior.data import Dataset
from segprior.errors import CheckpointError
from segprior.plots import read_plots
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.network import NetworkShape, PlainNetwork
from segprior.target import check_suffix, check_target
from segprior.validation import temperature, validate

HEAD = "segmentation_head.0."
"""Where smp's networks keep the layer that gives the classes."""

KEPT_ELSEWHERE = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
"""Options of smp's networks that a card keeps by other names, or has no use for."""

LOGITS = (None, "identity", "softmax", "softmax2d", "logsoftmax", "sigmoid")
"""Activations that leave the order of the classes alone; the network is taken without them."""


def adopt(folder: Path, dataset: Dataset, target: Path, *, overwrite: bool = False) -> Card:
    """Write a network from the folder of smp's `save_pretrained` as a plain segmenter; give its card.

    Where the data set has labels to validate with, the network is scored on them and its temperature fitted. Raises
    CheckpointError where the folder holds something else or another number of classes or bands than the data set,
    SettingError or OutputError.
    """
    check_suffix(target)
    check_target(target, overwrite=overwrite, sources=(folder / "model.safetensors", folder / "config.json"))
    card = _card(_config(folder), dataset, target.stem)
    denoiser = _filled(card, _weights(folder, classes=len(dataset.legend)), folder)
    prior = Prior(card, denoiser.to(memory_format=torch.channels_last))
    held = read_plots(dataset, "val", "pairs")
    if held:
        found = validate(prior, held)
        scores = {"val": {"miou_one_step": found.one_step, "miou_few_step": found.few_step}}
        card = replace(card, scores=scores, temperature=round(temperature(prior, held), 4))
    save_prior(Prior(card, denoiser), target)
    return card


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(f"wanted the folder of smp's save_pretrained, got {folder}: {reason}") from None
    if not isinstance(config, dict) or not {"_model_class", "encoder_name", "in_channels", "classes"} <= set(config):
        raise CheckpointError(f"wanted {path} as smp's save_pretrained writes it, got other contents")
    if config.get("aux_params") is not None:
        raise CheckpointError(f"wanted a network that gives a map alone, got one with aux_params in {path}")
    if config.get("activation") not in LOGITS or (config.get("activation") == "sigmoid" and config["classes"] > 1):
        raise CheckpointError(
            f"wanted classes that exclude each other, got the activation {config['activation']!r} in {path}"
        )
    return config


def _card(config: Mapping[str, Any], dataset: Dataset, name: str) -> Card:
    """The card, whose network has the options that are not smp's own."""
    class_name = str(config["_model_class"])
    try:
        usual = inspect.signature(getattr(smp, class_name)).parameters
    except (AttributeError, TypeError):
        raise CheckpointError(f"wanted a network of segmentation-models-pytorch, got a {class_name}") from None
    classes, bands = len(dataset.legend), len(dataset.bands)
    asked = {1, 2} if classes == 2 else {classes}
    if config["classes"] not in asked or config["in_channels"] != bands:
        raise CheckpointError(
            f"wanted a network of {bands} bands and {classes} classes, as {dataset.name} has, got one of "
            f"{config['in_channels']} and {config['classes']}"
        )
    options = {
        key: value
        for key, value in config.items()
        if not key.startswith("_")
        and key not in KEPT_ELSEWHERE
        and (key not in usual or _plainly(usual[key].default) != value)
    }
    shape = NetworkShape(bands, classes, encoder=str(config["encoder_name"]), arch=class_name.lower(), options=options)
    widths = options.get("decoder_channels", ())
    if class_name == "Unet" and len(widths) == len(shape.decoder):
        del options["decoder_channels"]
        shape = replace(shape, decoder=tuple(widths))
    return Card(
        name=name,
        legend=dataset.legend,
        bands=dataset.bands,
        res=dataset.res,
        mean=dataset.mean,
        std=dataset.std,
        network=shape,
        plain=True,
        training={"adopted": class_name, "dataset": dataset.name},
    )


def _plainly(value: Any) -> Any:
    """A default as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _weights(folder: Path, *, classes: int) -> dict[str, Tensor]:
    """The weights, those of a head of one channel as of one of two."""
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"wanted weights in safetensors format at {path}, got: {error}") from None
    for name in (f"{HEAD}weight", f"{HEAD}bias"):
        if classes == 2 and name in weights and len(weights[name]) == 1:
            weights[name] = torch.cat([torch.zeros_like(weights[name]), weights[name]])
    bad = [name for name, w in weights.items() if w.is_floating_point() and not torch.isfinite(w.half()).all()]
    if bad:
        raise CheckpointError(f"wanted finite weights that half precision can hold at {path}, got others in {bad[0]}")
    return weights


def _filled(card: Card, weights: Mapping[str, Tensor], folder: Path) -> NetworkDenoiser:
    """A denoiser of the card with these weights."""
    try:
        denoiser = build_denoiser(card).eval()
        assert isinstance(denoiser.network, PlainNetwork)  # noqa: S101  # the card's is plain
        denoiser.network.segmenter.load_state_dict(weights)
        with torch.no_grad():
            logits = denoiser.network.segmenter(torch.zeros(1, len(card.bands), 64, 64))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # what smp and torch raise for other networks
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"wanted a network that smp can build from {folder}, got: {reason}") from None
    if logits.shape != (1, len(card.legend), 64, 64):
        raise CheckpointError(f"wanted a map of the image's size, got {tuple(logits.shape)} for 64 x 64 from {folder}")
    return denoiser
