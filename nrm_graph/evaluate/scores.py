"""What a run is scored by: logit, probability and margin of every input's target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.evaluate.held_out import logits_of, seeds

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.targets import Outputs
    from nrm_graph.store.input_group import InputGroup


@dataclass(frozen=True)
class Scorer:
    """Logit, probability and margin of every held-out input's target; of weights their sum.

    Attributes
    ----------
    outputs : Outputs
        What the network returns.
    chosen : InputGroup
        The inputs.
    """

    outputs: Outputs
    chosen: InputGroup

    def __call__(self, returned: Tensor) -> npt.NDArray[np.float64]:
        """``(N, outputs)`` to ``(N, 3)``; NaN where there are no other outputs to compare with."""
        at = seeds(self.chosen, 0, len(self.chosen), self.outputs.count)
        values = returned.cpu().double().numpy()
        scores = np.full((len(values), 3), np.nan)
        scores[:, 0] = logits_of(returned.double(), at).cpu().numpy()
        for b, target in enumerate(self.chosen.aims):
            if isinstance(target, str):
                continue
            first, last = _alternatives(self.outputs, target)
            row = values[b, first:last]
            if last - first > 1:
                shifted = np.exp(row - row.max())
                scores[b, 1] = shifted[target - first] / shifted.sum()
                scores[b, 2] = row[target - first] - np.delete(row, target - first).max()
        return scores


def _alternatives(outputs: Outputs, target: int) -> tuple[int, int]:
    """Find the outputs that a target competes with, those along the last axis: first, last."""
    first = 0
    for _, shape in outputs.parts:
        size = math.prod(shape)
        if first <= target < first + size:
            width = shape[-1] if shape else 1
            start = first + (target - first) // width * width
            return start, start + width
        first += size
    raise InputError(f"target {target} is no output of the network")
