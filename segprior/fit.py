"""A training run on disk: from a data set to a prior's file, through interruptions.

PRIOR.safetensors        the prior, when the run is done
PRIOR.run                the state of an unfinished run, saved every few minutes; the same command takes it up
PRIOR.csv                the log: losses of every step, validations
PRIOR.png                the loss curve
PRIOR.samples.png        image and label pairs drawn from the prior
"""

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from segprior.beginning import check_start, check_tiles, denoiser_from, encoder_of, new_denoiser
from segprior.checkpoint import Card, locate_prior, read_card, save_prior
from segprior.data import Dataset
from segprior.device import resolved
from segprior.errors import DatasetError, SettingError
from segprior.mix import Kind, Mix, plain_loss
from segprior.picture import loss_curve
from segprior.plots import Plot, read_plots
from segprior.pools import read_pools
from segprior.prior.network import NetworkShape
from segprior.provenance import digest
from segprior.samples import Drawing, draw_sample, sheet
from segprior.target import check_suffix, check_target
from segprior.tiles import class_tilt
from segprior.train import Objective, Run, Settings, Step, finished, joint_objective, train
from segprior.validation import familiarity, temperature

COLUMNS = ("step", "one_step", "later", "image", "seconds", "miou_one_step", "miou_few_step")
PLAIN = Mix(kinds=(0.0, 1.0, 0.0, 0.0, 0.0))
"""The mix of a plain segmenter: every item an image with its labels."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and where to.

    target: the prior's file. encoder: smp's name, by default that of `start`, or of `NetworkShape`. encoder_weights:
    "imagenet" (downloaded by smp), "none", or a safetensors file with the encoder's tensors in its order. start: a
    prior to start from instead, with its mean and std, or a U-Net to grow a prior on (`segprior.beginning`); it has its
    first draws alone at no time (`Mix.alone` is 0 then, whatever the settings say). hold: leave its image network as it
    is, so that the map of one step stays what it was; then no item has a first draw alone. label_scale: b, by default
    0.3; schedule: of the noise, by default cosine; of a prior to start from they stay what they are.
    clean: whether the image network of a new prior learns from clean images alone; one to start from keeps its way.
    plain: smp's U-Net with plain cross-entropy instead of a joint prior, as a baseline. save_every: seconds. shape: of
    the network, against that of `encoder`. drawn: samples in the picture beside the prior, 0 for no picture. device:
    auto, cpu or cuda; what is validated, measured and drawn is on the CPU.
    """

    dataset: Dataset
    target: Path
    settings: Settings = field(default_factory=Settings)
    encoder: str | None = None
    encoder_weights: str = "imagenet"
    start: str | None = None
    hold: bool = False
    label_scale: float | None = None
    schedule: str | None = None
    clean: bool = True
    plain: bool = False
    save_every: float = 180.0
    shape: NetworkShape | None = None
    drawn: int = 6
    device: str = "auto"

    def __post_init__(self) -> None:
        check_suffix(self.target)
        if self.start is not None and not self.clean:
            raise SettingError(f"wanted a new prior for noisy images to train whole, got {self.start} to start from")
        if self.hold and (self.start is None or self.plain or self.settings.mean_teacher):
            raise SettingError(
                "wanted a network to start from, of which a joint prior is made, and no mean teacher, to hold what it "
                f"knows of images, got start {self.start}, plain {self.plain}, teacher {self.settings.mean_teacher:g}"
            )
        if self.start is not None:
            mix = replace(self.settings.mix, alone=0.0)
            going_on = replace(self.settings, mix=_without_segments(mix) if self.hold else mix)
            object.__setattr__(self, "settings", going_on)
        resolved(self.device)  # raises for what is not there

    def beside(self, suffix: str) -> Path:
        """A companion of the target: PRIOR.run for ".run"."""
        return self.target.with_suffix(suffix)

    @property
    def origin(self) -> str:
        """What a run depends on besides its settings and its network."""
        card, weights = self.card, self.encoder_weights
        if self.start is not None:
            begins = f"{'held' if self.hold else 'from'} {digest(locate_prior(self.start))}"
        else:
            begins = f"encoder {weights if weights in ('imagenet', 'none') else digest(Path(weights))}"
        return (
            f"{self.dataset.name} {self.dataset.state}, label scale {card.label_scale}, {card.schedule} schedule, "
            f"plain {self.plain}, {begins}"
        )

    def _shape(self, before: Card | None) -> NetworkShape:
        """The network, if no other is given: that of a prior to start from, or the usual one."""
        if before is None:
            clean = self.clean and not self.plain
            shape = NetworkShape(len(self.dataset.bands), len(self.dataset.legend), clean=clean)
        else:
            grows = before.plain and not self.plain
            shape = replace(before.network, clean=grows or before.network.clean)
        return replace(shape, encoder=self.encoder or shape.encoder)

    @property
    def card(self) -> Card:
        """The card of the prior to be, without its scores. Raises TrainingError if `start` is of other classes."""
        d = self.dataset
        before = None if self.start is None else read_card(self.start)
        if before is not None:
            check_start(before, d)
        kept = before if before is not None and before.plain == self.plain else None
        return Card(
            name=self.target.stem,
            legend=d.legend,
            bands=d.bands,
            res=d.res,
            mean=(before or d).mean,
            std=(before or d).std,
            network=self.shape or self._shape(before),
            label_scale=_kept("label scale", self.label_scale, None if kept is None else kept.label_scale, 0.3),
            schedule=_kept("schedule", self.schedule, None if kept is None else kept.schedule, "cosine"),
            plain=self.plain,
            licence=d.licence,
        )


Value = TypeVar("Value", float, str)


def _kept(what: str, given: Value | None, before: Value | None, usual: Value) -> Value:
    """What a prior to start from has, else what is given, else what is usual. Raises SettingError if they disagree."""
    if before is not None and given not in (None, before):
        raise SettingError(f"wanted the {what} of the prior to start from, {before}, got {given}; leave it out")
    return next(value for value in (before, given, usual) if value is not None)


def _without_segments(mix: Mix) -> Mix:
    """The mix without items that have a first draw alone; their share goes to the other kinds in proportion."""
    shares = [0.0 if kind == Kind.SEGMENT else share for kind, share in zip(Kind, mix.kinds, strict=True)]
    if not sum(shares):
        raise SettingError(f"wanted a mix with other items than those of a first draw alone, got {mix.kinds}")
    return replace(mix, kinds=tuple(share / sum(shares) for share in shares))


def fit(plan: Plan, *, overwrite: bool = False) -> Iterator[Step]:
    """Train, yielding every step; take up an unfinished run of the same plan; write the files at the end.

    Raises DatasetError, SettingError, TrainingError, CheckpointError or OutputError.
    """
    check_targets(plan.target, overwrite=overwrite)
    pools = read_pools(plan.dataset, tile=plan.settings.tile, augmentation=plan.settings.augmentation)
    validation = read_plots(plan.dataset, "val", "pairs")
    if not validation:
        raise DatasetError(f"wanted labelled scenes in the split 'val' of {plan.dataset.name}, found none")
    if plan.settings.mean_teacher:
        pools.without_labels()  # raises where there is none, before anything is written
    tilt = class_tilt(pools.pairs, classes=len(plan.dataset.legend))
    run = _begin(plan, torch.from_numpy(tilt).float())
    rows = _logged(plan.beside(".csv"), run.done)
    objective: Objective = plain_loss if plan.plain else joint_objective(plan.settings)
    saved = time.monotonic()
    with plan.beside(".csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerows([COLUMNS, *rows])
        file.flush()  # the rows of a resumed run are in no other file now
        for step in train(
            run, plan.card, pools, objective=objective, validation=validation, kinds=PLAIN if plan.plain else None
        ):
            rows.append(_row(step))
            log.writerow(rows[-1])
            if time.monotonic() - saved > plan.save_every:
                file.flush()
                run.save(plan.beside(".run"))
                saved = time.monotonic()
            yield step
    _finish(plan, run, rows, pools.images.plots, validation)


def check_targets(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless all files of a run may be written; those of an unfinished run are its own."""
    check_target(target, overwrite=overwrite)
    if not target.with_suffix(".run").exists():
        for suffix in (".csv", ".png", ".samples.png"):
            path = target.with_suffix(suffix)
            # a log without a prior and a state is what an early stop leaves behind
            check_target(path, overwrite=overwrite or (suffix == ".csv" and _is_log(path)))


def _is_log(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:200].startswith(",".join(COLUMNS).encode())


def _begin(plan: Plan, log_tilt: torch.Tensor) -> Run:
    """A fresh run, or the unfinished one that lies beside the target."""
    torch.manual_seed(plan.settings.seed)
    card = plan.card
    if plan.start is None:
        denoiser = new_denoiser(card, plan.encoder_weights)
    else:
        denoiser = denoiser_from(plan.start, card, hold=plan.hold)
    check_tiles(denoiser, plan.settings.batch, plan.settings.tile)
    denoiser.log_tilt.copy_(log_tilt)
    run = Run(denoiser.to(resolved(plan.device)), plan.settings, encoder=encoder_of(denoiser), origin=plan.origin)
    if plan.beside(".run").exists():
        run.restore(plan.beside(".run"))
    return run


def _row(step: Step) -> tuple[Any, ...]:
    checked = ("", "") if step.validation is None else (step.validation.one_step, step.validation.few_step)
    return (step.number, step.one_step, step.later, step.image, round(step.seconds, 1), *checked)


def _logged(path: Path, done: int) -> list[tuple[Any, ...]]:
    """Rows of the log up to step `done`, so that a resumed run goes on where its state was saved."""
    if not done or not path.exists():
        return []
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file) if row[0].isdigit() and int(row[0]) <= done]


def _finish(
    plan: Plan, run: Run, rows: list[tuple[Any, ...]], trained: Sequence[Plot], validation: Sequence[Plot]
) -> None:
    card = _carded(plan, run, rows)
    prior = finished(run, card)
    card = replace(card, temperature=round(temperature(prior, validation), 4))
    if not plan.plain:
        found = familiarity(prior, [*trained, *validation])
        card = replace(card, familiar={} if found is None else asdict(found))
    prior.denoiser.temperature = card.temperature
    prior = replace(prior, card=card)
    history = [(int(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in rows]
    checks = [(int(r[0]), float(r[5]), float(r[6])) for r in rows if r[5] != ""]
    loss_curve(plan.beside(".png"), history, checks, overwrite=True)
    if not plan.plain and plan.drawn:
        drawing = Drawing(size=(192, 192), seed=plan.settings.seed)
        drawn = [draw_sample(prior, number, drawing=drawing) for number in range(plan.drawn)]
        sheet(plan.beside(".samples.png"), drawn, card.legend, overwrite=True)
    save_prior(prior, plan.target)  # last: where it is, the run is done
    plan.beside(".run").unlink(missing_ok=True)


def _carded(plan: Plan, run: Run, rows: list[tuple[Any, ...]]) -> Card:
    """The card with what the run has come to."""
    last = next((r for r in reversed(rows) if r[5] != ""), None)
    scores = {} if last is None else {"val": {"miou_one_step": float(last[5]), "miou_few_step": float(last[6])}}
    before = {} if plan.start is None else {"start": plan.start, "before": dict(read_card(plan.start).training)}
    training = {
        "dataset": plan.dataset.name,
        "source": plan.dataset.source,
        "scenes": sorted({f"{r.scene.name}:{r.use}" for r in plan.dataset.regions if r.split == "train"}),
        "settings": asdict(plan.settings),
        "encoder_weights": Path(plan.encoder_weights).name,
        "seconds": round(run.seconds),
        "threads": torch.get_num_threads(),
        "device": run.device.type,
        "torch": torch.__version__,
        **before,
    }
    return replace(plan.card, training=training, scores=scores)
