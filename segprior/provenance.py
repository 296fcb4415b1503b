"""Where a result comes from: the checksum of a file, the commit of the code."""

import hashlib
import subprocess
from pathlib import Path

CODE = ("segprior", ":!segprior/weights", "datasets")
"""What results depend on in a checkout, besides the script that makes them and the prior, which has a checksum."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
