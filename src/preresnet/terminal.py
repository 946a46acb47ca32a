"""How lines, tables and progress reach a terminal: names as they are, whatever brackets or colons they hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


def console(stderr: bool = False, **options: Any) -> Console:
    """A console that takes no part of a text for markup (``[v2]``), an emoji (``:cat:``) or a thing to colour."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


def lines(stderr: bool = False) -> Console:
    """A console for lines, which are cut nowhere."""
    return console(stderr, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table, cutting nothing: a long name goes on in the next line."""
    out = console()
    if not out.is_terminal:  # a pipe has no width
        out = console(width=240)
    for column in table.columns:
        column.overflow = "fold"
    out.print(table)


def progress(first: str, last: str, out: Console) -> Progress:
    """Bars in a terminal, nothing elsewhere.

    Args:
        first: before the bar, with the fields of rich's tasks: ``{task.description}``.
        last: behind it.
        out: where.
    """
    columns = TextColumn(first, markup=False), BarColumn(), TextColumn(last, markup=False)
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, *times, console=out, disable=not out.is_terminal)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for things that are read one after the other; yields what is told how many of how many.

    Args:
        what: they are, in the plural.
    """
    with progress("reading", "{task.completed:,.0f} of {task.total:,.0f} " + what, console(stderr=True)) as bar:
        task = bar.add_task("", total=None, start=False, visible=False)

        def report(done: int, total: int) -> None:
            bar.start_task(task)
            bar.update(task, completed=done, total=total, visible=True)

        yield report
