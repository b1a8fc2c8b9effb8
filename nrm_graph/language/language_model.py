"""A language model with its tokenizer: what is measured takes text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nrm_graph.language.one_row import OneRow
from nrm_graph.network.tracing.trace import trace

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from nrm_graph.language.tokens import Reader
    from nrm_graph.network.ir.program import Program


@dataclass(frozen=True)
class LanguageModel:
    """A language model that takes text, as :func:`nrm_graph.load_model` gives it.

    Attributes
    ----------
    module : nn.Module
        The model of transformers, its weights as they are stored.
    reader : Reader
        What makes tokens of texts, and names outputs.
    head : "causal", "masked" or "classification"
        What it answers: the next token, the token in the place of the mask, or a class.
    family : str
        As transformers calls it: ``gpt2``, ``llama``, ``bert``.
    name : str
        Folder or name that it was loaded from.
    weights : tuple of Path
        Its files of safetensors.
    local : bool
        Whether it was a folder of the caller's own, rather than a name of the hub.

    Notes
    -----
    A program is traced once for every length, and holds the weights as they were then: load the
    model again after changing them.
    """

    module: nn.Module
    reader: Reader
    head: str
    family: str
    name: str
    weights: tuple[Path, ...]
    local: bool = True
    _programs: dict[int, Program] = field(default_factory=dict, repr=False, compare=False)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of a classifier's classes."""
        return self.reader.classes

    @property
    def longest(self) -> int | None:
        """Positions that the model knows; None if it does not say."""
        return self.reader.longest

    def network(self) -> nn.Module:
        """Return the network that is explained: ids and mask to one row of outputs."""
        return OneRow(self.module, self.head, self.reader.mask)

    def program(self, length: int) -> Program:
        """Return the traced network for texts of so many positions.

        Raises
        ------
        NrmError
            If the network cannot be traced.
        """
        if length not in self._programs:
            example = self.example(length)
            self._programs[length] = trace(self.network(), example)
        return self._programs[length]

    def example(self, length: int) -> dict[str, Tensor]:
        """Return some ids and their mask, batches of one: what a network is traced with."""
        ids = torch.arange(length) * 7919 % self.reader.vocabulary
        if self.reader.mask is not None:
            ids[length // 2] = self.reader.mask
        return {"input_ids": ids[None], "attention_mask": torch.ones(1, length, dtype=torch.int64)}

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.module.parameters())
        return f"<{self.head} language model {self.name} ({self.family}), {size:,} parameters>"
