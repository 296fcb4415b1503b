"""What a person at a terminal sees: results, progress bars, and an error as one line.

    run         a typer app as a program: exit codes, no tracebacks
    follow      a training under its progress bar
    counted     a bar over things that are counted
    megapixels  a bar over the rows of a raster
    stages      a bar over work of several kinds

Exit codes: 0 done, 1 something was found wrong (`data verify`), 2 bad input, 130 interrupted. Results go to stdout,
progress and errors to stderr; progress is quiet when stderr is not a terminal.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segprior.errors import SegpriorError

# paths and class names are shown as they are: no [markup], no :emoji:
stdout = Console(markup=False, emoji=False)
stderr = Console(markup=False, emoji=False, stderr=True)


def say(text: str) -> None:
    """Print a line of the result: not wrapped, not coloured."""
    stdout.print(text, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a remark to stderr: not wrapped, not coloured."""
    stderr.print(text, highlight=False, soft_wrap=True)


def run(app: typer.Typer, arguments: Sequence[str] | None = None, *, name: str) -> NoReturn:
    """Run the program `name` and exit: an error is one line on stderr and code 2."""
    try:
        code = app(args=arguments, prog_name=name, standalone_mode=False)
    except SegpriorError as error:
        _fail(name, str(error))
    except typer.exceptions.TyperException as error:  # wrong arguments
        if error.format_message():
            _fail(name, f"{error.format_message()} (try '{name} --help')")
        sys.exit(2)  # no arguments at all: the help has been shown
    except OSError as error:  # what the disk or the system refuses
        _fail(name, f"{error.strerror or error}{'' if error.filename is None else f': {error.filename}'}")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:  # typer makes this of Ctrl-C
        _fail(name, "interrupted; no half-written file is left, and the same command goes on where it can", code=130)
    sys.exit(code if isinstance(code, int) else 0)


def run_script(main: Callable[..., None]) -> NoReturn:
    """Run the one command of a script, as `run`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app, name=sys.argv[0])


def _fail(name: str, message: str, *, code: int = 2) -> NoReturn:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201  # the one place that prints errors
    sys.exit(code)


def follow(steps: Iterator[Any], total: int) -> None:
    """Run a training to its end under a progress bar with rate, loss and time left; a line for every validation."""
    with _bar("training", "steps", note="{task.fields[note]}") as bar:
        task = bar.add_task("training", total=total, note="")
        mean = first = None
        for step in steps:
            mean = step.one_step if mean is None else 0.98 * mean + 0.02 * step.one_step
            first = (step.number, step.seconds) if first is None else first
            passed = step.seconds - first[1]
            rate = f"{(step.number - first[0]) / passed:.2f}" if passed > 0 else "-"
            bar.update(task, completed=step.number, note=f"{rate} steps/s, loss {mean:.3f}")
            if step.validation is not None:
                one, few = step.validation.one_step, step.validation.few_step
                line = f"step {step.number}: loss {mean:.3f}, validation mIoU {one:.4f} (one step), {few:.4f} (few)"
                stderr.print(line, highlight=False)


@contextmanager
def counted(label: str, unit: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over `total` things; gives what is called when one is done."""
    with _bar(label, unit) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def stages() -> Iterator[Callable[[str, float, float], None]]:
    """A bar for work in stages; gives what takes what is being done, how much of it is, and of how much."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.1f}, {task.fields[rate]}/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not sys.stderr.isatty(),
    )
    with bar:

        def advance(what: str, done: float, of: float) -> None:
            if not bar.tasks or bar.tasks[0].description != what:
                for old in bar.task_ids:
                    bar.remove_task(old)
                bar.add_task(what, total=of, rate="-")
            task = bar.tasks[0]
            elapsed = task.elapsed or 0.0
            bar.update(task.id, completed=done, total=of, rate=f"{done / elapsed:.2f}" if elapsed > 0 else "-")

        yield advance


@contextmanager
def megapixels(label: str, total: float | None) -> Iterator[Callable[[float, float], None]]:
    """A bar in megapixels with their rate; gives what takes how much is done, of how much."""
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.1f} Mpx, {task.fields[rate]} Mpx/s"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        whole = 1.0 if total is None else total
        task = bar.add_task(label, total=whole, rate="-")

        def advance(done: float, of: float) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            megas = whole * done / of if of else 0.0
            bar.update(task, completed=megas, rate=f"{megas / elapsed:.2f}" if elapsed > 0 else "-")

        yield advance


def _bar(label: str, unit: str, note: str = "") -> Progress:
    return Progress(
        TextColumn(label),
        BarColumn(),
        TextColumn(f"{{task.completed:g}}/{{task.total:g}} {unit}"),
        TextColumn(note),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not sys.stderr.isatty(),
    )
