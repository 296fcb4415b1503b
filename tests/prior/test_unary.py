"""Unary evidence, against Bayes' rule, autograd and numerical minimisation on the simplex."""

from __future__ import annotations

import pytest
import torch
from simplex import LAYOUT, eta, labels_of, minimised, probabilities

from segprior.errors import SettingError
from segprior.prior.joint import UNLABELLED
from segprior.prior.unary import Opinion, Unary, evidence, observed, opinion


def test_the_energy_is_the_law_written_out_and_has_its_gradient() -> None:
    q, p = probabilities(0, 2, 3, 4, 5), probabilities(1, 2, 3, 4, 5)
    constraint = Unary(evidence(q), LAYOUT)
    log_l = torch.log(q) - torch.log(q).amax(dim=1, keepdim=True)
    expected = torch.stack([-(p[n] * log_l[n]).sum() for n in range(2)])
    torch.testing.assert_close(constraint.energy(eta(p)), expected)
    assert torch.autograd.gradcheck(constraint.energy, (eta(p).requires_grad_(True),))


def test_the_proximal_step_is_bayes_rule() -> None:
    """With the likelihoods of a noisy observer, the posterior that Bayes gives; the image stays."""
    p = probabilities(0, 2, 3, 4, 5)
    index = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    index[0, 0] = UNLABELLED
    updated = Unary(observed(index, 0.8, 3).double(), LAYOUT).proximal(eta(p), torch.tensor(1.0))
    likelihood = torch.full((2, 3, 4, 5), 0.1, dtype=torch.float64)
    likelihood.scatter_(1, torch.where(index == UNLABELLED, 0, index)[:, None], 0.8)
    posterior = p * likelihood / (p * likelihood).sum(dim=1, keepdim=True)
    posterior[0, :, 0] = p[0, :, 0]
    torch.testing.assert_close(labels_of(updated), posterior, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(LAYOUT.split(updated)[0], LAYOUT.split(eta(p))[0])


@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
def test_the_proximal_step_minimises_what_it_says(weight: float) -> None:
    p, q = probabilities(0, 1, 3, 3, 3), probabilities(1, 1, 3, 3, 3)
    constraint = Unary(evidence(q), LAYOUT, weight)
    least = minimised(p, lambda z: weight * constraint.energy(eta(z)).sum())
    found = labels_of(constraint.proximal(eta(p), torch.tensor(1.0)))
    torch.testing.assert_close(found, least, atol=1e-4, rtol=1e-3)


def test_nothing_said_changes_nothing() -> None:
    p = probabilities(0, 1, 3, 4, 4)
    q = probabilities(1, 1, 3, 4, 4)
    q[:, :, :2] = torch.nan
    updated = labels_of(Unary(evidence(q), LAYOUT).proximal(eta(p), torch.tensor(1.0)))
    torch.testing.assert_close(updated[:, :, :2], p[:, :, :2])
    assert (updated[:, :, 2:] - p[:, :, 2:]).abs().amax() > 0.05
    same = Unary(evidence(q), LAYOUT, weight=0.0).proximal(eta(p), torch.tensor(1.0))
    torch.testing.assert_close(labels_of(same), p)
    guess = observed(torch.zeros(1, 4, 4, dtype=torch.long), 1 / 3, 3).double()
    torch.testing.assert_close(labels_of(Unary(guess, LAYOUT).proximal(eta(p), torch.tensor(1.0))), p)


def test_what_another_took_for_granted_is_divided_out() -> None:
    """q ~ likelihood x its own shares, so likelihood x p is what two sources with different shares agree on."""
    likelihood = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)[None, :, None, None]
    shares = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = likelihood * shares[:, None, None]
    log_l = evidence(q / q.sum(dim=1, keepdim=True), shares=shares)
    torch.testing.assert_close(torch.softmax(log_l, dim=1), likelihood)
    cooler = evidence(likelihood, temperature=2.0)
    torch.testing.assert_close(torch.softmax(cooler, dim=1), likelihood.sqrt() / likelihood.sqrt().sum())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingError, match="wanted evidence"):
        Unary(torch.zeros(1, 2, 4, 4), LAYOUT)
    with pytest.raises(SettingError, match="weight of 0 or more, got a weight of -1"):
        Unary(torch.zeros(1, 3, 4, 4), LAYOUT, weight=-1.0)
    with pytest.raises(SettingError, match="finite evidence"):
        Unary(torch.full((1, 3, 4, 4), torch.nan), LAYOUT)
    with pytest.raises(SettingError, match="temperature above 0"):
        evidence(torch.ones(1, 3, 2, 2) / 3, temperature=0.0)
    with pytest.raises(SettingError, match=r"accuracies from 0.33 \(a guess\) to 1, got 0.2"):
        observed(torch.zeros(1, 2, 2, dtype=torch.long), 0.2, 3)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 3.0])
def test_an_opinion_is_pooled(weight: float) -> None:
    """KL(z || p) + weight KL(z || q) is least at the proximal step; where there is no opinion nothing moves."""
    p, q = probabilities(0, 1, 3, 3, 3), probabilities(1, 1, 3, 3, 3)
    constraint = Opinion(opinion(q), LAYOUT, weight)
    least = minimised(p, lambda z: weight * constraint.energy(eta(z)).sum())
    found = labels_of(constraint.proximal(eta(p), torch.tensor(1.0)))
    torch.testing.assert_close(found, least, atol=1e-4, rtol=1e-3)
    q[:, :, 0] = torch.nan
    partly = labels_of(Opinion(opinion(q), LAYOUT, weight).proximal(eta(p), torch.tensor(1.0)))
    torch.testing.assert_close(partly[:, :, 0], p[:, :, 0])
    torch.testing.assert_close(partly[:, :, 1:], found[:, :, 1:])


def test_the_energy_of_an_opinion_is_the_divergence_and_has_its_gradient() -> None:
    p, q = probabilities(0, 2, 3, 4, 5), probabilities(1, 2, 3, 4, 5)
    constraint = Opinion(opinion(q), LAYOUT)
    torch.testing.assert_close(constraint.energy(eta(p)), (p * (torch.log(p) - opinion(q))).sum(dim=(1, 2, 3)))
    q[:, :, :2] = torch.nan
    partly = Opinion(opinion(q, temperature=2.0), LAYOUT)
    assert torch.autograd.gradcheck(partly.energy, (eta(p).requires_grad_(True),))
    with pytest.raises(SettingError, match="wanted a temperature"):
        opinion(p, temperature=0.0)
    for log_q, weight in ((opinion(p), -1.0), (p[0], 1.0)):
        with pytest.raises(SettingError, match="wanted"):
            Opinion(log_q, LAYOUT, weight)
