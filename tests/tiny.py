"""A small prior with random weights, to test with."""

from pathlib import Path

import torch

from segprior.checkpoint import Card, Prior, build_denoiser, save_prior
from segprior.legend import Legend, LegendClass
from segprior.prior.network import NetworkShape

LEGEND = Legend(
    (
        LegendClass("background", 0, (222, 203, 164)),
        LegendClass("roof", 4, (214, 69, 65)),
        LegendClass("road", 2, (90, 90, 110)),
    )
)


def tiny_prior(path: Path, *, plain: bool = False, bands: int = 3) -> Path:
    """Write a prior whose layers are all random, so that labels and image speak of each other."""
    torch.manual_seed(1)
    card = Card(
        name="tiny",
        legend=LEGEND,
        bands=tuple(range(1, bands + 1)),
        res=0.5,
        mean=(110.0,) * bands,
        std=(40.0,) * bands,
        network=NetworkShape(bands, len(LEGEND), "mobilenet_v2", decoder=(32, 16, 16, 8, 8), label_path=(16, 16, 16)),
        plain=plain,
    )
    denoiser = build_denoiser(card).eval()
    for parameter in denoiser.parameters():
        if not parameter.any():  # what training would start at zero
            torch.nn.init.normal_(parameter, std=0.05)
    save_prior(Prior(card, denoiser), path)
    return path
