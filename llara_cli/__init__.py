"""llara: turn a decoder language model into a dense retriever (LLaRA, arXiv 2312.15503)."""

__version__ = "0.1.0"
