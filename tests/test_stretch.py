"""Stretches: numpy's percentiles, from a bounded sample; a straight line, clipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rasters import checkered, write_raster

from segprior import stretch as stretch_module
from segprior.errors import RasterError, SettingError
from segprior.raster import open_raster
from segprior.stretch import Stretch, stretch_of


def found(path: Path, bands: tuple[int, ...] = (1, 2, 3)) -> Stretch:
    with open_raster(path) as dataset:
        return stretch_of(dataset, bands)


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32", "float64"])
def test_a_small_raster_has_the_percentiles_of_all_its_pixels(tmp_path: Path, kind: str) -> None:
    pixels = (checkered(3, 200, 170) * 11.0 - 300 * (kind != "uint16")).astype(kind)
    stretch = found(write_raster(tmp_path / "a.tif", pixels), (3, 1))
    low, high = np.percentile(pixels[[2, 0]].reshape(2, -1).astype(float), (2, 98), axis=1)
    assert stretch.low == pytest.approx(low)
    assert stretch.high == pytest.approx(high)


def test_pixels_without_data_do_not_count(tmp_path: Path) -> None:
    pixels = checkered(3, 100, 90).astype(np.float32)
    wanted = np.percentile(pixels[:, 20:].reshape(3, -1), (2, 98), axis=1)
    pixels[:, :10], pixels[1, 10:20] = -9999, np.nan
    stretch = found(write_raster(tmp_path / "a.tif", pixels, nodata=-9999))
    assert [stretch.low, stretch.high] == [pytest.approx(ends, rel=1e-6) for ends in wanted]


def test_a_large_raster_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom and from left to right, some pixels of it, and what comes out is near the whole's."""
    pixels = (np.add.outer(np.arange(2100), np.arange(1500))[None] * 9).astype(np.uint16)
    read: list[npt.NDArray[Any]] = []
    read_window = stretch_module.read_window

    def counted(*given: Any, **more: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        read.append((answer := read_window(*given, **more))[0])
        return answer

    monkeypatch.setattr(stretch_module, "read_window", counted)
    stretch = found(write_raster(tmp_path / "a.tif", pixels, compress="deflate"), (1,))
    assert sum(part.size for part in read) == 1 << 20
    assert min(part.min() for part in read) == pixels.min()
    assert max(part.max() for part in read) == pixels.max()
    span = float(np.ptp(pixels))
    for end, percent in ((stretch.low, 2), (stretch.high, 98)):
        assert end[0] == pytest.approx(np.percentile(pixels, percent), abs=0.02 * span)


def test_it_is_a_clipped_straight_line() -> None:
    stretch = Stretch((100.0, 0.0), (300.0, 1.0))
    values = np.array([[[100, 200, 300, 99, 301]], [[0, 0.5, 1, np.nan, np.inf]]], np.float32)
    out = stretch(values)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[[0, 127.5, 255, 0, 255]], [[0, 127.5, 255, 0, 0]]])
    whole = np.array([[[0, 65535]]], np.uint16)
    np.testing.assert_allclose(Stretch((0.0,), (65535.0,))(whole), [[[0, 255]]])
    assert whole.tolist() == [[[0, 65535]]], "what came in stays as it was"
    deep = np.array([[[2**31 - 2, 2**31 - 1]]], np.int32)
    np.testing.assert_allclose(Stretch((2.0**31 - 2,), (2.0**31 - 1,))(deep), [[[0, 255]]])


def test_a_flat_band_and_an_empty_raster(tmp_path: Path) -> None:
    flat = found(write_raster(tmp_path / "a.tif", np.full((1, 40, 40), 700, np.uint16)), (1,))
    assert (flat.low, flat.high) == ((700.0,), (701.0,))
    with pytest.raises(RasterError, match="met none in a sample; give the scale"):
        found(write_raster(tmp_path / "b.tif", np.zeros((1, 40, 40), np.uint16), nodata=0), (1,))


def test_what_is_written_down_is_read_again() -> None:
    for stretch in (Stretch((0.0,), (3000.0,)), Stretch((-1.5, 1e-3), (2.25, 40123.0))):
        assert Stretch.parse(str(stretch)) == stretch
    assert Stretch.parse("0,3000").of_bands(3) == Stretch((0.0,) * 3, (3000.0,) * 3)
    assert Stretch.parse("0,1,2,3") == Stretch((0.0, 2.0), (1.0, 3.0))


@pytest.mark.parametrize("text", ["", "3000", "0,1,2", "a,b", "5,5", "9,1", "0,nan", "-inf,1"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(SettingError, match="wanted a scale"):
        Stretch.parse(text)


def test_a_pair_for_each_band_or_one_for_all() -> None:
    with pytest.raises(SettingError, match="one pair or 3, one per band, got 2"):
        Stretch((0.0, 0.0), (1.0, 1.0)).of_bands(3)
