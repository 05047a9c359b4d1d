"""Two other ways to take the gradients of EBAE and EBAR, built for comparison: the authors' way, and two padded passes.

Both get what they can use: SDPA attention, the micro-batch size that is fastest for them, means over the whole batch.
They compute where the decoder's weights lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.model.decoder import Decoder
from llara_cli.model.prompts import BRANCHES
from llara_cli.model.tokenizer import PromptIds
from llara_cli.training.losses import bag_of_tokens_loss
from llara_cli.training.pretext import Example
from llara_cli.training.targets import Targets

PAD_TO_MULTIPLE = 8
"""Of how many tokens the rows of the authors' way are a multiple, as in the published code."""


@dataclass
class Authors:
    """The published code's way (recipe ``released``): left padding, a dense mask, logits of every position, row loops.

    Only the means differ: the published code averages within a micro-batch, which is not the batch's mean.
    """

    decoder: Decoder
    prompts: PromptIds
    size: int

    def backward(self, examples: Sequence[Example]) -> float:
        """Accumulate gradients in micro-batches of ``size`` texts; the batch's loss."""
        counts = [sum(len(example.targets[branch]) > 0 for example in examples) for branch in BRANCHES]
        tokens = sum(len(example.text) for example in examples)
        total = torch.zeros((), device=self.decoder.device)
        for at in range(0, len(examples), self.size):
            loss = self._loss(examples[at : at + self.size], counts, tokens)
            loss.backward()
            total += loss.detach()
        return float(total)

    def _loss(self, part: Sequence[Example], counts: Sequence[int], tokens: int) -> Tensor:
        ids, labels, mask = self._padded(part)
        hidden = self.decoder.body(
            input_ids=ids, attention_mask=mask, position_ids=self._positions(ids)
        ).last_hidden_state
        logits = self.decoder.projection(hidden).float()
        shifted, wanted = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
        loss = functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), wanted.view(-1), reduction="sum") / tokens
        following = len(self.prompts.prompts["next"])
        ends = {"self": slice(-following - 8, -following), "next": slice(-8, None)}
        for branch, count in zip(BRANCHES, counts, strict=True):
            possibility = functional.log_softmax(logits[:, ends[branch], :].max(dim=1)[0], dim=1)
            for row, example in zip(possibility, part, strict=True):
                targets = torch.from_numpy(np.asarray(example.targets[branch], np.int64))
                if len(targets):
                    loss = loss - row[targets.to(row.device)].mean() / (20 * count)
        return loss

    def _padded(self, part: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, labels (rows, width) and the additive mask (rows, 1, width, width)."""
        suffix = [*self.prompts.prompts["self"], *self.prompts.prompts["next"]]
        head = self.prompts.head
        width = max(len(example.text) for example in part) + len(head) + len(suffix)
        width += -width % PAD_TO_MULTIPLE
        ids, labels = torch.zeros(len(part), width, dtype=torch.long), torch.full((len(part), width), -100)
        real = torch.zeros(len(part), width, dtype=torch.bool)
        for row, example in enumerate(part):
            text = torch.from_numpy(np.asarray(example.text, np.int64))
            start = width - len(text) - len(head) - len(suffix)
            ids[row, start:] = torch.cat([torch.tensor(head, dtype=torch.long), text, torch.tensor(suffix)])
            labels[row, start + len(head) : start + len(head) + len(text)] = text
            real[row, start:] = True
        device = self.decoder.device
        return ids.to(device), labels.to(device), self._mask(real.to(device))

    def _mask(self, real: Tensor) -> Tensor:
        """(rows, 1, width, width) What is added to scores, in the dtype that they have; ``real``: (rows, width)."""
        width, device = real.shape[1], real.device
        seen = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None] & real[:, None, :]
        own, following = len(self.prompts.prompts["self"]), len(self.prompts.prompts["next"])
        seen[:, -following:, -following - own : -following] = False
        seen |= torch.eye(width, dtype=torch.bool, device=device)
        mixed = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else self.decoder.body.dtype
        lowest = torch.finfo(dtype).min
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, lowest)[:, None]

    def _positions(self, ids: Tensor) -> Tensor:
        own, following = len(self.prompts.prompts["self"]), len(self.prompts.prompts["next"])
        positions = torch.arange(ids.shape[1], device=ids.device)
        positions[-following:] -= own
        return positions.expand(len(ids), -1)


@dataclass
class TwoPasses:
    """SELF and NEXT of each text in forwards of their own (recipe ``paper``): right padding, logits at end tokens only.

    ``by_length``: texts of like length share a micro-batch; else they come in the batch's (random) order.
    """

    decoder: Decoder
    prompts: PromptIds
    size: int
    by_length: bool = False

    def backward(self, examples: Sequence[Example]) -> float:
        """Accumulate gradients in micro-batches of ``size`` texts; the batch's loss."""
        ordered = sorted(examples, key=lambda example: -len(example.text)) if self.by_length else examples
        total = torch.zeros((), device=self.decoder.device)
        for branch in BRANCHES:
            chosen = [example for example in ordered if len(example.targets[branch])]
            for at in range(0, len(chosen), self.size):
                part = chosen[at : at + self.size]
                hidden = self._end_states(part, self.prompts.prompts[branch])
                targets = Targets([example.targets[branch] for example in part])
                loss = bag_of_tokens_loss(self.decoder.projection(hidden), targets).sum() / len(chosen)
                loss.backward()
                total += loss.detach()
        return float(total)

    def _end_states(self, part: Sequence[Example], prompt: Sequence[int]) -> Tensor:
        rows = [np.concatenate([self.prompts.head, example.text, prompt]).astype(np.int64) for example in part]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.from_numpy(row)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.decoder.device
        # without padding no mask: plain causal attention, which has faster kernels
        given = None if bool(mask.all()) else mask.long().to(device)
        hidden: Tensor = self.decoder.body(input_ids=ids.to(device), attention_mask=given).last_hidden_state
        return hidden.flatten(0, 1)[(torch.arange(len(rows)) * ids.shape[1] + lengths - 1).to(device)]
