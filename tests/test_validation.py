"""Validation while a prior trains, against a segmenter that knows the generated scenes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from generated import card_of, write_dataset
from torch import Tensor, nn

from segprior.checkpoint import Prior, build_denoiser
from segprior.data import load_dataset
from segprior.plots import read_plots
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.network import PlainNetwork
from segprior.validation import validate


class Colour(nn.Module):
    """Red where roofs are: the perfect segmenter of the generated scenes."""

    def forward(self, image: Tensor) -> Tensor:
        red = image[:, :1] - image[:, 1:2]
        return torch.cat([-9 * red, 9 * red], dim=1)


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
