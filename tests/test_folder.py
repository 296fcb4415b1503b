"""Folders that are filled with all of their files or none."""

import os
from pathlib import Path

import pytest

from segprior.errors import OutputError
from segprior.folder import check_folder, filling

NAMES = ("a.tif", "b.png")


def fill(folder: Path, text: str = "new", *, sidecar: bool = False, overwrite: bool = False) -> None:
    with filling(folder, NAMES, overwrite=overwrite) as stage:
        for name in NAMES:
            (stage / name).write_text(text)
        if sidecar:
            (stage / "a.tif.aux.xml").write_text(text)


def fail_half_way(folder: Path, blow: type[BaseException]) -> None:
    with filling(folder, NAMES, overwrite=True) as stage:
        (stage / "a.tif").write_text("half")
        raise blow


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_is_made_and_filled(tmp_path: Path) -> None:
    fill(tmp_path / "new", sidecar=True)
    assert contents(tmp_path / "new") == {"a.tif": "new", "b.png": "new", "a.tif.aux.xml": "new"}


def test_other_files_stay_and_old_ones_go_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fill(tmp_path, "old", sidecar=True)
    with pytest.raises(OutputError, match="exists"):
        fill(tmp_path)
    fill(tmp_path, overwrite=True)
    assert contents(tmp_path) == {"notes.txt": "mine", "a.tif": "new", "b.png": "new"}


@pytest.mark.parametrize("blow", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, blow: type[BaseException], exists: bool) -> None:
    folder = tmp_path / "results"
    if exists:
        folder.mkdir()
        (folder / "a.tif").write_text("old")
    with pytest.raises(blow):
        fail_half_way(folder, blow)
    assert folder.exists() == exists
    assert not exists or contents(folder) == {"a.tif": "old"}


def test_bad_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="it is a file"):
        check_folder(file, NAMES)
    with pytest.raises(OutputError, match="no folder"):
        check_folder(tmp_path / "missing" / "deeper", NAMES)
    (tmp_path / "a.tif").touch()
    with pytest.raises(OutputError, match="input itself"):
        check_folder(tmp_path, NAMES, overwrite=True, sources=[tmp_path / "a.tif"])


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="No space left"):
        fill(tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        fill(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
