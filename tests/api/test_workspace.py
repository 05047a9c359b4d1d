"""A workspace takes its own artifacts and its jobs' settings only, and what it opens stays open."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import beir

from llara import (
    Embeddings,
    EvaluateConfig,
    FinetuneConfig,
    Index,
    LlaraWarning,
    Model,
    SearchConfig,
    UserError,
    Workspace,
    evaluate,
)
from llara_cli.core import registry

__all__ = ["beir"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Workspace, Embeddings, Index]:
    """A workspace with embeddings and an HNSW index over them."""
    folder = tmp_path_factory.mktemp("made")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(f'{{"_id": "d{n}", "text": "bees dance {n} times"}}\n' for n in range(40)))
    workspace = Workspace(folder / "ws")
    embeddings = workspace.encode(corpus, model=tiny_model)
    return workspace, embeddings, workspace.index(embeddings, backend="hnsw", name="graph")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of what was loaded since: ``encoder`` for a model, ``index``."""
    seen: list[str] = []
    for kind, name in (("encoder", "torch"), ("index", "hnsw")):
        backend: Any = registry.load(kind, name)
        whole = backend.load

        def load(first: Any, *others: Any, whole: Callable[..., Any] = whole, kind: str = kind) -> Any:
            seen.append(kind)
            return whole(first, *others)

        monkeypatch.setattr(backend, "load", load)
    return seen


def test_artifacts_of_another_workspace_are_refused(
    made: tuple[Workspace, Embeddings, Index], beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    _, embeddings, index = made
    other = Workspace(tmp_path / "other")
    own = other.encode(beir, model=tiny_model, name=embeddings.name)  # one of the same name
    assert own.count != embeddings.count
    with pytest.raises(UserError, match=f"`embeddings`: '{embeddings.name}' belongs to the workspace .*, not to"):
        other.index(embeddings)
    with pytest.raises(UserError, match="`index`: 'graph' belongs to the workspace"):
        other.mine(beir, index=index)
    assert other.index(own).count == own.count


def test_arguments_of_another_type_are_refused(made: tuple[Workspace, Embeddings, Index], beir: Path) -> None:
    workspace, embeddings, index = made
    with pytest.raises(UserError, match="`embeddings` must be Embeddings or a name, not Index"):
        workspace.index(index)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`index` must be Index or a name, not Embeddings"):
        workspace.mine(beir, index=embeddings)  # type: ignore[arg-type]
    for job in (workspace.encode, workspace.mine):
        with pytest.raises(UserError, match="must be a file or folder, not None"):
            job(None, model="bm25")  # type: ignore[arg-type, operator]
    with pytest.raises(UserError, match=r"`train` must be files or folders, not \[3\]"):
        workspace.finetune([3])  # type: ignore[list-item]
    with pytest.raises(UserError, match="`corpus` is empty"):
        workspace.pretrain([])
    with pytest.raises(UserError, match="`name` must be a string, not 3"):
        workspace.index(embeddings, name=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`model` must be a string, not 3"):
        workspace.encode(beir, model=3)


def test_models_to_compare_are_a_list(made: tuple[Workspace, Embeddings, Index]) -> None:
    workspace = made[0]
    for models in ("bm25", 3):
        with pytest.raises(UserError, match="`models` must be a list of names or models"):
            workspace.compare(models)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`models` must be names or models, not 3"):
        workspace.compare(["bm25", 3])  # type: ignore[list-item]


@pytest.mark.parametrize("k", [0, 2.5, True])
def test_hits_are_counted_in_whole_numbers(made: tuple[Workspace, Embeddings, Index], k: Any) -> None:
    with pytest.raises(UserError, match="`top_k` must be"):
        made[2].search("bees", top_k=k)


def test_the_home_folder_and_the_working_directory(
    beir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(beir, tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    workspace = Workspace("ws")
    assert Workspace("~/ws").path == workspace.path == tmp_path / "ws"
    monkeypatch.chdir("/")  # a workspace stays where it is
    assert workspace.encode("~/small", model=tiny_model).path == tmp_path / "ws/embeddings/tiny-small"
    assert EvaluateConfig(data_root="~/small").data_root == tmp_path / "small"  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"no such file: {tmp_path}/absent"):
        workspace.pretrain("~/absent", model=tiny_model)


def test_an_unknown_setting_is_refused_with_the_closest_one(made: tuple[Workspace, Embeddings, Index]) -> None:
    workspace = made[0]
    with pytest.raises(UserError, match="FinetuneConfig has no setting `negative`; did you mean `negatives`"):
        workspace.finetune("train.jsonl", negative=3)
    for name, meant in (
        ("learning_rate", r"`optimizer.learning_rate`\? Write optimizer=OptimizerConfig\(learning_rate=...\)"),
        ("lora_rank", r"`lora.rank`\? Write lora=LoraConfig\(rank=...\)"),
        ("lora_ranks", r"`lora.rank`\? Write"),
        ("lora.rank", r"`lora.rank`\? Write"),
    ):
        with pytest.raises(UserError, match=f"FinetuneConfig has no setting `{name}`; did you mean {meant}"):
            workspace.finetune("train.jsonl", **{name: 1})
    with pytest.raises(UserError, match="SearchConfig has no setting `zzz`; it has: top_k, query_length,"):
        workspace.load_index("graph", zzz=3)


def test_a_workspace_is_a_directory(beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"workspace .*/file is not a directory"):
        Workspace(tmp_path / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=r"workspace .*/nowhere is not a directory"):
        Workspace(tmp_path / "nowhere").encode(beir, model=tiny_model)
    for given in (3, ""):
        with pytest.raises(UserError, match="`path` must be a directory, not"):
            Workspace(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [3, ""])
def test_names_of_artifacts_are_strings(made: tuple[Workspace, Embeddings, Index], name: Any) -> None:
    workspace, _, index = made
    told = "`name` must be a string, not 3" if name else "unknown (index|embedding|model) ''"
    for load in (workspace.load_index, workspace.load_embeddings, workspace.load_model):
        with pytest.raises(UserError, match=told):
            load(name)
    with pytest.raises(UserError, match="`name` must be a string, not Index"):
        workspace.load_index(index)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["", ["", "wiki.jsonl"]])
def test_an_empty_path_is_not_the_working_directory(made: tuple[Workspace, Embeddings, Index], given: Any) -> None:
    workspace = made[0]
    for job in (workspace.pretrain, workspace.finetune):
        with pytest.raises(UserError, match="must be files or folders, not"):
            job(given)
    with pytest.raises(UserError, match="must be a file or folder, not ''"):
        workspace.encode("")


def test_the_home_of_an_unknown_user_is_a_plain_path(
    made: tuple[Workspace, Embeddings, Index], tiny_model: Path
) -> None:
    workspace, place = made[0], "~no-such-user/here"
    with pytest.raises(UserError, match=f"no such model: {place}"):
        Model.load(place)
    with pytest.raises(UserError, match=f"`model={place}` does not exist"):
        workspace.load_index("graph", model=place).search("bees")
    with pytest.raises(UserError, match=f"no such file: {place}"):
        workspace.encode(place, model=tiny_model)


def test_errors_are_short(made: tuple[Workspace, Embeddings, Index]) -> None:
    for call in (
        lambda: evaluate(list(range(100_000)), {"q": {"d": 1}}),  # type: ignore[arg-type]
        lambda: made[0].pretrain(list(range(100_000))),  # type: ignore[arg-type]
        lambda: FinetuneConfig(dims="x" * 100_000),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError) as refusal:
            call()
        assert len(str(refusal.value)) < 250


def test_numbers_of_numpy_are_numbers() -> None:
    config = FinetuneConfig(batch_size=np.int64(4), temperature=np.float32(0.5))  # type: ignore[arg-type]
    assert (type(config.batch_size), type(config.temperature)) == (int, float)
    assert type(FinetuneConfig(temperature=np.float64(0.5)).temperature) is float


def test_an_index_loads_its_model_and_itself_once(made: tuple[Workspace, Embeddings, Index], loads: list[str]) -> None:
    index = made[0].load_index("graph")
    assert loads == []
    first = index.search("bees dance 3 times", top_k=5)
    assert index.search("bees dance 3 times", top_k=5, parameters={"ef": 40}) == first
    assert index.search(["bees dance 3 times"], top_k=5) == [first]
    assert sorted(loads) == ["encoder", "index"]


def test_a_search_does_not_look_for_backends_again(
    made: tuple[Workspace, Embeddings, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made[0].load_index("graph")
    first = index.search("bees dance 3 times")

    def load(kind: str, name: str) -> Any:
        raise AssertionError(f"the entry points were read again for the {kind} backend {name}")

    monkeypatch.setattr(registry, "load", load)
    assert index.search("bees dance 3 times", parameters={"ef": 40}) == first


def test_too_few_hits_are_told_once_for_each_way_to_search(made: tuple[Workspace, Embeddings, Index]) -> None:
    workspace, embeddings, _ = made
    index = workspace.index(embeddings, backend="faiss", spec="IVF20,Flat", name="lists")
    few = "queries got fewer than 40 hits"
    with pytest.warns(LlaraWarning, match=f"1 of 1 {few}"):
        index.search("bees", 40, parameters={"nprobe": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search("bees", 40, parameters={"nprobe": 1})  # told already
    with pytest.warns(LlaraWarning, match=f"2 of 2 {few}"):
        index.search(["bees", "dance"], 40, parameters={"nprobe": 2})


def test_parameters_are_a_mapping(made: tuple[Workspace, Embeddings, Index]) -> None:
    for given in (["ef"], "ef=3"):
        with pytest.raises(UserError, match="`parameters` must be a mapping of names to values, not"):
            made[2].search("bees", parameters=given)  # type: ignore[arg-type]
    assert len(made[2].search("bees", parameters={"ef": np.int64(30)})) == 10  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [2.5, np.float32(40.5), True, None, "many"])
def test_a_parameter_of_a_wrong_type_is_refused(made: tuple[Workspace, Embeddings, Index], value: Any) -> None:
    with pytest.raises(UserError, match=r"`parameters\['ef'\]=.*is not of type int"):
        made[2].search("bees", parameters={"ef": value})


def test_how_an_index_is_searched_is_set_when_it_is_loaded(made: tuple[Workspace, Embeddings, Index]) -> None:
    workspace, _, index = made
    assert len(workspace.load_index("graph", SearchConfig(top_k=3), parameters={"ef": 40}).search("bees")) == 3
    with pytest.raises(UserError, match="a length of 100000 tokens is above the model's"):
        workspace.load_index("graph", query_length=100_000).search("bees")
    with pytest.raises(UserError, match="`model=other` does not exist; index 'graph' was made with"):
        workspace.load_index("graph", model="other").search("bees")
    assert len(index.search("bees")) == 10


def test_a_model_of_the_workspace_takes_the_options_of_any_model(tiny_model: Path, tmp_path: Path) -> None:
    workspace, wiki = Workspace(tmp_path / "ws"), tmp_path / "wiki.jsonl"
    wiki.write_text('{"text": "Bees dance to tell where the flowers are. They dance in the dark."}\n' * 20)
    with pytest.raises(UserError, match=r"no models in .* yet"):
        workspace.load_model()
    workspace.pretrain(wiki, model=tiny_model, max_steps=1, max_length=48, batch_size=2, name="first")
    model = workspace.load_model(query_length=64, trust_remote_code=True)
    assert (model.name, model.encode("bees").shape) == ("first", (model.dim,))
    with pytest.raises(UserError, match="unknown model 'second'"):
        workspace.load_model("second")


def test_a_model_of_the_workspace_is_the_same_by_name_folder_or_object(
    tiny_model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace, wiki = Workspace("ws"), tmp_path / "wiki.jsonl"
    wiki.write_text('{"text": "Bees dance to tell where the flowers are. They dance in the dark."}\n' * 20)
    trained = workspace.pretrain(wiki, model=tiny_model, max_steps=1, max_length=48, batch_size=2, name="Größe_1")
    named = workspace.encode(beir, model="Größe_1")
    stamp = (named.path / "manifest.json").stat().st_mtime_ns
    for model in (trained, trained.path, trained.path.resolve(), trained.load(), workspace.load_model()):
        again = workspace.encode(beir, model=model)
        assert (again.name, (again.path / "manifest.json").stat().st_mtime_ns) == (named.name, stamp)
    results = [workspace.evaluate(model, beir)["model"] for model in (trained, trained.load(), "Größe_1")]
    assert results == ["Größe_1"] * 3


@pytest.mark.parametrize("name", ["query_length", "passage_length", "batch_tokens"])
@pytest.mark.parametrize("value", [0, 2.5, "8"])
def test_lengths_are_whole_numbers(tiny_model: Path, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"`{name}` must be (positive|a whole number), not"):
        Model.load(tiny_model, **{name: value})
