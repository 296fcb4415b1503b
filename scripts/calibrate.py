"""Fit a checkpoint's temperature on the validation split of its data set, and write it into its own file.

    python scripts/calibrate.py unet_fair_equal.safetensors fair

`segprior train` does this at its end; the script is for checkpoints that are older.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segprior.checkpoint import load_prior, save_prior
from segprior.data import load_dataset
from segprior.plots import read_plots
from segprior.terminal import run_script
from segprior.validation import temperature


def main(
    prior: Annotated[Path, typer.Argument(help="the checkpoint, which is written anew")],
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write it here instead")] = None,
) -> None:
    """Fit the temperature and write it into the card."""
    loaded = load_prior(prior)
    found = round(temperature(loaded, read_plots(load_dataset(dataset), "val", "pairs")), 4)
    target = prior if output is None else output
    save_prior(replace(loaded, card=replace(loaded.card, temperature=found)), target)
    print(f"{target}: temperature {found:g}")


if __name__ == "__main__":
    run_script(main)
