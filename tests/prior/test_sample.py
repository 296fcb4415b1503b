"""Samples against a Gaussian prior, whose denoiser is known and whose samples therefore have a known law."""

from math import pi

import gaussian
import pytest
import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.denoiser import Denoiser
from segprior.prior.infer import generator_noise
from segprior.prior.joint import FreeLayout, OneHotLayout, Times
from segprior.prior.network import Features
from segprior.prior.sample import Path, SampleStep, class_index, labels_first, sample, together
from segprior.prior.schedule import CosineSchedule

MEAN = torch.tensor([0.5, -0.3, 0.8])
COVARIANCE = torch.tensor([[1.0, 0.5, -0.3], [0.5, 0.8, 0.1], [-0.3, 0.1, 0.5]])


class GaussianDenoiser(Denoiser):
    """E[x_0 | x_t] for pixels drawn independently from N(MEAN, COVARIANCE) over two bands and one label channel."""

    def __init__(self) -> None:
        self.layout = FreeLayout(2, 1)
        self.schedule = CosineSchedule()

    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features | None:
        return None

    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        abar = self.schedule.alpha_bar(times.image).squeeze()
        noisy = abar * COVARIANCE + (1 - abar) * torch.eye(3)
        gain = abar.sqrt() * COVARIANCE @ torch.linalg.inv(noisy)
        centred = x_t - abar.sqrt() * MEAN[:, None, None]
        return MEAN[:, None, None] + torch.einsum("ij,njhw->nihw", gain, centred)


class HalfDenoiser(Denoiser):
    """Takes every pixel for class 1 of 2 and the image for zero."""

    def __init__(self) -> None:
        self.layout = OneHotLayout(1, 2, 0.3)
        self.schedule = CosineSchedule()

    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features | None:
        return None

    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        return torch.tensor([0.0, -0.3, 0.3])[:, None, None].expand_as(x_t)


def last(**settings: object) -> Tensor:
    *_, step = sample(GaussianDenoiser(), (4, 64, 64), **settings)  # type: ignore[arg-type]  # by name
    return step.x


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    pixels = x.double().permute(1, 0, 2, 3).flatten(1)
    return pixels.mean(dim=1), torch.cov(pixels)


def test_ddim_is_the_linear_map_it_must_be() -> None:
    """Along an eigenvector of variance c, with angles a = pi t / 2, a step multiplies the noise by a known factor."""
    path = together(7)
    variances, vectors = torch.linalg.eigh(COVARIANCE.double())
    gains = torch.ones_like(variances)
    for (t, _), (s, _) in zip(path, (*path[1:], (0.0, 0.0)), strict=True):
        a, b = torch.tensor([t, s], dtype=torch.float64) * (pi / 2)
        numerator = variances * b.cos() * a.cos() + b.sin() * a.sin()
        gains = gains * numerator / (variances * a.cos() ** 2 + a.sin() ** 2)
    eps = generator_noise(3, (4, 3, 64, 64))(0).double()
    # every step leaves the mean's own path where it is, so the noise around it is all that is mapped
    wanted = MEAN[:, None, None] + torch.einsum("ij,njhw->nihw", vectors @ gains.diag() @ vectors.T, eps)
    got = last(path=path, seed=3).double()
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_many_steps_give_the_priors_mean_and_covariance(churn: float) -> None:
    mean, covariance = moments(last(path=together(400), churn=churn, seed=1))
    torch.testing.assert_close(mean, MEAN.double(), atol=0.03, rtol=0)
    torch.testing.assert_close(covariance, COVARIANCE.double(), atol=0.04, rtol=0)


def test_the_default_steps_lose_little_variance() -> None:
    mean, covariance = moments(last())
    torch.testing.assert_close(mean, MEAN.double(), atol=0.03, rtol=0)
    torch.testing.assert_close(covariance, COVARIANCE.double(), atol=0.1, rtol=0)
    assert covariance.diagonal().sum() < COVARIANCE.diagonal().sum()


def test_a_seed_fixes_the_sample_and_another_changes_it() -> None:
    first, again, other = (last(path=together(3), churn=1.0, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_the_last_step_is_the_denoised_x_and_its_classes() -> None:
    steps = list(sample(HalfDenoiser(), (2, 3, 5), path=((1.0, 1.0), (0.5, 0.5))))
    assert [step.number for step in steps] == [1, 2]
    assert isinstance(steps[0], SampleStep)
    assert not torch.allclose(steps[0].x[:, 0], torch.zeros(()), atol=0.1), "noise is left at t = 0.5"
    torch.testing.assert_close(steps[1].x, torch.tensor([0.0, -0.3, 0.3])[:, None, None].expand(2, 3, 3, 5))
    torch.testing.assert_close(steps[1].probabilities[0, :, 0, 0], torch.tensor([0.0, 1.0]))
    index = class_index(steps[1].probabilities)
    assert index.dtype == torch.uint8
    assert index.shape == (2, 3, 5)
    assert (index == 1).all()


@pytest.mark.parametrize(
    "path",
    [(), ((0.9, 1.0),), ((1.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (0.0, 0.0)), ((1.0, 1.0), (0.2, 0.5), (0.4, 0.4))],
)
def test_times_must_fall_from_one(path: Path) -> None:
    with pytest.raises(SettingError, match="wanted times that fall"):
        last(path=path)


def test_other_settings_out_of_range() -> None:
    with pytest.raises(SettingError, match="churn"):
        last(churn=1.5)
    with pytest.raises(SettingError, match="1 step"):
        together(0)
    with pytest.raises(SettingError, match="2 steps"):
        labels_first(1)


def test_labels_first_draws_from_the_same_law() -> None:
    """p(labels) p(image | labels) is p(image, labels): the moments of the joint prior again."""
    path = labels_first(400, last_labels=0.005, last_image=0.005)
    *_, step = sample(gaussian.GaussianDenoiser(), (4, 64, 64), path=path, churn=0.5, seed=2)
    mean, covariance = moments(step.x)
    torch.testing.assert_close(mean, gaussian.MU, atol=0.05, rtol=0)
    torch.testing.assert_close(covariance, gaussian.C, atol=0.06, rtol=0)


def test_drawn_labels_are_one_hot_before_the_image_is_drawn() -> None:
    path = labels_first(6)
    steps = list(sample(HalfDenoiser(), (1, 4, 4), path=path))
    times = torch.tensor([(1.0, 1.0), (1.0, 0.625), (1.0, 0.25), (1.0, 0.0), (0.725, 0.0), (0.45, 0.0)])
    torch.testing.assert_close(torch.tensor(path), times)
    for step in steps[2:]:
        torch.testing.assert_close(step.x[:, 1:], torch.tensor([-0.3, 0.3])[None, :, None, None].expand(1, 2, 4, 4))
    torch.testing.assert_close(steps[1].x[:, :1], generator_noise(0, (1, 3, 4, 4))(0)[:, :1])
