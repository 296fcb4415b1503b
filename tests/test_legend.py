import json
from typing import Any

import numpy as np
import pytest

from segprior.errors import LegendError
from segprior.legend import Legend, LegendClass

ROOF = LegendClass("roof", 7, (255, 0, 0))
ROAD = LegendClass("road", 0, (90, 90, 90))
TREE = LegendClass("tree", 254, (0, 128, 0))
LEGEND = Legend((ROOF, ROAD, TREE), nodata=3)


def test_numbers_by_hand() -> None:
    values = np.array([[7, 0], [254, 3]], dtype=np.uint8)
    indices = LEGEND.to_index(values)
    assert indices.dtype == np.uint8
    assert indices.tolist() == [[0, 1], [2, 255]]
    assert LEGEND.to_value(indices).tolist() == values.tolist()
    assert (LEGEND.names, LEGEND.values, len(LEGEND)) == (("roof", "road", "tree"), (7, 0, 254), 3)
    assert LEGEND.index("tree") == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_there_and_back_on_random_rasters(dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(255)[:40]
    legend = Legend(tuple(LegendClass(f"class {v}", int(v), (0, 0, 0)) for v in values))
    raster = rng.choice(np.append(values, 255), size=(33, 70)).astype(dtype)
    indices = legend.to_index(raster)
    expected = np.full(raster.shape, 255)
    for index, value in enumerate(values):
        expected[raster == value] = index
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(legend.to_value(indices), raster)


def test_all_255_values_keep_nodata_apart() -> None:
    legend = Legend(tuple(LegendClass(str(v), v, (0, 0, 0)) for v in range(255)))
    np.testing.assert_array_equal(legend.to_index(np.arange(256)), np.arange(256))


def test_empty_array() -> None:
    assert LEGEND.to_index(np.zeros((0, 4), dtype=np.uint8)).shape == (0, 4)


@pytest.mark.parametrize(
    ("array", "named"),
    [([7, 9, 8, 9], "value 8, 9;"), ([-1, 300], "value -1, 300;"), (list(range(10, 30)), "16, 17, ...;")],
)
def test_values_of_no_class_are_named(array: list[int], named: str) -> None:
    with pytest.raises(LegendError, match=named):
        LEGEND.to_index(np.array(array))


def test_indices_of_no_class_are_named() -> None:
    with pytest.raises(LegendError, match="index 3;"):
        LEGEND.to_value(np.array([0, 3]))


def test_fractions_are_refused() -> None:
    with pytest.raises(LegendError, match="float64"):
        LEGEND.to_index(np.array([7.0]))


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(LegendError, match=r"'rood'.*roof, road, tree"):
        LEGEND.index("rood")


def test_colormap_hides_nodata() -> None:
    assert LEGEND.colormap() == {7: (255, 0, 0, 255), 0: (90, 90, 90, 255), 254: (0, 128, 0, 255), 3: (0, 0, 0, 0)}


def test_dict_survives_json() -> None:
    assert Legend.from_dict(json.loads(json.dumps(LEGEND.to_dict()))) == LEGEND
    assert Legend.from_dict({"classes": LEGEND.to_dict()["classes"]}) == Legend(LEGEND.classes, nodata=255)


@pytest.mark.parametrize(
    ("name", "value", "color"),
    [
        ("", 1, (0, 0, 0)),
        (" ", 1, (0, 0, 0)),
        (5, 1, (0, 0, 0)),
        ("a", 255, (0, 0, 0)),
        ("a", -1, (0, 0, 0)),
        ("a", 1.0, (0, 0, 0)),
        ("a", True, (0, 0, 0)),
        ("a", 1, (0, 0, 256)),
        ("a", 1, (0, 0)),
        ("a", 1, "red"),
        ("a", 1, (0.0, 0, 0)),
    ],
)
def test_malformed_class(name: Any, value: Any, color: Any) -> None:
    with pytest.raises(LegendError):
        LegendClass(name, value, color)


@pytest.mark.parametrize(
    ("classes", "nodata", "said"),
    [
        ((ROOF,), 255, "two classes"),
        ((ROOF, LegendClass("roof", 1, (0, 0, 0))), 255, "names"),
        ((ROOF, LegendClass("wall", 7, (0, 0, 0))), 255, "values"),
        ((ROOF, ROAD), 7, "also the value"),
        ((ROOF, ROAD), 256, "from 0 to 255"),
    ],
)
def test_contradictions(classes: tuple[LegendClass, ...], nodata: int, said: str) -> None:
    with pytest.raises(LegendError, match=said):
        Legend(classes, nodata=nodata)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"classes": None},
        {"classes": [], "nodata": 255},
        {"classes": ["roof", "road"]},
        {"classes": [{"name": "roof", "value": 1}, {"name": "road", "value": 2}]},
        {"classes": [{"name": "roof", "value": 1, "colour": [0, 0, 0], "color": [0, 0, 0]}]},
        {"classes": LEGEND.to_dict()["classes"], "no_data": 3},
        {"classes": LEGEND.to_dict()["classes"], "nodata": "3"},
    ],
)
def test_malformed_dict(data: Any) -> None:
    with pytest.raises(LegendError):
        Legend.from_dict(data)
