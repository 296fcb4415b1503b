"""The mean teacher: what is learned of imagery without labels, and that it changes nothing else."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated import card_of, new_run, steps_of, weights, write_dataset
from torch import nn

from segprior import teacher as module
from segprior.augment import Augmentation
from segprior.checkpoint import Card, build_denoiser
from segprior.data import Dataset, Region, load_dataset
from segprior.errors import DatasetError, SettingError
from segprior.mix import Batch, Kind, Mix, MixLoss, plain_loss
from segprior.plots import Plot, read_plots
from segprior.pools import Pools, read_pools
from segprior.prior.denoiser import NetworkDenoiser, Prediction
from segprior.prior.joint import UNLABELLED, Times
from segprior.teacher import taught, taught_count
from segprior.tiles import TilePool, View
from segprior.train import Settings, train
from segprior.windows import Window

SETTINGS = Settings(steps=8, batch=4, tile=32, rate=3e-3, warmup=2, average=0.9, validate_every=8, mean_teacher=0.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A window with labels in one scene, imagery alone elsewhere."""
    whole = load_dataset(str(write_dataset(tmp_path_factory.mktemp("rectangles"))))
    one, two = (region.scene for region in whole.select("train", "pairs"))
    images = [Region(scene, "train", "images") for scene in (one, two)]
    window = Region(one, "train", "pairs", Window(8, 8, 40, 48))
    return replace(whole, regions=(*images, window, *whole.select("val", "pairs")))


@pytest.fixture(scope="module")
def pools(dataset: Dataset) -> Pools:
    return read_pools(dataset, tile=32)


@pytest.fixture(scope="module")
def card(dataset: Dataset) -> Card:
    return card_of(dataset)


@pytest.fixture(scope="module")
def network(card: Card) -> NetworkDenoiser:
    """Random, with a head that says something and a tilt."""
    torch.manual_seed(0)
    denoiser = build_denoiser(card).eval()
    nn.init.normal_(denoiser.network.image.head.weight, std=0.5)
    denoiser.log_tilt.copy_(torch.tensor([-0.4, 0.7]))
    return denoiser


def views_of(pools: Pools, count: int) -> list[View]:
    assert pools.bare is not None
    rng = np.random.default_rng(3)
    return [pools.bare.draw_views(rng) for _ in range(count)]


def unmixed(network: NetworkDenoiser, views: list[View], card: Card) -> Batch:
    """Each tile by itself: its piece of the next one is a piece of its own."""
    parts = [taught(network, [view], card, np.random.default_rng(0)) for view in views]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    return whole


def test_targets_are_the_teachers_probabilities_of_the_plain_image(
    network: NetworkDenoiser, pools: Pools, card: Card
) -> None:
    """At the tilt of drawn tiles, times how sure it is; the image to learn from has other colours."""
    view = next(v for v in views_of(pools, 9) if not np.array_equal(v.tile.image, v.plain))
    batch = taught(network, [view], card, np.random.default_rng(0))
    plain = card.normalise(view.plain.transpose(2, 0, 1))[None]
    with torch.no_grad():
        logits = network.encode(plain, torch.zeros(1, 1, 32, 32)).logits[0]
    natural = torch.softmax(logits, dim=0)
    tilted = natural * torch.exp(network.log_tilt)[:, None, None]
    expected = natural.max(dim=0).values * tilted / tilted.sum(dim=0)
    assert batch.target is not None
    torch.testing.assert_close(batch.target[0], expected)
    assert torch.equal(batch.index[0].long(), natural.argmax(dim=0))
    torch.testing.assert_close(batch.image[0], card.normalise(view.tile.image.transpose(2, 0, 1)))
    assert batch.kinds.tolist() == [Kind.SEGMENT]


def test_it_costs_least_to_say_what_the_teacher_says(network: NetworkDenoiser, pools: Pools, card: Card) -> None:
    """The gradient in the logits is zero there, and where the teacher is surer it is larger elsewhere."""
    batch = unmixed(network, views_of(pools, 2), card)
    assert batch.target is not None
    times = Times(torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32))

    def slope(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone().requires_grad_()
        prediction = Prediction(logits, batch.image)
        network.loss(prediction, batch.image, batch.index, times, batch.target).labels.backward()
        assert logits.grad is not None
        return logits.grad

    own = torch.log(batch.target) - network.log_tilt[:, None, None]
    assert float(slope(own).abs().max()) < 1e-8
    moved = slope(own + torch.tensor([0.5, -0.5])[:, None, None])
    assert float(moved[:, 0].min()) > 0, "the first class is said too often"


def test_a_piece_is_image_target_and_data_of_the_next_tile(
    network: NetworkDenoiser, dataset: Dataset, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = read_plots(dataset, "train", "images")[0]
    gap = replace(plot, seen=np.broadcast_to(np.arange(plot.shape[1]) % 32 < 20, plot.shape).copy())
    pool = TilePool([gap], classes=2, size=32, bands=3)
    rng = np.random.default_rng(0)
    views = [pool.draw_views(rng) for _ in range(3)]
    apart = unmixed(network, views, card)
    assert (apart.index[:, None][~apart.seen] == UNLABELLED).all()
    assert (apart.index[:, None][apart.seen] != UNLABELLED).all()
    assert 0 < apart.seen.float().mean() < 1
    rows, cols = slice(4, 12), slice(10, 31)
    monkeypatch.setattr(module, "rectangle", lambda size, rng: (rows, cols))
    batch = taught(network, views, card, rng)
    assert apart.target is not None
    assert batch.target is not None
    for found, own in zip(
        (batch.image, batch.index[:, None], batch.seen, batch.target),
        (apart.image, apart.index[:, None], apart.seen, apart.target),
        strict=True,
    ):
        expected = own.clone()
        expected[..., rows, cols] = own.roll(-1, dims=0)[..., rows, cols]
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, own)


def test_views_differ_by_their_colours_alone(pools: Pools, dataset: Dataset) -> None:
    """The tile is the one that `draw` would give."""
    assert pools.bare is not None
    first, again = (pools.bare.draw_views(np.random.default_rng(5)) for _ in range(2))
    drawn = pools.bare.draw(np.random.default_rng(5), whole=True)
    assert np.array_equal(first.tile.image, drawn.image)
    assert np.array_equal(first.tile.image, again.tile.image)
    assert np.array_equal(first.plain, again.plain)
    plots = read_plots(dataset, "train", "images")
    pale = TilePool(plots, classes=2, size=32, bands=3, augmentation=Augmentation(colour=0.0))
    view = pale.draw_views(np.random.default_rng(5))
    assert abs(view.plain.astype(int) - view.tile.image).mean() < 1
    four = [Plot(p.region, np.repeat(p.image[..., :1], 4, axis=2), None) for p in plots if p.image is not None]
    bare = TilePool(four, classes=2, size=32, bands=4).draw_views(np.random.default_rng(5))
    assert np.array_equal(bare.plain, bare.tile.image), "colours are those of three bands"


@pytest.mark.parametrize(
    ("share", "batch", "progress", "count"),
    [(0.5, 8, 0.0, 0), (0.5, 8, 0.12, 0), (0.5, 8, 0.125, 4), (0.25, 8, 1.0, 2), (0.9, 4, 0.5, 3), (0.0, 8, 1.0, 0)],
)
def test_how_many_items_are_taught(share: float, batch: int, progress: float, count: int) -> None:
    """None before there is a teacher, and never all."""
    assert taught_count(share, batch, progress) == count


def test_batches_hold_taught_items_once_there_is_a_teacher(card: Card, pools: Pools) -> None:
    """The last ones of a batch; what is given keeps its labels."""
    batches: list[Batch] = []
    settings = replace(SETTINGS, mix=Mix(alone=0.5))

    def objective(denoiser: NetworkDenoiser, batch: Batch, *, progress: float, rng: np.random.Generator) -> MixLoss:
        batches.append(batch)
        return plain_loss(denoiser, batch, progress=progress, rng=rng)

    list(train(new_run(card, settings), card, pools, objective=objective))
    assert [batch.target is None for batch in batches] == [True, *[False] * 7]
    assert all(len(batch.kinds) == 4 for batch in batches)
    for batch in batches[1:]:
        assert batch.kinds[2:].tolist() == [Kind.SEGMENT] * 2
        assert batch.target is not None
        given = batch.index[:2] != UNLABELLED
        assert torch.equal(batch.target[:2].argmax(dim=1)[given], batch.index[:2].long()[given])
        assert batch.target[:2].sum(dim=1)[given].eq(1).all()
        assert not batch.target[:2].sum(dim=1)[~given].any()
        sums = batch.target[2:].sum(dim=1)
        assert 0.5 <= float(sums.min()) <= float(sums.max()) <= 1 + 1e-6


@pytest.mark.slow
def test_a_resumed_run_with_a_teacher_ends_with_the_very_same_weights(card: Card, pools: Pools, tmp_path: Path) -> None:
    whole, broken = (new_run(card, SETTINGS) for _ in range(2))
    list(steps_of(whole, card, pools))
    list(itertools.islice(steps_of(broken, card, pools), 4))
    broken.save(tmp_path / "state.run")
    resumed = new_run(card, SETTINGS, seed=7)
    resumed.restore(tmp_path / "state.run")
    list(steps_of(resumed, card, pools))
    expected, found = weights(whole), weights(resumed)
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def test_batches_are_joined_with_what_their_labels_are_worth() -> None:
    def batch(values: list[int], target: torch.Tensor | None) -> Batch:
        index = torch.tensor(values, dtype=torch.uint8).reshape(len(values), 1, 1)
        kinds = np.full(len(values), Kind.PAIR, np.int64)
        return Batch(index[:, None].float(), index, kinds, index[:, None] < 9, target)

    certain, soft = batch([1, UNLABELLED], None), batch([0], torch.tensor([0.6, 0.2]).reshape(1, 2, 1, 1))
    assert certain.joined(certain).target is None
    for first, second, expected in (
        (certain, soft, [[0, 1], [0, 0], [0.6, 0.2]]),
        (soft, certain, [[0.6, 0.2], [0, 1], [0, 0]]),
    ):
        both = first.joined(second)
        assert both.target is not None
        torch.testing.assert_close(both.target[:, :, 0, 0], torch.tensor(expected))
        assert both.image.flatten().tolist() == both.index.flatten().tolist()
        assert len(both.kinds) == len(both.seen) == 3


def test_without_imagery_there_is_nothing_to_teach(card: Card, pools: Pools) -> None:
    """It is said, instead of training on smaller batches."""
    settings = replace(SETTINGS, steps=2)
    run = new_run(card, settings)
    with pytest.raises(DatasetError, match="imagery without labels for a mean teacher, found none"):
        list(steps_of(run, card, replace(pools, bare=None)))
    assert run.done == 1, "the first step has no teacher yet"


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(SettingError, match="mean teacher from 0 to below 1"):
        Settings(mean_teacher=share)


@pytest.mark.parametrize(("share", "batch"), [(0.05, 8), (0.5, 1), (0.97, 8)])
def test_a_share_that_leaves_one_side_without_a_tile_is_refused(share: float, batch: int) -> None:
    with pytest.raises(SettingError, match="wanted a share for the mean teacher"):
        Settings(mean_teacher=share, batch=batch)
