"""Bounded tables of one input: their number, the row of what is left out, and the thresholds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.network.topology import PRUNED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nrm_graph.store.verify.tables import Rows, StoreFacts


def check(facts: StoreFacts, edges: Rows) -> Iterator[tuple[int | None, str]]:
    """Tell where the edges of an input are not what a bounded store promises: (layer, problem)."""
    most, number = facts.most, len(edges["relevance"])
    if most is not None and number > most:
        yield None, f"{number:,} edges: the store keeps {most:,} of an input"
    if not number:
        return
    thresholds = facts.thresholds.get(int(edges["input_id"][0]))
    groups = facts.meta["groups"]
    if not isinstance(thresholds, list) or len(thresholds) != len(groups):
        length = len(thresholds) if isinstance(thresholds, list) else "none"
        yield (
            None,
            f"expected {len(groups)} thresholds, one for each pair of layers, found {length}",
        )
        return
    rounding = 0.0 if facts.bits is None else 2.0 ** -(facts.bits + 1)
    width = len(facts.units)
    pair = edges["dst_layer"].astype(np.int64) * width + edges["src_layer"]
    rest = edges["dst_unit"] == PRUNED
    order = np.argsort(pair[~rest], kind="stable")
    strengths, pairs = np.abs(edges["relevance"][~rest])[order], pair[~rest][order]
    lacking = set(pair[rest].tolist())
    for (dst, src, _), threshold in zip(groups, thresholds, strict=True):
        key = dst * width + src
        if not isinstance(threshold, float) or not math.isfinite(threshold) or threshold < 0:
            yield dst, f"the threshold of its pair with {facts.name(src)} is {threshold}"
            continue
        if (threshold > 0) != (key in lacking):
            has = "a row" if key in lacking else "no row"
            yield (
                dst,
                f"its pair with {facts.name(src)} has {has} of what is left out, and the threshold "
                f"{threshold:.9g}",
            )
        start, end = np.searchsorted(pairs, [key, key + 1])
        weakest = float(strengths[start:end].min(initial=np.inf))
        # Of numbers of float64 thresholds are rounded up to float32, edges to the nearest.
        if weakest < threshold * (1 - rounding - 2.0**-23):
            yield (
                dst,
                f"an edge to {facts.name(src)} has |relevance| {weakest:.9g}, below the threshold "
                f"{threshold:.9g}",
            )
