"""``clean``: removes what can be rebuilt, and leftovers of interrupted swaps."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from llara_cli.core.artifacts import KINDS, MANIFEST, size_on_disk
from llara_cli.core.workspace import CACHE, Workspace


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be removed, and its size."""

    path: Path
    bytes: int


def removable(workspace: Workspace) -> list[Removable]:
    """Files of the cache, temporary folders, and old artifacts that have been replaced."""
    found = sorted((workspace.root / CACHE).glob("*"))
    for kind in KINDS:
        folder = workspace.root / kind
        found += sorted(folder.glob(".*.staging"))
        # one without a successor is all that is left of the artifact: it will be put back
        replaced = (old.name[1:].removesuffix(".old") for old in sorted(folder.glob(".*.old")))
        found += [folder / f".{name}.old" for name in replaced if (folder / name / MANIFEST).is_file()]
    return [Removable(path, size_on_disk(path)) for path in found]


def clean(workspace: Workspace) -> list[Removable]:
    """Remove what is ``removable``. Raises ``UserError`` while another command works in the workspace."""
    if not workspace.root.is_dir():
        return []
    with workspace.alone():
        found = removable(workspace)
        for each in found:
            if each.path.is_dir() and not each.path.is_symlink():
                shutil.rmtree(each.path)
            else:
                each.path.unlink()
    return found
