"""Targets of a data set's inputs: labels in their places, and what the first input says of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.extraction.input_labels import class_index
from nrm_graph.network.targets import outputs_of
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.propagation.flags import flags_of, vanished
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_scale import added_up
from nrm_graph.propagation.output_weights import output_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.extraction.samples import Sample
    from nrm_graph.network.targets import Outputs
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.propagation.state import State


def labelled(choice: object, sample: Sample, classes: Sequence[str] | None) -> Any:
    """Return a target with the label of a sample in the place of ``label``; or the sample's own."""
    return _labelled(choice if sample.own is None else sample.own.aim, sample, classes)


def _labelled(choice: object, sample: Sample, classes: Sequence[str] | None) -> Any:
    if isinstance(choice, Mapping):
        weights: dict[Any, float] = {}
        for place, weight in choice.items():
            named = _labelled(place, sample, classes)
            weights[named] = weights.get(named, 0.0) + weight
        return weights
    if isinstance(choice, tuple):
        return tuple(_labelled(entry, sample, classes) for entry in choice)
    return class_index(sample.label, sample.key, classes) if choice == "label" else choice


def entries_of(choice: object) -> list[Any]:
    """Return what a target is made of: itself, or the entries of its places."""
    if isinstance(choice, Mapping | tuple):
        return [entry for part in choice for entry in entries_of(part)]
    return [choice]


def warn_vanished(
    net: Network,
    sample: Sample,
    targets: Sequence[Any],
    classes: Sequence[str] | None,
    device: torch.device,
) -> State | None:
    """Say before an extraction that the first input's target leaves nothing to explain.

    What cannot be computed is left to the extraction itself.

    Returns
    -------
    State or None
        That of the first input, if the network runs on it.
    """
    outputs = outputs_of(net.program)
    try:
        state = forward(net, tuple(torch.from_numpy(x)[None].to(device) for x in sample.arrays))
        values = state.output[0].cpu().double().numpy()
        aims = [outputs.aim(labelled(c, sample, classes), values) for c in targets]
    except InputError:
        return None
    for aim in aims:
        entries = weights_of(aim) if isinstance(aim, str) else aim
        weights = output_weights(entries, state.output, outputs)
        logit, added = float((weights * state.output).sum()), float(added_up(state, weights))
        if vanished(logit, added):
            (flag,) = (f for f in flags_of(logit, added, 0.0, 0.0) if f.name == "small_logit")
            warnings.warn(
                f"input {sample.key!r}, target {outputs.text(aim, classes)}: {flag}",
                UserWarning,
                stacklevel=4,  # of the caller of extract, which is decorated
            )
    return state


def check_range(
    targets: list[Any], outputs: Outputs, first: Sample | None, classes: Sequence[str] | None
) -> None:
    """Refuse a target that no input can have, or the first has not, before a store is made."""
    anything = np.zeros(outputs.count)
    for choice in targets:
        for place in choice if isinstance(choice, Mapping) else [choice]:
            if "label" in entries_of(place):
                if first is None or first.own is not None:
                    continue
                place = labelled(place, first, classes)
            outputs.index(place, anything)
