import numpy as np
import pytest
import torch
from torch import nn

from segprior.commands.flags import forewarn
from segprior.errors import SettingError
from segprior.precision import guard, precise, remark
from segprior.train import Settings

CPU = torch.device("cpu")


def test_float32_changes_nothing() -> None:
    layer, x = nn.Conv2d(4, 4, 3), torch.ones(1, 4, 8, 8)
    with precise("float32", CPU):
        assert layer(x).dtype == torch.float32


def test_dense_convolutions_are_lowered_and_depthwise_ones_are_not() -> None:
    torch.manual_seed(0)
    dense, depthwise = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
    network = nn.Sequential(dense, depthwise, nn.Conv2d(4, 2, 1))
    x = torch.randn(1, 4, 8, 8)
    wanted = network(x)
    guard(network)
    assert torch.equal(network(x), wanted)
    with precise("bfloat16", CPU):
        first = dense(x)
        assert first.dtype == torch.bfloat16
        assert depthwise(first).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
        found = network(x)
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.float().detach(), wanted.detach(), atol=0.05)
    found.float().sum().backward()  # type: ignore[no-untyped-call]  # missing in torch's stubs
    assert depthwise.weight.grad is not None
    assert depthwise.weight.grad.dtype == torch.float32


def test_a_failed_pass_leaves_autocasting_as_it_was() -> None:
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    guard(depthwise)
    with precise("bfloat16", CPU):
        with pytest.raises(RuntimeError):
            depthwise(torch.ones(1, 3, 8, 8))
        assert torch.is_autocast_enabled("cpu")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingError, match="wanted a precision of float32, bfloat16, got 'half'"):
        Settings(precision="half")


@pytest.mark.parametrize(
    ("precision", "device", "knows", "told"),
    [
        ("bfloat16", "cpu", "AVX2", True),
        ("bfloat16", "cpu", "AVX512", False),
        ("bfloat16", "cuda", "AVX2", False),
        ("float32", "cpu", "AVX2", False),
    ],
)
def test_a_slow_precision_is_told_of(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, knows: str, told: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: knows)
    assert (remark(precision, device) is not None) == told


def test_it_is_told_before_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    forewarn("bfloat16", "cpu")
    assert "bfloat16 is much slower than float32 on this processor" in capsys.readouterr().err
    forewarn("float32", "cpu")
    assert not capsys.readouterr().err
