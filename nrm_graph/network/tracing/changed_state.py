"""Tensors of a network that its forward changes: its output must not depend on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.errors import TraceError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from nrm_graph.network.tracing.module_calls import ModuleCalls


def refuse_changed_state(exported: ExportedProgram, result: Node, calls: ModuleCalls) -> None:
    """Refuse an output that depends on a tensor of the network that forward changes."""
    signature = exported.graph_signature
    changed = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}.values()
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    reached, ahead = {result}, [result]
    while ahead:
        for source in ahead.pop().all_input_nodes:
            if source not in reached:
                reached.add(source)
                ahead.append(source)
    targets = {str(node.target) for node in reached}
    read = {name for target, name in named.items() if target in targets}
    for name in sorted(read.intersection(changed)):
        module, _, tensor = calls.path(name).rpartition(".")
        raise TraceError(
            f"forward changes the tensor {tensor!r} of {module or 'the network itself'} and its "
            "output depends on it, so that every call is another network: explain it with that "
            "tensor held fixed"
        )
