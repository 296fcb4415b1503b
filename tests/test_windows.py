import numpy as np
import pytest

from segprior.errors import SettingError
from segprior.windows import ALIGNMENT, Window, cover, taper

SETTINGS = [(256, 128), (256, 64), (128, 0), (64, 32), (32, 0), (96, 32)]


def test_window_indexes_arrays() -> None:
    raster = np.arange(30).reshape(5, 6)
    window = Window(1, 2, 3, 4)
    assert raster[window.row_slice, window.col_slice].tolist() == [[8, 9, 10, 11], [14, 15, 16, 17], [20, 21, 22, 23]]


def test_intersection_cuts_what_sticks_out() -> None:
    assert Window(32, 64, 64, 64).intersection(50, 200) == Window(32, 64, 18, 64)
    assert Window(32, 64, 64, 64).intersection(200, 65) == Window(32, 64, 64, 1)
    with pytest.raises(SettingError, match="outside"):
        Window(32, 0, 64, 64).intersection(32, 64)


def test_a_window_holds_what_is_in_it() -> None:
    window = Window(1, 2, 3, 4)
    assert window.holds(window)
    assert window.holds(Window(3, 5, 1, 1))
    for other in (Window(0, 2, 2, 1), Window(1, 1, 1, 2), Window(3, 2, 2, 1), Window(1, 5, 1, 2)):
        assert not window.holds(other)


@pytest.mark.parametrize("numbers", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, -3)])
def test_malformed_window(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(SettingError):
        Window(*numbers)


@pytest.mark.parametrize(("size", "overlap"), SETTINGS)
def test_cover_keeps_its_promises_on_random_rasters(size: int, overlap: int) -> None:
    rng = np.random.default_rng(size + overlap)
    shapes = [*rng.integers(1, 900, size=(60, 2)).tolist(), [1, 1], [size, size], [size + 1, size - 1], [2 * size, 33]]
    for height, width in shapes:
        windows = cover(height, width, size=size, overlap=overlap)
        hits = np.zeros((height + ALIGNMENT, width + ALIGNMENT), dtype=int)
        for w in windows:
            assert all(number % ALIGNMENT == 0 for number in (w.row, w.col, w.height, w.width))
            assert w.row + w.height < height + ALIGNMENT
            assert w.col + w.width < width + ALIGNMENT
            assert w.height == min(size, -(-height // 32) * 32)
            hits[w.row_slice, w.col_slice] += 1
        assert hits[:height, :width].min() == 1
        assert len({(w.height, w.width) for w in windows}) == 1
        assert list(windows) == sorted(windows, key=lambda w: (w.row, w.col))
        assert len(set(windows)) == len(windows)
        for offsets in (sorted({w.row for w in windows}), sorted({w.col for w in windows})):
            assert all(step <= size - overlap for step in np.diff(offsets))


def test_cover_by_hand() -> None:
    # 300 - 128 = 172 rounds up to 192, which is a stride as well
    assert [w.col for w in cover(1, 300, size=128, overlap=64)] == [0, 64, 128, 192]
    # 260 - 128 = 132 rounds up to 160, between the strides 128 and 192
    assert [w.col for w in cover(1, 260, size=128, overlap=64)] == [0, 64, 128, 160]
    assert cover(40, 33, size=128, overlap=64) == (Window(0, 0, 64, 64),)


@pytest.mark.parametrize(
    ("size", "overlap"), [(0, 0), (-32, 0), (100, 0), (128, 50), (128, -32), (128, 96), (128, 128), (32, 32)]
)
def test_cover_refuses(size: int, overlap: int) -> None:
    with pytest.raises(SettingError):
        cover(500, 500, size=size, overlap=overlap)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_cover_refuses_empty_rasters(height: int, width: int) -> None:
    with pytest.raises(SettingError):
        cover(height, width, size=32, overlap=0)


def test_taper_ramps_are_raised_cosines() -> None:
    weight = taper(128, 96, 32)
    assert (weight.shape, weight.dtype) == ((128, 96), np.float32)
    # another form of the same ramp: half of one minus cosine, at pixel centres
    ramp = (1 - np.cos(np.pi * (np.arange(32) + 0.5) / 32)) / 2
    np.testing.assert_allclose(weight[:32, 48], ramp, rtol=1e-6)
    np.testing.assert_allclose(weight[64, -32:], ramp[::-1], rtol=1e-6)
    np.testing.assert_array_equal(weight[32:-32, 32:-32], 1)
    np.testing.assert_allclose(weight, weight[::-1, ::-1], rtol=1e-6)


@pytest.mark.parametrize(("size", "overlap"), [(256, 128), (256, 64), (64, 32)])
def test_tapers_of_regular_windows_sum_to_one(size: int, overlap: int) -> None:
    length = size + 3 * (size - overlap)
    total = np.zeros((length, length))
    for window in cover(length, length, size=size, overlap=overlap):
        total[window.row_slice, window.col_slice] += taper(size, size, overlap)
    inside = slice(overlap, length - overlap)
    np.testing.assert_allclose(total[inside, inside], 1, rtol=1e-6)


def test_taper_without_overlap_is_flat() -> None:
    np.testing.assert_array_equal(taper(32, 64, 0), np.ones((32, 64)))


@pytest.mark.parametrize(("height", "width", "overlap"), [(32, 32, 256), (32, 512, 256), (2048, 2048, 1024)])
def test_taper_is_never_zero(height: int, width: int, overlap: int) -> None:
    weight = taper(height, width, overlap)
    assert weight.min() > 0
    assert weight.max() <= 1
