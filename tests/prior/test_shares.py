"""Shares of regions, against closed forms, the conditions of Karush, Kuhn and Tucker, and numerical minimisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special
from simplex import LAYOUT, eta, labels_of, minimised, probabilities
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.shares import PULL, Hints, Regions, Shares, decided_tilts, mean_by_region, product_log

WANTED = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)


def index() -> Tensor:
    """Two regions, both in both items, and some pixels in none."""
    found = torch.randint(2, (2, 5, 6), generator=torch.Generator().manual_seed(3))
    found[0, :, 0] = -1
    return found


def flat(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(-1, 3)


def moved(constraint: Constraint, p: Tensor) -> Tensor:
    return labels_of(constraint.proximal(eta(p), torch.tensor(1.0)))


def shares_of(p: Tensor) -> Tensor:
    return mean_by_region(flat(p), index().reshape(-1), 2)


def test_where_all_pixels_are_alike_the_shares_are_taken_over() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)[None, :, None, None].repeat(2, 1, 5, 6)
    q = moved(Shares(Regions(index(), WANTED), LAYOUT), p)
    for region in range(2):
        at = index() == region
        torch.testing.assert_close(q.movedim(1, -1)[at], WANTED[region].expand(int(at.sum()), 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(q.movedim(1, -1)[index() < 0], p.movedim(1, -1)[index() < 0])


def test_firm_shares_are_met_by_one_tilt_of_each_region() -> None:
    p = probabilities(0, 2, 3, 5, 6)
    q = moved(Shares(Regions(index(), WANTED), LAYOUT), p)
    torch.testing.assert_close(shares_of(q), WANTED, atol=1e-4, rtol=0)
    for region in range(2):
        odds = torch.log(q / p).movedim(1, -1)[index() == region]
        odds = odds - odds[:, :1]
        torch.testing.assert_close(odds, odds[:1].expand_as(odds), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.3, 1.0])
def test_a_tolerance_is_used_up_where_the_prior_disagrees_and_only_there(tolerance: float) -> None:
    """Multipliers are above 0 at the lower end, below 0 at the upper one, 0 between (up to what sums to one)."""
    p = probabilities(0, 2, 3, 5, 6)
    q = moved(Shares(Regions(index(), WANTED), LAYOUT, tolerance), p)
    off = shares_of(q) - WANTED
    assert off.abs().max() < tolerance + 1e-4
    for region in range(2):
        lam = torch.log(q / p).movedim(1, -1)[index() == region][0]
        # the common part of the multipliers is free: some choice of it has to have the right signs
        slack = off[region].abs() < tolerance - 1e-3
        if slack.any():
            lam = lam - lam[slack][0]
            torch.testing.assert_close(lam[slack], torch.zeros_like(lam[slack]), atol=1e-4, rtol=0)
            assert bool((lam[~slack] * off[region][~slack] <= 1e-6).all())
    if tolerance == 1.0:
        torch.testing.assert_close(q, p)


@pytest.mark.parametrize("tolerance", [0.0, 0.002])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.98, 0.999])
def test_one_share_that_is_known_is_kept_however_large(share: float, tolerance: float) -> None:
    p = probabilities(0, 2, 3, 5, 6)
    some = torch.tensor([[share, torch.nan, torch.nan]] * 2, dtype=torch.float64)
    off = shares_of(moved(Shares(Regions(index(), some), LAYOUT, tolerance), p))[:, 0] - share
    assert off.abs().max() < tolerance + 1e-4


def test_shares_of_some_classes_leave_the_odds_of_the_others() -> None:
    some = torch.tensor([[0.5, torch.nan, torch.nan]] * 2, dtype=torch.float64)
    p = probabilities(0, 2, 3, 5, 6)
    for constraint in (Shares(Regions(index(), some), LAYOUT), Hints(Regions(index(), some), LAYOUT)):
        q = moved(constraint, p)
        torch.testing.assert_close(q[:, 1] / q[:, 2], p[:, 1] / p[:, 2], atol=1e-6, rtol=1e-4)
        assert (shares_of(q)[:, 0] - 0.5).abs().max() < (shares_of(p)[:, 0] - 0.5).abs().max()
    firm = shares_of(moved(Shares(Regions(index(), some), LAYOUT), p))[:, 0]
    torch.testing.assert_close(firm, some[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("weight", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("wanted", [WANTED, torch.tensor([[0.6, 0.1, torch.nan]] * 2, dtype=torch.float64)])
def test_hints_minimise_what_they_say(weight: float, wanted: Tensor) -> None:
    p = probabilities(0, 2, 3, 5, 6)
    constraint = Hints(Regions(index(), wanted), LAYOUT, weight)
    least = minimised(p, lambda z: weight * constraint.energy(eta(z)).sum())
    torch.testing.assert_close(moved(constraint, p), least, atol=2e-4, rtol=1e-3)


def test_a_hint_pulls_a_part_of_its_region_by_that_much() -> None:
    """As it would with so much of the weight, and where a part is all, as without parts."""
    p, parts = probabilities(0, 2, 3, 5, 6), torch.tensor([0.25, 1.0], dtype=torch.float64)
    constraint = Hints(Regions(index(), WANTED, parts), LAYOUT, 2.0)
    q = moved(constraint, p)
    torch.testing.assert_close(q, minimised(p, lambda z: 2.0 * constraint.energy(eta(z)).sum()), atol=2e-4, rtol=1e-3)
    for region, weight in ((0, 0.5), (1, 2.0)):
        at = index() == region
        wanted = moved(Hints(Regions(index(), WANTED), LAYOUT, weight), p)
        torch.testing.assert_close(q.movedim(1, -1)[at], wanted.movedim(1, -1)[at], atol=1e-4, rtol=0)
    for wrong in (parts[:1], 0 * parts):
        with pytest.raises(SettingError, match="wanted parts above 0 of 2 regions"):
            Regions(index(), WANTED, wrong)


def test_hints_are_believed_the_more_the_more_they_weigh() -> None:
    p = probabilities(0, 2, 3, 5, 6)
    off = [
        float((shares_of(moved(Hints(Regions(index(), WANTED), LAYOUT, w), p)) - WANTED).abs().max())
        for w in (0.0, 0.1, 1.0, 10.0, 1000.0)
    ]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-3
    assert torch.equal(moved(Hints(Regions(index(), WANTED), LAYOUT, 0.0), p), labels_of(eta(p)))


def kinds() -> list[Callable[[Tensor], Constraint]]:
    return [
        lambda s: Shares(Regions(index(), s), LAYOUT),
        lambda s: Shares(Regions(index(), s), LAYOUT, 0.05),
        lambda s: Hints(Regions(index(), s), LAYOUT),
    ]


@pytest.mark.parametrize("kind", kinds())
def test_the_energy_has_its_gradient_and_is_zero_at_the_shares(kind: Callable[[Tensor], Constraint]) -> None:
    p = probabilities(0, 2, 3, 5, 6)
    constraint = kind(WANTED)
    assert torch.autograd.gradcheck(constraint.energy, (eta(p).requires_grad_(True),))
    assert float(constraint.energy(eta(p)).sum()) > 0.1
    there = moved(Shares(Regions(index(), WANTED), LAYOUT), p)
    assert float(constraint.energy(eta(there)).sum()) < 1e-6


def test_the_energy_of_hints_is_the_law_written_out() -> None:
    p = probabilities(0, 2, 3, 5, 6)
    m = shares_of(p)
    counts = torch.stack([(index() == region).sum() for region in range(2)])
    expected = PULL * (counts * (WANTED * torch.log(WANTED / m)).sum(dim=1)).sum()
    torch.testing.assert_close(Hints(Regions(index(), WANTED), LAYOUT).energy(eta(p)).sum(), expected)


def test_the_product_log_is_lamberts() -> None:
    c = torch.linspace(-60, 80, 400, dtype=torch.float64)
    exact = np.array([special.lambertw(np.exp(v)).real for v in c.numpy()])
    np.testing.assert_allclose(product_log(c).numpy(), exact, rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Regions(index(), WANTED * 2),
        lambda: Regions(index() + 5, WANTED),
        lambda: Regions(index(), WANTED[0]),
        lambda: Shares(Regions(index(), WANTED), LAYOUT, -0.1),
        lambda: Hints(Regions(index(), WANTED), LAYOUT, -1.0),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(SettingError, match="wanted"):
        make()


@pytest.mark.parametrize("tolerance", [0.0, 0.03])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_decided_classes_keep_shares_however_little_pixels_differ(tolerance: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(spread * torch.randn(6000, 3, generator=generator, dtype=torch.float64), dim=1)
    where = torch.arange(6000) % 3 - 1
    lam = decided_tilts(p, where, WANTED, tolerance=tolerance)
    for region in range(2):
        at = where == region
        decided = (torch.log(p[at]) + lam[region]).argmax(dim=1)
        share = torch.bincount(decided, minlength=3) / int(at.sum())
        assert float((share - WANTED[region]).abs().max()) < tolerance + 1e-3
