"""Disagreement of particles: its bounds, and that it is the mutual information of a table of counts."""

import pytest
import torch
from sklearn.metrics import mutual_info_score

from segprior.errors import SettingError
from segprior.prior.particles import disagreement


def particles(*rows: list[float]) -> torch.Tensor:
    """One pixel, a particle a row."""
    return torch.tensor(rows)[:, None, :, None, None]


def test_bounds() -> None:
    same = particles([0.2, 0.5, 0.3], [0.2, 0.5, 0.3])
    torch.testing.assert_close(disagreement(same), torch.zeros(1, 1, 1))
    apart = particles([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    torch.testing.assert_close(disagreement(apart), torch.ones(1, 1, 1))
    all_apart = particles([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    assert 0.9 < float(disagreement(all_apart)) < 1.0
    with pytest.raises(SettingError, match="2 particles or more"):
        disagreement(same[:1])


def test_it_is_the_mutual_information_of_class_and_particle() -> None:
    counts = torch.tensor([[7, 2, 1], [1, 6, 3], [4, 4, 2], [0, 1, 9]])
    found = disagreement((counts / 10)[:, None, :, None, None])
    numbers, classes = counts.nonzero(as_tuple=True)
    labels = [(int(n), int(c)) for n, c in zip(numbers, classes, strict=True) for _ in range(int(counts[n, c]))]
    wanted = mutual_info_score([n for n, _ in labels], [c for _, c in labels]) / float(torch.log(torch.tensor(3.0)))
    assert float(found) == pytest.approx(wanted, abs=1e-6)
