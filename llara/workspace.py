"""A workspace and its jobs: everything that the command line does, on the same artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llara.arguments import Inputs, checked_name, config_with, inputs_of, known_name, path_of
from llara.artifacts import Embeddings, Index, TrainedModel
from llara.model import Model
from llara_cli.core.config import shown
from llara_cli.core.errors import UserError
from llara_cli.core.reporter import Progress, Reporter
from llara_cli.core.workspace import Workspace as Store
from llara_cli.evaluation.config import CompareConfig, EvaluateConfig
from llara_cli.retrieval.config import EncodeConfig, IndexConfig, MineConfig, SearchConfig
from llara_cli.training.config import FinetuneConfig, PretrainConfig


class Workspace:
    """A directory of artifacts, and the jobs that make them.

    Each job resumes where an earlier run of it stopped, and returns the finished artifact if it exists already.
    Its settings are a config object, fields of it given by name, or both: ``pretrain(corpus, config, max_steps=10)``.
    A job that is given a loaded ``Model`` loads it again: lengths, dtype and encoder are those of the job's settings.

    >>> import llara
    >>> workspace = llara.Workspace("workspace", progress=lambda progress: None)
    >>> base = workspace.pretrain("wiki.jsonl", llara.PretrainConfig(model="tiny-model", max_steps=2, max_length=48))
    >>> tuned = workspace.finetune("train.jsonl", model=base, max_steps=2, negatives=1, backend="full")
    >>> index = workspace.index(workspace.encode("corpus.jsonl", model=tuned))
    >>> len(index.search("why do bees dance", top_k=3))
    3
    >>> result = workspace.evaluate(tuned, "small")
    >>> sorted(result["datasets"]["small"])
    ['MRR@10', 'R@100', 'nDCG@10', 'queries']

    Args:
        path: the directory; created when something is first written.
        progress: called with a ``Progress`` whenever a task moves. Notes go to the logger ``llara``, warnings are
            ``LlaraWarning``.
    """

    def __init__(self, path: str | Path = "workspace", *, progress: Callable[[Progress], None] | None = None) -> None:
        self.path = path_of(path, "path", "a directory").absolute()
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"workspace {self.path} is not a directory")
        self._progress = progress
        self._store = Store(self.path, Reporter(progress))

    def pretrain(
        self,
        corpus: Inputs,
        config: PretrainConfig | None = None,
        *,
        name: str | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> TrainedModel:
        """Adapt a language model to dense retrieval on plain text, with EBAE and EBAR (arXiv 2312.15503, section 3).

        Args:
            corpus: files, folders or ``hf:NAME/CONFIG``.
            config: the settings; ``settings``: fields of it.
            name: of the model. Default: derived from the inputs.
            restart: train anew beside a finished model of that name, and swap when finished.

        Raises:
            UserError: for a mistake in the settings or the data.
            LlaraError: where training fails, as by a loss that is not finite.
        """
        from llara_cli.pipelines.pretrain import pretraining
        from llara_cli.pipelines.select import model_to_pretrain

        config, inputs = config_with(PretrainConfig, config, _named(settings)), inputs_of(corpus, "corpus")
        source = model_to_pretrain(self._store, config.model, config.trust_remote_code)
        job = pretraining(self._store, source, inputs, config, checked_name(name))
        return _trained(job.run(restart=restart))

    def finetune(
        self,
        train: Inputs,
        config: FinetuneConfig | None = None,
        *,
        name: str | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> TrainedModel:
        """Train a retriever on queries with their passages (InfoNCE).

        Args:
            train: files of rows with a query and passages, or BEIR folders; ``FILE:2`` uses it twice per epoch.
            config: the settings; ``settings``: fields of it.
            name: of the model. Default: derived from the inputs.
            restart: train anew beside a finished model of that name, and swap when finished.

        Raises:
            UserError: for a mistake in the settings or the data.
            LlaraError: where training fails, as by a loss that is not finite.
        """
        from llara_cli.pipelines.rounds import finetuning
        from llara_cli.pipelines.select import model_to_finetune

        config, inputs = config_with(FinetuneConfig, config, _named(settings)), inputs_of(train, "train")
        source = model_to_finetune(self._store, config.model, config.trust_remote_code)
        job = finetuning(self._store, source, inputs, config, checked_name(name))
        return _trained(job.run(restart=restart))

    def mine(
        self,
        train: str | Path,
        config: MineConfig | None = None,
        *,
        corpus: str | Path | None = None,
        index: Index | str | None = None,
        output: str | Path | None = None,
        name: str | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> Path:
        """Mine hard negatives for training rows.

        Args:
            train: the rows, or a BEIR folder.
            config: the settings; ``settings``: fields of it.
            corpus: documents to encode and search.
            index: an index to search instead.
            output: where the rows are copied to, in the format of ``train``.
            name: of the artifact. Default: derived from the inputs.
            restart: mine anew beside a finished artifact of that name, and swap when finished.

        Returns:
            The file of training rows with their negatives.

        >>> import llara
        >>> workspace = llara.Workspace("workspace")
        >>> workspace.mine("train.jsonl", corpus="corpus.jsonl", model="tiny-model", per_query=2).name
        'rows.jsonl'
        """
        from llara_cli.pipelines.mine import mining

        config = config_with(MineConfig, config, _named(settings))
        target = None if output is None else path_of(output, "output")
        job = mining(
            self._store,
            path_of(train, "train"),
            config,
            corpus=None if corpus is None else path_of(corpus, "corpus"),
            index=self._own_name(index, Index, "index"),
            output=target,
            name=checked_name(name),
            restart=restart,
        )
        return Path(job.run(output=target, restart=restart)["output"])

    def encode(
        self,
        corpus: str | Path,
        config: EncodeConfig | None = None,
        *,
        name: str | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> Embeddings:
        """Encode a corpus, or queries, into vectors.

        Args:
            corpus: ``corpus.jsonl``, ``queries.jsonl``, tsv, parquet, or a BEIR folder.
            config: the settings; ``settings``: fields of it. ``model``, given by name, may be a ``Model`` or a
                ``TrainedModel``.
            name: of the embeddings. Default: derived from model and collection.
            restart: encode anew beside finished embeddings of that name, and swap when finished.

        Raises:
            UserError: for a mistake in the settings or the collection, before the model is loaded.
        """
        from llara_cli.pipelines.encode import Encoding
        from llara_cli.pipelines.select import chosen_encoder, model_to_use

        config, collection = config_with(EncodeConfig, config, _named(settings)), path_of(corpus, "corpus")
        source = model_to_use(self._store, config.model, config.trust_remote_code)
        config = replace(config, encoder=chosen_encoder(self._store, config.encoder, source))
        job = Encoding(self._store, source, collection, config, checked_name(name) or "")
        result = job.run(restart=restart)
        return Embeddings(self._store.get("embeddings", result["name"]))

    def index(
        self,
        embeddings: Embeddings | str | None = None,
        config: IndexConfig | None = None,
        *,
        name: str | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> Index:
        """Build an index over vectors.

        Args:
            embeddings: of this workspace, or their name. Default: the newest of passages.
            config: the settings; ``settings``: fields of it.
            name: of the index. Default: derived from embeddings and backend.
            restart: build anew beside a finished index of that name, and swap when finished.
        """
        from llara_cli.pipelines.index import indexing
        from llara_cli.pipelines.select import newest_passages

        config = config_with(IndexConfig, config, _named(settings))
        named = self._own_name(embeddings, Embeddings, "embeddings")
        artifact = newest_passages(self._store) if named is None else self._store.get("embeddings", named)
        result = indexing(self._store, artifact, config, checked_name(name)).run(restart=restart)
        return self.load_index(result["name"])

    def evaluate(
        self,
        model: Model | TrainedModel | str | Path,
        benchmark: str | Path,
        config: EvaluateConfig | None = None,
        *,
        download: bool = False,
        restart: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:
        """Evaluate a retriever on a benchmark, or on a data set of your own.

        Args:
            model: the model, or ``bm25``.
            benchmark: ``beir``, ``msmarco``, ``trec-dl``, or a folder in BEIR layout.
            config: the settings; ``settings``: fields of it, as ``datasets=["scifact"]``.
            download: download data sets that are not in ``data_root`` or the workspace.
            restart: evaluate again, even where results exist.

        Returns:
            ``{"benchmark", "model", "datasets": {name: {metric: value, "queries": n}}, "mean": {...}}``, with metrics
            from 0 to 1.
        """
        from llara_cli.pipelines.evaluate import evaluate_benchmark

        config = config_with(EvaluateConfig, config, _named(settings | {"model": model}))
        place = str(path_of(benchmark, "benchmark"))
        result, _ = evaluate_benchmark(self._store, place, config, restart=restart, consent=lambda question: download)
        return result

    def compare(
        self, models: Sequence[Model | TrainedModel | str], config: CompareConfig | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Compare evaluated models with the first of them, query by query, with paired tests and intervals.

        >>> import llara
        >>> workspace = llara.Workspace("workspace")
        >>> for model in ("bm25", "tiny-model"):
        ...     result = workspace.evaluate(model, "small")
        >>> compared = workspace.compare(["bm25", "tiny-model"])
        >>> compared["models"]
        ['bm25', 'tiny-model']
        """
        from llara_cli.pipelines.compare import Comparing

        config = config_with(CompareConfig, config, _named(settings))
        if isinstance(models, str) or not isinstance(models, Sequence):
            raise UserError(f"`models` must be a list of names or models, not {shown(models)}")
        names = [_result_name(model) for model in models]
        return Comparing(self._store, names, config.benchmark, config.metric, config.test).run()

    def load_model(self, name: str | None = None, **options: Any) -> Model:
        """A model of the workspace in memory (default: the newest); ``options``: the others of ``Model.load``.

        Raises ``UserError`` for an unknown model.

        >>> import llara
        >>> workspace = llara.Workspace("workspace")
        >>> trained = workspace.pretrain("wiki.jsonl", model="tiny-model", max_steps=1, max_length=48, name="mine")
        >>> workspace.load_model("mine", query_length=32).name
        'mine'
        """
        from llara_cli.pipelines.select import newest

        if name is None:
            name = newest(self._store, "models", "pretrain or finetune one").name
        found = self._store.get("models", known_name(name))
        return Model.load(found.name, workspace=self.path, **({"progress": self._progress} | options))

    def load_embeddings(self, name: str) -> Embeddings:
        """Embeddings of the workspace. Raises ``UserError`` for an unknown name.

        >>> import llara
        >>> workspace = llara.Workspace("workspace")
        >>> made = workspace.encode("corpus.jsonl", model="tiny-model", name="documents")
        >>> len(workspace.load_embeddings("documents")) == made.count
        True
        """
        return Embeddings(self._store.get("embeddings", known_name(name)))

    def load_index(self, name: str | None = None, config: SearchConfig | None = None, **settings: Any) -> Index:
        """An index of the workspace, to search.

        Args:
            name: of the index. Default: the newest.
            config: how it is searched; ``settings``: fields of it, as ``query_length=64`` or ``device="cuda"``.

        Raises:
            UserError: for an unknown index or setting.

        >>> import llara
        >>> workspace = llara.Workspace("workspace")
        >>> made = workspace.index(workspace.encode("corpus.jsonl", model="tiny-model"), name="documents")
        >>> index = workspace.load_index("documents", query_length=64, top_k=2)
        >>> len(index.search("why do bees dance"))
        2
        """
        from llara_cli.pipelines.select import newest

        config = config_with(SearchConfig, config, _named(settings))
        if name is None:
            artifact = newest(self._store, "indexes", "build an index first")
        else:
            artifact = self._store.get("indexes", known_name(name))
        return Index(self._store, artifact, config)

    def _own_name(self, given: Any, kind: type[Embeddings | Index], argument: str) -> str | None:
        """The name of an artifact that is given as such or by its name.

        Raises ``UserError`` for other types, and for an artifact of another workspace.
        """
        if given is None or isinstance(given, str):
            return given
        if not isinstance(given, kind):
            raise UserError(f"`{argument}` must be {kind.__name__} or a name, not {shown(given)}")
        root = given.path.parent.parent
        if root.resolve() != self.path.resolve():
            raise UserError(f"`{argument}`: {given.name!r} belongs to the workspace {root}, not to {self.path}")
        return given.name

    def __repr__(self) -> str:
        return f"Workspace({str(self.path)!r})"


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the location of a model in the place of a ``Model`` or ``TrainedModel``."""
    model = settings.get("model")
    if isinstance(model, Model):
        allowed = {"trust_remote_code": True} if model.source.remote_code else {}
        return {**allowed, **settings, "model": model.source.path}
    return {**settings, "model": model.path} if isinstance(model, TrainedModel) else dict(settings)


def _result_name(model: Any) -> str:
    """The name of a model in results, which is that of a run too."""
    if isinstance(model, str):
        return model
    if isinstance(model, Model | TrainedModel):
        return model.name
    raise UserError(f"`models` must be names or models, not {shown(model)}")


def _trained(result: Mapping[str, Any]) -> TrainedModel:
    return TrainedModel(result["name"], Path(result["path"]), result)
