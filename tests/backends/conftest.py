"""The fixtures of tests that run the program."""

from program import corpus, llara

__all__ = ["corpus", "llara"]
