"""Inference end to end: what is held stays, what is missing does not speak, and nothing depends on chance."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gaussian import GaussianDenoiser, observed
from torch import Tensor, nn

import segprior.prior.gradient as gradient_module
from segprior.errors import SettingError
from segprior.prior.constraint import Constraint
from segprior.prior.denoiser import NetworkDenoiser
from segprior.prior.gradient import Full, Stop
from segprior.prior.infer import FixedPoint, Known, Solver, Step, generator_noise, infer
from segprior.prior.joint import OneHotLayout
from segprior.prior.network import JointNetwork, NetworkShape
from segprior.prior.schedule import CosineSchedule
from segprior.prior.solver import Problem

SHORT = (0.9, 0.6, 0.3)
FORMS: list[Solver] = [FixedPoint(), Stop(times=SHORT), Full(times=SHORT)]
NAMES = ["fixed_point", "stop", "full"]
all_forms = pytest.mark.parametrize("solver", FORMS, ids=NAMES)


@pytest.fixture(scope="module")
def denoiser() -> NetworkDenoiser:
    """A small joint network whose every part has a say."""
    torch.manual_seed(0)
    shape = NetworkShape(3, 2, "resnet18", decoder=(16, 16, 8, 8, 8), label_path=(8, 8, 8))
    network = JointNetwork(shape)
    with torch.no_grad():
        for module in (network.path.label_entry, network.path.label_head, network.image_head.exit):
            nn.init.normal_(module.weight, std=0.3)
        network.image.entry.weight[:, 3] = 0.5
    layout = OneHotLayout(3, 2, 0.3)
    return NetworkDenoiser(network, layout=layout, schedule=CosineSchedule()).eval()


def image(batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def last(steps: object) -> Step:
    result = list(steps)[-1]  # type: ignore[call-overload]  # an iterator
    assert isinstance(result, Step)
    return result


@all_forms
def test_a_seed_gives_one_result(denoiser: NetworkDenoiser, solver: Solver) -> None:
    first, second, other = (last(infer(denoiser, image(), solver=solver, seed=s)) for s in (1, 1, 2))
    assert torch.equal(first.probabilities, second.probabilities)
    assert torch.equal(first.eta, second.eta)
    assert not torch.equal(first.probabilities, other.probabilities)


@all_forms
def test_the_result_is_a_distribution_over_classes(denoiser: NetworkDenoiser, solver: Solver) -> None:
    step = last(infer(denoiser, image(2), solver=solver, particles=3))
    assert step.probabilities.shape == (2, 2, 32, 32)
    assert step.particles.shape == (3, 2, 2, 32, 32)
    torch.testing.assert_close(step.probabilities.sum(dim=1), torch.ones(2, 32, 32))
    assert step.probabilities.min() >= -1e-6
    on_simplex = denoiser.layout.probabilities(denoiser.layout.split(step.eta)[1])
    torch.testing.assert_close(on_simplex.sum(dim=1), torch.ones(6, 32, 32))


def test_turns_are_what_turning_by_hand_gives(denoiser: NetworkDenoiser) -> None:
    """One step in each of eight turns is the mean of what the network says of eight turned images."""
    y = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(7))
    found = last(infer(denoiser, y, solver=FixedPoint(times=(1.0,) * 8, turns=8)))
    each = []
    for quarters in range(4):
        for flipped in (False, True):
            shown = torch.rot90(y.flip(-1) if flipped else y, quarters, dims=(2, 3))
            said = last(infer(denoiser, shown, solver=FixedPoint(times=(1.0,)))).probabilities
            back = torch.rot90(said, -quarters, dims=(2, 3))
            each.append(back.flip(-1) if flipped else back)
    torch.testing.assert_close(found.probabilities, torch.stack(each).mean(dim=0), rtol=1e-3, atol=1e-4)
    assert (torch.stack(each).std(dim=0) > 1e-3).any(), "to this network it matters where up is"


def test_turns_come_round_again(denoiser: NetworkDenoiser) -> None:
    """At t_labels = 1 nothing is carried from step to step, so four steps of two turns are two steps of two."""
    four, two = (last(infer(denoiser, image(), solver=FixedPoint(times=(1.0,) * n, turns=2))) for n in (4, 2))
    torch.testing.assert_close(four.probabilities, two.probabilities, rtol=1e-3, atol=1e-4)


def test_turned_labels_are_those_of_the_step_before(denoiser: NetworkDenoiser) -> None:
    """With later label times the noisy labels and what is known turn with the image."""
    held = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    held[..., :5, :9] = True
    labels = denoiser.layout.encode(torch.ones(1, 32, 32, dtype=torch.uint8))
    solver = FixedPoint(times=(1.0, 0.5, 0.5), turns=3)
    step = last(infer(denoiser, image(), solver=solver, known=Known(labels, held)))
    assert (step.probabilities[:, 1][held[:, 0]] > 0.999).all()
    assert (step.probabilities[:, 1][~held[:, 0]] < 0.999).any()


@pytest.mark.parametrize("turns", [0, 9])
def test_there_are_eight_turns(turns: int) -> None:
    with pytest.raises(SettingError, match="from 1 to 8 turns"):
        FixedPoint(turns=turns)


@all_forms
def test_particles_are_independent_and_averaged(denoiser: NetworkDenoiser, solver: Solver) -> None:
    """Each particle is what one run with its part of the noise gives; the result is their mean."""
    y, noise = image(2), generator_noise(5, (6, 5, 32, 32))
    together = last(infer(denoiser, y, solver=solver, particles=3, noise=noise))
    torch.testing.assert_close(together.probabilities, together.particles.mean(dim=0))
    for k in range(3):
        part = last(infer(denoiser, y, solver=solver, noise=lambda number, k=k: noise(number)[2 * k : 2 * k + 2]))
        torch.testing.assert_close(part.probabilities, together.particles[k], rtol=1e-3, atol=1e-4)
    assert not torch.equal(together.particles[0], together.particles[1])


@all_forms
def test_the_late_steps_are_averaged(solver: Solver) -> None:
    """With late = 1 what is reported is the mean over all steps; with late small it is the last step's x0_hat."""
    denoiser, y = GaussianDenoiser(), observed(8)

    def reported(late: float) -> list[Tensor]:
        other = type(solver)(times=(0.8, 0.6, 0.4, 0.2), late=late)
        return [step.probabilities for step in infer(denoiser, y, solver=other, seed=1)]

    single, half, whole = reported(0.01), reported(0.5), reported(1.0)
    torch.testing.assert_close(half[-1], (single[2] + single[3]) / 2)
    torch.testing.assert_close(whole[-1], torch.stack(single).mean(dim=0))
    torch.testing.assert_close(torch.stack(half[:3]), torch.stack(single[:3]))


@all_forms
def test_the_image_is_held(denoiser: NetworkDenoiser, solver: Solver) -> None:
    for step in infer(denoiser, image(), solver=solver):
        assert torch.equal(step.eta[:, :3], image())


def some_known() -> Known:
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = True
    index = torch.zeros(1, 32, 32, dtype=torch.uint8)
    index[..., 16:] = 1
    return Known(OneHotLayout(3, 2, 0.3).encode(index), mask)


@all_forms
def test_known_pixels_stay(denoiser: NetworkDenoiser, solver: Solver) -> None:
    known = some_known()
    inside = known.mask.expand(1, 2, 32, 32)
    given = denoiser.layout.probabilities(known.labels)[inside]
    for step in infer(denoiser, image(), solver=solver, known=known):
        assert torch.equal(step.eta[:, 3:][inside], known.labels[inside])
        torch.testing.assert_close(step.probabilities[inside], given, rtol=0, atol=1e-6)


@all_forms
def test_known_pixels_tell_their_neighbours_from_the_first_step(denoiser: NetworkDenoiser, solver: Solver) -> None:
    """Two opposite sets of known labels must already differ outside the mask after one step."""
    known = some_known()
    first, second = (
        next(iter(infer(denoiser, image(), solver=solver, known=Known(sign * known.labels, known.mask))))
        for sign in (1, -1)
    )
    outside = ~known.mask.expand(1, 2, 32, 32)
    assert (first.probabilities - second.probabilities)[outside].abs().max() > 1e-3


def hole() -> Tensor:
    valid = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    valid[..., 4:20, 10:30] = False
    return valid


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("value", [7.0, float("nan")])
@all_forms
def test_nodata_does_not_speak(denoiser: NetworkDenoiser, solver: Solver, sigma: float, value: float) -> None:
    valid, y = hole(), image()
    changed = torch.where(valid, y, value)
    first, second = (last(infer(denoiser, v, valid=valid, solver=solver, sigma=sigma)) for v in (y, changed))
    assert torch.equal(first.probabilities, second.probabilities)
    assert torch.equal(first.eta, second.eta)
    assert torch.isfinite(first.eta).all()
    assert not torch.equal(last(infer(denoiser, y, solver=solver)).probabilities, first.probabilities)


@dataclass(frozen=True)
class ClassShare(Constraint):
    """The share of class 1 in the window is `target`."""

    layout: OneHotLayout
    target: float = 0.9
    weight: float = 1.0
    balanced: bool = True
    factor: float = 1.0

    def energy(self, eta: Tensor) -> Tensor:
        share = self.layout.probabilities(self.layout.split(eta)[1])[:, 1].mean(dim=(1, 2))
        return self.factor * (share - self.target) ** 2


@pytest.mark.parametrize("solver", FORMS[1:], ids=NAMES[1:])
def test_a_balanced_constraint_is_rescaled_once_and_the_reconstruction_never(
    denoiser: NetworkDenoiser, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []
    balance = gradient_module._balance

    def spy(*given: object) -> list[Tensor]:
        seen.append(balance(*given))  # type: ignore[arg-type]  # passed on as they come
        return seen[-1]

    monkeypatch.setattr(gradient_module, "_balance", spy)
    etas = [
        last(
            infer(denoiser, image(2), sigma=0.5, constraints=[ClassShare(denoiser.layout, factor=f)], solver=solver)
        ).eta
        for f in (1e4, 1e7)
    ]
    assert len(seen) == 2, "once in each run"
    for scales in seen:
        assert (scales[0] == 1).all()
        assert scales[1].shape == (2,)
    torch.testing.assert_close(seen[0][1], 1000 * seen[1][1], rtol=1e-3, atol=0)
    torch.testing.assert_close(etas[0], etas[1], rtol=0, atol=1e-4)


def norms_at_the_start(denoiser: NetworkDenoiser, constraint: ClassShare, solver: Stop) -> tuple[Tensor, Tensor]:
    """Gradient norms in theta of the prior and of the constraint at the first step, recomputed from the parts."""
    valid = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    noise = generator_noise(0, (1, 5, 32, 32))
    start = denoiser.layout.join(image(), torch.zeros(1, 2, 32, 32))
    features = denoiser.encode(image(), torch.zeros(1, 1, 32, 32))
    problem = Problem(denoiser, (), noise, valid, None, start, 0.0, features)
    with torch.no_grad():
        first = problem.one_step()
    theta = denoiser.layout.theta_from(first[:, 3:]).requires_grad_(True)
    eta = denoiser.layout.join(image(), denoiser.layout.labels_from(theta))
    energy, _ = solver.prior_energy(problem, eta, noise(1), solver.times[0])
    weight = solver.weights(denoiser.schedule)[0]
    slopes = [torch.autograd.grad(e, theta, retain_graph=True)[0] for e in (weight * energy, constraint.energy(eta))]
    return slopes[0].norm(), slopes[1].norm()


def test_balance_equals_gradient_norms(denoiser: NetworkDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    constraint, solver = ClassShare(denoiser.layout, factor=1e5), Stop(times=SHORT)
    seen: list[Tensor] = []
    balance = gradient_module._balance
    monkeypatch.setattr(gradient_module, "_balance", lambda *a: seen.extend(s := balance(*a)) or s)
    list(infer(denoiser, image(), constraints=[constraint], solver=solver))
    prior, other = norms_at_the_start(denoiser, constraint, solver)
    torch.testing.assert_close(seen[1][0], prior / other, rtol=1e-3, atol=0)


def test_a_prior_that_is_silent_at_first_does_not_silence_the_constraint(denoiser: NetworkDenoiser) -> None:
    """At t = 1 the gradient of the prior is exactly zero."""
    solver = Stop(times=(1.0,) * 40, late=0.01)
    share = ClassShare(denoiser.layout, factor=1e4)
    with_it = last(infer(denoiser, image(), constraints=[share], solver=solver)).eta
    assert share.energy(with_it) < 0.2 * share.energy(next(iter(infer(denoiser, image(), solver=solver))).eta)


@all_forms
def test_a_constraint_moves_the_estimate_its_way(denoiser: NetworkDenoiser, solver: Solver) -> None:
    """Also in the fixed-point form, where a constraint without closed form takes its default proximal step."""
    share = ClassShare(denoiser.layout, factor=1e4)
    free, held = (last(infer(denoiser, image(), constraints=c, solver=solver)).eta for c in ([], [share]))
    assert share.energy(held) < share.energy(free)


@all_forms
def test_a_constraint_by_its_energy_alone_leaves_probabilities(denoiser: NetworkDenoiser, solver: Solver) -> None:
    share = ClassShare(denoiser.layout, factor=1e4)
    for step in infer(denoiser, image(), constraints=[share], solver=solver):
        assert step.probabilities.min() >= 0
        torch.testing.assert_close(step.probabilities.sum(dim=1), torch.ones(1, 32, 32), rtol=0, atol=1e-5)


def test_at_time_zero_a_constraint_says_nothing_and_nothing_breaks(denoiser: NetworkDenoiser) -> None:
    share, solver = ClassShare(denoiser.layout, factor=1e4), FixedPoint(times=(1.0, 0.5, 0.0), late=0.01)
    steps = [step.probabilities for step in infer(denoiser, image(), constraints=[share], solver=solver)]
    assert torch.equal(steps[-1].argmax(dim=1), steps[-2].argmax(dim=1)), "labels without noise are what they are"
    assert torch.isfinite(steps[-1]).all()
    assert (steps[-2] - steps[-3]).abs().max() > 0.01, "at other times it says something"


@pytest.mark.parametrize("solver", FORMS[1:], ids=NAMES[1:])
def test_what_weighs_more_is_heard_more_balanced_or_not(denoiser: NetworkDenoiser, solver: Solver) -> None:
    """The balance makes a weight of 1 sensible; it must not cancel other weights."""
    solver = replace(solver, times=tuple(np.linspace(0.9, 0.2, 20).tolist()), late=0.01)  # type: ignore[type-var]  # a form
    off = [
        float(share.energy(last(infer(denoiser, image(), constraints=[share], solver=solver)).eta))
        for share in (ClassShare(denoiser.layout, weight=weight) for weight in (0.1, 1.0, 100.0))
    ]
    assert off[2] < off[1] < off[0]


@pytest.mark.parametrize("solver", FORMS[1:], ids=NAMES[1:])
def test_items_of_a_batch_do_not_touch_each_other(denoiser: NetworkDenoiser, solver: Solver) -> None:
    """A window's result must not depend on its neighbours in the batch: not even through the balance."""
    share, noise, y = ClassShare(denoiser.layout), generator_noise(2, (2, 5, 32, 32)), image(2)
    y[1] *= 3
    both = last(infer(denoiser, y, constraints=[share], solver=solver, noise=noise))
    alone = last(infer(denoiser, y[:1], constraints=[share], solver=solver, noise=lambda number: noise(number)[:1]))
    torch.testing.assert_close(both.probabilities[:1], alone.probabilities, rtol=1e-3, atol=1e-4)


@all_forms
@pytest.mark.parametrize("enabled", [True, False])
def test_the_callers_gradient_mode_is_left_alone(denoiser: NetworkDenoiser, solver: Solver, enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        for step in infer(denoiser, image(), solver=solver):
            assert torch.is_grad_enabled() is enabled
            assert not step.eta.requires_grad
            assert not step.probabilities.requires_grad
    assert all(p.grad is None for p in denoiser.parameters()), "nothing is left behind in the network"


@pytest.mark.parametrize(
    ("solver", "evaluations", "calls"),
    [(FixedPoint(), [1, 2, 3], 3), (Stop(times=SHORT), [2, 3, 4], 4), (Full(times=SHORT), [3, 5, 7], 4)],
    ids=NAMES,
)
def test_evaluations_are_counted(solver: Solver, evaluations: list[int], calls: int) -> None:
    denoiser = GaussianDenoiser()
    steps = list(infer(denoiser, observed(8), solver=solver))
    assert [s.evaluations for s in steps] == evaluations
    assert [s.number for s in steps] == [1, 2, 3]
    assert denoiser.calls == calls


def test_with_a_map_to_begin_with_there_is_no_first_evaluation() -> None:
    denoiser = GaussianDenoiser()
    start = torch.full((1, denoiser.layout.classes, 8, 8), 0.5)
    steps = list(infer(denoiser, observed(8), solver=Stop(times=SHORT), start=start))
    assert [s.evaluations for s in steps] == [1, 2, 3]
    assert denoiser.calls == 3


def test_features_are_computed_once_where_the_image_stands_still(
    denoiser: NetworkDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encode: Callable[..., object] = denoiser.network.features

    def counted(*given: object, silent: bool = False) -> object:
        counts.append(len(given[0]))  # type: ignore[arg-type]  # a tensor
        return encode(*given, silent=silent)

    monkeypatch.setattr(denoiser.network, "features", counted)
    list(infer(denoiser, image(), solver=FixedPoint(), particles=2))
    assert counts == [1], "one pass, for one particle"
    counts.clear()
    list(infer(denoiser, image(), solver=FixedPoint(t_image=0.1), particles=2))
    assert counts == [2, 2, 2]


def test_noise_is_a_function_of_seed_and_number() -> None:
    first, again, other = (generator_noise(seed, (2, 3)) for seed in (0, 0, 1))
    assert torch.equal(first(4), again(4))
    assert not torch.equal(first(4), first(5))
    assert not torch.equal(first(4), other(4))


def test_the_weights_of_full_are_the_log_snr_they_stand_for() -> None:
    schedule = CosineSchedule()
    times = (0.5, 0.9, 0.2)
    low, middle, high = (float(schedule.log_snr(torch.tensor(t))) for t in (0.9, 0.5, 0.2))
    expected = [3 * (high - low) / 2, 3 * (middle - low) / 2, 3 * (high - middle) / 2]
    assert Full(times=times).weights(schedule) == pytest.approx(expected, rel=1e-4)
    assert Full(times=(0.5, 0.5)).weights(schedule) == (1.0, 1.0)
    snr = float(schedule.snr(torch.tensor(0.9)))
    assert Stop(times=(0.9,)).weights(schedule) == pytest.approx([snr**-0.5], rel=1e-4)


@pytest.mark.parametrize("form", [FixedPoint, Stop, Full], ids=NAMES)
@pytest.mark.parametrize(
    "wrong", [{"times": ()}, {"times": (1.2,)}, {"times": (0.5, -0.1)}, {"late": 0.0}, {"late": 2.0}, {"t_image": -1.0}]
)
def test_settings_out_of_range_are_refused(form: type, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="wanted a solver"):
        form(**wrong)


@all_forms
def test_a_map_to_begin_with_has_a_say(denoiser: NetworkDenoiser, solver: Solver) -> None:
    """Two opposite maps lead to different results; where they are all there is, the first estimate is the map."""
    p = torch.stack([torch.full((1, 32, 32), 0.9), torch.full((1, 32, 32), 0.1)], dim=1)
    one, other = (list(infer(denoiser, image(), solver=solver, start=q)) for q in (p, p.flip(1)))
    assert not torch.allclose(one[-1].probabilities, other[-1].probabilities)
    assert torch.equal(one[0].eta[:, :3], image())
    timeless = [t for t in solver.times if t < 1.0]
    assert len(one) == len(timeless)
    begun = last(infer(denoiser, image(), solver=solver, start=p, particles=2))
    assert begun.particles.shape == (2, 1, 2, 32, 32)


def test_steps_that_would_forget_a_map_are_refused(denoiser: NetworkDenoiser) -> None:
    p = torch.full((1, 2, 32, 32), 0.5)
    with pytest.raises(SettingError, match="a time below 1 to begin from a map"):
        next(infer(denoiser, image(), solver=FixedPoint(times=(1.0,)), start=p))


def test_nearly_clean_labels_keep_the_map_they_began_with(denoiser: NetworkDenoiser) -> None:
    """At a small time Bayes' rule takes the noisy labels at their word."""
    index = torch.randint(0, 2, (1, 32, 32), generator=torch.Generator().manual_seed(5))
    p = torch.nn.functional.one_hot(index, 2).permute(0, 3, 1, 2).float()
    result = last(infer(denoiser, image(), solver=FixedPoint(times=(0.01,)), start=p))
    assert torch.equal(result.probabilities.argmax(dim=1), index)
