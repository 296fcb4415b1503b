"""Teach a prior what is familiar: measure its image losses on the images of its data set, and write them in its file.

    python scripts/familiarise.py segprior/weights/buildings.safetensors fair

`segprior train` does this at its end; the script is for priors that are older. Labels are not read.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from segprior.checkpoint import load_prior, save_prior
from segprior.data import load_dataset
from segprior.errors import DatasetError
from segprior.plots import read_plots
from segprior.terminal import run_script
from segprior.validation import familiarity


def main(
    prior: Annotated[Path, typer.Argument(help="the prior's file, which is written anew")],
    dataset: Annotated[str, typer.Argument(help="fair, dubai, or a dataset.toml")],
) -> None:
    """Measure what is familiar and write it into the card."""
    loaded = load_prior(prior)
    source = load_dataset(dataset)
    found = familiarity(loaded, [*read_plots(source, "train", "pairs"), *read_plots(source, "val", "pairs")])
    if found is None:
        raise DatasetError(f"wanted images of 192 x 192 working pixels in {dataset}, found too few")
    save_prior(replace(loaded, card=replace(loaded.card, familiar=asdict(found))), prior)
    print(f"{prior}: {found.cells} cells, far is a distance of {found.far:.2f}")


if __name__ == "__main__":
    run_script(main)
