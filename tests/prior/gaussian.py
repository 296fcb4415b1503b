"""The exact reference of the solver: a Gaussian prior N(mu, C) over a few channels, every pixel for itself.

Its best denoiser is x0_hat = mu + C A C_t^-1 (x_t - A mu) with A = diag(sqrt(alpha_bar)), S = diag(1 - alpha_bar) and
C_t = A C A + S, and every optimum of the solver is the solution of a small linear system.
"""

from typing import cast

import torch
from torch import Tensor

from segprior.prior.denoiser import Denoiser
from segprior.prior.joint import FreeLayout, Times
from segprior.prior.network import Features
from segprior.prior.schedule import CosineSchedule

BANDS, CLASSES = 2, 2
I, L = slice(0, BANDS), slice(BANDS, BANDS + CLASSES)  # noqa: E741  # the image and the label channels
MU = torch.tensor([0.4, -0.3, 0.7, -1.0], dtype=torch.float64)
ROOT = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.3, 0.8, 0.0, 0.0], [0.9, -0.5, 0.5, 0.0], [-0.6, 0.8, 0.2, 0.6]], dtype=torch.float64
)
C = ROOT @ ROOT.T
Y = torch.tensor([1.6, -1.4], dtype=torch.float64)
SCHEDULE = CosineSchedule()


class GaussianDenoiser(Denoiser):
    """The exact posterior mean; `calls` counts evaluations."""

    def __init__(self) -> None:
        self.layout = FreeLayout(BANDS, CLASSES)
        self.schedule = SCHEDULE
        self.calls = 0

    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features | None:
        return None

    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        self.calls += 1
        t = self.layout.spread(times).double()
        uniform = bool((t.amax(dim=(0, 2, 3)) == t.amin(dim=(0, 2, 3))).all())
        t = (t[:1, :, :1, :1] if uniform else t).movedim(1, -1)
        alpha_bar = self.schedule.alpha_bar(t)
        root = torch.sqrt(alpha_bar)
        c_t = root[..., :, None] * C * root[..., None, :] + torch.diag_embed(1 - alpha_bar)
        gain = torch.linalg.solve(c_t, root[..., :, None] * C).mT
        away = x_t.double().movedim(1, -1) - root * MU
        x_0 = MU + (gain @ away[..., None])[..., 0]
        return x_0.movedim(-1, 1).to(x_t.dtype)


def alpha_bar_at(t: float) -> float:
    return float(SCHEDULE.alpha_bar(torch.tensor(t, dtype=torch.float64)))


def regression(image_noise: float, *, gain: float = 1.0) -> Tensor:
    """mu_L + gain C_LI (gain C_II + image_noise I)^-1 (y - mu_I)."""
    inside = gain * C[I, I] + image_noise * torch.eye(BANDS, dtype=torch.float64)
    return cast(Tensor, MU[L] + gain * C[L, I] @ torch.linalg.solve(inside, Y - MU[I]))


def observed(size: int = 32, batch: int = 1) -> Tensor:
    """The image: Y at every pixel."""
    return Y.float()[None, :, None, None].expand(batch, BANDS, size, size).contiguous()


def over_pixels(x: Tensor) -> Tensor:
    """Mean of every channel over items and pixels."""
    return x.double().mean(dim=(0, 2, 3))
