"""Names of artifacts: letters of every script, one spelling, and room for what is derived from long ones."""

from __future__ import annotations

import shutil
from pathlib import Path

from program import Llara

COMPOSED, DECOMPOSED = "\xdcbung-基线", "U\u0308bung-基线"


def test_a_name_in_any_script_goes_through_every_command(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    made = llara("encode", beir, "--model", tiny_model, "--name", DECOMPOSED, "--json")
    assert made.json["name"] == COMPOSED, made.err
    assert llara("index", DECOMPOSED, "--json").json["name"] == f"{COMPOSED}-exact"
    assert llara("search", "bees", "--index", f"{DECOMPOSED}-exact").code == 0
    made_names = {path.name for kind in ("embeddings", "indexes") for path in (tmp_path / "ws" / kind).iterdir()}
    assert made_names == {COMPOSED, f"{COMPOSED}-exact"}
    named = beir.rename(beir.with_name("коллекция"))
    assert llara("encode", named, "--model", tiny_model, "--json").json["name"] == "tiny-коллекция"


def test_an_index_that_mining_makes_for_itself_fits_beside_a_long_name(
    llara: Llara, beir: Path, train: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """66 letters of three bytes each, of the 200 bytes that a name may have."""
    assert llara("encode", beir, "--model", tiny_model, "--name", "基" * 66).code == 0
    mined = llara("mine", train, "--corpus", beir, "--model", tiny_model, "--depth", 4, "--per-query", 1)
    assert mined.code == 0, mined.err
    assert len(list((tmp_path / "ws/indexes").iterdir())) == 1


def test_a_name_without_room_for_the_rounds_is_refused_before_the_first(
    llara: Llara, beir: Path, train: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, "--backend", "full", "--max-steps", 1, "--rounds", 2, "--corpus", beir)
    for length, derived in ((198, "-round1"), (190, "-round1-mined")):
        done = llara("finetune", train, *flags, "--name", "m" * length)
        assert done.code == 2
        assert f"{'m' * length + derived}' is derived from it" in done.error
        assert "shorter --name" in done.error
        assert not list((tmp_path / "ws").glob("*/*"))


def test_derived_names_of_long_ones_fit(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / ("m" * 150))
    named = beir.rename(beir.with_name("c" * 150))
    assert llara("evaluate", named, "--model", model).code == 0
    assert llara("encode", named, "--model", model).code == 0
    assert llara("index").code == 0
