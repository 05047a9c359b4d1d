"""A run that needs little of a corpus tokenizes little of it: documents drawn from all over, the same every time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from program import Llara, write_jsonl
from tiny import TEXTS, make_tokenizer

from llara_cli.core.errors import UserError
from llara_cli.core.reporter import Reporter
from llara_cli.data import hub
from llara_cli.data.pretraining_corpus import RawDocument, read_corpus
from llara_cli.model.recipe import PAPER
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training import sampling
from llara_cli.training.examples import ExampleBuilder, ExampleTable, Item
from llara_cli.training.sampling import Corpus, drawn, survey, units

TINY = TextTokenizer(make_tokenizer())
BUILDER = ExampleBuilder(TINY, PAPER, TINY.prompt_ids(PAPER), 40)


def document(number: int) -> dict[str, str]:
    """Of one to five sentences, with its number in front."""
    return {"text": f"#{number}: " + " ".join(TEXTS[: 1 + number % 5])}


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    """2,000 documents."""
    return write_jsonl(tmp_path / "wiki.jsonl", [document(number) for number in range(2000)])


@pytest.fixture
def small_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus need not have millions of characters for documents to be drawn from it, nor are hundreds drawn."""
    monkeypatch.setattr(sampling, "TOKENIZED_WHOLE", 0)
    monkeypatch.setattr(sampling, "LEAST_UNITS", 1)


def table(corpus: Path | str, folder: Path, needed: int | None, seed: int = 1) -> ExampleTable:
    """What a run learns from."""
    return Corpus(BUILDER, [str(corpus)], Reporter()).table(folder / "cache", "key", needed, seed)


def numbers(found: ExampleTable) -> list[int]:
    """Of the documents whose first passages are there."""
    texts = [TINY.hf.decode(found[row].text) for row in range(len(found))]
    return [int(text[1:].partition(":")[0]) for text in texts if text.startswith("#")]


def rows(found: ExampleTable) -> list[list[int]]:
    """The token ids."""
    return [found[number].text.tolist() for number in range(len(found))]


def test_every_item_is_drawn_as_often_as_any_other() -> None:
    items = [RawDocument(str(number), "here") for number in range(10)]
    draws = [[item.text for item in drawn(items, 3, 10, seed)] for seed in range(3000)]
    assert all(len(set(draw)) == 3 and draw == sorted(draw) for draw in draws)
    counts = Counter(text for draw in draws for text in draw)
    assert len(counts) == 10
    assert all(750 < count < 1050 for count in counts.values())  # 900, give or take six standard deviations


@pytest.mark.usefixtures("small_counts_as_large")
def test_few_steps_take_documents_from_all_over_the_corpus(wiki: Path, tmp_path: Path) -> None:
    every = table(wiki, tmp_path / "whole", None)
    found = table(wiki, tmp_path / "few", 400)
    assert 600 < len(found) < 1000  # twice what is needed, about
    assert len(every) > 10 * len(found)
    taken = numbers(found)
    assert all(sum(start <= number < start + 500 for number in taken) > 5 for start in range(0, 2000, 500))
    kept = {tuple(row) for row in rows(every)}
    assert all(tuple(row) in kept for row in rows(found))


def test_however_few_steps_there_are_many_documents_are_drawn(
    wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "TOKENIZED_WHOLE", 0)
    assert len(set(numbers(table(wiki, tmp_path, 4)))) == sampling.LEAST_UNITS


@pytest.mark.usefixtures("small_counts_as_large")
def test_the_same_documents_are_drawn_every_time(wiki: Path, tmp_path: Path) -> None:
    first = rows(table(wiki, tmp_path / "one", 100))
    table(wiki, tmp_path / "two", None)  # that all is tokenized already changes nothing
    assert rows(table(wiki, tmp_path / "two", 100)) == first
    assert rows(table(wiki, tmp_path / "two", 100, seed=2)) != first
    assert rows(table(wiki, tmp_path / "one", 100)) == first


@pytest.mark.usefixtures("small_counts_as_large")
def test_a_line_that_no_step_needs_is_checked_all_the_same(wiki: Path, tmp_path: Path) -> None:
    with wiki.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"wiki\.jsonl:2001: not JSON"):
        table(wiki, tmp_path, 4)
    assert not list((tmp_path / "cache").iterdir())


def test_a_small_corpus_is_tokenised_whole(wiki: Path, tmp_path: Path) -> None:
    assert rows(table(wiki, tmp_path / "few", 100)) == rows(table(wiki, tmp_path / "all", None))


@pytest.mark.usefixtures("small_counts_as_large")
def test_a_corpus_that_is_little_larger_than_needed_is_tokenised_whole(wiki: Path, tmp_path: Path) -> None:
    every = rows(table(wiki, tmp_path / "all", None))
    assert rows(table(wiki, tmp_path / "most", len(every) // 3)) == every


@pytest.mark.usefixtures("small_counts_as_large")
def test_ready_rows_are_drawn_too(tmp_path: Path) -> None:
    ready = [{"input": f"#{number}: {TEXTS[0]}", "output_summarize": TEXTS[0]} for number in range(1000)]
    found = table(write_jsonl(tmp_path / "ready.jsonl", ready), tmp_path, 50)
    assert len(found) == 100
    assert max(numbers(found)) - min(numbers(found)) > 500


@pytest.mark.usefixtures("small_counts_as_large")
def test_books_are_drawn_in_pieces(tmp_path: Path) -> None:
    for book in range(3):
        lines = (f"#{book * 10_000 + line}: {TEXTS[line % 5]}\n" for line in range(2000))
        (tmp_path / f"{book}.txt").write_text("".join(lines))
    found = table(tmp_path, tmp_path / "ws", 300)
    assert len(found) < 1500
    assert {number // 10_000 for number in numbers(found)} == {0, 1, 2}


@pytest.mark.usefixtures("small_counts_as_large")
def test_where_the_estimate_is_far_too_high_more_is_drawn(
    wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(wiki, tmp_path, 100)  # makes the survey
    (kept,) = (tmp_path / "cache").glob("survey-*.json")
    wrong = json.loads(kept.read_text())
    kept.write_text(json.dumps(wrong | {"passages": 8 * wrong["passages"]}))
    assert len(table(wiki, tmp_path, 100)) >= 100


def test_estimates_of_a_survey(wiki: Path) -> None:
    found = survey(BUILDER, read_corpus([str(wiki)])).estimate
    every = list(BUILDER.of(read_corpus([str(wiki)])))
    assert (found.units, found.exact) == (2000, False)
    assert found.characters == sum(len(document(number)["text"]) for number in range(2000))
    assert found.passages == pytest.approx(len(every), rel=0.05)
    assert found.tokens == pytest.approx(sum(len(example.text) for example in every), rel=0.05)


def test_a_survey_of_a_small_corpus_is_exact() -> None:
    documents = [RawDocument(document(number)["text"], f"a:{number}") for number in range(100)]
    found = survey(BUILDER, documents)
    every = list(BUILDER.of(iter(documents)))
    assert (found.estimate.passages, found.estimate.exact) == (len(every), True)
    assert found.estimate.tokens == sum(len(example.text) for example in every)
    assert len(found.examples) == len(every)


def test_long_documents_come_in_pieces_that_hold_all_of_them() -> None:
    text = "\n".join(f"{number} {TEXTS[number % 5]}" for number in range(2000))
    documents = [RawDocument(text, "a:1"), RawDocument("short", "a:2")]
    found = [unit.text for unit in units(documents, 5000) if isinstance(unit, RawDocument)]
    assert "".join(found[:-1]) == text
    assert max(map(len, found)) <= 5000
    assert found[-1] == "short"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the rows that were fetched of a hub data set of 20,000 rows."""
    seen: list[int] = []

    def stream() -> Iterator[dict[str, str]]:
        for number in range(20_000):
            seen.append(number)
            yield document(number)

    def load_dataset(*_: Any, **__: Any) -> Any:
        return datasets.IterableDataset.from_generator(stream)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "SHUFFLED_TOGETHER", 500)
    return seen


def test_of_a_hub_data_set_no_more_is_fetched_than_is_needed(fetched: list[int], tmp_path: Path) -> None:
    found = table("hf:owner/name", tmp_path / "one", 100)
    assert len(found) == 200
    assert len(fetched) < 2000
    assert numbers(found) != sorted(numbers(found))
    assert rows(table("hf:owner/name", tmp_path / "two", 100)) == rows(found)


def test_the_plan_fetches_no_more_of_it_either(fetched: list[int], tiny_model: Path, llara: Llara) -> None:
    flags = ("--max-length", 60, "--batch-size", 4, "--max-steps", 2, "--dry-run", "--json")
    plan = llara("pretrain", "hf:owner/name", "--model", tiny_model, *flags).json
    assert plan["texts"] == 8
    assert len(fetched) < 2000


def test_an_interrupted_tokenization_leaves_nothing_behind(wiki: Path, tmp_path: Path) -> None:
    def interrupted(corpus: Sequence[str]) -> Iterator[Item]:
        yield from islice(read_corpus(corpus), 700)
        raise KeyboardInterrupt

    path = tmp_path / "cache" / "examples-key.arrow"
    with Reporter().bar("tokenizing", None) as bar, pytest.raises(KeyboardInterrupt):
        BUILDER.build([str(wiki)], path, bar, interrupted)
    assert not list(path.parent.iterdir())
    assert len(table(wiki, tmp_path, None)) > 2000
