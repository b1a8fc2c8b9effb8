"""Which heads of the demo's transformer work together, by their attention and by relevance.

The true pair is told from attention alone: of the first block the head that attends most to the
position before, of the second the one that attends most to what followed the present letter when
it was last read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.cli.demo.induction import HEADS, PERIOD, SIZE
from nrm_graph.evaluate.ablated_events import ablate
from nrm_graph.events.sets import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from nrm_graph.cli.demo.induction import InductionTransformer
    from nrm_graph.events.sets import Event
    from nrm_graph.measures.measure import Measure
    from nrm_graph.store.view import View

    Floats = npt.NDArray[np.float64]

FIRST, SECOND = "blocks.0.attention.attention", "blocks.1.attention.attention"
KEYS = "blocks.1.attention.key"


@dataclass(frozen=True, eq=False)
class HeadScores:
    """What each head attends to, from 0 to 1, means over prompts.

    Attributes
    ----------
    previous : ndarray, (heads,)
        Of heads of the first block: attention to the position before, where letters are read for
        the first time: there are the keys that induction looks for.
    induction : ndarray, (heads,)
        Of heads of the second block: attention, from each letter that was read before, to the
        letter that followed it then.
    """

    previous: Floats
    induction: Floats

    @property
    def pair(self) -> tuple[int, int]:
        """The induction head of the second block, and the previous-token head of the first."""
        return int(self.induction.argmax()), int(self.previous.argmax())


@torch.no_grad()
def head_scores(model: InductionTransformer, prompts: Sequence[dict[str, Any]]) -> HeadScores:
    """Score each head by its attention alone."""
    first, second = model.patterns(torch.stack([prompt["input"] for prompt in prompts]))
    queries = torch.arange(1, PERIOD)
    again = torch.arange(PERIOD, first.shape[-1])
    previous = first[:, :, queries, queries - 1].double().mean((0, 2))
    induction = second[:, :, again, again - PERIOD + 1].double().mean((0, 2))
    return HeadScores(previous.numpy(), induction.numpy())


def joint_of_heads(measures: Iterable[Measure], *, keys: bool = False) -> Floats:
    """Mean joint relevance of every head of the second block with every head of the first.

    Parameters
    ----------
    measures : iterable of Measure
        One for each prompt.
    keys : bool
        Of the walks through keys of the second block alone, instead of all.

    Returns
    -------
    ndarray, (heads of the second block, heads of the first)
    """
    values = []
    for m in measures:
        features = np.arange(HEADS * SIZE) // SIZE
        upper = np.broadcast_to(features, m.topology.layer(KEYS).shape)
        joint = (
            m.joint(KEYS, FIRST, by=(upper, "head")) if keys else m.joint(SECOND, FIRST, by="head")
        )
        values.append(joint.values)
    mean: Floats = np.mean(values, axis=0)
    return mean


def both_heads(upper: int, lower: int) -> Event:
    """Return the event of what a head of each block mixes."""
    return Layer(SECOND)[upper] & Layer(FIRST)[lower]


def drops_of_pairs(db: View) -> Floats:
    """Mean fall of the answer's score with both heads of a pair set to zero; as joint_of_heads."""
    drops = np.zeros((HEADS, HEADS))
    for upper, lower in np.ndindex(HEADS, HEADS):
        ablated = ablate(db, both_heads(upper, lower), progress=False)
        drops[upper, lower] = ablated.table["drop"].to_numpy().mean()
    return drops


def rank_of(values: Floats, pair: tuple[int, int]) -> int:
    """Rank of a pair by value, the largest being 1."""
    return 1 + int((values > values[pair]).sum())


def others(values: Floats, pair: tuple[int, int]) -> Floats:
    """Return the values of all other pairs, the largest first."""
    rest: Floats = np.sort(np.delete(values.ravel(), np.ravel_multi_index(pair, values.shape)))
    return rest[::-1]
