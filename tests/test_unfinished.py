"""Rows that a killed run leaves: the next run ends with the same bytes; other work begins anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from rasters import checkered, write_raster
from tiny import tiny_prior

from segprior import unfinished as module
from segprior.errors import OutputError
from segprior.native import BEGINNING, Start
from segprior.options import Options
from segprior.prior.infer import FixedPoint
from segprior.provenance import digest
from segprior.segmentation import Summary, segment
from segprior.unfinished import JOURNAL, Layer, Unfinished, Work

LAYERS = {"classes": Layer(1, "uint8"), "probabilities": Layer(3, "float32")}
ABOUT = {"image": "a", "seed": 1}
UTM = {"crs": "EPSG:32645", "transform": Affine(0.3, 0, 500_000, 0, -0.3, 3_000_000)}
OPTIONS = Options(solver=FixedPoint(times=(1.0, 0.5)), tile_size=64, overlap=32, batch_size=2)


def rows(first: int, count: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(first)
    return {
        "classes": rng.integers(0, 9, (1, count, 7), np.uint8),
        "probabilities": rng.random((3, count, 7), np.float32),
    }


def begin_work(folder: Path, **wishes: Any) -> Work:
    given: dict[str, Any] = {"about": ABOUT, "layers": LAYERS, "width": 7} | wishes
    return Work(folder / "a.tif", **given)


def begin(folder: Path, **wishes: Any) -> Unfinished:
    return Unfinished(begin_work(folder, **wishes))


def interrupted(folder: Path) -> None:
    """Seven rows that are noted, and two that are not."""
    with pytest.raises(KeyboardInterrupt), begin(folder) as work:  # noqa: PT012  # the block is the point
        assert (work.start, work.state) == (BEGINNING, "new")
        work.put(None, rows(0, 3))
        work.put(Start(7, 9, 5), rows(3, 4))
        work.put(None, rows(7, 2))
        raise KeyboardInterrupt


def test_what_was_noted_is_taken_up(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with begin(tmp_path) as work:
        assert (work.start, work.state) == (Start(7, 9, 5), "continued")
        work.put(Start(9, 9, 9), rows(9, 2))
        for name in LAYERS:
            parts = list(work.rows(name, 9, 4))
            assert [row for row, _ in parts] == [0, 4, 8]
            expected = np.concatenate([rows(n, count)[name] for n, count in ((0, 3), (3, 4), (9, 2))], axis=1)
            np.testing.assert_array_equal(np.concatenate([values for _, values in parts], axis=1), expected)
    assert list(tmp_path.iterdir()) == [], "done: nothing is left"


@pytest.mark.parametrize(
    "other", [{"about": {"image": "b", "seed": 1}}, {"width": 8}, {"layers": {"classes": Layer(1, "uint8")}}]
)
def test_other_work_begins_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    interrupted(tmp_path)
    with begin(tmp_path, **other) as work:
        assert (work.start, work.state) == (BEGINNING, "anew")
        assert (work.work.folder / "classes").stat().st_size == 0


def test_a_journal_cut_in_its_last_line_counts_up_to_there(tmp_path: Path) -> None:
    interrupted(tmp_path)
    journal = tmp_path / ".a.tif-unfinished" / JOURNAL
    text = journal.read_text()
    journal.write_text(text + "[9, 1")
    with pytest.raises(KeyboardInterrupt), begin(tmp_path) as work:  # noqa: PT012  # the block is the point
        assert work.start == Start(7, 9, 5)
        raise KeyboardInterrupt
    assert journal.read_text() == text
    journal.write_text(text.splitlines()[0] + "\n[7, ")
    with pytest.raises(KeyboardInterrupt), begin(tmp_path) as work:  # noqa: PT012  # the block is the point
        assert (work.start, work.state) == (BEGINNING, "continued")
        raise KeyboardInterrupt
    journal.write_text(text[:20])
    with begin(tmp_path) as work:
        assert (work.start, work.state) == (BEGINNING, "anew")


def test_rows_that_are_gone_are_not_believed(tmp_path: Path) -> None:
    interrupted(tmp_path)
    os.truncate(tmp_path / ".a.tif-unfinished" / "probabilities", 10)
    with begin(tmp_path) as work:
        assert (work.start, work.state) == (BEGINNING, "anew")


def test_files_that_a_killed_run_was_naming_are_its_own(tmp_path: Path) -> None:
    """Those of the same work alone, and none before all were finished."""
    interrupted(tmp_path)
    assert begin_work(tmp_path).named() == frozenset()
    with pytest.raises(KeyboardInterrupt), begin(tmp_path) as work:  # noqa: PT012  # the block is the point
        work.naming([tmp_path / "a.tif", tmp_path / "b.tif"])
        raise KeyboardInterrupt
    assert begin_work(tmp_path).named() == {str(tmp_path / "a.tif"), str(tmp_path / "b.tif")}
    assert begin_work(tmp_path, width=8).named() == frozenset()
    with pytest.raises(KeyboardInterrupt), begin(tmp_path, width=8):
        raise KeyboardInterrupt
    assert begin_work(tmp_path, width=8).named() == frozenset(), "another work has named nothing"


def test_a_disk_that_refuses_at_closing_too_leaves_the_first_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(28, "No space left on device")

    work = begin(tmp_path)
    files = work._open
    monkeypatch.setattr(work, "_open", SimpleNamespace(close=refuse))
    with pytest.raises(OutputError, match="the first"), work:
        raise OutputError("the first")
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_and_a_full_disk_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_to_disk", full)
    with pytest.raises(OutputError, match="No space left on device"), begin(tmp_path) as work:
        work.put(Start(3, 3, 3), rows(0, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_runs_of_one_target_keep_apart(tmp_path: Path) -> None:
    with begin(tmp_path) as first:
        first.put(Start(3, 3, 3), rows(0, 3))
        with pytest.raises(OutputError, match="another run is at work"):
            begin(tmp_path)
        assert len(list(first.rows("classes", 3, 2))) == 2


KILLED = """
import json, os, signal, sys
import segprior.inference as inference, segprior.segmentation as module
import segprior.unfinished as unfinished, segprior.target as target
from segprior.prior.infer import FixedPoint
from segprior.options import Options
from segprior.segmentation import segment

image, prior, moments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

def die_at(owner, name, number, first=lambda *a, **k: None):
    inner, calls = getattr(owner, name), []
    def counted(*given, **more):
        calls.append(1)
        if len(calls) == number:
            first(*given, **more)
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*given, **more)
    setattr(owner, name, counted)

def half(work, start, rows):
    "Write some rows, and the half of one, as a kill in the middle of a write does."
    for name, values in rows.items():
        work._files[name].write(values.tobytes()[: values.nbytes // 3 + 1])
        work._files[name].flush()

WHERE = {
    "solve": (inference, "solve"), "put": (module.Unfinished, "put", half), "disk": (unfinished, "_to_disk"),
    "encode": (module, "class_writer"), "rows": (module.Unfinished, "rows"), "move": (target, "_move"),
}
for number, (name, count) in enumerate(moments):
    pid = os.fork()
    if pid == 0:
        place = os.path.join(os.getcwd(), str(number))
        owner, attribute, *first = WHERE[name]
        die_at(owner, attribute, count, *first)
        options = Options(solver=FixedPoint(times=(1.0, 0.5)), tile_size=64, overlap=32, batch_size=2)
        segment(image, place + "/mask.tif", prior=prior, options=options, probabilities=place + "/shares.tif")
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, count, status)
"""
"""Kills a process of its own at every moment: before the n-th batch, in the n-th writing of rows, ..."""

MOMENTS = (
    *(("solve", n) for n in (1, 3, 5, 8)),
    *(("put", n) for n in (1, 3)),
    *(("disk", n) for n in (2, 6)),
    ("encode", 1),
    ("rows", 2),
    ("move", 1),
    ("move", 2),
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
@pytest.mark.parametrize("res", [0.3, 0.5])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path, res: float) -> None:
    """At the prior's own resolution (0.5 m) and off it, where strips are resampled."""
    prior = tiny_prior(tmp_path / "tiny.safetensors")
    transform = Affine(res, 0, 500_000, 0, -res, 3_000_000)
    pixels = checkered(3, 520, 150)
    image = write_raster(tmp_path / "image.tif", pixels, crs="EPSG:32645", transform=transform)
    whole = tmp_path / "whole"
    whole.mkdir()

    def run(folder: Path) -> Summary:
        return segment(image, folder / "mask.tif", prior=prior, options=OPTIONS, probabilities=folder / "shares.tif")

    reference = run(whole)
    assert (reference.continued_from, reference.state) == (0, "new")
    files = sorted(p.name for p in whole.iterdir())
    for number in range(len(MOMENTS)):
        (tmp_path / str(number)).mkdir()
    command = [sys.executable, "-c", KILLED, str(image), str(prior), json.dumps(MOMENTS)]
    subprocess.run(command, check=True, cwd=tmp_path)
    continued = []
    for number, moment in enumerate(MOMENTS):
        folder = tmp_path / str(number)
        again = run(folder)
        continued.append(again.continued_from)
        for name in files:
            assert digest(folder / name) == digest(whole / name), (moment, name)
        assert again.shares == reference.shares
    assert continued[0] == 0
    assert len(set(continued)) >= 4
    assert continued[-1] == 520
    assert not list(tmp_path.glob("*/.mask.tif-unfinished"))


def test_a_changed_input_begins_anew(tmp_path: Path) -> None:
    prior = tiny_prior(tmp_path / "tiny.safetensors")
    image = write_raster(tmp_path / "image.tif", checkered(3, 200, 100), **UTM)

    def stopped(done: int, rows: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    def run(options: Options = OPTIONS, **more: Any) -> Summary:
        return segment(image, tmp_path / "mask.tif", prior=prior, options=options, overwrite=True, **more)

    for change in ("none", "pixels", "seed"):
        with pytest.raises(KeyboardInterrupt):
            run(progress=stopped)
        if change == "pixels":
            write_raster(image, checkered(3, 200, 100, seed=1), **UTM)
            os.utime(image, ns=(1, 1))
        options = Options(solver=OPTIONS.solver, tile_size=64, overlap=32, batch_size=2, seed=int(change == "seed"))
        summary = run(options)
        assert summary.state == ("continued" if change == "none" else "anew"), change
        assert (summary.continued_from > 0) == (change == "none")
        (tmp_path / "other").mkdir(exist_ok=True)
        segment(image, tmp_path / "other" / "mask.tif", prior=prior, options=options, overwrite=True)
        assert digest(tmp_path / "mask.tif") == digest(tmp_path / "other" / "mask.tif")
