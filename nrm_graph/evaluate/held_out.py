"""Which inputs a circuit is tested on, and which it comes from; they never share a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.circuits.checks import check_circuit
from nrm_graph.errors import InputError, StoreError
from nrm_graph.evaluate.ablation import execute, outputs
from nrm_graph.network.device import device_of
from nrm_graph.store.input_group import group
from nrm_graph.store.stored_measure import LOGIT_TOLERANCE, batch_of, network_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import networkx as nx
    from torch import Tensor

    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View

Batch = tuple["Tensor", ...]


def trained_on(db: View, circuit: nx.DiGraph) -> InputGroup:
    """Return the inputs that a circuit was computed from.

    Raises
    ------
    InputError
        If the graph does not say, or the store lacks one of them.
    """
    check_circuit(circuit, db)
    keys = circuit.graph.get("keys")
    if not keys or isinstance(keys, str):
        raise InputError(
            "the circuit does not say which inputs it comes from: expected graph['keys'], as "
            "db.circuit(...) sets it"
        )
    return group(db, inputs=list(keys), target=circuit.graph.get("target"), mixed_targets=True)


def held_out(db: View, circuit: nx.DiGraph, where: str | None) -> InputGroup:
    """Choose the inputs to test a circuit on.

    Parameters
    ----------
    db : Database
        The store.
    circuit : DiGraph
        Its graph says the keys and the target.
    where : str, optional
        SQL condition over ``inputs``; by default all whose keys are not the circuit's.

    Raises
    ------
    InputError
        If ``where`` chooses keys of the circuit, or nothing is left.
    """
    trained_keys, target = set(circuit.graph["keys"]), circuit.graph.get("target")
    candidates = group(db, where, target=target, mixed_targets=True)
    free = np.array([key not in trained_keys for key in candidates.keys])
    kind = "" if target is None else f" of target {db.outputs.text(target, db.classes)}"
    if where is not None and not free.all():
        raise InputError(
            f"{(~free).sum()} of the {len(candidates)} inputs{kind} that {where!r} chooses are "
            f"among the circuit's own {len(trained_keys)} keys, {free.sum()} remain: a circuit is "
            "tested on inputs that it was not computed from; choose others, or compute it from "
            "fewer, such as inputs=ng.evaluate.split(db).circuit"
        )
    if not free.any():
        raise InputError(
            f"there are no inputs{kind} beside the circuit's own {len(trained_keys)} keys to test "
            "it on: compute it from a part of them, db.circuit(where, "
            "inputs=ng.evaluate.split(db).circuit)"
        )
    return candidates.take(np.flatnonzero(free))


def once(chosen: InputGroup) -> InputGroup:
    """Keep one pair of every key: what is the same for all targets counts once."""
    _, first = np.unique(np.array(chosen.keys, object), return_index=True)
    return chosen.take(np.sort(first))


def network_for(db: View, chosen: InputGroup, device: str | torch.device) -> Network:
    """Return the stored network, in the precision of the stored inputs.

    Raises
    ------
    InputError
        If the store keeps no input tensors, or there is no such device.
    StoreError
        If the store is damaged.
    """
    place = device_of(device)
    first = batch_of(db, chosen.ids[:1].tolist())
    kind = next((x.dtype for x in first if x.is_floating_point()), None)
    return network_of(db, kind, place)


def batches(db: View, net: Network, chosen: InputGroup, size: int) -> Iterator[Batch]:
    """Yield inputs in batches of at most ``size``, on the network's device."""
    like = next((w for w in net.program.weights.values() if w.is_floating_point()), None)
    for start in range(0, len(chosen), size):
        xs: Any = batch_of(db, chosen.ids[start : start + size].tolist())
        if like is not None:
            xs = tuple(x.to(like.device, like.dtype if x.is_floating_point() else None) for x in xs)
        yield xs


def seeds(chosen: InputGroup, start: int, stop: int, outputs: int) -> Tensor:
    """Targets of some inputs, ``(n,)``, or their weights over outputs, ``(n, outputs)``.

    See :meth:`nrm_graph.store.input_group.InputGroup.seeds`.
    """
    return torch.from_numpy(chosen.seeds(start, stop, outputs))


def logits_of(outputs: Tensor, at: Tensor) -> Tensor:
    """Return the outputs ``(N,)`` that targets or weights choose of ``(N, outputs)``."""
    if at.ndim > 1:
        return (outputs * at.to(outputs)).sum(1)
    return outputs.gather(1, at.to(outputs.device)[:, None])[:, 0]


def check_outputs(net: Network, chosen: InputGroup, outputs: Tensor) -> None:
    """Compare the outputs ``(N, outputs)`` of a run without ablation with the stored logits.

    Raises
    ------
    StoreError
        If they differ by more than the rounding of a forward run.
    """
    at = seeds(chosen, 0, len(chosen), outputs.shape[1])
    logits = logits_of(outputs, at).cpu().double().numpy()
    allowed = LOGIT_TOLERANCE * outputs.abs().amax(1).cpu().double().numpy()
    if at.ndim > 1:  # weights
        allowed = allowed * at.abs().sum(1).numpy()
    wrong = np.flatnonzero(~(np.abs(logits - chosen.logits) <= allowed))
    if len(wrong):
        b = wrong[0]
        raise StoreError(
            f"input {chosen.keys[b]!r}: the stored program gives the target's output "
            f"{logits[b]:.6g}, the store says {chosen.logits[b]:.6g}: the circuit is not of this "
            "network; copy the store again"
        )


@torch.no_grad()
def unablated(net: Network, xs: Batch) -> Tensor:
    """Output ``(N, outputs)`` of the network as it is."""
    return outputs(net, execute(net, xs))
