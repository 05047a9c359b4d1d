"""Artifacts: built once, never half, never overwritten in place."""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llara_cli.core.artifacts import Artifact, Build, RunSpec
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.names import check_name, folder_name, input_stem, slug
from llara_cli.core.workspace import Workspace


def make(workspace: Workspace, name: str, restart: bool = False, **settings: object) -> Artifact:
    """Build an artifact that holds its settings as text."""
    with workspace.build("models", name, RunSpec(settings), restart=restart) as build:
        if isinstance(build, Artifact):
            return build
        (build.open_folder() / "content.txt").write_text(str(settings))
        return build.finish({"count": 1}, {"name": name})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace that does not exist yet."""
    return Workspace(tmp_path / "deep" / "ws")


def test_equal_runs_have_equal_fingerprints(tmp_path: Path) -> None:
    one, two = (make(Workspace(tmp_path / place), "a", x=1) for place in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert make(Workspace(tmp_path / "one"), "b", x=2).fingerprint != one.fingerprint


def test_an_unfinished_folder_is_no_artifact_and_is_taken_up_by_the_same_settings(workspace: Workspace) -> None:
    with workspace.build("models", "a", RunSpec({"x": 1})) as build:
        assert isinstance(build, Build)
        (build.open_folder() / "part").write_text("half")
    assert workspace.find("models", "a") is None
    assert [path.name for path in workspace.unfinished("models")] == ["a"]
    with pytest.raises(UserError, match="x was 1, now 2"), workspace.build("models", "a", RunSpec({"x": 2})):
        pass
    with workspace.build("models", "a", RunSpec({"x": 1})) as build:
        assert isinstance(build, Build)
        assert (build.folder / "part").read_text() == "half"


def test_what_tells_of_an_artifact_is_read_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        make(workspace, name)
    read, read_text = [], Path.read_text

    def watched(path: Path, **more: str) -> str:
        read.append(path.relative_to(workspace.root / "models").as_posix())
        return read_text(path, **more)

    monkeypatch.setattr(Path, "read_text", watched)
    for artifact in workspace.sound("models"):
        assert artifact.is_users_own
        assert (artifact.manifest["name"], artifact.result["name"]) == (artifact.name, artifact.name)
    assert sorted(read) == ["a/manifest.json", "a/run.json", "b/manifest.json", "b/run.json"]


def test_a_changed_input_is_refused(workspace: Workspace) -> None:
    with workspace.build("models", "a", RunSpec({}, [{"name": "c", "sha256": "1"}])) as build:
        assert isinstance(build, Build)
        build.open_folder()
        build.finish({}, {})
    changed = RunSpec({}, [{"name": "c", "sha256": "2"}])
    with pytest.raises(UserError, match="content changed"), workspace.build("models", "a", changed):
        pass


def test_a_failed_restart_leaves_the_old_artifact(workspace: Workspace) -> None:
    old = make(workspace, "a", x=1)
    with workspace.build("models", "a", RunSpec({"x": 2}), restart=True) as build:
        assert isinstance(build, Build)
        (build.open_folder() / "content.txt").write_text("never finished")
    assert workspace.get("models", "a").manifest["settings"] == {"x": 1}
    assert (old.path / "content.txt").read_text() == "{'x': 1}"
    make(workspace, "a", restart=True, x=2)
    assert workspace.get("models", "a").manifest["settings"] == {"x": 2}
    assert [path.name for path in old.path.parent.iterdir()] == ["a"]


def test_a_kill_between_the_renames_of_a_swap_loses_nothing(workspace: Workspace) -> None:
    made = make(workspace, "a", x=1)
    made.path.rename(made.path.with_name(".a.old"))
    assert make(workspace, "a", x=1).manifest["settings"] == {"x": 1}
    assert made.path.is_dir()


def test_who_only_reads_finds_what_a_kill_in_a_swap_hid(workspace: Workspace) -> None:
    made = make(workspace, "a", x=1)
    for look in (lambda: workspace.find("models", "a"), lambda: workspace.artifacts("models")[0]):
        made.path.rename(made.path.with_name(".a.old"))
        assert look() == made
        assert made.path.is_dir()


def test_a_reader_waits_for_a_swap_and_does_not_disturb_it(workspace: Workspace) -> None:
    made = make(workspace, "a", x=1)
    with workspace.build("models", "a", RunSpec({"x": 2}), restart=True):
        made.path.rename(made.path.with_name(".a.old"))
        end = threading.Timer(0.3, lambda: made.path.with_name(".a.old").rename(made.path))
        end.start()
        assert workspace.find("models", "a") == made
        end.join()


def test_what_a_kill_after_a_swap_left_is_swept_away(workspace: Workspace) -> None:
    made = make(workspace, "a", x=1)
    looks: tuple[Callable[[], object], ...] = (
        lambda: make(workspace, "a", x=1),
        lambda: workspace.find("models", "a"),
        lambda: workspace.artifacts("models"),
    )
    for look in looks:
        shutil.copytree(made.path, made.path.with_name(".a.old"))
        look()
        assert [path.name for path in made.path.parent.iterdir()] == ["a"]


def test_every_file_of_an_artifact_has_the_mode_that_the_umask_gives(workspace: Workspace) -> None:
    with workspace.build("models", "a", RunSpec({})) as build:
        assert isinstance(build, Build)
        inner = build.open_folder() / "adapter"
        inner.mkdir()
        for place in (build.folder / "model.safetensors", inner / "weights"):  # as safetensors and tempfile write them
            place.touch(mode=0o600)
        (build.folder / "plain").write_text("")
        made = build.finish({}, {})
    plain = (made.path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in made.path.rglob("*") if file.is_file()} == {plain}


def test_all_of_an_artifact_is_on_the_disk_before_its_manifest_is(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may come right after the manifest."""
    synced: list[int] = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with workspace.build("models", "a", RunSpec({})) as build:
        assert isinstance(build, Build)
        inner = build.open_folder() / "adapter"
        inner.mkdir()
        files = [build.folder / "model.safetensors", inner / "weights"]
        for file in files:
            file.write_text("tensors")
        wanted = [place.stat().st_ino for place in (*files, inner, build.folder)]
        made = build.finish({}, {})
    before = synced[: synced.index((made.path / "manifest.json").stat().st_ino)]
    assert set(wanted) <= set(before)


def test_the_run_log_names_the_machine_on_every_system(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "uname", raising=False)  # as on Windows
    run = json.loads((make(workspace, "a").path / "run.json").read_text())
    assert run["host"] == platform.node()


def test_the_run_log_tells_what_is_newest_and_not_the_files_times(workspace: Workspace) -> None:
    made = {name: make(workspace, name) for name in ("b", "c", "a")}
    for name, artifact in made.items():
        os.utime(artifact.path / "manifest.json", (ord(name), ord(name)))
    assert [artifact.name for artifact in workspace.artifacts("models")] == ["b", "c", "a"]
    for name, finished in (("b", 5), ("c", 7), ("a", 7)):
        (made[name].path / "run.json").write_text(json.dumps({"finished": finished}))
    assert [artifact.name for artifact in workspace.artifacts("models")] == ["b", "a", "c"]
    (made["c"].path / "run.json").unlink()
    (made["a"].path / "run.json").write_text('{"finished": "now"}')
    assert [artifact.name for artifact in workspace.artifacts("models")] == ["a", "c", "b"]


def test_a_second_builder_is_refused(workspace: Workspace) -> None:
    with (
        workspace.build("models", "a", RunSpec({})),
        pytest.raises(UserError, match="being built by another process"),
        workspace.build("models", "a", RunSpec({})),
    ):
        pass


@pytest.mark.parametrize("restart", [False, True])
def test_a_foreign_folder_or_file_is_not_touched(workspace: Workspace, restart: bool) -> None:
    folder = workspace.root / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    (folder.parent / "notes").write_text("more work")
    for name in ("mine", "notes"):
        with pytest.raises(UserError, match="not an artifact"):
            make(workspace, name, restart)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert (folder.parent / "notes").read_text() == "more work"


def test_a_build_killed_at_its_very_beginning_begins_again(workspace: Workspace) -> None:
    folder = workspace.root / "models" / "a"
    folder.mkdir(parents=True)
    (folder / "building.json.part").write_text('{"settings"')
    assert make(workspace, "a").result == {"name": "a"}
    assert sorted(path.name for path in folder.iterdir()) == ["content.txt", "manifest.json", "run.json"]


def test_unknown_and_damaged_artifacts(workspace: Workspace) -> None:
    made = make(workspace, "a", x=1)
    with pytest.raises(UserError, match=r"unknown model 'b' in .*; finished: a"):
        workspace.get("models", "b")
    (made.path / "manifest.json").write_text("{")
    with pytest.raises(LlaraError, match=r"manifest\.json: unreadable"):
        _ = made.manifest


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", ".hidden", "-x", "a b", "a\n", "\u0301a", "a\ud800", "基" * 67]
)
def test_names_that_could_leave_the_workspace(name: str) -> None:
    with pytest.raises(UserError, match="bad name"):
        check_name(name)


@pytest.mark.parametrize("text", ["a b/c", "..", "Übung", "x" * 300, "-", "基" * 300, "\u0301", "\ud800", ""])
def test_slugs_are_names(text: str) -> None:
    assert check_name(slug(text)) == slug(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a b/c", "a-b-c"),
        ("基线", "基线"),
        ("हिन्दी 2", "हिन्दी-2"),
        ("U\u0308bung", "\xdcbung"),
        ("my: wiki!", "my-wiki"),
        ("x" * 101, "x" * 91 + "-c675a2e6"),
        ("?", "unnamed-8a8de823"),
    ],
)
def test_slugs_keep_letters_of_every_script(text: str, name: str) -> None:
    assert slug(text) == name


def test_every_name_has_a_folder_of_its_own() -> None:
    alike = ["org/model", "org-model", "org model", "org--model", "基线", "微调", "微/调", "?", "!", "", "x" * 250]
    alike += ["x" * 251]
    folders = [folder_name(name) for name in alike]
    assert len(set(folders)) == len(alike)
    assert all(check_name(folder) == folder for folder in folders)
    assert [folder_name(name) for name in ("org-model", "基线", "nDCG_1.5+x")] == ["org-model", "基线", "nDCG_1.5+x"]
    assert folder_name("e\u0301") == folder_name("\xe9") == "\xe9"


@pytest.mark.parametrize(
    ("name", "stem"),
    [("wiki.jsonl", "wiki"), ("wiki.v2.jsonl.gz", "wiki.v2"), ("a b.txt", "a-b"), ("plain", "plain"), (".x", "x")],
)
def test_the_stem_of_an_input(tmp_path: Path, name: str, stem: str) -> None:
    assert input_stem(tmp_path / name) == stem
    (tmp_path / "beir-v1.0").mkdir()
    assert input_stem(tmp_path / "beir-v1.0") == "beir-v1.0"
