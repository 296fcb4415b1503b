"""Random training tiles: cut around a pixel, scaled, turned, recoloured, mixed.

Half of the tiles are cut around a pixel drawn evenly over the area, half around a pixel of a class drawn evenly over
the classes, so that rare classes are seen. `class_tilt` measures what that does to the class shares, and the denoiser's
loss divides it out. Of an image with labels in parts of it alone these parts are the area, and tiles reach beyond them
by a quarter of their side, or as far as they must where a part is smaller than they are. Places where no pixel has a
label are passed over. Where some labels were given and others inferred, half of the tiles have labels of either kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from segprior.augment import Augmentation, colours, noise, rectangle, turns
from segprior.errors import DatasetError
from segprior.plots import Image, Index, Plot, Seen
from segprior.prior.joint import UNLABELLED
from segprior.windows import Window

TRIES = 100
"""How often a place with labels is looked for, in images that have hardly any."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A training tile.

    image: uint8 (size, size, bands). index: class index uint8 (size, size), 255 where not labelled. seen: bool (size,
    size), True where the image holds data. belief: of inferred labels, uint8 (size, size, classes), see `Plot`.
    """

    image: Image
    index: Index
    seen: Seen
    belief: Image | None = None

    def put_into(self, other: "Tile", at: tuple[slice, slice]) -> None:
        """Replace a rectangle of another tile by what is there in this one."""
        for mine, its in zip(self._arrays(), other._arrays(), strict=True):
            its[at] = mine[at]

    def _arrays(self) -> list[NDArray[np.uint8] | NDArray[np.bool_]]:
        return [self.image, self.index, self.seen, *(() if self.belief is None else (self.belief,))]


@dataclass(frozen=True, slots=True)
class View:
    """A tile, and its image before the colours were changed, uint8 (size, size, bands)."""

    tile: Tile
    plain: Image


class TilePool:
    """Plots to draw random tiles from.

    A draw picks a plot in proportion to its area, or, for half of the draws where labels are given, a class evenly and
    one of its pixels evenly; the tile is cut around that pixel at a random scale, flipped and turned at random, and its
    colours are changed. `augmentation` says how much, and how many tiles hold noise and a piece of another.
    """

    def __init__(
        self, plots: Sequence[Plot], *, classes: int, size: int, bands: int, augmentation: Augmentation | None = None
    ) -> None:
        if not plots:
            raise DatasetError("wanted at least one region to draw tiles from, got none")
        self.plots = tuple(plots)
        self.size = size
        self.bands = bands
        self._places = [(n, part) for n, p in enumerate(plots) for part in p.parts or (Window(0, 0, *p.shape),)]
        areas = np.array([part.height * part.width for _, part in self._places], dtype=np.float64)
        self._shares = areas / areas.sum()
        self._pixels = [_pixels_of(plots, c) for c in range(classes)]
        self._present = [c for c in range(classes) if len(self._pixels[c])]
        augmentation = Augmentation() if augmentation is None else augmentation
        self._colour, self._turn, self._noise = colours(augmentation.colour), turns(), noise()
        self._cut_mix, self._noisy = augmentation.cut_mix, augmentation.noise
        self._log_scale = float(np.log(augmentation.scale))

    def draw(self, rng: np.random.Generator, *, whole: bool = False) -> Tile:
        """One augmented tile, a `whole` one without noise or a piece of another; the same for the same `rng`."""
        tile = self._augment(self._cut(rng), rng)
        if self._cut_mix and not whole and rng.random() < self._cut_mix:
            self._augment(self._cut(rng), rng).put_into(tile, rectangle(self.size, rng))
        if self._noisy and not whole and rng.random() < self._noisy:
            self._noise.set_random_seed(int(rng.integers(2**31)))
            noisy = self._noise(image=tile.image)["image"]
            tile = replace(tile, image=np.where(tile.seen[..., None], noisy, tile.image))
        return tile

    def draw_views(self, rng: np.random.Generator) -> View:
        """One tile that is `whole`, with and without other colours."""
        turned = self._turned(self._cut(rng), rng)
        return View(self._recoloured(turned, rng), turned.image)

    def draw_index(self, rng: np.random.Generator) -> Index:
        """Draw the labels of one tile without flips, turns and colours: enough to count classes."""
        return self._cut(rng).index

    def _centre(self, rng: np.random.Generator) -> tuple[int, Window, int, int]:
        """Draw a plot, a part of it, and a pixel there."""
        if self._present and rng.random() < 0.5:
            pixels = self._pixels[self._present[rng.integers(len(self._present))]]
            number, row, col = (int(v) for v in pixels[rng.integers(len(pixels))])
            pixel = Window(row, col, 1, 1)
            return number, next(part for n, part in self._places if n == number and part.holds(pixel)), row, col
        number, part = self._places[rng.choice(len(self._places), p=self._shares)]
        return number, part, part.row + int(rng.integers(part.height)), part.col + int(rng.integers(part.width))

    def _place(self, rng: np.random.Generator) -> tuple[Plot, NDArray[np.int64], NDArray[np.int64]]:
        """Draw a plot and the rows and columns to cut; again, if labels were given and none is there."""
        for _ in range(TRIES):
            number, part, row, col = self._centre(rng)
            plot = self.plots[number]
            side = max(8, round(self.size / float(np.exp(rng.uniform(-self._log_scale, self._log_scale)))))
            rows = _span(row, side, part.row_slice, plot.shape[0], rng)
            cols = _span(col, side, part.col_slice, plot.shape[1], rng)
            if plot.index is None or (plot.index[np.ix_(rows, cols)] != UNLABELLED).any():
                break
        return plot, rows, cols

    def _cut(self, rng: np.random.Generator) -> Tile:
        plot, rows, cols = self._place(rng)
        side = len(rows)
        image: Image = np.zeros((side, side, self.bands), np.uint8)
        index: Index = np.full((side, side), UNLABELLED, np.uint8)
        seen: Seen = np.ones((side, side), np.bool_)
        if plot.image is not None:
            image = plot.image[np.ix_(rows, cols)]
        if plot.index is not None:
            index = plot.index[np.ix_(rows, cols)]
        if plot.seen is not None:
            seen = plot.seen[np.ix_(rows, cols)]
        belief = None if plot.belief is None else plot.belief[np.ix_(rows, cols)]
        by = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        shape = (self.size, self.size)
        scaled = cv2.resize(index, shape, interpolation=cv2.INTER_NEAREST_EXACT)
        share = cv2.resize(seen.astype(np.float32), shape, interpolation=by)
        return Tile(
            _resized(image, shape, by),
            np.asarray(scaled, np.uint8),
            np.asarray(share > 1 - 1e-4),
            None if belief is None else _resized(belief, shape, by),
        )

    def _augment(self, tile: Tile, rng: np.random.Generator) -> Tile:
        return self._recoloured(self._turned(tile, rng), rng)

    def _turned(self, tile: Tile, rng: np.random.Generator) -> Tile:
        self._turn.set_random_seed(int(rng.integers(2**31)))
        more = () if tile.belief is None else np.moveaxis(tile.belief, 2, 0)  # albumentations wants masks of one shape
        turned = self._turn(image=tile.image, masks=[tile.index, tile.seen.astype(np.uint8), *more])
        index, seen, *belief = (np.ascontiguousarray(mask) for mask in turned["masks"])
        return Tile(np.ascontiguousarray(turned["image"]), index, seen > 0, np.dstack(belief) if belief else None)

    def _recoloured(self, tile: Tile, rng: np.random.Generator) -> Tile:
        if self.bands != 3:
            return tile
        self._colour.set_random_seed(int(rng.integers(2**31)))
        return replace(tile, image=np.ascontiguousarray(self._colour(image=tile.image)["image"]))

    def shares(self, classes: int) -> NDArray[np.float64]:
        """Shares of the classes in the plots, where labelled."""
        count = np.zeros(256, np.int64)
        for plot in self.plots:
            if plot.index is not None:
                count += np.bincount(plot.index.ravel(), minlength=256)
        return _normed(count[:classes])


class Mixture:
    """Pools that are drawn from equally often."""

    def __init__(self, pools: Sequence[TilePool]) -> None:
        self.pools = tuple(pools)
        self.plots = tuple(plot for pool in self.pools for plot in pool.plots)

    def draw(self, rng: np.random.Generator, *, whole: bool = False) -> Tile:
        """One augmented tile of one of the pools, see `TilePool.draw`."""
        return self.pools[rng.integers(len(self.pools))].draw(rng, whole=whole)

    def draw_index(self, rng: np.random.Generator) -> Index:
        """Draw labels as `TilePool.draw_index` does."""
        return self.pools[rng.integers(len(self.pools))].draw_index(rng)

    def shares(self, classes: int) -> NDArray[np.float64]:
        """Shares of the classes, the mean of the pools'."""
        return np.asarray(np.mean([pool.shares(classes) for pool in self.pools], axis=0))


def pool_of(
    plots: Sequence[Plot], *, classes: int, size: int, bands: int, augmentation: Augmentation | None = None
) -> TilePool | Mixture:
    """Make a pool of plots; a mixture where some labels were given and others inferred. Raises as `TilePool` does."""
    given = [plot for plot in plots if plot.belief is None]
    inferred = [plot for plot in plots if plot.belief is not None]
    parts = [part for part in (given, inferred) if part]
    pools = [
        TilePool(part, classes=classes, size=size, bands=bands, augmentation=augmentation)
        for part in parts or [list(plots)]
    ]
    return Mixture(pools) if len(pools) > 1 else pools[0]


def _resized(image: Image, shape: tuple[int, int], by: int) -> Image:
    """Resize (rows, columns, bands); OpenCV resizes by area no more than four channels at once."""
    parts = [cv2.resize(image[..., i : i + 4], shape, interpolation=by) for i in range(0, image.shape[2], 4)]
    return np.dstack(parts).astype(np.uint8)


def _span(centre: int, side: int, part: slice, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose the indices of `side` pixels that hold `centre` at a random place, reflected if the plot is smaller.

    Of a part of the plot they lie inside, or hold all of it, but for a shift by a quarter of the side.
    """
    least, most = centre - side + 1, centre
    if (part.start, part.stop) != (0, length):
        ends = sorted((part.start, part.stop - side))
        least, most = max(least, ends[0] - side // 4), min(most, ends[1] + side // 4)
    first = most - int(rng.integers(side)) * (most - least + 1) // side
    if length >= side:
        first = min(max(first, 0), length - side)
    period = np.arange(first, first + side) % (2 * length)
    return np.where(period < length, period, 2 * length - 1 - period)


def _pixels_of(plots: Sequence[Plot], index: int, most: int = 200_000) -> NDArray[np.int32]:
    """(plot, row, column) of the pixels of a class, evenly thinned to fewer than twice `most`."""
    labelled = [(number, plot.index == index) for number, plot in enumerate(plots) if plot.index is not None]
    step = max(1, sum(int(there.sum()) for _, there in labelled) // most)
    found, before = [np.empty((0, 3), np.int32)], 0
    for number, there in labelled:
        at = np.flatnonzero(there)
        kept = np.unravel_index(at[-before % step :: step], there.shape)
        found.append(np.column_stack([np.full(len(kept[0]), number), *kept]).astype(np.int32))
        before += len(at)
    return np.concatenate(found)


def class_tilt(pool: TilePool | Mixture, *, classes: int, tiles: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Measure log(share in drawn tiles / share in the plots) of each class; zero for a class that does not occur."""
    rng = np.random.default_rng([seed, 7])
    drawn = np.zeros(256, np.int64)
    for _ in range(tiles):
        drawn += np.bincount(pool.draw_index(rng).ravel(), minlength=256)
    share_drawn, share_true = _normed(drawn[:classes]), pool.shares(classes)
    both = (share_drawn > 0) & (share_true > 0)
    tilt = np.zeros(classes)
    tilt[both] = np.log(share_drawn[both] / share_true[both])
    return tilt


def _normed(count: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(count / max(1, count.sum()))
