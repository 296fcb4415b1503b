"""What a training begins with: a new network, one that was trained before, or a prior grown on a segmenter.

A trained U-Net of smp is the image network of a joint prior as it stands: weight for weight, and since a label path
that hears nothing adds nothing, the map of one step stays the U-Net's, pixel for pixel.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from segprior.checkpoint import Card, build_denoiser, load_prior
from segprior.data import Dataset
from segprior.errors import SettingError, TrainingError
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.network import JointNetwork, PlainNetwork


def new_denoiser(card: Card, encoder_weights: str) -> NetworkDenoiser:
    """Build a denoiser to train; encoder_weights: "imagenet", "none", or a file. Raises SettingError, TrainingError."""
    imagenet, encoder = encoder_weights == "imagenet", card.network.encoder
    try:
        denoiser = build_denoiser(card, "imagenet" if imagenet else None)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise TrainingError(
            f"cannot get ImageNet weights of {encoder} ({reason}); give a file or 'none' as encoder weights"
            if imagenet
            else f"wanted an encoder of segmentation-models-pytorch, got {encoder!r}: {reason}"
        ) from None
    except (KeyError, ValueError) as error:  # what smp raises for a name it does not know
        reason, arch = " ".join(str(error).split())[:150], f" and {card.network.arch!r}" if card.plain else ""
        raise SettingError(
            f"wanted an encoder of segmentation-models-pytorch, got {encoder!r}{arch}: {reason}"
        ) from None
    if encoder_weights not in ("imagenet", "none"):
        _load_encoder(encoder_of(denoiser), Path(encoder_weights))
    return denoiser


@torch.no_grad()
def check_tiles(denoiser: NetworkDenoiser, batch: int, tile: int) -> None:
    """Raise SettingError unless a network can be trained on so many tiles of that many pixels a side."""
    if batch < 3 and isinstance(denoiser.network, JointNetwork) and denoiser.network.shape.clean:
        batch = 1  # the image network learns from clean images alone, and of two tiles one may be noisy
    zeros = torch.zeros(batch, denoiser.layout.bands, tile, tile)
    try:
        with torch.random.fork_rng(devices=[]):
            deepcopy(denoiser).train().encode(zeros, torch.zeros(batch, 1, tile, tile))
    except (AssertionError, RuntimeError, ValueError) as error:  # what networks raise that need others
        reason = " ".join(str(error).split())[:150]
        raise SettingError(
            f"wanted tiles that the network can be trained on, got {batch} of {tile} pixels a side: {reason}; "
            "take more or larger ones"
        ) from None


def check_start(before: Card, dataset: Dataset) -> None:
    """Raise TrainingError unless a prior knows the classes of a data set, in their order, and as many bands."""
    wanted, got = (f"{len(each.bands)} bands and {', '.join(each.legend.names)}" for each in (dataset, before))
    if wanted != got:
        raise TrainingError(f"wanted a prior of {wanted} to start from, got one of {got}")


def denoiser_from(start: str, card: Card, *, hold: bool = False) -> NetworkDenoiser:
    """Take the denoiser of a prior's file, to train on as a prior of `card`; on a U-Net's file a joint prior is grown.

    Its temperature is 1. hold: the image network of a joint prior is not to learn. Raises CheckpointError, or
    TrainingError where the network is not that of `card`.
    """
    prior = load_prior(start)
    grows = prior.card.plain and not card.plain
    shape, wanted = prior.card.network, card.network
    if grows:  # the label path is new
        shape = replace(shape, clean=wanted.clean, label_path=wanted.label_path)
    if shape != wanted or (card.plain and not prior.card.plain):
        raise TrainingError(f"wanted a prior of the same network to start from, {wanted}, got {prior.card.network}")
    denoiser = _grown(prior.denoiser, card) if grows else prior.denoiser
    denoiser.temperature = 1.0
    if hold:
        assert isinstance(denoiser.network, JointNetwork)  # noqa: S101  # a plain segmenter is nothing but what is held
        denoiser.network.hold()
    return denoiser


def _grown(segmenter: NetworkDenoiser, card: Card) -> NetworkDenoiser:
    """A joint prior with a new label path, whose image network is smp's trained U-Net."""
    denoiser = build_denoiser(card)
    network, trained = denoiser.network, segmenter.network
    assert isinstance(network, JointNetwork)  # noqa: S101  # `denoiser_from` has asked
    assert isinstance(trained, PlainNetwork)  # noqa: S101  # it comes from a plain card
    unet = trained.segmenter
    if not isinstance(unet, smp.Unet) or card.network.options:
        raise TrainingError(
            f"wanted a U-Net with smp's usual decoder to grow a prior on, got {type(unet).__name__} "
            f"{dict(card.network.options)}"
        )
    try:
        for mine, its in (
            (network.image.encoder, unet.encoder),
            (network.image.decoder, unet.decoder),
            (network.image.head, unet.segmentation_head[0]),
        ):
            mine.load_state_dict(its.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"wanted a U-Net to grow a prior on, got: {reason}") from None
    return denoiser


def encoder_of(denoiser: NetworkDenoiser) -> nn.Module:
    """The encoder of smp inside a denoiser."""
    network = denoiser.network
    encoder = network.image.encoder if isinstance(network, JointNetwork) else network.segmenter.encoder
    assert isinstance(encoder, nn.Module)  # noqa: S101  # smp's networks have one
    return encoder


def _load_encoder(encoder: nn.Module, path: Path) -> None:
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"wanted encoder weights in safetensors format at {path}, got: {error}") from None
    try:
        encoder.load_state_dict(given)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"wanted weights that fit the encoder, got {path}: {reason}") from None
