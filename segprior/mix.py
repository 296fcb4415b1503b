"""The training mix: which times each item is trained at, what is revealed, what is hidden.

Every item of a batch is of one kind:

    pair      t_image = 0; a first draw of labels at t_labels = 1 and a second one at a random time
    segment   t_image = 0; the first draw alone
    joint     both times random, drawn independently (Bao et al. 2023, UniDiffuser); both draws
    image     an image without labels: the second draw alone, at t_labels = 1, t_image random; only the image counts
    label     a label map without an image: the second draw alone, at t_image = 1; only the labels count

All draws of an item share its image features. The first draw is that of a plain segmenter and asks for the labels
alone; the second one asks for labels and image. The map of the first serves the second twice: in the later part of the
training most of the `pair` items noise the network's own map instead of the truth (self-conditioning in the manner of
Pix2Seq-D and DDP), and in part of all items discs, scribbles and patches of the truth are revealed (t_labels = 0
there), mostly where that map is wrong, as interactive segmentation trains (RITM, SimpleClick). In some items rectangles
of the image are hidden (t_image = 1 there), as nodata is, in training and later; what lies behind a hidden rectangle is
asked for, what nodata stands for is not.

In the first half of a training every item has its first draw alone: what the U-Net learns by itself it learns at half
the cost, and the later draws then find features that are worth something.

Where labels are inferred and only their probabilities are known, the first draw learns the probabilities. The second
one noises a map and must be asked for that map, not for the mean of all maps: it takes one drawn from them (`drawn`).
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.denoiser import Loss, NetworkDenoiser, Prediction
from segprior.prior.joint import UNLABELLED, Times
from segprior.prior.network import Features
from segprior.reveal import reveal


class Kind(IntEnum):
    """What an item teaches; see the module."""

    PAIR = 0
    SEGMENT = 1
    JOINT = 2
    IMAGE = 3
    LABEL = 4


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the kinds (in the order of `Kind`, summing to 1) and of what is revealed and hidden.

    alone: share of the run, at its beginning, in which every item is a SEGMENT: first draws alone, at a plain
    segmenter's cost. A trained prior that goes on has none (see `fit.Plan`): its label path would fall behind.
    own: share of PAIR items whose second draw noises the network's own map, from `own_from` (share of the rest) on;
    their label times lie above `own_time`, because at lower noise Bayes' rule rightly takes the noisy labels at their
    word.
    revealed: share of second draws with revealed labels; at_errors: share of reveals placed where the map is wrong.
    hidden: share of PAIR, SEGMENT and JOINT items with hidden rectangles of the image.
    """

    kinds: tuple[float, ...] = (0.50, 0.30, 0.10, 0.05, 0.05)
    own: float = 0.6
    own_from: float = 1 / 3
    own_time: float = 0.3
    revealed: float = 0.4
    at_errors: float = 0.7
    hidden: float = 0.1
    alone: float = 0.5

    def __post_init__(self) -> None:
        others = (self.alone, self.own, self.own_from, self.own_time, self.revealed, self.at_errors, self.hidden)
        shares = (*self.kinds, *others)
        if len(self.kinds) != len(Kind) or abs(sum(self.kinds) - 1.0) > 1e-6 or not all(0 <= s <= 1 for s in shares):
            raise SettingError(f"wanted {len(Kind)} shares of kinds that sum to 1 and shares in [0, 1], got {self}")


NOISY = Mix(kinds=(0.40, 0.25, 0.10, 0.20, 0.05), alone=0.0)
"""The mix of a prior that noisy images train whole, see `NetworkShape.clean`: all draws from the first step on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean items.

    image: (batch, bands, h, w), normalised. index: class index uint8 (batch, h, w). kinds: the kind of each. seen:
    (batch, 1, h, w) bool, True where the image holds data. target: what the classes are worth where labels are not
    certain, (batch, classes, h, w), see `NetworkDenoiser.loss`; None where all are.
    """

    image: Tensor
    index: Tensor
    kinds: NDArray[np.int64]
    seen: Tensor
    target: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        image, index, seen = (tensor.to(device) for tensor in (self.image, self.index, self.seen))
        return Batch(image, index, self.kinds, seen, None if self.target is None else self.target.to(device))

    def joined(self, other: "Batch") -> "Batch":
        """These items, then those of another batch."""
        image, index, seen = (
            torch.cat(pair) for pair in ((self.image, other.image), (self.index, other.index), (self.seen, other.seen))
        )
        given = [batch.target for batch in (self, other)]
        target = None
        if any(part is not None for part in given):
            classes = next(part.shape[1] for part in given if part is not None)
            target = torch.cat([batch.worth(classes) for batch in (self, other)])
        kinds = np.concatenate([self.kinds, other.kinds])
        return Batch(image.contiguous(memory_format=torch.channels_last), index, kinds, seen, target)

    def worth(self, classes: int) -> Tensor:
        """The targets; where all labels are certain, one-hot, zero where there is none."""
        if self.target is not None:
            return self.target
        return (self.index.long()[:, None] == torch.arange(classes, device=self.index.device)[:, None, None]).float()

    def targets(self, chosen: Tensor) -> Tensor | None:
        """Targets of some items."""
        return None if self.target is None else self.target[chosen]


@dataclass(frozen=True, slots=True)
class MixLoss:
    """Loss of a batch: the sum to minimise, and its parts as numbers (nats a pixel, squared velocity)."""

    total: Tensor
    one_step: float
    later: float
    image: float


def draw_kinds(mix: Mix, batch: int, rng: np.random.Generator, *, progress: float = 1.0) -> NDArray[np.int64]:
    """Draw the kinds of a batch at `progress` (share of the run done) by strata.

    Each count differs from its share of the batch by less than two.
    """
    if progress < mix.alone:
        return np.full(batch, Kind.SEGMENT, np.int64)
    points = (rng.permutation(batch) + rng.random(batch)) / batch
    return np.searchsorted(np.cumsum(mix.kinds)[:-1], points, side="right").astype(np.int64)


def mix_loss(
    denoiser: NetworkDenoiser, batch: Batch, mix: Mix, *, progress: float, image_weight: float, rng: np.random.Generator
) -> MixLoss:
    """Compute the loss of a batch at `progress` (share of the run done, 0 to 1); the random choices come from `rng`."""
    eps = torch.Generator().manual_seed(int(rng.integers(2**62)))
    silent = torch.from_numpy(batch.kinds == Kind.IMAGE).to(batch.index.device)[:, None, None]
    batch = replace(batch, index=torch.where(silent, UNLABELLED, batch.index))
    t_image = _image_times(batch, mix, rng)
    image_t = denoiser.schedule.add_noise(batch.image, _normal(batch.image, eps), t_image)
    seen = _Seen(image_t, t_image, denoiser.encode(image_t, t_image))
    one_step, own_map = _first(denoiser, batch, seen, eps)
    own = (batch.kinds == Kind.PAIR) & (progress >= mix.alone + mix.own_from * (1 - mix.alone))
    later = _second(denoiser, batch, mix, seen=seen, own_map=own_map, own=own, rng=rng, eps=eps)
    total = one_step.labels + later.labels + image_weight * later.image
    parts = [float(v.detach()) for v in (one_step.labels, later.labels, later.image)]
    return MixLoss(total, *parts)


def plain_loss(denoiser: NetworkDenoiser, batch: Batch, *, progress: float, rng: np.random.Generator) -> MixLoss:
    """Compute the cross-entropy of the image network's own logits: a plain segmenter's loss, without a label path."""
    del progress, rng  # a plain segmenter has neither phases nor noise
    t_image = torch.where(batch.seen, 0.0, 1.0)
    prediction = Prediction(denoiser.encode(batch.image, t_image).logits.float(), batch.image)
    loss = denoiser.loss(prediction, batch.image, batch.index, Times(t_image, torch.ones_like(t_image)), batch.target)
    return MixLoss(loss.labels, float(loss.labels.detach()), float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class _Seen:
    """The noisy images of a batch, their times and their features, which all draws share."""

    image_t: Tensor
    t_image: Tensor
    features: Features

    def predict(
        self, denoiser: NetworkDenoiser, chosen: Tensor, labels_t: Tensor, t_labels: Tensor, *, image_too: bool
    ) -> Prediction:
        """Predict for the chosen items with these noisy labels."""
        x_t = denoiser.layout.join(self.image_t[chosen], labels_t)
        times = Times(self.t_image[chosen], t_labels)
        return denoiser.predict(x_t, times, self.features.repeat(chosen), image_too=image_too)


def _first(denoiser: NetworkDenoiser, batch: Batch, seen: _Seen, eps: torch.Generator) -> tuple[Loss, Tensor]:
    """Make the draw at t_labels = 1; give its map too, even where an item has no such draw."""
    classes = denoiser.layout.classes
    own_map = batch.image.new_full((len(batch.index), classes, *batch.index.shape[1:]), 1 / classes)
    chosen = torch.from_numpy(np.flatnonzero(np.isin(batch.kinds, (Kind.PAIR, Kind.SEGMENT, Kind.JOINT))))
    if not len(chosen):
        return _nothing(batch), own_map
    ones = torch.ones_like(seen.t_image[chosen])
    start = denoiser.schedule.add_noise(*_labels_and_noise(denoiser, batch.index[chosen], eps), ones)
    prediction = seen.predict(denoiser, chosen, start, ones, image_too=False)
    own_map[chosen] = torch.softmax(prediction.logits.detach(), dim=1)
    times = Times(torch.zeros_like(ones), ones)
    target = batch.targets(chosen)
    return denoiser.loss(prediction, batch.image[chosen], batch.index[chosen], times, target), own_map


def _second(
    denoiser: NetworkDenoiser,
    batch: Batch,
    mix: Mix,
    *,
    seen: _Seen,
    own_map: Tensor,
    own: NDArray[np.bool_],
    rng: np.random.Generator,
    eps: torch.Generator,
) -> Loss:
    """Make the draw at a random label time, for the kinds that have one; `own` items may noise their own map."""
    chosen = np.flatnonzero(batch.kinds != Kind.SEGMENT)
    if not len(chosen):
        return _nothing(batch)
    second = torch.from_numpy(chosen)
    index = drawn(batch.index[second], batch.targets(second), rng)
    own = own[chosen] & (rng.random(len(chosen)) < mix.own)
    t_labels = _label_times(index, own_map[second], mix, rng, least=np.where(own, mix.own_time, 0.0))
    truth, noise = _labels_and_noise(denoiser, index, eps)
    swap = torch.from_numpy(own)[:, None, None, None].to(t_labels.device) & (t_labels > 0)
    x_0 = torch.where(swap, denoiser.layout.place(own_map[second]), truth)
    labels_t = denoiser.schedule.add_noise(x_0, noise, t_labels)
    prediction = seen.predict(denoiser, second, labels_t, t_labels, image_too=True)
    # the image behind a label map is nobody's business, and may not exist: a time of 0 leaves it out of the loss
    there = torch.from_numpy(batch.kinds[chosen] != Kind.LABEL)[:, None, None, None].to(t_labels.device)
    asked = Times(torch.where(there & batch.seen[second], seen.t_image[second], 0.0), t_labels)
    return denoiser.loss(prediction, batch.image[second], index, asked)


def drawn(index: Tensor, target: Tensor | None, rng: np.random.Generator) -> Tensor:
    """Class indices (batch, h, w) drawn from probabilities (batch, classes, h, w); `index` itself without any.

    An item's pixels share one uniform number u, and each takes the class in whose part of [0, 1) u lies, the classes
    being laid side by side. So every pixel has its probabilities, and what is drawn hangs together as a map does.
    Pixels without a label stay so.
    """
    if target is None:
        return index
    u = torch.from_numpy(rng.random(len(index))).to(target)[:, None, None, None]
    below = (torch.cumsum(target, dim=1)[:, :-1] <= u * target.sum(dim=1, keepdim=True)).sum(dim=1)
    return torch.where(index == UNLABELLED, index, below.to(index.dtype))


def _nothing(batch: Batch) -> Loss:
    zero = batch.image.new_zeros(())
    return Loss(zero, zero)


def _labels_and_noise(denoiser: NetworkDenoiser, index: Tensor, eps: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = denoiser.layout.encode(index)
    return labels, _normal(labels, eps)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _image_times(batch: Batch, mix: Mix, rng: np.random.Generator) -> Tensor:
    """(batch, 1, h, w): by kind, with hidden rectangles."""
    count, (height, width) = len(batch.kinds), batch.index.shape[1:]
    level = np.where(np.isin(batch.kinds, (Kind.JOINT, Kind.IMAGE)), rng.random(count), 0.0)
    level[batch.kinds == Kind.LABEL] = 1.0
    times = np.broadcast_to(level[:, None, None], (count, height, width)).astype(np.float32).copy()
    for item in np.flatnonzero((rng.random(count) < mix.hidden) & (batch.kinds < Kind.IMAGE)):
        for _ in range(rng.integers(1, 4)):
            rows, cols = rng.integers(8, height // 2), rng.integers(8, width // 2)
            row, col = rng.integers(height - rows + 1), rng.integers(width - cols + 1)
            times[item, row : row + rows, col : col + cols] = 1.0
    t_image = torch.from_numpy(times)[:, None].to(batch.image.device)
    return torch.where(batch.seen, t_image, 1.0)


def _label_times(
    index: Tensor,
    own_map: Tensor,
    mix: Mix,
    rng: np.random.Generator,
    *,
    least: NDArray[np.float64],
) -> Tensor:
    """(batch, 1, h, w): stratified random times between `least` and 1, 1 where unlabelled, 0 where revealed."""
    count = len(index)
    level = least + (1.0 - least) * (rng.permutation(count) + 1.0 - rng.random(count)) / count
    truth = index.cpu().numpy()
    times = np.broadcast_to(level[:, None, None], truth.shape).astype(np.float32).copy()
    for item in np.flatnonzero(rng.random(count) < mix.revealed):
        p = own_map[int(item)].cpu().numpy()
        wrong = (p.argmax(axis=0) != truth[item]) & (p.max(axis=0) > p.min(axis=0))  # no map is not a wrong one
        times[item][reveal(wrong & (truth[item] != UNLABELLED), mix.at_errors, rng)] = 0.0
    times[truth == UNLABELLED] = 1.0
    return torch.from_numpy(times)[:, None].to(own_map.device)
