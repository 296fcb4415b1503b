"""The training mix: shares of the kinds, what is revealed, and which loss each kind contributes to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segprior.errors import SettingError
from segprior.mix import Batch, Kind, Mix, MixLoss, draw_kinds, drawn, mix_loss, plain_loss
from segprior.prior.denoiser import Loss, NetworkDenoiser, Prediction
from segprior.prior.joint import UNLABELLED, OneHotLayout, Times
from segprior.prior.network import JointNetwork, NetworkShape
from segprior.prior.schedule import CosineSchedule
from segprior.reveal import reveal

LAYOUT = OneHotLayout(3, 2, 0.3)


@pytest.fixture(scope="module")
def denoiser() -> NetworkDenoiser:
    torch.manual_seed(0)
    network = JointNetwork(NetworkShape(3, 2, "resnet18", decoder=(16, 16, 8, 8, 8), label_path=(8, 8, 8)))
    with torch.no_grad():
        for module in (network.path.label_entry, network.path.label_head, network.image_head.exit):
            nn.init.normal_(module.weight, std=0.1)
    return NetworkDenoiser(network, layout=LAYOUT, schedule=CosineSchedule()).train()


def batch_of(*kinds: Kind, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(len(kinds), 3, size, size, generator=generator)
    index = torch.randint(0, 2, (len(kinds), size, size), generator=generator, dtype=torch.uint8)
    index[:, :4] = UNLABELLED
    return Batch(image, index, np.array(kinds, np.int64), torch.ones(len(kinds), 1, size, size, dtype=torch.bool))


def loss_of(
    denoiser: NetworkDenoiser, batch: Batch, *, mix: Mix | None = None, progress: float = 0.0, seed: int = 0
) -> MixLoss:
    rng = np.random.default_rng(seed)
    return mix_loss(denoiser, batch, Mix() if mix is None else mix, progress=progress, image_weight=0.25, rng=rng)


class Spy:
    """Keeps what the denoiser was asked, one entry per `loss`: x_t, times, index and the loss itself."""

    def __init__(self, denoiser: NetworkDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
        self.x_t: list[Tensor] = []
        self.predictions: list[Prediction] = []
        self.images: list[bool] = []
        self.asked: list[tuple[Tensor, Times, Loss]] = []
        predict, loss = denoiser.predict, denoiser.loss

        def spied_predict(x_t: Tensor, times: Times, features: object = None, *, image_too: bool) -> Prediction:
            self.x_t.append(x_t)
            self.images.append(image_too)
            said = predict(x_t, times, features, image_too=image_too)  # type: ignore[arg-type]  # passed on as it comes
            self.predictions.append(said)
            return said

        def spied_loss(
            prediction: Prediction, image: Tensor, index: Tensor, times: Times, target: Tensor | None = None
        ) -> Loss:
            self.asked.append((index, times, loss(prediction, image, index, times, target)))
            return self.asked[-1][2]

        monkeypatch.setattr(denoiser, "predict", spied_predict)
        monkeypatch.setattr(denoiser, "loss", spied_loss)


@pytest.fixture
def spy(denoiser: NetworkDenoiser, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(denoiser, monkeypatch)


def test_kinds_come_in_their_shares() -> None:
    mix, rng = Mix(), np.random.default_rng(0)
    draws = np.stack([draw_kinds(mix, 8, rng) for _ in range(4000)])
    counts = np.stack([np.bincount(draw, minlength=5) for draw in draws])
    np.testing.assert_allclose(counts.mean(axis=0) / 8, mix.kinds, atol=0.006)
    assert np.abs(counts - 8 * np.array(mix.kinds)).max() < 2
    places = (draws == Kind.LABEL).mean(axis=0)
    np.testing.assert_allclose(places, mix.kinds[Kind.LABEL], atol=0.025, err_msg="no kind has a place of its own")


def test_kinds_with_share_zero_never_come() -> None:
    rng = np.random.default_rng(0)
    only = Mix(kinds=(0.0, 1.0, 0.0, 0.0, 0.0))
    assert all((draw_kinds(only, 5, rng) == Kind.SEGMENT).all() for _ in range(100))


@pytest.mark.parametrize(("progress", "alone"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_first_draws_come_alone_at_the_beginning(progress: float, alone: bool) -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([draw_kinds(Mix(alone=0.5), 8, rng, progress=progress) for _ in range(100)])
    assert (draws == Kind.SEGMENT).all() == alone
    assert (draws == Kind.PAIR).any() != alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": (0.5, 0.5)},
        {"kinds": (0.5, 0.4, 0.0, 0.0, 0.0)},
        {"own": 1.5},
        {"alone": -0.5},
        {"hidden": -0.1},
    ],
    ids=["too few", "do not sum to 1", "above 1", "alone below 0", "below 0"],
)
def test_shares_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="shares"):
        Mix(**wrong)  # type: ignore[arg-type]  # passed on as it comes


def test_reveals_lie_mostly_on_errors() -> None:
    rng = np.random.default_rng(0)
    wrong = np.zeros((256, 256), np.bool_)
    wrong[30:70, 150:230] = True
    share = wrong.mean()
    masks = [reveal(wrong, 0.9, rng) for _ in range(300)]
    elsewhere = [reveal(wrong, 0.0, rng) for _ in range(300)]
    revealed = sum(int(m[wrong].sum()) for m in masks) / sum(int(m.sum()) for m in masks)
    by_chance = sum(int(m[wrong].sum()) for m in elsewhere) / sum(int(m.sum()) for m in elsewhere)
    assert revealed > 0.5
    assert by_chance == pytest.approx(share, abs=0.03)
    assert 0 < np.mean([m.mean() for m in masks]) < 0.2, "most of a tile stays hidden"
    assert reveal(np.zeros((64, 64), np.bool_), 1.0, rng).any(), "a map without errors is revealed anywhere"


@pytest.mark.parametrize("kind", list(Kind))
def test_the_loss_is_finite_for_every_kind_alone(denoiser: NetworkDenoiser, kind: Kind) -> None:
    denoiser.zero_grad()
    loss = loss_of(denoiser, batch_of(kind, kind))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(np.isfinite(v) for v in (loss.one_step, loss.later, loss.image))
    slopes = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert any(s.any() for s in slopes)
    assert all(torch.isfinite(s).all() for s in slopes)


def test_the_loss_is_a_function_of_the_generator(denoiser: NetworkDenoiser) -> None:
    denoiser.eval()
    batch = batch_of(*Kind)

    def parts(seed: int) -> tuple[float, ...]:
        loss = loss_of(denoiser, batch, seed=seed)
        return float(loss.total.detach()), loss.one_step, loss.later, loss.image

    assert parts(0) == parts(0)
    assert parts(0) != parts(1)
    denoiser.train()


def test_the_total_is_the_sum_of_its_parts(denoiser: NetworkDenoiser, spy: Spy) -> None:
    loss = loss_of(denoiser, batch_of(*Kind))
    first, second = (asked[2] for asked in spy.asked)
    torch.testing.assert_close(loss.total, first.labels + second.labels + 0.25 * second.image)
    assert loss.image == float(second.image.detach()) > 0
    assert loss.one_step == float(first.labels.detach())
    assert loss.later == float(second.labels.detach())


def test_the_first_draw_knows_nothing_of_the_labels(denoiser: NetworkDenoiser, spy: Spy) -> None:
    batch = batch_of(*Kind)
    other = replace(batch, index=torch.where(batch.index < 2, 1 - batch.index, UNLABELLED))
    for given in (batch, other):
        loss_of(denoiser, given, mix=Mix(hidden=0.0))
    assert torch.equal(spy.x_t[0], spy.x_t[2])
    index, times, found = spy.asked[0]
    assert (times.labels == 1).all()
    assert len(index) == 3, "neither images without labels nor label maps without an image have a first draw"
    assert spy.images == [False, True] * 2
    assert not times.image.any(), "the image is asked for in the second draw alone"
    assert found.image == 0


def test_images_without_labels_contribute_no_label_loss(denoiser: NetworkDenoiser, spy: Spy) -> None:
    loss = loss_of(denoiser, batch_of(Kind.IMAGE, Kind.IMAGE))
    assert loss.one_step == loss.later == 0
    assert loss.image > 0
    index, times, _ = spy.asked[0]
    assert (index == UNLABELLED).all()
    assert (times.labels == 1).all()
    assert len(spy.asked) == 1
    assert len(times.image.unique()) == 2, "each image has a time of its own"


def test_labels_of_images_taken_alone_do_not_come_in(denoiser: NetworkDenoiser, spy: Spy) -> None:
    """Their tiles may come from labelled scenes."""
    batch = batch_of(Kind.IMAGE, Kind.IMAGE)
    other = replace(batch, index=torch.where(batch.index < 2, 1 - batch.index, UNLABELLED))
    denoiser.eval()
    losses = [loss_of(denoiser, given, mix=Mix(revealed=1.0), progress=1.0) for given in (batch, other)]
    denoiser.train()
    assert losses[0].total == losses[1].total
    assert torch.equal(spy.x_t[0], spy.x_t[1])


def test_label_maps_without_images_are_seen_through_pure_noise(denoiser: NetworkDenoiser, spy: Spy) -> None:
    batch = batch_of(Kind.LABEL, Kind.LABEL)
    dark = replace(batch, image=batch.image - 3)
    losses = [loss_of(denoiser, given) for given in (batch, dark)]
    assert losses[0].one_step == losses[1].one_step == 0
    assert losses[0].later > 0
    assert (spy.asked[0][1].image == 0).all(), "left out of the image loss"
    assert torch.equal(spy.x_t[0], spy.x_t[1]), "nothing of the image comes in"
    assert losses[0].later == losses[1].later, "nor into the label loss"


def test_label_maps_contribute_no_image_loss(denoiser: NetworkDenoiser, spy: Spy) -> None:
    loss_of(denoiser, batch_of(Kind.LABEL, Kind.LABEL))
    assert spy.asked[0][2].image == 0


def test_pairs_see_the_image_as_it_is_but_for_hidden_rectangles(denoiser: NetworkDenoiser, spy: Spy) -> None:
    batch = batch_of(Kind.PAIR, Kind.SEGMENT, Kind.PAIR)
    loss_of(denoiser, batch, mix=Mix(hidden=0.0))
    assert torch.equal(spy.x_t[0][:, :3], batch.image)
    assert not spy.asked[0][1].image.any()
    assert len(spy.asked[1][0]) == 2, "the second draw is of pairs alone"
    loss_of(denoiser, batch, mix=Mix(hidden=1.0))
    hidden = spy.asked[3][1].image
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    pairs = batch.image[::2]
    seen = (hidden == 0).expand_as(pairs)
    assert torch.equal(spy.x_t[3][:, :3][seen], pairs[seen])
    assert not torch.equal(spy.x_t[3][:, :3][~seen], pairs[~seen])
    assert torch.equal(spy.x_t[2][::2, :3], spy.x_t[3][:, :3]), "both draws see the same image"


@pytest.mark.parametrize("plain", [False, True])
def test_what_nodata_stands_for_is_neither_seen_nor_asked_for(
    denoiser: NetworkDenoiser, spy: Spy, *, plain: bool
) -> None:
    batch = batch_of(*Kind)
    gap = torch.zeros_like(batch.seen)
    gap[:, :, 20:50, 10:30] = True
    batch = replace(batch, seen=~gap)
    other = replace(batch, image=torch.where(gap, torch.full_like(batch.image, 9.0), batch.image))
    denoiser.eval()
    rng = np.random.default_rng(0)
    totals = [
        (plain_loss(denoiser, given, progress=0.0, rng=rng) if plain else loss_of(denoiser, given)).total
        for given in (batch, other)
    ]
    denoiser.train()
    assert torch.equal(*totals)
    for index, times, _ in spy.asked:
        hole = gap[: len(index)]
        assert plain or not times.image[hole].any(), "a time of 0 leaves it out of the image loss"
        assert (times.labels[hole] > 0).any(), "its labels are asked for"


def label_levels(times: Times) -> list[list[float]]:
    return [sorted(item.unique().tolist()) for item in times.labels]


def test_label_times_are_spread_and_reveals_are_zero(denoiser: NetworkDenoiser, spy: Spy) -> None:
    kinds = (Kind.PAIR,) * 8
    loss_of(denoiser, batch_of(*kinds), mix=Mix(revealed=0.0))
    levels = [[v for v in item if v < 1] for item in label_levels(spy.asked[1][1])]
    assert all(len(item) <= 1 for item in levels)
    flat = sorted(v for item in levels for v in item)
    assert all(n / 8 < v <= (n + 1) / 8 for n, v in enumerate(flat)), "one in each eighth"
    loss_of(denoiser, batch_of(*kinds), mix=Mix(revealed=1.0))
    index, times, _ = spy.asked[3]
    assert all(0.0 in item for item in label_levels(times))
    assert (times.labels[:, 0][index == UNLABELLED] == 1).all(), "nothing is revealed where nothing is known"


def test_what_is_revealed_of_label_maps_does_not_tell_the_class(denoiser: NetworkDenoiser, spy: Spy) -> None:
    """There is no map that might be wrong, so reveals fall anywhere."""
    batch = batch_of(*(Kind.LABEL,) * 32)
    index = batch.index.clone()
    index[:, :, :32], index[:, :, 32:] = 0, 1
    loss_of(denoiser, replace(batch, index=index), mix=Mix(revealed=1.0, at_errors=1.0))
    revealed = spy.asked[-1][1].labels[:, 0] == 0
    halves = revealed[:, :, :32].float().mean(), revealed[:, :, 32:].float().mean()
    assert min(halves) > 0.6 * max(halves)


def test_revealed_pixels_hold_the_truth(denoiser: NetworkDenoiser, spy: Spy) -> None:
    batch = batch_of(*(Kind.PAIR,) * 4)
    loss_of(denoiser, batch, mix=Mix(revealed=1.0, own=1.0), progress=1.0)
    revealed = (spy.asked[1][1].labels == 0).expand(-1, 2, -1, -1)
    assert revealed.any()
    assert torch.equal(spy.x_t[1][:, 3:][revealed], LAYOUT.encode(batch.index)[revealed])


@pytest.mark.parametrize(
    ("alone", "progress", "own"),
    [(0.0, 0.0, 0), (0.0, 0.33, 0), (0.0, 0.34, 6), (0.0, 1.0, 6), (0.5, 0.66, 0), (0.5, 0.67, 6)],
)
def test_the_own_map_is_noised_from_own_from_on(
    denoiser: NetworkDenoiser, spy: Spy, alone: float, progress: float, own: int
) -> None:
    """Undo the noise that the generator drew, and see whose labels lie beneath."""
    batch, mix = batch_of(*(Kind.PAIR,) * 6), Mix(own=1.0, revealed=0.0, alone=alone)
    noise: list[Tensor] = []
    randn = torch.randn

    def kept(*given: object, **named: object) -> Tensor:
        noise.append(randn(*given, **named))  # type: ignore[arg-type]  # passed on as it comes
        return noise[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", kept)
        loss_of(denoiser, batch, mix=mix, progress=progress)
    times = spy.asked[1][1].labels
    alpha_bar = denoiser.schedule.alpha_bar(times)
    inside = (alpha_bar > 0.01).expand(-1, 2, -1, -1)
    x_0 = (spy.x_t[1][:, 3:] - torch.sqrt(1 - alpha_bar) * noise[-1]) / torch.sqrt(alpha_bar.clamp(min=1e-6))
    mine = LAYOUT.place(torch.softmax(spy.predictions[0].logits.detach(), dim=1))
    of = [
        next(
            name
            for name, labels in (("own", mine), ("truth", LAYOUT.encode(batch.index)))
            if torch.allclose(x_0[n][inside[n]], labels[n][inside[n]], atol=1e-4)
        )
        for n in range(6)
        if inside[n].any()
    ]
    assert of.count("own") == min(own, len(of))
    assert len(of) >= 5
    if own:
        assert times.min() >= mix.own_time


def test_only_pairs_noise_their_own_map(denoiser: NetworkDenoiser, spy: Spy) -> None:
    """Joint items keep the truth: with the labels' time below own_time their noise could not be the map's."""
    loss_of(denoiser, batch_of(*(Kind.JOINT,) * 8), mix=Mix(own=1.0, revealed=0.0, own_time=1.0), progress=1.0)
    assert spy.asked[1][1].labels.min() < 0.5


def test_maps_are_drawn_from_probabilities() -> None:
    """Each pixel as often of a class as it should be, an item's together; what is certain or unlabelled stays."""
    rng = np.random.default_rng(0)
    probable = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.6, 0.1, 0.3]]).T[None, :, None].expand(2000, 3, 1, 3)
    index = torch.tensor([[[0, 1, UNLABELLED]]], dtype=torch.uint8).expand(2000, 1, 3)
    found = drawn(index, probable, rng)
    assert found.dtype == torch.uint8
    often = torch.bincount(found[:, 0, 0].long(), minlength=3) / 2000
    torch.testing.assert_close(often, torch.tensor([0.2, 0.5, 0.3]), atol=0.04, rtol=0)
    assert (found[:, 0, 1] == 1).all()
    assert (found[:, 0, 2] == UNLABELLED).all()
    assert torch.equal(drawn(index, None, rng), index)
    alike = drawn(torch.zeros(50, 8, 8, dtype=torch.uint8), torch.full((50, 2, 8, 8), 0.5), rng)
    assert (alike == alike[:, :1, :1]).all()
    assert 10 < int((alike[:, 0, 0] == 1).sum()) < 40


def test_the_second_draw_asks_for_the_map_it_noised(denoiser: NetworkDenoiser, spy: Spy) -> None:
    """Not for probabilities: noisy labels tell which map it was, and at little noise there is no doubt left."""
    batch = batch_of(*[Kind.PAIR] * 12)
    half = torch.full((12, 2, 64, 64), 0.5)
    loss = loss_of(denoiser, replace(batch, target=half), mix=Mix(own=0.0, revealed=0.0), seed=3)
    index, times, _ = spy.asked[1]
    known = index != UNLABELLED
    clear = (times.labels < 0.1)[:, 0] & known
    told = denoiser.layout.split(spy.x_t[1])[1].argmax(dim=1)
    assert clear.any()
    assert (told == index)[clear].float().mean() > 0.9
    assert loss.later < 2 * loss.one_step
