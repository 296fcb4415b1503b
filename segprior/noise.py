"""Noise that belongs to a place: overlapping windows share it, and a run that is repeated repeats it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segprior.prior.infer import Noise
from segprior.windows import ALIGNMENT, Window


def position_noise(
    seed: int, windows: Sequence[Window], *, channels: int, particles: int = 1, device: torch.device | str = "cpu"
) -> Noise:
    """Standard normal noise that is a function of seed, draw, particle, channel and absolute pixel position.

    The plane is cut into blocks of ALIGNMENT x ALIGNMENT pixels, each with a counter-based generator of its own
    (Philox, Salmon et al. 2011); windows must be aligned to blocks, as `cover` makes them.
    """
    size = ALIGNMENT

    def block(number: int, particle: int, row: int, col: int) -> NDArray[np.float32]:
        generator = np.random.Generator(np.random.Philox(key=[seed, number << 32 | particle], counter=[0, 0, row, col]))
        return generator.standard_normal((channels, size, size), dtype=np.float32)

    def draw(number: int) -> Tensor:
        height, width = windows[0].height, windows[0].width
        out = np.empty((particles, len(windows), channels, height, width), np.float32)
        for particle in range(particles):
            for item, window in enumerate(windows):
                for row in range(0, height, size):
                    for col in range(0, width, size):
                        where = ((window.row + row) // size, (window.col + col) // size)
                        at = (slice(None), slice(row, row + size), slice(col, col + size))
                        out[particle, item][at] = block(number, particle, *where)
        return torch.from_numpy(out.reshape(-1, channels, height, width)).to(device)

    return draw
