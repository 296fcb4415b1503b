"""`python -m segprior` is the command `segprior`."""

from segprior.cli import main

main()
