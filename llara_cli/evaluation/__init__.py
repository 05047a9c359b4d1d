"""Evaluation of retrievers: benchmarks, their data sets, metrics, results, tables, comparisons."""
