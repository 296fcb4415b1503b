"""Where to compute, as a user names it."""

import torch

from segprior.errors import SettingError

DEVICES = ("auto", "cpu", "cuda")


def resolved(name: str) -> str:
    """Give the device that a name stands for here: "auto" is "cuda" where there is one, else "cpu".

    Raises SettingError for other names, and for "cuda" where there is none.
    """
    if name not in DEVICES:
        raise SettingError(f"wanted the device auto, cpu or cuda, got {name!r}")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise SettingError("wanted a CUDA device, found none; use --device cpu")
    return name if name != "auto" else "cuda" if there else "cpu"
