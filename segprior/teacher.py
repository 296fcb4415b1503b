"""The mean teacher: imagery without labels is learned from what the moving average of the network makes of it.

The teacher, the exponential moving average of the weights so far, sees a tile as it is. The network sees the same tile
with other colours and a piece of another tile in it, and is to come to the teacher's probabilities (Tarvainen & Valpola
2017, Mean teachers are better role models; with cut-mix French et al. 2020, Semi-supervised semantic segmentation needs
strong, varied perturbations). With f the class logits of a first draw and c the tilt of the classes in drawn tiles
(`segprior.tiles.class_tilt`), a pixel costs

    - w sum_k q_k log softmax_k(f(changed) + c),    q = softmax(g(plain) + c),    w = max_k softmax_k(g(plain)),

g being the teacher's logits: it costs least at the teacher's own probabilities, and counts by how sure the teacher is.

Nothing but labels of the same region holds it there: in a new region, where there are none, the map went step by step
to what the teacher took most of it for (`scripts/results/README.md`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from segprior.augment import rectangle
from segprior.checkpoint import Card
from segprior.mix import Batch, Kind
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.joint import UNLABELLED
from segprior.tiles import View

FROM = 1 / 8
"""Share of a run after which there is a teacher; before that it knows too little."""


def taught_count(share: float, batch: int, progress: float) -> int:
    """How many of `batch` items are taught at `progress` (share of the run done); one at least is not."""
    return min(round(share * batch), batch - 1) if progress >= FROM else 0


@torch.no_grad()
def taught(teacher: NetworkDenoiser, views: Sequence[View], card: Card, rng: np.random.Generator) -> Batch:
    """Make items of tiles without labels, whose targets are the teacher's; each with a piece of the next one.

    teacher: in eval mode, on any device. The batch is on the CPU, its targets (batch, classes, h, w) are w q.
    """
    device = teacher.log_tilt.device
    plain, image = (
        card.normalise(np.stack(images).transpose(0, 3, 1, 2))
        for images in ([view.plain for view in views], [view.tile.image for view in views])
    )
    seen = torch.from_numpy(np.stack([view.tile.seen for view in views]))[:, None]
    features = teacher.encode(plain.to(device), torch.where(seen, 0.0, 1.0).to(device))
    logits = features.logits.float()
    sure, index = torch.softmax(logits, dim=1).max(dim=1)
    target = (sure[:, None] * torch.softmax(logits + teacher.log_tilt[:, None, None], dim=1)).cpu()
    index = torch.where(seen[:, 0], index.cpu(), UNLABELLED).to(torch.uint8)
    parts = (image, index[:, None], seen, target)
    mixed = tuple(part.clone() for part in parts)
    for number in range(len(views)):
        rows, cols = rectangle(image.shape[-1], rng)
        for part, of in zip(mixed, parts, strict=True):
            part[number, :, rows, cols] = of[(number + 1) % len(views), :, rows, cols]
    image, index, seen, target = mixed
    kinds = np.full(len(views), Kind.SEGMENT, np.int64)
    return Batch(image.contiguous(memory_format=torch.channels_last), index[:, 0], kinds, seen, target)
