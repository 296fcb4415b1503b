"""Training a joint prior: a generator of steps.

Everything random is a function of the seed and the step's number, and the state (weights, moving average, optimiser) is
saved as it is, so a run that was stopped and resumed ends with the same weights as one that was not (on a CPU with as
many threads; on a GPU sums are made in no fixed order). The learning rate
rises over the first steps and falls to zero along a half cosine (the encoder's at a tenth of the rest). Where first
draws come alone at the beginning, the rate of what they do not reach begins after that. What is saved and validated is
the exponential moving average of the weights.
"""

import json
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil, cos, inf, pi
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segprior.augment import Augmentation
from segprior.average import moving_average
from segprior.checkpoint import Card, Prior, write_tensors
from segprior.errors import SettingError, TrainingError
from segprior.mix import Batch, Mix, MixLoss, draw_kinds, mix_loss
from segprior.plots import Plot
from segprior.pools import Pools, draw_batch
from segprior.precision import PRECISIONS, guard, precise
from segprior.prior.denoiser import NetworkDenoiser
from segprior.teacher import taught, taught_count
from segprior.tiles import View
from segprior.validation import Validation, validate


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train.

    batch: items a step. tile: pixels a side, a multiple of 32. rate: the learning rate of all but the encoder.
    encoder_factor: the encoder's rate in units of that. warmup: steps of linear rise, at most half of all. average:
    decay of the moving average. image_weight: of the image's loss against the labels'. validate_every: steps between
    validations. precision: "float32" or "bfloat16", see `segprior.precision`. augmentation: of the tiles. mean_teacher:
    share of a batch that is imagery without labels and learned from the moving average, see `segprior.teacher`.
    """

    steps: int = 4000
    batch: int = 8
    tile: int = 128
    rate: float = 1e-3
    encoder_factor: float = 0.1
    weight_decay: float = 1e-2
    warmup: int = 200
    average: float = 0.999
    image_weight: float = 0.5
    validate_every: int = 1000
    seed: int = 0
    mix: Mix = field(default_factory=Mix)
    precision: str = "float32"
    augmentation: Augmentation = field(default_factory=Augmentation)
    mean_teacher: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.tile, self.validate_every) < 1 or self.tile % 32:
            raise SettingError(
                "wanted steps, batch and validation interval >= 1 and a tile that is a multiple of 32, "
                f"got {self.steps}, {self.batch}, {self.validate_every} and {self.tile}"
            )
        if not 0 < self.rate < inf or not 0 <= self.seed < 1 << 32:
            raise SettingError(
                f"wanted a learning rate above 0 and a seed from 0 to 2^32 - 1, got {self.rate} and {self.seed}"
            )
        if not 0 <= self.mean_teacher < 1:
            raise SettingError(
                f"wanted a share of tiles for the mean teacher from 0 to below 1, got {self.mean_teacher:g}"
            )
        if self.mean_teacher and not 0 < round(self.mean_teacher * self.batch) < self.batch:
            raise SettingError(
                f"wanted a share for the mean teacher that is one of {self.batch} tiles or more and leaves one with "
                f"labels, got {self.mean_teacher:g}"
            )
        if self.precision not in PRECISIONS:
            raise SettingError(f"wanted a precision of {', '.join(PRECISIONS)}, got {self.precision!r}")


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration: number from 1, losses (`MixLoss`), seconds since the run began, and now and then a validation."""

    number: int
    one_step: float
    later: float
    image: float
    seconds: float
    validation: Validation | None = None


class Objective(Protocol):
    """What is minimised: the joint prior's mix, or a baseline's plain cross-entropy."""

    def __call__(
        self, denoiser: NetworkDenoiser, batch: Batch, *, progress: float, rng: np.random.Generator
    ) -> MixLoss:
        """Compute the loss of a batch at `progress` (share of the run done); random choices come from `rng`."""


def learning_rate(step: int, settings: Settings, since: int = 0) -> float:
    """Factor on the learning rate at `step` (from 0): a linear rise from `since` on, then half a cosine to zero."""
    if step < since:
        return 0.0
    warmup = min(settings.warmup, (settings.steps - since) // 2)
    if step < since + warmup:
        return (step - since + 1) / warmup
    done = (step - since - warmup) / max(1, settings.steps - since - warmup)
    return 0.5 * (1 + cos(pi * min(1.0, done)))


def joint_objective(settings: Settings) -> Objective:
    """Make the joint prior's loss, `mix_loss`, under these settings."""

    def objective(denoiser: NetworkDenoiser, batch: Batch, *, progress: float, rng: np.random.Generator) -> MixLoss:
        return mix_loss(denoiser, batch, settings.mix, progress=progress, image_weight=settings.image_weight, rng=rng)

    return objective


class Run:
    """A training run: network, moving average, optimiser and the number of steps done."""

    def __init__(self, denoiser: NetworkDenoiser, settings: Settings, *, encoder: nn.Module, origin: str = "") -> None:
        """`origin` says in words what else the run depends on; a state of another origin is not taken up."""
        self.settings = settings
        self.origin = origin
        self.denoiser = denoiser.to(memory_format=torch.channels_last)
        self.device = denoiser.log_tilt.device
        if settings.precision != "float32":
            guard(self.denoiser)
        self.average = AveragedModel(self.denoiser, multi_avg_fn=moving_average(settings.average), use_buffers=True)
        inside = {id(p) for p in encoder.parameters()}
        later = denoiser.network.later
        rest = [p for p in denoiser.parameters() if id(p) not in inside | {id(p) for p in later}]
        begins = ceil(settings.mix.alone * settings.steps)
        groups = [
            {"params": list(encoder.parameters()), "lr": settings.rate * settings.encoder_factor, "since": 0},
            {"params": rest, "lr": settings.rate, "since": 0},
            {"params": later, "lr": settings.rate, "since": begins},
        ]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        self.base = [g["lr"] for g in self.optimiser.param_groups]
        self.done = 0
        self.seconds = 0.0

    @property
    def averaged(self) -> NetworkDenoiser:
        """The moving average, in eval mode, on the CPU: itself where the run is there, else a copy."""
        module = self._module
        return (module if self.device.type == "cpu" else deepcopy(module).cpu()).eval()

    @property
    def _module(self) -> NetworkDenoiser:
        module = self.average.module
        assert isinstance(module, NetworkDenoiser)  # noqa: S101  # it is a copy of the denoiser
        return module

    def teach(self, views: Sequence[View], card: Card, rng: np.random.Generator) -> Batch:
        """Items of imagery without labels, with what the moving average makes of them, on the CPU."""
        with precise(self.settings.precision, self.device):
            return taught(self._module.eval(), views, card, rng)

    def advance(self, batch: Batch, objective: Objective, rng: np.random.Generator) -> MixLoss:
        """One step of the optimiser."""
        for group, base in zip(self.optimiser.param_groups, self.base, strict=True):
            group["lr"] = base * learning_rate(self.done, self.settings, group["since"])
        self.denoiser.train()
        batch = batch.to(self.device)
        generators = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=generators), precise(self.settings.precision, self.device):
            # the encoder's stochastic depth draws from torch's own generator
            torch.manual_seed(self.settings.seed * 1_000_003 + self.done)
            loss = objective(self.denoiser, batch, progress=self.done / self.settings.steps, rng=rng)
        if not torch.isfinite(loss.total):
            value = float(loss.total.detach())
            raise TrainingError(
                f"wanted a finite loss at step {self.done + 1}, got {value}; take a lower learning rate"
            )
        self.optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]  # missing in torch's stubs
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.denoiser)
        self.done += 1
        return loss

    def save(self, path: Path) -> None:
        """Write the whole state beside `path` and rename. Raises OutputError."""
        tensors = {f"weights.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
        header = {"done": self.done, "seconds": self.seconds, "settings": repr(self.settings), "origin": self.origin}
        write_tensors(tensors, path, key="run", header=header)

    def restore(self, path: Path) -> None:
        """Take up the state that `save` wrote. Raises TrainingError if it belongs to other settings."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("run", "{}"))
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, OSError) as error:
            raise _other_state(path, str(error)) from None
        if header.get("settings") != repr(self.settings) or header.get("origin", self.origin) != self.origin:
            raise _other_state(path, "one with other settings")
        try:
            self.denoiser.load_state_dict(_under(tensors, "weights."))
            self.average.load_state_dict(_under(tensors, "average."))
        except RuntimeError:
            raise _other_state(path, "one of another network") from None
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimiser.").items():
            number, name = key.split(".", 1)
            states.setdefault(int(number), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": states, "param_groups": groups})
        self.done, self.seconds = int(header["done"]), float(header["seconds"])


def train(
    run: Run,
    card: Card,
    pools: Pools,
    *,
    objective: Objective,
    validation: Sequence[Plot] = (),
    kinds: Mix | None = None,
) -> Iterator[Step]:
    """Advance `run` to its last step, yielding every step; the caller saves, logs and stops.

    kinds: the mix whose kinds are drawn; by default that of the settings.
    """
    settings = run.settings
    mix = settings.mix if kinds is None else kinds
    while run.done < settings.steps:
        began = time.monotonic()
        rng = np.random.default_rng([settings.seed, run.done])
        progress = run.done / settings.steps
        count = taught_count(settings.mean_teacher, settings.batch, progress)
        items = draw_kinds(mix, settings.batch - count, rng, progress=progress)
        batch = draw_batch(pools, card, items, rng, log_tilt=run.denoiser.log_tilt)
        if count:
            bare = pools.without_labels()
            views = [bare.draw_views(rng) for _ in range(count)]
            batch = batch.joined(run.teach(views, card, rng))
        loss = run.advance(batch, objective, rng)
        run.seconds += time.monotonic() - began
        due = run.done % settings.validate_every == 0 or run.done == settings.steps
        checked = validate(Prior(card, run.averaged), validation) if due and validation else None
        yield Step(run.done, loss.one_step, loss.later, loss.image, run.seconds, checked)


def finished(run: Run, card: Card) -> Prior:
    """Return the prior a run has come to: the moving average with the card."""
    return Prior(card, run.averaged)


def _other_state(path: Path, found: str) -> TrainingError:
    return TrainingError(f"wanted the state of this training run at {path}, got {found}; remove it to start anew")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
