"""Validation while a prior trains: a quick mIoU, in cells side by side, without blending."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from segprior.checkpoint import Prior
from segprior.metrics import confusion, scores
from segprior.plots import Image, Index, Plot, Seen
from segprior.prior.familiar import CELL, SPARE, Familiarity, image_losses
from segprior.prior.infer import FixedPoint, generator_noise, infer
from segprior.prior.joint import UNLABELLED
from segprior.prior.temperature import fitted_temperature


@dataclass(frozen=True, slots=True)
class Validation:
    """mIoU on the validation split with one step and with a few, of the moving average."""

    one_step: float
    few_step: float


def validate(prior: Prior, plots: Sequence[Plot], *, size: int = 256) -> Validation:
    """Measure mIoU in tiles of `size` side by side, by one step and the default solver (a quick check: no blending)."""
    solver = FixedPoint(times=(1.0,)) if prior.card.plain else FixedPoint()  # a plain segmenter knows one step
    totals = [np.zeros((len(prior.card.legend),) * 2, np.int64) for _ in range(2)]
    for plot in plots:
        for _, image, index, seen in cells(plot, size):
            y = prior.card.normalise(image.transpose(2, 0, 1))[None]
            noise = generator_noise(0, (1, len(prior.card.bands) + len(prior.card.legend), *image.shape[:2]))
            valid = torch.from_numpy(seen)[None, None]
            steps = list(infer(prior.denoiser, y, valid=valid, noise=noise, solver=solver))
            for total, step in zip(totals, (steps[0], steps[-1]), strict=True):
                predicted = step.probabilities[0].argmax(dim=0).numpy().astype(np.uint8)
                np.add(total, confusion(index, predicted, classes=len(total)), out=total)
    one, few = (scores(total).miou for total in totals)
    return Validation(one, few)


MOST_PIXELS = 1_000_000
"""Held-out pixels that a temperature is fitted to at most; they are in memory at once."""


@torch.no_grad()
def temperature(prior: Prior, plots: Sequence[Plot], *, size: int = 256) -> float:
    """Find the temperature under which the labels of held-out plots are likeliest by one step, as if it were 1 now.

    Inferred labels count by their probabilities, in which the temperature of the network that inferred them is: what is
    found makes the network as sure of held-out imagery as they are. Of more than MOST_PIXELS every so-manieth counts.
    """
    classes = len(prior.card.legend)
    labelled = sum(int((plot.index != UNLABELLED).sum()) for plot in plots if plot.index is not None)
    step = max(1, -(-labelled // MOST_PIXELS))
    found, labels = [torch.zeros(0, classes)], [torch.zeros(0, classes)]
    for plot in plots:
        for at, image, index, seen in cells(plot, size):
            y = prior.card.normalise(image.transpose(2, 0, 1))[None]
            features = prior.denoiser.encode(y, torch.from_numpy(np.where(seen, 0.0, 1.0)).float()[None, None])
            known = torch.from_numpy(index != UNLABELLED)
            found.append(features.logits[0].float().permute(1, 2, 0)[known][::step])
            if plot.belief is None:
                labels.append(functional.one_hot(torch.from_numpy(index)[known][::step].long(), classes).float())
            else:
                labels.append(
                    functional.normalize(torch.from_numpy(plot.belief[at])[known][::step].float(), p=1, dim=1)
                )
    return fitted_temperature(torch.cat(found), torch.cat(labels))


def familiarity(prior: Prior, plots: Sequence[Plot], *, size: int = 256) -> Familiarity | None:
    """Describe what images are like to a prior; None if they are too few for that.

    plots: those it was trained and validated on. Held-out scenes alone would be the purer choice, but a few of them say
    too little of how scenes differ: most of the training images would be called strange.
    """
    losses, overlap = held_losses(prior, plots, size=size, offsets=OFFSETS[:1]), 1
    if int(torch.isfinite(losses).all(dim=1).sum()) < ENOUGH_CELLS:
        losses, overlap = held_losses(prior, plots, size=size), len(OFFSETS)
    known = torch.isfinite(losses).all(dim=1)
    enough = int(known.sum()) >= overlap * (losses.shape[1] + SPARE)
    return Familiarity.of(losses[known], overlap=overlap) if enough else None


OFFSETS = ((0, 0), (0, CELL // 2), (CELL // 2, 0), (CELL // 2, CELL // 2))
"""Where cells begin when few images are cut several times."""
ENOUGH_CELLS, MOST_VIEWS = 100, 100
"""Cells that are enough side by side; windows that are looked at, of more every so-manieth."""


def held_losses(
    prior: Prior, plots: Sequence[Plot], *, size: int = 256, offsets: Sequence[tuple[int, int]] = OFFSETS
) -> torch.Tensor:
    """Measure the image losses (cells, n) of plots, see `image_losses`; NaN where a cell is without data.

    The plots are cut into cells at every offset.
    """
    views = [view for plot in plots for view in _shifted(plot, size, offsets)]
    found = []
    for image, valid in views[:: -(-len(views) // (MOST_VIEWS * len(offsets))) or 1]:
        y = prior.card.normalise(image.transpose(2, 0, 1))[None]
        losses = image_losses(prior.denoiser, y, torch.from_numpy(valid)[None, None])
        # cells that are cut at the edge are no cells
        whole = losses[:, :, : image.shape[0] // CELL, : image.shape[1] // CELL]
        found.append(whole.flatten(2)[0].T)
    return torch.cat(found) if found else torch.zeros(0, 1)


def _shifted(plot: Plot, size: int, offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[Image, Seen]]:
    """Views of a plot from every offset on."""
    for row, col in offsets:
        if plot.image is not None and min(plot.shape) >= CELL + CELL // 2:
            seen = None if plot.seen is None else plot.seen[row:, col:]
            yield from _views(replace(plot, image=plot.image[row:, col:], index=None, seen=seen), size)


def cells(plot: Plot, size: int) -> Iterator[tuple[tuple[slice, slice], Image, Index, Seen]]:
    """Cells of up to size x size pixels, cut to multiples of 32: where they lie, and what is there."""
    for at in _places(plot, size):
        if plot.image is not None and plot.index is not None:
            seen = _seen(plot, at)
            yield at, plot.image[at], np.where(seen, plot.index[at], np.uint8(UNLABELLED)), seen


def _views(plot: Plot, size: int) -> Iterator[tuple[Image, Seen]]:
    """Yield `cells` without their labels."""
    for at in _places(plot, size):
        if plot.image is not None:
            yield plot.image[at], _seen(plot, at)


def _places(plot: Plot, size: int) -> Iterator[tuple[slice, slice]]:
    rows, cols = plot.shape
    for row in range(0, rows, size):
        for col in range(0, cols, size):
            height, width = (min(size, n - o) // 32 * 32 for n, o in ((rows, row), (cols, col)))
            if height and width:
                yield slice(row, row + height), slice(col, col + width)


def _seen(plot: Plot, at: tuple[slice, slice]) -> Seen:
    shape = tuple(part.stop - part.start for part in at)
    return np.ones(shape, np.bool_) if plot.seen is None else plot.seen[at]
