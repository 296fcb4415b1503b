"""Targets: refused before any work, whole or absent after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from segprior import target
from segprior.errors import OutputError
from segprior.target import Together, check_target, replacing


def test_refusals_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.write_text("old")
    cases = [
        (tmp_path / "none" / "a.tif", False, "there is no folder .*; make it first"),
        (file / "a.tif", False, "there is no folder"),
        (tmp_path, True, "it is a folder"),
        (file, False, "it exists; give another name or allow overwriting"),
    ]
    for path, overwrite, words in cases:
        with pytest.raises(OutputError, match=words) as caught:
            check_target(path, overwrite=overwrite)
        assert "\n" not in str(caught.value)
        with pytest.raises(OutputError, match=words), replacing(path, overwrite=overwrite):
            pytest.fail("the block must not run")
    check_target(file, overwrite=True)
    check_target(tmp_path / "b.tif", sources=[file, tmp_path / "gone.tif"])


def test_the_input_is_never_the_target(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.write_text("old")
    (tmp_path / "link.tif").symlink_to(file)
    for name in (file, tmp_path / "link.tif", tmp_path / "." / "a.tif"):
        with pytest.raises(OutputError, match="it is the input itself"):
            check_target(name, overwrite=True, sources=[file])


def test_a_folder_closed_to_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="closed to writing"):
        check_target(tmp_path / "a.tif")


def test_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, "TemporaryDirectory", refuse)
    with pytest.raises(OutputError, match="No space left on device"), replacing(tmp_path / "a.tif"):
        pytest.fail("the block must not run")


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), replacing(tmp_path / "a.tif"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_whole_and_the_old_one_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with replacing(path, overwrite=True) as fresh:
            fresh.write_text(text)
            assert fresh.name == path.name
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_targets_that_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None before all are finished, in the order of finishing; none of them and no folder where one goes wrong."""
    moved: list[str] = []
    move = target._move
    monkeypatch.setattr(target, "_move", lambda folder, to: (moved.append(to.name), move(folder, to)))
    (tmp_path / "a.txt").write_text("old")

    def write(last: BaseException | None = None) -> None:
        with Together() as together, replacing(tmp_path / "a.txt", overwrite=True, together=together) as first:
            first.write_text("new")
            with replacing(tmp_path / "b.txt", together=together) as second:
                second.write_text("new")
            assert (tmp_path / "a.txt").read_text() == "old"
            assert not (tmp_path / "b.txt").exists()
            if last is not None:
                raise last

    for error in (OutputError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(error)
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "old"
        assert moved == []
    write()
    assert moved == ["b.txt", "a.txt"]
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a.txt": "new", "b.txt": "new"}
