"""Adapting: a prior goes to a new region of which there is imagery but no labels.

Expectation-maximisation over the unknown labels z of the region's images y, with whatever is told of them:

    E    q_r(z) = p(z | y, told; prior_r), pixel by pixel
    M    prior_(r+1): prior_r trained on, on y with the probabilities q_r, and on labels that were given, if any were

    ADAPTED.safetensors            the prior of the last round that was worth it
    .ADAPTED.safetensors-adapting  labels and priors of the rounds while it runs; the same command goes on from them

A round is judged by windows of the region that were held out (`inferred`): by the prior's own loss on their image, and
by how well its map of them agrees (mIoU) with the labels that were inferred there from all that is told. When neither
gets better, that round is dropped and the work is done. A plain segmenter knows no image loss and, where nothing is
told, agrees with itself; it takes all rounds. The temperature is fitted on those windows too, to the probabilities that
were inferred there: that of the network which inferred them is in them already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from segprior.checkpoint import Prior, load_prior, locate_prior, read_card, save_prior
from segprior.data import Dataset
from segprior.errors import SettingError
from segprior.fit import Plan, fit
from segprior.inferred import Watch, about, infer_labels, inferred_dataset, joined, label_items, work_folder
from segprior.options import Options
from segprior.plots import Plot, read_plots
from segprior.prior.familiar import TIMES
from segprior.target import check_suffix, check_target
from segprior.train import Settings
from segprior.validation import OFFSETS, held_losses, validate


def _settings() -> Settings:
    return Settings(steps=700, rate=1e-3, warmup=50, average=0.99, validate_every=700)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What to adapt to what, and how.

    prior: an embedded prior's name or a file, also of a plain segmenter. images: rasters of the region, 8 bit, in the
    prior's bands. target: the file to write. options: how labels are inferred, with all that is told of the images (in
    names of files, {stem} stands for an image's). given: a data set whose training split is trained on too, half of the
    tiles. rounds: at most so many. settings: of the training in every round.
    """

    prior: str
    images: tuple[str, ...]
    target: Path
    options: Options = field(default_factory=Options)
    given: Dataset | None = None
    rounds: int = 2
    settings: Settings = field(default_factory=_settings)

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.images:
            raise SettingError(
                f"wanted 1 image and 1 round or more, got {len(self.images)} images and {self.rounds} rounds"
            )
        check_suffix(self.target)

    @property
    def folder(self) -> Path:
        """Where the rounds are while it runs."""
        return self.target.with_name(f".{self.target.name}-adapting")

    @property
    def about(self) -> dict[str, Any]:
        """What the result depends on, as plain values."""
        return {
            **about(self.prior, self.images, self.options),
            "given": None if self.given is None else self.given.state,
            "settings": repr(self.settings),
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """How a prior does on held-out windows.

    agreement: mIoU of its map with the labels inferred there. image_loss: mean log of its loss on their image, None of
    a plain segmenter or where they are too small.
    """

    agreement: float
    image_loss: float | None

    def worse_than(self, other: Judged) -> bool:
        """Whether neither is better than the other's; a plain segmenter's is never worse."""
        if self.image_loss is None or other.image_loss is None:
            return False
        return self.agreement <= other.agreement and self.image_loss >= other.image_loss


@dataclass(frozen=True, slots=True)
class Round:
    """A round: its number from 1, how the prior did before and after it, and whether it was kept."""

    number: int
    before: Judged
    after: Judged
    kept: bool


def adapt(plan: Adaptation, *, overwrite: bool = False, watch: Watch | None = None) -> Iterator[Round]:
    """Adapt, yielding every round; take up unfinished work of the same plan; write the target at the end.

    Raises DatasetError, RasterError, SettingError, TrainingError, CheckpointError or OutputError.
    """
    check_target(plan.target, overwrite=overwrite, sources=(*plan.images, locate_prior(plan.prior)))
    current, rounds = locate_prior(plan.prior), []
    _dataset(plan, plan.folder)  # what cannot be trained on is refused before the slow part
    with work_folder(plan.folder, plan.about):
        for number in range(1, plan.rounds + 1):
            after, judged = _round(plan, current, number, watch)
            rounds.append(judged)
            yield judged
            if not judged.kept:
                break
            current = after
        _finish(plan, current, rounds)


def _dataset(plan: Adaptation, labels: Path) -> Dataset:
    """The images with their labels in the folder `labels`, and what was given."""
    items = label_items(plan.images, labels)
    name = f"{len(items)} rasters, labels inferred"
    return joined(inferred_dataset(name, items, read_card(plan.prior), options=plan.options), plan.given)


def _round(plan: Adaptation, current: Path, number: int, watch: Watch | None) -> tuple[Path, Round]:
    """The prior that a round has come to, and its judgement."""
    card = read_card(current)
    labels = plan.folder / f"labels{number}"
    labels.mkdir(exist_ok=True)
    items = label_items(plan.images, labels)
    infer_labels(items, prior=current, options=plan.options, watch=watch)
    dataset = _dataset(plan, labels)
    held = read_plots(dataset, "val", "pairs")
    after = plan.folder / f"round{number}.safetensors"
    training = Plan(
        dataset,
        after,
        replace(plan.settings, seed=plan.settings.seed + number),
        encoder=card.network.encoder,
        encoder_weights="none",
        start=str(current),
        label_scale=card.label_scale,
        schedule=card.schedule,
        plain=card.plain,
        shape=card.network,
        drawn=0,
        device=plan.options.device,
    )
    if not after.exists():
        train(training, watch, f"round {number}: training")
    before_it, after_it = (judge(load_prior(path), held) for path in (current, after))
    return after, Round(number, before_it, after_it, kept=not after_it.worse_than(before_it))


def train(plan: Plan, watch: Watch | None, what: str) -> None:
    """Run a training to its end."""
    for step in fit(plan, overwrite=True):
        if watch is not None:
            watch(what, step.number, plan.settings.steps)


def judge(prior: Prior, held: Sequence[Plot]) -> Judged:
    """Compare a prior's map of held-out plots with their labels, and measure its loss on their image."""
    losses = torch.zeros(0, 1) if prior.card.plain else held_losses(prior, held, offsets=OFFSETS[:1])
    known = losses[torch.isfinite(losses).all(dim=1)]
    return Judged(validate(prior, held).one_step, float(known[:, : len(TIMES)].mean()) if len(known) else None)


def _finish(plan: Adaptation, chosen: Path, rounds: Sequence[Round]) -> None:
    """Write the chosen prior with a card that tells where it comes from."""
    prior = load_prior(chosen)
    start = read_card(plan.prior)
    given = "" if plan.given is None else f", and of {plan.given.name}: {plan.given.licence}"
    card = replace(
        prior.card,
        name=plan.target.stem,
        licence=f"{start.licence} Adapted to imagery under its own terms{given}",
        training={
            "dataset": f"adapted from {start.name}",
            "images": [Path(image).name for image in plan.images],
            "given": None if plan.given is None else plan.given.name,
            "settings": asdict(plan.settings),
            "rounds": [asdict(each) for each in rounds],
            "seconds": sum(_seconds(plan.folder, each) for each in rounds if each.kept),
            "before": dict(start.training),
        },
        scores={},
    )
    save_prior(Prior(card, prior.denoiser), plan.target)


def _seconds(folder: Path, each: Round) -> float:
    return float(read_card(folder / f"round{each.number}.safetensors").training["seconds"])
