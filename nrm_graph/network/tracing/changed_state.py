"""Tensors of a network that its forward changes: its output must not depend on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrm_graph.errors import TraceError

if TYPE_CHECKING:
    from nrm_graph.network.tracing.module_calls import ModuleCalls


def refuse_changed_state(exported: Any, result: Any, calls: ModuleCalls) -> None:
    """Refuse an output that depends on a tensor of the network that forward changes."""
    signature = exported.graph_signature
    changed = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}.values()
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    reached, ahead = {result}, [result]
    while ahead:
        for read in ahead.pop().all_input_nodes:
            if read not in reached:
                reached.add(read)
                ahead.append(read)
    read = sorted({named[r.target] for r in reached if r.target in named})
    for name in read:
        if name in changed:
            module, _, own = calls.path(name).rpartition(".")
            raise TraceError(
                f"forward changes the tensor {own!r} of {module or 'the network itself'} and "
                "its output depends on it, so that every call is another network: explain it "
                "with that tensor held fixed"
            )
