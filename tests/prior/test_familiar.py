"""Familiarity, against the errors written out and the law of Mahalanobis distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from segprior.checkpoint import Prior, load_prior
from segprior.errors import SettingError
from segprior.prior.familiar import (
    CELL,
    CHANCE,
    SHARE,
    TIMES,
    Familiarity,
    image_losses,
    spread_over,
    told_by,
    unfamiliar,
)
from segprior.prior.joint import Times


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    from tiny import tiny_prior

    path: Path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    return load_prior(tiny_prior(path))


def test_losses_are_the_errors_of_the_denoised_image(prior: Prior) -> None:
    """Cell by cell, written out; cells without enough data are not told."""
    y, valid = normal(0, 1, 3, 128, 224), torch.ones(1, 1, 128, 224, dtype=torch.bool)
    valid[..., :20, :50] = False
    y[:, :, :20, :50] = torch.nan
    cell = normal(0, 1, 3, CELL, CELL)  # the noise of every cell
    eps = torch.cat([torch.cat([cell, cell], dim=3)[..., :224], normal(7, 1, 3, 128, 224)], dim=1)
    found = image_losses(prior.denoiser, y, valid)
    assert found.shape == (1, told_by(3), 1, 2)
    assert told_by(1) == len(TIMES)
    t = torch.where(valid, TIMES[-1], 1.0)
    clean = torch.where(valid, y, 0.0)
    x_t = torch.cat([prior.denoiser.schedule.add_noise(clean, eps[:, :3], t), eps[:, 3:]], dim=1)
    with torch.no_grad():
        image = prior.denoiser.predict(x_t, Times(t, torch.ones_like(t))).image
    variance = float(prior.denoiser.schedule.sigma(torch.tensor(TIMES[-1]))) ** 2
    by_band = (image - clean)[0] ** 2 / variance
    errors = by_band.mean(dim=0)
    expected = [errors[:, :128][valid[0, 0, :, :128]].mean().log(), errors[:, 128:].mean().log()]
    torch.testing.assert_close(found[0, len(TIMES) - 1, 0], torch.stack(expected), atol=1e-4, rtol=1e-4)
    # and by how much the bands lie apart
    logs = by_band[:, :, 128:].mean(dim=(1, 2)).log()
    torch.testing.assert_close(found[0, len(TIMES) :, 0, 1], (logs - logs.mean())[:2], atol=1e-4, rtol=1e-4)
    valid[..., :, :100] = False
    assert torch.isnan(image_losses(prior.denoiser, y, valid)[0, :, 0, 0]).all()


def test_held_out_cells_are_near_and_others_far() -> None:
    """Of new draws of the same law about a fiftieth is far; flat errors are as strange as large ones."""
    draws = normal(0, 6000, 3).double() * torch.tensor([1.0, 3.0, 0.2])
    found = Familiarity.of(draws[:3000])
    new = found.distance(draws[3000:].T[None, :, :, None])
    assert 0.01 < float((new > 1).double().mean()) < 0.03
    squares = (new.flatten().numpy() * found.far) ** 2
    assert np.median(squares) == pytest.approx(stats.chi2(3).median(), rel=0.1)
    for off in (-20.0, 20.0):
        assert float(found.distance((draws[:1] + off).T[None, :, :, None])) > 1


def test_few_cells_are_not_trusted_to_be_typical() -> None:
    """A fiftieth of new cells or less is far, on average over what was learned from, however few those were."""
    shares = []
    for seed in range(300):
        draws = normal(seed, 112, 2)
        found = Familiarity.of(draws[:12])
        shares.append(float((found.distance(draws[12:].T[None, :, :, None]) > 1).float().mean()))
    assert 0.004 < float(np.mean(shares)) < 0.025
    many, twice = Familiarity.of(normal(0, 1000, 2)), Familiarity.of(normal(0, 1000, 2), overlap=50)
    assert many.far == pytest.approx(stats.chi2(2).ppf(SHARE) ** 0.5, rel=0.04)
    assert (twice.cells, twice.mean) == (20, many.mean)
    assert twice.far > many.far
    with pytest.raises(SettingError, match="wanted 7 cells"):
        Familiarity.of(torch.full((20, 2), torch.nan))
    with pytest.raises(SettingError, match="wanted a mean"):
        Familiarity((0.0, 0.0), ((1.0,),), 1.0, 9)


def test_far_is_beyond_the_cells_themselves() -> None:
    """With long tails, the distance that SHARE of the cells stay below, each measured by the others."""
    cells = torch.from_numpy(stats.t(2).rvs((60, 3), random_state=0))
    squares = []
    for number, cell in enumerate(cells):
        others = cells[torch.arange(60) != number]
        off = cell - others.mean(dim=0)
        squares.append(float(off @ torch.linalg.inv(torch.cov(others.T)) @ off))
    found = Familiarity.of(cells)
    assert found.far == pytest.approx(np.quantile(squares, SHARE) ** 0.5, rel=1e-3)
    law = 3 * 61 * 59 / (60 * 57) * stats.f(3, 57).ppf(SHARE)
    assert found.far > 1.2 * law**0.5


def test_pixels_have_the_value_of_their_cell() -> None:
    cells = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    spread = spread_over(cells, 160, 200)
    assert spread.shape == (1, 160, 200)
    assert (spread[0, :CELL, :CELL] == 1).all()
    assert (spread[0, CELL:, CELL:] == 4).all()


@pytest.mark.parametrize("cells", [1, 2, 4, 10, 40, 400])
def test_familiar_rasters_are_seldom_called_unfamiliar(cells: int) -> None:
    """Whatever their size; strange ones are always called so."""
    far = np.random.default_rng(cells).binomial(cells, 1 - SHARE, 2000)
    assert np.mean([unfamiliar(count / cells, cells) for count in far]) < CHANCE
    assert unfamiliar(1.0, cells)


def test_a_far_cell_of_a_few_is_chance_and_a_tenth_of_many_is_not() -> None:
    assert not unfamiliar(1 / 4, 4)
    assert unfamiliar(2 / 4, 4)
    assert not unfamiliar(1 / 10, 10)
    assert unfamiliar(10 / 100, 100)
    assert not unfamiliar(0.04, 10_000), "more than chance, but too little to speak of"
