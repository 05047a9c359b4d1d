"""Output of the command line: one result on stdout, progress and notes on stderr, errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from llara_cli.core.reporter import Bar, Reporter

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import Task, TaskID


def _can_hold(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has every character of the text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


class RichBar(Bar):
    """A progress bar on the screen."""

    def __init__(self, progress: RichProgress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def show(self, text: str) -> None:
        self._progress.update(self._task, detail=text)

    def finish(self) -> None:
        """Complete the bar, or remove it if nothing was done."""
        (task,) = (task for task in self._progress.tasks if task.id == self._task)
        seconds = task.elapsed
        self._progress.update(self._task, total=task.completed, visible=task.completed > 0)
        task.finished_speed = task.completed / seconds if seconds else None  # another total makes rich forget it


class Console(Reporter):
    """Prints a command's result, notes, warnings and progress.

    ``as_json``: exactly one JSON object on stdout; ``muted``: nothing anywhere; ``taken``: stdout is the user's
    ``--output``, so no result is printed there. ``translate`` is applied to notes and warnings.
    """

    def __init__(
        self,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        muted: bool = False,
        translate: Callable[[str], str] = str,
    ) -> None:
        super().__init__()
        self._translate = translate
        self.as_json, self.verbose, self.muted = as_json, verbose, muted
        self.quiet = quiet or muted
        self.taken = False

    def result(self, payload: Mapping[str, Any], render: Callable[[], RenderableType]) -> None:
        """Print the command's result: ``payload`` under ``--json``, else what ``render`` draws."""
        if self.muted or self.taken:
            return
        if self.as_json:
            import json  # imported late: --help does not need it

            text = json.dumps(payload, ensure_ascii=False)
            sys.stdout.write((text if _can_hold(sys.stdout, text) else json.dumps(payload)) + "\n")
        else:
            self.rich(stderr=False).print(render())
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Print the command's result unchanged, for formats that another program reads."""
        if not self.muted:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")
            sys.stdout.flush()

    def note(self, message: str) -> None:
        """Print a line on stderr, unless ``--quiet``."""
        if not self.quiet:
            self._print(self._translate(message), style="dim")

    def warn(self, message: str) -> None:
        """Print a warning on stderr."""
        if self.muted:
            return
        self._print(f"warning: {self._translate(message)}", style="yellow")

    def detail(self, message: str) -> None:
        """Print a line on stderr under ``--verbose`` only."""
        if self.verbose:
            self.note(message)

    @contextmanager
    def status(self, doing: str) -> Iterator[None]:
        """Show a line with the elapsed time on stderr while something of unknown length runs.

        Shown on a terminal only, and removed at the end. Nothing else may be shown meanwhile.
        """
        from rich.console import Console as RichConsole
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        # the file itself, as sys.stderr may be replaced meanwhile to silence a library
        console = RichConsole(file=sys.stderr)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        silent = self.quiet or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=silent) as progress:
            progress.add_task(doing, total=None)
            yield

    @contextmanager
    def bar(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Bar]:
        """A progress bar on stderr with rate and time left; ``total`` None: unknown; no ``unit``: ``show`` gives rates.

        At the end, a bar of unknown total shows what was done, and one that did nothing is removed. The text of
        ``show`` fills the rest of 80 columns.
        """
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            """Units per second."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.1f} {unit}/s" if speed else "", style="dim")

        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24 if unit else 8),
            MofNCompleteColumn(),
            *([Rate()] if unit else []),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
        ]
        with Progress(*columns, console=self.rich(stderr=True), disable=self.quiet) as progress:
            bar = RichBar(progress, progress.add_task(label, total=total, detail=""))
            yield bar
            if total is None:
                bar.finish()

    def _print(self, line: str, *, style: str) -> None:
        self.rich(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def rich(*, stderr: bool) -> Any:
        """A rich console for standard output or standard error."""
        from rich.console import Console as RichConsole

        return RichConsole(stderr=stderr)
