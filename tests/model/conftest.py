"""The fixtures of the command tests."""

from program import beir, corpus, llara, train

__all__ = ["beir", "corpus", "llara", "train"]
