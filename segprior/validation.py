"""Validation while a prior trains: a quick mIoU, in cells side by side, without blending."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segprior.checkpoint import Prior
from segprior.data import Image, Index, Plot, Seen
from segprior.metrics import confusion, scores
from segprior.prior.infer import FixedPoint, generator_noise, infer
from segprior.prior.joint import UNLABELLED


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
        for image, index, seen in cells(plot, size):
            y = prior.card.normalise(image.transpose(2, 0, 1))[None]
            noise = generator_noise(0, (1, len(prior.card.bands) + len(prior.card.legend), *image.shape[:2]))
            valid = torch.from_numpy(seen)[None, None]
            steps = list(infer(prior.denoiser, y, valid=valid, noise=noise, solver=solver))
            for total, step in zip(totals, (steps[0], steps[-1]), strict=True):
                predicted = step.probabilities[0].argmax(dim=0).numpy().astype(np.uint8)
                np.add(total, confusion(index, predicted, classes=len(total)), out=total)
    one, few = (scores(total).miou for total in totals)
    return Validation(one, few)


def cells(plot: Plot, size: int) -> Iterator[tuple[Image, Index, Seen]]:
    """Cells of up to size x size pixels, cut to multiples of 32."""
    rows, cols = plot.shape
    for row in range(0, rows, size):
        for col in range(0, cols, size):
            height, width = (min(size, n - o) // 32 * 32 for n, o in ((rows, row), (cols, col)))
            if height and width and plot.image is not None and plot.index is not None:
                at = (slice(row, row + height), slice(col, col + width))
                seen = np.ones((height, width), np.bool_) if plot.seen is None else plot.seen[at]
                yield plot.image[at], np.where(seen, plot.index[at], np.uint8(UNLABELLED)), seen
