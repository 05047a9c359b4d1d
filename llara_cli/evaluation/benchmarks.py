"""The benchmarks as data: data sets, folders and splits, metrics, downloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llara_cli.core.errors import UserError
from llara_cli.evaluation.metrics import DEFAULT_METRICS


class Place(NamedTuple):
    """A folder in BEIR layout, inside a folder of data sets, and its split to use."""

    folder: str
    split: str


@dataclass(frozen=True, eq=False)
class Collection:
    """A download: a folder of the workspace's ``datasets``.

    Attributes:
        name: name of the folder.
        archive: ir_datasets' key (below ``beir``) of a zip in BEIR layout; "" if the data have to be converted.
        docs: ir_datasets' name of the documents to convert.
        files: ir_datasets' keys, below that name, of the files needed for that.
        splits: split -> ir_datasets' name of its queries and judgments.
        terms: URL of the terms of use.
    """

    name: str
    archive: str = ""
    docs: str = ""
    files: Sequence[str] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    terms: str = ""


@dataclass(frozen=True, eq=False)
class Task:
    """One row of a benchmark.

    Attributes:
        name: its name in ``datasets`` and in results; a forum of CQADupStack is ``cqadupstack/FORUM``.
        places: possible places, the best first.
        collection: what to download; None: there is no public download.
        metrics: its usual metrics, the main one first.
        in_mean: whether it counts towards the benchmark's mean.
        holds_its_queries: whether the corpus contains the queries: then a hit with the query's own id is dropped.
    """

    name: str
    places: Sequence[Place]
    collection: Collection | None
    metrics: tuple[str, ...] = DEFAULT_METRICS
    in_mean: bool = True
    holds_its_queries: bool = False

    @property
    def group(self) -> str:
        """The group that it is a part of; else its own name."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Benchmark:
    """Tasks that are reported together."""

    name: str
    tasks: Sequence[Task]

    def select(self, names: str) -> list[Task]:
        """The tasks of ``all``, or of comma-separated names; a group's name means all its parts.

        Raises ``UserError`` for an unknown name.
        """
        if names == "all":
            return list(self.tasks)
        wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
        known = {name for task in self.tasks for name in (task.name, task.group)}
        if unknown := [name for name in wanted if name not in known]:
            groups = ", ".join(dict.fromkeys(task.group for task in self.tasks))
            raise UserError(f"`datasets={', '.join(unknown)}`: {self.name} has {groups}")
        if not wanted:
            raise UserError("`datasets` is empty")
        return list(dict.fromkeys(task for name in wanted for task in self.tasks if name in (task.name, task.group)))

    def parts(self, group: str) -> list[str]:
        """Names of the tasks that make up a group."""
        return [task.name for task in self.tasks if task.group == group]


PRIVATE = ("bioasq", "signal1m", "trec-news", "robust04")
"""Data sets of BEIR without a public download."""
HOLDING_QUERIES = ("arguana", "quora")
"""Data sets whose corpus contains the queries: only there a hit with the query's own id is dropped."""
IN_DOMAIN = "msmarco"
"""In addition to BEIR's 18 zero-shot sets: evaluated on its dev split, and not in their mean."""
GROUP = "cqadupstack"
FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip
_ZERO_SHOT = (
    "trec-covid", "nfcorpus", "bioasq", "nq", "hotpotqa", "fiqa", "signal1m", "trec-news", "robust04", "arguana",
    "webis-touche2020", GROUP, "quora", "dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact",
)  # fmt: skip
"""The 18 zero-shot sets of BEIR (Thakur et al. 2021)."""
_KEYS = {"webis-touche2020": "webis-touche2020/v2"}
"""ir_datasets' keys of data sets that it has under another name."""
_TERMS = "https://microsoft.github.io/msmarco/"


def _beir_tasks() -> Iterator[Task]:
    for name in (*_ZERO_SHOT, IN_DOMAIN):
        terms = _TERMS if name == IN_DOMAIN else ""
        offered = None if name in PRIVATE else Collection(name, archive=_KEYS.get(name, name), terms=terms)
        split = "dev" if name == IN_DOMAIN else "test"
        for part in [f"{GROUP}/{forum}" for forum in FORUMS] if name == GROUP else [name]:
            holds = name in HOLDING_QUERIES
            yield Task(part, (Place(part, split),), offered, in_mean=name != IN_DOMAIN, holds_its_queries=holds)


_DL = ("dl19", "dl20")
_TREC_FILES = tuple(f"trec-dl-20{year}/{part}" for year in (19, 20) for part in ("queries", "qrels"))
_PASSAGES = Collection(
    "msmarco-passage",
    docs="msmarco-passage",
    files=("collectionandqueries", *_TREC_FILES),
    splits={
        "dev": "msmarco-passage/dev/small",
        "dl19": "msmarco-passage/trec-dl-2019",
        "dl20": "msmarco-passage/trec-dl-2020",
    },
    terms=_TERMS,
)
_DOCUMENTS = Collection(
    "msmarco-document",
    docs="msmarco-document",
    files=("docs", "dev/queries", "dev/qrels", *_TREC_FILES),
    splits={
        "dev": "msmarco-document/dev",
        "dl19": "msmarco-document/trec-dl-2019",
        "dl20": "msmarco-document/trec-dl-2020",
    },
    terms=_TERMS,
)
_MSMARCO = (
    # BEIR's own copy of MS MARCO has the same passages and the same 6,980 queries of dev
    Task(
        "msmarco-passage",
        (Place("msmarco-passage", "dev"), Place("msmarco", "dev")),
        _PASSAGES,
        ("MRR@10", "R@1000"),
    ),
    Task("msmarco-document", (Place("msmarco-document", "dev"),), _DOCUMENTS, ("MRR@100", "R@100")),
)


def _deep_learning_tasks() -> Iterator[Task]:
    """TREC's rules: for AP and recall a passage is relevant from grade 2, a document from grade 1, in the top 100."""
    for year in _DL:
        # BEIR's copy of MS MARCO has 2019's judgments as its test split
        places = [Place("msmarco-passage", year), Place(f"{year}-passage", "test")]
        places += [Place("msmarco", "test")] if year == "dl19" else []
        yield Task(f"{year}-passage", places, _PASSAGES, ("nDCG@10", "AP(rel=2)", "R(rel=2)@1000"))
        places = [Place("msmarco-document", year), Place(f"{year}-document", "test")]
        yield Task(f"{year}-document", places, _DOCUMENTS, ("nDCG@10", "AP@100", "R@100"))


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("beir", tuple(_beir_tasks())),
        Benchmark("msmarco", _MSMARCO),
        Benchmark("trec-dl", tuple(_deep_learning_tasks())),
    )
}


def own_task(name: str, split: str) -> Task:
    """A task for a folder of the user: BEIR's task of that name if it is one of the 18, else a plain one."""
    return Task(name, (Place(name, split),), None, holds_its_queries=name in HOLDING_QUERIES)
