"""Where a result comes from: the checksum of a file or what tells that it is still the same, the commit of the code."""

import hashlib
import os
import subprocess
import warnings
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

PARTS = {".shp": (".dbf", ".shx", ".prj", ".cpg")}
"""Files that belong to one of another ending: a shapefile's classes are in its .dbf."""

CODE = ("segprior", ":!segprior/weights", "datasets")
"""What results depend on in a checkout, besides the script that makes them and the prior, which has a checksum."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(file: str | os.PathLike[str]) -> str:
    """What tells that a file is still the same: its name, and its size and time of change where it is a file here."""
    path = Path(file)
    if not path.is_file():
        return path.name
    parts = [path.with_suffix(end) for end in PARTS.get(path.suffix.lower(), ())]
    if path.suffix.lower() == ".vrt":
        parts += _sources(path)
    return "; ".join(
        f"{part.name}, {part.stat().st_size} bytes, changed {part.stat().st_mtime_ns}"
        for part in (path, *parts)
        if part.is_file()
    )


def _sources(path: Path) -> list[Path]:
    """Files that a virtual raster shows, as GDAL names them; none of a file that is no raster."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # where it lies is not asked
            with rasterio.open(path) as dataset:
                return [Path(name) for name in dataset.files if Path(name) != path]
    except RasterioError:  # whoever opens it next says so
        return []


def commit(script: Path) -> str:
    """Name the last commit that touched the code or `script`, one folder below the root of a checkout.

    It says "with changes" if there are any since, and "unknown" outside a checkout.
    """
    root = script.resolve().parents[1]
    paths = (*CODE, str(script.resolve().relative_to(root)))
    ask = [["git", "log", "-1", "--format=%h", "--", *paths], ["git", "status", "--porcelain", "--", *paths]]
    last, changed = (
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout  # noqa: S603  # no shell
        for command in ask
    )
    return (last.strip() or "unknown") + (" with changes" if changed.strip() else "")
