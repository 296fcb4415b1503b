"""Unconditional samples of the joint tensor: image and labels drawn together from the prior.

Both parts share one time t, which falls from 1 (pure noise) through `times` to 0. A step from t to the next time s
keeps what the denoiser takes for noise and shrinks it (DDIM, Song et al. 2021, eq. 12 and 16, `churn` for their eta):

    x_s      = sqrt(abar_s) x0_hat + sqrt(1 - abar_s - kappa^2) eps_hat + kappa z,      z ~ N(0, I),
    kappa^2  = churn^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s).

churn = 0 is a deterministic map from the first noise to the sample, churn = 1 renoises as much as ancestral sampling
does. abar_0 = 1, so the last step gives x0_hat itself. Few steps lose variance: for a prior of unit variance, a cosine
schedule and churn 0, the standard deviation of a sample is the product of cos(pi (t - s) / 2) over the steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segprior.prior.denoiser import Denoiser
from segprior.prior.infer import Noise, generator_noise
from segprior.prior.joint import Times


@dataclass(frozen=True, slots=True)
class SampleStep:
    """One step: its number from 1, where x has come to, and the classes it is heading for.

    x: (n, bands + classes, height, width) at the next time; after the last step at time 0, the sample. probabilities:
    (n, classes, height, width), of the x0_hat of this step; with a `FreeLayout` the label channels as they are.
    """

    number: int
    x: Tensor
    probabilities: Tensor


def falling_times(steps: int) -> tuple[float, ...]:
    """Space `steps` times evenly from 1 down to 1 / steps; the last step then ends at 0."""
    if steps < 1:
        raise ValueError(f"sampling needs one step or more; got {steps}")
    return tuple(1.0 - i / steps for i in range(steps))


FALLING = falling_times(30)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    *,
    times: tuple[float, ...] = FALLING,
    churn: float = 0.0,
    noise: Noise | None = None,
    seed: int = 0,
) -> Iterator[SampleStep]:
    """Draw from the prior: yield one `SampleStep` per time, the last one holding the samples.

    shape: (n, height, width); a network wants sides that are multiples of its stride. times: falling, the first 1, all
    above 0. churn: in [0, 1]. noise: draw number -> (n, bands + classes, height, width) on the denoiser's device, draw
    0 being the start; by default a function of `seed` on the CPU. Raises ValueError.
    """
    if not times or times[0] != 1.0 or any(s >= t for t, s in zip(times, (*times[1:], 0.0), strict=True)):
        raise ValueError(f"times must fall from 1 and stay above 0; got {times}")
    if not 0.0 <= churn <= 1.0:
        raise ValueError(f"churn must lie in [0, 1]; got {churn}")
    layout = denoiser.layout
    items, height, width = shape
    if noise is None:
        noise = generator_noise(seed, (items, layout.bands + layout.classes, height, width))
    x_t = noise(0)
    for number, (t, s) in enumerate(zip(times, (*times[1:], 0.0), strict=True), start=1):
        level = x_t.new_full((1, 1, 1, 1), t)
        at_t = Times(level, level)
        x0_hat = denoiser.x0_hat(x_t, at_t)
        eps_hat = denoiser.eps_hat(x_t, at_t, x0_hat)
        abar_s = denoiser.schedule.alpha_bar(x_t.new_tensor(s))
        kappa = _kappa(denoiser.schedule.alpha_bar(x_t.new_tensor(t)), abar_s, churn)
        x_t = torch.sqrt(abar_s) * x0_hat + torch.sqrt((1.0 - abar_s - kappa**2).clamp(min=0.0)) * eps_hat
        if churn > 0 and s > 0:
            x_t = x_t + kappa * noise(number)
        yield SampleStep(number, x_t, layout.probabilities(layout.split(x0_hat)[1]))


def _kappa(abar_t: Tensor, abar_s: Tensor, churn: float) -> Tensor:
    """Give the standard deviation of the fresh noise of a step from t down to s; 0 at s = 0."""
    return churn * torch.sqrt((1.0 - abar_s) / (1.0 - abar_t) * (1.0 - abar_t / abar_s))


def class_index(probabilities: Tensor) -> Tensor:
    """Choose the likeliest class of each pixel: (n, classes, height, width) to uint8 (n, height, width)."""
    return probabilities.argmax(dim=1).to(torch.uint8)
