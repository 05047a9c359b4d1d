"""The project's own tests of what only a GPU runs, each one's outcome as soon as it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu.bench import Bench, options_of

REPO = Path(__file__).resolve().parents[2]


class Recorder:
    """A plugin of pytest that writes down what became of each test."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that failed, or could not be set up; one that was skipped; one that has passed."""
        name = report.nodeid.rpartition("/")[2]
        if report.failed:
            lines = report.longreprtext.splitlines()
            why = next((line for line in reversed(lines) if line.startswith("E")), lines[-1] if lines else "")
            self._bench.record(name, failed=f"{report.when}: {why.removeprefix('E').strip()}"[:300])
        elif report.skipped:
            self._bench.record(name, skipped=str(report.longrepr[2] if isinstance(report.longrepr, tuple) else ""))
        elif report.when == "call":
            self._bench.record(name, passed=True, seconds=report.duration)


def main() -> None:
    """Run them; what other releases of libraries warn of is no failure here."""
    bench = Bench(options_of(__doc__).parse_args())
    quiet = ["-p", "no:cacheprovider", "-q", "-o", "filterwarnings=default", "--tb=short", f"--rootdir={REPO}"]
    code = pytest.main([str(REPO / "tests" / "gpu"), *quiet], plugins=[Recorder(bench)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        bench.record("all tests", failed=f"pytest: {code!r}")


if __name__ == "__main__":
    main()
