"""Clusters, against scikit-learn's mixtures and mutual information, and the descent they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.clusters import WORTH, Clusters, merged, mixtures, windows
from segprior.prior.joint import OneHotLayout

LAYOUT = OneHotLayout(3, 3, 0.3)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eta(p: Tensor) -> Tensor:
    return LAYOUT.join(torch.zeros(len(p), 3, *p.shape[2:], dtype=p.dtype), LAYOUT.place(p))


def labels_of(joint: Tensor) -> Tensor:
    return LAYOUT.probabilities(LAYOUT.split(joint)[1])


def quarters() -> tuple[Tensor, Tensor]:
    """An image (1, 3, 32, 32) of four colours, and which."""
    which = torch.arange(4).reshape(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)
    colours = 3 * normal(0, 4, 3)
    return colours[which].permute(2, 0, 1)[None] + 0.3 * normal(1, 1, 3, 32, 32), which


@pytest.mark.parametrize(("height", "width"), [(50, 70), (32, 32), (33, 64)])
def test_windows_cover_everything_and_merge_back(height: int, width: int) -> None:
    x = normal(0, 2, 3, height, width)
    cut = windows(x, 16)
    torch.testing.assert_close(merged(cut, 16, height, width), x)
    assert cut.shape[2:] == (3, 256)


def test_mixtures_find_what_another_library_finds() -> None:
    """Well-apart Gaussians of different spread: memberships up to their order."""
    means, spread = 4 * normal(0, 3, 2), torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
    which = torch.arange(900) % 3
    x = means[which] + spread[which][:, None] * normal(1, 900, 2)
    mine = mixtures(x.T, 3)
    assert mine.shape == (3, 900)
    theirs = GaussianMixture(3, covariance_type="diag", random_state=0, n_init=5).fit(x.numpy())
    truth = theirs.predict_proba(x.numpy())
    order = [int(np.argmax([np.corrcoef(m, t)[0, 1] for t in truth.T])) for m in mine.numpy()]
    assert sorted(order) == [0, 1, 2]
    assert np.abs(mine.numpy().T - truth[:, order]).mean() < 0.01


def test_flat_and_tiny_windows_are_no_trouble() -> None:
    for image in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 2, 5), normal(0, 1, 3, 4, 4)):
        found = Clusters.of(image, LAYOUT, count=5, side=64)
        assert torch.isfinite(found.responsibilities).all()
        p = torch.full((1, 3, *image.shape[2:]), 1 / 3, dtype=image.dtype)
        torch.testing.assert_close(labels_of(found.proximal(eta(p), torch.tensor(1.0))), p)


def test_the_energy_is_the_mutual_information() -> None:
    """With decided clusters and labels, window by window; the energy is their mean where none is at the edge."""
    index = torch.randint(3, (16, 16), generator=torch.Generator().manual_seed(0))
    which = (index + (normal(0, 16, 16) > 1)) % 3
    image = torch.stack([(which == k).double() for k in range(3)])[None] * 5
    clusters = Clusters.of(image, LAYOUT, count=3, side=16)
    p = torch.nn.functional.one_hot(index, 3).double().permute(2, 0, 1)[None]
    information = clusters._information(p)[0][0]
    labels, colours = windows(p, 16)[0].argmax(dim=1), windows(image, 16)[0].argmax(dim=1)
    expected = [mutual_info_score(a.numpy(), b.numpy()) for a, b in zip(labels, colours, strict=True)]
    np.testing.assert_allclose(information.numpy(), expected, atol=2e-3)
    assert float(clusters.energy(eta(p))) == pytest.approx(-WORTH * 256 * float(np.mean(expected)), rel=0.02)


def test_the_energy_has_its_gradient() -> None:
    clusters = Clusters.of(normal(0, 2, 3, 12, 14), LAYOUT, count=3, side=8)
    p = torch.softmax(normal(1, 2, 3, 12, 14), dim=1)
    assert torch.autograd.gradcheck(clusters.energy, (eta(p).requires_grad_(True),))


@pytest.mark.parametrize("weight", [0.5, 4.0, 20.0])
def test_the_proximal_step_lowers_what_it_says(weight: float) -> None:
    image, _ = quarters()
    clusters = Clusters.of(image, LAYOUT, count=4, side=16, weight=weight)
    p = torch.softmax(0.5 * normal(3, 1, 3, 32, 32), dim=1)

    def objective(q: Tensor) -> float:
        return float((torch.special.xlogy(q, q) - q * torch.log(p)).sum() + weight * clusters.energy(eta(q)).sum())

    q = labels_of(clusters.proximal(eta(p), torch.tensor(1.0)))
    assert objective(q) < objective(p)
    assert float(clusters.energy(eta(q))) < float(clusters.energy(eta(p)))


def test_labels_come_to_follow_the_colours() -> None:
    """Noisy labels of four quarters: the proximal step mends most of their errors."""
    image, which = quarters()
    truth = which.clamp(max=2)
    wrong = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) < 0.25
    noisy = torch.where(wrong, (truth + 1) % 3, truth)
    p = 0.8 * torch.nn.functional.one_hot(noisy, 3).double() + 0.2 / 3
    p = p.permute(2, 0, 1)[None]
    clusters = Clusters.of(image, LAYOUT, count=4, side=32, weight=16.0)
    found = labels_of(clusters.proximal(eta(p), torch.tensor(1.0)))[0].argmax(dim=0)
    assert float((found != truth).double().mean()) < 0.25 * float(wrong.double().mean())


def test_what_makes_no_sense_is_refused() -> None:
    image = normal(0, 1, 3, 16, 16)
    for settings in ({"count": 1, "side": 8}, {"count": 3, "side": 8, "weight": -1.0}):
        with pytest.raises(SettingError, match="wanted"):
            Clusters.of(image, LAYOUT, **settings)  # type: ignore[arg-type]  # by name
    with pytest.raises(SettingError, match="even side"):
        Clusters(torch.zeros(1, 1, 2, 9), 3, LAYOUT)
