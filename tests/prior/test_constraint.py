"""The reconstruction constraint and the default proximal step, against autograd and numerical minimisation."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from segprior.errors import SettingError
from segprior.prior.constraint import Constraint, Reconstruction
from segprior.prior.joint import OneHotLayout


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reconstruction(sigma: float, weight: float = 1.0) -> Reconstruction:
    return Reconstruction(draw(2, 3, 4, 4), sigma, draw(2, 1, 4, 4, seed=1) > -0.5, weight)


@dataclass(frozen=True)
class Quartic(Constraint):
    """A convex energy without a closed form: pulls the mean of channel 0 and every value towards 1."""

    weight: float = 1.0
    balanced: bool = False

    def energy(self, eta: Tensor) -> Tensor:
        return ((eta - 1) ** 4).sum(dim=(1, 2, 3)) + 50 * (eta[:, 0].mean(dim=(1, 2)) - 1) ** 2


def minimise(constraint: Constraint, eta: Tensor, variance: Tensor) -> Tensor:
    """What `proximal` means, by LBFGS."""
    z = eta.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([z], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = constraint.weight * constraint.energy(z).sum() + ((z - eta) ** 2 / (2 * variance)).sum()
        value.backward()
        return value

    optimiser.step(closure)
    return z.detach()


def test_the_energy_is_the_law_written_out() -> None:
    given, eta = reconstruction(0.5), draw(2, 5, 4, 4, seed=2)
    assert given.valid is not None
    expected = [
        sum(
            float((eta[n, b, i, j] - given.y[n, b, i, j]) ** 2)
            for b in range(3)
            for i in range(4)
            for j in range(4)
            if given.valid[n, 0, i, j]
        )
        / (2 * 0.5**2)
        for n in range(2)
    ]
    torch.testing.assert_close(given.energy(eta), torch.tensor(expected, dtype=torch.float64))


def test_the_energy_has_the_right_gradient() -> None:
    given = reconstruction(0.7)
    assert torch.autograd.gradcheck(given.energy, (draw(2, 5, 4, 4, seed=2).requires_grad_(True),))


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("variance", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_proximal_step_minimises(sigma: float, variance: float, weight: float) -> None:
    given, eta, trust = reconstruction(sigma, weight), draw(2, 5, 4, 4, seed=2), torch.tensor(variance).double()
    closed = given.proximal(eta, trust)
    torch.testing.assert_close(closed, minimise(given, eta, trust), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Constraint.proximal(given, eta, trust), closed, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variance", [0.01, 1.0, 100.0])
def test_the_default_proximal_step_minimises_without_a_closed_form(variance: float) -> None:
    constraint, eta = Quartic(), draw(2, 2, 4, 4, seed=2)
    trust = torch.full((2, 1, 1, 1), variance, dtype=torch.float64)

    def value(z: Tensor) -> Tensor:
        return constraint.energy(z) + ((z - eta) ** 2 / (2 * trust)).sum(dim=(1, 2, 3))

    best = value(minimise(constraint, eta, trust))
    found = value(constraint.proximal(eta, trust))
    assert (found - best <= 0.02 * (value(eta) - best)).all()


def test_the_default_proximal_step_works_without_gradients_and_by_item() -> None:
    constraint, eta, trust = Quartic(), draw(2, 2, 4, 4, seed=2), torch.tensor(1.0).double()
    eta[1] *= 5
    with torch.no_grad():
        both = constraint.proximal(eta, trust)
    assert not both.requires_grad
    for n in range(2):
        torch.testing.assert_close(both[n : n + 1], constraint.proximal(eta[n : n + 1], trust))
    torch.testing.assert_close(constraint.proximal(eta, 1.0), both, msg="a number will do")  # type: ignore[arg-type]  # as its docstring says


@dataclass(frozen=True)
class Wet(Constraint):
    """A convex energy of the labels: a share of class 1 in the window."""

    layout: OneHotLayout
    weight: float = 1.0
    balanced: bool = False

    def energy(self, eta: Tensor) -> Tensor:
        p = self.layout.probabilities(self.layout.split(eta)[1])
        return 1000 * (p[:, 1].mean(dim=(1, 2)) - 0.6) ** 2


@pytest.mark.parametrize("variance", [0.001, 0.1, 100.0])
def test_with_a_layout_the_default_proximal_step_minimises_over_the_simplex(variance: float) -> None:
    layout = OneHotLayout(2, 3, 0.3)
    p = torch.softmax(2 * draw(2, 3, 4, 4), dim=1)
    eta, trust, constraint = (
        layout.join(draw(2, 2, 4, 4), layout.place(p)),
        torch.tensor(variance).double(),
        Wet(layout),
    )

    def value(z: Tensor) -> Tensor:
        return constraint.energy(z) + ((z - eta) ** 2 / (2 * trust)).sum(dim=(1, 2, 3))

    theta = torch.log(p).clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([theta], max_iter=1000, tolerance_grad=1e-11, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        least = value(layout.join(eta[:, :2], layout.labels_from(theta))).sum()
        least.backward()
        return least

    optimiser.step(closure)
    best = value(layout.join(eta[:, :2], layout.labels_from(theta.detach())))
    moved = constraint.proximal(eta, trust, layout)
    q = layout.probabilities(layout.split(moved)[1])
    torch.testing.assert_close(q.sum(dim=1), torch.ones(2, 4, 4, dtype=torch.float64))
    assert q.min() >= 0
    assert (value(moved) - best <= 0.02 * (value(eta) - best)).all()
    free = layout.probabilities(layout.split(constraint.proximal(eta, trust))[1])
    assert variance < 0.1 or (free.sum(dim=1) - 1).abs().max() > 0.01, "without one it leaves the simplex"


def test_without_noise_the_image_is_overwritten_where_valid() -> None:
    given, eta = reconstruction(0.0), draw(2, 5, 4, 4, seed=2)
    assert given.valid is not None
    for result in (given.project(eta), given.proximal(eta, torch.tensor(1.0))):
        assert torch.equal(result[:, 3:], eta[:, 3:])
        assert torch.equal(result[:, :3], torch.where(given.valid, given.y, eta[:, :3]))
    assert not given.energy(eta).any()
    assert torch.equal(reconstruction(0.1).project(eta), eta)


def test_the_proximal_step_tends_to_y_as_sigma_falls() -> None:
    eta, trust = draw(2, 5, 4, 4, seed=2), torch.tensor(1.0).double()
    near, limit = (reconstruction(sigma).proximal(eta, trust) for sigma in (1e-4, 0.0))
    torch.testing.assert_close(near, limit, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [-1.0, float("nan")])
def test_a_negative_sigma_is_refused(sigma: float) -> None:
    with pytest.raises(SettingError, match="sigma"):
        reconstruction(sigma)
