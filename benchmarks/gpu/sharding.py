"""``llara pretrain`` under FSDP2 in one process, up to the saved file: does plain transformers load it?

python -m gpu.sharding [--device cpu]        the stage
python -m gpu.sharding pretrain ...          what torchrun starts: the command, which tells how it was distributed
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from gpu.bench import OPTIONAL, Bench, options_of
from gpu.models import WORDS, random_model, save, tokenizer_of_words
from gpu.shapes import Shape

SHAPE = Shape(4096, 128, 192, 2, 4, 2)
STEPS = 3
MARK = "distributed as "
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}  # fmt: skip


def command(arguments: list[str]) -> None:
    """The program itself."""
    from accelerate.state import PartialState

    from llara_cli.app import main as llara

    sys.argv = ["llara", *arguments]
    try:
        llara()
    finally:
        print(MARK + str(PartialState._shared_state.get("distributed_type")), flush=True)


def pretrain(bench: Bench, folder: Path) -> None:
    """A few steps of a small model by torchrun, then its checkpoint as transformers reads it."""
    from transformers import AutoModelForCausalLM

    model = save(random_model(SHAPE, torch.float32, torch.device("cpu")), tokenizer_of_words(), folder / "model")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(WORDS[at : at + 60]) for at in range(0, len(WORDS), 60)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    llara = ["-m", "gpu.sharding", "pretrain", str(corpus), "--model", str(model), "--name", "adapted"]
    limits = ["--max-length", "100", "--batch-size", "8", "--max-steps", str(STEPS), "-w", str(folder / "workspace")]
    environment = {key: value for key, value in os.environ.items() if key != "KIT_STAGE"} | FSDP2
    done = subprocess.run(
        [*torchrun, *llara, *limits], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=max(1.0, bench.left - 2), check=False,
    )  # fmt: skip
    print(done.stdout, flush=True)
    lines = done.stdout.splitlines()
    kind = next((line.removeprefix(MARK) for line in lines if line.startswith(MARK)), "unknown")
    missing = re.search(r"No module named '(\w+)'", done.stdout)
    if missing and missing[1] in OPTIONAL:
        bench.record("pretrain", skipped=f"{missing[1]} is not installed")
        return
    if done.returncode:
        why = next((line.strip() for line in lines if "rror: " in line), "")
        bench.record("pretrain", failed=f"exit code {done.returncode}: {why}", distributed=kind)
        return
    saved = next((folder / "workspace").rglob("adapted/**/model*.safetensors")).parent
    weights = list(AutoModelForCausalLM.from_pretrained(saved).parameters())
    before = list(AutoModelForCausalLM.from_pretrained(model).parameters())
    finite = all(bool(weight.isfinite().all()) for weight in weights)
    moved = any(bool((one != other).any()) for one, other in zip(weights, before, strict=True))
    verdict = {} if finite and moved else {"failed": f"saved weights: all finite {finite}, trained {moved}"}
    bench.record("pretrain", **verdict, weights=len(weights), distributed=kind)


def main() -> None:
    """The stage."""
    bench = Bench(options_of(__doc__).parse_args())
    with tempfile.TemporaryDirectory() as folder:
        bench.attempt("pretrain", pretrain, bench, Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["pretrain"]:
        command(sys.argv[1:])
    else:
        main()
