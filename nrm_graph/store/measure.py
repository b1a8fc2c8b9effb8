"""What a store computes with its own network: the exact measure of one input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.store.lookups import pair_or_weights

if TYPE_CHECKING:
    import torch

    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


def measure(
    db: View,
    key: str | int,
    target: Sought | None = None,
    *,
    dtype: str | None = None,
    scale: str = "unit",
    device: str | torch.device = "cpu",
    memory: int = 1 << 30,
    input: Inputs | None = None,
) -> Measure:
    """Return the exact measure of one input, computed from the stored program.

    Parameters
    ----------
    db : Database
        The store.
    key : str or int
        Key or input_id.
    target : int, tuple, mapping of int or tuple to float, or text of weights, optional
        Needed where the key has several targets.  A tuple is a place in an output of several
        axes, such as (position, class); see :func:`nrm_graph.measure`.  Signed weights over
        outputs, such as ``{3: 1, 5: -1}`` for what speaks for 3 and against 5, need not be
        stored; the text of stored ones, as the column ``weights`` of ``inputs`` holds it, will
        do.
    dtype, scale, device, memory
        As in :func:`nrm_graph.measure`.
    input : Tensor, or a tuple or mapping of tensors, optional
        The input itself, with or without a batch axis of 1, in the form that
        :func:`nrm_graph.measure` takes; needed where the store was made
        with ``tensors="omit"``.  It must be the one that was explained.

    Raises
    ------
    InputError
        If there is no such input, it has several targets, or its tensor is missing or another
        one.
    StoreError
        If the store is damaged.

    Warns
    -----
    UserWarning
        If the target's output is not the stored one, beyond the rounding of a forward run.
    """
    from nrm_graph.store.stored_measure import stored_measure

    identity, weights = pair_or_weights(db, key, target)
    return stored_measure(
        db,
        identity,
        weights,
        dtype=dtype,
        scale=scale,
        device=device,
        memory=memory,
        inputs=input,
    )


def program(db: View) -> Program:
    """Return the stored program, which others take in place of a model.

    Raises
    ------
    StoreError
        If the store is damaged.
    InputError
        If the store names its weights (``ng.extract(..., weights="named")``), and they are not
        given, or are others.
    """
    from nrm_graph.store.stored_measure import program_of

    return program_of(db)
