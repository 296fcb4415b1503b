"""Noise schedules: how much of the signal is left at time t.

A tensor x_0 is noised to time t in [0, 1] by the variance-preserving rule

    x_t = sqrt(alpha_bar(t)) x_0 + sqrt(1 - alpha_bar(t)) eps,    eps ~ N(0, I),

with alpha_bar(0) = 1 (clean) and alpha_bar(1) = 0 exactly (pure noise: nothing of x_0 leaks). The signal-to-noise
ratio is snr = alpha_bar / (1 - alpha_bar). t may be a number for all pixels or a map; every function here works
element by element.

Sources: Ho et al. 2020 (linear betas), Nichol & Dhariwal 2021 (cosine), Lin et al. 2024, "Common diffusion noise
schedules and sample steps are flawed", algorithm 1 (zero terminal signal), Kingma et al. 2021 (log-SNR).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import exp, pi, sqrt
from typing import final

import torch
from torch import Tensor

from segprior.errors import SettingError

LOG_SNR_LIMIT = 10.0
"""The log-SNR that networks see is clamped to plus or minus this value."""


class Schedule(ABC):
    """alpha_bar as a strictly decreasing function of t, and its inverse in log-SNR."""

    @abstractmethod
    def alpha_bar(self, t: Tensor) -> Tensor:
        """Share of the signal's variance left at time t: 1 at t = 0, exactly 0 at t = 1; the shape of t."""

    @abstractmethod
    def time_at(self, log_snr: Tensor) -> Tensor:
        """Time t in (0, 1) at which log(alpha_bar / (1 - alpha_bar)) equals `log_snr`; its shape."""

    @final
    def snr(self, t: Tensor) -> Tensor:
        """alpha_bar / (1 - alpha_bar): infinite at t = 0, zero at t = 1."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar / (1.0 - alpha_bar)

    @final
    def log_snr(self, t: Tensor) -> Tensor:
        """Log of the SNR clamped to +-LOG_SNR_LIMIT: finite everywhere, what networks are told."""
        return torch.log(self.snr(t)).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    @final
    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise in x_t, sqrt(1 - alpha_bar)."""
        return torch.sqrt(1.0 - self.alpha_bar(t))

    @final
    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps; t broadcasts against x_0."""
        return torch.sqrt(self.alpha_bar(t)) * x_0 + self.sigma(t) * eps


@final
@dataclass(frozen=True, slots=True)
class CosineSchedule(Schedule):
    """alpha_bar = cos^2(pi t / 2), so log-SNR = -2 log tan(pi t / 2)."""

    def alpha_bar(self, t: Tensor) -> Tensor:
        """cos^2(pi t / 2); the cosine of a rounded pi / 2 is not zero, so t = 1 is set to zero exactly."""
        return torch.where(t >= 1.0, torch.zeros_like(t), torch.cos(t * (pi / 2)) ** 2)

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Return t = (2 / pi) atan(exp(-log_snr / 2))."""
        return torch.atan(torch.exp(-log_snr / 2)) * (2 / pi)


@final
@dataclass(frozen=True, slots=True)
class LinearSchedule(Schedule):
    """The paper's linear betas in continuous time, rescaled so that nothing is left at t = 1.

    log alpha_bar'(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2); then sqrt(alpha_bar) is sqrt(alpha_bar') moved
    and stretched so that it ends at 0 and still starts at 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min < self.beta_max:
            raise SettingError(f"wanted 0 < beta_min < beta_max, got {self}")

    @property
    def _last(self) -> float:
        return sqrt(exp(-(self.beta_min + self.beta_max) / 2))

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Return the rescaled exponential of minus the integral of beta."""
        root = torch.exp(-(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2)
        scaled = (root - self._last) / (1.0 - self._last)
        return torch.where(t >= 1.0, torch.zeros_like(t), scaled.clamp(min=0.0) ** 2)

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Return the positive root of the quadratic in t that log alpha_bar' is."""
        root = torch.sqrt(torch.sigmoid(log_snr)) * (1.0 - self._last) + self._last
        slope = self.beta_max - self.beta_min
        discriminant = self.beta_min**2 - 4.0 * slope * torch.log(root)
        return (torch.sqrt(discriminant) - self.beta_min) / slope
