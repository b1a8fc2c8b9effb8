"""How faithful circuits are: ablation in the running network, and randomized parameters.

A circuit says what carries relevance; these tests say whether the network depends on it.
:func:`faithfulness` ablates a circuit's units or edges on inputs that it was not computed from,
step by step, beside rivals that ablate as many in every layer.  :func:`randomization` computes
the circuit again after weights were drawn anew: an explanation of the network must change.
:func:`ablate` runs the network without an event's neurons, of one input or of many, and
:func:`split` holds keys out, to test circuits on.
"""

from nrm_graph.evaluate.ablated_events import Ablated, ablate
from nrm_graph.evaluate.curves import SCORES, Curves
from nrm_graph.evaluate.faithfulness import RIVALS, faithfulness
from nrm_graph.evaluate.key_split import Split, split
from nrm_graph.evaluate.weight_randomization import Randomization, randomization

__all__ = [
    "RIVALS",
    "SCORES",
    "Ablated",
    "Curves",
    "Randomization",
    "Split",
    "ablate",
    "faithfulness",
    "randomization",
    "split",
]


def __dir__() -> list[str]:
    return sorted(__all__)
