"""Ids on disk are those that were written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llara_cli.data import id_list
from llara_cli.data.id_list import IdList

NAMES = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8), max_size=30)


@given(names=NAMES, piece=st.integers(1, 40))
def test_every_way_to_ask(names: list[str], piece: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_bytes("".join(name + "\n" for name in names).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_list, "PIECE", piece)
        ids = IdList(path)
    assert len(ids) == len(names)
    assert list(ids) == names == [ids[row] for row in range(len(names))]
    assert ids[1:-1] == names[1:-1]
    if names:
        assert ids[-1] == names[-1]
    with pytest.raises(IndexError):
        ids[len(names)]
