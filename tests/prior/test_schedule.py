"""Laws of the noise schedules, and the linear one against the discrete product of betas."""

from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.schedule import LOG_SNR_LIMIT, CosineSchedule, LinearSchedule, Schedule


@pytest.fixture(params=[CosineSchedule(), LinearSchedule()], ids=["cosine", "linear"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    value: Schedule = request.param
    return value


def line(count: int) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


def test_snr_strictly_falls(schedule: Schedule) -> None:
    snr = schedule.snr(line(2001))
    assert snr[0] == torch.inf
    assert (torch.diff(snr[1:]) < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_exact(schedule: Schedule, dtype: torch.dtype) -> None:
    ends = schedule.alpha_bar(torch.tensor([0.0, 1.0], dtype=dtype))
    assert ends.tolist() == [1.0, 0.0]
    assert ends.dtype == dtype
    assert schedule.sigma(torch.tensor([0.0, 1.0], dtype=dtype)).tolist() == [0.0, 1.0]


def test_log_snr_is_clamped_and_finite(schedule: Schedule) -> None:
    log_snr = schedule.log_snr(torch.tensor([0.0, 0.5, 1.0]))
    assert log_snr[0] == LOG_SNR_LIMIT
    assert log_snr[2] == -LOG_SNR_LIMIT
    assert abs(float(log_snr[1])) < LOG_SNR_LIMIT


def test_time_at_inverts_log_snr(schedule: Schedule) -> None:
    log_snr = torch.linspace(-9.9, 9.9, 397, dtype=torch.float64)
    t = schedule.time_at(log_snr)
    assert ((t > 0) & (t < 1)).all()
    torch.testing.assert_close(schedule.log_snr(t), log_snr, rtol=0, atol=1e-7)
    inside = line(101)
    inside = inside[schedule.log_snr(inside).abs() < LOG_SNR_LIMIT]
    assert len(inside) > 80
    torch.testing.assert_close(schedule.time_at(schedule.log_snr(inside)), inside, rtol=0, atol=1e-9)


def test_cosine_against_its_definition() -> None:
    t = line(11)
    torch.testing.assert_close(CosineSchedule().alpha_bar(t), torch.from_numpy(np.cos(np.pi * t.numpy() / 2) ** 2))


def test_add_noise_keeps_its_law(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.tensor([-1.5, 0.0, 2.0])[:, None]
    eps = torch.randn(3, 200_000, generator=generator)
    for t in (0.0, 0.2, 0.6, 1.0):
        x_t = schedule.add_noise(x_0.expand_as(eps), eps, torch.tensor(t))
        alpha_bar = float(schedule.alpha_bar(torch.tensor(t, dtype=torch.float64)))
        torch.testing.assert_close(x_t.mean(dim=1), sqrt(alpha_bar) * x_0[:, 0], rtol=0, atol=0.01)
        torch.testing.assert_close(x_t.var(dim=1), torch.full((3,), 1 - alpha_bar), rtol=0.02, atol=1e-6)


def test_unit_variance_is_preserved_and_t_may_be_a_map(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(1)
    x_0, eps = (torch.randn(50_000, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.0, 0.3, 0.7, 1.0])
    x_t = schedule.add_noise(x_0, eps, t)
    torch.testing.assert_close(x_t.var(dim=0), torch.ones(4), rtol=0.03, atol=0)
    assert torch.equal(x_t[:, 0], x_0[:, 0])
    assert torch.equal(x_t[:, 3], eps[:, 3])


def test_linear_against_the_rescaled_product_of_betas() -> None:
    """Ho et al.'s discrete schedule, rescaled by algorithm 1 of Lin et al., with ever more steps."""
    steps = 100_000
    scale = 1000 / steps
    betas = np.linspace(1e-4 * scale, 0.02 * scale, steps)
    root = np.sqrt(np.cumprod(1 - betas))
    first, last = root[0], root[-1]
    rescaled = (root - last) * first / (first - last)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    found = torch.sqrt(LinearSchedule().alpha_bar(t)).numpy()
    np.testing.assert_allclose(found, rescaled, atol=1e-4)
    assert abs(root[-1] - rescaled[-1]) > 5e-3, "the rescaling must make a difference for this test to see it"


@pytest.mark.parametrize(("least", "most"), [(0.0, 20.0), (-1.0, 2.0), (3.0, 3.0), (5.0, 1.0)])
def test_linear_refuses_betas_that_do_not_rise(least: float, most: float) -> None:
    with pytest.raises(SettingError, match="beta_min < beta_max"):
        LinearSchedule(least, most)
