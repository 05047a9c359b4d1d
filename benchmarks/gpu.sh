#!/usr/bin/env bash
# Everything that needs a GPU, in one run: correctness of its paths, then the figures. Results: OUT (default: benchmarks).
#   benchmarks/gpu.sh [OUT]        PYTHON=python3
# Needs torch with CUDA, transformers, accelerate, peft; bitsandbytes, liger-kernel and sentence-transformers where there.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT="${1:-benchmarks}"
PYTHON="${PYTHON:-python3}"
export PYTHONPATH="$PWD:$PWD/backends:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
"$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu 2>&1 | tee "$OUT/gpu-tests.log"
status=$?
"$PYTHON" benchmarks/gpu.py --json "$OUT/gpu.json" || status=1
"$PYTHON" benchmarks/gpu_search.py --json "$OUT/gpu_search.json" || status=1
exit "$status"
