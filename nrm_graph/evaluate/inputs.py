"""Which inputs a circuit is tested on, and which it comes from; they never share a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError, StoreError
from nrm_graph.evaluate.ablation import execute, outputs
from nrm_graph.prepare import device_of
from nrm_graph.store.statement import chosen_inputs
from nrm_graph.stored import LOGIT_TOLERANCE, batch_of, network_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import networkx as nx
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.database import Database
    from nrm_graph.states import Network

Batch = tuple["Tensor", ...]


@dataclass(frozen=True)
class Chosen:
    """Some (key, target) pairs of a store.

    Attributes
    ----------
    ids : tuple of int
        Input ids.
    keys : tuple of str
        Their keys.
    targets, logits : ndarray, (N,)
        Flat index of the target, and its stored output.
    """

    ids: tuple[int, ...]
    keys: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


def trained_on(db: Database, circuit: nx.DiGraph) -> Chosen:
    """Inputs that a circuit was computed from.

    Raises
    ------
    InputError
        If the graph does not say, or the store has none of them.
    """
    keys = circuit.graph.get("keys")
    if not keys or isinstance(keys, str):
        raise InputError(
            "the circuit does not say which inputs it comes from: expected graph['keys'], as "
            "db.circuit(...) sets it"
        )
    entries, by_key = db._snapshot.entries, db._snapshot.by_key
    missing = [key for key in keys if key not in by_key]
    if missing:
        raise InputError(
            f"{len(missing)} of the circuit's {len(keys)} keys are not in {db.path}, such as "
            f"{missing[0]!r}: pass the store that it was computed from"
        )
    target = circuit.graph.get("target")
    ids = [i for key in dict.fromkeys(keys) for i in by_key[key]]
    return _facts(db, [i for i in ids if target is None or entries[i].target == target])


def held_out(db: Database, circuit: nx.DiGraph, where: str | None) -> Chosen:
    """Inputs to test a circuit on.

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
    own = set(circuit.graph["keys"])
    target = circuit.graph.get("target")
    if where is None:
        ids = list(db._snapshot.entries)
    else:
        ids = [i for (i,) in db.sql(chosen_inputs(where)).fetchall()]
    entries = db._snapshot.entries
    ids = sorted(i for i in ids if target is None or entries[i].target == target)
    free = [i for i in ids if entries[i].key not in own]
    kind = "" if target is None else f" of target {target}"
    if where is not None and len(free) < len(ids):
        raise InputError(
            f"{len(ids) - len(free)} of the {len(ids)} inputs{kind} that {where!r} chooses are "
            f"among the circuit's own {len(own)} keys, {len(free)} remain: a circuit is tested on "
            "inputs that it was not computed from; choose others, or compute it from fewer"
        )
    if not free:
        raise InputError(
            f"there are no inputs{kind} to test the circuit on beside its own {len(own)} keys"
            + ("" if where is None else f" where {where!r}")
            + ": compute it from a part of them, such as where=\"label = 'cat' AND input_id % 3 > "
            '0"'
        )
    return _facts(db, free)


def _facts(db: Database, ids: list[int]) -> Chosen:
    rows = db.sql(
        "SELECT input_id, key, target, CAST(logit AS DOUBLE) FROM inputs", inputs=ids
    ).fetchall()
    found = {row[0]: row for row in rows}
    return Chosen(
        tuple(ids),
        tuple(found[i][1] for i in ids),
        np.array([found[i][2] for i in ids], np.int64),
        np.array([found[i][3] for i in ids], np.float64),
    )


def network_for(db: Database, chosen: Chosen, device: str | torch.device) -> Network:
    """Return the stored network, in the precision of the stored inputs.

    Raises
    ------
    InputError
        If the store keeps no input tensors, or there is no such device.
    StoreError
        If the store is damaged.
    """
    place = device_of(device)
    first = batch_of(db, chosen.ids[:1])
    kind = next((x.dtype for x in first if x.is_floating_point()), None)
    return network_of(db, kind, place)


def batches(db: Database, net: Network, chosen: Chosen, size: int) -> Iterator[Batch]:
    """Inputs in batches of at most ``size``, on the network's device."""
    like = next((w for w in net.program.weights.values() if w.is_floating_point()), None)
    for start in range(0, len(chosen), size):
        xs: Any = batch_of(db, chosen.ids[start : start + size])
        if like is not None:
            xs = tuple(x.to(like.device, like.dtype if x.is_floating_point() else None) for x in xs)
        yield xs


def check_outputs(net: Network, chosen: Chosen, found: Tensor) -> None:
    """Compare the outputs ``(N, outputs)`` of a run without ablation with the stored logits.

    Raises
    ------
    StoreError
        If they differ by more than the rounding of a forward run.
    """
    at = torch.from_numpy(chosen.targets).to(found.device)[:, None]
    logits = found.gather(1, at)[:, 0].double().cpu().numpy()
    allowed = LOGIT_TOLERANCE * found.abs().amax(1).double().cpu().numpy()
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
