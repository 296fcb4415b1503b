"""What becomes of a training tile: another scale, turns and flips, other colours, noise, a piece of another tile.

Cut-mix (Yun et al. 2019; French et al. 2020 for segmentation) puts a rectangle of another tile, image and labels alike,
into a tile, so that what a place is must be told from the place and not from its surroundings.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from segprior.errors import SettingError


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much tiles are changed.

    colour: strength of the changes of colour of three-band images: 1 the usual, 0 none. cut_mix: share of tiles with a
    rectangle of another. noise: share of tiles with white noise, its standard deviation drawn evenly from 0 to
    STRONGEST_NOISE. scale: tiles are cut at a scale between 1 / scale and scale, log-uniform; 1 for none but that of
    the data set.
    """

    colour: float = 1.0
    cut_mix: float = 0.0
    noise: float = 0.0
    scale: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.colour <= MOST_COLOUR:
            raise SettingError(f"wanted a strength of colours from 0 to {MOST_COLOUR:g}, got {self.colour:g}")
        if not 0 <= self.cut_mix <= 1:
            raise SettingError(f"wanted a share of tiles with cut-mix from 0 to 1, got {self.cut_mix:g}")
        if not 0 <= self.noise <= 1:
            raise SettingError(f"wanted a share of tiles with noise from 0 to 1, got {self.noise:g}")
        if not 1 <= self.scale <= MOST_SCALE:
            raise SettingError(f"wanted a change of scale from 1 to {MOST_SCALE:g}, got {self.scale:g}")


MOST_COLOUR, MOST_SCALE = 4.0, 4.0
"""Beyond them there is hardly an image left, or hardly a pixel of it."""

STRONGEST_NOISE = 0.2
"""Largest standard deviation of the noise, as a share of the range of values; about that of an aerial image itself."""


def colours(strength: float) -> Any:
    """A transform of albumentations for uint8 images of three bands."""
    A = _albumentations()
    return A.Compose(
        [
            A.RandomBrightnessContrast(brightness_limit=0.12 * strength, contrast_limit=0.2 * strength, p=0.7),
            A.HueSaturationValue(
                hue_shift_limit=12 * strength, sat_shift_limit=25 * strength, val_shift_limit=15 * strength, p=0.5
            ),
            A.RandomGamma(gamma_limit=(100 * 0.75**strength, 100 * 1.3**strength), p=0.3),
            A.RGBShift(r_shift_limit=10 * strength, g_shift_limit=10 * strength, b_shift_limit=10 * strength, p=0.3),
            A.GaussianBlur(blur_limit=(3, 5), p=0.1 * min(1.0, strength)),
            A.ToGray(p=0.05 * min(1.0, strength)),
        ]
    )


def turns() -> Any:
    """The eight turns and flips of a square, of image and masks."""
    A = _albumentations()
    return A.Compose([A.D4(p=1.0)])


def noise() -> Any:
    """White noise on uint8 images of any number of bands, its strength drawn evenly, each band its own."""
    A = _albumentations()
    return A.Compose([A.GaussNoise(std_range=(0.0, STRONGEST_NOISE), per_channel=True, p=1.0)])


def rectangle(size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Where to put a piece of another tile: up to half of its area, drawn evenly, and up to twice as long as wide."""
    area, ratio = rng.uniform(0.0, 0.5) * size**2, float(np.exp(rng.uniform(-np.log(2.0), np.log(2.0))))
    rows, cols = (max(1, round(float(np.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    row, col = int(rng.integers(size - rows + 1)), int(rng.integers(size - cols + 1))
    return slice(row, row + rows), slice(col, col + cols)


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it calls home at import otherwise
    import albumentations  # noqa: PLC0415  # only now is that variable set

    return albumentations
