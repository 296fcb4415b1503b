"""Data sets: a descriptor in TOML, its scenes and splits, and random training tiles.

A descriptor names classes, bands, resolution, licence and scenes. A scene is an image and, where there is one, a label
raster on the same grid. A region is a scene, or a window of one, with its split (train, val, test) and its use: `pairs`,
`images` (imagery without labels) or `labels` (label maps without imagery). The README's "Your own data set" shows a
complete example.

Regions are read whole at the working resolution: images by area average, labels by majority. A training tile is drawn
around a pixel: half of the tiles around a pixel drawn evenly over the area, half around a pixel of a class drawn evenly
over the classes, so that rare classes are seen. `class_tilt` measures what that does to the class shares, and the
denoiser's loss divides it out.
"""

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from segprior.errors import DatasetError, LegendError
from segprior.legend import Legend
from segprior.scene import read_region
from segprior.windows import Window

Split = Literal["train", "val", "test"]
Use = Literal["pairs", "images", "labels"]
Image = NDArray[np.uint8]
Index = NDArray[np.uint8]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class Scene:
    """Image and label files of one place, absolute paths, with their SHA-256 where the descriptor gives one."""

    name: str
    image: Path
    labels: Path | None
    image_sha256: str | None = None
    labels_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A scene, or a window of it in source pixels, with its split and use."""

    scene: Scene
    split: Split
    use: Use
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A descriptor, read and checked.

    bands: numbers from 1. res: working resolution in metres. pixel_res: the size in metres that a source pixel is taken
    to have where the file has no CRS; None where the CRS tells. mean, std: of each band, in the file's units, as the
    network's image channels are normalised.
    """

    name: str
    title: str
    licence: str
    source: str
    legend: Legend
    bands: tuple[int, ...]
    res: float
    pixel_res: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    regions: tuple[Region, ...]

    def select(self, split: Split, *uses: Use) -> tuple[Region, ...]:
        """Regions of a split with one of these uses, in the descriptor's order."""
        return tuple(r for r in self.regions if r.split == split and r.use in uses)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Every scene once."""
        return tuple(dict.fromkeys(r.scene for r in self.regions))


def dataset_names() -> tuple[str, ...]:
    """Names of the data sets whose descriptors ship with segprior."""
    return tuple(sorted(p.parent.name for p in _shipped().glob("*/dataset.toml")))


def load_dataset(name: str) -> Dataset:
    """A shipped data set by name, or the descriptor at a path ending in .toml (or a folder holding dataset.toml).

    Files of a shipped data set lie under $SEGPRIOR_DATA/NAME (default ../shared/data/NAME), others beside their
    descriptor. Raises DatasetError.
    """
    path = Path(name)
    if path.is_dir() and (path / "dataset.toml").is_file():
        path = path / "dataset.toml"
    if path.suffix == ".toml":
        return _parse(path, path.parent, path.parent.name)
    if name not in dataset_names():
        raise DatasetError(
            f"wanted a data set ({', '.join(dataset_names())}) or the path of a dataset.toml, got {name!r}"
        )
    root = Path(os.environ.get("SEGPRIOR_DATA", "../shared/data")) / name
    return _parse(_shipped() / name / "dataset.toml", root, name)


def _shipped() -> Path:
    package = Path(str(files("segprior")))
    inside = package / "datasets"
    return inside if inside.is_dir() else package.parent / "datasets"


def _parse(path: Path, root: Path, name: str) -> Dataset:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"wanted a data set descriptor, found no file at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"wanted a data set descriptor in TOML at {path}, got: {error}") from None
    try:
        bands = tuple(int(b) for b in table.get("bands", (1, 2, 3)))
        imagenet = len(bands) == len(IMAGENET_MEAN)
        return Dataset(
            name=str(table.get("name", name)),
            title=str(table.get("title", table.get("name", name))),
            licence=str(table.get("licence", "not stated")),
            source=str(table.get("source", "not stated")),
            legend=Legend.from_dict({"classes": table["classes"], "nodata": table.get("nodata", 255)}),
            bands=bands,
            res=float(table["res"]),
            pixel_res=float(table["pixel_res"]) if "pixel_res" in table else None,
            mean=tuple(table.get("mean", IMAGENET_MEAN if imagenet else [127.5] * len(bands))),
            std=tuple(table.get("std", IMAGENET_STD if imagenet else [64.0] * len(bands))),
            regions=tuple(_regions(table, root)),
        )
    except KeyError as error:
        raise DatasetError(f"wanted the key {error} in the data set descriptor {path}, found none") from None
    except (TypeError, ValueError, LegendError) as error:
        raise DatasetError(f"wanted a valid data set descriptor at {path}, got: {error}") from None


def _regions(table: Mapping[str, Any], root: Path) -> Iterator[Region]:
    scenes: dict[str, Scene] = {}
    for entry in table["scenes"]:
        for scene in _expand(entry, root):
            scenes[scene.name] = scene
            if "split" in entry:
                default = "pairs" if scene.labels else "images"
                yield _region(scene, entry, default)
    for entry in table.get("windows", ()):
        if entry["scene"] not in scenes:
            raise ValueError(f"window of an unknown scene {entry['scene']!r}; scenes are {', '.join(scenes)}")
        yield _region(scenes[entry["scene"]], entry, "pairs")


def _expand(entry: Mapping[str, Any], root: Path) -> Iterator[Scene]:
    image = str(entry["image"])
    found = sorted(root.glob(image)) if "*" in image else [root / image]
    if not found:
        raise ValueError(f"no file matches the scene image {root / image}")
    for path in found:
        labels = entry.get("labels")
        name = path.stem if "*" in image else str(entry.get("name", path.stem))
        yield Scene(
            name=name,
            image=path,
            labels=root / str(labels).replace("{stem}", path.stem) if labels else None,
            image_sha256=entry.get("image_sha256"),
            labels_sha256=entry.get("labels_sha256"),
        )


def _region(scene: Scene, entry: Mapping[str, Any], default: str) -> Region:
    split, use = str(entry["split"]), str(entry.get("use", default))
    if split not in get_args(Split) or use not in get_args(Use):
        raise ValueError(f"split must be one of {get_args(Split)} and use one of {get_args(Use)}; got {split!r}, {use!r}")
    if use != "images" and scene.labels is None:
        raise ValueError(f"scene {scene.name} has no labels, so its use must be 'images'; got {use!r}")
    window = Window(*(int(v) for v in entry["window"])) if "window" in entry else None
    return Region(scene, cast(Split, split), cast(Use, use), window)


def verify(dataset: Dataset) -> Iterator[tuple[Path, str]]:
    """Each file of the data set with its state: "ok", "missing", "altered" or "no checksum"."""
    for scene in dataset.scenes:
        for path, wanted in ((scene.image, scene.image_sha256), (scene.labels, scene.labels_sha256)):
            if path is not None:
                yield path, _state(path, wanted)


def _state(path: Path, wanted: str | None) -> str:
    if not path.is_file():
        return "missing"
    if wanted is None:
        return "no checksum"
    with path.open("rb") as file:
        return "ok" if hashlib.file_digest(file, "sha256").hexdigest() == wanted else "altered"


@dataclass(frozen=True, slots=True)
class Plot:
    """A region in memory at the working resolution.

    image: uint8 (rows, columns, bands) or None for use `labels`; index: uint8 class index (rows, columns), 255 where not
    labelled, or None for use `images`.
    """

    region: Region
    image: Image | None
    index: Index | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        array = self.image if self.image is not None else self.index
        assert array is not None  # noqa: S101  # one of the two is there by construction
        return int(array.shape[0]), int(array.shape[1])


def read_plot(dataset: Dataset, region: Region) -> Plot:
    """Read one region at the data set's working resolution."""
    image = index = None
    if region.use != "labels":
        image = read_region(
            region.scene.image, region.window, res=dataset.res, pixel_res=dataset.pixel_res, bands=dataset.bands
        ).transpose(1, 2, 0)
    if region.use != "images" and region.scene.labels is not None:
        values = read_region(
            region.scene.labels, region.window, res=dataset.res, pixel_res=dataset.pixel_res, majority=True
        )
        index = dataset.legend.to_index(values[0])
    if image is not None and index is not None and image.shape[:2] != index.shape:
        raise DatasetError(
            f"wanted labels on the grid of {region.scene.image}, got {index.shape} against {image.shape[:2]} pixels"
        )
    return Plot(region, None if image is None else np.ascontiguousarray(image), index)


def read_plots(dataset: Dataset, split: Split, *uses: Use) -> tuple[Plot, ...]:
    """All regions of a split with these uses."""
    return tuple(read_plot(dataset, region) for region in dataset.select(split, *uses))


@dataclass(frozen=True, slots=True)
class Tile:
    """A training tile: image uint8 (size, size, bands) and class index uint8 (size, size), 255 where not labelled."""

    image: Image
    index: Index


class TilePool:
    """Plots to draw random tiles from.

    A draw picks a plot in proportion to its area, or, for half of the draws where labels are given, a class evenly and
    one of its pixels evenly; the tile is cut around that pixel at a scale between 0.5 and 2 (log-uniform), flipped and
    turned at random, and its colours are changed.
    """

    def __init__(self, plots: Sequence[Plot], *, classes: int, size: int, bands: int) -> None:
        if not plots:
            raise DatasetError("wanted at least one region to draw tiles from, got none")
        self.plots = tuple(plots)
        self.size = size
        self.bands = bands
        areas = np.array([p.shape[0] * p.shape[1] for p in plots], dtype=np.float64)
        self._shares = areas / areas.sum()
        self._pixels = [_pixels_of(plots, c) for c in range(classes)]
        self._present = [c for c in range(classes) if len(self._pixels[c])]
        self._colour, self._turn = _augmentation()

    def draw(self, rng: np.random.Generator) -> Tile:
        """One augmented tile; the same for the same state of `rng`."""
        return self._augment(self._cut(rng), rng)

    def draw_index(self, rng: np.random.Generator) -> Index:
        """The labels of one tile without flips, turns and colours: enough to count classes."""
        return self._cut(rng).index

    def _centre(self, rng: np.random.Generator) -> tuple[int, int, int]:
        if self._present and rng.random() < 0.5:
            pixels = self._pixels[self._present[rng.integers(len(self._present))]]
            number, row, col = pixels[rng.integers(len(pixels))]
            return int(number), int(row), int(col)
        number = int(rng.choice(len(self.plots), p=self._shares))
        rows, cols = self.plots[number].shape
        return number, int(rng.integers(rows)), int(rng.integers(cols))

    def _cut(self, rng: np.random.Generator) -> Tile:
        import cv2

        number, row, col = self._centre(rng)
        plot = self.plots[number]
        side = max(8, round(self.size / float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))))
        rows = _span(row, side, plot.shape[0], rng)
        cols = _span(col, side, plot.shape[1], rng)
        image = np.zeros((side, side, self.bands), np.uint8)
        index = np.full((side, side), 255, np.uint8)
        if plot.image is not None:
            image = plot.image[np.ix_(rows, cols)]
        if plot.index is not None:
            index = plot.index[np.ix_(rows, cols)]
        shrink = side > self.size
        image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
        index = cv2.resize(index, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)
        return Tile(image.reshape(self.size, self.size, self.bands).astype(np.uint8), index.astype(np.uint8))

    def _augment(self, tile: Tile, rng: np.random.Generator) -> Tile:
        self._turn.set_random_seed(int(rng.integers(2**31)))
        turned = self._turn(image=tile.image, mask=tile.index)
        image = turned["image"]
        if self.bands == 3:
            self._colour.set_random_seed(int(rng.integers(2**31)))
            image = self._colour(image=image)["image"]
        return Tile(np.ascontiguousarray(image), np.ascontiguousarray(turned["mask"]))


def _span(centre: int, side: int, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `side` pixels that hold `centre` at a random place, reflected at the ends if the plot is smaller."""
    first = centre - int(rng.integers(side))
    if length >= side:
        first = min(max(first, 0), length - side)
    period = np.arange(first, first + side) % (2 * length)
    return np.where(period < length, period, 2 * length - 1 - period)


def _pixels_of(plots: Sequence[Plot], index: int, most: int = 200_000) -> NDArray[np.int32]:
    """(plot, row, column) of up to `most` pixels of a class, evenly thinned."""
    found = []
    for number, plot in enumerate(plots):
        if plot.index is not None:
            at = np.argwhere(plot.index == index).astype(np.int32)
            found.append(np.column_stack([np.full(len(at), number, np.int32), at]))
    pixels = np.concatenate(found) if found else np.empty((0, 3), np.int32)
    return pixels[:: max(1, len(pixels) // most)]


def _augmentation() -> tuple[Any, Any]:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it calls home at import otherwise
    import albumentations as A  # noqa: N812  # its documented alias

    colour = A.Compose(
        [
            A.RandomBrightnessContrast(brightness_limit=0.12, contrast_limit=0.2, p=0.7),
            A.HueSaturationValue(hue_shift_limit=12, sat_shift_limit=25, val_shift_limit=15, p=0.5),
            A.RandomGamma(gamma_limit=(75, 130), p=0.3),
            A.RGBShift(r_shift_limit=10, g_shift_limit=10, b_shift_limit=10, p=0.3),
            A.GaussianBlur(blur_limit=(3, 5), p=0.1),
            A.ToGray(p=0.05),
        ]
    )
    return colour, A.Compose([A.D4(p=1.0)])


def class_tilt(pool: TilePool, *, classes: int, tiles: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """log(share of each class in drawn tiles / share in the plots), zero-mean; zero for a class that does not occur."""
    rng = np.random.default_rng([seed, 7])
    drawn = np.zeros(256, np.int64)
    for _ in range(tiles):
        drawn += np.bincount(pool.draw_index(rng).ravel(), minlength=256)
    true = np.zeros(256, np.int64)
    for plot in pool.plots:
        if plot.index is not None:
            true += np.bincount(plot.index.ravel(), minlength=256)
    both = (drawn[:classes] > 0) & (true[:classes] > 0)
    share_drawn = drawn[:classes] / max(1, drawn[:classes].sum())
    share_true = true[:classes] / max(1, true[:classes].sum())
    tilt = np.zeros(classes)
    tilt[both] = np.log(share_drawn[both] / share_true[both])
    return tilt
