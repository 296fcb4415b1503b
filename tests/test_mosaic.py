from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from segprior.errors import SettingError
from segprior.mosaic import Strip, Tile, blend
from segprior.windows import Window, cover, taper

SHAPES = [
    (40, 33, 128, 64),
    (300, 260, 128, 64),
    (97, 500, 96, 32),
    (260, 100, 64, 0),
    (1, 1, 32, 0),
    (256, 256, 64, 32),
]


def random_tiles(height: int, width: int, *, size: int, overlap: int, holes: float = 0.3) -> list[Tile]:
    """Tiles that disagree where they overlap, with NaN under what is not valid."""
    rng = np.random.default_rng(height * 1000 + width)
    tiles = []
    for window in cover(height, width, size=size, overlap=overlap):
        shape = (window.height, window.width)
        valid = rng.random(shape) >= holes
        values = np.where(valid, rng.normal(size=(3, *shape)), np.nan).astype(np.float32)
        tiles.append(Tile(window, values, valid))
    return tiles


def whole_average(
    tiles: list[Tile], height: int, width: int, overlap: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The definition, over arrays of the whole raster at once and in double precision."""
    total, weight = np.zeros((3, height + 32, width + 32)), np.zeros((height + 32, width + 32))
    for tile in tiles:
        w = taper(tile.window.height, tile.window.width, overlap).astype(float) * tile.valid
        place = (tile.window.row_slice, tile.window.col_slice)
        total[:, *place] += np.nan_to_num(tile.values.astype(float)) * w
        weight[place] += w
    total, weight = total[:, :height, :width], weight[:height, :width]
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), 0), weight > 0


@pytest.mark.parametrize(("height", "width", "size", "overlap"), SHAPES)
@pytest.mark.parametrize("holes", [0.0, 0.7])
def test_equals_the_average_over_the_whole_raster(
    height: int, width: int, size: int, overlap: int, holes: float
) -> None:
    tiles = random_tiles(height, width, size=size, overlap=overlap, holes=holes)
    expected, expected_valid = whole_average(tiles, height, width, overlap)
    row = 0
    for strip in blend(tiles, height=height, width=width, overlap=overlap):
        rows = strip.values.shape[1]
        assert (strip.row, strip.valid.shape, strip.values.dtype) == (row, (rows, width), np.float32)
        np.testing.assert_array_equal(strip.valid, expected_valid[row : row + rows])
        np.testing.assert_allclose(strip.values, expected[:, row : row + rows], rtol=1e-4, atol=1e-5)
        row += rows
    assert row == height


def test_agreeing_tiles_give_back_the_raster() -> None:
    raster = np.random.default_rng(1).random((2, 224, 320)).astype(np.float32)
    tiles = [
        Tile(w, raster[:, w.row_slice, w.col_slice], np.ones((w.height, w.width), dtype=bool))
        for w in cover(224, 320, size=96, overlap=32)
    ]
    strips = list(blend(tiles, height=224, width=320, overlap=32))
    np.testing.assert_allclose(np.concatenate([strip.values for strip in strips], axis=1), raster, rtol=1e-5)
    assert all(strip.valid.all() for strip in strips)


def test_tiles_without_any_valid_pixel() -> None:
    (strip,) = blend(random_tiles(32, 32, size=32, overlap=0, holes=1.1), height=32, width=32, overlap=0)
    assert not strip.valid.any()
    assert not strip.values.any()


def test_rows_are_handed_out_as_soon_as_they_are_final() -> None:
    taken: list[Window] = []

    def tiles() -> Iterator[Tile]:
        for tile in random_tiles(640, 100, size=64, overlap=32):
            taken.append(tile.window)
            yield tile

    for strip in blend(tiles(), height=640, width=100, overlap=32):
        # one tile of the next window row had to be seen, no more
        assert strip.row + strip.values.shape[1] in (taken[-1].row, 640)


def strips_of(tiles: list[Tile], *, height: int = 64, width: int = 32) -> list[Strip]:
    return list(blend(tiles, height=height, width=width, overlap=0))


def flat(row: int, *, channels: int = 1) -> Tile:
    return Tile(Window(row, 0, 32, 32), np.zeros((channels, 32, 32), np.float32), np.ones((32, 32), dtype=bool))


@pytest.mark.parametrize(
    "tiles",
    [
        [],
        [flat(0)],
        [flat(32)],
        [flat(0), flat(32), flat(0)],
        [flat(0), flat(32, channels=2)],
        [flat(0), flat(32), flat(64)],
    ],
    ids=["none", "end missing", "start missing", "upwards", "channels", "outside"],
)
def test_refuses(tiles: list[Tile]) -> None:
    assert len(strips_of([flat(0), flat(32)])) == 2
    with pytest.raises(SettingError):
        strips_of(tiles)


@pytest.mark.parametrize(("values", "valid"), [((32, 32), (32, 32)), ((1, 32, 31), (32, 32)), ((1, 32, 32), (32, 31))])
def test_malformed_tile(values: tuple[int, ...], valid: tuple[int, ...]) -> None:
    with pytest.raises(SettingError):
        Tile(Window(0, 0, 32, 32), np.zeros(values, np.float32), np.zeros(valid, dtype=bool))
