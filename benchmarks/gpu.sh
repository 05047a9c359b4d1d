#!/usr/bin/env bash
# Tests and measures everything on one GPU in at most 8 minutes; results: OUT/results.jsonl, line by line.
#   benchmarks/gpu.sh OUT                     on the card
#   benchmarks/gpu.sh --device cpu OUT        the same at toy sizes: a dry run
# PYTHON: the interpreter (python3); WHEELS: a folder of wheels to use beside what is installed. See docs/design/gpu.md.
set -euo pipefail
REPO="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONPATH="$REPO:$REPO/backends:$REPO/benchmarks:$REPO/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m gpu.schedule "$@"
