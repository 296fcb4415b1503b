"""What a network sees of a window of a scene.

Pixels outside the raster are mirrored, those without data are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segprior.checkpoint import Card
from segprior.scene import Scene
from segprior.windows import Window


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """A window as it is seen.

    image: (bands, height, width). valid: (height, width), True where the raster holds data. seen: the same, mirrored
    beyond the raster's edges.
    """

    window: Window
    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, scene: Scene, window: Window) -> Sight:
        """Read a window. Raises RasterError."""
        image, valid = scene.read(window)
        inside = window.intersection(scene.height, scene.width)
        rest = ((0, window.height - inside.height), (0, window.width - inside.width))
        seen = np.pad(valid[: inside.height, : inside.width], rest, mode="symmetric")
        return cls(window, image, valid, seen)


def stacked(sights: Sequence[Sight], card: Card, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Put images, normalised, and what is seen into tensors: (windows, bands or 1, height, width)."""
    y = card.normalise(np.stack([s.image for s in sights])).to(device, memory_format=torch.channels_last)
    return y, torch.from_numpy(np.stack([s.seen for s in sights]))[:, None].to(device)
