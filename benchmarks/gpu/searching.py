"""Exact search of 2 million vectors: ``gpu_exact.py``, beside reading them once at the card's copy rate."""

from __future__ import annotations

import gpu_exact

from gpu.bench import Bench, options_of

ROWS, TOY_ROWS, DIM = 2_000_000, 20_000, 768


def search(bench: Bench) -> None:
    """What the script measures, recorded line by line."""
    gpu_exact.measure(str(bench.device), TOY_ROWS if bench.toy else ROWS, DIM, bench.record)


def main() -> None:
    """Measure."""
    bench = Bench(options_of(__doc__).parse_args())
    bench.attempt("exact", search, bench)


if __name__ == "__main__":
    main()
