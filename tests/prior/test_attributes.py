"""Attributes, against Bayes' rule for linear scores and numerical minimisation for others."""

from __future__ import annotations

import pytest
import torch
from simplex import LAYOUT, labels_of, minimised
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.attributes import Attributes
from segprior.prior.unary import Unary


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eta(p: Tensor) -> Tensor:
    return LAYOUT.join(normal(9, len(p), 2, *p.shape[2:]), LAYOUT.place(p))


def smooth(image: Tensor, p: Tensor) -> Tensor:
    """Neighbours are to be alike, the less the more their colours differ: a convex energy."""
    alike = torch.exp(-(image.diff(dim=3) ** 2).sum(dim=1, keepdim=True))
    return -2 * (alike * p.diff(dim=3) ** 2).sum(dim=(1, 2, 3)) - 2 * (p.diff(dim=2) ** 2).sum(dim=(1, 2, 3))


def test_a_linear_score_is_unary_evidence() -> None:
    log_l, p = normal(0, 2, 3, 4, 5), torch.softmax(normal(1, 2, 3, 4, 5), dim=1)
    mine = Attributes(lambda _, q: (q * log_l).sum(dim=(1, 2, 3)), LAYOUT, weight=0.7)
    theirs = Unary(log_l, LAYOUT, weight=0.7)
    torch.testing.assert_close(mine.energy(eta(p)), theirs.energy(eta(p)))
    torch.testing.assert_close(
        labels_of(mine.proximal(eta(p), torch.tensor(1.0))), labels_of(theirs.proximal(eta(p), torch.tensor(1.0)))
    )


@pytest.mark.parametrize("weight", [0.2, 0.5])
def test_the_proximal_step_minimises_what_it_says(weight: float) -> None:
    """KL(z || p) + weight * energy(z) over the simplex; the image stays."""
    p = torch.softmax(2 * normal(0, 1, 3, 4, 4), dim=1)
    constraint = Attributes(smooth, LAYOUT, weight)
    image = LAYOUT.split(eta(p))[0]
    least = minimised(p, lambda z: -weight * smooth(image, z).sum())
    moved = constraint.proximal(eta(p), torch.tensor(1.0))
    torch.testing.assert_close(labels_of(moved), least, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(LAYOUT.split(moved)[0], image)


def test_the_energy_has_its_gradient() -> None:
    p = torch.softmax(normal(0, 2, 3, 4, 4), dim=1)
    assert torch.autograd.gradcheck(Attributes(smooth, LAYOUT).energy, (eta(p).requires_grad_(True),))


def test_what_makes_no_sense_is_refused() -> None:
    p = torch.softmax(normal(0, 2, 3, 4, 4), dim=1)
    with pytest.raises(SettingError, match="wanted a weight"):
        Attributes(smooth, LAYOUT, weight=-1.0)
    with pytest.raises(SettingError, match="a score for each of 2 items"):
        Attributes(lambda _, q: q.sum(), LAYOUT).energy(eta(p))
