"""How exactly training computes: float32, or bfloat16 for convolutions and matrix products.

In bfloat16 weights, their gradients' sums, norms and losses stay float32 (torch's autocast). So do depthwise
convolutions on a CPU, of which bfloat16 backward passes take two to three times as long as float32 ones; dense ones
take half, where the processor has instructions for it (avx512_bf16, amx_bf16), and many times as long where it has not
(7.5 times on a Zen 3, AVX2 alone: `remark`).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16")


def precise(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Compute like that inside; `guard` the networks that are used there first."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def remark(precision: str, device: str) -> str | None:
    """What to tell somebody who chose a precision that is slow on this device; None where there is nothing to tell."""
    emulated = precision == "bfloat16" and device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return "bfloat16 is much slower than float32 on this processor, which does not know it" if emulated else None


def guard(network: nn.Module) -> None:
    """Keep the depthwise convolutions of a network in float32 on a CPU, inside and outside of `precise`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Switch autocasting off for this module's own pass."""
    lowered = inputs[0].device.type == "cpu" and torch.is_autocast_enabled("cpu")
    module._lowered = lowered  # type: ignore[assignment]  # its own mark, for `_leave`; torch types tensors alone
    if not lowered:
        return None
    torch.set_autocast_enabled("cpu", False)
    return tuple(x.float() for x in inputs)


def _leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Switch it on again."""
    del inputs, output
    if module._lowered:
        torch.set_autocast_enabled("cpu", True)
