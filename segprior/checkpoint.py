"""A prior and its safetensors file.

The file holds the weights (float16 on disk) and, in the header under the key "segprior", a JSON card: classes and
colours, bands, ground resolution, normalisation, schedule, layout, network, training data, licence and scores. Nothing
is unpickled and nothing is downloaded.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from segprior import __version__
from segprior.errors import CheckpointError, LegendError, OutputError, SettingError
from segprior.legend import Legend
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.familiar import Familiarity, told_by
from segprior.prior.joint import OneHotLayout
from segprior.prior.network import JointNetwork, NetworkShape, PlainNetwork, old_encoder_names
from segprior.prior.schedule import CosineSchedule, LinearSchedule, Schedule

FORMAT = 1
"""Version of the card; a reader refuses one it does not know."""

SCHEDULES: Mapping[str, Schedule] = {"cosine": CosineSchedule(), "linear": LinearSchedule()}
"""Schedules by the name that cards give them."""


@dataclass(frozen=True, slots=True)
class Card:
    """Everything about a prior but its weights.

    bands: band numbers from 1 it was trained on. res: metres of a working pixel. mean, std: of each band in the file's
    units. schedule: "cosine" or "linear". plain: the network is smp's U-Net alone, without a label path (a baseline).
    training and scores: free JSON, for people. licence: of the weights and of the data behind them. familiar: fields of
    `segprior.prior.familiar.Familiarity`, empty where it was not measured. temperature: of the class logits, see
    `segprior.prior.temperature`.
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
    familiar: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.mean) == len(self.std) == self.network.bands or min(self.bands) < 1:
            raise SettingError(
                f"wanted a mean and a std of each band and a network of as many, got bands {self.bands}, "
                f"mean {self.mean}, std {self.std} and a network of {self.network.bands}"
            )
        if len(self.legend) != self.network.classes:
            raise SettingError(f"wanted a network of {len(self.legend)} classes, got one of {self.network.classes}")
        if not min(self.res, self.label_scale, self.temperature, *self.std) > 0:
            raise SettingError(
                f"wanted res, label scale, std and temperature > 0, got {self.res}, {self.label_scale}, {self.std} and "
                f"{self.temperature}"
            )
        if self.schedule not in SCHEDULES:
            raise SettingError(f"wanted a schedule of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    @property
    def familiarity(self) -> Familiarity | None:
        """What familiar images are like; None where it was not measured, or by other numbers than now."""
        if not self.familiar or len(self.familiar["mean"]) != told_by(len(self.bands)):
            return None
        mean, precision = self.familiar["mean"], self.familiar["precision"]
        rows = tuple(tuple(row) for row in precision)
        return Familiarity(tuple(mean), rows, self.familiar["far"], self.familiar["cells"])

    def normalise(self, image: NDArray[Any]) -> torch.Tensor:
        """(..., bands, height, width) in the file's units to float32 of about zero mean and unit variance."""
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (torch.from_numpy(image).float() - mean) / std

    def denormalise(self, image: torch.Tensor) -> NDArray[np.uint8]:
        """Undo `normalise`, rounded and clipped to uint8."""
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


def locate_prior(name: str | os.PathLike[str]) -> Path:
    """Find the file of an embedded prior, or `name` itself if it is a file. Raises CheckpointError."""
    if str(name) in prior_names():
        return _embedded() / f"{name}.safetensors"
    path = Path(name)
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no such file"
        raise CheckpointError(f"wanted a prior ({', '.join(prior_names())}) or a .safetensors file, got {name}: {what}")
    return path


def _embedded() -> Path:
    return Path(str(files("segprior"))) / "weights"


def read_card(name: str | os.PathLike[str]) -> Card:
    """Read the card of a prior, but not its weights. Raises CheckpointError."""
    path = locate_prior(name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"wanted a prior in safetensors format, got {path}: {error}") from None
    if "segprior" not in metadata:
        raise CheckpointError(
            f"wanted a prior with segprior's metadata, got {path}, which has none; was it made by 'segprior train'?"
        )
    try:
        return _card_from(json.loads(metadata["segprior"]))
    except KeyError as error:
        raise CheckpointError(f"wanted a prior with complete metadata, got {path}, which lacks {error}") from None
    except (TypeError, ValueError, LegendError, SettingError) as error:
        raise CheckpointError(f"wanted a prior with valid metadata, got {path}: {error}") from None


def load_prior(name: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Prior:
    """Load an embedded prior by name ("buildings", "landcover") or a prior's file, ready to use on `device`.

    Raises CheckpointError if the file is not a prior or lacks metadata or weights.
    """
    card = read_card(name)
    with safe_open(locate_prior(name), framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    try:
        denoiser = build_denoiser(card)
        denoiser.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError) as error:  # what smp and torch raise for an unknown or other network
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"wanted weights that fit the prior's metadata in {name}, got: {first}") from None
    return Prior(card, denoiser.to(device).to(memory_format=torch.channels_last).eval())


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior: float16 weights and the card. Raises OutputError."""
    state = {k: _on_disk(v) for k, v in prior.denoiser.state_dict().items()}
    write_tensors(state, path, key="segprior", header=_card_to(prior.card))


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, *, key: str, header: Mapping[str, Any]) -> None:
    """Write a safetensors file with a JSON header under `key`, beside `path`, and rename. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    # clones, because safetensors refuses tensors that share memory
    apart = {k: v.contiguous().clone() for k, v in tensors.items()}
    try:
        # not save_file, which closes the file to all but its owner, whatever the umask
        temporary.write_bytes(save(apart, metadata={key: json.dumps(header)}))
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"wanted to write {path}, got: {error}") from None
    finally:
        with suppress(OSError):  # it is gone after a rename
            temporary.unlink()


def build_denoiser(card: Card, encoder_weights: str | None = None) -> NetworkDenoiser:
    """Build a denoiser of the card's shape; `encoder_weights` is smp's name for pretrained ones, None for random."""
    network = PlainNetwork(_plain(card, encoder_weights)) if card.plain else JointNetwork(card.network, encoder_weights)
    layout = OneHotLayout(len(card.bands), len(card.legend), card.label_scale)
    return NetworkDenoiser(network, layout=layout, schedule=SCHEDULES[card.schedule], temperature=card.temperature)


def _plain(card: Card, encoder_weights: str | None) -> nn.Module:
    shape = card.network
    options = ({"decoder_channels": shape.decoder} if shape.arch == "unet" else {}) | dict(shape.options)
    with old_encoder_names():
        network: nn.Module = smp.create_model(
            shape.arch,
            shape.encoder,
            encoder_weights=encoder_weights,
            in_channels=shape.bands,
            classes=shape.classes,
            **options,
        )
    return network


def _on_disk(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _card_to(card: Card) -> dict[str, Any]:
    table = asdict(card)
    if not card.network.options:
        del table["network"]["options"]  # versions that know of none read on
    return {**table, "legend": card.legend.to_dict(), "format": FORMAT, "version": __version__}


def _card_from(table: Any) -> Card:
    if not isinstance(table, dict) or not isinstance(table["network"], dict):
        raise TypeError("its metadata is no table")
    if table.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; a newer segprior may read it")
    table.pop("version", None)
    table["legend"] = Legend.from_dict(table["legend"])
    table["network"] = NetworkShape(**{k: _tuple(v) for k, v in table["network"].items()})
    return Card(**{k: _tuple(v) for k, v in table.items()})


def _tuple(value: Any) -> Any:
    """JSON's lists are the tuples they were made from."""
    return tuple(value) if isinstance(value, list) else value
