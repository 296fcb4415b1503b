"""Class probabilities to test with, as label channels of a joint tensor, and what is least on the simplex."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segprior.prior.joint import OneHotLayout

LAYOUT = OneHotLayout(2, 3, 0.3)


def probabilities(seed: int, *shape: int) -> Tensor:
    """Random ones, some of them nearly decided."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1)


def eta(p: Tensor) -> Tensor:
    """A joint tensor with these label probabilities, and some image."""
    return LAYOUT.join(torch.zeros(len(p), 2, *p.shape[2:], dtype=p.dtype), LAYOUT.place(p))


def labels_of(joint: Tensor) -> Tensor:
    """The probabilities of a joint tensor."""
    return LAYOUT.probabilities(LAYOUT.split(joint)[1])


def minimised(p: Tensor, energy: Callable[[Tensor], Tensor]) -> Tensor:
    """The z that makes KL(z || p) + energy(z) least, over the simplex of every pixel: LBFGS on logits."""
    theta = torch.zeros_like(p).requires_grad_(True)
    optimiser = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        z = torch.softmax(theta, dim=1)
        value = (z * torch.log(z / p)).sum() + energy(z)
        value.backward()  # type: ignore[no-untyped-call]  # missing in torch's stubs
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]  # missing in torch's stubs
    return torch.softmax(theta, dim=1).detach()
