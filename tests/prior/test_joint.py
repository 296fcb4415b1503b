"""The layout of the joint tensor: round trips, the simplex, times by channel."""

import pytest
import torch

from segprior.errors import SettingError
from segprior.prior.joint import UNLABELLED, FreeLayout, OneHotLayout, Times

LAYOUT = OneHotLayout(bands=3, classes=4, label_scale=0.3)


def random_index(*shape: int) -> torch.Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_encode_is_one_hot_at_plus_and_minus_b() -> None:
    index = random_index(2, 8, 8)
    labels = LAYOUT.encode(index)
    assert labels.shape == (2, 4, 8, 8)
    assert set(labels.unique().tolist()) == set(torch.tensor([-0.3, 0.3]).tolist())
    assert torch.equal(labels.argmax(dim=1), index.long())


def test_probabilities_undo_encode_and_place() -> None:
    index = random_index(2, 8, 8)
    expected = torch.nn.functional.one_hot(index.long(), 4).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(LAYOUT.probabilities(LAYOUT.encode(index)), expected)
    p = torch.softmax(torch.randn(2, 4, 8, 8), dim=1)
    torch.testing.assert_close(LAYOUT.probabilities(LAYOUT.place(p)), p)


def test_a_pixel_without_label_sits_at_the_centre() -> None:
    index = torch.full((1, 2, 2), UNLABELLED, dtype=torch.uint8)
    torch.testing.assert_close(LAYOUT.probabilities(LAYOUT.encode(index)), torch.full((1, 4, 2, 2), 0.25))


def test_labels_from_theta_lie_on_the_simplex() -> None:
    theta = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    p = LAYOUT.probabilities(LAYOUT.labels_from(theta))
    torch.testing.assert_close(p, torch.softmax(theta, dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(2, 8, 8))


def test_theta_from_inverts_labels_from_and_rules_no_class_out() -> None:
    p = torch.softmax(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    again = LAYOUT.labels_from(LAYOUT.theta_from(LAYOUT.place(p)))
    torch.testing.assert_close(again, LAYOUT.place(p))
    corner = LAYOUT.theta_from(LAYOUT.encode(random_index(1, 4, 4)))
    assert torch.isfinite(corner).all()
    torch.testing.assert_close(torch.softmax(corner, dim=1).amin(), torch.tensor(1e-4), rtol=0.01, atol=0)


def test_join_and_split() -> None:
    image, labels = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    x = LAYOUT.join(image, labels)
    assert x.shape == (2, 7, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(LAYOUT.split(x), (image, labels), strict=True))


def test_spread_gives_every_channel_its_time() -> None:
    image, labels = torch.rand(2, 1, 4, 4), torch.full((1, 1, 1, 1), 0.5)
    t = LAYOUT.spread(Times(image, labels))
    assert t.shape == (2, 7, 4, 4)
    assert torch.equal(t[:, :3], image.expand(2, 3, 4, 4))
    assert (t[:, 3:] == 0.5).all()


def test_free_layout_changes_nothing() -> None:
    layout, labels = FreeLayout(bands=1, classes=2), torch.randn(1, 2, 3, 3)
    for function in (layout.labels_from, layout.theta_from, layout.probabilities):
        assert torch.equal(function(labels), labels)


@pytest.mark.parametrize(("bands", "classes", "scale"), [(0, 2, 0.3), (1, 1, 0.3), (1, 2, 0.0), (1, 2, -1.0)])
def test_an_impossible_layout_is_refused(bands: int, classes: int, scale: float) -> None:
    with pytest.raises(SettingError, match="wanted a joint tensor"):
        OneHotLayout(bands, classes, scale)


def test_onto_gives_the_nearest_point_of_the_simplex() -> None:
    """Of the nearest point x of a convex set no corner c lies ahead: (labels - x, c - x) <= 0."""
    labels = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = LAYOUT.onto(labels)
    p = LAYOUT.probabilities(found)
    assert p.min() >= 0
    torch.testing.assert_close(p.sum(dim=1), torch.ones(2, 8, 8, dtype=torch.float64))
    assert (p == 0).any()
    assert ((p > 0).sum(dim=1) > 1).any()
    for corner in LAYOUT.place(torch.eye(4, dtype=torch.float64)):
        assert ((labels - found) * (corner[:, None, None] - found)).sum(dim=1).max() < 1e-12
    torch.testing.assert_close(LAYOUT.onto(found), found)
    free = FreeLayout(3, 4)
    assert torch.equal(free.onto(labels), labels)
