"""Activations of one batch, and of many copies of one sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.rules.base import Kernel


@dataclass
class State:
    """Activations of one batch and what the pass derives from them.

    Attributes
    ----------
    values : dict of str to Tensor
        Native value of every node: the batch where the network has it.
    winners : dict of str to Tensor
        Flat spatial index of every max-pool's selection (torch's first in scan order).
    constant : dict of str to Tensor, or to a list of them for the parts of a split
        Where a value is a constant that was routed in (padding, class tokens): 0 for neurons,
        k for the k-th of ``constants``.
    constants : list of str
        Names of the constants that were routed in.
    kernels : dict of str to Kernel
        Kernels, filled at the first pass.
    positive : bool
        Whether no input of the batch is negative, whole numbers apart.
    last : str
        Operation whose kernel is the only one, where weights are in half precision.
    left : dict of str to Tensor
        Where biases are left out, outputs of convolutions and dense layers without theirs.
    means : dict of str to ndarray
        Mean activations by unit, filled when tables are made.
    single : State or None
        Where this is a batch of copies (see :func:`repeated`), the state of the one sample.
    decided : State or None
        The same batch in another precision, whose decisions are kept: winners of pools, signs that
        rules branch on (see :func:`nrm_graph.propagation.forward.in_precision`).
    """

    network: Network
    values: dict[str, Any]
    positive: bool = False
    winners: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Any] = field(default_factory=dict)
    constants: list[str] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    last: str = ""
    left: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Any] = field(default_factory=dict)
    single: State | None = None
    decided: State | None = None

    @property
    def output(self) -> Tensor:
        """Network output, ``(N, outputs)``."""
        name = self.network.program.output
        value = self.samples(name, self.values[name])
        return value.reshape(value.shape[0], -1)

    def samples(self, name: str, native: Tensor) -> Tensor:
        """``(N, *shape)`` of something that is laid out like the value ``name``."""
        return self.network.layout.batches[name].samples(native)


def repeated(state: State, n: int) -> State:
    """Return the state of one sample as that of n copies, which share its memory.

    Many events of one input make one batch.  Where a value does not keep its batch in front, the
    copies are real.
    """
    if n == 1:
        return state
    batches = state.network.layout.batches

    def copies(name: str, value: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Any:
        if isinstance(value, list | tuple):
            return [copies(name, part) for part in value]
        return copied(batches[name], value, n)

    return State(
        state.network,
        {name: copies(name, value) for name, value in state.values.items()},
        state.positive,
        {name: copies(name, value) for name, value in state.winners.items()},
        {name: copies(name, value) for name, value in state.constant.items()},
        single=state,
        decided=None if state.decided is None else repeated(state.decided, n),
    )


def copied(batch: BatchAxis, native: Tensor, n: int) -> Tensor:
    """Give a native value of one sample to n, which share its memory where they can."""
    one = batch.samples(native)
    return batch.native(one.expand(n, *one.shape[1:]))
