"""Patches traced band by band, against the raster traced at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from rasterio.features import shapes
from rasters import write_raster
from scipy import ndimage

from segprior import trace as trace_module
from segprior.patchwork import bands
from segprior.raster import open_raster
from segprior.trace import Patch, patches


def noise(shape: tuple[int, int], grain: float, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Three classes in blobs of about `grain` pixels, and some pixels without data."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), grain)
    classes = np.digitize(smooth / max(float(smooth.std()), 1e-6), (-0.4, 0.5)).astype(np.uint8) * 2
    classes[ndimage.gaussian_filter(rng.standard_normal(shape), 3) > 0.12] = 255
    return classes


def spiral(size: int) -> npt.NDArray[np.uint8]:
    """One patch that winds inwards through every band, and what it winds around."""
    field = np.zeros((size, size), np.uint8)
    field[0] = 1
    row, col, length = 0, size - 1, size - 1
    for turn in range(size):
        drow, dcol = ((1, 0), (0, -1), (-1, 0), (0, 1))[turn % 4]
        for _ in range(length):
            row, col = row + drow, col + dcol
            field[row, col] = 1
        length = max(0, length - 2 * (turn % 2))
    return field


def traced(path: Path, rows: int, **wishes: Any) -> list[Patch]:
    with open_raster(path) as dataset:
        return list(patches(bands(dataset, rows=rows), height=dataset.height, **wishes))


def at_once(values: npt.NDArray[np.uint8], dropped: tuple[int, ...] = ()) -> list[tuple[int, shapely.Polygon]]:
    mask = (values != 255) & ~np.isin(values, dropped)
    return [(int(v), shapely.geometry.shape(g)) for g, v in shapes(values, mask=mask, connectivity=4)]


def told(found: list[tuple[int, shapely.Polygon]]) -> list[tuple[Any, ...]]:
    """What tells one set of patches from another, whatever their order and where their rings begin."""
    return sorted((v, *o.bounds, o.area, o.length, len(o.interiors)) for v, o in found)


@pytest.mark.parametrize("rows", [1, 7, 64, 512])
@pytest.mark.parametrize("grain", [0.1, 1.0, 6.0])
def test_bands_do_not_matter(tmp_path: Path, rows: int, grain: float) -> None:
    values = noise((150, 97), grain)
    found = [(p.value, p.outline) for p in traced(write_raster(tmp_path / "a.tif", values[None], nodata=255), rows)]
    expected = at_once(values)
    assert told(found) == told(expected)
    by_place = {(v, o.bounds, o.area): o for v, o in expected}
    for value, outline in found:
        assert outline.is_valid
        assert outline.equals(by_place[value, outline.bounds, outline.area])


@pytest.mark.parametrize("rows", [1, 4, 9, 64])
def test_a_patch_may_wind_through_all_bands(tmp_path: Path, rows: int) -> None:
    values = spiral(41)
    found = traced(write_raster(tmp_path / "a.tif", values[None]), rows)
    expected = at_once(values)
    assert told([(p.value, p.outline) for p in found]) == told(expected)
    corners = {value: len(shapely.get_coordinates(outline)) for value, outline in expected}
    assert {p.value: len(shapely.get_coordinates(p.outline)) for p in found} == pytest.approx(corners, abs=1)


def test_what_is_dropped_leaves_holes(tmp_path: Path) -> None:
    values = noise((80, 90), 4.0)
    found = traced(write_raster(tmp_path / "a.tif", values[None], nodata=255), 30, dropped=(2,))
    assert told([(p.value, p.outline) for p in found]) == told(at_once(values, (2,)))
    assert {p.value for p in found} == {0, 4}


def test_only_open_patches_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raster of small patches, however high, holds few at a time."""
    held: list[int] = []
    finished = trace_module._finished

    def watched(parts: dict[int, Any], *rest: Any, **more: Any) -> Any:
        yield from finished(parts, *rest, **more)
        held.append(len(parts))

    monkeypatch.setattr(trace_module, "_finished", watched)
    values = (np.add.outer(np.arange(400) // 3, np.arange(60) // 3) % 3).astype(np.uint8)
    told_of: list[tuple[int, int]] = []
    found = traced(
        write_raster(tmp_path / "a.tif", values[None]), 20, progress=lambda done, rows: told_of.append((done, rows))
    )
    assert len(found) == len(at_once(values))
    assert max(held) <= 2 * 60
    assert held[-1] == 0
    assert told_of == [(n, 400) for n in range(20, 401, 20)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
def test_thin_rasters(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = noise(shape, 0.1)
    values[0, 0] = 2
    found = traced(write_raster(tmp_path / "a.tif", values[None], nodata=255), 4)
    assert told([(p.value, p.outline) for p in found]) == told(at_once(values))
