"""Evaluation with a small random prior: scikit-learn scores the written mask the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasters import checkered, write_raster
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from tiny import LEGEND, tiny_prior

import segprior.evaluate as module
from segprior.boundary import boundary_counts
from segprior.data import Dataset, load_dataset
from segprior.errors import DatasetError, LegendError, RasterError, SegpriorError, SettingError
from segprior.evaluate import SceneResult, evaluate, evaluate_pair, pooled, report
from segprior.legend import Legend
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.segmentation import segment

QUICK = Options(solver=FixedPoint(times=(1.0,)), tile_size=64, overlap=32)
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
UTM = {"crs": CRS.from_epsg(32645), "transform": PLACE}
HEIGHT, WIDTH = 80, 70


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image without data in its first rows and labels with gaps, no better than chance but for a part."""
    folder = tmp_path_factory.mktemp("pair")
    pixels = np.maximum(checkered(3, HEIGHT, WIDTH), 1)
    pixels[:, :6] = 0
    write_raster(folder / "image.tif", pixels, nodata=0, **UTM)
    labels = np.random.default_rng(2).choice([0, 2, 4, 255], (1, HEIGHT, WIDTH), p=[0.5, 0.2, 0.2, 0.1])
    labels[:, :, :30] = 0
    write_raster(folder / "labels.tif", labels.astype(np.uint8), nodata=255, **UTM)
    return folder


def read(path: Path) -> npt.NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def relabelled(folder: Path, path: Path, *, rows: slice = slice(None), **profile: Any) -> Path:
    """The labels again, on another grid."""
    return write_raster(path, read(folder / "labels.tif")[:, rows], **(UTM | {"nodata": 255} | profile))


def test_scores_are_those_of_the_written_mask(prior: Path, folder: Path, tmp_path: Path) -> None:
    found = evaluate_pair(folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK)
    segment(
        folder / "image.tif",
        tmp_path / "mask.tif",
        prior=prior,
        options=QUICK,
        confidence=tmp_path / "sure.tif",
    )
    truth, mask, sure = (read(p)[0] for p in (folder / "labels.tif", tmp_path / "mask.tif", tmp_path / "sure.tif"))
    counted = (truth != 255) & (mask != 255)
    assert not counted[:6].any()
    true, given, values = truth[counted], mask[counted], LEGEND.values
    assert found.name == str(folder / "image.tif")
    np.testing.assert_array_equal(found.confusion, confusion_matrix(true, given, labels=values))
    scores = found.scores
    np.testing.assert_allclose(scores.iou, jaccard_score(true, given, labels=values, average=None, zero_division=0))
    np.testing.assert_allclose(scores.f1, f1_score(true, given, labels=values, average=None, zero_division=0))
    assert scores.accuracy == pytest.approx(accuracy_score(true, given))
    right = true == given
    place = np.clip(np.ceil(sure[counted] * 15).astype(int) - 1, 0, 14)
    gaps = [abs(right[place == b].sum() - sure[counted][place == b].sum(dtype=float)) for b in range(15)]
    assert found.calibration.ece == pytest.approx(sum(gaps) / counted.sum(), abs=1e-5)


def test_classes_of_the_labels_may_come_in_another_order(prior: Path, folder: Path, tmp_path: Path) -> None:
    """The same classes with other values in another order: the counts stay in the prior's order."""
    wanted = evaluate_pair(folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK)
    classes = tuple(replace(c, value=v) for c, v in zip(LEGEND.classes[::-1], (9, 0, 7), strict=True))
    legend = Legend(classes, nodata=200)
    values = legend.values[::-1]
    labels = read(folder / "labels.tif")
    other = np.select([labels == v for v in LEGEND.values], values, 200).astype(np.uint8)
    path = write_raster(tmp_path / "other.tif", other, **UTM)
    found = evaluate_pair(folder / "image.tif", path, prior=prior, options=QUICK, legend=legend)
    np.testing.assert_array_equal(found.confusion, wanted.confusion)
    assert found.calibration.ece == pytest.approx(wanted.calibration.ece)


@pytest.mark.parametrize(
    ("profile", "rows"),
    [
        ({}, slice(1, None)),
        ({"transform": PLACE @ Affine.translation(1, 0)}, slice(None)),
        ({"transform": PLACE @ Affine.scale(2)}, slice(None)),
        ({"crs": CRS.from_epsg(32644)}, slice(None)),
    ],
)
def test_labels_on_another_grid(
    prior: Path, folder: Path, tmp_path: Path, profile: dict[str, Any], rows: slice
) -> None:
    labels = relabelled(folder, tmp_path / "labels.tif", rows=rows, **profile)
    with pytest.raises(RasterError, match=r"labels on the grid of.*warp them first"):
        evaluate_pair(folder / "image.tif", labels, prior=prior, options=QUICK)


def test_labels_that_lie_a_hair_off_or_have_no_place_are_taken(prior: Path, folder: Path, tmp_path: Path) -> None:
    wanted = evaluate_pair(folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK).confusion
    near = relabelled(folder, tmp_path / "near.tif", transform=PLACE @ Affine.translation(0.05, 0))
    nowhere = relabelled(folder, tmp_path / "nowhere.tif", crs=None, transform=Affine.identity())
    for labels in (near, nowhere):
        found = evaluate_pair(folder / "image.tif", labels, prior=prior, options=QUICK)
        np.testing.assert_array_equal(found.confusion, wanted)


def test_a_class_that_the_file_calls_nodata_is_a_class(prior: Path, folder: Path, tmp_path: Path) -> None:
    """Many tools tag rasters with 0, whatever it means."""
    wanted = evaluate_pair(folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK).confusion
    tagged = relabelled(folder, tmp_path / "tagged.tif", nodata=0)
    found = evaluate_pair(folder / "image.tif", tagged, prior=prior, options=QUICK).confusion
    assert wanted[0].sum() > 0
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("tolerance", [-1.0, np.nan, np.inf])
def test_a_tolerance_is_refused_before_any_work(
    prior: Path, folder: Path, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "strips", lambda *_, **__: pytest.fail("nothing is segmented"))
    with pytest.raises(SettingError, match="wanted a tolerance of 0 metres or more, got"):
        evaluate_pair(folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK, tolerance=tolerance)


def test_labels_that_do_not_fit_the_prior(prior: Path, folder: Path, tmp_path: Path) -> None:
    strange = read(folder / "labels.tif")
    strange[0, 40, 40] = 77
    path = write_raster(tmp_path / "strange.tif", strange, nodata=255, **UTM)
    with pytest.raises(LegendError, match="77"):
        evaluate_pair(folder / "image.tif", path, prior=prior, options=QUICK)
    fractions = write_raster(tmp_path / "fractions.tif", strange.astype(np.float32), nodata=255, **UTM)
    with pytest.raises(LegendError, match="whole numbers"):
        evaluate_pair(folder / "image.tif", fractions, prior=prior, options=QUICK)
    other = Legend(LEGEND.classes[:2])
    with pytest.raises(SettingError, match="labels of the prior's classes"):
        evaluate_pair(folder / "image.tif", path, prior=prior, options=QUICK, legend=other)


# Data sets.

WINDOW = (24, 8, 40, 50)


def write_set(folder: Path, place: Path, *, order: int = 1, extra: str = "") -> Dataset:
    """A set of a whole scene and a window of another, its classes in the prior's order or backwards."""
    lines = [f'name = "small"\nres = 0.5\n{extra}']
    for c in LEGEND.classes[::order]:
        lines.append(f'[[classes]]\nname = "{c.name}"\nvalue = {c.value}\ncolor = {list(c.color)}\n')
    for name in ("one", "two"):
        image, labels = folder / "image.tif", folder / "labels.tif"
        lines.append(f'[[scenes]]\nname = "{name}"\nimage = "{image}"\nlabels = "{labels}"\n')
    lines.append('[[windows]]\nscene = "one"\nsplit = "val"\n')
    lines.append(f'[[windows]]\nscene = "two"\nsplit = "val"\nwindow = {list(WINDOW)}\n')
    lines.append('[[windows]]\nscene = "two"\nsplit = "train"\nuse = "images"\nwindow = [0, 0, 20, 20]\n')
    (place / "dataset.toml").write_text("".join(lines), encoding="utf-8")
    return load_dataset(str(place / "dataset.toml"))


def test_a_split_scene_by_scene(prior: Path, folder: Path, tmp_path: Path) -> None:
    results = list(evaluate(write_set(folder, tmp_path), "val", prior=prior, options=QUICK))
    assert [r.name for r in results] == ["one", "two"]
    whole = evaluate_pair(folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK)
    np.testing.assert_array_equal(results[0].confusion, whole.confusion)
    total = pooled(results)
    assert total.name == "pooled"
    np.testing.assert_array_equal(total.confusion, results[0].confusion + results[1].confusion)
    count = sum(r.calibration.count for r in results)
    np.testing.assert_array_equal(total.calibration.count, count)
    assert count.sum() == total.confusion.sum()


def test_a_window_is_cut_out_with_its_labels(prior: Path, folder: Path, tmp_path: Path) -> None:
    """Nothing outside a window has a say, so that other splits of its scene cannot."""
    row, col, height, width = WINDOW
    place = PLACE @ Affine.translation(col, row)
    cut = [slice(None), slice(row, row + height), slice(col, col + width)]
    image = write_raster(
        tmp_path / "image.tif", read(folder / "image.tif")[*cut], nodata=0, crs=UTM["crs"], transform=place
    )
    labels = write_raster(
        tmp_path / "labels.tif", read(folder / "labels.tif")[*cut], nodata=255, crs=UTM["crs"], transform=place
    )
    wanted = evaluate_pair(image, labels, prior=prior, options=QUICK)
    _, found = evaluate(write_set(folder, tmp_path), "val", prior=prior, options=QUICK)
    np.testing.assert_array_equal(found.confusion, wanted.confusion)


@pytest.mark.parametrize("kind", ["alpha", "internal", "sidecar"])
def test_a_window_keeps_its_mask(prior: Path, folder: Path, tmp_path: Path, kind: str) -> None:
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:40] = False
    write_raster(tmp_path / "image.tif", checkered(3, HEIGHT, WIDTH), mask=valid, mask_kind=kind, **UTM)
    (tmp_path / "labels.tif").write_bytes((folder / "labels.tif").read_bytes())
    _, found = evaluate(write_set(tmp_path, tmp_path), "val", prior=prior, options=QUICK)
    row, col, height, width = WINDOW
    labelled = read(folder / "labels.tif")[0, 40 : row + height, col : col + width] != 255
    assert found.confusion.sum() == labelled.sum()


def test_windows_of_one_scene_are_told_apart(prior: Path, folder: Path, tmp_path: Path) -> None:
    dataset = write_set(folder, tmp_path)
    regions = tuple(replace(r, scene=dataset.regions[0].scene) for r in dataset.regions)
    results = list(evaluate(replace(dataset, regions=regions), "val", prior=prior, options=QUICK))
    assert [r.name for r in results] == ["one whole", "one rows 24+40 columns 8+50"]
    assert len(report(results, LEGEND)) == 3


def test_the_order_of_a_sets_classes_does_not_matter(prior: Path, folder: Path, tmp_path: Path) -> None:
    one, other = (
        pooled(list(evaluate(write_set(folder, tmp_path, order=order), "val", prior=prior, options=QUICK)))
        for order in (1, -1)
    )
    np.testing.assert_array_equal(one.confusion, other.confusion)


def test_a_set_says_how_large_its_pixels_are(
    prior: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []

    def noted(*_: object, options: Options, **__: object) -> SceneResult:
        asked.append(options.res)
        raise RasterError("enough")

    monkeypatch.setattr(module, "evaluate_pair", noted)
    dataset = write_set(folder, tmp_path, extra="pixel_res = 0.25\n")
    for options in (QUICK, replace(QUICK, res=2.0)):
        with pytest.raises(RasterError, match="enough"):
            next(evaluate(dataset, "val", prior=prior, options=options))
    assert asked == [0.25, 2.0]


def test_sets_that_cannot_be_scored(prior: Path, folder: Path, tmp_path: Path) -> None:
    dataset = write_set(folder, tmp_path)
    cases: list[tuple[Dataset, Any, type[SegpriorError], str]] = [
        (dataset, "test", DatasetError, "split 'test' of small, found none"),
        (dataset, "train", DatasetError, "split 'train' of small, found none"),
        (replace(dataset, legend=Legend(LEGEND.classes[:2])), "val", SettingError, "got background, roof"),
    ]
    for wrong, split, error, message in cases:
        with pytest.raises(error, match=message):
            next(evaluate(wrong, split, prior=prior, options=QUICK))


def test_a_report_is_json(prior: Path, folder: Path, tmp_path: Path) -> None:
    labels = read(folder / "labels.tif")
    labels[labels == 4] = 2
    only = write_raster(tmp_path / "labels.tif", labels, nodata=255, **UTM)
    result = evaluate_pair(folder / "image.tif", only, prior=prior, options=QUICK, name="here")
    never = SceneResult("never", replace(result.counts.total(), confusion=np.diag([5, 0, 3])[None]))
    table = json.loads(json.dumps(report([result, never], LEGEND), allow_nan=False))
    assert list(table) == ["here", "never", "pooled"]
    assert table["never"]["iou"] == {"background": 1, "roof": None, "road": 1}
    assert table["never"]["true_share"] == {"background": 0.625, "roof": 0, "road": 0.375}
    assert table["here"]["pixels"] == result.confusion.sum()
    mapped = result.confusion.sum(axis=0) / result.confusion.sum()
    assert list(table["here"]["mapped_share"].values()) == pytest.approx(mapped.tolist(), abs=1e-5)
    assert table["here"]["miou"] == pytest.approx(result.scores.miou, abs=1e-5)
    np.testing.assert_array_equal(table["pooled"]["confusion"], result.confusion + np.diag([5, 0, 3]))
    assert "intervals_95" not in table["pooled"]
    found = report([result], LEGEND, intervals=True)["pooled"]
    assert list(found["intervals_95"]) == ["miou", "mean_f1", "mean_boundary_f1", "accuracy", "ece", "brier"]
    # one block only: on every draw it is the same
    assert found["intervals_95"]["miou"] == [found["miou"], found["miou"]]


def test_brier_and_boundaries_are_those_of_the_written_rasters(prior: Path, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("mask.tif", "shares.tif")]
    segment(folder / "image.tif", files[0], prior=prior, options=QUICK, probabilities=files[1])
    truth, mask = (LEGEND.to_index(read(p)[0]) for p in (folder / "labels.tif", files[0]))
    shares = read(files[1])
    counted = (truth != 255) & (mask != 255)
    target = truth[counted] == np.arange(3)[:, None]
    for tolerance, metres in ((None, 1.0), (0.5, 0.5)):
        found = evaluate_pair(
            folder / "image.tif", folder / "labels.tif", prior=prior, options=QUICK, tolerance=tolerance
        ).counts
        assert found.brier == pytest.approx(((shares[:, counted] - target) ** 2).sum(axis=0).mean(), abs=1e-5)
        outlines = boundary_counts(truth, mask, classes=3, pixel=(0.5, 0.5), tolerance=metres, block=1000)
        np.testing.assert_array_equal(found.total().boundary[0], outlines[0, 0])


def test_maps_to_look_at_are_thinned_out(prior: Path, folder: Path, tmp_path: Path) -> None:
    pair = (folder / "image.tif", folder / "labels.tif")
    assert evaluate_pair(*pair, prior=prior, options=QUICK).maps is None
    files = [tmp_path / name for name in ("mask.tif", "sure.tif")]
    segment(pair[0], files[0], prior=prior, options=QUICK, confidence=files[1])
    maps = evaluate_pair(*pair, prior=prior, options=QUICK, shown=30).maps
    assert maps is not None
    thin = (slice(None, None, 3), slice(None, None, 3))
    truth, mask = (LEGEND.to_index(read(p)[0])[thin] for p in (pair[1], files[0]))
    known = (truth != 255) & (mask != 255)
    assert maps.image.shape == (3, *truth.shape) == (3, 27, 24)
    np.testing.assert_array_equal(maps.predicted[known], mask[known])
    np.testing.assert_array_equal(maps.truth, np.where(mask == 255, 255, truth))
    np.testing.assert_allclose(maps.confidence, read(files[1])[0][thin], atol=1e-6)


@pytest.mark.real_data
def test_real_labels_are_read(prior: Path, data_dir: Path, tmp_path: Path) -> None:
    """Buildings called roofs: what counts is every labelled pixel of the scene."""
    fair = data_dir / "fair"
    building = Legend(tuple(replace(c, value=v) for c, v in zip(LEGEND.classes, (0, 1, 2), strict=True)))
    found = evaluate_pair(
        fair / "kampala_b.tif", fair / "kampala_b_labels.tif", prior=prior, options=QUICK, legend=building
    )
    assert found.confusion.sum() == (read(fair / "kampala_b_labels.tif") != 255).sum()
    assert not list(tmp_path.iterdir())
