"""The eight turns are the symmetries of a square: all different, each undone by its inverse."""

import pytest
import torch

from segprior.prior.symmetry import TURNS, turn, turn_back


@pytest.mark.parametrize("number", range(8))
def test_each_is_undone(number: int) -> None:
    x = torch.rand(2, 3, 5, 7)
    there = turn(x, number)
    assert sorted(there.shape[2:]) == [5, 7]
    assert torch.equal(turn_back(there, number), x)
    assert torch.equal(turn(x, 0), x)


def test_they_differ_and_are_closed() -> None:
    square = torch.arange(9).reshape(3, 3)
    shapes = {tuple(turn(square, number).flatten().tolist()) for number in range(8)}
    assert len(shapes) == len(TURNS) == 8
    twice = {tuple(turn(turn(square, a), b).flatten().tolist()) for a in range(8) for b in range(8)}
    assert twice == shapes
