"""The strongest walks of a signed measure, neuron by neuron: exactly the k best.

A walk's relevance is a product of signed conditional relevances, R = R(start) q(i|j) q(h|i) ...,
so the best walk may pass through two negative steps, and its prefix need be no best prefix: plain
max-product is wrong there.  The states are (neuron, sign).  A first sweep, from the input
upwards, finds for every neuron the largest positive and the most negative product over all
completions; it reads each edge once and keeps none.  A second sweep, downwards, keeps the k
prefixes of the best completion: the prefixes that are pending at any time split all walks among
them, so k of them that each have a completion at least as good leave nothing to the others.
Products are kept as sums of logarithms, so that deep networks neither under- nor overflow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import EventError, InputError
from nrm_graph.measures.paths.completions import NEGATIVE, POSITIVE, Steps, parts, sweep
from nrm_graph.measures.results import Path, Paths
from nrm_graph.network.ir.interpreter import exact

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from nrm_graph.measures.event_algebra import Algebra

    Floats = npt.NDArray[np.float64]
    Places = npt.NDArray[np.int64]
    Prefixes = npt.NDArray[np.void]
    """Rows of ``_PREFIX``."""

EDGES = 1_000_000_000
"""Neuron-level edges that are listed one by one without being told to."""

MOST = 1_000_000
"""Walks of each sign that are listed at most: beyond, memory is what ends the list."""

AT_ONCE = 1 << 22
"""Continuations that are compared at once."""

ENUMERATED = 1 << 17
"""Walks that are tried for an event that is no single conjunction."""

_PREFIX = np.dtype(
    [
        ("layer", np.int32),  # -1 where the walk has ended
        ("unit", np.int64),
        ("sign", np.int8),  # of the product so far
        ("wanted", np.int8),  # sign of the walk's relevance
        ("size", np.float64),  # log2 |product so far|
        ("best", np.float64),  # the same of the best completion of the wanted sign
        ("trail", np.int64),
    ]
)


@exact
def strongest_walks(
    measure: Algebra,
    k: int,
    sign: str = "both",
    end: str = "input",
    *,
    limit: float = EDGES,
    progress: bool = True,
) -> Paths:
    """Return the k walks of largest and the k of most negative relevance.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.  Of a conditioned measure, the walks that satisfy the condition, their
        relevance over R(condition).
    k : int
        Number of walks of each sign.
    sign : "both", "positive" or "negative"
        ``both`` gives the k most positive walks, the largest first, and then the k most negative
        ones, the most negative first: not the k of largest |R|.
    end : "input" or "any"
        Whether walks end in an input neuron, or those that a bias or stabilizer absorbs compete
        too.
    limit : float
        Refuse networks of more neuron-level edges than this that must be listed one by one, some
        four million a second (``math.inf`` for none).  Those of convolutions and dense layers,
        where every step is one product, need not be.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

    Returns
    -------
    Paths
        Walks of relevance 0 are none.  ``bound`` is the largest |R| of a walk that competes and
        is not listed.  Exact but for rounding; of walks that tie, any may be listed.

    Raises
    ------
    InputError
        If an argument is out of range, or there are more edges than ``limit``.
    EventError
        If the condition is no single conjunction (a union over layers, say) and too few of the
        strongest walks satisfy it.

    Notes
    -----
    Reads every edge once, whatever k is, and the edges of at most k neurons of each sign and layer
    once more.

    References
    ----------
    Xiong et al., "Relevant walk search for explaining graph neural networks" (2023), for the
    search on products of kernels; here kernels are signed.
    """
    k = _number(k)
    if sign not in ("both", "positive", "negative"):
        raise InputError(f"sign must be 'both', 'positive' or 'negative', found {sign!r}")
    if end not in ("input", "any"):
        raise InputError(f"end must be 'input' or 'any', found {end!r}")
    wanted = {"both": (POSITIVE, NEGATIVE), "positive": (POSITIVE,), "negative": (NEGATIVE,)}[sign]
    coefficient, clause = measure.terms[0] if len(measure.terms) == 1 else (1.0, {})
    steps = Steps(measure.state, clause, end == "any")
    completions = sweep(steps, limit, progress)
    start = measure.start[0].cpu().double().numpy().ravel() * coefficient * measure.scale
    # One more than asked for tells what the others can hold at most.
    if len(measure.terms) == 1:
        by_sign = [_best(steps, completions, start, k + 1, s) for s in wanted]
    else:
        by_sign = [_members(measure, steps, completions, start, k + 1, s) for s in wanted]
    bound = max((abs(path.relevance) for walks in by_sign for path in walks[k:]), default=0.0)
    return Paths(tuple(path for walks in by_sign for path in walks[:k]), (), bound, None, True)


def _number(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MOST:
        raise InputError(f"k must be a number of walks, from 1 to {MOST:,}, found {k!r}")
    return int(k)


class _Trail:
    """Where prefixes came from: place of the prefix one step shorter, layer, unit, last q."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, float]] = []

    def add(
        self,
        parents: npt.ArrayLike,
        layers: npt.ArrayLike,
        units: npt.ArrayLike,
        weights: npt.ArrayLike,
    ) -> npt.NDArray[np.int64]:
        first = len(self.rows)
        columns = (np.asarray(c).tolist() for c in (parents, layers, units, weights))
        self.rows.extend(zip(*columns, strict=True))
        return np.arange(first, len(self.rows))

    def walk(self, place: int) -> tuple[list[tuple[int, int]], float]:
        """Layers and units from the start on, and the product."""
        units, mantissa, exponent = [], 1.0, 0
        while place >= 0:
            place, layer, unit, q = self.rows[place]
            units.append((layer, unit))
            mantissa, more = math.frexp(mantissa * q)
            exponent += more
        return units[::-1], math.ldexp(mantissa, exponent)


def _best(
    steps: Steps, completions: list[Floats], start: Floats, k: int, wanted: int
) -> list[Path]:
    """Return the k best walks of one sign."""
    top, trail = steps.layers - 1, _Trail()
    size, sign = parts(start)
    begin = np.zeros(len(start), _PREFIX)
    begin["layer"], begin["unit"], begin["sign"], begin["size"] = top, range(len(start)), sign, size
    begin["best"] = size + completions[top][sign ^ wanted, np.arange(len(start))]
    begin = begin[_order(begin["best"], k)]
    nowhere = np.full(len(begin), -1)
    begin["trail"] = trail.add(nowhere, begin["layer"], begin["unit"], start[begin["unit"]])
    pending = begin
    for layer_id in range(top, -1, -1):
        here = pending["layer"] == layer_id
        if steps.is_input(layer_id) or not here.any():
            continue
        at_layer, rest = pending[here], pending[~here]
        best, weights = _onward(steps, completions, at_layer, layer_id, k, wanted)
        # What has more than k better ones is dropped before it leaves a trail.
        merged = np.concatenate([rest, best])
        q = np.concatenate([np.zeros(len(rest)), weights])
        new = np.arange(len(merged)) >= len(rest)
        order = _order(merged["best"], k)
        pending, q, new = merged[order], q[order], new[order]
        layers = np.where(pending["layer"] < 0, layer_id, pending["layer"])
        pending["trail"][new] = trail.add(
            pending["trail"][new], layers[new], pending["unit"][new], q[new]
        )
    names = [layer.name for layer in steps.state.network.layout.topology.layers]
    walks = []
    for place in pending["trail"].tolist():
        units, relevance = trail.walk(place)
        walks.append(Path(tuple((names[layer], unit) for layer, unit in units), relevance))
    return sorted(walks, key=lambda path: -abs(path.relevance))


def _order(best: Floats, k: int) -> npt.NDArray[np.int64]:
    """Places of the k best that are possible."""
    there = np.flatnonzero(best > -np.inf)
    if len(there) > k:
        there = there[np.argpartition(-best[there], k - 1)[:k]]
    return there


def _onward(
    steps: Steps, completions: list[Floats], prefixes: Prefixes, layer_id: int, k: int, wanted: int
) -> tuple[Prefixes, Floats]:
    """Continuations of prefixes that have come to one layer: the k best, and their last q."""
    chosen = np.zeros(steps.size(layer_id), bool)
    chosen[prefixes["unit"]] = True
    rows, weights = [prefixes[:0]], [np.zeros(0)]

    def add(parents: Prefixes, layer: int, unit: Places, q: Floats, ahead: Floats) -> None:
        size, negative = parts(q)
        longer = parents.copy()
        longer["layer"], longer["unit"] = layer, unit
        longer["sign"] ^= negative
        longer["size"] += size
        needed = longer["sign"] ^ wanted
        longer["best"] = longer["size"] + ahead[needed, unit if layer >= 0 else 0]
        order = _order(longer["best"], k)
        rows.append(longer[order])
        weights.append(q[order])

    for source, dst, src, q in steps.edges(layer_id, chosen):
        first = np.searchsorted(dst, prefixes["unit"], side="left")
        count = np.searchsorted(dst, prefixes["unit"], side="right") - first
        for part in _slices(count):
            n = count[part]
            which = np.repeat(np.arange(part.start, part.stop), n)
            place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + first[which]
            add(prefixes[which], source, src[place], q[place], completions[source])
    for unit, share in steps.pseudo(layer_id):
        done = np.array([[0.0], [-np.inf]])
        add(prefixes, -1, np.full(len(prefixes), unit), share[prefixes["unit"]], done)
    return np.concatenate(rows), np.concatenate(weights)


def _slices(count: npt.NDArray[np.int64]) -> Iterable[slice]:
    """Slices of prefixes that have about ``AT_ONCE`` continuations."""
    ends = np.cumsum(count)
    first = 0
    while first < len(count):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        yield slice(first, last)
        first = last


def _members(
    measure: Algebra,
    steps: Steps,
    completions: list[Floats],
    start: Floats,
    k: int,
    wanted: int,
) -> list[Path]:
    """Return the k best walks of a sum of conjunctions, out of all walks in their order."""
    value = measure.condition_relevance
    if value < 0:
        wanted = 1 - wanted
    tried = 4 * k
    while True:
        walks = _best(steps, completions, start, tried, wanted)
        satisfying = [path for path in walks if _satisfies(measure, path)]
        if len(satisfying) >= k or len(walks) < tried:
            return [Path(path.units, path.relevance / value) for path in satisfying[:k]]
        if tried >= ENUMERATED:
            raise EventError(
                f"the condition is no single conjunction, and only {len(satisfying)} of the "
                f"{tried:,} strongest walks satisfy it, fewer than asked for: condition on a "
                "conjunction of neuron sets (A & B, ~A), or ask for fewer walks"
            )
        tried *= 4


def _satisfies(measure: Algebra, path: Path) -> bool:
    """Whether a walk satisfies the condition: the signed sum of its conjunctions is 1."""
    layers, total = measure.topology.layers, 0.0
    walk = {layer: unit for layer, unit in path.units if unit >= 0}
    for coefficient, clause in measure.terms:
        good = True
        for i, literal in clause.items():
            unit = walk.get(layers[i].name, -1)
            inside = unit >= 0 and bool(literal.mask.ravel()[unit])
            good = good and inside == literal.passes
        total += coefficient * good
    return round(total * measure.condition_relevance) == 1
