"""Data sets: descriptors read and refused, splits that cannot leak, checksums, and regions in memory."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from generated import CLASSES, rectangles, write_dataset, write_tiff
from rasters import write_raster

from segprior.data import Region, Scene, dataset_names, load_dataset, verify
from segprior.errors import DatasetError, LegendError, RasterError
from segprior.plots import Plot, read_pairs, read_plot, read_plots
from segprior.windows import Window

HEAD = f"res = 1.0\npixel_res = 1.0\n{CLASSES}"
SCENE = '\n[[scenes]]\nname = "a"\nimage = "a.tif"\nlabels = "a_labels.tif"\n'
WINDOW = '\n[[windows]]\nscene = "a"\nsplit = "train"\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Write a descriptor and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "dataset.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_descriptor_is_read(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    dataset = load_dataset(str(path))
    assert dataset.name == dataset.title == "rectangles"
    assert dataset.legend.names == ("ground", "roof")
    assert dataset.bands == (1, 2, 3)
    assert (dataset.res, dataset.scenes[0].pixel_res) == (1.0, 1.0)
    assert len(dataset.mean) == len(dataset.std) == 3
    assert [scene.name for scene in dataset.scenes] == ["one", "two", "three"]
    assert dataset.scenes[0].image == tmp_path / "one.tif"
    assert [r.scene.name for r in dataset.select("train", "pairs", "images")] == ["one", "two"]
    assert dataset.select("test", "pairs") == ()
    assert load_dataset(str(tmp_path)) == dataset


def test_names_globs_and_stems(write: Callable[[str], str], tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.tif").touch()
    text = '\n[[scenes]]\nimage = "images/*.tif"\nlabels = "masks/{stem}_mask.tif"\nsplit = "train"\n'
    dataset = load_dataset(write(HEAD + text))
    assert [s.name for s in dataset.scenes] == ["images/a", "images/b"]
    assert [s.labels for s in dataset.scenes] == [tmp_path / "masks" / f"{n}_mask.tif" for n in ("a", "b")]
    assert all(r.split == "train" and r.use == "pairs" and r.window is None for r in dataset.regions)


def test_scenes_without_labels_are_images(write: Callable[[str], str]) -> None:
    text = '\n[[scenes]]\nimage = "a.tif"\nsplit = "train"\n'
    (region,) = load_dataset(write(HEAD + text)).regions
    assert (region.scene.name, region.use, region.scene.labels) == ("a", "images", None)


def test_windows_give_split_and_use(write: Callable[[str], str]) -> None:
    more = '\n[[windows]]\nscene = "a"\nsplit = "val"\nuse = "labels"\nwindow = [0, 32, 64, 96]\n'
    dataset = load_dataset(write(HEAD + SCENE + WINDOW + 'use = "images"\n' + more))
    first, second = dataset.regions
    assert (first.split, first.use, first.window) == ("train", "images", None)
    assert (second.split, second.use, second.window) == ("val", "labels", Window(0, 32, 64, 96))
    assert len(dataset.scenes) == 1


def test_other_bands_have_their_own_defaults(write: Callable[[str], str]) -> None:
    dataset = load_dataset(write(f"bands = [4]\n{HEAD}{SCENE}{WINDOW}"))
    assert (dataset.bands, len(dataset.mean), len(dataset.std)) == ((4,), 1, 1)
    dataset = load_dataset(write(f"bands = [1, 4]\nmean = [1, 2]\nstd = [3, 4]\n{HEAD}{SCENE}{WINDOW}"))
    assert (dataset.mean, dataset.std) == ((1.0, 2.0), (3.0, 4.0))


MALFORMED = {
    "a window to validate of a scene to train": (
        HEAD + SCENE + 'split = "train"\n' + WINDOW.replace("train", "val"),
        "that overlap",
    ),
    "windows that overlap by a pixel": (
        HEAD
        + SCENE
        + WINDOW
        + "window = [63, 63, 9, 9]\n"
        + WINDOW.replace("train", "test")
        + "window = [0, 0, 64, 64]\n",
        "windows of a in 'train' and in 'test' that overlap",
    ),
    "a misspelt key": (
        HEAD.replace("pixel_res", "pixelres") + SCENE + WINDOW,
        "unknown key pixelres in the descriptor",
    ),
    "a misspelt key of a scene": (HEAD + SCENE.replace("labels =", "label =") + WINDOW, "unknown key label in a scene"),
    "a misspelt key of a window": (
        HEAD + SCENE + WINDOW + "windows = [0, 0, 9, 9]\n",
        "unknown key windows in a window",
    ),
    "not TOML": ("res = ", "TOML"),
    "no res": (CLASSES + SCENE + WINDOW, "'res'"),
    "no classes": ("res = 1.0" + SCENE + WINDOW, "'classes'"),
    "no scenes": (HEAD, "'scenes'"),
    "one class": ("res = 1.0\n[[classes]]\nname = 'a'\nvalue = 0\ncolor = [0, 0, 0]\n" + SCENE + WINDOW, "two classes"),
    "a class without a value": ("res = 1.0\n[[classes]]\nname = 'a'\ncolor = [0, 0, 0]\n" + SCENE, "keys"),
    "no split at all": (HEAD + SCENE, "at least one scene or window"),
    "an unknown split": (HEAD + SCENE + WINDOW.replace("train", "training"), "'training'"),
    "an unknown use": (HEAD + SCENE + WINDOW + 'use = "pictures"\n', "'pictures'"),
    "pairs without labels": (HEAD + SCENE.replace('labels = "a_labels.tif"\n', "") + WINDOW, "no labels"),
    "a window of another scene": (HEAD + SCENE + WINDOW.replace('"a"', '"b"'), "unknown scene 'b'"),
    "a window without a split": (HEAD + SCENE + '\n[[windows]]\nscene = "a"\n', "'split'"),
    "a window of three numbers": (HEAD + SCENE + WINDOW + "window = [0, 0, 64]\n", "width"),
    "a window of no rows": (HEAD + SCENE + WINDOW + "window = [0, 0, 0, 64]\n", "a window needs"),
    "a window before the first row": (HEAD + SCENE + WINDOW + "window = [-1, 0, 64, 64]\n", "a window needs"),
    "a window of words": (HEAD + SCENE + WINDOW + 'window = "all"\n', "valid data set"),
    "a scene without an image": (HEAD + '\n[[scenes]]\nname = "a"\n', "'image'"),
    "two scenes of one name": (HEAD + SCENE + SCENE + WINDOW, "two are called 'a'"),
    "a glob that matches nothing": (HEAD + '\n[[scenes]]\nimage = "*.tiff"\nsplit = "train"\n', "no file matches"),
    "a res of zero": (HEAD.replace("res = 1.0", "res = 0", 1) + SCENE + WINDOW, "> 0 metres"),
    "a res of words": (HEAD.replace("res = 1.0", 'res = "fine"', 1) + SCENE + WINDOW, "valid data set"),
    "a negative pixel_res": (HEAD.replace("pixel_res = 1.0", "pixel_res = -1") + SCENE + WINDOW, "> 0 metres"),
    "a pixel_res of 0 of a scene": (HEAD + SCENE + "pixel_res = 0\n" + WINDOW, "> 0 metres, got 1.0, 0.0"),
    "band 0": ("bands = [0, 1, 2]\n" + HEAD + SCENE + WINDOW, "counted from 1"),
    "no bands": ("bands = []\n" + HEAD + SCENE + WINDOW, "counted from 1"),
    "a mean of other bands": ("mean = [1.0]\n" + HEAD + SCENE + WINDOW, "3 bands"),
    "a std of zero": ("std = [1.0, 0.0, 1.0]\n" + HEAD + SCENE + WINDOW, "std > 0"),
    "scenes of words": (HEAD.replace("pixel_res", 'scenes = ["a"]\npixel_res') + WINDOW, "valid data set"),
    "scenes of numbers": (HEAD.replace("pixel_res", "scenes = 3\npixel_res"), "valid data set"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_descriptor_is_refused_in_one_line(write: Callable[[str], str], case: str) -> None:
    text, match = MALFORMED[case]
    path = write(text)
    with pytest.raises(DatasetError, match=match) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


def test_one_label_file_for_many_images_is_refused(write: Callable[[str], str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").touch()
    text = '\n[[scenes]]\nimage = "*.tif"\nlabels = "labels.tif"\nsplit = "train"\n'
    with pytest.raises(DatasetError, match="stem"):
        load_dataset(write(HEAD + text))


def test_an_unknown_name_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dubai, dubai/quarter, .*enviroatlas, fair, .*'mars'"):
        load_dataset("mars")
    with pytest.raises(DatasetError, match="no file at"):
        load_dataset(str(tmp_path / "dataset.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(DatasetError, match="TOML"):
        load_dataset(str(tmp_path / "folder.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="TOML"):
        load_dataset(str(tmp_path / "binary.toml"))


def overlap(a: Region, b: Region) -> bool:
    everything = Window(0, 0, 10**9, 10**9)
    one, other = (everything if r.window is None else r.window for r in (a, b))
    rows = min(one.row + one.height, other.row + other.height) - max(one.row, other.row)
    cols = min(one.col + one.width, other.col + other.width) - max(one.col, other.col)
    return rows > 0 and cols > 0


@pytest.mark.parametrize("name", ["dubai", "fair"])
def test_the_splits_of_the_shipped_data_sets_cannot_leak(name: str) -> None:
    dataset = load_dataset(name)
    assert {r.split for r in dataset.regions} == {"train", "val", "test"}
    for a, b in itertools.combinations(dataset.regions, 2):
        if a.split != b.split and a.scene == b.scene:
            assert not overlap(a, b), (a, b)


def test_shipped_data_sets_lie_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = ("quarter", "sixteenth")
    protocols = {f"{name}/{part}" for name in ("dubai", "fair") for part in few}
    regions = {"fair/newregion", "fair/newregion_imagery"}
    without = {f"dubai/sixteenth_without_{scene}" for scene in ("tile6", "tile8")}
    assert set(dataset_names()) == {"dubai", "enviroatlas", "fair"} | protocols | regions | without
    monkeypatch.setenv("SEGPRIOR_DATA", str(tmp_path))
    assert load_dataset("fair").scenes[0].image == tmp_path / "fair" / "zanzibar_a.tif"
    assert {scene.pixel_res for scene in load_dataset("dubai").scenes} == {0.5}
    assert {scene.pixel_res for scene in load_dataset("fair").scenes} == {None}


def test_verify_tells_what_became_of_each_file(write: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"image")
    (tmp_path / "a_labels.tif").write_bytes(b"other labels")
    (tmp_path / "c.tif").write_bytes(b"unknown")
    digest = hashlib.sha256(b"image").hexdigest()
    sums = f'image_sha256 = "{digest}"\nlabels_sha256 = "{digest}"\nsplit = "train"\n'
    more = f'\n[[scenes]]\nimage = "b.tif"\n{sums}\n[[scenes]]\nimage = "c.tif"\nsplit = "val"\n'
    states = {path.name: state for path, state in verify(load_dataset(write(HEAD + SCENE + sums + more)))}
    assert states == {"a.tif": "ok", "a_labels.tif": "altered", "b.tif": "missing", "c.tif": "no checksum"}


def test_plots_hold_the_pixels(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_dataset(tmp_path)))
    plots = read_plots(dataset, "train", "pairs")
    image, labels = rectangles(96, 0)
    assert len(plots) == 2
    assert plots[0].shape == (96, 96)
    np.testing.assert_array_equal(plots[0].image, image.transpose(1, 2, 0))
    np.testing.assert_array_equal(plots[0].index, labels == 7)


def test_a_plot_knows_where_its_image_has_no_data(write: Callable[[str], str], tmp_path: Path) -> None:
    image, labels = np.maximum(rectangles(96, 0)[0], 1), rectangles(96, 0)[1]
    image[:, :20] = 0
    write_raster(tmp_path / "a.tif", image, mask_kind="nodata", transform=Affine(1, 0, 0, 0, -1, 500))
    write_tiff(tmp_path / "a_labels.tif", labels)
    text = HEAD + SCENE
    for use in ("pairs", "labels"):
        text += WINDOW + f'use = "{use}"\nwindow = [10, 32, 48, 64]\n'
    whole = WINDOW + 'use = "pairs"\nwindow = [40, 32, 48, 64]\n'
    pairs, maps, clear = (read_plot(d, r) for d in [load_dataset(write(text + whole))] for r in d.regions)
    assert pairs.seen is not None
    assert pairs.seen.shape == (48, 64)
    assert (pairs.seen == (np.arange(48) >= 10)[:, None]).all()
    assert maps.seen is None
    assert clear.seen is None


@pytest.mark.parametrize("use", ["pairs", "labels"])
@pytest.mark.parametrize("window", ["", "window = [0, 0, 40, 96]\n"])
def test_labels_without_a_place_have_the_size_of_their_image(
    write: Callable[[str], str], tmp_path: Path, use: str, window: str
) -> None:
    """A mask that another program wrote beside a GeoTIFF of half a metre, seen at one metre."""
    image, labels = rectangles(96, 0)
    labels = np.repeat(np.repeat(labels[::2, ::2], 2, axis=0), 2, axis=1)
    write_raster(tmp_path / "a.tif", image, crs="EPSG:32645", transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6))
    write_raster(tmp_path / "a_labels.tif", labels[None])
    head = HEAD.replace("pixel_res = 1.0\n", "")
    (region,) = load_dataset(write(head + SCENE + WINDOW + f'use = "{use}"\n' + window)).regions
    plot = read_plot(load_dataset(write(head + SCENE + WINDOW + f'use = "{use}"\n' + window)), region)
    expected = (labels == 7)[: 40 if window else None : 2, ::2]
    assert plot.image is None or plot.image.shape[:2] == expected.shape
    np.testing.assert_array_equal(plot.index, expected)


def test_a_scene_may_have_its_own_pixel_size(write: Callable[[str], str], tmp_path: Path) -> None:
    text = HEAD
    for name, size in (("a", ""), ("b", "pixel_res = 0.5\n")):
        write_tiff(tmp_path / f"{name}.tif", rectangles(96, 0)[0])
        text += f'\n[[scenes]]\nname = "{name}"\nimage = "{name}.tif"\nsplit = "train"\n{size}'
    dataset = load_dataset(write(text))
    assert [plot.shape for plot in read_plots(dataset, "train", "images")] == [(96, 96), (48, 48)]


@pytest.mark.parametrize("window", [None, "[0, 3, 48, 66]"])
def test_labels_are_the_most_frequent_whatever_their_file_calls_nodata(
    write: Callable[[str], str], tmp_path: Path, window: str | None
) -> None:
    """At a resolution of 3 pixels; a tag that is a class counts like every class, one that is none does not count."""
    image, _ = rectangles(96, 0)
    labels = np.random.default_rng(0).choice(np.array([3, 7, 255], np.uint8), (96, 96), p=[0.45, 0.45, 0.1])
    write_tiff(tmp_path / "a.tif", image)
    place = "" if window is None else f"window = {window}\n"
    text = HEAD.replace("res = 1.0", "res = 3.0", 1) + SCENE + WINDOW + f'use = "labels"\n{place}'
    found = {}
    for tag in (None, 3, 7, 255):
        write_raster(tmp_path / "a_labels.tif", labels[None], nodata=tag, transform=Affine(1, 0, 0, 0, -1, 500))
        (region,) = load_dataset(write(text)).regions
        found[tag] = read_plot(load_dataset(write(text)), region).index
    part = labels if window is None else labels[:48, 3:69]
    rows, cols = (n // 3 for n in part.shape)
    counts = np.stack([(part == v).reshape(rows, 3, cols, 3).sum((1, 3)) for v in (3, 7, 255)])
    clear = np.sort(counts, axis=0)[-1] > np.sort(counts, axis=0)[-2]  # which of equally many wins is GDAL's
    wanted = np.array([0, 1, 255], np.uint8)[counts.argmax(0)]
    for tag in (None, 3, 7):
        np.testing.assert_array_equal(found[tag][clear], wanted[clear], err_msg=str(tag))
    apart = counts[0] != counts[1]
    np.testing.assert_array_equal(found[255][apart], counts[:2].argmax(0)[apart])


def test_a_plot_holds_what_its_use_allows_in_its_window(write: Callable[[str], str], tmp_path: Path) -> None:
    image, labels = rectangles(96, 0)
    labels[:8] = 255
    write_tiff(tmp_path / "a.tif", image)
    write_tiff(tmp_path / "a_labels.tif", labels)
    text = HEAD + SCENE
    for use in ("pairs", "images", "labels"):
        text += WINDOW + f'use = "{use}"\nwindow = [0, 32, 48, 64]\n'
    dataset = load_dataset(write(text))
    pairs, images, maps = (read_plot(dataset, region) for region in dataset.regions)
    assert pairs.shape == images.shape == maps.shape == (48, 64)
    assert images.index is None
    assert maps.image is None
    np.testing.assert_array_equal(pairs.image, images.image)
    np.testing.assert_array_equal(pairs.index, maps.index)
    expected = np.where(labels == 255, 255, labels == 7)[:48, 32:]
    np.testing.assert_array_equal(maps.index, expected)


def windows(scale: float, *places: list[int]) -> str:
    """A training scene of imagery, some windows of it with labels."""
    text = f"res = {scale}\npixel_res = 1.0\n{CLASSES}{SCENE}{WINDOW}use = 'images'\n"
    return text + "".join(f"{WINDOW}window = {place}\n" for place in places)


def test_labelled_windows_in_imagery_are_one_plot(write: Callable[[str], str], tmp_path: Path) -> None:
    """Labels outside of the windows are not looked at: they may be anything."""
    image, labels = rectangles(96, 0)
    wild = np.full_like(labels, 9)
    for at in (np.s_[16:48, 8:40], np.s_[48:96, 40:80]):
        wild[at] = labels[at]
    write_tiff(tmp_path / "a.tif", image)
    write_tiff(tmp_path / "a_labels.tif", wild)
    dataset = load_dataset(write(windows(1.0, [16, 8, 32, 32], [48, 40, 48, 40])))
    (plot,) = read_pairs(dataset, "train", read_plots(dataset, "train", "images"))
    assert plot.parts == (Window(16, 8, 32, 32), Window(48, 40, 48, 40))
    assert plot.region.use == "pairs"
    np.testing.assert_array_equal(plot.image, image.transpose(1, 2, 0))
    np.testing.assert_array_equal(plot.index, np.where(wild == 9, 255, labels == 7))


def test_a_working_pixel_is_labelled_if_all_of_it_is(write: Callable[[str], str], tmp_path: Path) -> None:
    """Three source pixels a working pixel; the window begins and ends within one."""
    image, labels = rectangles(96, 0)
    write_tiff(tmp_path / "a.tif", image)
    write_tiff(tmp_path / "a_labels.tif", labels)
    dataset = load_dataset(write(windows(3.0, [7, 9, 20, 30])))
    (plot,) = read_pairs(dataset, "train", read_plots(dataset, "train", "images"))
    assert plot.parts == (Window(3, 3, 6, 10),)
    whole = read_plot(dataset, Region(plot.region.scene, "train", "pairs"))
    expected = np.full((32, 32), 255, np.uint8)
    assert whole.index is not None
    expected[3:9, 3:13] = whole.index[3:9, 3:13]
    np.testing.assert_array_equal(plot.index, expected)
    none = load_dataset(write(windows(3.0, [7, 9, 4, 30])))
    with pytest.raises(DatasetError, match="a working pixel and more"):
        read_pairs(none, "train", read_plots(none, "train", "images"))


def test_windows_outside_the_imagery_are_plots_of_their_own(write: Callable[[str], str], tmp_path: Path) -> None:
    """Imagery of another split, or that holds a part of a window alone, is no surroundings."""
    image, labels = rectangles(96, 0)
    write_tiff(tmp_path / "a.tif", image)
    write_tiff(tmp_path / "a_labels.tif", labels)
    text = f"{HEAD}{SCENE}{WINDOW}use = 'images'\nwindow = [0, 0, 40, 96]\n{WINDOW}window = [32, 0, 32, 32]\n"
    other = text.replace("'images'\nwindow = [0, 0, 40, 96]", "'images'").replace('"train"', '"val"', 1)
    for words in (text, other):
        dataset = load_dataset(write(words))
        imagery = [plot for split in ("train", "val") for plot in read_plots(dataset, split, "images")]
        assert len(imagery) == 1
        here = [plot for plot in imagery if plot.region.split == "train"]
        (plot,) = read_pairs(dataset, "train", here)
        assert plot.parts == ()
        assert plot.shape == (32, 32)


def test_labels_that_do_not_fit_are_refused(write: Callable[[str], str], tmp_path: Path) -> None:
    image, labels = rectangles(96, 0)
    write_tiff(tmp_path / "a.tif", image)
    write_tiff(tmp_path / "a_labels.tif", labels[:64])
    dataset = load_dataset(write(HEAD + SCENE + WINDOW))
    with pytest.raises(RasterError, match="grid of"):
        read_plots(dataset, "train", "pairs")
    few = load_dataset(write(windows(1.0, [0, 0, 32, 32])))
    with pytest.raises(RasterError, match="grid of"):
        read_pairs(few, "train", read_plots(few, "train", "images"))
    labels[5, 5] = 9
    write_tiff(tmp_path / "a_labels.tif", labels)
    with pytest.raises(LegendError, match="9"):
        read_plots(dataset, "train", "pairs")


def test_labels_of_another_place_are_refused(write: Callable[[str], str], tmp_path: Path) -> None:
    image, labels = rectangles(96, 0)
    place = {"crs": "EPSG:32645", "transform": Affine(1, 0, 500_000, 0, -1, 3_000_000)}
    write_raster(tmp_path / "a.tif", image, **place)
    write_raster(tmp_path / "a_labels.tif", labels[None], **(place | {"transform": Affine(1, 0, 5e5, 0, -1, 3.1e6)}))
    with pytest.raises(RasterError, match="got another place or CRS in"):
        read_plots(load_dataset(write(HEAD + SCENE + WINDOW)), "train", "pairs")


def test_deep_labels_are_not_to_be_stretched(write: Callable[[str], str], tmp_path: Path) -> None:
    """What makes 8 bits of an image would make other classes of labels."""
    image, labels = rectangles(96, 0)
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "a_labels.tif", labels[None].astype(np.int16))
    with pytest.raises(RasterError, match=r"wanted 8-bit classes .* gdal_translate -ot Byte$"):
        read_plots(load_dataset(write(HEAD + SCENE + WINDOW)), "train", "pairs")
    write_raster(tmp_path / "a.tif", image.astype(np.int16))
    with pytest.raises(RasterError, match=r"wanted 8-bit bands .* gdal_translate -ot Byte -scale$"):
        read_plots(load_dataset(write(HEAD + SCENE + WINDOW)), "train", "pairs")


def test_protocols_of_the_same_files_are_of_other_states() -> None:
    states = {load_dataset(name).state for name in ("dubai", "dubai/quarter", "dubai/sixteenth")}
    assert len(states) == 3


def test_a_plot_is_cut_to_an_image_with_labels() -> None:
    region = Region(Scene("a", Path("a.tif"), Path("b.tif")), "val", "pairs")
    image, index = np.zeros((5, 7, 3), np.uint8), np.arange(35, dtype=np.uint8).reshape(5, 7)
    seen = np.ones((5, 7), np.bool_)
    seen[1, 2] = False
    shown, labels, there = Plot(region, image, index, seen).pair(3)
    assert (shown.shape, labels.shape, there.shape) == ((3, 6, 3), (3, 6), (3, 6))
    assert labels[1, 2] == 255
    assert np.array_equal(labels[there], index[:3, :6][seen[:3, :6]])
    assert index[1, 2] == 9, "the plot itself is left alone"
    assert Plot(region, image, index).pair()[2].all()
    with pytest.raises(DatasetError, match="image with labels of a"):
        Plot(region, image, None).pair()


def test_a_pattern_may_be_absolute(write: Callable[[str], str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("a", "b"):
        write_tiff(elsewhere / f"{name}.tif", rectangles(96, 0)[0])
    found = load_dataset(write(HEAD + f'[[scenes]]\nimage = "{elsewhere}/*.tif"\nsplit = "train"\n'))
    assert [scene.image for scene in found.scenes] == [elsewhere / "a.tif", elsewhere / "b.tif"]


def test_what_is_extended_need_not_have_scenes(write: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "common.toml").write_text(HEAD)
    found = load_dataset(write('extends = "common.toml"\n' + SCENE + WINDOW))
    assert len(found.scenes) == 1


def test_numbers_without_end_are_refused(write: Callable[[str], str]) -> None:
    with pytest.raises(DatasetError, match="wanted a valid data set descriptor"):
        load_dataset(write("bands = [inf]\n" + HEAD + SCENE + WINDOW))


def test_a_data_set_is_called_after_its_folder(
    write: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(HEAD + SCENE + WINDOW)
    monkeypatch.chdir(tmp_path)
    assert load_dataset("dataset.toml").name == tmp_path.name
