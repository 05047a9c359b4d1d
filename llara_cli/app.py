"""The program: verbs, and the boundary where every error becomes one line and an exit code."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from llara_cli import __version__
from llara_cli.commands.session import WORKSPACE_DEFAULT, WORKSPACE_HELP
from llara_cli.core.errors import FULL, LlaraError, Terminated, is_out_of_memory
from llara_cli.core.launcher import is_follower, launched_processes
from llara_cli.core.reporter import LlaraWarning
from llara_cli.core.streams import prepare_streams

SUMMARY = "Turn a language model into a dense retriever."


class Verb(NamedTuple):
    """A line of ``llara --help``; the verb's module is imported when the verb is used."""

    panel: str
    summary: str


VERBS = {
    "pretrain": Verb("Train", "Adapt a language model to dense retrieval on plain text (EBAE + EBAR)."),
    "finetune": Verb("Train", "Train a retriever on queries with their passages (InfoNCE)."),
    "mine": Verb("Train", "Mine hard negatives for training rows."),
    "encode": Verb("Retrieve", "Encode a corpus, or queries, into vectors."),
    "index": Verb("Retrieve", "Build an index over vectors."),
    "search": Verb("Retrieve", "Find the passages that answer a query."),
    "evaluate": Verb("Retrieve", "Evaluate a retriever on a benchmark, or on a data set of your own."),
    "compare": Verb("Retrieve", "Compare evaluated models, query by query."),
    "export": Verb("Retrieve", "Write vectors to a file that other tools read."),
    "status": Verb("Inspect", "List the workspace's artifacts, their sizes, and what they were made from."),
    "clean": Verb("Inspect", "Remove cached data and leftovers of interrupted commands."),
    "doctor": Verb("Inspect", "Show versions, devices and backends, and how to install what is missing."),
    "backends": Verb("Inspect", "List backends, and how to install those that are missing."),
}


def load_verb(name: str) -> TyperCommand:
    """The whole command of a verb, from ``llara_cli.commands``."""
    from llara_cli.commands.command import Command
    from llara_cli.commands.flags import as_command

    alone = typer.Typer(add_completion=False)
    function = as_command(getattr(import_module(f"llara_cli.commands.{name}"), name))
    alone.command(name, cls=Command, help=VERBS[name].summary, context_settings=CONTEXT)(function)
    found: Any = typer.main.get_command(alone)
    command: TyperCommand = found
    return command


class Verbs(TyperGroup):
    """Lists the verbs without importing them, so that ``llara --help`` is fast."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {
            name: TyperCommand(name, help=summary, rich_help_panel=panel) for name, (panel, summary) in VERBS.items()
        }

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does; without arguments the help is shown, with exit code 2."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that is to run."""
        if args and args[0] in VERBS:
            return args[0], load_verb(args[0]), args[1:]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb with all its options for shell completion; else only its name and line of help."""
        completes = ctx.resilient_parsing and cmd_name in VERBS
        return load_verb(cmd_name) if completes else super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the description, the verbs by panel, and the options."""
        from llara_cli.commands.help import write_group_help

        about = inspect.cleandoc(top.__doc__ or "")
        write_group_help(self, ctx, formatter, about, VERBS)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Typer would turn every interrupt into exit code 130, without a word."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort) as error:
            # at a prompt, Click turns the first into the second
            cause = error.__context__ if isinstance(error, typer.Abort) else error
            if not isinstance(cause, KeyboardInterrupt):
                raise
            if cause is not error:
                sys.stderr.write("\n")  # after the question
            raise typer.Exit(interrupted(cause)) from error


CONTEXT = {"help_option_names": ["--help", "-h"]}
app = typer.Typer(name="llara", cls=Verbs, help=SUMMARY, context_settings=CONTEXT)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"llara {__version__}")
        raise typer.Exit


@app.callback()
def top(
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            "-w",
            help=WORKSPACE_HELP,
            show_default=WORKSPACE_DEFAULT,
            metavar="DIR",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a language model into a dense retriever.

    Adapt it on plain text (EBAE + EBAR), fine-tune it on queries, then encode, index, search and evaluate.
    """


def main() -> None:
    """Run the program and exit: 0 done, 1 the work failed, 2 the caller's mistake, 128 + number on a signal."""
    prepare_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the program; its exit code. An error is one ``error: ...`` line, with a traceback under ``-v`` only."""
    # waiting threads that spin are up to five times slower on a machine that runs anything else
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verbose = bool({"-v", "--verbose"} & set(arguments))
    try:
        if not verbose:
            silence_libraries()
        with termination_as_interrupt():
            code = int(app(arguments, prog_name="llara", standalone_mode=False) or 0)
        if code == 0 and launched_processes() > 1:
            _leave_processes()
        return code
    except Exception as error:
        message, code = explain(error)
        if verbose and message:
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.write(f"error: {_on_one_line(message)}\n" if message and not is_follower() else "")
        return code
    except KeyboardInterrupt as error:
        return interrupted(error)


def _leave_processes() -> None:
    if "torch" in sys.modules:  # else nothing was shared
        from llara_cli.core.distributed import leave

        leave()


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Raise ``Terminated``, a ``KeyboardInterrupt``, on SIGTERM (Slurm's preemption) and SIGHUP (a closed terminal).

    Signals that are ignored (``nohup``) or have a handler are left alone. Outside the main thread it does nothing.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


def interrupted(error: KeyboardInterrupt) -> int:
    """Print that the run was interrupted, and how to resume; return the exit code, 128 + the signal's number."""
    if not is_follower():
        sys.stderr.write("; ".join(["interrupted", *getattr(error, "__notes__", ())]) + "\n")
    return 128 + (error.signal if isinstance(error, Terminated) else signal.SIGINT)


def silence_libraries() -> None:
    """Hide other libraries' developer warnings, unless ``-v`` is given."""
    import logging
    import warnings

    for name in ("bitsandbytes", "torchao", "torch.utils._pytree", "huggingface_hub.hf_api", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)

    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=LlaraWarning)
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a Python warning like a warning of the commands."""
    sys.stderr.write(f"warning: {message}\n")


def explain(error: Exception) -> tuple[str, int]:
    """The line and exit code of an exception."""
    if isinstance(error, LlaraError):
        return str(error), error.exit_code
    if isinstance(error, typer.Abort):
        return "aborted", 130
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        message = format_message().rstrip(".")  # empty without arguments: the help was shown
        command = getattr(getattr(error, "ctx", None), "command_path", "llara")
        return f"{message} ({command} --help lists what is available)" if message else "", 2
    if is_out_of_memory(error):
        return "out of memory: lower --micro-batch-tokens, --batch-tokens or the lengths", 1
    if getattr(error, "errno", None) in FULL or "no space left on device" in str(error).lower():
        return _full_disk(error), 1
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return "", 1
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first.strip()} (-v shows where)", 1


def _on_one_line(message: str) -> str:
    """The message with line ends, and other control characters, escaped."""
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in message)


def _full_disk(error: Exception) -> str:
    temporary = os.environ.get("TMPDIR", "/tmp")
    place = getattr(error, "filename", None) or f"of the workspace, or of temporary files, {temporary}"
    if getattr(error, "errno", None) == errno.EFBIG:
        return f"a file grew larger than this system or its limit (ulimit -f) allows ({place})"
    return f"no space left on the disk ({place}): free some, and run the same command again"
