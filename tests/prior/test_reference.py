"""The three forms of the solver against the closed forms of a Gaussian prior (DESIGN, "The exact reference")."""

from collections.abc import Iterator

import pytest
import torch
from gaussian import BANDS, CLASSES, MU, SCHEDULE, C, GaussianDenoiser, I, L, Y, alpha_bar_at, observed, over_pixels
from gaussian import regression as reference
from torch import Tensor

from segprior.prior.gradient import Full, Stop
from segprior.prior.infer import FixedPoint, Solver, Step, generator_noise, infer
from segprior.prior.solver import Problem

T = 0.45
ABAR = alpha_bar_at(T)
SHARED = reference(1 - ABAR, gain=ABAR)
GIVEN = reference(0.0)
TOLERANCE = 0.02


def test_the_references_can_be_told_apart() -> None:
    """What a wrong sign, a wrong noise level or a forgotten sqrt(alpha_bar) would give lies far from what is right."""
    wrong = [
        2 * MU[L] - SHARED,
        GIVEN,
        reference(1 - ABAR),
        reference(1 - ABAR, gain=ABAR**0.5),
        reference(1 - ABAR**0.5, gain=ABAR**0.5),
        MU[L] + (SHARED - MU[L]) / ABAR**0.5,
    ]
    assert all((w - SHARED).abs().max() > 4 * TOLERANCE for w in wrong)


def problem_of(eta: Tensor, t_image: float = 0.0) -> Problem:
    valid = torch.ones_like(eta[:, :1], dtype=torch.bool)
    noise = generator_noise(0, eta.shape)
    return Problem(GaussianDenoiser(), (), noise, valid, None, eta, t_image, None)


def mean_slope(solver: Full | Stop, eta: Tensor, t: float) -> Tensor:
    """Expected gradient of the prior's energy at `eta` (channels,), one time.

    It is affine in eps, so the mean over eps and -eps is the expectation without any error.
    """
    eps = torch.randn(1, BANDS + CLASSES, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = torch.zeros(BANDS + CLASSES, dtype=torch.float64)
    for sign in (1, -1):
        point = eta[None, :, None, None].expand(1, -1, 4, 4).clone().requires_grad_(True)
        energy, _ = solver.prior_energy(problem_of(point.detach()), point, sign * eps, t)
        (slope,) = torch.autograd.grad(energy, point)
        total += over_pixels(slope) / 2
    return total


def test_the_mean_slope_is_free_of_noise() -> None:
    eta = torch.cat([Y, MU[L] + 1])
    assert torch.allclose(
        mean_slope(Full(shared=True), eta, 0.5), mean_slope(Full(shared=True), eta, 0.5), rtol=0, atol=0
    )


@pytest.mark.parametrize("log_s", [-1.0, 1.0, 4.0])
def test_full_at_shared_times_has_the_blurred_priors_gradient(log_s: float) -> None:
    """The integral over log SNR up to log s of the gradient of ||eps - eps_hat||^2 / 2 is (C + I / s)^-1 (eta - mu)."""
    eta = torch.tensor([1.6, -1.4, 0.1, 0.9], dtype=torch.float64)
    count, least = 200, -10.0
    points = least + (log_s - least) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    slopes = [mean_slope(Full(shared=True), eta, float(t)) for t in SCHEDULE.time_at(points)]
    found = torch.stack(slopes).mean(dim=0) * (log_s - least)
    blurred = C + torch.eye(4, dtype=torch.float64) * torch.exp(torch.tensor(-log_s, dtype=torch.float64))
    expected = torch.linalg.solve(blurred, eta - MU)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_full_at_one_shared_time_has_the_gradient_of_its_matrix(t: float) -> None:
    """M = A C_t^-1 S C_t^-1 A at a single time, written out."""
    eta = torch.tensor([1.6, -1.4, 0.1, 0.9], dtype=torch.float64)
    alpha_bar, one = alpha_bar_at(t), torch.eye(4, dtype=torch.float64)
    inverse = torch.linalg.inv(alpha_bar * C + (1 - alpha_bar) * one)
    expected = alpha_bar * (1 - alpha_bar) * inverse @ inverse @ (eta - MU)
    torch.testing.assert_close(mean_slope(Full(shared=True), eta, t), expected, rtol=1e-4, atol=1e-5)


def test_full_at_separate_times_has_the_gradient_of_its_matrix() -> None:
    """The image's time is 0: only the labels' residual counts, yet its gradient reaches the image channels too."""
    t, eta = 0.5, torch.tensor([1.6, -1.4, 0.1, 0.9], dtype=torch.float64)
    alpha_bar = torch.tensor([1.0, 1.0, alpha_bar_at(t), alpha_bar_at(t)], dtype=torch.float64)
    a, s = torch.diag(alpha_bar.sqrt()), torch.diag(1 - alpha_bar)
    inverse = torch.linalg.inv(a @ C @ a + s)
    expected = a @ inverse @ s @ inverse @ a @ (eta - MU)
    torch.testing.assert_close(mean_slope(Full(), eta, t), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [0.2, T, 0.8])
def test_stop_at_a_shared_time_vanishes_at_its_reference(t: float) -> None:
    alpha_bar = alpha_bar_at(t)
    optimum = torch.cat([Y, reference(1 - alpha_bar, gain=alpha_bar)])
    slope = mean_slope(Stop(shared=True), optimum, t)
    torch.testing.assert_close(slope[L], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5)
    off = mean_slope(Stop(shared=True), torch.cat([Y, reference(0.0) + 0.3]), t)
    assert off[L].abs().max() > 0.02
    assert (off[L] @ (reference(0.0) + 0.3 - optimum[L])) > 0, "the gradient points away from the optimum"


@pytest.mark.parametrize("solver", [Stop(), Full()], ids=["stop", "full"])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_with_the_image_given_both_gradients_vanish_at_the_regression(solver: Full | Stop, t: float) -> None:
    slope = mean_slope(solver, torch.cat([Y, GIVEN]), t)
    torch.testing.assert_close(slope[L], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5)


def run(solver: Solver, *, sigma: float = 0.0, size: int = 32) -> tuple[Tensor, Tensor]:
    """(mean of eta over the late half and the pixels, mean of what is reported): `infer` from end to end."""
    steps: Iterator[Step] = infer(GaussianDenoiser(), observed(size), sigma=sigma, solver=solver, particles=2, seed=3)
    total, last = torch.zeros(BANDS + CLASSES, dtype=torch.float64), None
    for step in steps:
        total += over_pixels(step.eta) * (step.number > solver.count // 2)
        last = step
    assert last is not None
    return total / (solver.count - solver.count // 2), over_pixels(last.probabilities)


def expect(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def test_stop_finds_the_reference_at_a_shared_time() -> None:
    eta, reported = run(Stop(times=(T,) * 240, shared=True, rate=0.05))
    expect(eta[I], Y)
    expect(eta[L], SHARED)
    expect(reported, SHARED)


def test_fixed_point_finds_the_reference_at_a_shared_time() -> None:
    eta, reported = run(FixedPoint(times=(T,) * 60, t_image=T, late=0.5))
    expect(eta[I], Y)
    expect(eta[L], SHARED)
    expect(reported, SHARED)


LOG_S = 1.5
# the golden ratio's multiples: every short stretch of steps covers the times as evenly as all of them do
SPREAD = (torch.arange(1, 801) * 0.6180339887498949) % 1
EVEN_IN_LOG_SNR = tuple(SCHEDULE.time_at(-8 + (LOG_S + 8) * SPREAD).tolist())
FIRST, LAST = SCHEDULE.time_at(torch.tensor([-8.0, LOG_S])).tolist()
EVEN_IN_T = tuple((FIRST + (LAST - FIRST) * SPREAD).tolist())
BLUR = float(torch.exp(torch.tensor(-LOG_S)))


@pytest.mark.parametrize("times", [EVEN_IN_LOG_SNR, EVEN_IN_T], ids=["even in log SNR", "even in t"])
def test_full_finds_the_reference_at_shared_times(times: tuple[float, ...]) -> None:
    """The optimum given the image is C_LI (C_II + I / s)^-1 (y - mu_I), whichever way the times are spread."""
    eta, _ = run(Full(times=times, shared=True, rate=0.02), size=16)
    expect(eta[I], Y)
    expect(eta[L], reference(BLUR))
    assert (reference(BLUR) - GIVEN).abs().max() > 4 * TOLERANCE


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("times", [EVEN_IN_LOG_SNR, EVEN_IN_T], ids=["even in log SNR", "even in t"])
def test_full_with_a_noisy_image_solves_the_linear_system(times: tuple[float, ...], sigma: float) -> None:
    """(M + I_I / sigma^2) eta = M mu + I_I y / sigma^2 with M = (C + I / s)^-1: sigma means what it says."""
    one = torch.eye(4, dtype=torch.float64)
    m = torch.linalg.inv(C + BLUR * one)
    p = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)) / sigma**2
    y = torch.cat([Y, torch.zeros(2, dtype=torch.float64)])

    def optimum(weight: float) -> Tensor:
        return torch.linalg.solve(weight * m + p, weight * m @ MU + p @ y)

    eta, _ = run(Full(times=times, shared=True, rate=0.05), sigma=sigma, size=16)
    expect(eta, optimum(1.0))
    assert all((optimum(w) - optimum(1.0)).abs().max() > 2 * TOLERANCE for w in (0.5, 2.0, 0.1))


@pytest.mark.parametrize(
    "solver",
    [
        FixedPoint(),
        FixedPoint(times=(0.7,) * 40, late=0.5),
        Stop(times=(0.6,) * 240, rate=0.05),
        Full(times=(0.6,) * 240, rate=0.05),
        Full(times=EVEN_IN_T[:400], rate=0.02),
    ],
    ids=["fixed_point", "fixed_point at one time", "stop", "full", "full over times"],
)
def test_with_the_image_given_every_form_finds_the_regression(solver: Solver) -> None:
    eta, reported = run(solver)
    expect(eta[I], Y)
    expect(reported, GIVEN)
    if solver != FixedPoint():  # three steps from nothing at 2048 pixels: what is reported is exact, the half is not
        expect(eta[L], GIVEN)


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_fixed_point_with_a_noisy_image_rests_where_prior_and_image_balance(sigma: float) -> None:
    """Denoise, then weigh y against x0_hat with variances sigma^2 and (1 - alpha_bar) / alpha_bar: a linear map."""
    one = torch.eye(4, dtype=torch.float64)
    denoise = ABAR * C @ torch.linalg.inv(ABAR * C + (1 - ABAR) * one)
    variance = (1 - ABAR) / ABAR
    trust = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)) * variance / (variance + sigma**2)
    away = torch.cat([Y - MU[I], torch.zeros(2, dtype=torch.float64)])
    expected = MU + torch.linalg.solve(one - (one - trust) @ denoise, trust @ away)
    eta, _ = run(FixedPoint(times=(T,) * 120, t_image=T, late=0.5), sigma=sigma)
    expect(eta, expected)
