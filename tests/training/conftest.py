"""The fixtures of tests that run the program."""

from program import beir, corpus, llara, train

__all__ = ["beir", "corpus", "llara", "train"]
