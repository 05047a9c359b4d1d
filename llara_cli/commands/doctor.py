"""``llara doctor``."""

from __future__ import annotations

from typing import Any

from llara_cli import __version__
from llara_cli.commands.session import Session

_REQUIRED = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "ir_measures")
_OPTIONAL = {
    "faiss-cpu": "faiss", "faiss-gpu": "faiss-gpu", "hnswlib": "hnsw", "gguf": "gguf", "bm25s": "bm25",
    "zstandard": "zstd", "mwparserfromhell": "wiki", "bitsandbytes": "qlora", "ir_datasets": "eval",
    "sentence-transformers": "sentence-transformers",
}  # fmt: skip
"""Package -> the extra that installs it."""


def doctor(
    session: Session,
) -> None:
    """Show versions, devices and backends, and how to install what is missing."""
    from dataclasses import asdict

    from llara_cli.commands.backends import backend_table
    from llara_cli.core.registry import availability

    versions, devices, found = _versions(), _devices(), availability()
    problems = _problems(versions)
    backends = [asdict(item) for item in found]
    result = {"versions": versions, "devices": devices, "backends": backends, "problems": problems}

    def render() -> Any:
        from rich.console import Group

        from llara_cli.commands.render import facts

        shown = {name: version or f"not installed: {_how_to_install(name)}" for name, version in versions.items()}
        from rich.text import Text

        told = [Text(f"problem: {problem}", style="red") for problem in problems]
        return Group(facts(shown | devices), "", backend_table(found), *told)

    session.console.result(result, render)


def _how_to_install(package: str) -> str:
    from llara_cli.core.registry import install_hint

    return install_hint(_OPTIONAL[package]) if package in _OPTIONAL else f"pip install {package}"


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found: dict[str, str | None] = {"python": python_version(), "llara": __version__}
    for package in (*_REQUIRED, *_OPTIONAL):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _devices() -> dict[str, str]:
    import os

    import psutil
    import torch

    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GB"
    devices = {"cpu": f"{os.cpu_count()} cores, {memory}, {torch.get_num_threads()} threads for torch"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"
    return devices


def _problems(versions: dict[str, str | None]) -> list[str]:
    if versions["faiss-cpu"] and versions["faiss-gpu"]:
        return [
            "faiss-cpu and faiss-gpu install the same module and break each other:"
            " pip uninstall faiss-cpu faiss-gpu, then install one of them"
        ]
    return []
