"""One scene in the forms that people have it in: how far the masks agree with that of the scene as it is.

    python scripts/odd_rasters.py ../shared/data/fair/kampala_b.tif --prior buildings

Every form is made with rasterio from the scene, segmented with the default settings (and the options that the table
names), and its mask is brought to the scene's own grid by the nearest pixel and compared, pixel by pixel, where both
hold data. Forms that only change how pixels are stored must agree everywhere; forms that were resampled lose what
resampling loses. gdalinfo, where it is installed, and rasterio must read each mask with its grid, names and colours.
The table goes to scripts/results/odd_rasters.md; the pictures, with --pictures, show image and mask of every form.
"""

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import rasterio
import typer
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.shutil import copy as copy_raster
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

from segprior.checkpoint import read_card
from segprior.findings import publish
from segprior.options import Options
from segprior.picture import Panel, colour, panels
from segprior.provenance import commit
from segprior.segmentation import segment
from segprior.stretch import Stretch
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
FEET = "+proj=utm +zone={zone} +datum=WGS84 +units=us-ft +no_defs"
Pixels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A way to have the scene: what makes the file from it, and what `segment` is told."""

    make: Callable[[Path, Path], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    told: str = ""


def stored(change: Callable[[Pixels], Pixels], **profile: Any) -> Callable[[Path, Path], None]:
    """Write the pixels, changed, in a new profile."""

    def make(scene: Path, target: Path) -> None:
        with rasterio.open(scene) as source:
            pixels = change(source.read())
            kept = {"crs": source.crs, "transform": source.transform, "width": source.width, "height": source.height}
        new = {"driver": "GTiff", "count": len(pixels), "dtype": pixels.dtype, **kept, **profile}
        with rasterio.open(target, "w", **new) as file:
            file.write(pixels)

    return make


def warped(crs: Callable[[Any], Any], turn: float = 0.0) -> Callable[[Path, Path], None]:
    """Warp to another CRS, or turn the grid by some degrees, bilinear."""

    def make(scene: Path, target: Path) -> None:
        with rasterio.open(scene) as source:
            grid: dict[str, Any] = {"crs": crs(source), "resampling": Resampling.bilinear, "add_alpha": True}
            if turn:
                side = math.ceil(math.hypot(source.width, source.height))
                middle = source.transform @ (source.width / 2, source.height / 2)
                about = (
                    Affine.translation(*middle) @ Affine.rotation(turn) @ Affine.scale(source.res[0], -source.res[1])
                )
                grid |= {"transform": about @ Affine.translation(-side / 2, -side / 2), "width": side, "height": side}
            with WarpedVRT(source, **grid) as view:
                profile = {"driver": "GTiff", "count": view.count, "dtype": "uint8", "crs": view.crs}
                place = {"transform": view.transform, "width": view.width, "height": view.height}
                with rasterio.open(target, "w", **profile, **place) as file:
                    file.write(view.read())
                    file.colorinterp = [*source.colorinterp[:3], ColorInterp.alpha]

    return make


def masked(scene: Path, target: Path) -> None:
    """An internal mask that hides a quarter, over pixels that stay."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        stored(lambda pixels: pixels)(scene, target)
        with rasterio.open(target, "r+") as file:
            seen = np.ones(file.shape, np.bool_)
            seen[: file.height // 2, : file.width // 2] = False
            file.write_mask(seen)


def coloured(order: tuple[int, ...], meanings: tuple[ColorInterp, ...]) -> Callable[[Path, Path], None]:
    """Reorder the bands, and say what they are."""

    def make(scene: Path, target: Path) -> None:
        stored(lambda pixels: pixels[list(order)])(scene, target)
        with rasterio.open(target, "r+") as file:
            file.colorinterp = meanings

    return make


def driven(driver: str, **options: Any) -> Callable[[Path, Path], None]:
    """Copy with another driver."""
    return lambda scene, target: copy_raster(str(scene), str(target), driver=driver, **options)


def utm_zone(source: Any) -> int:
    """Zone of the scene's middle."""
    west, _, east, _ = rasterio.warp.transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    return int((west + east) / 2 // 6) + 31


RED, GREEN, BLUE = ColorInterp.red, ColorInterp.green, ColorInterp.blue
FORMS = {
    "cloud-optimised": Form(driven("COG", compress="deflate")),
    "VRT": Form(driven("VRT")),
    "PNG with its place beside it": Form(driven("PNG", worldfile="yes")),
    "blue, green, red; --bands red,green,blue": Form(
        coloured((2, 1, 0), (BLUE, GREEN, RED)), {"bands": ("red", "green", "blue")}
    ),
    "four bands": Form(
        coloured((0, 1, 2, 1), (RED, GREEN, BLUE, ColorInterp.undefined)),
    ),
    "16 bit, 257 times as much; --scale 0,65535": Form(
        stored(lambda pixels: pixels.astype(np.uint16) * 257), {"stretch": Stretch.parse("0,65535")}
    ),
    "16 bit; percentiles": Form(stored(lambda pixels: pixels.astype(np.uint16) * 40 + 300)),
    "floats; percentiles": Form(stored(lambda pixels: (pixels / 255).astype(np.float32))),
    "an internal mask": Form(masked),
    "JPEG, quality 90": Form(driven("GTiff", compress="jpeg", jpeg_quality=90, photometric="ycbcr")),
    "degrees (EPSG:4326)": Form(warped(lambda _: "EPSG:4326")),
    "web mercator (EPSG:3857)": Form(warped(lambda _: "EPSG:3857")),
    "US feet": Form(warped(lambda source: FEET.format(zone=utm_zone(source)))),
    "a turned grid, 30 degrees": Form(warped(lambda source: source.crs, turn=30)),
}


def main(
    scene: Annotated[Path, typer.Argument(help="a GeoTIFF of three 8-bit bands with a place")],
    *,
    prior: Annotated[str, typer.Option(help="buildings, landcover, or a prior's file")] = "buildings",
    pictures: Annotated[Path | None, typer.Option(help="a folder for a picture of every form")] = None,
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Segment every form and compare."""
    rows: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory(prefix="segprior-odd-") as place, counted("segmenting", "forms", len(FORMS) + 1) as advance:
        plain = Path(place) / "plain-mask.tif"
        segment(scene, plain, prior=prior)
        advance()
        for number, (name, form) in enumerate(FORMS.items()):
            image = Path(place) / f"{number}.{'vrt' if name == 'VRT' else 'png' if name.startswith('PNG') else 'tif'}"
            mask = image.with_name(f"{number}-mask.tif")
            form.make(scene, image)
            segment(image, mask, prior=prior, options=Options(**form.options))
            agreement, common = compared(plain, mask)
            rows[name] = {"agreement": agreement, "common": common, "readers": readers(image, mask)}
            if pictures is not None:
                show(pictures / f"{number}.png", image, mask, prior)
            advance()
    write(results, rows, scene, prior)


def compared(plain: Path, mask: Path) -> tuple[float, float]:
    """Share of pixels of one class where both hold data, and these as a share of the plain mask's data."""
    with rasterio.open(plain) as wanted, rasterio.open(mask) as got:
        expected = wanted.read(1)
        found = np.full(expected.shape, 255, np.uint8)
        reproject(
            rasterio.band(got, 1),
            found,
            dst_transform=wanted.transform,
            dst_crs=wanted.crs,
            src_nodata=255,
            dst_nodata=255,
            resampling=Resampling.nearest,
        )
    both = (expected != 255) & (found != 255)
    return float((expected == found)[both].mean()), float(both.sum() / (expected != 255).sum())


def readers(image: Path, mask: Path) -> str:
    """Name the programs that find the image's grid, the class names and the colours in the mask."""
    with rasterio.open(image) as wanted, rasterio.open(mask) as got:
        same = (wanted.shape, wanted.transform, wanted.crs) == (got.shape, got.transform, got.crs)
        found = ["rasterio"] if same and got.nodata == 255 and got.colormap(1) else []
    if shutil.which("gdalinfo") is not None:
        told = json.loads(subprocess.check_output(["gdalinfo", "-json", str(mask)], text=True))
        words = subprocess.check_output(["gdalinfo", str(mask)], text=True)
        with rasterio.open(image) as wanted:
            placed = np.allclose(told["geoTransform"], wanted.transform.to_gdal())
        parts = ("Categories:", "Color Table", "GDALRasterAttributeTable")
        if placed and told["size"] == [wanted.width, wanted.height] and all(part in words for part in parts):
            found.append("gdalinfo")
    return " and ".join(found) or "none"


def show(path: Path, image: Path, mask: Path, prior: str) -> None:
    """Put image and mask side by side."""
    legend = read_card(prior).legend
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(image) as source, rasterio.open(mask) as classes:
        raw = source.read([1, 2, 3]).astype(np.float64)
        shown = np.clip(255 * (raw - raw.min()) / max(raw.max() - raw.min(), 1e-9), 0, 255).astype(np.uint8)
        index = legend.to_index(classes.read(1))
    panels(
        path,
        [Panel("image", shown.transpose(1, 2, 0)), Panel("mask", colour(index, legend))],
        legend,
        gaps=True,
        overwrite=True,
    )


def write(results: Path, rows: dict[str, dict[str, Any]], scene: Path, prior: str) -> None:
    """Put the table into words."""
    lines = [
        f"| {name} | {row['agreement']:.2%} | {row['common']:.1%} | {row['readers']} |" for name, row in rows.items()
    ]
    text = f"""# One scene in many forms

Made by `scripts/odd_rasters.py` at commit {commit(Path(__file__))}: {scene.name}, prior {prior}. Agreement is the share
of pixels with the class that the scene as it is gets, where both hold data; common are these as a share of all.

| form | agreement | common | read with grid, names and colours by |
|---|---|---|---|
{chr(10).join(lines)}
"""
    publish(results / "odd_rasters", text, rows)
    print(text)


if __name__ == "__main__":
    run_script(main)
