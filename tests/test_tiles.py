"""Random tiles: the same for the same generator, rare classes seen, and the tilt that this causes."""

from dataclasses import replace

import numpy as np
import pytest
from generated import rectangles
from numpy.typing import NDArray

from segprior.augment import STRONGEST_NOISE, Augmentation
from segprior.data import Region, Scene
from segprior.errors import DatasetError, SettingError
from segprior.plots import Plot
from segprior.tiles import Mixture, TilePool, class_tilt
from segprior.tiles import pool_of as mixed
from segprior.windows import Window

REGION = Region(Scene("a", __file__, None), "train", "pairs")  # type: ignore[arg-type]  # never opened


def rare_plot(size: int = 192) -> Plot:
    """Class 1 on 1 % of the pixels, class 2 on none, a strip not labelled."""
    index = np.zeros((size, size), np.uint8)
    index[20 : 20 + size // 10, 30 : 30 + size // 10] = 1
    index[-8:] = 255
    return Plot(REGION, np.repeat(index[..., None], 3, axis=2) * 100, index)


def coloured_plot(bands: int, size: int = 96) -> Plot:
    """The first band is 200 where class 1 is and 0 elsewhere; the others are noise."""
    _, labels = rectangles(size, 0)
    index = (labels == 7).astype(np.uint8)
    image = np.random.default_rng(0).integers(0, 256, (size, size, bands), dtype=np.uint8)
    image[..., 0] = 200 * index
    return Plot(REGION, image, index)


def pool_of(*plots: Plot, size: int = 64, bands: int = 3) -> TilePool:
    return TilePool(plots, classes=3, size=size, bands=bands)


def changed(*plots: Plot, **change: float) -> TilePool:
    return TilePool(plots, classes=3, size=64, bands=3, augmentation=Augmentation(**change))


def shares(indices: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    counts = sum(np.bincount(i.ravel(), minlength=256)[:3] for i in indices)
    return np.asarray(counts / np.sum(counts))


def test_tiles_are_a_function_of_the_generator() -> None:
    one, other = pool_of(coloured_plot(3)), pool_of(coloured_plot(3))
    other.draw(np.random.default_rng(9))
    first = [one.draw(np.random.default_rng(n)) for n in (0, 1, 2)]
    again = [other.draw(np.random.default_rng(n)) for n in (0, 1, 2)]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.index, b.index)
    assert not np.array_equal(first[0].image, first[1].image)


@pytest.mark.parametrize("bands", [1, 3, 4, 7])
@pytest.mark.parametrize("side", [40, 96, 300])
def test_tiles_have_their_size_whatever_the_plots(bands: int, side: int) -> None:
    pool = pool_of(coloured_plot(bands, side), bands=bands)
    rng = np.random.default_rng(0)
    for _ in range(10):
        tile = pool.draw(rng)
        assert tile.image.shape == (64, 64, bands)
        assert tile.index.shape == (64, 64)
        assert tile.image.dtype == tile.index.dtype == np.uint8
        assert set(np.unique(tile.index)) <= {0, 1}


def test_what_the_image_lacks_is_turned_and_scaled_with_it() -> None:
    """Pixels without data are white, as nothing else; where scaling mixes the two, there is no data."""
    plot = coloured_plot(4)
    assert plot.image is not None
    seen = plot.index != 1
    plot = replace(plot, image=np.where(seen[..., None], np.uint8(10), np.uint8(255)), seen=seen)
    pool, rng = pool_of(plot, bands=4), np.random.default_rng(0)
    tiles = [pool.draw(rng) for _ in range(30)]
    assert all((t.image[t.seen] <= 11).all() for t in tiles)
    assert 0 < np.mean([t.seen.mean() for t in tiles]) < 1
    agree = [np.mean(t.seen == (t.index != 1)) for t in tiles]
    assert min(agree) > 0.85
    assert pool_of(coloured_plot(4), bands=4).draw(rng).seen.all()


def test_image_and_labels_are_turned_and_scaled_together() -> None:
    pool, rng = pool_of(coloured_plot(4), bands=4), np.random.default_rng(0)
    agree = [np.mean((t.image[..., 0] > 100) == (t.index == 1)) for t in (pool.draw(rng) for _ in range(50))]
    assert min(agree) > 0.95


@pytest.mark.parametrize(
    ("scale", "least", "most"),
    [(None, (0.47, 0.65), (1.6, 2.1)), (1.25, (0.76, 0.85), (1.18, 1.28)), (1.0, (0.98, 1.0), (0.98, 1.0))],
)
def test_tiles_come_in_every_orientation_and_scale(
    scale: float | None, least: tuple[float, float], most: tuple[float, float]
) -> None:
    """A ramp that rises by half a grey value a row and a column: its slopes give the turn and the scale."""
    ramp = np.indices((256, 256)).sum(axis=0) // 2
    wedge = Plot(REGION, np.repeat(ramp.astype(np.uint8)[..., None], 4, axis=2), np.zeros((256, 256), np.uint8))
    change = None if scale is None else Augmentation(scale=scale)
    pool = TilePool([wedge], classes=3, size=64, bands=4, augmentation=change)
    rng = np.random.default_rng(0)
    signs, slopes = set(), []
    for _ in range(60):
        image = pool.draw(rng).image[..., 0].astype(float)
        rows, cols = np.diff(image, axis=0).mean(), np.diff(image, axis=1).mean()
        signs.add((rows > 0, cols > 0))
        slopes.append(abs(rows) + abs(cols))
    assert len(signs) == 4, "flips and quarter turns"
    assert least[0] < min(slopes) <= least[1]
    assert most[0] < max(slopes) <= most[1]


def test_colours_change_where_there_are_three_bands() -> None:
    flat = Plot(REGION, np.full((128, 128, 3), 120, np.uint8), np.zeros((128, 128), np.uint8))
    rng = np.random.default_rng(0)
    means = np.array([pool_of(flat).draw(rng).image.mean(axis=(0, 1)) for _ in range(30)])
    assert means.std(axis=0).min() > 3
    four = Plot(REGION, np.full((128, 128, 4), 120, np.uint8), np.zeros((128, 128), np.uint8))
    assert (pool_of(four, bands=4).draw(rng).image == 120).all()


def test_what_a_plot_lacks_is_empty() -> None:
    full = coloured_plot(3)
    rng = np.random.default_rng(0)
    images = pool_of(Plot(REGION, full.image, None)).draw(rng)
    assert (images.index == 255).all()
    assert images.image.any()
    maps = pool_of(Plot(REGION, None, full.index)).draw_index(rng)
    assert set(np.unique(maps)) <= {0, 1}


def test_plots_are_drawn_by_area() -> None:
    """Imagery alone, so that no draw goes by class."""
    small, large = (Plot(REGION, np.full((n, n, 4), v, np.uint8), None) for n, v in ((64, 10), (192, 20)))
    pool, rng = pool_of(small, large, bands=4), np.random.default_rng(0)
    share = np.mean([pool.draw(rng).image[0, 0, 0] == 20 for _ in range(400)])
    assert share == pytest.approx(0.9, abs=0.05)


def test_tiles_of_labelled_parts_show_what_is_around_them() -> None:
    """The first two bands are the pixel's place, so a tile that was reflected would show a place twice."""
    place = np.stack(np.meshgrid(np.arange(200), np.arange(200), indexing="ij"), axis=2).astype(np.uint8)
    index = np.full((200, 200), 255, np.uint8)
    parts = (Window(0, 0, 40, 40), Window(70, 80, 32, 100))
    for number, part in enumerate(parts):
        index[part.row_slice, part.col_slice] = number
    plot = Plot(REGION, np.dstack([place, place]), index, parts=parts)
    pool = TilePool([plot], classes=2, size=64, bands=4, augmentation=Augmentation(scale=1.0))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(300):
        tile = pool.draw(rng)
        places = tile.image[..., :2].reshape(-1, 2)
        assert len(np.unique(places, axis=0)) == 64 * 64
        np.testing.assert_array_equal(tile.index.ravel(), index[tuple(places.T)])
        first = places.min(axis=0).astype(int)
        inside = [  # within a quarter of the side of lying inside, or of holding all
            all(
                min(a, b - 64) - 16 <= f <= max(a, b - 64) + 16
                for f, a, b in zip(first, (w.row, w.col), (w.row + w.height, w.col + w.width), strict=True)
            )
            for w in parts
        ]
        assert any(inside)
        drawn.append((*first, (tile.index < 2).mean()))
    rows, cols, labelled = np.array(drawn).T
    assert len(np.unique(rows)) > 30
    assert len(np.unique(cols)) > 60
    assert labelled.min() >= (16 / 64) * (32 / 64)
    assert pool.shares(2) == pytest.approx([1600 / 4800, 3200 / 4800])


def test_parts_are_drawn_by_area() -> None:
    """Half of the draws go by class, evenly over two; the other half by area, one to three."""
    index = np.full((96, 96), 255, np.uint8)
    parts = (Window(0, 0, 32, 32), Window(64, 0, 32, 96))
    for number, part in enumerate(parts):
        index[part.row_slice, part.col_slice] = number
    plot = Plot(REGION, np.zeros((96, 96, 4), np.uint8), index, parts=parts)
    pool = TilePool([plot], classes=2, size=32, bands=4, augmentation=Augmentation(scale=1.0))
    rng = np.random.default_rng(0)
    first = np.mean([(pool.draw_index(rng) == 0).any() for _ in range(600)])
    assert first == pytest.approx(0.5 * 0.5 + 0.5 * 0.25, abs=0.06)


def test_places_without_labels_are_passed_over() -> None:
    """Of imagery there are none to look for; of labels that lack everywhere neither."""
    index = np.full((400, 400), 255, np.uint8)
    index[300:304, 100:104] = 1
    image = np.zeros((400, 400, 4), np.uint8)
    rng = np.random.default_rng(0)
    sparse, bare, none = (pool_of(Plot(REGION, image, i), bands=4) for i in (index, np.full_like(index, 255), None))
    drawn = [(sparse.draw_index(rng) == 1).any() for _ in range(200)]
    assert np.mean(drawn) > 0.97  # some of what little there is gets lost where tiles are made smaller
    assert (bare.draw_index(rng) == 255).all()
    assert (none.draw_index(rng) == 255).all()


def test_rare_classes_are_seen_more_often() -> None:
    plot = rare_plot()
    assert plot.index is not None
    pool, rng = pool_of(plot), np.random.default_rng(0)
    drawn = [pool.draw_index(rng) for _ in range(400)]
    assert shares(drawn)[1] > 2.5 * shares([plot.index])[1]
    assert np.mean([(d == 1).any() for d in drawn]) > 0.25


def test_class_tilt_against_counting() -> None:
    """Divided by exp(tilt), the shares of freshly drawn tiles are those of the plots."""
    plot = rare_plot()
    assert plot.index is not None
    pool, rng = pool_of(plot), np.random.default_rng(123)
    tilt = class_tilt(pool, classes=3, tiles=1500)
    drawn = shares([pool.draw(rng).index for _ in range(1500)])
    untilted = drawn * np.exp(-tilt)
    np.testing.assert_allclose(untilted / untilted.sum(), shares([plot.index]), rtol=0.1)
    assert tilt[1] > 1
    assert tilt[0] < 0
    assert tilt[2] == 0, "a class that does not occur is not tilted"
    np.testing.assert_array_equal(tilt, class_tilt(pool, classes=3, tiles=1500))


def test_what_is_believed_is_turned_and_scaled_with_the_labels() -> None:
    plot = coloured_plot(3)
    assert plot.index is not None
    one_hot = np.stack([plot.index == k for k in range(3)], axis=2)
    pool, rng = pool_of(replace(plot, belief=np.where(one_hot, np.uint8(254), np.uint8(0)))), np.random.default_rng(0)
    for tile in (pool.draw(rng) for _ in range(20)):
        assert tile.belief is not None
        assert tile.belief.shape == (64, 64, 3)
        for k in range(3):
            assert np.mean((tile.belief[..., k] > 127) == (tile.index == k)) > 0.95
    assert pool_of(plot).draw(np.random.default_rng(0)).belief is None


def test_given_and_inferred_labels_are_drawn_equally_often() -> None:
    """However large the one and small the other; shares and tilt are those of the halves."""
    given, inferred = rare_plot(), coloured_plot(3, 32)
    assert given.index is not None
    assert inferred.index is not None
    inferred = replace(inferred, belief=np.full((32, 32, 3), 84, np.uint8))
    pool = mixed([given, inferred], classes=3, size=64, bands=3)
    assert isinstance(pool, Mixture)
    rng = np.random.default_rng(0)
    assert np.mean([pool.draw(rng).belief is None for _ in range(200)]) == pytest.approx(0.5, abs=0.1)
    both = (shares([given.index]) + shares([inferred.index])) / 2
    np.testing.assert_allclose(pool.shares(3), both)
    drawn = shares([pool.draw_index(rng) for _ in range(800)])
    untilted = drawn * np.exp(-class_tilt(pool, classes=3, tiles=1500))
    np.testing.assert_allclose(untilted / untilted.sum(), both, rtol=0.1)
    assert isinstance(mixed([given], classes=3, size=64, bands=3), TilePool)


def test_a_pool_needs_a_plot() -> None:
    with pytest.raises(DatasetError, match="at least one region"):
        pool_of()


def test_colours_change_as_strongly_as_asked() -> None:
    flat = Plot(REGION, np.full((128, 128, 3), 120, np.uint8), np.zeros((128, 128), np.uint8))
    rough = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    pool, rng = changed(replace(flat, image=rough), colour=0.0, scale=1.0), np.random.default_rng(0)
    for _ in range(60):  # a draw in ten is blurred at the usual strength, one in twenty is grey
        image = pool.draw(rng).image.astype(int)
        assert image.std() > 60
        assert abs(image[..., 0] - image[..., 1]).mean() > 60
    spread = []
    for strength in (0.0, 1.0, 2.0):
        pool, rng = changed(flat, colour=strength), np.random.default_rng(0)
        spread.append(np.mean([abs(pool.draw(rng).image.mean(axis=(0, 1)) - 120).mean() for _ in range(60)]))
    assert spread[0] < 0.5
    assert spread[1] > 3
    assert 1.5 * spread[1] < spread[2] < 2.5 * spread[1]


def test_cut_mix_puts_a_rectangle_of_another_tile_into_a_tile() -> None:
    """Image, labels, beliefs and nodata of a place come from the same plot; a share of the tiles hold two."""
    one, other = (
        Plot(
            REGION,
            np.full((128, 128, 3), 100 * value, np.uint8),
            np.full((128, 128), value, np.uint8),
            seen=np.full((128, 128), value == 1),
            belief=np.full((128, 128, 3), 10 * value, np.uint8),
        )
        for value in (1, 2)
    )
    rng, areas = np.random.default_rng(0), []
    pool = changed(one, other, colour=0.0, cut_mix=0.5)
    for _ in range(200):
        tile = pool.draw(rng)
        assert tile.belief is not None
        ones = tile.index == 1
        assert (abs(tile.image.astype(int) - np.where(ones, 100, 200)[..., None]) <= 1).all()
        assert (tile.seen == ones).all()
        assert (tile.belief == np.where(ones, 10, 20)[..., None]).all()
        areas.append(min(ones.mean(), 1 - ones.mean()))
    mixed_tiles = np.array([area for area in areas if area])
    assert 0.15 < len(mixed_tiles) / 200 < 0.35, "half of them, of which half hold the same plot twice"
    assert mixed_tiles.max() <= 0.52
    assert mixed_tiles.std() > 0.08


def test_without_cut_mix_tiles_are_drawn_as_ever() -> None:
    one, other = (
        Plot(REGION, np.full((128, 128, 3), v, np.uint8), np.full((128, 128), k, np.uint8))
        for v, k in ((9, 0), (200, 1))
    )
    pool, rng = changed(one, other), np.random.default_rng(0)
    assert all(len(np.unique(pool.draw(rng).index)) == 1 for _ in range(50))


def test_noise_is_white_zero_in_the_mean_and_only_where_there_is_data() -> None:
    """A share of the tiles of any number of bands has it, as strong as drawn, every band its own; labels have none."""
    flat = Plot(
        REGION,
        np.full((128, 128, 5), 120, np.uint8),
        np.zeros((128, 128), np.uint8),
        seen=np.broadcast_to(np.arange(128) < 64, (128, 128)).copy(),
    )
    pool = mixed([flat], classes=1, size=64, bands=5, augmentation=Augmentation(noise=0.5))
    rng, spread = np.random.default_rng(0), []
    for _ in range(120):
        tile = pool.draw(rng)
        assert (tile.index == 0).all()
        assert (tile.image[~tile.seen] == 120).all()
        off = tile.image[tile.seen].astype(float) - 120
        spread.append(off.std() / 255 if len(off) else 0.0)
        if spread[-1] > 0.02 and len(off) > 500:
            assert abs(off.mean()) < 5
            assert abs(np.corrcoef(off.T) - np.eye(5)).max() < 0.2
    noisy = np.array([s for s in spread if s])
    assert 0.3 < len(noisy) / 120 < 0.6, "half of the tiles, less those without a pixel of data"
    assert noisy.max() < STRONGEST_NOISE + 0.01
    assert noisy.max() > 0.8 * STRONGEST_NOISE
    assert noisy.mean() == pytest.approx(STRONGEST_NOISE / 2, abs=0.02)


def test_noise_is_drawn_from_the_given_generator_alone() -> None:
    plot = Plot(REGION, np.full((64, 64, 3), 120, np.uint8), np.zeros((64, 64), np.uint8))
    pool, other = changed(plot, colour=0.0, noise=1.0), changed(plot, colour=0.0)
    once, again = (pool.draw(np.random.default_rng(7)).image for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert (once != other.draw(np.random.default_rng(7)).image).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"colour": -0.1}, "a strength of colours from 0 to 4, got -0.1"),
        ({"colour": 5.0}, "a strength of colours from 0 to 4, got 5"),
        ({"cut_mix": 1.1}, "a share of tiles with cut-mix from 0 to 1, got 1.1"),
        ({"cut_mix": -1.0}, "a share of tiles with cut-mix from 0 to 1, got -1"),
        ({"noise": 1.1}, "a share of tiles with noise from 0 to 1, got 1.1"),
        ({"noise": -1.0}, "a share of tiles with noise from 0 to 1, got -1"),
        ({"scale": 0.5}, "a change of scale from 1 to 4, got 0.5"),
        ({"scale": 5.0}, "a change of scale from 1 to 4, got 5"),
    ],
)
def test_changes_that_make_no_sense_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(SettingError, match=f"wanted {said}"):
        Augmentation(**wrong)
