"""Data sets: a descriptor in TOML, its scenes and splits.

A descriptor names classes, bands, resolution, licence and scenes. A scene is an image and, where there is one, a label
raster on the same grid. A region is a scene, or a window of one, with its split (train, val, test) and its use:
`pairs`, `images` (imagery without labels) or `labels` (label maps without imagery). The README's "Your own data set"
shows a complete example. `plots` reads the pixels of regions.

A descriptor with the key `extends` is a protocol: it takes over all that the descriptor named there says but its own
keys, windows above all. Shipped ones stand beside their data set's and are called DATASET/PROTOCOL (fair/newregion).
"""

import hashlib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from segprior.errors import DatasetError, LegendError, SettingError
from segprior.legend import Legend
from segprior.provenance import digest, fingerprint
from segprior.windows import Window

Split = Literal["train", "val", "test"]
Use = Literal["pairs", "images", "labels"]
WINDOW_KEYS = frozenset({"scene", "split", "use", "window"})
SCENE_KEYS = frozenset(
    {"name", "image", "labels", "image_sha256", "labels_sha256", "pixel_res", "split", "use", "window"}
)
KEYS = frozenset(
    {"name", "title", "licence", "source", "attribution", "extends", "classes", "nodata", "bands", "res", "pixel_res"}
    | {"mean", "std", "scenes", "windows"}
)
"""What a descriptor may say of a window, of a scene and of itself."""
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class Scene:
    """Image and label files of one place, absolute paths, with their SHA-256 where the descriptor gives one.

    pixel_res: the size in metres that a pixel is taken to have, against what the file's CRS says; None where that is to
    tell. belief: of labels that were inferred, the probabilities of the classes, a band for each in bytes of 1/254;
    they are what is learned, the labels being the largest.
    """

    name: str
    image: Path
    labels: Path | None
    image_sha256: str | None = None
    labels_sha256: str | None = None
    pixel_res: float | None = None
    belief: Path | None = None


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

    bands: numbers from 1. res: working resolution in metres. mean, std: of each band, in the file's units, as the
    network's image channels are normalised.
    """

    name: str
    title: str
    licence: str
    source: str
    legend: Legend
    bands: tuple[int, ...]
    res: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        if not self.bands or min(self.bands) < 1:
            raise DatasetError(f"wanted bands counted from 1, got {list(self.bands)}")
        if not len(self.bands) == len(self.mean) == len(self.std) or not all(s > 0 for s in self.std):
            raise DatasetError(
                f"wanted a mean and a std > 0 of each of the {len(self.bands)} bands, "
                f"got mean {list(self.mean)} and std {list(self.std)}"
            )
        sizes = (self.res, *(region.scene.pixel_res for region in self.regions))
        if not all(size is None or size > 0 for size in sizes):
            told = ", ".join(dict.fromkeys(str(size) for size in sizes))
            raise DatasetError(f"wanted res and pixel_res > 0 metres, got {told}")
        if not self.regions:
            raise DatasetError("wanted a split of at least one scene or window, got none")
        _check_apart(self.regions)

    def select(self, split: Split, *uses: Use) -> tuple[Region, ...]:
        """Regions of a split with one of these uses, in the descriptor's order."""
        return tuple(r for r in self.regions if r.split == split and r.use in uses)

    @property
    def state(self) -> str:
        """What tells that a training on it is the same: a checksum of what it says and of the state of its files."""

        def files(scene: Scene) -> list[str]:
            return [fingerprint(path) for path in (scene.image, scene.labels, scene.belief) if path is not None]

        said = [(r.split, r.use, r.window, r.scene.pixel_res, *files(r.scene)) for r in self.regions]
        looks = (self.legend, self.bands, self.res, self.mean, self.std)
        return hashlib.sha256(repr((self.name, looks, said)).encode()).hexdigest()[:16]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Every scene once."""
        return tuple(dict.fromkeys(r.scene for r in self.regions))


def dataset_names() -> tuple[str, ...]:
    """Names of the data sets whose descriptors ship with segprior, and of their protocols."""
    found = ((p.parent.name, p.stem) for p in _shipped().glob("*/*.toml"))
    return tuple(sorted(folder if stem == "dataset" else f"{folder}/{stem}" for folder, stem in found))


def load_dataset(name: str) -> Dataset:
    """Read a shipped data set by name, or the descriptor at a path ending in .toml (or a folder holding dataset.toml).

    Files of a shipped data set lie under $SEGPRIOR_DATA/NAME (default ../shared/data/NAME), as do those of its
    protocols NAME/PROTOCOL; others lie beside their descriptor. Raises DatasetError.
    """
    path = Path(name)
    if path.is_dir() and (path / "dataset.toml").is_file():
        path = path / "dataset.toml"
    if path.suffix == ".toml":
        return _parse(path, path.parent, path.resolve().parent.name)
    if name not in dataset_names():
        raise DatasetError(
            f"wanted a data set ({', '.join(dataset_names())}) or the path of a dataset.toml, got {name!r}"
        )
    folder, _, protocol = name.partition("/")
    root = Path(os.environ.get("SEGPRIOR_DATA", "../shared/data")) / folder
    return _parse(_shipped() / folder / f"{protocol or 'dataset'}.toml", root, name)


def _shipped() -> Path:
    package = Path(str(files("segprior")))
    inside = package / "datasets"
    return inside if inside.is_dir() else package.parent / "datasets"


def _parse(path: Path, root: Path, name: str) -> Dataset:
    table = _table(path)
    if "extends" in table:
        base = _table(path.parent / str(table["extends"]))
        if "extends" in base:
            raise DatasetError(f"wanted {path} to extend a descriptor that extends none, got {table['extends']}")
        # scenes that name their split are windows too, those of the data set that is extended
        scenes = [
            {k: v for k, v in entry.items() if k not in {"split", "use", "window"}} for entry in base.get("scenes", ())
        ]
        table = {**base, "scenes": scenes, **table}
    try:
        _check_keys(table, KEYS, "the descriptor")
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
            mean=tuple(float(v) for v in table.get("mean", IMAGENET_MEAN if imagenet else [127.5] * len(bands))),
            std=tuple(float(v) for v in table.get("std", IMAGENET_STD if imagenet else [64.0] * len(bands))),
            regions=tuple(_regions(table, root)),
        )
    except KeyError as error:
        raise DatasetError(f"wanted the key {error} in the data set descriptor {path}, found none") from None
    except (AttributeError, TypeError, ValueError, OverflowError, DatasetError, LegendError, SettingError) as error:
        raise DatasetError(f"wanted a valid data set descriptor at {path}, got: {error}") from None


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"wanted a data set descriptor, found no file at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"wanted a data set descriptor in TOML at {path}, got: {error}") from None


def _regions(table: Mapping[str, Any], root: Path) -> Iterator[Region]:
    scenes: dict[str, Scene] = {}
    for entry in table["scenes"]:
        _check_keys(entry, SCENE_KEYS, "a scene")
        for scene in _expand({"pixel_res": table.get("pixel_res"), **entry}, root):
            if scene.name in scenes:
                raise ValueError(f"scenes need different names; two are called {scene.name!r}")
            scenes[scene.name] = scene
            if "split" in entry:
                default = "pairs" if scene.labels else "images"
                yield _region(scene, entry, default)
    for entry in table.get("windows", ()):
        _check_keys(entry, WINDOW_KEYS, "a window")
        if entry["scene"] not in scenes:
            raise ValueError(f"window of an unknown scene {entry['scene']!r}; scenes are {', '.join(scenes)}")
        yield _region(scenes[entry["scene"]], entry, "pairs")


def _expand(entry: Mapping[str, Any], root: Path) -> Iterator[Scene]:
    image = str(entry["image"])
    anchor = Path(image).anchor  # of an absolute pattern, which Path.glob refuses
    home = Path(anchor) if anchor else root
    found = sorted(home.glob(image.removeprefix(anchor))) if "*" in image else [root / image]
    if not found:
        raise ValueError(f"no file matches the scene image {root / image}")
    labels = entry.get("labels")
    if labels and len(found) > 1 and "{stem}" not in str(labels):
        raise ValueError(f"{image} matches {len(found)} files, so labels need a {{stem}} to differ; got {labels!r}")
    for path in found:
        name = path.relative_to(home).with_suffix("").as_posix() if "*" in image else str(entry.get("name", path.stem))
        yield Scene(
            name=name,
            image=path,
            labels=root / str(labels).replace("{stem}", path.stem) if labels else None,
            image_sha256=entry.get("image_sha256"),
            labels_sha256=entry.get("labels_sha256"),
            pixel_res=None if entry["pixel_res"] is None else float(entry["pixel_res"]),
        )


def _check_keys(entry: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    if unknown := set(entry) - known:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))} in {what}; known are {', '.join(sorted(known))}")


def _check_apart(regions: Iterable[Region]) -> None:
    """Raise DatasetError where labels are trained on that others are scored on."""
    labelled = [region for region in regions if region.use != "images"]
    trained = [region for region in labelled if region.split == "train"]
    for scored in (region for region in labelled if region.split != "train"):
        for other in trained:
            apart = scored.window and other.window and not scored.window.meets(other.window)
            if scored.scene.labels == other.scene.labels and not apart:
                raise DatasetError(
                    f"wanted no training labels in what is scored, got windows of {scored.scene.name} in 'train' "
                    f"and in {scored.split!r} that overlap; a scene with a split and no window is in it whole"
                )


def split_named(name: str) -> Split:
    """Give the split of this name. Raises DatasetError."""
    if name not in get_args(Split):
        raise DatasetError(f"wanted the split {', '.join(get_args(Split))}, got {name!r}")
    return cast(Split, name)


def _region(scene: Scene, entry: Mapping[str, Any], default: str) -> Region:
    split, use = str(entry["split"]), str(entry.get("use", default))
    if split not in get_args(Split) or use not in get_args(Use):
        raise ValueError(f"split must be in {get_args(Split)} and use in {get_args(Use)}; got {split!r} and {use!r}")
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
    return "ok" if digest(path) == wanted else "altered"
