"""Data sets of the Hugging Face hub, streamed: nothing is downloaded beyond the rows that are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.data.records import Record
from llara_cli.data.text_files import one_line

PREFIX = "hf:"
SHUFFLED_TOGETHER = 10_000
"""Rows in the shuffle buffer of a stream."""


def read_hub(argument: str, seed: int | None = None) -> Iterator[Record]:
    """The rows of ``hf:NAME[/CONFIG]``, split ``train``.

    With a ``seed`` they are shuffled as well as a stream allows: the files (shards) are shuffled, and each row is drawn
    from the next ``SHUFFLED_TOGETHER``.

    A NAME has an owner (``wikimedia/wikipedia``) or, in the oldest data sets, none: two parts are read as an owner
    and a name, or if the hub has no such data set, as a name and its configuration (``hf:wikitext/wikitext-2-raw-v1``).
    """
    opened = _open(argument)
    rows = iter(opened if seed is None else opened.shuffle(seed=seed, buffer_size=SHUFFLED_TOGETHER))
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            # The user's input was right up to here: any error is one of the network.
            raise LlaraError(f"{argument}: row {number + 1} could not be fetched: {one_line(error)}") from error
        if row is None:
            return
        number += 1
        yield Record(f"{argument}: row {number}", dict(row))


def _open(argument: str) -> Any:
    reasons = []
    for name, configuration in _candidates(argument):
        try:
            return _load(argument, name, configuration)
        except FileNotFoundError as error:
            reasons.append(one_line(error))
    raise UserError(f"{argument}: no such data set on the hub: {reasons[0]}")


def _load(argument: str, name: str, configuration: str | None) -> Any:
    """One data set as a stream of rows, an ``IterableDataset``.

    Raises ``FileNotFoundError`` if there is none of that name, ``UserError`` for any other problem.
    """
    from datasets import load_dataset  # takes a second: imported only to read from the hub

    try:
        rows = load_dataset(name, configuration, split="train", streaming=True)
    except FileNotFoundError:
        raise
    except ConnectionError as error:
        raise UserError(f"{argument}: the hub cannot be reached: {one_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{argument}: cannot be opened: {one_line(error)}") from error
    return rows


def _candidates(argument: str) -> list[tuple[str, str | None]]:
    """Possible meanings of an argument, as (name, configuration)."""
    match argument.removeprefix(PREFIX).split("/"):
        case [name] if name:
            return [(name, None)]
        case [first, second] if first and second:
            return [(f"{first}/{second}", None), (first, second)]
        case [owner, name, configuration] if owner and name and configuration:
            return [(f"{owner}/{name}", configuration)]
        case _:
            raise UserError(f"{argument!r} names no data set: write hf:OWNER/NAME or hf:OWNER/NAME/CONFIG")
