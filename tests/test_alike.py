"""Surveyed places and what is alike: against the optimum's law, scikit-learn's Laplace approximation, and limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from tiny import tiny_prior

from segprior.checkpoint import load_prior
from segprior.errors import SettingError
from segprior.prior.alike import (
    CLICKS,
    CONSENT,
    MOST,
    QUIET,
    SURVEYS,
    Alike,
    Law,
    Surveyed,
    alike,
    alike_within,
    evidence,
)
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.infer import FixedPoint, infer
from segprior.prior.joint import Times
from segprior.prior.label_path import STRIDE

GENERATOR = torch.Generator().manual_seed(0)


def places(count: int, channels: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features = torch.randn(count, channels, generator=GENERATOR)
    logits = torch.randn(count, classes, generator=GENERATOR)
    return features, logits, torch.randint(classes, (count,), generator=GENERATOR)


def plain(channels: int) -> dict[str, torch.Tensor]:
    return {"mean": torch.zeros(channels), "std": torch.ones(channels)}


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (12, 3), (40, 5)])
def test_the_optimum_is_one(count: int, classes: int) -> None:
    """At the least energy the residuals are what is left between classes and probabilities."""
    features, logits, index = places(count, 6, classes)
    logits = logits.T.contiguous().T  # as they come when picked from maps
    found = alike(features, logits, index, **plain(6), law=Law(2.0, 0.7))
    g = found.offset(features.T.reshape(1, 6, 1, count))[0, :, 0].T
    wanted = torch.nn.functional.one_hot(index, classes) - torch.softmax(logits + g, dim=1)
    torch.testing.assert_close(found.residuals, wanted.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.residuals.sum(dim=1), torch.zeros(count), atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_two_classes_agree_with_scikit_learn(share: float) -> None:
    """Two classes with logits of 0: the difference of two such processes is one of twice the variance."""
    features, _, _ = places(30, 4, 2)
    index = (features[:, 0] + 0.3 * features[:, 1] > 0).long()
    found = alike(features, torch.zeros(30, 2), index, **plain(4), law=Law(1.5, 0.8, base=share))
    law = ConstantKernel(3.0) * RBF(0.8 * 4**0.5)
    law = law + ConstantKernel(2 * share) if share else law
    other = GaussianProcessClassifier(law, optimizer=None, max_iter_predict=500).fit(features.numpy(), index.numpy())
    new = torch.randn(25, 4, generator=GENERATOR)
    g = found.offset(new.T.reshape(1, 4, 5, 5)).reshape(2, 25)
    base = other.base_estimator_
    latent = law(new.numpy(), base.X_train_) @ (base.y_train_ - base.pi_)
    np.testing.assert_allclose((g[1] - g[0]).numpy(), latent, atol=2e-3)


def test_the_variance_is_how_much_may_be_missing() -> None:
    """Next to nothing changes nothing; a great deal makes the places right, and what is unlike stays as it is."""
    features, logits, index = places(10, 5, 3)
    at = features.T.reshape(1, 5, 1, 10)
    little = alike(features, logits, index, **plain(5), law=Law(1e-6, 0.5))
    assert float(little.offset(at).abs().max()) < 1e-5
    much = alike(features, logits, index, **plain(5), law=Law(100.0, 0.5))
    assert bool(((logits + much.offset(at)[0, :, 0].T).argmax(dim=1) == index).all())
    assert float(much.offset(at + 100).abs().max()) < 1e-6


def test_what_all_places_lack_is_put_right_where_nothing_is_alike() -> None:
    """Ten places of a class that the logits deny lift it far from them too, by a base; one does so by less."""
    features, far = torch.zeros(10, 3), torch.full((1, 3, 1, 1), 100.0)
    logits, index = torch.tensor([[1.0, -1.0]]).expand(10, 2), torch.ones(10, dtype=torch.long)
    lifted = [
        (g := alike(features[:n], logits[:n], index[:n], **plain(3), law=law).offset(far))[0, 1] - g[0, 0]
        for law, n in (
            (Law(3.0, 0.5), 10),
            (Law(3.0, 0.5, base=0.1), 1),
            (Law(3.0, 0.5, base=0.1), 10),
            (SURVEYS, 10),
        )
    ]
    assert float(lifted[0]) == pytest.approx(0, abs=1e-6)
    assert 0.05 < float(lifted[1]) < float(lifted[2]) < 1
    assert float(lifted[3]) == pytest.approx(float(lifted[2]))


def test_features_are_compared_in_units_of_their_spread() -> None:
    features, logits, index = places(8, 3, 3)
    std, mean = torch.tensor([10.0, 0.1, 0.0]), torch.tensor([5.0, -2.0, 1.0])
    features[:, 2] = 0.0  # the same everywhere, so it counts for nothing
    there = features.T.reshape(1, 3, 2, 4)
    scaled = there * std.clamp(min=1.0)[:, None, None] * torch.tensor([1.0, 0.1, 1.0])[:, None, None]
    scaled = scaled + mean[:, None, None]
    one = alike(features, logits, index, **plain(3))
    other = alike(scaled.reshape(3, 8).T, logits, index, mean=mean, std=std)
    torch.testing.assert_close(one.offset(there), other.offset(scaled), atol=1e-4, rtol=1e-4)


def test_the_covariance_falls_with_the_distance_of_features_and_of_places() -> None:
    features, at = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = Law(2.0, 0.5).covariance(features, features)
    np.testing.assert_allclose(found, [[2, 2 * np.exp(-4)], [2 * np.exp(-4), 2]], rtol=1e-5)
    found = Law(2.0, 0.5, base=0.3).covariance(features, features)
    np.testing.assert_allclose(found[0], [2.3, 0.3 + 2 * np.exp(-4)], rtol=1e-5)
    found = Law(2.0, 0.5, local=6.0, near=5.0, base=0.3).covariance(features, features, at, at)
    np.testing.assert_allclose(found[0], [8.3, 0.3 + np.exp(-4) * (2 + 6 * np.exp(-0.5))], rtol=1e-5)
    found = Law(2.0, 0.5, local=6.0, near=5.0).covariance(features, features, at, at)
    np.testing.assert_allclose(found[0], [8, np.exp(-4) * (2 + 6 * np.exp(-0.5))], rtol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"variance": 0.0}, {"reach": -1.0}, {"near": 0.0}, {"local": -1.0}, {"base": -1.0}]
)
def test_what_is_no_process_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="wanted a variance, a reach and a distance above 0"):
        Law(**({"variance": 1.0, "reach": 1.0} | settings))


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_too_few_and_too_many_places_are_refused(count: int) -> None:
    with pytest.raises(SettingError, match=f"wanted 1 to {MOST} places"):
        alike(torch.zeros(count, 2), torch.zeros(count, 2), torch.zeros(count), **plain(2))


@pytest.fixture
def denoiser(tmp_path: Path) -> NetworkDenoiser:
    return load_prior(tiny_prior(tmp_path / "tiny.safetensors")).denoiser


def told_of(denoiser: NetworkDenoiser, y: torch.Tensor, row: int, col: int, kind: int) -> tuple[Surveyed, Alike]:
    """The prior, told the class of one pixel of its image, with much to be missing."""
    with torch.no_grad():
        features = denoiser.encode(y, torch.zeros(1, 1, *y.shape[2:]))
    flat = features.context[0].flatten(1)
    found = alike(
        features.context[:, :, row // STRIDE, col // STRIDE],
        features.logits[:, :, row, col] / denoiser.temperature,
        torch.tensor([kind]),
        mean=flat.mean(dim=1),
        std=flat.std(dim=1),
        law=Law(1e3, 0.5),
    )
    return Surveyed(denoiser, found), found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_prior_that_was_told_says_so(denoiser: NetworkDenoiser, temperature: float) -> None:
    """The place takes its class, by g at the prior's temperature; a path of several steps goes on from there."""
    y = torch.randn(1, 3, 64, 64, generator=GENERATOR)
    denoiser.temperature = temperature
    *_, alone = infer(denoiser, y, solver=FixedPoint(times=(1.0,)))
    kind = (int(alone.probabilities[0, :, 21, 21].argmax()) + 1) % 3
    surveyed, found = told_of(denoiser, y, 21, 21, kind)
    for count in (1, 3):
        *_, last = infer(surveyed, y, solver=FixedPoint(times=(1.0, 0.9, 0.8)[:count]))
        assert int(last.probabilities[0, :, 21, 21].argmax()) == kind
    with torch.no_grad():
        before, after = (d.encode(y, torch.zeros(1, 1, 64, 64)) for d in (surveyed.denoiser, surveyed))
    g = (after.logits - before.logits) / temperature
    # away from the edges, a cell's mean of what is interpolated between cells hardly differs from the cell
    cells = found.offset(before.context)
    means = torch.nn.functional.avg_pool2d(g, STRIDE)
    assert float(torch.corrcoef(torch.stack([means.flatten(), cells.flatten()]))[0, 1]) > 0.95


def test_features_are_computed_where_none_are_given(denoiser: NetworkDenoiser) -> None:
    y = torch.randn(1, 3, 32, 32, generator=GENERATOR)
    surveyed, _ = told_of(denoiser, y, 3, 3, 0)
    x_t = surveyed.layout.join(y, torch.zeros(1, surveyed.layout.classes, 32, 32))
    times = Times(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    with torch.no_grad():
        given = surveyed.x0_hat(x_t, times, surveyed.encode(y, torch.zeros(1, 1, 32, 32)))
        torch.testing.assert_close(surveyed.x0_hat(x_t, times), given)


def test_a_click_speaks_most_to_what_is_near_and_alike() -> None:
    """What is near and alike follows it most, then what is alike but far; what is unlike stays."""
    features = torch.zeros(1, 4, 16, 16)
    features[:, :, 8:] = 6.0
    law, at = Law(3.0, 1.0, local=10.0, near=6.0), torch.tensor([[2.0 * STRIDE + 1.5, 2.0 * STRIDE + 1.5]])
    logits, roof = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    told = alike(features[0, :, 2, 2][None], logits, roof, **plain(4), law=law, at=at)
    g = told.offset(features)[0]
    assert float(g[1, 2, 2] - g[0, 2, 2]) > 2, "more than the logits said against it"
    share = (3 + 10 * np.exp(-(STRIDE**2) / 72)) / 13
    assert float(g[1, 2, 3]) == pytest.approx(float(g[1, 2, 2]) * share, rel=1e-4)
    assert float(g[1, 2, 15]) == pytest.approx(float(g[1, 2, 2]) * 3 / 13, rel=1e-4)
    assert float(g[:, 8:].abs().max()) < 1e-6
    # the same window, further down and to the right
    moved = told.offset(features[..., 1:], torch.tensor([[0.0, STRIDE]]))[0]
    torch.testing.assert_close(moved, g[..., 1:])


def test_quiet_places_hold_against_clicks() -> None:
    """Where the features cannot tell a click from places that nobody minds, it is outvoted; alone they say nothing."""
    features, logits = torch.zeros(101, 3), torch.tensor([[3.0, 0.0]]).repeat(101, 1)
    index = torch.tensor([1] + [255] * 100)
    alone = alike(features[:1], logits[:1], index[:1], **plain(3)).offset(torch.zeros(1, 3, 1, 1))
    among = alike(features, logits, index, **plain(3)).offset(torch.zeros(1, 3, 1, 1))
    assert float(alone[0, 1] - alone[0, 0]) > 1
    assert 0 < float(among[0, 1] - among[0, 0]) < 0.5 * float(alone[0, 1] - alone[0, 0])
    quiet = alike(features, logits, torch.full((101,), 255), **plain(3))
    assert float(quiet.residuals.abs().max()) < 1e-6


def test_a_quiet_place_weighs_its_share() -> None:
    """At the least energy its residual is w (p before - p after), and that of a place with a class the whole."""
    features, logits, index = places(30, 4, 3)
    index[10:] = 255
    found = alike(features, logits, index, **plain(4), law=Law(5.0, 1.0))
    g = found.offset(features.T.reshape(1, 4, 1, 30))[0, :, 0].T
    before, after = torch.softmax(logits, dim=1), torch.softmax(logits + g, dim=1)
    torch.testing.assert_close(found.residuals[10:], CONSENT * (before - after)[10:], atol=1e-5, rtol=0)
    one_hot = torch.nn.functional.one_hot(index[:10], 3)
    torch.testing.assert_close(found.residuals[:10], (one_hot - after[:10]).float(), atol=1e-5, rtol=0)


def test_clicks_are_evidence_of_an_image(denoiser: NetworkDenoiser) -> None:
    y, seen = torch.randn(1, 3, 64, 64, generator=GENERATOR), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    seen[..., :32, :32] = False
    clicks, index = torch.tensor([[10, 50], [40, 9]]), torch.tensor([2, 0])
    told = alike_within(denoiser, y, seen, clicks, index, law=CLICKS)
    assert 2 + 0.6 * QUIET < len(told.features) < 2 + 0.9 * QUIET, "three quarters hold data"
    found = evidence(denoiser, y, seen, told)
    assert found.shape == (1, 3, 64, 64)
    with torch.no_grad():
        logits = denoiser.encode(torch.where(seen, y, 0.0), torch.where(seen, 0.0, 1.0)).logits[0]
    for (row, col), kind in zip(clicks.tolist(), index.tolist(), strict=True):
        before, after = (torch.softmax(each[:, row, col], dim=0)[kind] for each in (logits, logits + found[0]))
        assert after > before
    surveyed = alike_within(denoiser, y, seen, clicks, index)
    assert len(surveyed.features) == 2
    assert surveyed.at is None


@pytest.mark.parametrize("corner", [0.0, 30_000.0, 100_000.0])
def test_a_click_speaks_alike_wherever_the_window_lies(corner: float) -> None:
    """Places are compared by the rows and columns of the whole raster, which may be large."""
    features, logits, index = places(40, 6, 3)
    at = torch.randint(64, (40, 2), generator=torch.Generator().manual_seed(1)).float()
    context = torch.randn(1, 6, 16, 16, generator=torch.Generator().manual_seed(2))
    near, far = (
        alike(features, logits, index, **plain(6), law=CLICKS, at=at + shift).offset(context, torch.full((1, 2), shift))
        for shift in (0.0, corner)
    )
    assert near.abs().max() > 0.5
    torch.testing.assert_close(far, near, rtol=0, atol=1e-3)
