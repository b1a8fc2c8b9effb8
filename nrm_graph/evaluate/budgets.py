"""How many units or edges of each layer are ablated at every step: the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from nrm_graph.evaluate.ablation import EdgesByPair, UnitsByLayer
    from nrm_graph.evaluate.ranking import Key, Ranking

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Budgets:
    """Numbers of parts by step.

    Attributes
    ----------
    fractions : ndarray, (steps,)
        Shares of the circuit, rising.
    counts : mapping of Key to ndarray of int, (steps,)
        Parts of each layer, or pair of layers.
    """

    fractions: npt.NDArray[np.float64]
    counts: Mapping[Key, npt.NDArray[np.int64]]

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """Parts in all layers, by step."""
        return sum(self.counts.values(), np.zeros(len(self.fractions), np.int64))

    def first(self, ranking: Ranking, step: int) -> dict[Key, npt.NDArray[np.int64]]:
        """Parts that a ranking spends a step's budget on."""
        return {key: ranking[key][: self.counts[key][step]] for key in self.counts}


def budgets(sequence: Sequence[Key], fractions: npt.ArrayLike = FRACTIONS) -> Budgets:
    """Follow a circuit from its strongest part to its weakest.

    Parameters
    ----------
    sequence : sequence of Key
        Layer, or pair of layers, of each part of the circuit, the strongest first.
    fractions : sequence of float
        Shares of the circuit, from 0 to 1 and rising; of a share the nearest whole number is
        taken.

    Raises
    ------
    InputError
        If the fractions are anything else.
    """
    try:
        shares = np.asarray(fractions, np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(0)
    inside = shares.ndim == 1 and len(shares) > 1 and bool(((shares >= 0) & (shares <= 1)).all())
    if not inside or not bool((np.diff(shares) > 0).all()):
        raise InputError(
            f"fractions must be at least two rising numbers from 0 to 1, found {fractions!r}"
        )
    counts = np.floor(shares * len(sequence) + 0.5).astype(np.int64)
    keys = sorted(set(sequence))
    place = np.array([keys.index(key) for key in sequence])
    so_far = np.cumsum(place[:, None] == np.arange(len(keys)), axis=0)
    so_far = np.concatenate([np.zeros((1, len(keys)), np.int64), so_far])
    return Budgets(shares, {key: so_far[counts, k] for k, key in enumerate(keys)})


def shuffled(everything: Ranking, seed: int, draw: int) -> Ranking:
    """Put all parts of every layer in random order."""
    rng = np.random.default_rng([seed, draw])
    return {key: rng.permutation(everything[key]) for key in sorted(everything)}


def units_to_ablate(
    chosen: Mapping[Key, npt.NDArray[np.int64]], everything: Ranking, keep: bool
) -> UnitsByLayer:
    """Units by layer: those chosen, or all others."""
    units = {}
    for (layer,), parts in chosen.items():
        chosen_units = set(parts[:, 0].tolist())
        units[layer] = (
            set(everything[layer,][:, 0].tolist()) - chosen_units if keep else chosen_units
        )
    return units


def edges_to_ablate(
    chosen: Mapping[Key, npt.NDArray[np.int64]], sizes: Sequence[int], keep: bool
) -> EdgesByPair:
    """Source units by pair of layers and dst unit: those chosen, or all others.

    Parameters
    ----------
    sizes : sequence of int
        Number of units of every layer.
    """
    edges: dict[tuple[int, int], dict[int, frozenset[int]]] = {}
    for (dst, src), parts in chosen.items():
        by_reader: dict[int, set[int]] = {}
        for above, below in parts.tolist():
            by_reader.setdefault(above, set()).add(below)
        if keep:
            whole = frozenset(range(sizes[src]))
            cut_units = {unit: whole - cut for unit, cut in by_reader.items()}
            edges[dst, src] = dict.fromkeys(range(sizes[dst]), whole) | cut_units
        else:
            edges[dst, src] = {unit: frozenset(cut) for unit, cut in by_reader.items()}
    return edges
