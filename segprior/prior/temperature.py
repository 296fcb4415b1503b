"""Temperature: one number that makes a network as sure as it is right (Guo et al. 2017, On calibration of networks).

The logits of the classes are divided by T. It is the T under which held-out labels are likeliest,

    T = argmin_T  - mean_i log softmax(logits_i / T)_(z_i),

convex in 1 / T. Above 1 the network was too sure, below 1 too timid. It changes no decided class by itself. Of labels
that are known by their probabilities q alone, sum_z q_i(z) log softmax(logits_i / T)_z takes the place of the log.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEAST, MOST = 0.2, 5.0
"""What a temperature may be."""


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find T of logits (pixels, classes) and labels; 1 where there is no pixel.

    labels: class indices (pixels,) or probabilities of the classes (pixels, classes). Newton's method in 1 / T, held to
    [LEAST, MOST].
    """
    if not len(labels):
        return 1.0
    logits = logits.double()
    worth = labels if labels.ndim == logits.ndim else functional.one_hot(labels.long(), logits.shape[1])
    own = (worth.double() * logits).sum(dim=1).mean()
    beta = torch.ones((), dtype=torch.float64)
    for _ in range(50):
        p = functional.softmax(beta * logits, dim=1)
        mean = (p * logits).sum(dim=1)
        slope = mean.mean() - own
        curvature = ((p * logits**2).sum(dim=1) - mean**2).mean()
        step = slope / curvature.clamp(min=1e-12)
        # a full Newton step may overshoot far from the optimum: at most to half or twice
        beta = (beta - torch.minimum(torch.maximum(step, -beta), 0.5 * beta)).clamp(1 / MOST, 1 / LEAST)
        if abs(float(step)) < 1e-9:
            break
    return float(1 / beta)
