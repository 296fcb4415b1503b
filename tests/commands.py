"""The command line, called in this process."""

from dataclasses import dataclass

import pytest

from segprior.cli import main

DESCRIPTOR = """
res = 0.5

[[classes]]
name = "ground"
value = 0
color = [1, 2, 3]

[[classes]]
name = "roof"
value = 1
color = [3, 2, 1]

"""
"""The head of a data set's descriptor; scenes follow."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run `segprior ARGUMENTS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return Outcome(end.value.code, printed.out, printed.err)
