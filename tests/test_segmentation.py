"""Segmenting generated rasters with a small random prior: the files, and that nothing but the seed decides them."""

import shutil
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasters import checkered, write_raster
from rio_cogeo.cogeo import cog_validate
from scipy import stats
from sklearn.metrics import mutual_info_score
from tiny import LEGEND, tiny_prior
from torch import Tensor, nn

import segprior.inference as module
from segprior import geotiff
from segprior.checkpoint import Prior, load_prior, read_card, save_prior
from segprior.errors import OutputError, RasterError, SegpriorError, SettingError
from segprior.inference import Job, solve
from segprior.layers import relative_entropy
from segprior.mosaic import Tile
from segprior.noise import position_noise
from segprior.opinion import UnarySource
from segprior.options import Options
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.infer import FixedPoint
from segprior.prior.network import Features, ImageInput, JointNetwork
from segprior.scene import Scene
from segprior.segmentation import Summary, segment
from segprior.sidecar import class_names
from segprior.stretch import Stretch
from segprior.windows import Window, cover

ONE, TWO = FixedPoint(times=(1.0,)), FixedPoint(times=(1.0, 0.5))
SMALL = Options(solver=TWO, tile_size=64, overlap=32)
UTM = {"crs": CRS.from_epsg(32645), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)}
WGS84 = CRS.from_epsg(4326)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 x 110 pixels of half a metre, a corner without data."""
    pixels = np.maximum(checkered(3, 90, 110), 1)
    pixels[:, :20, :30] = 0
    return write_raster(tmp_path_factory.mktemp("image") / "image.tif", pixels, nodata=0, **UTM)


def read(path: Path) -> npt.NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        with rasterio.open(path) as dataset:
            return dataset.read()


def shares_of(image: Path, prior: Path, folder: Path, name: str = "p", **wishes: Any) -> npt.NDArray[np.float32]:
    """The probabilities that a segmentation writes."""
    target = folder / f"{name}_shares.tif"
    settings = {"prior": prior, "options": SMALL} | wishes
    segment(image, folder / f"{name}_mask.tif", probabilities=target, overwrite=True, **settings)
    return read(target)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_the_result_lies_on_the_grid_of_the_image(prior: Path, image: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    mask, shares, sure = (tmp_path / name for name in ("mask.tif", "shares.tif", "sure.tif"))
    summary = segment(
        image,
        mask,
        prior=prior,
        options=SMALL,
        probabilities=shares,
        confidence=sure,
        progress=lambda done, rows: told.append((done, rows)),
    )
    with rasterio.open(image) as wanted:
        empty = wanted.dataset_mask() == 0
        for path in (mask, shares, sure):
            with rasterio.open(path) as got:
                assert (got.shape, got.transform, got.crs) == (wanted.shape, wanted.transform, wanted.crs)
    assert empty.sum() == 600
    with rasterio.open(mask) as got:
        assert (got.count, got.dtypes, got.nodata) == (1, ("uint8",), 255)
        assert {value: got.colormap(1)[value][:3] for value in LEGEND.values} == {
            c.value: c.color for c in LEGEND.classes
        }
        assert class_names(got) == {0: "background", 4: "roof", 2: "road"}
        assert got.tags()["SEGPRIOR_PRIOR"] == "tiny"
        assert len(got.tags()["SEGPRIOR_PRIOR_SHA256"]) == 64
        values = got.read(1)
    with rasterio.open(shares) as got:
        assert got.descriptions == LEGEND.names
        probabilities = got.read()
    confidence = read(sure)[0]
    assert ((values == 255) == empty).all()
    assert (np.isnan(probabilities) == empty).all()
    assert (np.isnan(confidence) == empty).all()
    np.testing.assert_allclose(probabilities[:, ~empty].sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(confidence[~empty], probabilities.max(axis=0)[~empty])
    chosen = np.array(LEGEND.values)[probabilities[:, ~empty].argmax(axis=0)]
    np.testing.assert_array_equal(values[~empty], chosen)
    assert len(np.unique(chosen)) > 1, "a prior that says one class everywhere tests nothing"
    counted = {c.name: float((chosen == c.value).mean()) for c in LEGEND.classes}
    assert summary == Summary(mask, 9900, 9300, pytest.approx(counted))
    assert told[-1] == (90, 90)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_all_that_may_stand_beside_the_mask(prior: Path, image: Path, tmp_path: Path) -> None:
    """Bytes and floats say the same; the entropy is scipy's; all is cloud-optimised; the style is the legend's."""
    names = ("mask.tif", "shares.tif", "sure.tif", "unsure.tif")
    results = {}
    for dtype in ("float32", "uint8"):
        mask, shares, sure, unsure = (tmp_path / dtype / name for name in names)
        mask.parent.mkdir()
        outputs: dict[str, Any] = {"probabilities": shares, "confidence": sure, "entropy": unsure, "dtype": dtype}
        segment(image, mask, prior=prior, options=SMALL, cog=True, style=True, **outputs)
        assert left(mask.parent) == {*names, "mask.tif.aux.xml", "mask.qml"}
        assert all(cog_validate(mask.parent / name)[0] for name in names)
        with rasterio.open(shares) as a, rasterio.open(sure) as b, rasterio.open(unsure) as c:
            layers = [np.ma.filled(d.read(masked=True).astype(float) * d.scales[0], np.nan) for d in (a, b, c)]
        results[dtype] = np.concatenate(layers)
        assert 'label="roof"' in (mask.parent / "mask.qml").read_text()
    exact = results["float32"]
    np.testing.assert_allclose(results["uint8"], exact, atol=0.5 / 254 + 1e-6)
    known = ~np.isnan(exact[0])
    assert (np.isnan(exact) == ~known).all()
    np.testing.assert_allclose(exact[4][known], stats.entropy(exact[:3][:, known]) / np.log(3), atol=1e-5)
    segment(image, tmp_path / "uint8" / "mask.tif", prior=prior, options=SMALL, overwrite=True)
    assert "mask.qml" in left(tmp_path / "uint8"), "a style that was not asked for is not ours to take away"


def test_sure_and_unsure_pixels() -> None:
    shares = np.array([[1.0, 0.5, 0.25, np.nan], [0.0, 0.5, 0.75, np.nan]], np.float32)
    bits = 0.25 * 2 + 0.75 * np.log2(4 / 3)
    np.testing.assert_allclose(relative_entropy(shares), [[0, 1, bits, np.nan]], atol=1e-6)


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_a_deeper_copy_of_an_image_gives_its_mask(prior: Path, image: Path, tmp_path: Path, kind: str) -> None:
    """With the scale that undoes the requantising; the tags say bands and scale; without it the percentiles serve."""
    with rasterio.open(image) as source:
        profile = {"crs": source.crs, "transform": source.transform}
        pixels, valid = source.read([1, 2, 3]), source.dataset_mask() > 0
    deep = (pixels[::-1] * 17.0 + 90).astype(kind)
    deep[:, ~valid] = np.nan if kind == "float32" else 7
    nodata = {} if kind == "float32" else {"nodata": 7}
    path = write_raster(tmp_path / "deep.tif", deep, photometric="minisblack", **profile, **nodata)
    options = replace(SMALL, bands=(3, 2, 1), stretch=Stretch((90.0,), (90.0 + 17 * 255,)))
    found = shares_of(path, prior, tmp_path, options=options)
    np.testing.assert_allclose(found, shares_of(image, prior, tmp_path), atol=1e-4)
    with rasterio.open(tmp_path / "p_mask.tif") as plain:
        assert plain.tags()["SEGPRIOR_SCALE"] == "none"
    segment(path, tmp_path / "own.tif", prior=prior, options=replace(SMALL, bands=(3, 2, 1)))
    with rasterio.open(tmp_path / "own.tif") as got:
        assert got.tags()["SEGPRIOR_BANDS"] == "3,2,1"
        low = np.percentile(deep[::-1][:, valid].astype(float), 2, axis=1)
        assert Stretch.parse(got.tags()["SEGPRIOR_SCALE"]).low == pytest.approx(low)


def test_batches_may_be_cut_anywhere(prior: Path, image: Path, tmp_path: Path) -> None:
    one, four = (
        shares_of(image, prior, tmp_path, options=Options(solver=TWO, tile_size=64, overlap=32, batch_size=size))
        for size in (1, 4)
    )
    np.testing.assert_allclose(one, four, atol=1e-4)


def test_the_seed_decides(prior: Path, image: Path, tmp_path: Path) -> None:
    first, again, other = (
        shares_of(image, prior, tmp_path, options=Options(solver=TWO, tile_size=64, overlap=32, samples=2, seed=seed))
        for seed in (2**63 - 1, 2**63 - 1, 5)
    )
    assert first.tobytes() == again.tobytes()
    known = ~np.isnan(first)
    assert (first != other)[known].mean() > 0.5
    single = shares_of(image, prior, tmp_path)
    assert (first != single)[known].mean() > 0.5


def test_other_maps_give_the_same(prior: Path, image: Path, tmp_path: Path) -> None:
    here = shares_of(image, prior, tmp_path)
    module._loaded.cache_clear()
    options = Options(solver=TWO, tile_size=64, overlap=32, batch_size=1)
    with ThreadPoolExecutor(3) as pool:
        threads = shares_of(image, prior, tmp_path, options=options, map=pool.map)
    np.testing.assert_allclose(here, threads, atol=1e-4)
    assert module._loaded.cache_info().misses == 1, "threads share one prior"

    def backwards(function: Any, jobs: Any) -> Iterator[list[Tile]]:
        """Works from the last job to the first, gives the results in order."""
        return reversed([function(job) for job in reversed(list(jobs))])

    np.testing.assert_allclose(here, shares_of(image, prior, tmp_path, options=options, map=backwards), atol=1e-4)


def test_threads_that_open_rasters_at_once_leave_the_warnings_alone(prior: Path, tmp_path: Path) -> None:
    """A raster without a place makes rasterio warn, and warnings are errors here."""
    image = write_raster(tmp_path / "image.tif", checkered(3, 96, 96))
    filters = list(warnings.filters)
    options = Options(solver=ONE, tile_size=32, overlap=0, batch_size=1)
    jobs = [Job(str(image), str(prior), (window,), options) for window in cover(96, 96, size=32, overlap=0)]
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(solve, jobs))) == 9
    assert list(warnings.filters) == filters


def test_windows_without_data_cost_nothing(
    prior: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 50, 50), np.uint8), nodata=0, **UTM)

    def refuse(*_: object, **__: object) -> Iterator[object]:
        raise AssertionError

    monkeypatch.setattr(module, "infer", refuse)
    summary = segment(empty, tmp_path / "mask.tif", prior=prior, options=SMALL, confidence=tmp_path / "sure.tif")
    assert (summary.pixels, summary.valid, set(summary.shares.values())) == (2500, 0, {0.0})
    assert (read(tmp_path / "mask.tif") == 255).all()
    assert np.isnan(read(tmp_path / "sure.tif")).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 70), (65, 33), (96, 97)])
def test_any_size(prior: Path, tmp_path: Path, height: int, width: int) -> None:
    """Rasters smaller than a window, and windows that stick out."""
    image = write_raster(tmp_path / "image.tif", checkered(3, height, width), **UTM)
    shares = shares_of(image, prior, tmp_path, options=Options(solver=ONE, tile_size=64, overlap=32))
    assert shares.shape == (3, height, width)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)


def test_a_raster_without_a_place_is_taken_at_the_priors_resolution(prior: Path, tmp_path: Path) -> None:
    pixels = checkered(3, 64, 64)
    image = write_raster(tmp_path / "image.tif", pixels)
    placed = write_raster(tmp_path / "placed.tif", pixels, **UTM)
    plain = shares_of(image, prior, tmp_path)
    np.testing.assert_allclose(plain, shares_of(placed, prior, tmp_path), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        with rasterio.open(tmp_path / "p_mask.tif") as mask:
            assert mask.shape == (64, 64)
    options = Options(solver=TWO, tile_size=64, overlap=32, res=0.25)
    finer = shares_of(image, prior, tmp_path, options=options)
    assert finer.shape == plain.shape
    assert not np.allclose(finer, plain, atol=1e-3)


def test_degrees_that_are_longer_one_way(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 degrees north a degree of longitude is half as long, so square degrees are twice as high as wide."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        module,
        "cover",
        lambda h, w, **sides: asked.append((h, w)) or cover(h, w, **sides),  # type: ignore[func-returns-value]  # None, so cover is asked
    )
    step = 1e-5  # 1.114 m north, 0.558 m east
    image = write_raster(
        tmp_path / "image.tif", checkered(3, 40, 60), crs=WGS84, transform=Affine(step, 0, 20, 0, -step, 60)
    )
    shares = shares_of(image, prior, tmp_path, options=Options(solver=ONE, tile_size=64, overlap=32))
    assert asked[-1] == (round(40 * 1.1141 / 0.5), round(60 * 0.5580 / 0.5))
    assert shares.shape == (3, 40, 60)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert not np.isnan(shares).any()


def test_bands_in_another_order(prior: Path, tmp_path: Path) -> None:
    pixels = checkered(4, 40, 40)
    image = write_raster(tmp_path / "image.tif", pixels, **UTM)
    swapped = write_raster(tmp_path / "swapped.tif", pixels[[2, 1, 0, 3]], **UTM)
    options = Options(solver=TWO, tile_size=64, overlap=32, bands=(3, 2, 1))
    wanted = shares_of(image, prior, tmp_path)
    np.testing.assert_array_equal(shares_of(swapped, prior, tmp_path, options=options), wanted)


def test_a_second_file_of_the_same_name_is_refused(prior: Path, image: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.tif"
    same = tmp_path / "." / "mask.tif"
    for wishes in ({"probabilities": same}, {"confidence": mask}):
        with pytest.raises(OutputError, match="a file of its own"):
            segment(image, mask, prior=prior, options=SMALL, **wishes)
    other = tmp_path / "other.tif"
    with pytest.raises(OutputError, match="a file of its own"):
        segment(image, mask, prior=prior, options=SMALL, probabilities=other, confidence=other)
    assert left(tmp_path) == set()


def test_what_is_read_is_never_written(prior: Path, image: Path) -> None:
    for source in (image, prior):
        before = source.read_bytes()
        with pytest.raises(OutputError, match="the input itself"):
            segment(image, source, prior=prior, options=SMALL, overwrite=True)
        assert source.read_bytes() == before


def test_what_is_told_is_never_written(prior: Path, image: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.tif"
    segment(image, tmp_path / "mask.tif", probabilities=told, prior=prior, options=SMALL)
    before = told.read_bytes()
    options = replace(SMALL, unary=(UnarySource(str(told)),))
    for files in ({"mask": told}, {"mask": tmp_path / "a.tif", "confidence": told}):
        with pytest.raises(OutputError, match="the input itself"):
            segment(image, prior=prior, options=options, overwrite=True, **files)
        assert told.read_bytes() == before


def test_a_prior_that_has_changed_is_read_again(prior: Path, image: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(prior.read_bytes())
    first = segment(image, tmp_path / "a.tif", prior=own, options=SMALL)
    loaded = load_prior(own)
    assert isinstance(loaded.denoiser.network, JointNetwork)
    with torch.no_grad():
        loaded.denoiser.network.image.head.bias[1] += 100.0
    save_prior(loaded, own)
    second = segment(image, tmp_path / "b.tif", prior=own, options=SMALL)
    assert first.shares["roof"] < 0.99
    assert second.shares["roof"] > 0.999


class StumbleError(Exception):
    pass


@pytest.mark.parametrize("error", [StumbleError, KeyboardInterrupt, RasterError])
def test_a_failure_leaves_things_as_they_were(
    prior: Path, image: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "mask.tif").write_text("mine")

    def progress(done: int, _: int) -> None:
        if done > 30:
            raise error("in the middle")

    with pytest.raises(error):
        segment(
            image,
            tmp_path / "mask.tif",
            prior=prior,
            options=SMALL,
            probabilities=tmp_path / "shares.tif",
            confidence=tmp_path / "sure.tif",
            overwrite=True,
            progress=progress,
        )
    unfinished = {".mask.tif-unfinished", "journal", "lock", "classes", "probabilities", "confidence"}
    assert left(tmp_path) == {"mask.tif"} | (unfinished if error is KeyboardInterrupt else set())
    assert (tmp_path / "mask.tif").read_text() == "mine"


@pytest.mark.parametrize("part", ["_finish", "_whole"])
def test_a_failure_at_the_very_end_keeps_what_was_inferred(
    prior: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The mask is finished last: if it fails, no other file has appeared, and the same call does no network's work."""
    files = {"probabilities": tmp_path / "shares.tif", "confidence": tmp_path / "sure.tif"}
    (tmp_path / "mask.tif").write_text("mine")
    (tmp_path / "sure.tif").write_text("mine")

    def run(mask: str, **wishes: Any) -> Summary:
        return segment(
            image, tmp_path / mask, prior=prior, options=SMALL, overwrite=True, style=True, **files, **wishes
        )

    inner = getattr(geotiff, part)

    def fail(fresh: Path, *given: Any, **more: Any) -> Any:
        if fresh.name == "mask.tif":
            raise OutputError("cannot write mask.tif: the disk is full")
        return inner(fresh, *given, **more)

    monkeypatch.setattr(geotiff, part, fail)
    with pytest.raises(OutputError, match=r"is full; what was inferred is kept, and the same command goes on from it$"):
        run("mask.tif")
    there = {".mask.tif-unfinished", "journal", "lock", "classes", "probabilities", "confidence"}
    assert left(tmp_path) == {"mask.tif", "sure.tif"} | there
    assert [(tmp_path / name).read_text() for name in ("mask.tif", "sure.tif")] == ["mine", "mine"]
    monkeypatch.setattr(geotiff, part, inner)
    again = run("mask.tif")
    assert (again.continued_from, again.state) == (90, "continued")
    assert left(tmp_path) == {"mask.tif", "mask.tif.aux.xml", "mask.qml", "shares.tif", "sure.tif"}
    whole = [read(path) for path in (tmp_path / "mask.tif", *files.values())]
    run("other.tif")
    for found, path in zip(whole, (tmp_path / "other.tif", *files.values()), strict=True):
        np.testing.assert_array_equal(found, read(path))


def test_a_file_that_came_meanwhile_is_nobodys_to_replace(
    prior: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are kept when the files cannot be finished; what lies at their names since is not from that run."""

    def run() -> Summary:
        return segment(image, tmp_path / "mask.tif", prior=prior, options=SMALL, confidence=tmp_path / "sure.tif")

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(geotiff, "_whole", full)
        with pytest.raises(OutputError, match="the disk is full; what was inferred is kept"):
            run()
    (tmp_path / "sure.tif").write_text("mine")
    for _ in range(2):
        with pytest.raises(OutputError, match=r"sure\.tif: it exists"):
            run()
        assert (tmp_path / "sure.tif").read_text() == "mine"
    (tmp_path / "sure.tif").unlink()
    assert run().continued_from == 90


@pytest.mark.parametrize("moment", [1, 60])
def test_a_folder_that_goes_while_at_work(prior: Path, image: Path, tmp_path: Path, moment: int) -> None:
    """One line, whatever was being done; nothing comes back where it was."""
    folder = tmp_path / "out"
    folder.mkdir()

    def progress(done: int, _: int) -> None:
        if done > moment:
            shutil.rmtree(folder, ignore_errors=True)  # the work may be writing into it just now

    with pytest.raises((OutputError, OSError)) as caught:
        segment(image, folder / "mask.tif", prior=prior, options=SMALL, progress=progress)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "1 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"seed": -1}, "seed from 0"),
        ({"seed": 1 << 63}, "seed from 0"),
        ({"device": "abacus"}, "auto, cpu or cuda"),
        ({"tile_size": 0}, "multiple of 32"),
        ({"overlap": 33}, "multiple of 32"),
        ({"overlap": 160}, "half the tile size"),
    ],
)
def test_options_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Options(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said() -> None:
    assert Options().resolved_device == Options(device="cpu").resolved_device == "cpu"
    with pytest.raises(SettingError, match="wanted a CUDA device"):
        Options(device="cuda")


@pytest.mark.parametrize("bands", [(1,), (1, 2), (1, 2, 3, 4), (1, 2, 9), (0, 1, 2)])
def test_bands_that_do_not_fit(prior: Path, image: Path, tmp_path: Path, bands: tuple[int, ...]) -> None:
    with pytest.raises(SegpriorError, match=r"wanted.* bands"):
        segment(image, tmp_path / "mask.tif", prior=prior, options=Options(bands=bands))
    assert left(tmp_path) == set()


# The noise.


def test_noise_is_standard_normal() -> None:
    draw = position_noise(3, [Window(0, 0, 128, 128)], channels=4, particles=2)
    values = draw(0).numpy()
    assert values.shape == (2, 4, 128, 128)
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    flat = values.reshape(8, -1)
    correlations = np.corrcoef(flat) - np.eye(8)
    assert abs(correlations).max() < 5 / np.sqrt(flat.shape[1]), "channels and particles are independent"
    for axis in (-1, -2):
        assert abs((values * np.roll(values, 1, axis)).mean()) < 5 / np.sqrt(values.size)
        assert abs((values * np.roll(values, 32, axis)).mean()) < 5 / np.sqrt(values.size), "blocks do not repeat"


def test_overlapping_windows_share_noise() -> None:
    windows = [Window(32, 64, 96, 64), Window(64, 32, 96, 64)]
    first, second = position_noise(0, windows, channels=2)(1)
    assert torch.equal(first[:, 32:, :32], second[:, :64, 32:])
    alone = position_noise(0, windows[1:], channels=2)(1)
    assert torch.equal(alone[0], second), "the batch has no say"


def test_every_draw_particle_and_seed_has_its_own_noise() -> None:
    window = [Window(0, 0, 32, 32)]
    draw = position_noise(0, window, channels=1, particles=2)
    drawn = [*draw(0), *draw(1), *position_noise(1, window, channels=1, particles=2)(0)]
    for number, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:number])
    assert torch.equal(draw(1), draw(1))
    far = position_noise(0, [Window(32 * 5000, 32 * 7000, 32, 32)], channels=1)(0)
    assert not torch.equal(far[0], drawn[0])


# Seams and memory.


class Local(nn.Module):
    """A network that sees 3 x 3 pixels of the image and of the noisy labels, and knows of no position."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.image = nn.Conv2d(3, 3, 2 * reach + 1, padding=reach)
        self.labels = nn.Conv2d(3, 3, 2 * reach + 1, padding=reach)

    def features(self, image: Tensor, log_snr: Tensor, *, silent: bool = False) -> Features:
        del log_snr, silent
        return Features(image.new_zeros(len(image), 0, 1, 1), 3 * self.image(image))

    def forward(self, features: Features, image: ImageInput, labels: Tensor) -> tuple[Tensor, Tensor]:
        return features.logits + 2 * self.labels(labels), torch.zeros_like(image.noisy)


def local_prior(path: Path, reach: int) -> Prior:
    real = load_prior(path).denoiser
    network: Any = Local(reach)
    return Prior(read_card(path), NetworkDenoiser(network, layout=real.layout, schedule=real.schedule).eval())


@pytest.mark.parametrize(("reach", "tolerance"), [(0, 2e-6), (1, 1e-3)])
def test_there_are_no_seams(
    prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reach: int, tolerance: float
) -> None:
    """Windows of 64 pixels give what one window over everything gives, noise included."""
    image = write_raster(tmp_path / "image.tif", checkered(3, 150, 170), **UTM)
    monkeypatch.setattr(module, "_loaded", lambda *_: local_prior(prior, reach))
    many, one = (
        shares_of(image, prior, tmp_path, options=Options(solver=TWO, tile_size=size, overlap=32, samples=2))
        for size in (64, 192)
    )
    assert len(cover(150, 170, size=64, overlap=32)) == 20
    assert len(cover(150, 170, size=192, overlap=32)) == 1
    assert one.std(axis=(1, 2)).min() > 0.05
    np.testing.assert_allclose(many, one, atol=tolerance)


def test_memory_is_one_band_of_windows(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the height costs no more memory, and windows are solved as their strips are written."""
    loaded = load_prior(prior)
    monkeypatch.setattr(module, "_loaded", lambda *_: loaded)
    monkeypatch.setattr(module, "_probabilities", lambda _, __, sights, *rest: np.full((len(sights), 3, 64, 64), 1 / 3))
    tops: list[int] = []
    read_before = Scene.read

    def noted(scene: Scene, window: Window) -> Any:
        tops.append(window.row)
        return read_before(scene, window)

    monkeypatch.setattr(Scene, "read", noted)
    peaks = []
    for height in (512, 512, 1536):  # the first fills caches
        image = write_raster(tmp_path / "image.tif", np.full((3, height, 256), 9, np.uint8), tiled=True, **UTM)
        ahead: list[int] = []
        tracemalloc.start()
        segment(
            image,
            tmp_path / "mask.tif",
            prior=prior,
            options=Options(solver=ONE, tile_size=64, overlap=32, batch_size=2),
            overwrite=True,
            progress=lambda done, _, ahead=ahead: ahead.append(tops[-1] - done),
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert max(ahead) <= 64, "no window is read before the strips above it are written"
    assert peaks[2] < 1.2 * peaks[1]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["fair/panauti_a.tif", "dubai/tile2.tif"])
def test_real_scenes_keep_their_grid(prior: Path, data_dir: Path, tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are meant here
        segment(data_dir / name, tmp_path / "mask.tif", prior=prior, options=Options(solver=ONE))
        with rasterio.open(data_dir / name) as wanted, rasterio.open(tmp_path / "mask.tif") as got:
            assert (got.shape, got.transform, got.crs) == (wanted.shape, wanted.transform, wanted.crs)
            assert set(np.unique(got.read())) <= {0, 2, 4, 255}


def test_clusters_move_the_mask_and_are_told(tmp_path: Path, prior: Path) -> None:
    """The labels of a picture of two colours share more with them than before; batches and particles do not matter."""
    pixels = np.full((3, 96, 96), 60, np.uint8)
    pixels[:, :, 48:] = 180
    pixels += np.random.default_rng(0).integers(0, 40, pixels.shape, dtype=np.uint8)
    image = write_raster(
        tmp_path / "image.tif", pixels, crs=CRS.from_epsg(32645), transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6)
    )
    sides = {"tile_size": 64, "overlap": 32, "samples": 2}

    def mask(name: str, **settings: Any) -> npt.NDArray[np.uint8]:
        segment(image, tmp_path / name, prior=prior, options=Options(solver=ONE, **sides, **settings))
        with rasterio.open(tmp_path / name) as dataset:
            found: npt.NDArray[np.uint8] = dataset.read(1)
        return found

    free, followed = mask("a.tif"), mask("b.tif", clusters=2, clusters_weight=20.0)
    np.testing.assert_array_equal(mask("c.tif", clusters=2, clusters_weight=20.0, batch_size=1), followed)
    side = np.broadcast_to(np.arange(96) < 48, (96, 96)).ravel()
    assert mutual_info_score(side, followed.ravel()) > mutual_info_score(side, free.ravel()) + 0.05
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.tags()["SEGPRIOR_CLUSTERS"] == "2, weight 20"
    with pytest.raises(SettingError, match="wanted no clusters"):
        Options(clusters=1)
