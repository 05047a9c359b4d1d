"""The kit's schedule: stages are processes, no end of one stops another, and every end is written down."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from gpu.report import GOALS, MOST, markdown, summary
from gpu.results import Results
from gpu.schedule import Schedule, Stage, install

GATE = "import sys; seconds = float(sys.stdin.readline()); "
FINE = GATE + "print('done')"
SLOW = GATE + "import subprocess; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
LATE = GATE + "from pathlib import Path; import time; Path(sys.argv[1]).write_text(str(time.time()))"


def stage(name: str, code: str, limit: float = 60, needs: float = 0, *arguments: str) -> Stage:
    """A stage of a few lines of Python."""
    return Stage(name, ["-c", code, *arguments], limit, needs)


def by_stage(out: Path) -> dict[str, dict[str, object]]:
    """What was written of each stage's end."""
    return {row["stage"]: row for row in Results(out).rows() if row["setting"] == "whole stage"}


def test_every_stage_is_written_down(tmp_path: Path) -> None:
    broken, slow = stage("broken", "import no_such_library"), stage("slow", SLOW, limit=1)
    Schedule([[broken], [slow, stage("beside", FINE)], [stage("fine", FINE)]], tmp_path, 60).run()
    found = by_stage(tmp_path)
    assert list(found) == ["broken", "beside", "slow", "fine"]
    assert found["broken"]["failed"] == "exit code 1"
    assert "no_such_library" in str(found["broken"]["log"])
    assert str(found["slow"]["failed"]).startswith("stopped after 1")
    assert "failed" not in found["fine"]
    assert "failed" not in found["beside"]
    assert "===== fine" in (tmp_path / "stages.log").read_text()


def test_a_stage_that_there_is_no_time_for_is_skipped(tmp_path: Path) -> None:
    Schedule([[stage("long", FINE, needs=100)], [stage("short", FINE)]], tmp_path, 60).run()
    assert by_stage(tmp_path)["long"]["skipped"] == "no time left"
    assert "skipped" not in by_stage(tmp_path)["short"]


def test_the_whole_run_has_a_limit(tmp_path: Path) -> None:
    Schedule([[stage("first", SLOW)], [stage("second", FINE, needs=1)]], tmp_path, 1).run()
    assert str(by_stage(tmp_path)["first"]["failed"]).startswith("stopped after 1")
    assert by_stage(tmp_path)["second"]["skipped"] == "no time left"


def test_the_next_stage_waits_at_its_gate(tmp_path: Path) -> None:
    place = tmp_path / "late"
    waits = stage("waits", GATE + "import time; time.sleep(1)")
    Schedule([[waits], [stage("late", LATE, 60, 0, str(place))]], tmp_path, 60).run()
    ended = next(row["time"] for row in Results(tmp_path).rows() if row["stage"] == "waits")
    assert float(place.read_text()) >= ended - 0.1


def test_no_process_is_left_when_the_run_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "pid"
    tells = stage("tells", "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()));" + SLOW, 60, 0, str(place))
    schedule = Schedule([[tells], [stage("next", SLOW)]], tmp_path, 60)

    def interrupted(seconds: float) -> None:
        if place.exists() and place.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        schedule.run()
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.read_text()), 0)


def test_wheels_that_do_not_suit_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken-1.0-py3-none-any.whl").write_text("no wheel")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    install(tmp_path, tmp_path / "site")
    assert "broken-1.0-py3-none-any.whl cannot be installed" in capfd.readouterr().err
    assert os.environ["PYTHONPATH"] == f"{tmp_path / 'site'}{os.pathsep}elsewhere"


def test_figures_are_written_short_and_found_again(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add("card", "bf16 product", tflops=123.456789, bad=float("nan"), errors={"output": 1 / 3})
    results.add("card", "bf16 product", tflops=7.0)
    assert results.rows()[0]["tflops"] == 123.46
    assert results.rows()[0]["bad"] == "nan"
    assert results.rows()[0]["errors"] == {"output": 0.33333}
    assert results.find("card", "bf16 product", "tflops") == 7.0
    assert results.find("card", "fp32 product", "tflops") is None


def rates(tmp_path: Path) -> list[dict[str, object]]:
    """A few lines as stages write them."""
    results = Results(tmp_path)
    results.add("pretrain 135M, default", "135M, llara, attention auto, full texts, 16384 tokens a forward",
                tokens_per_s=30_000.0, mfu=0.25)  # fmt: skip
    results.add(
        "pretrain 135M, qlora", "135M, llara, attention auto, qlora, full texts", tokens_per_s=90_000.0, mfu=0.9
    )
    results.add("pretrain 135M, authors", "135M, authors, full texts, 16384 tokens a forward", tokens_per_s=10_000.0)
    results.add("pretrain 135M, authors", "135M, authors, mixed texts, 16384 tokens a forward", tokens_per_s=99_000.0)
    results.add("tests", "test_cuda.py::test_one", passed=True, seconds=1.0)
    results.add("tests", "test_cuda.py::test_two", failed="call: AssertionError")
    results.add("tests", "whole stage", seconds=9.0)
    results.add("exact", "whole stage", failed="exit code 1", log=["Traceback", "MemoryError"])
    return results.rows()


def test_the_report_holds_what_was_found_against_the_goals(tmp_path: Path) -> None:
    found = markdown(rates(tmp_path))
    assert "| pretraining 135M, MFU | at least 0.2 | 0.25 |" in found
    assert "| pretraining 135M, full texts, over the authors' way | at least 3 | 3 |" in found
    assert "| pretraining 135M, mixed texts, over the authors' way | at least 3 | - |" in found
    assert "| tests | passed | 1 |" in found
    assert "| tests | test_cuda.py::test_two | failed call: AssertionError |" in found
    assert "tokens_per_s 10,000" in found
    assert "| exact | whole stage | failed exit code 1, log Traceback / MemoryError |" in found
    assert "| tests | whole stage |" not in found


def test_the_summary_stays_short(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for number in range(200):
        results.add("stage", f"setting {number}", failed="x" * 300)
    found = summary(results.rows())
    assert len(found) <= MOST
    assert found.count("\n") == 200 + len(GOALS) - 1
