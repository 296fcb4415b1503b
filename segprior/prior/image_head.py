"""The image's part of the answer: its velocity at full resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional

COARSE = 12
"""Channels that the label path hands to the image head."""

CELLS = (1, 2, 4, 8, 16)
"""Pixels a side of the cells over which the image head averages its input."""


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a layer's parameters to zero and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ImageHead(nn.Module):
    """Velocity of the image at full resolution.

        v = sum_k g_k(log_snr) B_k x_t + exit(...)

    B_k are averages of x_t over cells of 1, 2, 4, 8, 16 pixels, interpolated: a bank of linear filters whose mixture at
    every noise level is learnt at once. The rest is three 3 x 3 convolutions over that bank and the path's h.
    """

    def __init__(self, bands: int, width: int = 24) -> None:
        super().__init__()
        self.width = width
        self.entry = nn.Conv2d(bands * len(CELLS) + COARSE, width, 3, padding=1)
        self.level = nn.Sequential(nn.Linear(1, 32), nn.GELU(), nn.Linear(32, 2 * width + len(CELLS)))
        self.middle = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.exit = zeroed(nn.Conv2d(width, bands, 3, padding=1))

    def forward(self, coarse: Tensor, image_t: Tensor, log_snr: Tensor) -> Tensor:
        """Turn h (batch, COARSE, h, w), the noisy image and its log-SNR / limit map to v (batch, bands, h, w)."""
        size = image_t.shape[2:]
        bank = [image_t] + [
            functional.interpolate(functional.avg_pool2d(image_t, k), size=size, mode="bilinear") for k in CELLS[1:]
        ]
        level = self.level(log_snr.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scale, shift, gains = level.split([self.width, self.width, len(CELLS)], dim=1)
        x = self.entry(torch.cat([coarse, *bank], dim=1).contiguous(memory_format=torch.channels_last))
        x = torch.addcmul(x + shift, x, scale)
        linear = torch.stack([gains[:, k : k + 1] * image for k, image in enumerate(bank)]).sum(dim=0)
        v: Tensor = linear + self.exit(x + self.middle(x))
        return v
