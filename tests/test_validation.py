"""Validation while a prior trains, against a segmenter that knows the generated scenes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated import card_of, write_dataset
from torch import Tensor, nn

from segprior.checkpoint import Prior, build_denoiser
from segprior.data import load_dataset
from segprior.plots import BELIEVED, read_plots
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.network import PlainNetwork
from segprior.validation import temperature, validate


class Colour(nn.Module):
    """Red where roofs are: the perfect segmenter of the generated scenes, and how sure it is."""

    def __init__(self, sure: float = 9.0) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, image: Tensor) -> Tensor:
        red = image[:, :1] - image[:, 1:2]
        return torch.cat([-self.sure * red, self.sure * red], dim=1)


def test_inferred_labels_tell_how_sure_to_be(tmp_path: Path) -> None:
    """A network in whose probabilities the labels are told needs no other temperature, one twice as sure needs two."""
    dataset = load_dataset(str(write_dataset(tmp_path)))
    (plot, *_) = read_plots(dataset, "val", "pairs")
    card = card_of(dataset)
    assert plot.image is not None
    red = plot.image[..., 0].astype(int) - plot.image[..., 1]
    assert (red > 0).any()
    layout, schedule = build_denoiser(card).layout, build_denoiser(card).schedule
    timid, sure = (
        Prior(card, NetworkDenoiser(PlainNetwork(Colour(sure)), layout=layout, schedule=schedule).eval())
        for sure in (0.5, 1.0)
    )
    y = card.normalise(plot.image.transpose(2, 0, 1))[None]
    told = torch.softmax(timid.denoiser.encode(y, torch.zeros(1, 1, *plot.shape)).logits[0], dim=0)
    belief = (BELIEVED * told).round().permute(1, 2, 0).numpy().astype(np.uint8)
    inferred = replace(plot, belief=belief)
    assert temperature(timid, [inferred], size=64) == pytest.approx(1, rel=0.01)
    assert temperature(sure, [inferred], size=64) == pytest.approx(2, rel=0.01)
    assert temperature(sure, [plot], size=64) < 1, "labels that were given are always right here"


def test_every_whole_cell_counts(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_dataset(tmp_path)))
    plots = read_plots(dataset, "val", "pairs")
    card = card_of(dataset)
    layout, schedule = build_denoiser(card).layout, build_denoiser(card).schedule
    perfect = Prior(card, NetworkDenoiser(PlainNetwork(Colour()), layout=layout, schedule=schedule).eval())
    found = validate(perfect, plots, size=64)
    assert found.one_step == 1
    assert found.few_step > 0.99
    index = plots[0].index
    assert index is not None
    swapped = replace(plots[0], index=(1 - index).astype(np.uint8))
    assert validate(perfect, [swapped], size=64).one_step == 0
