"""Where a result comes from: checksums, and the commit of a checkout."""

import hashlib
import subprocess
from pathlib import Path

from affine import Affine
from rasters import checkered, write_raster

from segprior.provenance import commit, digest, fingerprint
from segprior.vrt import mosaic


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def test_a_digest_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_shapefile_has_changed_if_one_of_its_parts_has(tmp_path: Path) -> None:
    for end in (".shp", ".dbf", ".txt"):
        (tmp_path / f"a{end}").write_text("first")
    before = fingerprint(tmp_path / "a.shp")
    assert before.startswith("a.shp, 5 bytes, changed ")
    (tmp_path / "a.txt").write_text("another")
    assert fingerprint(tmp_path / "a.shp") == before
    (tmp_path / "a.dbf").write_text("another")
    assert fingerprint(tmp_path / "a.shp") != before
    assert fingerprint(tmp_path / "gone.shp") == "gone.shp"


def test_a_virtual_raster_has_changed_if_what_it_shows_has(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_raster(
            tmp_path / f"{name}.tif", checkered(1, 8, 8), crs="EPSG:32645", transform=Affine(1, 0, 5e5, 0, -1, 3e6)
        )
    mosaic([tmp_path / "a.tif", tmp_path / "b.tif"], tmp_path / "all.vrt")
    before = fingerprint(tmp_path / "all.vrt")
    assert fingerprint(tmp_path / "all.vrt") == before
    write_raster(tmp_path / "b.tif", checkered(1, 8, 9), crs="EPSG:32645", transform=Affine(1, 0, 5e5, 0, -1, 3e6))
    assert fingerprint(tmp_path / "all.vrt") != before
    (tmp_path / "none.vrt").write_text("no raster")
    assert fingerprint(tmp_path / "none.vrt").startswith("none.vrt, 9 bytes")


def test_the_commit_is_that_of_the_code_and_the_script(tmp_path: Path) -> None:
    for name in ("segprior/code.py", "segprior/weights/a", "scripts/one.py", "scripts/two.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first\n")
    one, two = tmp_path / "scripts" / "one.py", tmp_path / "scripts" / "two.py"
    assert commit(one) == "unknown"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    first = git(tmp_path, "log", "-1", "--format=%h")
    assert commit(one) == first
    for name in ("segprior/weights/a", "README.md", "scripts/two.py"):
        (tmp_path / name).write_text("second\n")
    assert commit(one) == first, "neither weights nor other files count"
    assert commit(two) == f"{first} with changes"
    git(tmp_path, "commit", "-qam", "second")
    assert commit(one) == first
    assert commit(two) == git(tmp_path, "log", "-1", "--format=%h") != first
    (tmp_path / "segprior" / "new.py").write_text("new\n")
    assert commit(one) == f"{first} with changes"
