"""Training end to end on a generated data set: it learns, and a resumed run ends where an unbroken one does."""

import itertools
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import generated
import numpy as np
import pytest
import torch
from generated import SHAPE, card_of, steps_of, weights, write_dataset
from safetensors.torch import save_file

from segprior.augment import Augmentation
from segprior.checkpoint import Card, build_denoiser
from segprior.data import Dataset, Region, load_dataset
from segprior.errors import DatasetError, OutputError, SettingError, TrainingError
from segprior.mix import Kind, Mix
from segprior.plots import read_plots
from segprior.pools import Pools, draw_batch, read_pools
from segprior.prior.denoiser import Prediction
from segprior.prior.joint import Times
from segprior.tiles import pool_of
from segprior.train import Run, Settings, finished, joint_objective, learning_rate, train
from segprior.windows import Window

SETTINGS = Settings(steps=6, batch=5, tile=32, rate=3e-3, warmup=2, average=0.9, validate_every=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(str(write_dataset(tmp_path_factory.mktemp("rectangles"))))


@pytest.fixture(scope="module")
def pools(dataset: Dataset) -> Pools:
    return read_pools(dataset, tile=32)


@pytest.fixture(scope="module")
def card(dataset: Dataset) -> Card:
    return card_of(dataset)


def new_run(card: Card, settings: Settings = SETTINGS, seed: int = 0) -> Run:
    return generated.new_run(card, settings, seed)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [0.0, 0.5])
def test_the_loss_falls(card: Card, pools: Pools, dataset: Dataset, alone: float) -> None:
    settings = replace(SETTINGS, steps=60, warmup=5, mix=Mix(alone=alone))
    run = new_run(card, settings)
    steps = list(
        train(
            run,
            card,
            pools,
            objective=joint_objective(settings),
            validation=read_plots(dataset, "val", "pairs"),
        )
    )
    first, last = (np.mean([s.one_step for s in part]) for part in (steps[:6], steps[-12:]))
    assert last < 0.6 * first
    begun = steps[round(alone * 60) :]
    assert all(s.later > 0 for s in begun)
    assert not any(s.later or s.image for s in steps[: -len(begun)]), "first draws come alone"
    assert np.mean([s.later for s in steps[-12:]]) < 0.6 * (first if alone else np.mean([s.later for s in begun[:6]]))
    assert all(np.isfinite((s.one_step, s.later, s.image)).all() for s in steps)
    end = steps[-1].validation
    assert end is not None
    assert end.one_step > 0.7
    assert end.few_step > 0.7
    assert finished(run, card).card == card
    assert not finished(run, card).denoiser.training


def test_steps_are_numbered_timed_and_validated_when_due(card: Card, pools: Pools, dataset: Dataset) -> None:
    run = new_run(card)
    plots = read_plots(dataset, "val", "pairs")
    steps = list(train(run, card, pools, objective=joint_objective(SETTINGS), validation=plots))
    assert [s.number for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.validation is not None for s in steps] == [False, False, False, True, False, True]
    assert all(b.seconds > a.seconds > 0 for a, b in itertools.pairwise(steps))
    assert list(steps_of(run, card, pools)) == [], "a run that is done does nothing more"


def test_a_resumed_run_ends_with_the_very_same_weights(card: Card, pools: Pools, tmp_path: Path) -> None:
    """The encoder has stochastic depth, so this also asks that torch's own generator is a function of the step."""
    whole = new_run(card)
    for _ in steps_of(whole, card, pools):
        torch.rand(3)  # what the caller draws in between must not matter
    broken = new_run(card)
    for step, _ in enumerate(steps_of(broken, card, pools), 1):
        if step == 3:
            break
    broken.save(tmp_path / "state.run")
    torch.manual_seed(99)
    resumed = new_run(card, seed=7)
    resumed.restore(tmp_path / "state.run")
    assert (resumed.done, resumed.seconds) == (3, broken.seconds)
    assert len(list(steps_of(resumed, card, pools))) == 3
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    different = [k for k in expected if not torch.equal(expected[k], found[k])]
    assert different == []
    assert not all(torch.equal(v, weights(broken)[k]) for k, v in expected.items())
    assert [p.name for p in tmp_path.iterdir()] == ["state.run"]


def test_a_loss_that_is_not_finite_ends_the_run(card: Card, pools: Pools) -> None:
    run = new_run(card)
    with torch.no_grad():
        run.denoiser.network.image.head.bias.fill_(torch.nan)
    with pytest.raises(TrainingError, match="finite loss at step 1"):
        next(steps_of(run, card, pools))


def test_another_seed_trains_otherwise(card: Card, pools: Pools) -> None:
    runs = [new_run(card, replace(SETTINGS, steps=1, seed=seed)) for seed in (0, 0, 1)]
    for run in runs:
        list(steps_of(run, card, pools))
    one, same, other = (weights(run) for run in runs)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_training_leaves_the_callers_generator_alone(card: Card, pools: Pools) -> None:
    run = new_run(card)
    state = torch.get_rng_state()
    next(steps_of(run, card, pools))
    assert torch.equal(torch.get_rng_state(), state)


def refused(run: Run, path: Path, match: str) -> None:
    before = weights(run)
    with pytest.raises(TrainingError, match=match) as caught:
        run.restore(path)
    assert "\n" not in str(caught.value)
    assert "remove it to start anew" in str(caught.value)
    assert run.done == 0
    assert match == "another network" or all(torch.equal(v, before[k]) for k, v in weights(run).items())


def test_restore_refuses_what_is_not_its_own(card: Card, tmp_path: Path) -> None:
    path = tmp_path / "state.run"
    new_run(card).save(path)
    refused(new_run(card, replace(SETTINGS, rate=1e-3)), path, "other settings")
    refused(new_run(card, replace(SETTINGS, mix=Mix(own=0.1))), path, "other settings")
    other = replace(card, network=replace(SHAPE, label_path=(8, 8, 8)))
    refused(new_run(other), path, "another network")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.run")
    refused(new_run(card), tmp_path / "bare.run", "other settings")
    (tmp_path / "text.run").write_text("no state\n" * 9)
    refused(new_run(card), tmp_path / "text.run", "wanted the state")
    refused(new_run(card), tmp_path / "missing.run", "wanted the state")
    refused(new_run(card), tmp_path, "wanted the state")


def test_save_refuses_a_missing_folder(card: Card, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="wanted to write"):
        new_run(card).save(tmp_path / "missing" / "state.run")
    assert not list(tmp_path.iterdir())


def test_the_learning_rate_rises_and_falls() -> None:
    settings = Settings(steps=1000, warmup=100)
    rate = [learning_rate(step, settings) for step in range(1001)]
    np.testing.assert_allclose(rate[:100], np.arange(1, 101) / 100)
    assert rate[99] == rate[100] == 1
    np.testing.assert_allclose(rate[100:], [0.5 * (1 + cos(pi * n / 900)) for n in range(901)], atol=1e-12)
    assert rate[1000] == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, Settings(warmup=0)) == 1
    assert [learning_rate(step, Settings(steps=1000, warmup=0), 500) for step in (0, 499, 500)] == [0, 0, 1]
    short = [learning_rate(step, Settings(steps=100, warmup=200), 50) for step in range(101)]
    assert (short[49], max(short), short[74]) == (0, 1, 1), "half of the steps that are left, so it falls to zero too"
    assert short[100] == pytest.approx(0, abs=1e-12)
    late = [learning_rate(step, settings, 600) for step in range(1001)]
    assert not any(late[:600])
    np.testing.assert_allclose(late[600:700], np.arange(1, 101) / 100)
    np.testing.assert_allclose(late[700:], [0.5 * (1 + cos(pi * n / 300)) for n in range(301)], atol=1e-12)


def test_the_encoder_learns_at_its_own_rate(card: Card, pools: Pools) -> None:
    run = new_run(card)
    list(steps_of(run, card, pools))
    factor = learning_rate(5, SETTINGS)
    rates = [group["lr"] for group in run.optimiser.param_groups]
    assert rates == pytest.approx([0.1 * 3e-3 * factor, 3e-3 * factor, 3e-3 * learning_rate(5, SETTINGS, 3)])
    parameters = [p for group in run.optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in run.denoiser.parameters()}
    assert len(parameters) == len(set(map(id, parameters)))


def test_what_first_draws_do_not_reach_learns_when_they_no_longer_come_alone(card: Card, pools: Pools) -> None:
    run = new_run(card)
    later = [k for k, _ in run.denoiser.named_parameters() if ".path." in k or ".image_head." in k]
    begun = {k: v.clone() for k, v in run.denoiser.state_dict().items()}
    for step in steps_of(run, card, pools):
        now = run.denoiser.state_dict()
        assert all(torch.equal(now[k], begun[k]) for k in later) == (step.number <= 3)
        assert not torch.equal(now["network.image.head.weight"], begun["network.image.head.weight"])


def test_the_average_starts_fast_and_slows_to_its_decay(card: Card, pools: Pools) -> None:
    run = new_run(card, replace(SETTINGS, average=0.2))
    key, expected = "network.path.up_fine.0.body.2.weight", None
    for count, _ in enumerate(steps_of(run, card, pools)):
        now = run.denoiser.state_dict()[key].clone()
        decay = 0.0 if expected is None else min(0.2, (1 + count) / (10 + count))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(run.averaged.state_dict()[key], expected)
    assert not torch.equal(run.averaged.state_dict()[key], run.denoiser.state_dict()[key])


def test_batches_say_what_labels_are_worth(card: Card, pools: Pools, dataset: Dataset) -> None:
    """Each class its probability where labels are inferred, tilted; all or nothing where they are given."""
    level = torch.zeros(2)
    kinds, plots = np.full(4, Kind.PAIR, np.int64), read_plots(dataset, "train", "pairs")
    assert draw_batch(pools, card, kinds, np.random.default_rng(0), log_tilt=level).target is None
    shape, index = plots[0].shape, plots[1].index
    assert index is not None
    inferred = replace(plots[0], belief=np.broadcast_to(np.uint8([190, 64]), (*shape, 2)).copy())
    given = replace(plots[1], index=np.where(np.arange(shape[1]) < 20, np.uint8(255), index))
    pool = pool_of([given, inferred], classes=2, size=32, bands=3)
    batch = draw_batch(Pools(pool, pool, pool), card, kinds, np.random.default_rng(4), log_tilt=level)
    assert batch.target is not None
    one_hot = (batch.index.long()[:, None] == torch.arange(2)[:, None, None]).float()
    probable = torch.tensor([190.0, 64.0])[:, None, None].expand(2, 32, 32) / 254
    kind = [torch.allclose(target, probable) for target in batch.target]
    assert 0 < sum(kind) < 4
    for item, soft in enumerate(kind):
        torch.testing.assert_close(batch.target[item], probable if soft else one_hot[item])
    tilt = torch.tensor([-0.2, 0.9])
    tilted = draw_batch(Pools(pool, pool, pool), card, kinds, np.random.default_rng(4), log_tilt=tilt).target
    assert tilted is not None
    for item, soft in enumerate(kind):
        wanted = torch.softmax(probable.log() + tilt[:, None, None], dim=0) if soft else one_hot[item]
        torch.testing.assert_close(tilted[item], wanted)


def test_inferred_labels_cost_least_at_their_own_probabilities(card: Card, dataset: Dataset) -> None:
    """However much oftener a class is drawn than it occurs: the tilt is in the targets as it is in the loss."""
    plot = read_plots(dataset, "train", "pairs")[0]
    belief = np.random.default_rng(0).integers(1, 254, (*plot.shape, 1), dtype=np.uint8)
    inferred = replace(plot, belief=np.concatenate([belief, 254 - belief], axis=2))
    pool = pool_of([inferred], classes=2, size=32, bands=3)
    tilt = torch.tensor([-0.3, 1.1])
    kinds = np.full(4, Kind.PAIR, np.int64)
    own, batch = (
        draw_batch(Pools(pool, pool, pool), card, kinds, np.random.default_rng(1), log_tilt=c)
        for c in (torch.zeros(2), tilt)
    )
    assert own.target is not None
    logits = own.target.log().requires_grad_()
    denoiser = build_denoiser(card)
    denoiser.log_tilt.copy_(tilt)
    t_image = torch.zeros(4, 1, 32, 32)
    times = Times(t_image, torch.ones_like(t_image))
    denoiser.loss(Prediction(logits, batch.image), batch.image, batch.index, times, batch.target).labels.backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6 / 32**2


def test_batches_hold_items_of_their_kinds(card: Card, pools: Pools) -> None:
    kinds = np.array([Kind.PAIR, Kind.IMAGE, Kind.LABEL], np.int64)
    batch = draw_batch(pools, card, kinds, np.random.default_rng(0), log_tilt=torch.zeros(2))
    assert batch.image.shape == (3, 3, 32, 32)
    assert batch.index.shape == (3, 32, 32)
    assert batch.image.dtype == torch.float32
    assert abs(float(batch.image.mean())) < 2
    assert list(batch.kinds) == list(kinds)


def test_cut_mix_leaves_whole_what_teaches_to_draw(card: Card, dataset: Dataset) -> None:
    """Pairs and segments hold a piece of another tile, noisy images and what stands without its partner do not."""
    plot, rng = read_plots(dataset, "train", "pairs")[0], np.random.default_rng(0)
    flat = [replace(plot, index=np.full(plot.shape, value, np.uint8)) for value in (0, 1)]
    pool = pool_of(flat, classes=2, size=32, bands=3, augmentation=Augmentation(cut_mix=1.0))
    kinds = np.repeat([Kind.PAIR, Kind.SEGMENT, Kind.JOINT, Kind.IMAGE, Kind.LABEL], 12)
    index = draw_batch(Pools(pool, pool, pool), card, kinds, rng, log_tilt=torch.zeros(2)).index.flatten(1).float()
    seamed = (index.std(dim=1) > 0).reshape(5, 12).sum(dim=1).tolist()
    assert min(seamed[:2]) >= 2, "half of the pieces are of the other plot"
    assert seamed[2:] == [0, 0, 0]


def test_noise_stays_out_of_what_teaches_to_draw(card: Card, dataset: Dataset) -> None:
    """Pairs and segments have it, images that the prior is to draw again do not."""
    plot, rng = read_plots(dataset, "train", "pairs")[0], np.random.default_rng(0)
    flat = [replace(plot, image=np.full((*plot.shape, 3), 90, np.uint8))]
    pool = pool_of(flat, classes=2, size=32, bands=3, augmentation=Augmentation(colour=0.0, noise=1.0))
    kinds = np.repeat([Kind.PAIR, Kind.SEGMENT, Kind.JOINT, Kind.IMAGE], 6)
    found = draw_batch(Pools(pool, pool, pool), card, kinds, rng, log_tilt=torch.zeros(2))
    spread = found.image.flatten(2).std(dim=2).mean(dim=1)
    assert float(spread[:12].min()) > 0
    assert float(spread[12:].max()) == pytest.approx(0, abs=1e-5)


def test_few_labels_are_learned_with_what_is_around_them(dataset: Dataset) -> None:
    """Images are drawn from all of the imagery, once; labels from the labelled windows."""
    scene = dataset.select("train", "pairs")[0].scene
    regions = (Region(scene, "train", "images"), Region(scene, "train", "pairs", Window(8, 8, 40, 48)))
    few = read_pools(replace(dataset, regions=regions), tile=32)
    (pair,), (image,), (labels,) = few.pairs.plots, few.images.plots, few.labels.plots
    assert pair.parts == labels.parts == (Window(8, 8, 40, 48),)
    assert pair.shape == image.shape == (96, 96)
    assert image.index is None
    rng = np.random.default_rng(0)
    share = [np.mean([(pool.draw(rng).index < 255).mean() for _ in range(200)]) for pool in (few.pairs, few.images)]
    assert share[0] > 0.6
    assert share[1] == 0


def test_a_data_set_without_pairs_cannot_be_trained_on(dataset: Dataset) -> None:
    images = replace(dataset, regions=tuple(replace(r, use="images") for r in dataset.regions))
    with pytest.raises(DatasetError, match="at least one region"):
        read_pools(images, tile=32)


@pytest.mark.parametrize("wrong", [{"tile": 33}, {"tile": 0}, {"steps": 0}, {"batch": 0}, {"validate_every": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="multiple of 32"):
        Settings(**wrong)  # type: ignore[arg-type]  # passed on as it comes
