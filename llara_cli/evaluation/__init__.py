"""Retrievers measured on judged queries: benchmarks, where their data come from, results, tables, comparisons."""
