"""The exponential moving average of the weights; its decay starts small, so that it forgets the first weights."""

from typing import Any

import torch
from torch import Tensor


def moving_average(decay: float) -> Any:
    """Make what `AveragedModel` calls, by the decay min(decay, (1 + n) / (10 + n)) at its n-th call."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor) -> None:
        number = float(count)
        weight = 1.0 - min(decay, (1.0 + number) / (10.0 + number))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, weight)
            else:
                average.copy_(current)

    return update
