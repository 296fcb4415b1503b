"""The network: a plain U-Net segmenter at birth, a label path beside it, and no seams."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segprior.prior.network import Features, ImageInput, JointNetwork, NetworkShape, PlainNetwork

SMALL = {"decoder": (32, 16, 16, 8, 8), "label_path": (8, 12, 16)}


def build(
    bands: int = 3, classes: int = 2, encoder: str = "timm-tf_efficientnet_lite0", *, clean: bool = False
) -> JointNetwork:
    torch.manual_seed(0)
    shape = NetworkShape(bands, classes, encoder, decoder=(32, 16, 16, 8, 8), label_path=(8, 12, 16), clean=clean)
    return JointNetwork(shape).eval()


def inputs(network: JointNetwork, *, size: tuple[int, int] = (64, 96), seed: int = 0) -> dict[str, Tensor]:
    """The parts of an `ImageInput`, and labels, something of which is known."""
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(2, channels, *size, generator=generator)

    bands = network.shape.bands
    return {"noisy": draw(bands), "gained": draw(bands), "log_snr": draw(1), "labels": draw(network.shape.classes)}


def run(
    network: JointNetwork, given: dict[str, Tensor], *, wanted: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, Tensor]:
    image = ImageInput(given["noisy"], given["gained"], given["log_snr"], torch.tensor(wanted)[: len(given["noisy"])])
    logits, v = network(network.features(given["gained"], given["log_snr"]), image, given["labels"])
    return logits, v


def fill(modules: Iterator[nn.Module] | list[nn.Module]) -> None:
    """Random weights where training starts at zero."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.1)


@pytest.fixture
def network() -> JointNetwork:
    return build()


def test_it_starts_as_the_plain_unet(network: JointNetwork) -> None:
    """Same encoder, smp's own decoder forward, same head; and the labels do not matter."""
    given = inputs(network)
    plain = network.image.head(network.image.decoder(network.image.encoder(given["gained"])))
    for seed in (0, 1):
        logits, _ = run(network, {**inputs(network, seed=seed), "gained": given["gained"]})
        assert torch.equal(logits, plain)


def test_a_velocity_that_is_not_wanted_is_not_computed(network: JointNetwork) -> None:
    """The logits, and the velocities of other items, are the same as if it were."""
    fill([network.path, network.image_head])
    both, every = run(network, inputs(network))
    assert every.flatten(1).any(dim=1).all()
    for wanted in ((False, False), (True, False), (False, True)):
        logits, v = run(network, inputs(network), wanted=wanted)
        torch.testing.assert_close(logits, both, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(v, every * torch.tensor(wanted)[:, None, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", [(False, False), (True, True), (True, False)])
def test_without_any_known_label_the_plain_segmenter_speaks(network: JointNetwork, wanted: tuple[bool, bool]) -> None:
    """Item by item, whatever the path has learnt, and whether or not its velocity is asked for."""
    fill([network.path, network.image_head])
    given = inputs(network)
    given["labels"][1] = 0.0
    features = network.features(given["gained"], given["log_snr"])
    logits, v = run(network, given, wanted=wanted)
    assert torch.equal(logits[1], features.logits[1])
    assert not torch.allclose(logits[0], features.logits[0], atol=1e-3)
    assert v.flatten(1).any(dim=1).tolist() == list(wanted)
    given["labels"][1, 0, 3, 3] = 0.99
    assert not torch.allclose(run(network, given)[0][1], features.logits[1], atol=1e-3), "one pixel is enough"


def test_the_less_is_known_the_nearer_is_the_plain_segmenter(network: JointNetwork) -> None:
    """What the labels tell goes to zero with them, in proportion once they are small, whatever the path has learnt."""
    fill([network.path])
    given = inputs(network)
    plain = network.features(given["gained"], given["log_snr"]).logits
    told = [
        (run(network, {**given, "labels": s * given["labels"]})[0] - plain).detach().norm() for s in (1.0, 0.01, 0.001)
    ]
    assert told[0] > 10 * told[1] > 0
    assert float(told[1] / told[2]) == pytest.approx(10, rel=0.1)


def test_features_may_hold_the_answer_to_no_labels(network: JointNetwork) -> None:
    """The logits are the same as when every draw computes it."""
    fill([network.path])
    given = inputs(network)
    image = ImageInput(given["noisy"], given["gained"], given["log_snr"], torch.tensor([False, False]))
    features = network.features(given["gained"], given["log_snr"], silent=True)
    assert features.silent is not None
    assert features.silent.abs().mean() > 1e-3
    again = features.repeat(torch.tensor([0, 1]))
    torch.testing.assert_close(network(again, image, given["labels"])[0], run(network, given)[0], rtol=1e-4, atol=1e-5)


def test_the_image_network_is_smp_unet() -> None:
    """With the weights of an smp.Unet it gives that network's logits."""
    torch.manual_seed(1)
    unet = smp.Unet("resnet18", encoder_weights=None, decoder_channels=SMALL["decoder"], classes=2).eval()
    ours = build(encoder="resnet18")
    ours.image.encoder.load_state_dict(unet.encoder.state_dict())
    ours.image.decoder.load_state_dict(unet.decoder.state_dict())
    ours.image.head.load_state_dict(unet.segmentation_head[0].state_dict())
    given = inputs(ours)
    with torch.no_grad():
        assert torch.equal(run(ours, given)[0], unet(given["gained"]))


def test_while_the_entry_is_zero_the_labels_do_not_matter(network: JointNetwork) -> None:
    fill([network.path.label_head, network.image_head])
    given = inputs(network)
    logits, v = run(network, given)
    other_labels = {"labels": inputs(network, seed=1)["labels"]}
    again, v_again = run(network, {**given, **other_labels})
    assert v.any()
    assert torch.equal(logits, again)
    assert torch.equal(v, v_again)
    fill([network.path.label_entry])
    assert not torch.equal(logits, run(network, {**given, **other_labels})[0])


def test_gradients_reach_entry_and_heads_after_a_step(network: JointNetwork) -> None:
    given = inputs(network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    named = ("path.label_entry.weight", "path.label_head.weight", "image_head.exit.weight", "image.entry.weight")
    parameters = dict(network.named_parameters())
    for _ in range(2):
        optimiser.zero_grad()
        logits, v = run(network, given)
        (logits.square().mean() + (v - 1).square().mean()).backward()
        optimiser.step()
    for name in named:
        slope = parameters[name].grad
        assert slope is not None, name
        assert slope.any(), name
    beside = [*network.path.named_parameters(), *network.image_head.named_parameters()]
    assert [k for k, p in beside if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("dim", [2, 3])
def test_what_follows_the_features_is_translation_equivariant(network: JointNetwork, dim: int) -> None:
    """Away from the edges a shift by 32 pixels of everything that comes in shifts what comes out, and nothing else."""
    fill([network.path, network.image_head])
    long, size = 768, [768 if d == dim else 32 for d in (2, 3)]
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(1, 16, size[0] // 4, size[1] // 4, generator=generator)
    given = {k: v[:1] for k, v in inputs(network, size=(size[0], size[1]), seed=4).items()}

    def outputs(shift: int) -> tuple[Tensor, Tensor]:
        moved = {k: torch.roll(v, shift, dims=dim) for k, v in given.items()}
        image = ImageInput(moved["noisy"], moved["gained"], moved["log_snr"], torch.tensor([True]))
        features = Features(torch.roll(context, shift // 4, dims=dim), torch.zeros(1, 2, *size))
        logits, v = network(features, image, moved["labels"])
        return logits, v

    with torch.no_grad():
        here, there = outputs(0), outputs(32)
    reach = 256
    for a, b in zip(here, there, strict=True):
        inside = a.narrow(dim, reach, long - 2 * reach - 32)
        assert inside.std() > 1e-3
        torch.testing.assert_close(b.narrow(dim, reach + 32, long - 2 * reach - 32), inside, rtol=1e-4, atol=1e-5)


def test_batch_norm_is_in_the_image_network_alone_and_learns(network: JointNetwork) -> None:
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    inside = {id(m) for m in network.image.modules()}
    assert norms
    assert all(id(m) in inside for m in norms)
    run(network, inputs(network))
    assert all(m.num_batches_tracked == 0 for m in norms), "in eval mode the statistics stay"
    run(network.train(), inputs(network))
    idle = [m for m in norms if m.num_batches_tracked != 1]
    assert len(idle) <= 1, "smp keeps the norm of a last layer that it does not use"
    assert all(m.num_batches_tracked == 1 for m in network.image.decoder.modules() if m in norms)


@pytest.mark.parametrize(("bands", "classes"), [(1, 2), (4, 7)])
@pytest.mark.parametrize("encoder", ["timm-tf_efficientnet_lite0", "resnet18"])
def test_any_bands_classes_and_encoder(bands: int, classes: int, encoder: str) -> None:
    network = build(bands, classes, encoder)
    logits, v = run(network, inputs(network))
    assert logits.shape == (2, classes, 64, 96)
    assert v.shape == (2, bands, 64, 96)
    assert torch.isfinite(logits).all()


def test_items_do_not_touch_each_other(network: JointNetwork) -> None:
    fill([network.path])
    given = inputs(network)
    both = run(network, given)
    alone = run(network, {k: v[:1] for k, v in given.items()})
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-5)


def test_features_repeat(network: JointNetwork) -> None:
    given = inputs(network)
    features = network.features(given["gained"], given["log_snr"])
    index = torch.tensor([1, 0, 1])
    repeated = features.repeat(index)
    assert torch.equal(repeated.logits, features.logits[index])
    assert torch.equal(repeated.context, features.context[index])


def test_the_plain_network_reads_the_image_alone() -> None:
    plain = PlainNetwork(nn.Conv2d(3, 2, 1))
    given = inputs(build())
    features = plain.features(given["gained"], given["log_snr"])
    image = ImageInput(given["noisy"], given["gained"], given["log_snr"], torch.tensor([True, True]))
    logits, v = plain(features, image, given["labels"])
    assert torch.equal(logits, plain.segmenter(given["gained"]))
    assert v.shape == given["noisy"].shape
    assert not v.any()


class Slow(nn.Module):
    """A segmenter with a head, whose body waits for another one to have come through."""

    def __init__(self) -> None:
        super().__init__()
        self.segmentation_head = nn.Identity()
        self.turn = {3.0: Event(), 1.0: Event()}

    def forward(self, image: Tensor) -> Tensor:
        value = float(image[0, 0, 0, 0])
        if value == 3.0:
            self.turn[3.0].set()  # its hook is there
            assert self.turn[1.0].wait(20)
        said: Tensor = self.segmentation_head(image[:, :2])
        return said


def test_a_plain_network_may_be_at_work_in_many_threads() -> None:
    """What one thread reads must not be what another thread's image gives."""
    plain = PlainNetwork(Slow()).eval()

    def work(value: float) -> Features:
        if value == 1.0:
            assert plain.segmenter.turn[3.0].wait(20)  # type: ignore[union-attr, operator]  # it is Slow
        found = plain.features(torch.full((1, 3, 8, 8), value), torch.zeros(1, 1, 8, 8))
        if value == 1.0:
            plain.segmenter.turn[1.0].set()  # type: ignore[union-attr, operator]  # it is Slow
        return found

    with ThreadPoolExecutor(2) as pool:
        for value, features in zip((3.0, 1.0), pool.map(work, (3.0, 1.0)), strict=True):
            assert (features.context == value).all()
            assert (features.logits == value).all()


NOISY, UNKNOWN = 0.3, -1.0
"""Log-SNRs, in units of the limit, of a noisy pixel and of one of which nothing is known."""


def taught_by_clean_images(*log_snr: float) -> tuple[JointNetwork, dict[str, Tensor]]:
    """A network whose image network learns from clean images alone, and items of these log-SNRs."""
    network = build(clean=True)
    fill([network.path, network.image_head])
    given = inputs(network)
    given["log_snr"] = torch.tensor(log_snr)[:, None, None, None].expand(-1, 1, 64, 96).clone()
    return network, given


def shown(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return given["gained"], given["log_snr"]


def test_clean_images_with_holes_are_seen_as_ever() -> None:
    network, given = taught_by_clean_images(1.0, 1.0)
    given["log_snr"][:, :, :20] = UNKNOWN
    given["gained"][:, :, :20] = 0.0
    same = build()
    same.load_state_dict({k: v for k, v in network.state_dict().items() if "own_head" not in k})
    for ours, theirs in zip(run(network, given), run(same, given), strict=True):
        assert torch.equal(ours, theirs)


def test_features_of_noisy_images_are_those_of_clean_ones_weighed_by_alpha_bar() -> None:
    """In holes of a noisy image they are zero; other items are not touched."""
    network, given = taught_by_clean_images(NOISY, 1.0)
    given["log_snr"][0, :, :20] = UNKNOWN
    given["gained"][0, :, :20] = 0.0
    features = network.features(*shown(given))
    known = torch.where(given["log_snr"] > UNKNOWN, 1.0, UNKNOWN)
    plain = network.image(given["gained"], known)
    alpha_bar = 1 / (1 + np.exp(-10 * NOISY))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(features.logits[0, :, 20:], alpha_bar * plain.logits[0, :, 20:], **close)
    torch.testing.assert_close(features.context[0, :, 5:], alpha_bar * plain.context[0, :, 5:], **close)
    assert not features.logits[0, :, :20].any()
    assert not features.context[0, :, :5].any()
    torch.testing.assert_close(features.logits[1], plain.logits[1], **close)
    torch.testing.assert_close(features.context[1], plain.context[1], **close)


@pytest.mark.parametrize("level", [NOISY, UNKNOWN])
def test_of_noisy_images_the_path_has_a_say_of_its_own(level: float) -> None:
    """Labels or none, s(0) is added; what labels tell enters as ever, as r(l) - r(0)."""
    network, given = taught_by_clean_images(level, 1.0)
    features = network.features(*shown(given))
    assert features.logits[0].any() == (level == NOISY)
    packed = torch.cat(shown(given), dim=1)
    nothing = torch.zeros_like(given["labels"])
    silent, cells = network.path(features.context, packed, nothing)
    own = network.path.own(cells)[:1]
    assert own.std() > 1e-3
    close = {"rtol": 1e-4, "atol": 1e-5}
    untold, _ = run(network, {**given, "labels": nothing}, wanted=(False, False))
    torch.testing.assert_close(untold[:1], features.logits[:1] + own, **close)
    torch.testing.assert_close(untold[1:], features.logits[1:], **close)
    logits, _ = run(network, given, wanted=(False, False))
    r = network.path(features.context, packed, given["labels"])[0]
    torch.testing.assert_close(logits, untold + r - silent, **close)
    assert (r - silent).std() > 1e-3


def test_features_hold_the_answer_to_no_labels_of_noisy_images_too() -> None:
    network, given = taught_by_clean_images(NOISY, 1.0)
    image = ImageInput(given["noisy"], given["gained"], given["log_snr"], torch.tensor([False, False]))
    features = network.features(*shown(given), silent=True)
    torch.testing.assert_close(
        network(features, image, given["labels"])[0], run(network, given)[0], rtol=1e-4, atol=1e-5
    )


def test_a_network_with_a_say_of_its_own_starts_without_one() -> None:
    network = build(clean=True)
    given = {**inputs(network), "log_snr": torch.full((2, 1, 64, 96), NOISY)}
    logits, _ = run(network, given)
    assert torch.equal(logits, network.features(*shown(given)).logits)


def test_the_image_network_learns_nothing_of_noisy_images_and_the_path_does() -> None:
    network, given = taught_by_clean_images(NOISY, UNKNOWN)
    logits, v = run(network.train(), given)
    (logits.square().mean() + (v - 1).square().mean()).backward()
    assert all(p.grad is None for p in network.image.parameters())
    assert [k for k, p in network.path.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(m.num_batches_tracked == 0 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.training for m in network.modules()), "only while it looks at noisy images it keeps still"


def test_a_mixed_batch_teaches_the_image_network_by_its_clean_items_alone() -> None:
    network, given = taught_by_clean_images(NOISY, 1.0)
    slopes = []
    for some in (slice(0, 2), slice(1, 2)):
        torch.manual_seed(3)  # of the encoder's stochastic depth
        network.load_state_dict(build(clean=True).state_dict())
        network.train().zero_grad()
        features = network.features(given["gained"][some], given["log_snr"][some])
        features.logits.square().sum().backward()
        slopes.append(network.image.head.weight.grad.clone())
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-3)


def test_the_slope_along_a_noisy_image_goes_through_the_image_network() -> None:
    """As the gradient forms of the solver need it, where the image moves."""
    network, given = taught_by_clean_images(NOISY, NOISY)
    image = given["gained"].clone().requires_grad_(True)
    network.features(image, given["log_snr"]).logits.square().sum().backward()
    assert image.grad is not None
    assert image.grad.any()
