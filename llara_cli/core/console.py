"""What the user sees: one result on stdout, progress and notes on stderr, errors as one line."""

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
    """Whether the stream's encoding has every letter of the text."""
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
        """A bar that did nothing goes away."""
        (task,) = (task for task in self._progress.tasks if task.id == self._task)
        seconds = task.elapsed
        self._progress.update(self._task, total=task.completed, visible=task.completed > 0)
        task.finished_speed = task.completed / seconds if seconds else None  # another total makes rich forget it


class Console(Reporter):
    """Where a command prints.

    ``as_json``: exactly one JSON object on stdout; ``muted``: nothing anywhere; ``taken``: stdout is the user's
    ``--output``, so no result is printed there. Notes and warnings go through ``translate`` before they are shown.
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
            import json  # milliseconds that --help need not pay

            text = json.dumps(payload, ensure_ascii=False)
            sys.stdout.write((text if _can_hold(sys.stdout, text) else json.dumps(payload)) + "\n")
        else:
            self.rich(stderr=False).print(render())
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Print the command's result as it is: a format that another program reads."""
        if not self.muted:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")
            sys.stdout.flush()

    def note(self, message: str) -> None:
        """A line of log on stderr; silent under ``--quiet``."""
        if not self.quiet:
            self._print(self._translate(message), style="dim")

    def warn(self, message: str) -> None:
        """A warning on stderr: the work goes on, but the user should know."""
        if self.muted:
            return
        self._print(f"warning: {self._translate(message)}", style="yellow")

    def detail(self, message: str) -> None:
        """A line that only ``--verbose`` shows."""
        if self.verbose:
            self.note(message)

    @contextmanager
    def status(self, doing: str) -> Iterator[None]:
        """A line on stderr with the time gone, while something takes a while and cannot tell how far it is.

        Only a terminal shows it, and it goes away at the end. Nothing else may be shown meanwhile.
        """
        from rich.console import Console as RichConsole
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        # the file itself, whatever takes the place of sys.stderr meanwhile to silence a library
        console = RichConsole(file=sys.stderr)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        silent = self.quiet or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=silent) as progress:
            progress.add_task(doing, total=None)
            yield

    @contextmanager
    def bar(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Bar]:
        """A progress bar on stderr with rate and time left; ``total`` None: unknown; no ``unit``: ``show`` tells rates.

        A bar of unknown total ends with what was done, and one that did nothing does not stay on the screen.
        What ``show`` says gets the room of 80 columns that a shorter bar leaves.
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
        """The screen: a console of rich over standard output or standard error."""
        from rich.console import Console as RichConsole

        return RichConsole(stderr=stderr)
