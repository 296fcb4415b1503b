"""The eight turns and flips of a square, numbered 0 (nothing) to 7.

Seen from above there is no up: an aerial image turned or mirrored is as likely as before, and so are its labels. A
network knows this only roughly, so averaging what it says about several turns is a better estimate than any one of them
(test-time augmentation; Simonyan & Zisserman 2015, section 4, for flips).
"""

import torch
from torch import Tensor

TURNS = ((0, False), (2, True), (1, False), (3, True), (2, False), (0, True), (3, False), (1, True))
"""Quarter turns, and whether a flip of the columns comes first; every second one is a mirror image."""


def turn(x: Tensor, number: int) -> Tensor:
    """(..., height, width) to its turn `number`; at odd quarters height and width change places."""
    quarters, flipped = TURNS[number]
    return torch.rot90(x.flip(-1) if flipped else x, quarters, dims=(-2, -1))


def turn_back(x: Tensor, number: int) -> Tensor:
    """Undo `turn`."""
    quarters, flipped = TURNS[number]
    back = torch.rot90(x, -quarters, dims=(-2, -1))
    return back.flip(-1) if flipped else back
