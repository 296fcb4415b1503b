"""Unconditional samples of the joint tensor: an image and its labels drawn from the prior.

Each part has its own time, so a sample follows a path of pairs (t_image, t_labels) from (1, 1), pure noise, to (0, 0):

    together        both times fall side by side: p(image, labels)
    labels_first    along the edges of the square: p(labels) at t_image = 1, then p(image | labels) at t_labels = 0

Both draw from the same joint law. Of a part whose time falls from t to s, a step keeps what the denoiser takes for
noise and shrinks it (DDIM, Song et al. 2021, eq. 12 and 16, `churn` for their eta):

    x_s      = sqrt(abar_s) x0_hat + sqrt(1 - abar_s - kappa^2) eps_hat + kappa z,      z ~ N(0, I),
    kappa^2  = churn^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s).

churn = 0 is a deterministic map from the first noise to the sample, churn = 1 renoises as much as ancestral sampling
does. abar_0 = 1, so the last step of a part gives x0_hat itself, for the labels its nearest one-hot vector. Few steps
lose variance: for a prior of unit variance, a cosine schedule and churn 0, the standard deviation of a sample is the
product of cos(pi (t - s) / 2) over the steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.denoiser import Denoiser
from segprior.prior.infer import Noise, generator_noise
from segprior.prior.joint import Times
from segprior.prior.schedule import Schedule
from segprior.prior.solver import falling


@dataclass(frozen=True, slots=True)
class SampleStep:
    """One step: its number from 1, where x has come to, and the classes it is heading for.

    x: (n, bands + classes, height, width) at the next time; after the last step at time 0, the sample. probabilities:
    (n, classes, height, width), of the x0_hat of this step; with a `FreeLayout` the label channels as they are.
    """

    number: int
    x: Tensor
    probabilities: Tensor


Path = tuple[tuple[float, float], ...]
"""Times (t_image, t_labels) at which the denoiser is asked; the first is (1, 1), and (0, 0) follows the last."""


def together(steps: int) -> Path:
    """Both times from 1 down to 1 / steps, evenly."""
    return tuple((t, t) for t in falling(1.0, 1.0 / steps if steps > 0 else 1.0, steps))


def labels_first(steps: int, *, last_labels: float = 0.25, last_image: float = 0.45) -> Path:
    """Half of the steps for the labels, from 1 down to `last_labels`, then the rest for the image, to `last_image`.

    The last step of each is a long one, because at little noise each pixel believes its own noise more than its
    neighbours, which leaves specks in the labels and grain in the image. Raises SettingError.
    """
    if steps < 2:
        raise SettingError(f"wanted 2 steps or more to draw labels and image, got {steps}")
    labels = falling(1.0, last_labels, steps // 2)
    image = falling(1.0, last_image, steps - steps // 2)
    return (*((1.0, t) for t in labels), *((t, 0.0) for t in image))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    *,
    path: Path | None = None,
    churn: float = 0.0,
    noise: Noise | None = None,
    seed: int = 0,
) -> Iterator[SampleStep]:
    """Draw from the prior: yield one `SampleStep` per pair of times, the last one holding the samples.

    shape: (n, height, width); a network wants sides that are multiples of its stride. path: by default 30 steps
    together. churn: in [0, 1]. noise: draw number -> (n, bands + classes, height, width) on the denoiser's device, draw
    0 being the start; by default a function of `seed` on the CPU. Raises SettingError.
    """
    path = together(30) if path is None else path
    _check(path, churn)
    layout = denoiser.layout
    items, height, width = shape
    if noise is None:
        noise = generator_noise(seed, (items, layout.bands + layout.classes, height, width))
    x_t = noise(0)
    for number, (now, then) in enumerate(pairwise((*path, (0.0, 0.0))), start=1):
        levels = [x_t.new_full((1, 1, 1, 1), t) for t in now]
        times = Times(*levels)
        x0_hat = denoiser.x0_hat(x_t, times)
        eps_hat = denoiser.eps_hat(x_t, times, x0_hat)
        fresh = noise(number) if churn > 0 else x_t
        parts = zip(*(layout.split(v) for v in (x_t, x0_hat, eps_hat, fresh)), strict=True)
        image, labels = (
            _moved(denoiser.schedule, part, t, s, churn=churn) for part, t, s in zip(parts, now, then, strict=True)
        )
        if then[1] == 0.0 < now[1]:
            labels = layout.nearest(labels)
        x_t = layout.join(image, labels)
        yield SampleStep(number, x_t, layout.probabilities(layout.split(x0_hat)[1]))


def _check(path: Path, churn: float) -> None:
    pairs = list(pairwise((*path, (0.0, 0.0))))
    falls = all(a >= c >= 0 and b >= d >= 0 and (a, b) != (c, d) for (a, b), (c, d) in pairs)
    if not path or path[0] != (1.0, 1.0) or not falls:
        raise SettingError(f"wanted times that fall from (1, 1) and stay above (0, 0), got {path}")
    if not 0.0 <= churn <= 1.0:
        raise SettingError(f"wanted a churn in [0, 1], got {churn}")


def _moved(schedule: Schedule, part: tuple[Tensor, ...], t: float, s: float, *, churn: float) -> Tensor:
    """(x_t, x0_hat, eps_hat, z) of one part of x, moved from time t to s; x_t where its time stands still."""
    x_t, x0_hat, eps_hat, z = part
    if s == t:
        return x_t
    abar_t, abar_s = (schedule.alpha_bar(x_t.new_tensor(v)) for v in (t, s))
    kappa = _kappa(abar_t, abar_s, churn)
    return (
        torch.sqrt(abar_s) * x0_hat
        + torch.sqrt((1.0 - abar_s - kappa**2).clamp(min=0.0)) * eps_hat
        + (kappa * z if churn > 0 else 0.0)
    )


def _kappa(abar_t: Tensor, abar_s: Tensor, churn: float) -> Tensor:
    """Give the standard deviation of the fresh noise of a step from t down to s; 0 at s = 0."""
    return churn * torch.sqrt((1.0 - abar_s) / (1.0 - abar_t) * (1.0 - abar_t / abar_s))


def class_index(probabilities: Tensor) -> Tensor:
    """Choose the likeliest class of each pixel: (n, classes, height, width) to uint8 (n, height, width)."""
    return probabilities.argmax(dim=1).to(torch.uint8)
