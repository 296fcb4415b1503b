"""Distilling: a small network learns from the labels that a prior infers, so that mapping costs one forward pass.

The prior segments rasters under all that is told of them, as slowly as it likes; the student, any network of
segmentation-models-pytorch, learns the probabilities of all classes (cross-entropy against them, Hinton et al. 2015).
It is a plain segmenter: `segment --prior STUDENT` maps the rest, `segment --start STUDENT` starts a prior's solver from
its map. Part of the rasters is held out, and how the student agrees there with what was inferred stands in its card.

    STUDENT.safetensors              the student, with its log (.csv) and loss curve (.png) beside it
    .STUDENT.safetensors-distilling  the inferred labels while it runs; the same command goes on from them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from segprior.beginning import check_tiles, new_denoiser
from segprior.checkpoint import locate_prior, read_card
from segprior.errors import SettingError
from segprior.fit import Plan, check_targets, fit
from segprior.inferred import Watch, about, infer_labels, inferred_dataset, label_items, work_folder
from segprior.options import Options
from segprior.prior.network import NetworkShape
from segprior.target import check_suffix, check_target
from segprior.train import Settings, Step


@dataclass(frozen=True, slots=True)
class Distillation:
    """What a student learns from what.

    prior, images, target, options: as of `segprior.adapt.Adaptation`. arch, encoder: smp's names of the student's
    network and encoder. encoder_weights: "imagenet" (downloaded by smp), "none", or a safetensors file.
    """

    prior: str
    images: tuple[str, ...]
    target: Path
    options: Options = field(default_factory=Options)
    arch: str = "unet"
    encoder: str = "timm-tf_efficientnet_lite0"
    encoder_weights: str = "imagenet"
    settings: Settings = field(default_factory=lambda: Settings(steps=2000))

    def __post_init__(self) -> None:
        if not self.images:
            raise SettingError("wanted 1 image or more, got none")
        check_suffix(self.target)

    @property
    def folder(self) -> Path:
        """Where the inferred labels are while it runs."""
        return self.target.with_name(f".{self.target.name}-distilling")


def distill(plan: Distillation, *, overwrite: bool = False, watch: Watch | None = None) -> Iterator[Step]:
    """Infer, then train the student, yielding every step; take up unfinished work of the same plan.

    Raises DatasetError, RasterError, SettingError, TrainingError, CheckpointError or OutputError.
    """
    check_target(plan.target, overwrite=overwrite, sources=(*plan.images, locate_prior(plan.prior)))
    check_targets(plan.target, overwrite=overwrite)
    card = read_card(plan.prior)
    shape = replace(NetworkShape(len(card.bands), len(card.legend)), encoder=plan.encoder, arch=plan.arch)
    # before the slow part: what cannot be built is refused
    student = new_denoiser(replace(card, network=shape, plain=True), plan.encoder_weights)
    check_tiles(student, plan.settings.batch, plan.settings.tile)
    items = label_items(plan.images, plan.folder)
    name = f"{len(items)} rasters, labels inferred by {card.name}"
    training = Plan(
        inferred_dataset(name, items, card, options=plan.options),
        plan.target,
        plan.settings,
        encoder=plan.encoder,
        encoder_weights=plan.encoder_weights,
        plain=True,
        shape=shape,
        device=plan.options.device,
    )
    with work_folder(plan.folder, about(plan.prior, plan.images, plan.options)):
        infer_labels(items, prior=plan.prior, options=plan.options, watch=watch)
        yield from fit(training, overwrite=overwrite)
