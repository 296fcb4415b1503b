"""Tables of class shares, in TOML or as columns: read them, and check that a map can have them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segprior.errors import SettingError
from segprior.legend import Legend

SLACK = 0.02
"""How far the sum of the shares of all classes may be off 1."""


def read_toml(path: str, what: str) -> dict[str, Any]:
    """Read a TOML file of `what`. Raises SettingError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(f"wanted {what} in {path}: {' '.join(str(reason).split())}") from error


def shares_row(shares: Mapping[str, object], legend: Legend, where: str) -> npt.NDArray[np.float32]:
    """Shares in the legend's order, NaN where none is given; those of all classes sum to 1.

    Raises SettingError: no class of the legend, no number, not in [0, 1], a sum that no map has.
    """
    row = np.full(len(legend), np.nan, np.float64)
    for name, share in shares.items():
        if name not in legend.names:
            raise SettingError(f"wanted classes of the prior ({', '.join(legend.names)}) for {where}, got {name}")
        if share is None:
            continue
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise SettingError(f"wanted a number as the share of {name} for {where}, got {share!r}")
        if not (0 <= share <= 1 or np.isnan(share)):
            raise SettingError(f"wanted a share of {name} from 0 to 1 for {where}, got {share:g}")
        row[legend.names.index(name)] = share
    total, whole = np.nansum(row), bool(np.isfinite(row).all())
    if total > 1 + SLACK or (whole and total < 1 - SLACK):
        wanted = "1" if whole else "at most 1"
        raise SettingError(f"wanted shares that sum to {wanted} for {where}, got {total:g}")
    return (row / total if whole or total > 1 else row).astype(np.float32)
