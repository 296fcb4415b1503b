"""Particles: several estimates of one scene, and how much they disagree.

Each of K particles goes through the solver with noise of its own and gives probabilities p_k. Their mean is what is
reported. Its entropy has two parts (Houlsby et al. 2011; Depeweg et al. 2018): what every particle is unsure of by
itself, and what they disagree about,

    H(mean_k p_k) = mean_k H(p_k) + I,     0 <= I <= log(min(K, classes)),

the mutual information I between the class and the number of the particle.
"""

from math import log

import torch
from torch import Tensor

from segprior.errors import SettingError


def disagreement(particles: Tensor) -> Tensor:
    """Return I / log(min(K, classes)), (batch, h, w) in [0, 1], of particles (K, batch, classes, h, w).

    Raises SettingError for a single particle.
    """
    if len(particles) < 2:
        raise SettingError(f"wanted 2 particles or more to disagree, got {len(particles)}")
    information = _entropy(particles.mean(dim=0), 1) - _entropy(particles, 2).mean(dim=0)
    return (information / log(min(len(particles), particles.shape[2]))).clamp(0.0, 1.0)


def _entropy(p: Tensor, dim: int) -> Tensor:
    each: Tensor = torch.special.entr(p.clamp(min=0.0))
    return each.sum(dim=dim)
