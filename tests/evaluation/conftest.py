"""The fixtures of the evaluation tests."""

from program import beir, llara

__all__ = ["beir", "llara"]
