"""A target: a file that is there whole or not at all.

    check_target    may this file be written? Asked before any work begins.
    replacing       write under a hidden folder beside the target, rename into place on success
    Together        targets of which none takes its name before all are finished

The hidden folder lies in the target's own folder, thus on the same disk, so that the last step is a rename and never a
copy. Inside it files carry their final names: a driver that writes sidecars (.aux.xml) names them right by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from segprior.errors import OutputError, SettingError

SIDECARS = (".aux.xml", ".ovr", ".msk")
"""Suffixes of files that GDAL reads beside a raster as if they were a part of it."""

AnyPath = str | os.PathLike[str]


def check_suffix(target: Path) -> None:
    """Raise SettingError unless a prior may be called so: it ends in .safetensors."""
    if target.suffix != ".safetensors":
        raise SettingError(f"wanted a target that ends in .safetensors, got {target}")


def check_target(path: AnyPath, *, overwrite: bool = False, sources: Iterable[AnyPath] = ()) -> None:
    """Raise OutputError unless a file may be written at `path`.

    Args:
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        sources: files that the work reads; none of them may be the target, even with `overwrite`.

    Raises:
        OutputError: the folder is missing or closed to writing, the target is a folder, exists, or is a source.

    """
    target = Path(path)
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}; make it first")
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; give the name of a file")
    if target.exists() and any(Path(source).exists() and target.samefile(source) for source in sources):
        raise OutputError(f"cannot write {target}: it is the input itself; give another name")
    if target.exists() and not overwrite:
        raise OutputError(f"cannot write {target}: it exists; give another name or allow overwriting")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {target}: the folder {target.parent} is closed to writing")


class Together:
    """Targets that appear together: a context, and when it ends well they take their names in the order of finishing.

    When anything is raised in it, KeyboardInterrupt included, none appears and old targets stay as they were.
    """

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        """`before` is called when all are finished, before the first takes its name."""
        self._before = before
        self._hidden = ExitStack()
        self._finished: list[tuple[Path, Path]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._hidden:
            if kind is None and self._before is not None:
                self._before()
            for folder, target in self._finished if kind is None else ():
                try:
                    _move(folder, target)
                except OSError as refused:
                    raise OutputError(f"cannot write {target}: {refused.strerror}") from refused

    def hide(self, target: Path) -> Path:
        """Make a hidden folder beside the target; raises OutputError if the disk refuses."""
        try:
            hidden = TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}") from error
        return Path(self._hidden.enter_context(hidden))

    def finish(self, folder: Path, target: Path) -> None:
        """Note that the target lies finished in its hidden folder."""
        self._finished.append((folder, target))


@contextmanager
def replacing(path: AnyPath, *, overwrite: bool = False, together: Together | None = None) -> Iterator[Path]:
    """Give the path of a new file to write; when the block ends well, move it to `path` with its sidecars.

    When the block raises anything, KeyboardInterrupt included, nothing is left and an old target stays as it was.

    Args:
        path: the target.
        overwrite: whether an existing file may be replaced.
        together: targets that it appears with, at the end of that context; None for a target by itself.

    Raises:
        OutputError: as `check_target`, or the disk refuses.

    """
    check_target(path, overwrite=overwrite)
    target = Path(path)
    with ExitStack() as own:
        group = own.enter_context(Together()) if together is None else together
        folder = group.hide(target)
        yield folder / target.name
        group.finish(folder, target)


def _move(folder: Path, target: Path) -> None:
    """Rename the finished file and its sidecars into place and drop sidecars of the file that was there before."""
    (folder / target.name).replace(target)
    for suffix in SIDECARS:
        sidecar = target.with_name(target.name + suffix)
        fresh = folder / sidecar.name
        if fresh.exists():
            fresh.replace(sidecar)
        else:
            sidecar.unlink(missing_ok=True)
