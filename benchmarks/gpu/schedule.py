"""Runs stages, each a process of its own with a time limit of its own, one turn after the other.

    benchmarks/gpu.sh [--device cpu] [--seconds 465] [--only WORDS] OUT

While the stages of one turn measure, those of the next import their libraries and then wait at a gate: a line on their
standard input, which tells them how many seconds they have. Each appends what it finds to OUT/results.jsonl as soon as
it is known. A stage that fails, or is stopped at its limit, is a line there too, and the next turn begins.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu import report
from gpu.results import Results

AHEAD = 2
"""Turns whose processes import while another one measures."""
LOG_LINES = 3
"""Of a failed stage's output that its line in the results has."""


@dataclass(frozen=True)
class Stage:
    """A process: what it runs after the interpreter's name, and for how many seconds at most, from its gate on.

    It is not begun with less than ``needs`` seconds left of all.
    """

    name: str
    command: Sequence[str]
    limit: float
    needs: float = 10


class Process:
    """A stage that is importing, then waiting at its gate, then measuring."""

    def __init__(self, stage: Stage, out: Path, log: Path) -> None:
        self.stage, self._log = stage, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *stage.command], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
                text=True, start_new_session=True, env=os.environ | {"KIT_OUT": str(out), "KIT_STAGE": stage.name},
            )  # fmt: skip
        self.opened = self.ends = time.monotonic()

    def open(self, seconds: float) -> None:
        """Let it measure for so long."""
        self.opened = time.monotonic()
        self.ends = self.opened + seconds
        self._tell(f"{seconds}\n")

    def _tell(self, line: str) -> None:
        """Write the last that it is told."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # it may have failed already
            pipe.write(line)

    @property
    def over(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._tell("")
        self._process.wait()

    def outcome(self, *, stopped: bool) -> dict[str, object]:
        """Figures of the whole stage, or why it failed."""
        seconds = time.monotonic() - self.opened
        if stopped:
            return {"failed": f"stopped after {seconds:.0f} s", "log": self.log().splitlines()[-LOG_LINES:]}
        if self._process.returncode:
            code = self._process.returncode
            return {"failed": f"exit code {code}", "seconds": seconds, "log": self.log().splitlines()[-LOG_LINES:]}
        return {"seconds": seconds}

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")


class Schedule:
    """Stages in turns, until all are done or ``seconds`` are over."""

    def __init__(self, turns: Sequence[Sequence[Stage]], out: Path, seconds: float) -> None:
        self._waiting, self._loaded = deque(turns), deque[list[Process]]()
        self._out, self._results = out, Results(out)
        self._ends = time.monotonic() + seconds

    def run(self) -> None:
        """Every turn; no process is left running, whatever happens."""
        processes: list[Process] = []
        with tempfile.TemporaryDirectory() as logs:
            try:
                while self._waiting or self._loaded:
                    self._load(Path(logs))
                    processes = self._loaded.popleft()
                    self._turn(processes)
            finally:
                for process in [*processes, *(each for turn in self._loaded for each in turn)]:
                    process.stop()

    def _load(self, logs: Path) -> None:
        while self._waiting and len(self._loaded) <= AHEAD:
            turn = self._waiting.popleft()
            self._loaded.append([Process(stage, self._out, logs / f"{stage.name}.log") for stage in turn])

    def _turn(self, processes: Sequence[Process]) -> None:
        left = self._ends - time.monotonic()
        running = []
        for process in processes:
            if left < process.stage.needs:
                process.stop()
                self._results.add(process.stage.name, "whole stage", skipped="no time left")
            else:
                process.open(min(process.stage.limit, left))
                running.append(process)
        while running:
            time.sleep(0.05)
            for process in list(running):
                late = time.monotonic() > process.ends
                if process.over or late:
                    self._close(process, stopped=not process.over)
                    running.remove(process)

    def _close(self, process: Process, *, stopped: bool) -> None:
        process.stop()
        outcome = process.outcome(stopped=stopped)
        self._results.add(process.stage.name, "whole stage", **outcome)
        with (self._out / "stages.log").open("a") as file:
            file.write(f"===== {process.stage.name}: {outcome}\n{process.log()}\n")


def install(wheels: Path, folder: Path) -> None:
    """Unpack a folder's wheels, each as far as it suits this interpreter, where the stages find them first."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    for wheel in sorted(wheels.glob("*.whl")):
        if subprocess.run([*pip, "--target", str(folder), str(wheel)], check=False).returncode:
            print(f"{wheel.name} cannot be installed here: going on without it", file=sys.stderr)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def set_up(device: str, scratch: Path) -> None:
    """The stages' environment: no hub, caches of their own, and on a CPU no card."""
    os.environ |= {
        "KIT_WORK": str(scratch), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true", "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "TRITON_CACHE_DIR": str(scratch / "triton"),
    }  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", "1" if device == "cpu" else "4")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if wheels := os.environ.get("WHEELS"):
        install(Path(wheels), scratch / "wheels")


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Run the stages for a device; tell in the end what is known. Exit status 1 where something failed."""
    from gpu.stages import turns

    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run at toy sizes")
    parser.add_argument("--seconds", type=float, default=465, help="limit of the whole run")
    parser.add_argument("--only", default="", help="stages whose name has one of these words, separated by commas")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _end)
    words = options.only.split(",")
    chosen = [[stage for stage in turn if any(word in stage.name for word in words)] for turn in turns(options.device)]
    with tempfile.TemporaryDirectory() as scratch:
        set_up(options.device, Path(scratch))
        Schedule([turn for turn in chosen if turn], options.out.resolve(), ends - time.monotonic()).run()
    rows = Results(options.out).rows()
    print(report.summary(rows))
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
