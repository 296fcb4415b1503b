"""Pictures: colours against the legend, PNG files read back with GDAL."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from matplotlib.figure import Figure
from rasterio.errors import NotGeoreferencedWarning

from segprior.errors import LegendError, OutputError, SettingError
from segprior.legend import Legend, LegendClass
from segprior.picture import NO_COLOUR, Panel, colour, loss_curve, panels, rgb, shade, smoothed

LEGEND = Legend((LegendClass("land", 3, (200, 180, 40)), LegendClass("roof", 0, (214, 69, 65))), nodata=7)


def read_png(path: Path) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        dataset = rasterio.open(path)
    with dataset:
        assert dataset.driver == "PNG"
        return np.moveaxis(dataset.read([1, 2, 3]), 0, 2)


def share(image: npt.NDArray[np.uint8], color: tuple[int, int, int]) -> float:
    return float((image == np.array(color)).all(axis=2).mean())


def test_classes_are_painted_in_the_legends_colours() -> None:
    painted = colour(np.array([[0, 1, 255]], np.uint8), LEGEND)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[200, 180, 40], [214, 69, 65], list(NO_COLOUR)]]
    with pytest.raises(LegendError, match="index 2"):
        colour(np.array([[2]], np.uint8), LEGEND)


def test_confidence_gets_lighter_and_gaps_are_white() -> None:
    painted = shade(np.array([[0.0, 0.25, 0.5, 0.75, 1.0, np.nan]], np.float32))
    lightness = painted[0, :5] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()
    assert tuple(painted[0, 5]) == NO_COLOUR


@pytest.mark.parametrize(("bands", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_bands_to_look_at(bands: int, shown: list[int]) -> None:
    stack = np.broadcast_to(np.arange(bands, dtype=np.uint8)[:, None, None], (bands, 2, 3))
    assert rgb(stack).shape == (2, 3, 3)
    assert rgb(stack)[1, 2].tolist() == shown


def test_panels_hold_the_images_and_the_key(tmp_path: Path) -> None:
    index = np.zeros((40, 60), np.uint8)
    blue = np.broadcast_to(np.array([10, 20, 250], np.uint8), (40, 60, 3))
    without, with_key = tmp_path / "without.png", tmp_path / "with.png"
    items = [Panel("labels", colour(index, LEGEND)), Panel("scene", blue), Panel("sure", blue, bar=True)]
    panels(without, items, None)
    panels(with_key, items, LEGEND, gaps=True)
    plain, keyed = read_png(without), read_png(with_key)
    assert plain.shape[1] > 2 * plain.shape[0], "three panels stand in a row"
    assert share(plain, (200, 180, 40)) > 0.1
    assert share(plain, (10, 20, 250)) > 1.9 * share(plain, (200, 180, 40))
    assert share(plain, (214, 69, 65)) == 0, "no pixel is a roof"
    assert share(keyed, (214, 69, 65)) > 0, "but the key explains roofs"
    assert keyed.shape[0] > plain.shape[0]


def test_panels_in_columns(tmp_path: Path) -> None:
    one = Panel("one", np.full((30, 30, 3), 9, np.uint8))
    panels(tmp_path / "tall.png", [one] * 3, None, columns=1)
    height, width = read_png(tmp_path / "tall.png").shape[:2]
    assert height > 2 * width
    with pytest.raises(SettingError, match="0 panels"):
        panels(tmp_path / "none.png", [], None)
    with pytest.raises(SettingError, match="uint8"):
        Panel("wrong", np.zeros((3, 4, 4), np.uint8))


def test_an_existing_picture_stays_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "loss.png"
    target.write_text("old")
    with pytest.raises(OutputError, match="exists"):
        loss_curve(target, [(1, 1.0, 1.0, 1.0)])
    assert target.read_text() == "old"
    loss_curve(target, [(1, 1.0, 1.0, 1.0)], overwrite=True)
    assert read_png(target).shape == (600, 800, 3)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".xml"] == ["loss.png"]


def test_loss_curve_with_gaps_and_validations(tmp_path: Path) -> None:
    history = [(step, 2 / step, float("nan"), 1e6 if step == 3 else 1.0) for step in range(1, 300)]
    loss_curve(tmp_path / "a.png", history, [(100, 0.4, 0.5), (200, 0.5, 0.55)])
    loss_curve(tmp_path / "b.png", [(1, float("nan"), float("nan"), float("nan"))])
    assert not np.array_equal(read_png(tmp_path / "a.png"), read_png(tmp_path / "b.png"))
    with pytest.raises(SettingError, match="one step"):
        loss_curve(tmp_path / "c.png", [])


@pytest.mark.parametrize(("later", "few", "counts"), [(np.nan, 0.4, [1, 1]), (np.nan, 0.5, [1, 2]), (1.0, 0.5, [2, 2])])
def test_a_loss_curve_names_what_there_is(
    later: float, few: float, counts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr("segprior.picture._save", lambda figure, *_, **__: kept.append(figure))
    loss_curve(tmp_path / "a.png", [(1, 1.0, np.nan, np.nan), (2, 1.0, later, np.nan)], [(1, 0.4, few)])
    named = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in kept[0].axes]
    assert [len(names) for names in named] == counts
    assert named[0][0].startswith("labels at pure noise")
    assert named[1][0] == "one step"


@pytest.mark.parametrize(("score", "span"), [(0.4001, 5.0), (0.7, 30.0)])
def test_scores_that_hardly_differ_do_not_fill_the_axis(
    score: float, span: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr("segprior.picture._save", lambda figure, *_, **__: kept.append(figure))
    loss_curve(tmp_path / "a.png", [(1, 1.0, 1.0, 1.0)], [(1, 0.4, score)])
    low, high = kept[0].axes[1].get_ylim()
    assert low < 40 <= 100 * score < high
    assert span <= high - low + 1e-9 < 1.2 * span


def test_smoothing_keeps_a_constant_and_follows_a_step() -> None:
    assert smoothed(np.full(20, 3.0), span=5) == pytest.approx(3.0)
    step = np.repeat([0.0, 1.0], 50)
    after = smoothed(step, span=10)
    assert after[:50] == pytest.approx(0)
    # after n steps of 1 the old level weighs (1 - 1/span)^n, up to the weights lost at the start
    assert after[59] == pytest.approx(1 - 0.9**10, abs=0.01)
    assert np.isnan(smoothed(np.array([np.nan, 2.0, np.nan]), span=2)[0])
    assert smoothed(np.array([np.nan, 2.0, np.nan]), span=2)[1:] == pytest.approx(2.0)
