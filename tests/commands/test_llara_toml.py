"""``llara.toml``: a flag wins, also over what it excludes; what is wrong in the file is told with file and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from program import Llara

from llara_cli.app import VERBS, load_verb
from llara_cli.commands.command import YIELDS


def parsed(workspace: Path, toml: str, verb: str, *arguments: str) -> dict[str, Any]:
    """The parameters that a command would run with; paths as texts, which typer before 0.29 makes paths of later."""
    workspace.mkdir(exist_ok=True)
    (workspace / "llara.toml").write_text(toml, encoding="utf-8")
    context: Any = load_verb(verb).make_context(verb, [*arguments, "-w", str(workspace)])
    return {name: plain(value) for name, value in context.params.items()}


def plain(value: Any) -> Any:
    """A value of which older and newer typers make the same."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize(
    ("toml", "arguments", "expected"),
    [
        ("[pretrain]\nepochs = 2\n", ("pretrain", "c", "--max-steps", "1"), {"max_steps": 1, "epochs": None}),
        ("[finetune]\nmax-steps = 2\n", ("finetune", "c", "--epochs", "1"), {"max_steps": None, "epochs": 1.0}),
        ("[pretrain]\nepochs = 2\n", ("pretrain", "c"), {"max_steps": None, "epochs": 2.0}),
        ("[finetune]\nrounds = 2\ncorpus = 'c'\n", ("finetune", "t", "--rounds", "1"), {"rounds": 1, "corpus": None}),
        (
            "[finetune]\nrounds = 2\ncorpus = 'c'\n",
            ("finetune", "t", "--rounds", "3"),
            {"rounds": 3, "corpus": "c"},
        ),
        (
            "[search]\nqueries = 'q'\noutput = 'o'\ntop-k = 3\n",
            ("search", "bees"),
            {"query": "bees", "queries": None, "output": None, "top_k": 3},
        ),
        ("[search]\ninteractive = true\n", ("search", "bees"), {"query": "bees", "interactive": False}),
        (
            "[search]\nqueries = 'q'\noutput = 'o'\n",
            ("search", "--output", "p"),
            {"queries": "q", "output": "p"},
        ),
        ("[evaluate]\nmodel = 'm'\n", ("evaluate", "d", "--run", "r"), {"model": None, "run": "r"}),
        ("[evaluate]\nrun = 'r'\nname = 'n'\n", ("evaluate", "d", "--model", "m"), {"run": None, "name": None}),
        ("[evaluate]\nqrels = 'q'\nrun = 'r'\n", ("evaluate", "d"), {"qrels": None, "run": "r"}),
        ("[evaluate]\nformat = 'csv'\n", ("evaluate", "d", "--json"), {"format_": "table", "as_json": True}),
        ("[compare]\njson = true\n", ("compare", "a", "b", "--format", "csv"), {"format_": "csv", "as_json": False}),
        ("[encode]\nfrom = 'v.npy'\n", ("encode", "c"), {"corpus": "c", "from_": None}),
        ("[encode]\ndim = 8\n", ("encode", "--from", "v.npy"), {"dim": None}),
        (
            "[mine]\ncorpus = 'c'\nmax-length = 9\nmodel = 'bm25'\n",
            ("mine", "t", "--index", "i"),
            {"corpus": None, "max_length": None, "model": None, "index": "i"},
        ),
        ("[mine]\nindex = 'i'\n", ("mine", "t", "--corpus", "c"), {"index": None}),
        (
            "[index]\nbackend = 'faiss'\nspec = 'Flat'\nset = ['nprobe=4']\n",
            ("index", "--backend", "exact"),
            {"backend": "exact", "spec": None, "parameters": []},
        ),
        (
            "[index]\nbackend = 'faiss'\nspec = 'Flat'\nset = ['nprobe=4']\n",
            ("index", "--backend", "faiss"),
            {"backend": "faiss", "spec": "Flat", "parameters": ["nprobe=4"]},
        ),
        ("[index]\nset = ['M=8']\n", ("index", "--backend", "hnsw"), {"backend": "hnsw", "parameters": ["M=8"]}),
        (
            "[index]\nbackend = 'faiss'\nspec = 'Flat'\n",
            ("index", "--backend", "exact", "--spec", "SQ8"),
            {"backend": "exact", "spec": "SQ8"},
        ),
        (
            "[pretrain]\noptimizer = 'adamw-8bit'\nweights = 'bf16'\n",
            ("pretrain", "c", "--backend", "lora"),
            {"backend": "lora", "optimizer": "adamw-8bit", "weights": "fp32"},
        ),
        (
            "[finetune]\nbackend = 'full'\noptimizer = 'adamw-8bit'\nweights = 'bf16'\n",
            ("finetune", "t", "--optimizer", "adamw"),
            {"backend": "full", "optimizer": "adamw", "weights": "fp32"},
        ),
        (
            "[pretrain]\noptimizer = 'adamw-8bit'\nweights = 'bf16'\n",
            ("pretrain", "c", "--backend", "full", "--optimizer", "adamw-8bit"),
            {"weights": "bf16"},
        ),
        ("[index]\nremove = 'ids'\n", ("index", "e", "--append"), {"remove": None, "append": True}),
    ],
)
def test_a_flag_wins_over_what_it_excludes(
    tmp_path: Path, toml: str, arguments: tuple[str, ...], expected: dict[str, Any]
) -> None:
    found = parsed(tmp_path / "ws", toml, *arguments)
    assert {name: found[name] for name in expected} == expected


def test_what_is_excluded_are_parameters() -> None:
    assert YIELDS.keys() <= VERBS.keys()
    for verb, rules in YIELDS.items():
        parameters = {parameter.name for parameter in load_verb(verb).params}
        assert {re.split("!?=", name)[0] for name in rules} <= parameters
        assert {other for others in rules.values() for other in others} <= parameters


def test_a_list_is_taken_where_several_are(tmp_path: Path) -> None:
    assert parsed(tmp_path, "[index]\nset = ['M=8', 'ef=9']\n", "index")["parameters"] == ["M=8", "ef=9"]
    assert parsed(tmp_path, "[index]\nset = 'M=8'\n", "index")["parameters"] == ["M=8"]
    assert parsed(tmp_path, "[pretrain]\ncorpus = 'wiki'\n", "pretrain")["corpus"] == ["wiki"]
    assert parsed(tmp_path, "[finetune]\ntemperature = 1\n", "finetune", "t")["temperature"] == 1.0
    assert parsed(tmp_path, "\ufeff[search]\ntop_k = 4\n", "search", "q")["top_k"] == 4


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[search]\ntop-k = true\n", "[search] top-k must be a whole number, not true"),
        ("[search]\ntop-k = '3'\n", '[search] top-k must be a whole number, not "3"'),
        ("[search]\ntop-k = 3.0\n", "[search] top-k must be a whole number, not 3.0"),
        ("[search]\ntop-k = [3]\n", "[search] top-k must be a whole number, not [3]"),
        ("[search]\ninteractive = 'false'\n", '[search] interactive must be true or false, not "false"'),
        ("[search]\ninteractive = 1\n", "[search] interactive must be true or false, not 1"),
        ("[search]\nindex = 3\n", "[search] index must be a text in quotes, not 3"),
        ("[search]\nqueries = ['q']\n", '[search] queries must be a path in quotes, not ["q"]'),
        ("[search]\nset = ['a', 1]\n", '[search] set must be a text in quotes, or a list of such, not ["a", 1]'),
        ("[search]\nindex = 2020-01-01\n", '[search] index must be a text in quotes, not "2020-01-01"'),
        ("[search]\ntop-k = 3\ntop_k = 4\n", "[search] top_k contradicts another setting of the table"),
        ("[search]\ntopk = 3\n", "[search] has no setting topk. Did you mean 'top-k'?"),
        ("[search]\nworkspace = 'x'\n", "[search] has no setting workspace"),
        ("[serach]\ntop-k = 3\n", "unknown table [serach]. Did you mean 'search'?"),
        ("top-k = 3\n", "unknown setting 'top-k' above the tables; a flag's default belongs below its command"),
        ("modle = 'm'\n", "unknown setting 'modle' above the tables. Did you mean 'model'?"),
        ("[search]\nindex = ''\n", "[search] index is empty: give a value, or leave it out"),
        ("[search]\nset = ['a=1', '']\n", "[search] set is empty"),
        ("model = ''\n", "llara.toml: model is empty: give a value, or leave it out"),
        ("model = 3\n", "model must be a text in quotes, not 3"),
        ("search = 3\n", "[search] must be a table"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_key(llara: Llara, tmp_path: Path, toml: str, told: str) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws/llara.toml").write_text(toml)
    outcome = llara("search", "bees")
    assert outcome.code == 2
    assert told in outcome.error
    assert str(tmp_path / "ws") in outcome.error


def test_a_flag_that_nobody_typed_is_told_with_the_file(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert llara("encode", beir, "--model", tiny_model).code == 0
    assert llara("index").code == 0
    toml = tmp_path / "ws/llara.toml"
    toml.write_text("[search]\ntop-k = -1\n")
    assert llara("search", "bees").error.endswith(f"not -1 (--top-k: from [search] in {toml})")
    assert llara("search", "bees", "-k", -2).error.endswith("not -2")
    toml.write_bytes(b"[search]\nindex = '\xe9'\n")
    assert "llara.toml: not UTF-8" in llara("search", "bees").error
    toml.unlink()
    toml.mkdir()
    assert "llara.toml: cannot read it: Is a directory" in llara("search", "bees").error


def test_a_setting_that_is_no_number_is_told_as_such(
    llara: Llara, corpus: Path, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws/llara.toml").write_text("[pretrain]\nepochs = nan\n")
    outcome = llara("pretrain", corpus, "--model", tiny_model)
    assert outcome.code == 2
    assert "--epochs must be positive, not nan (--epochs: from [pretrain] in " in outcome.error
