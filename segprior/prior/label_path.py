"""The label path: what noisy labels, beside the image, tell of labels and image.

    r, h = path(features, w_I x_t^I, log_snr_I, l)
    s    = own(h)                                      of noisy images, where no labels are known

A small U-Net of ConvNeXt blocks at strides 4, 8 and 16; `network` says how r and h enter. The labels enter through a
zero-initialised convolution, so training starts at a path that does not hear them. Norms act on each pixel over its
channels: a window's extent does not matter to them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from segprior.prior.image_head import COARSE, zeroed

STRIDE = 4
"""The label path works on STRIDE x STRIDE pixels at a time (space-to-depth)."""


class PixelNorm(nn.Module):
    """Layer norm of every pixel over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt block (Liu et al. 2022): depthwise 5 x 5, norm per pixel, two 1 x 1 convolutions, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            PixelNorm(channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        residual: Tensor = self.body(x)
        return x + residual


class LabelPath(nn.Module):
    """A small U-Net at strides 4, 8, 16 from (context, noisy image, its log-SNR, noisy labels) to r and `coarse` h."""

    def __init__(
        self, bands: int, classes: int, *, context: int, widths: tuple[int, int, int], own: bool = False
    ) -> None:
        """context: channels of the image's features. widths: channels at strides 4, 8, 16. own: with a head for s."""
        super().__init__()
        fine, middle, coarse = widths
        cells = STRIDE * STRIDE
        self.image_entry = nn.Conv2d(context + cells * (bands + 1), fine, 1)
        self.label_entry = zeroed(nn.Conv2d(cells * classes, fine, 1, bias=False))
        self.down_fine = nn.Sequential(Block(fine), Block(fine))
        self.down_middle = nn.Sequential(nn.Conv2d(fine, middle, 2, stride=2), Block(middle), Block(middle))
        self.bottom = nn.Sequential(nn.Conv2d(middle, coarse, 2, stride=2), *(Block(coarse) for _ in range(3)))
        self.to_middle = nn.Conv2d(coarse, middle, 1)
        self.up_middle = nn.Sequential(Block(middle), Block(middle))
        self.to_fine = nn.Conv2d(middle, fine, 1)
        self.up_fine = nn.Sequential(Block(fine), Block(fine), PixelNorm(fine))
        self.label_head = nn.Conv2d(fine, cells * classes, 1, bias=False)  # a bias would leave in r - r(0)
        self.coarse_image = nn.Conv2d(fine, cells * COARSE, 1)
        self.own_head = zeroed(nn.Conv2d(fine, cells * classes, 1)) if own else None

    def forward(self, context: Tensor, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Turn context (batch, c, h/4, w/4), image with its log-SNR as last channel, and labels to r and its cells."""
        packed = functional.pixel_unshuffle(image, STRIDE)
        fine = self.image_entry(torch.cat([context, packed.to(context.dtype)], dim=1))
        fine = self.down_fine(fine + self.label_entry(functional.pixel_unshuffle(labels, STRIDE)))
        middle = self.down_middle(fine)
        coarse = self.to_middle(self.bottom(middle))
        middle = self.up_middle(middle + functional.interpolate(coarse, size=middle.shape[2:], mode="bilinear"))
        fine = fine + functional.interpolate(self.to_fine(middle), size=fine.shape[2:], mode="bilinear")
        fine = self.up_fine(fine)
        return functional.pixel_shuffle(self.label_head(fine), STRIDE), fine

    def coarse(self, cells: Tensor) -> Tensor:
        """Turn the cells of some items, as `forward` gives them, to h at full size."""
        h = functional.pixel_shuffle(self.coarse_image(cells), STRIDE)
        return h.contiguous(memory_format=torch.channels_last)

    def own(self, cells: Tensor) -> Tensor:
        """Turn cells that know of no labels to s, (batch, classes, h, w)."""
        assert self.own_head is not None  # noqa: S101  # asked of noisy images alone, of which other paths know nothing
        s: Tensor = functional.pixel_shuffle(self.own_head(cells), STRIDE)
        return s
