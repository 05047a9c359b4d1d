"""What every test shares: one thread, no hub, where the shared data lie, tiny models."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from llara_cli.cpu import matmul

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["COLUMNS"] = "200"

import pytest
from hypothesis import settings

# no example is too slow on a busy machine
settings.register_profile("llara", deadline=None)
settings.load_profile("llara")
# a shell ignores Ctrl-C in what it starts in the background, and so would the programs that tests send it to
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parents[1]


def shared_data() -> Path:
    """The folder of real data beside the repository, or where LLARA_SHARED_DATA says."""
    return Path(os.environ.get("LLARA_SHARED_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data; the test is skipped where they are not on this machine."""
    root = shared_data()
    if not root.is_dir():
        pytest.skip(f"no shared data at {root} (set LLARA_SHARED_DATA)")
    return root


@pytest.fixture(scope="session")
def golden(data_root: Path) -> Path:
    """Numbers from the authors' own code."""
    return data_root / "golden"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama on disk."""
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """All products and sums of them through oneDNN, also the smallest, whatever the machine."""
    import torch

    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(matmul, "LEAST_WORK", 0)
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "onednn_sums_faster", lambda: True)
