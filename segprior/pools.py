"""What a training draws from: pools of tiles, and batches of them.

A batch has items of the kinds that `segprior.mix` names, each from the pool of its kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segprior.augment import Augmentation
from segprior.checkpoint import Card
from segprior.data import Dataset
from segprior.errors import DatasetError
from segprior.mix import Batch, Kind
from segprior.plots import BELIEVED, Plot, read_pairs, read_plots
from segprior.tiles import Mixture, Tile, TilePool, pool_of


@dataclass(frozen=True, slots=True)
class Pools:
    """Tiles to draw from.

    pairs; images: these and imagery without labels; labels: pairs and label maps without imagery. bare: imagery without
    labels alone, None where there is none.
    """

    pairs: TilePool | Mixture
    images: TilePool | Mixture
    labels: TilePool | Mixture
    bare: TilePool | None = None

    def without_labels(self) -> TilePool:
        """Give the pool of imagery without labels. Raises DatasetError where there is none."""
        if self.bare is None:
            raise DatasetError("wanted imagery without labels for a mean teacher, found none to train on; leave it out")
        return self.bare


def read_pools(dataset: Dataset, *, tile: int, augmentation: Augmentation | None = None) -> Pools:
    """Read the training split, to draw tiles that are changed so. Raises DatasetError if it has no pairs."""
    imagery = read_plots(dataset, "train", "images")
    pairs = read_pairs(dataset, "train", imagery)

    looks = {"classes": len(dataset.legend), "size": tile, "bands": len(dataset.bands)}

    def pool(plots: Sequence[Plot]) -> TilePool | Mixture:
        return pool_of(plots, augmentation=augmentation, **looks)

    alone = [plot for plot in pairs if not plot.parts]  # the imagery around the others is among the rest
    labels = [*pairs, *read_plots(dataset, "train", "labels")]
    bare = TilePool(imagery, augmentation=augmentation, **looks) if imagery else None
    return Pools(pool(pairs), pool([*alone, *imagery]), pool(labels), bare)


def draw_batch(
    pools: Pools, card: Card, kinds: NDArray[np.int64], rng: np.random.Generator, *, log_tilt: Tensor
) -> Batch:
    """Items of the given kinds, each from the pool of its kind.

    Where noisy images or labels alone are learned tiles are whole: what is drawn from the prior shall not have seams.
    log_tilt: c of the classes in drawn tiles (classes,), which the loss adds to the logits (`segprior.tiles`). Labels
    that are given are tilted by being drawn. What is inferred of a pixel stays the same wherever tiles are cut, so its
    target is q exp(c), normed: then the loss is least at q itself.
    """
    source = {Kind.IMAGE: pools.images, Kind.LABEL: pools.labels}
    tiles = [
        source.get(Kind(int(kind)), pools.pairs).draw(rng, whole=kind not in (Kind.PAIR, Kind.SEGMENT))
        for kind in kinds
    ]
    image = card.normalise(np.stack([t.image.transpose(2, 0, 1) for t in tiles]))
    index, seen = (
        torch.from_numpy(np.stack(arrays)) for arrays in zip(*((t.index, t.seen) for t in tiles), strict=True)
    )
    batch = Batch(image.contiguous(memory_format=torch.channels_last), index, kinds, seen[:, None])
    return replace(batch, target=_target(tiles, batch, log_tilt.cpu().exp()))


def _target(tiles: Sequence[Tile], batch: Batch, tilt: Tensor) -> Tensor | None:
    """What the classes are worth in tiles of which some have inferred labels."""
    if all(tile.belief is None for tile in tiles):
        return None
    worth = batch.worth(len(tilt))
    for number, tile in enumerate(tiles):
        if tile.belief is not None:
            belief = torch.from_numpy(tile.belief).permute(2, 0, 1).float() / BELIEVED
            tilted = belief * tilt[:, None, None]
            worth[number] = tilted * belief.sum(dim=0) / tilted.sum(dim=0).clamp(min=torch.finfo(tilted.dtype).tiny)
    return worth
