"""The command line: which commands there are.

torch is imported only where it is used, so that help answers at once.
"""

from collections.abc import Sequence
from typing import Annotated

import typer

from segprior import __version__
from segprior.commands import adapting, learning, mapping
from segprior.terminal import run as run_app
from segprior.terminal import say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
data_app = typer.Typer(no_args_is_help=True, help="Data sets and their files.")
app.add_typer(data_app, name="data")

for command in (
    mapping.segment,
    mapping.export,
    learning.evaluate,
    learning.train,
    learning.adopt,
    adapting.adapt,
    adapting.distill,
    learning.sample,
    learning.info,
    learning.hint_table,
    mapping.demo,
):
    app.command()(command)
data_app.command()(learning.verify)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"segprior {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    run_app(app, arguments, name="segprior")


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Land-cover and building masks from aerial GeoTIFFs, with diffusion priors over image and labels."""
