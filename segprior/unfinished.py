"""Unfinished work: rows on disk that a killed run leaves for the next one.

A compressed TIFF cannot be gone on with after a kill. So finished rows first go, uncompressed, to files in a hidden
folder beside the target, and every time a line of the journal says how far they reach and where to go on:

    .NAME-unfinished/journal    a line of JSON that says what this work is, then a line (native, working, top) a strip
    .NAME-unfinished/LAYER      rows in order, each (bands, columns)
    .NAME-unfinished/naming     a list of the files that are about to take their names, once all are finished

What stands in a layer beyond the journal's last whole line is cut off by the next run. The folder stays when the work
is interrupted (Ctrl-C, kill, a lost machine), or when an error keeps all rows from becoming files (a full disk), and
goes when it is done, or when an error ends it before.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from segprior.errors import OutputError
from segprior.native import BEGINNING, Start

if sys.platform != "win32":
    import fcntl

JOURNAL, LOCK, NAMING = "journal", "lock", "naming"

State = Literal["new", "continued", "anew"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Rows of one kind: bands and type of their values."""

    bands: int
    dtype: Literal["uint8", "float32"]

    def row_bytes(self, width: int) -> int:
        """Size of a row of `width` columns."""
        return self.bands * width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Work:
    """What is being made.

    target: the file it is for. about: what the rows depend on, plain values. layers: what is kept of every row. width:
    columns of the raster.
    """

    target: Path
    about: Mapping[str, Any]
    layers: Mapping[str, Layer]
    width: int

    @property
    def folder(self) -> Path:
        """Where its unfinished rows are."""
        return self.target.with_name(f".{self.target.name}-unfinished")

    @property
    def head(self) -> str:
        """The first line of the journal."""
        layers = {name: astuple(layer) for name, layer in self.layers.items()}
        return json.dumps({**self.about, "layers": layers, "width": self.width})

    def left(self) -> Start | None:
        """Where an earlier run of the same work stopped; None if there was none, or its rows are gone."""
        lines = self.journal().splitlines()
        if not lines or lines[0] != self.head:
            return None
        start = Start(*json.loads(lines[-1])) if len(lines) > 1 else BEGINNING
        whole = all(
            path.is_file() and path.stat().st_size >= start.native * self.layers[name].row_bytes(self.width)
            for name, path in ((name, self.folder / name) for name in self.layers)
        )
        return start if whole or start == BEGINNING else None

    def named(self) -> frozenset[str]:
        """Files that an earlier run of the same work was giving their names when it was killed: they are its own."""
        path = self.folder / NAMING
        return (
            frozenset(json.loads(path.read_text(encoding="utf-8"))) if self.left() and path.is_file() else frozenset()
        )

    def journal(self) -> str:
        """Read the journal's whole lines; a kill may have cut the last one."""
        path = self.folder / JOURNAL
        if not path.is_file():
            return ""
        text = path.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1]


class Unfinished:
    """The rows of a raster as they are finished; a context that keeps them when the work is interrupted.

    Attributes:
        start: where to go on.
        state: "new", "continued", or "anew" where unfinished rows of another work were dropped.

    """

    def __init__(self, work: Work) -> None:
        """Take up what an earlier run of the same work left, or begin.

        Raises:
            OutputError: the folder cannot be written, or another run is at work in it.

        """
        self.work = work
        try:
            with ExitStack() as files:
                there = work.folder.exists()
                work.folder.mkdir(exist_ok=True)
                _lock(files.enter_context((work.folder / LOCK).open("ab")), work.target)
                left = work.left()
                self.state: State = "continued" if left is not None else "anew" if there else "new"
                self.start = BEGINNING if left is None else left
                if left is None:
                    (work.folder / NAMING).unlink(missing_ok=True)
                journal = work.journal() if left is not None else work.head + "\n"
                (work.folder / JOURNAL).write_text(journal, encoding="utf-8")
                names = (JOURNAL, *work.layers)
                self._files = {name: files.enter_context((work.folder / name).open("ab")) for name in names}
                for name, layer in work.layers.items():
                    self._files[name].truncate(self.start.native * layer.row_bytes(work.width))
                self._open = files.pop_all()
                self._complete = False
        except OSError as error:
            raise OutputError(f"cannot write {work.target}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.close()
        except OSError:
            if kind is None:
                raise  # else the same disk has refused before, and said so better
        if kind is None or (issubclass(kind, Exception) and not self._complete):
            shutil.rmtree(self.work.folder, ignore_errors=True)  # what is left of it the next run drops
        elif isinstance(error, OutputError) and self.work.folder.exists():
            raise OutputError(f"{error}; what was inferred is kept, and the same command goes on from it") from error

    def put(self, start: Start | None, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add rows (bands, rows, columns) to every layer; `start` is where a run that has them may go on, if it may.

        Raises OutputError when the disk refuses.
        """
        try:
            for name, values in rows.items():
                self._files[name].write(np.ascontiguousarray(values.swapaxes(0, 1)).data)
            if start is not None:
                for name in rows:
                    _to_disk(self._files[name])
                self._files[JOURNAL].write((json.dumps(astuple(start)) + "\n").encode())
                _to_disk(self._files[JOURNAL])
        except OSError as error:
            raise OutputError(f"cannot write {self.work.target}: {error.strerror}") from error

    def complete(self) -> None:
        """Note that all rows are there: an error from now on keeps them, as an interruption does."""
        self._complete = True

    def naming(self, targets: Iterable[Path]) -> None:
        """Note that these files, all finished, are about to take their names. Raises OutputError."""
        path = self.work.folder / NAMING
        try:
            whole = path.with_suffix(".new")
            whole.write_text(json.dumps([str(target.resolve()) for target in targets]), encoding="utf-8")
            whole.replace(path)
        except OSError as error:
            raise OutputError(f"cannot write {self.work.target}: {error.strerror}") from error

    def rows(self, name: str, height: int, step: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Read a layer again: first row and values (bands, rows, columns), `step` rows at a time up to `height`."""
        layer = self.work.layers[name]
        self._files[name].flush()
        size = layer.row_bytes(self.work.width)
        with (self.work.folder / name).open("rb") as file:
            for row in range(0, height, step):
                count = min(step, height - row)
                values = np.frombuffer(file.read(count * size), layer.dtype)
                yield row, values.reshape(count, layer.bands, self.work.width).swapaxes(0, 1)


def _to_disk(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def _lock(file: BufferedWriter, target: Path) -> None:
    """Keep a second run of the same target out, where the system can."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"cannot write {target}: another run is at work on it; wait for it") from None
