"""The denoiser: Bayes' split of the label posterior, the image's velocity, and the minimiser of the training loss."""

from math import exp

import pytest
import torch
from torch import Tensor, nn

from segprior.prior.denoiser import NetworkDenoiser, Prediction
from segprior.prior.joint import UNLABELLED, OneHotLayout, Times
from segprior.prior.network import Features, ImageInput, PlainNetwork
from segprior.prior.schedule import CosineSchedule, LinearSchedule, Schedule

SCHEDULE = CosineSchedule()
P = torch.tensor([0.6, 0.3, 0.1])
LAYOUT = OneHotLayout(bands=2, classes=3, label_scale=0.3)


class Constant(nn.Module):
    """A segmenter that gives the same logits everywhere."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[None, :, None, None].expand(len(image), -1, *image.shape[2:])


class Velocity(PlainNetwork):
    """A plain network whose image velocity is given, and that keeps what it was told."""

    def __init__(self, logits: Tensor, v: Tensor) -> None:
        super().__init__(Constant(logits))
        self.v = v
        self.told: tuple[Tensor, ...] = ()

    def forward(self, features: Features, image: ImageInput, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.told = (image.gained, image.log_snr, labels)
        return features.logits.float(), self.v


def denoiser_of(network: PlainNetwork, layout: OneHotLayout = LAYOUT, tilt: Tensor | None = None) -> NetworkDenoiser:
    return NetworkDenoiser(network, layout=layout, schedule=SCHEDULE, log_tilt=tilt)


def constant_times(image: float, labels: float) -> Times:
    return Times(torch.full((1, 1, 1, 1), image), torch.full((1, 1, 1, 1), labels))


def draw_index(shape: tuple[int, ...], p: Tensor = P, seed: int = 0) -> Tensor:
    flat = torch.multinomial(p, torch.Size(shape).numel(), True, generator=torch.Generator().manual_seed(seed))
    return flat.reshape(shape).to(torch.uint8)


def noisy(index: Tensor, times: Times, *, layout: OneHotLayout = LAYOUT, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(x_t, clean image) of random images and these labels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(len(index), layout.bands, *index.shape[1:], generator=generator)
    x_0 = layout.join(image, layout.encode(index))
    eps = torch.randn(x_0.shape, generator=generator)
    return SCHEDULE.add_noise(x_0, eps, layout.spread(times)), image


def posterior_by_hand(labels_t: Tensor, t: float, layout: OneHotLayout = LAYOUT) -> Tensor:
    """Bayes' rule with the Gaussian densities written out, in float64."""
    alpha_bar = SCHEDULE.alpha_bar(torch.tensor(t, dtype=torch.float64))
    corners = layout.label_scale * (2 * torch.eye(layout.classes, dtype=torch.float64) - 1)
    away = labels_t.double()[:, None] - torch.sqrt(alpha_bar) * corners[None, :, :, None, None]
    log_density = -(away**2).sum(dim=2) / (2 * (1 - alpha_bar))
    joint = torch.log(P.double())[None, :, None, None] + log_density
    return torch.softmax(joint, dim=1)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
@pytest.mark.parametrize("t", [0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_near_pure_noise_labels_say_next_to_nothing(schedule: Schedule, t: float) -> None:
    network = PlainNetwork(Constant(torch.log(P)))
    denoiser = NetworkDenoiser(network, layout=LAYOUT, schedule=schedule)
    _, found = denoiser._label_inputs(torch.tensor(t))
    alpha_bar = schedule.alpha_bar(torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(
        found.double(), 2 * LAYOUT.label_scale * torch.sqrt(alpha_bar) / (1 - alpha_bar), rtol=1e-2, atol=1e-7
    )


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_predict_is_the_exact_posterior_of_independent_pixels(t: float, scale: float) -> None:
    layout = OneHotLayout(bands=2, classes=3, label_scale=scale)
    denoiser = denoiser_of(PlainNetwork(Constant(torch.log(P))), layout)
    x_t, _ = noisy(draw_index((2, 32, 32)), constant_times(0.0, t), layout=layout)
    prediction = denoiser.predict(x_t, constant_times(0.0, t))
    found = torch.softmax(prediction.logits, dim=1)
    expected = posterior_by_hand(x_t[:, 2:], t, layout)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
    assert t == 1.0 or expected.std(dim=(0, 2, 3)).max() > 1e-3, "the noisy labels must say something"


def test_the_posterior_is_calibrated() -> None:
    """Among pixels given probability p for a class, a share p is of that class: true only for the exact posterior."""
    t, index = 0.6, draw_index((4, 128, 128))
    times = constant_times(0.0, t)
    x_t, _ = noisy(index, times)
    denoiser = denoiser_of(PlainNetwork(Constant(torch.log(P))))
    p = torch.softmax(denoiser.predict(x_t, times).logits.detach(), dim=1)
    for k in range(3):
        for low, high in ((0.05, 0.3), (0.3, 0.6), (0.6, 0.95)):
            chosen = (p[:, k] > low) & (p[:, k] <= high)
            share = (index[chosen] == k).float().mean()
            if chosen.sum() > 2000:
                assert abs(float(share - p[:, k][chosen].mean())) < 0.02


def test_labels_at_time_zero_stay_and_at_time_one_the_network_speaks() -> None:
    denoiser = denoiser_of(PlainNetwork(Constant(torch.log(P))))
    index = draw_index((1, 16, 16))
    t = torch.zeros(1, 1, 16, 16)
    t[..., 8:] = 1.0
    times = Times(torch.zeros(1, 1, 1, 1), t)
    x_t, _ = noisy(index, times)
    logits = denoiser.predict(x_t, times).logits
    known = torch.softmax(logits[..., :8], dim=1)
    assert torch.equal(known.argmax(dim=1), index[..., :8].long())
    assert known.amax(dim=1).min() > 1 - 1e-6
    torch.testing.assert_close(logits[..., 8:], torch.log(P)[None, :, None, None].expand(1, 3, 16, 8), rtol=0, atol=0)


def test_a_temperature_divides_what_the_network_says_and_not_what_is_seen() -> None:
    denoiser, t = denoiser_of(PlainNetwork(Constant(torch.log(P)))), constant_times(0.0, 0.4)
    x_t, _ = noisy(draw_index((1, 8, 8)), Times(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 8, 8), 0.4)))
    seen = denoiser.predict(x_t, t).logits - torch.log(P)[:, None, None]
    denoiser.temperature = 2.0
    torch.testing.assert_close(denoiser.predict(x_t, t).logits, torch.log(P)[:, None, None] / 2 + seen)


def test_the_image_at_time_zero_is_x_t() -> None:
    denoiser = denoiser_of(Velocity(torch.log(P), torch.randn(2, 2, 8, 8)))
    x_t = torch.randn(2, 5, 8, 8)
    assert torch.equal(denoiser.x0_hat(x_t, constant_times(0.0, 0.5))[:, :2], x_t[:, :2])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
def test_the_velocity_gives_back_the_image_and_the_noise(t: float) -> None:
    """With v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, x0_hat is x_0 and eps_hat is eps."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 2, 2, 8, 8, generator=generator)
    level = torch.tensor(t)
    v = torch.sqrt(SCHEDULE.alpha_bar(level)) * eps - SCHEDULE.sigma(level) * x_0
    denoiser = denoiser_of(Velocity(torch.log(P), v))
    x_t = torch.cat([SCHEDULE.add_noise(x_0, eps, level), torch.randn(2, 3, 8, 8)], dim=1)
    times = constant_times(t, 1.0)
    x0_hat = denoiser.x0_hat(x_t, times)
    torch.testing.assert_close(x0_hat[:, :2], x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser.eps_hat(x_t, times, x0_hat)[:, :2], eps, rtol=0, atol=2e-5)


def test_eps_hat_is_the_mean_noise_of_the_labels_and_zero_at_time_zero() -> None:
    denoiser = denoiser_of(PlainNetwork(Constant(torch.log(P))))
    t = 0.6
    times = constant_times(0.0, t)
    x_t, _ = noisy(draw_index((1, 8, 8)), times)
    x0_hat = denoiser.x0_hat(x_t, times)
    alpha_bar = float(SCHEDULE.alpha_bar(torch.tensor(t)))
    mean = 0.3 * (2 * posterior_by_hand(x_t[:, 2:], t) - 1)
    expected = (x_t[:, 2:] - alpha_bar**0.5 * mean) / (1 - alpha_bar) ** 0.5
    eps_hat = denoiser.eps_hat(x_t, times, x0_hat)
    torch.testing.assert_close(eps_hat[:, 2:].double(), expected, rtol=0, atol=1e-4)
    assert not eps_hat[:, :2].any()


def test_the_network_is_told_wiener_estimates_and_log_snr() -> None:
    """Each input is the linear estimate of x_0 (labels in units of b): nothing known gives zero, not noise."""
    network = Velocity(torch.log(P), torch.zeros(1, 2, 64, 64))
    denoiser = denoiser_of(network)
    t_image, t_labels, b = 0.4, 0.7, 0.3
    x_t, image = noisy(draw_index((1, 64, 64), torch.full((3,), 1 / 3)), constant_times(t_image, t_labels))
    denoiser.predict(x_t, constant_times(t_image, t_labels))
    snr = float(SCHEDULE.snr(torch.tensor(t_image)))
    alpha_bar = float(SCHEDULE.alpha_bar(torch.tensor(t_labels)))
    gain = alpha_bar**0.5 * b / (alpha_bar * b**2 + 1 - alpha_bar)
    torch.testing.assert_close(network.told[2], gain * x_t[:, 2:])
    slope = (network.told[0] * image).mean() / image.square().mean()
    assert slope == pytest.approx(snr / (1 + snr), abs=0.03)
    assert exp(10 * float(network.told[1].mean())) == pytest.approx(snr, rel=1e-3)
    denoiser.predict(x_t, constant_times(1.0, 1.0))
    assert not network.told[0].any()
    assert not network.told[2].any()


def fitted(index: Tensor, times: Times, x_t: Tensor, image: Tensor, tilt: Tensor | None = None) -> NetworkDenoiser:
    """Constant logits moved to the minimum of the loss."""
    segmenter = Constant(torch.zeros(3))
    denoiser = denoiser_of(PlainNetwork(segmenter), tilt=tilt)
    optimiser = torch.optim.LBFGS(segmenter.parameters(), max_iter=100, tolerance_grad=1e-9, tolerance_change=0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = denoiser.loss(denoiser.predict(x_t, times), image, index, times).labels
        loss.backward()
        return loss

    optimiser.step(closure)
    return denoiser


@pytest.mark.parametrize("t", [0.5, 1.0])
def test_the_minimiser_of_the_loss_is_the_posterior(t: float) -> None:
    index, times = draw_index((8, 64, 64)), constant_times(0.0, t)
    x_t, image = noisy(index, times)
    found = torch.softmax(fitted(index, times, x_t, image).predict(x_t, times).logits, dim=1)
    torch.testing.assert_close(found.double(), posterior_by_hand(x_t[:, 2:], t), rtol=0, atol=0.02)


@pytest.mark.parametrize("t", [0.5, 1.0])
def test_tilted_draws_leave_the_posterior_untilted(t: float) -> None:
    """Classes drawn evenly, as rare classes are; the tilt divided out gives p again, not the shares that were seen."""
    even = torch.full((3,), 1 / 3)
    index, times = draw_index((8, 64, 64), even), constant_times(0.0, t)
    x_t, image = noisy(index, times)
    denoiser = fitted(index, times, x_t, image, tilt=torch.log(even / P))
    found = torch.softmax(denoiser.predict(x_t, times).logits, dim=1)
    torch.testing.assert_close(found.double(), posterior_by_hand(x_t[:, 2:], t), rtol=0, atol=0.02)


def test_a_trained_network_finds_a_posterior_that_depends_on_the_image() -> None:
    """p(class | image) known in closed form: two Gaussians at -1 and +1, so the log odds are 2 x + log(p_1 / p_0)."""
    generator = torch.Generator().manual_seed(0)
    index = (torch.rand(4, 64, 64, generator=generator) < 0.3).to(torch.uint8)
    image = (2.0 * index - 1.0)[:, None] + torch.randn(4, 1, 64, 64, generator=generator)
    layout, times = OneHotLayout(1, 2, 0.3), constant_times(0.0, 1.0)
    torch.manual_seed(0)
    segmenter = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Tanh(), nn.Conv2d(8, 2, 1))
    denoiser = denoiser_of(PlainNetwork(segmenter), layout)
    x_t = layout.join(image, torch.randn(4, 2, 64, 64, generator=generator))
    optimiser = torch.optim.Adam(segmenter.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        denoiser.loss(denoiser.predict(x_t, times), image, index, times).labels.backward()
        optimiser.step()
    found = torch.softmax(denoiser.predict(x_t, times).logits, dim=1)[:, 1]
    expected = torch.sigmoid(2 * image[:, 0] + torch.log(torch.tensor(0.3 / 0.7)))
    assert (found - expected).abs().mean() < 0.02


def test_pixels_without_label_and_at_time_zero_do_not_count() -> None:
    denoiser = denoiser_of(PlainNetwork(Constant(torch.log(P))))
    index = draw_index((1, 8, 8))
    t = torch.full((1, 1, 8, 8), 0.5)
    t[..., :2, :] = 0.0
    index[:, 2:4] = UNLABELLED
    times = Times(torch.zeros(1, 1, 1, 1), t)
    logits = torch.randn(1, 3, 8, 8).requires_grad_(True)
    loss = denoiser.loss(Prediction(logits, torch.zeros(1, 2, 8, 8)), torch.ones(1, 2, 8, 8), index, times)
    expected = nn.functional.cross_entropy(logits[..., 4:, :], index[:, 4:].long())
    torch.testing.assert_close(loss.labels, expected)
    assert loss.image == 0
    loss.labels.backward()
    assert logits.grad is not None
    assert not logits.grad[..., :4, :].any()
    assert logits.grad[..., 4:, :].any()


def test_the_image_loss_is_that_of_the_velocity_over_noised_pixels() -> None:
    t = torch.zeros(1, 1, 8, 8)
    t[..., 4:] = 0.4
    t[..., 6:] = 1.0
    generator = torch.Generator().manual_seed(0)
    v, v_hat, image = torch.randn(3, 1, 2, 8, 8, generator=generator)
    root, sigma = torch.sqrt(SCHEDULE.alpha_bar(t)), SCHEDULE.sigma(t)
    eps = (v + sigma * image) / torch.where(root > 0, root, 1.0)
    denoiser = denoiser_of(Velocity(torch.log(P), v_hat))
    times = Times(t, torch.ones(1, 1, 1, 1))
    x_t = torch.cat([root * image + sigma * eps, torch.randn(1, 3, 8, 8)], dim=1)
    loss = denoiser.loss(denoiser.predict(x_t, times), image, draw_index((1, 8, 8)), times)
    # at t = 1 the velocity is -x_0, whatever v was said to be
    wanted = torch.where(t < 1, v, -image)
    torch.testing.assert_close(loss.image, (wanted - v_hat)[..., 4:].square().mean(), rtol=1e-4, atol=0)


def test_nothing_to_learn_gives_zero_and_finite_gradients() -> None:
    segmenter = Constant(torch.log(P))
    denoiser = denoiser_of(PlainNetwork(segmenter))
    times = constant_times(0.0, 0.0)
    index = torch.full((1, 8, 8), UNLABELLED, dtype=torch.uint8)
    x_t, image = noisy(index, times)
    loss = denoiser.loss(denoiser.predict(x_t, times), image, index, times)
    (loss.labels + loss.image).backward()
    assert loss.labels == loss.image == 0
    assert segmenter.logits.grad is not None
    assert torch.isfinite(segmenter.logits.grad).all()


def test_labels_that_are_not_certain_weigh_what_they_are_worth() -> None:
    """A one-hot target is the plain loss; a belief of a half halves it; probabilities are their own best answer."""
    index = draw_index((1, 8, 8))
    index[:, :2] = UNLABELLED
    times = constant_times(0.0, 1.0)
    generator = torch.Generator().manual_seed(3)
    logits, image = torch.randn(1, 3, 8, 8, generator=generator), torch.zeros(1, 2, 8, 8)
    denoiser = denoiser_of(PlainNetwork(Constant(torch.log(P))), tilt=torch.tensor([0.3, 0.0, -0.2]))
    one_hot = (index.long()[:, None] == torch.arange(3)[:, None, None]).float()

    def loss(target: Tensor | None, said: Tensor = logits) -> Tensor:
        return denoiser.loss(Prediction(said, image), image, index, times, target).labels

    torch.testing.assert_close(loss(one_hot), loss(None))
    torch.testing.assert_close(loss(0.5 * one_hot), 0.5 * loss(None))
    p = torch.softmax(torch.randn(1, 3, 8, 8, generator=generator), dim=1)
    best = (torch.log(p) - denoiser.log_tilt[:, None, None]).requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(p, best), best)
    assert slope.abs().max() < 1e-7
    assert loss(p, best) < loss(p, best.detach() + 0.1 * torch.randn(1, 3, 8, 8, generator=generator))
