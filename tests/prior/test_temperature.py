"""The temperature: against numerical minimisation, and what it does to a denoiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from segprior.prior.temperature import LEAST, MOST, fitted_temperature


def drawn(true: float, *, seed: int = 0, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax at the temperature `true`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4000, classes, generator=generator)
    p = functional.softmax(logits / true, dim=1)
    return logits, torch.multinomial(p, 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("true", [0.4, 1.0, 1.7, 3.0])
def test_it_is_the_likeliest(true: float) -> None:
    logits, index = drawn(true)
    found = fitted_temperature(logits, index)

    def loss(log_t: float) -> float:
        return float(functional.cross_entropy(logits.double() / np.exp(log_t), index))

    best = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-8})
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found == pytest.approx(true, rel=0.06)


def test_a_network_that_is_always_right_is_held_to_the_least() -> None:
    logits, _ = drawn(1.0)
    assert fitted_temperature(logits, logits.argmax(dim=1)) == pytest.approx(LEAST, rel=1e-6)
    assert fitted_temperature(logits, logits.argmin(dim=1)) == pytest.approx(MOST, rel=1e-6)
    assert fitted_temperature(logits[:0], torch.zeros(0, dtype=torch.long)) == 1.0


@pytest.mark.parametrize("true", [0.4, 1.7])
def test_probabilities_are_matched(true: float) -> None:
    """Labels that are known by the softmax of the logits at some temperature are likeliest there, to the last digit."""
    logits, index = drawn(true)
    told = functional.softmax(logits.double() / true, dim=1)
    assert fitted_temperature(logits, told) == pytest.approx(true, rel=1e-6)
    assert fitted_temperature(logits, functional.one_hot(index)) == fitted_temperature(logits, index)
