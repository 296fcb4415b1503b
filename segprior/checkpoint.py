"""A prior and its safetensors file.

The file holds the weights (float16 on disk) and, in the header under the key "segprior", a JSON card: classes and
colours, bands, ground resolution, normalisation, schedule, layout, network, training data, licence and scores. Nothing
is unpickled and nothing is downloaded.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from segprior import __version__
from segprior.errors import CheckpointError, LegendError
from segprior.legend import Legend
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.joint import OneHotLayout
from segprior.prior.network import JointNetwork, NetworkShape, PlainNetwork
from segprior.prior.schedule import CosineSchedule, LinearSchedule, Schedule

FORMAT = 1
"""Version of the card; a reader refuses one it does not know."""


@dataclass(frozen=True, slots=True)
class Card:
    """Everything about a prior but its weights.

    bands: band numbers from 1 it was trained on. res: metres of a working pixel. mean, std: of each band in the file's
    units. schedule: "cosine" or "linear". plain: the network is smp's U-Net alone, without a label path (a baseline).
    training and scores: free JSON, for people. licence: of the weights and of the data behind them.
    """

    name: str
    legend: Legend
    bands: tuple[int, ...]
    res: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: NetworkShape
    label_scale: float = 0.3
    schedule: str = "cosine"
    plain: bool = False
    licence: str = "not stated"
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def normalise(self, image: NDArray[Any]) -> torch.Tensor:
        """(..., bands, height, width) in the file's units to float32 of about zero mean and unit variance."""
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (torch.from_numpy(image).float() - mean) / std

    def denormalise(self, image: torch.Tensor) -> NDArray[np.uint8]:
        """The way back, rounded and clipped to uint8."""
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (image.float().cpu() * std + mean).round().clamp(0, 255).numpy().astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Prior:
    """A card and its denoiser, in eval mode."""

    card: Card
    denoiser: NetworkDenoiser


def prior_names() -> tuple[str, ...]:
    """Names of the embedded priors."""
    return tuple(sorted(p.stem for p in _embedded().glob("*.safetensors")))


def locate_prior(name: str | Path) -> Path:
    """The file of an embedded prior, or `name` itself if it is a file. Raises CheckpointError."""
    if str(name) in prior_names():
        return _embedded() / f"{name}.safetensors"
    path = Path(name)
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no such file"
        raise CheckpointError(f"wanted a prior ({', '.join(prior_names())}) or a .safetensors file, got {name}: {what}")
    return path


def _embedded() -> Path:
    return Path(str(files("segprior"))) / "weights"


def read_card(name: str | Path) -> Card:
    """The card of a prior, without reading its weights. Raises CheckpointError."""
    path = locate_prior(name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"wanted a prior in safetensors format, got {path}: {error}") from None
    if "segprior" not in metadata:
        raise CheckpointError(f"wanted a prior with segprior's metadata, got {path}, which has none; was it made by 'segprior train'?")
    try:
        return _card_from(json.loads(metadata["segprior"]))
    except (KeyError, TypeError, ValueError, LegendError) as error:
        raise CheckpointError(f"wanted a prior with complete metadata, got {path}: {type(error).__name__} {error}") from None


def load_prior(name: str | Path, *, device: str | torch.device = "cpu") -> Prior:
    """An embedded prior by name ("buildings", "landcover") or a prior's file, ready to use on `device`.

    Raises CheckpointError if the file is not a prior or lacks metadata or weights.
    """
    card = read_card(name)
    denoiser = build_denoiser(card)
    with safe_open(locate_prior(name), framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    try:
        denoiser.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"wanted weights that fit the prior's metadata in {name}, got: {first}") from None
    return Prior(card, denoiser.to(device, memory_format=torch.channels_last).eval())


def save_prior(prior: Prior, path: Path) -> None:
    """Write the prior beside `path` and rename: float16 weights and the card."""
    state = {k: _on_disk(v) for k, v in prior.denoiser.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(state, temporary, metadata={"segprior": json.dumps(_card_to(prior.card))})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def build_denoiser(card: Card, encoder_weights: str | None = None) -> NetworkDenoiser:
    """A fresh denoiser of the card's shape; `encoder_weights` is smp's name for pretrained ones, None for random."""
    network = JointNetwork(card.network, encoder_weights) if not card.plain else PlainNetwork(_plain(card, encoder_weights))
    layout = OneHotLayout(len(card.bands), len(card.legend), card.label_scale)
    return NetworkDenoiser(network, layout=layout, schedule=_schedule(card.schedule))


def _plain(card: Card, encoder_weights: str | None) -> nn.Module:
    import segmentation_models_pytorch as smp

    unet: nn.Module = smp.Unet(
        card.network.encoder,
        encoder_weights=encoder_weights,
        decoder_channels=card.network.decoder,
        in_channels=card.network.bands,
        classes=card.network.classes,
    )
    return unet


def _schedule(name: str) -> Schedule:
    match name:
        case "cosine":
            return CosineSchedule()
        case "linear":
            return LinearSchedule()
    raise ValueError(f"schedule must be 'cosine' or 'linear'; got {name!r}")


def _on_disk(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def _card_to(card: Card) -> dict[str, Any]:
    table = asdict(card)
    return {**table, "legend": card.legend.to_dict(), "format": FORMAT, "version": __version__}


def _card_from(table: dict[str, Any]) -> Card:
    if table.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; a newer segprior may read it")
    table.pop("version", None)
    shape = {k: tuple(v) if isinstance(v, list) else v for k, v in table.pop("network").items()}
    lists = {k: tuple(table.pop(k)) for k in ("bands", "mean", "std")}
    return Card(legend=Legend.from_dict(table.pop("legend")), network=NetworkShape(**shape), **lists, **table)
