"""A folder of results: files that belong together appear in it together, or not at all.

    check_folder    may files of these names be written there? Asked before any work begins.
    filling         write into a hidden folder inside it, move everything out on success

The folder itself is made if only its last part is missing, and goes again if it was made here and stays empty.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from segprior.errors import OutputError
from segprior.target import SIDECARS, AnyPath, check_target


def check_folder(
    folder: AnyPath, names: Iterable[str], *, overwrite: bool = False, sources: Iterable[AnyPath] = ()
) -> None:
    """Raise OutputError unless files of these names may be written into `folder`.

    Args:
        folder: an existing folder, or a new one in an existing folder.
        names: of the files.
        overwrite: whether existing files of these names may be replaced.
        sources: files that the work reads; none of them may be replaced.

    """
    place = Path(folder)
    if place.is_dir():
        for name in names:
            check_target(place / name, overwrite=overwrite, sources=sources)
    elif place.exists():
        raise OutputError(f"cannot write into {place}: it is a file; give the name of a folder")
    else:
        check_target(place)


def make_folder(folder: AnyPath) -> None:
    """Make a folder unless it is there; its parent must be. Raises OutputError."""
    check_folder(folder, ())
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error


@contextmanager
def filling(
    folder: AnyPath, names: Iterable[str], *, overwrite: bool = False, sources: Iterable[AnyPath] = ()
) -> Iterator[Path]:
    """Give an empty folder to write files of these names into; when the block ends well, move them into `folder`.

    When the block raises anything, KeyboardInterrupt included, `folder` is as it was.

    Raises:
        OutputError: as `check_folder`, or the disk refuses.

    """
    names = tuple(names)
    check_folder(folder, names, overwrite=overwrite, sources=sources)
    place = Path(folder)
    fresh = not place.exists()
    try:
        place.mkdir(exist_ok=True)
        hidden = TemporaryDirectory(dir=place, prefix=".segprior-")
    except OSError as error:
        raise OutputError(f"cannot write into {place}: {error.strerror}") from error
    try:
        with hidden as stage:
            yield Path(stage)
            _move_all(Path(stage), place, names)
    finally:
        if fresh and not any(place.iterdir()):
            place.rmdir()


def _move_all(stage: Path, place: Path, names: tuple[str, ...]) -> None:
    """Rename the files and their sidecars into place; sidecars of files that were there before go."""
    try:
        for name in names:
            for suffix in SIDECARS:
                (place / (name + suffix)).unlink(missing_ok=True)
        for path in sorted(stage.iterdir()):
            path.replace(place / path.name)
    except OSError as error:
        raise OutputError(f"cannot write into {place}: {error.strerror}") from error
