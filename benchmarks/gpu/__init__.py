"""The kit that tests and measures everything on one GPU: ``benchmarks/gpu.sh``, docs/design/gpu.md."""
