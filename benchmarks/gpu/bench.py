"""What every stage's process needs: its options, the gate, records, timing."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpu.results import Results
from gpu.shapes import SHAPES, Shape, datasheet_peak

if TYPE_CHECKING:
    from llara_cli.model.decoder import Decoder

CARD, PRODUCT = "card", "bf16 product"
"""Stage and setting whose rate the others are measured against."""
WARM_UPS = 3


OPTIONAL = {"bitsandbytes", "liger_kernel", "matplotlib", "peft", "sentence_transformers", "torchao"}
"""Libraries that some settings need."""


def told(error: BaseException) -> dict[str, str]:
    """An error as a result, in one line: without an optional library its settings are skipped, all else has failed."""
    for each in (error, error.__cause__):
        if isinstance(each, ImportError) and (each.name or "").partition(".")[0] in OPTIONAL:
            return {"skipped": f"{each.name} is not installed"}
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


class Bench:
    """A stage's device, its clock and its lines of results.

    ``warm``: the stage only fills the compile cache, with models of one layer; nothing is recorded.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.toy, self.warm = options.device == "cpu", bool(options.warm)
        self.stage = os.environ.get("KIT_STAGE", "stage")
        self.work = Path(os.environ.get("KIT_WORK", "."))
        self._results = Results(Path(os.environ.get("KIT_OUT", ".")))
        self._ends = time.monotonic() + _wait_at_the_gate()
        # fp32 would be rounded to bf16 on the card; on most CPUs bf16 is orders of magnitude slower
        self.dtype = torch.float32 if self.toy else torch.bfloat16

    @property
    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self._ends - time.monotonic()

    def shape(self, name: str) -> Shape:
        """A shape at the size that is wanted here."""
        shape = SHAPES[name].toy() if self.toy else SHAPES[name]
        return shape.one_layer() if self.warm else shape

    def record(self, setting: str, **figures: Any) -> None:
        """A line of results; in a warm-up it is printed only."""
        print(setting, figures, flush=True)
        if not self.warm:
            self._results.add(self.stage, setting, **figures)

    def attempt(self, setting: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value; None if it fails, whatever the error, which is then a result."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.record(setting, **told(error))
            return None
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def compile_layers(self, decoder: Decoder) -> None:
        """As the command does; on a CPU they are only traced, as making code would take minutes."""
        decoder.compile_layers("aot_eager" if self.toy else "inductor")

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any]) -> float:
        """Of one call, the device's work included."""
        self.wait()
        started = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - started

    def median(self, function: Callable[[], Any], repeats: int = 10) -> float:
        """Seconds of a call, the median of several after some that are not counted."""
        for _ in range(1 if self.toy else WARM_UPS):
            function()
        return float(np.median([self.seconds(function) for _ in range(2 if self.toy else repeats)]))

    def forget_peak(self) -> None:
        """Let the peak of memory begin anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """GB of the card that tensors took at most; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None

    def utilisation(self, flops: float) -> dict[str, float]:
        """FLOP/s as shares of the datasheet's peak (``mfu``) and of the product measured on the card."""
        found = {"tflops": flops / 1e12}
        card = self._results.find(CARD, "versions", "card")
        if (peak := datasheet_peak(card or "")) is not None:
            found["mfu"] = flops / peak
        if (measured := self._results.find(CARD, PRODUCT, "tflops")) is not None:
            found["of_measured_product"] = flops / (measured * 1e12)
        return found


def _wait_at_the_gate() -> float:
    """Seconds that the schedule gives; started by hand, a stage has an hour."""
    if "KIT_STAGE" not in os.environ:
        return 3600
    line = sys.stdin.readline()
    if not line:
        sys.exit("the schedule has ended")
    return float(line)


def options_of(description: str | None) -> argparse.ArgumentParser:
    """The options that all stages have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--warm", action="store_true", help="only fill the compile cache")
    return parser
