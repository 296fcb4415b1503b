"""A data set made of random rectangles, in which the colour gives the class; written as GeoTIFFs with a descriptor."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor, nn

from segprior.checkpoint import Card, Prior, build_denoiser, save_prior
from segprior.data import Dataset
from segprior.pools import Pools
from segprior.prior.network import NetworkShape
from segprior.train import Run, Settings, Step, joint_objective, train

CLASSES = """
[[classes]]
name = "ground"
value = 3
color = [90, 140, 70]

[[classes]]
name = "roof"
value = 7
color = [200, 60, 50]
"""


SHAPE = NetworkShape(3, 2, decoder=(32, 16, 16, 8, 8), label_path=(8, 12, 16))
"""A network small enough to train in a test."""


def card_of(dataset: Dataset) -> Card:
    """The card of a prior on the data set, with that network."""
    return Card(
        name="rectangles",
        legend=dataset.legend,
        bands=dataset.bands,
        res=dataset.res,
        mean=dataset.mean,
        std=dataset.std,
        network=replace(SHAPE, bands=len(dataset.bands), classes=len(dataset.legend)),
    )


def new_run(card: Card, settings: Settings, seed: int = 0) -> Run:
    """A training run of such a prior from random weights."""
    torch.manual_seed(seed)
    denoiser = build_denoiser(card)
    encoder = denoiser.network.image.encoder
    assert isinstance(encoder, nn.Module)
    return Run(denoiser, settings, encoder=encoder)


def steps_of(run: Run, card: Card, pools: Pools) -> Iterator[Step]:
    """Train it to its end by the joint prior's loss."""
    return train(run, card, pools, objective=joint_objective(run.settings))


def weights(run: Run) -> dict[str, Tensor]:
    """Its weights and their moving average, copied."""
    return {k: v.clone() for k, v in {**run.denoiser.state_dict(), **run.average.state_dict()}.items()}


def save_random(card: Card, path: Path, *, seed: int) -> None:
    """Write a prior of random layers, those that begin at zero too."""
    torch.manual_seed(seed)
    denoiser = build_denoiser(card).eval()
    for parameter in denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    save_prior(Prior(card, denoiser), path)


def rectangles(size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(image (3, size, size), label values 3 or 7 (size, size)): roofs are red, ground is green, both noisy."""
    rng = np.random.default_rng(seed)
    labels = np.full((size, size), 3, np.uint8)
    for _ in range(6):
        row, col = rng.integers(0, size, 2)
        rows, cols = rng.integers(size // 10, size // 4, 2)
        labels[row : row + rows, col : col + cols] = 7
    colour = np.where((labels == 7)[None], [[[190]], [[70]], [[60]]], [[[80]], [[150]], [[70]]])
    return np.clip(colour + rng.normal(0, 8, (3, size, size)), 0, 255).astype(np.uint8), labels


def write_tiff(path: Path, array: NDArray[np.uint8]) -> None:
    """A GeoTIFF without CRS of (bands, rows, columns) or (rows, columns)."""
    bands = array if array.ndim == 3 else array[None]
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", transform=Affine(1, 0, 0, 0, -1, 500), **profile) as file:
        file.write(bands)


def write_dataset(folder: Path, *, size: int = 96) -> Path:
    """Two scenes to train on, one for validation; the path of the descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("one", "two", "three")):
        image, labels = rectangles(size, seed)
        write_tiff(folder / f"{name}.tif", image)
        write_tiff(folder / f"{name}_labels.tif", labels)
    scenes = "".join(
        f'\n[[scenes]]\nname = "{name}"\nimage = "{name}.tif"\nlabels = "{name}_labels.tif"\nsplit = "{split}"\n'
        for name, split in (("one", "train"), ("two", "train"), ("three", "val"))
    )
    path = folder / "dataset.toml"
    path.write_text(f'name = "rectangles"\nres = 1.0\npixel_res = 1.0\n{CLASSES}{scenes}', encoding="utf-8")
    return path
