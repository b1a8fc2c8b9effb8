"""The language demo's network: a two-layer transformer that repeats what it has read.

Its weights ship inside the package (``nrm_graph/data``); ``scripts/train_induction.py`` writes them
anew. This module imports torch: import it lazily.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn

__all__ = ["LETTERS", "InductionTransformer", "load_induction", "prompts", "repeated"]

LETTERS: tuple[str, ...] = tuple("abcdefghijklmnopqrstuvwxyz")
"""The vocabulary; the position is the token id, and the number of the output."""

HEADS = 4
"""Heads of each block."""

SIZE = 32
"""Features of a head."""

WIDTH = 64
"""Features of the stream."""

LENGTH = 24
"""Positions that the network was trained on."""

PERIODS = range(6, 13)
"""Letters after which a sequence of the training begins anew."""

PERIOD, REPEATED = 8, 4
"""A prompt of the demo: so many letters that all differ, then the first of them again."""

HELD_OUT = 1_000_000
"""Seed of prompts that no training draws."""

WEIGHTS_FILE = "induction.safetensors"


class Attention(nn.Module):
    """Causal attention of four heads, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * SIZE, bias=False)
        self.key = nn.Linear(WIDTH, HEADS * SIZE, bias=False)
        self.value = nn.Linear(WIDTH, HEADS * SIZE, bias=False)
        self.out = nn.Linear(HEADS * SIZE, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the values of a stream of shape (N, positions, WIDTH)."""
        q, k, v = (by_head(part(x)) for part in (self.query, self.key, self.value))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.out(mix.transpose(1, 2).flatten(2))
        return out

    def pattern(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights of the mix, of shape (N, heads, queries, keys)."""
        q, k = by_head(self.query(x)), by_head(self.key(x))
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = q @ k.transpose(-2, -1) / SIZE**0.5
        weights: torch.Tensor = scores.masked_fill(later, -torch.inf).softmax(-1)
        return weights


def by_head(x: torch.Tensor) -> torch.Tensor:
    """(N, positions, HEADS x SIZE) as (N, heads, positions, SIZE)."""
    return x.reshape(*x.shape[:-1], HEADS, SIZE).transpose(1, 2)


class Block(nn.Module):
    """Attention, read from the stream through a norm and added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stream after this block."""
        out: torch.Tensor = x + self.attention(self.norm(x))
        return out


class InductionTransformer(nn.Module):
    """A decoder of two blocks of attention that completes repeated sequences of letters.

    Its weights begin small (GPT-2's 0.02), so that heads come to differ.  The mechanism that such
    networks learn is known [1]_: a head of the first block attends to the position before, so that
    each position notes which letter came before it; a head of the second finds the position whose
    previous letter is the present one, by its keys, and copies the letter that stands there.

    References
    ----------
    .. [1] C. Olsson et al., "In-context learning and induction heads", arXiv:2209.11895 (2022).

    Examples
    --------
    >>> import torch
    >>> InductionTransformer()(torch.zeros(2, 12, dtype=torch.long)).shape
    torch.Size([2, 26])
    """

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), WIDTH)
        self.positions = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LETTERS), bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0, 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the scores of the letter that comes next.

        Parameters
        ----------
        ids : torch.Tensor
            Token ids of shape (N, positions), 24 positions at most.

        Returns
        -------
        torch.Tensor
            Scores of shape (N, 26), in the order of `LETTERS`.
        """
        out: torch.Tensor = self.head(self.norm(self.stream(ids)[:, -1]))
        return out

    def stream(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the stream behind the last block, of shape (N, positions, WIDTH)."""
        x: torch.Tensor = self.letters(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x

    def everywhere(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the scores of what comes next at every position, (N, positions, 26)."""
        out: torch.Tensor = self.head(self.norm(self.stream(ids)))
        return out

    def patterns(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the attention of each block, of shape (N, heads, queries, keys)."""
        x, patterns = self.letters(ids) + self.positions[: ids.shape[1]], []
        for block in self.blocks:
            patterns.append(block.attention.pattern(block.norm(x)))  # type: ignore[operator, union-attr]
            x = block(x)
        return patterns


def repeated(
    count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw sequences of 6 to 12 letters that all differ, over and over.

    The period is drawn, too, so that no position is the answer: what comes next can be told only
    from where the present letter was before.

    Returns
    -------
    ids, following, known : torch.Tensor
        Each of shape (count, 24): token ids, those that come next, and whether they can be known.
    """
    letters = torch.rand(count, len(LETTERS), generator=generator).argsort(1)
    period = torch.randint(PERIODS.start, PERIODS.stop, (count, 1), generator=generator)
    place = torch.arange(LENGTH + 1)
    ids = letters.gather(1, place % period)
    return ids[:, :-1], ids[:, 1:], place[:-1] >= period


def prompts(count: int, seed: int = HELD_OUT) -> list[dict[str, Any]]:
    """Draw prompts: eight letters that all differ, then the first four of them again.

    Returns
    -------
    list of dict
        ``"input"`` holds the token ids, ``"key"`` and ``"tokens"`` the letters, ``"label"`` the
        letter that comes next.

    Examples
    --------
    >>> first = prompts(1)[0]
    >>> len(first["tokens"]), first["tokens"][:4] == first["tokens"][8:]
    (12, True)
    """
    generator = torch.Generator().manual_seed(seed)
    letters = torch.rand(count, len(LETTERS), generator=generator).argsort(1)[:, :PERIOD]
    ids = torch.cat([letters, letters[:, :REPEATED]], 1)
    texts = [[LETTERS[i] for i in row] for row in ids.tolist()]
    return [
        {
            "input": row.clone(),
            "key": "".join(text[:PERIOD]) + "-" + "".join(text[PERIOD:]),
            "label": text[REPEATED],
            "tokens": text,
        }
        for row, text in zip(ids, texts, strict=True)
    ]


def load_induction() -> tuple[InductionTransformer, list[dict[str, Any]]]:
    """Load the trained network that the package ships, and 32 prompts that it was not trained on.

    Examples
    --------
    >>> model, inputs = load_induction()
    >>> scores = model(inputs[0]["input"].unsqueeze(0))
    >>> LETTERS[int(scores.argmax())] == inputs[0]["label"]
    True
    """
    model = InductionTransformer()
    weights = files("nrm_graph").joinpath("data", WEIGHTS_FILE).read_bytes()
    model.load_state_dict(load(weights))
    return model.eval(), prompts(32)
