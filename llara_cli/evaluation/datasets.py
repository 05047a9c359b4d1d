"""Finds a benchmark's data sets: in the data root, in the workspace, or by download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder, is_beir_folder
from llara_cli.data.eval_dataset import EvalDataset
from llara_cli.evaluation.benchmarks import Benchmark, Place, Task
from llara_cli.evaluation.downloads import KIND, Downloads

Consent = Callable[[str], bool]
"""Called with a question about a download; returns whether to download."""
Found = list[tuple[Task, EvalDataset]]


@dataclass(frozen=True)
class DatasetFinder:
    """Finds data sets; ``consent``: called before anything is downloaded."""

    workspace: Workspace
    root: Path | None
    split: str | None
    consent: Consent

    def find(self, benchmark: Benchmark, names: str) -> Found:
        """The tasks named, with their data. For ``all``, unavailable ones are reported and skipped.

        Raises ``UserError`` for an unknown name, for a named set that is not available, and if there is none at all.
        """
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"`data_root={self.root}`: no such folder")
        tasks, named = benchmark.select(names), names != "all"
        there = [task for task in tasks if self._look(task)]
        self._complete([task for task in tasks if task not in there], there, named=named)
        places = {task: place for task in tasks if (place := self._look(task))}
        usable = {task: place for task, place in places.items() if named or self._is_usable(task, *place)}
        if not usable:
            raise UserError(f"none of {benchmark.name}'s data sets was found; name their folder with `data_root`")
        return [(task, EvalDataset(BeirFolder(folder), split, task.name)) for task, (folder, split) in usable.items()]

    def _look(self, task: Task) -> tuple[Path, str] | None:
        """Folder and split of the first place that exists."""
        for root in (self.root, self.workspace.root / KIND):
            for place in task.places:
                if root is not None and (root / place.folder).is_dir() and self._is_whole(root, place):
                    return root / place.folder, self.split or place.split
        return None

    def _is_whole(self, root: Path, place: Place) -> bool:
        """Whether the folder is complete: in the workspace, one without a manifest is an unfinished download."""
        return root == self.root or self.workspace.find(KIND, place.folder.partition("/")[0]) is not None

    def _is_usable(self, task: Task, folder: Path, split: str) -> bool:
        """Whether a data set of ``all`` can be read; warns if not."""
        if not is_beir_folder(folder):
            self.workspace.reporter.warn(f"not one folder in BEIR layout, skipped: {task.name}")
        elif split not in BeirFolder(folder).splits():
            self.workspace.reporter.warn(f"no split {split!r}, skipped: {task.name}")
        else:
            return True
        return False

    def _complete(self, absent: Sequence[Task], there: Sequence[Task], *, named: bool) -> None:
        """Download missing data sets that are offered; report the others."""
        begun = {task.group for task in there}
        # parts missing from an existing set were left out on purpose
        missing = [task for task in absent if task.group in begun]
        private = [task for task in absent if task.collection is None and task not in missing]
        if private and named:
            raise UserError(f"{_names(private)}: no public download: name a folder that has it with `data_root`")
        if private:
            self.workspace.reporter.note(f"no public download, skipped: {_names(private)}")
        if missing:
            self.workspace.reporter.warn(f"missing: {', '.join(task.name for task in missing)}")
        if wanted := [task for task in absent if task not in missing and task not in private]:
            self._download(wanted, optional=bool(there) and not named)

    def _download(self, tasks: Sequence[Task], *, optional: bool) -> None:
        """Ask, then download the data of all tasks. Raises ``UserError`` if they are needed but refused."""
        collections = list(dict.fromkeys(task.collection for task in tasks if task.collection is not None))
        try:
            downloads = Downloads(self.workspace)
            size = _readable(downloads.size(collections))
            terms = ", ".join(dict.fromkeys(item.terms for item in collections if item.terms))
            agreed = self.consent(f"download {size} ({_names(tasks)})" + (f"; terms of use: {terms}" if terms else ""))
            hint = f"`download=True` downloads them ({size})"
        except UserError as error:
            agreed, hint = False, str(error)
        if agreed:
            for collection in collections:
                downloads.bring(collection)
        elif optional:
            self.workspace.reporter.note(f"not found, skipped: {_names(tasks)}; {hint}")
        else:
            raise UserError(f"`data_root` is needed: a folder with {_names(tasks)} in BEIR layout; {hint}")


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(dict.fromkeys(task.group for task in tasks))


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
