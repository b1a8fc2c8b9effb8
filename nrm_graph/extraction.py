"""From a model and inputs to a store: one forward run and one relevance pass per batch."""

from __future__ import annotations

import sys
from collections.abc import Sized
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nrm_graph import composites, propagate, units
from nrm_graph.database import Database
from nrm_graph.edges import edge_tables
from nrm_graph.errors import InputError, NrmError
from nrm_graph.exact import output_weights
from nrm_graph.store import settings as store_settings
from nrm_graph.store.files import local_path
from nrm_graph.store.schema import Record, content_hash
from nrm_graph.store.writer import Writer
from nrm_graph.tracing import trace

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nrm_graph.composites import Composite
    from nrm_graph.propagate import Network
    from nrm_graph.units import Partition

_ARRAY, _CONTENT = "\0array", "\0content"  # beside the user's fields, whatever their names
_RESERVED = ("input", "key", "label", _ARRAY, _CONTENT)


def extract(
    model: torch.nn.Module,
    inputs: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    composite: str | Composite = "epsilon_gamma",
    target: str | int | Sequence[str | int] = "predicted",
    resolution: str | Mapping[str, Any] = "auto",
    coverage: float = 1.0,
    top: int | None = None,
    mantissa_bits: int | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 16,
    device: str | torch.device = "auto",
    progress: bool = True,
    preprocessing: str | None = None,
    tensors: str = "keep",
) -> Database:
    """Store the complete relevance tables of a data set.

    Parameters
    ----------
    model : nn.Module
        The network.
    inputs : iterable
        A data set, data loader or any iterable of tensors, (tensor, label) pairs or mappings
        ``{"input": tensor, "key": ..., "label": ..., **metadata}``; single samples, without
        batch axis, but for a ``DataLoader``, whose batches are taken apart.
    path : path
        Folder of the store; one that is there is continued.
    composite, resolution
        As in :func:`nrm_graph.measure`.
    target : "predicted", "label", class index, or a sequence of those
        What to explain; each (key, target) pair is one input of the store.
    coverage, top, mantissa_bits
        Not available yet: complete, lossless tables only.
    classes : sequence of str, optional
        Names of the outputs, to find the target of a label.
    batch_size : int
        Inputs per relevance pass.
    device : str or torch.device
        ``auto`` takes the accelerator if there is one.
    progress : bool
        Show a bar on a terminal.
    preprocessing : str, optional
        How the inputs were prepared, in words; kept in the store.
    tensors : "keep" or "omit"
        Whether the store keeps the inputs themselves.  Without them exact measures need
        ``db.measure(key, input=tensor)``.

    Returns
    -------
    Database

    Raises
    ------
    NrmError
        If the model, the composite, an input or the store cannot be used.  What was committed
        before stays.
    """
    if coverage != 1.0 or top is not None or mantissa_bits is not None:
        raise InputError(
            "coverage, top and mantissa_bits are not available yet: only complete, lossless "
            "tables can be stored"
        )
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    if tensors not in ("keep", "omit"):
        raise InputError(f"tensors must be 'keep' or 'omit', found {tensors!r}")
    if preprocessing is not None and not isinstance(preprocessing, str):
        raise InputError(f"preprocessing must be text, found {type(preprocessing).__name__}")
    folder = local_path(path)
    samples = _samples(inputs)
    first = next(samples, None)
    if first is None:
        raise InputError("there are no inputs to extract")
    program = trace(model, first["input"])
    where = _device(device)
    kind = next((w.dtype for w in program.weights.values() if w.is_floating_point()), torch.float32)
    net = propagate.network(program, composites.get(composite), kind, where)
    parts = units.resolve(net.layout.topology, resolution)
    settings, own = _settings(net, parts, program.hash(), classes)
    settings |= {
        "coverage": coverage,
        "top": top,
        "mantissa_bits": mantissa_bits,
        "preprocessing": preprocessing,
    }
    weights = {k: v.detach().cpu().contiguous().numpy() for k, v in program.weights.items()}
    store_settings.create(folder, settings, program.to_json(), weights, own)
    keep = tensors == "keep"
    targets = [target] if isinstance(target, str | int) else list(target)
    bar = tqdm(
        total=len(inputs) if isinstance(inputs, Sized) else None,
        unit=" inputs",
        disable=None if progress and sys.stderr.isatty() else True,
    )
    with Writer(folder) as writer, bar:
        batch: list[dict[str, Any]] = []
        for sample in _chain(first, samples):
            array = sample["input"].detach().cpu().to(kind).contiguous().numpy()
            content = content_hash(array)
            key = _label(sample.get("key")) or content
            sample |= {"key": key, _ARRAY: array, _CONTENT: content}
            if _is_stored(sample, targets, classes, writer):
                bar.update(1)
                continue
            batch.append(sample)
            if len(batch) == batch_size:
                _process(net, parts, batch, targets, classes, writer, where, keep)
                bar.update(len(batch))
                batch = []
        if batch:
            _process(net, parts, batch, targets, classes, writer, where, keep)
            bar.update(len(batch))
    return Database(folder)


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _samples(inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Bring every accepted form of input to mappings with a tensor without batch axis."""
    loader = isinstance(inputs, torch.utils.data.DataLoader)
    for item in inputs:
        if isinstance(item, dict):
            sample = dict(item)
        elif isinstance(item, tuple | list) and len(item) == 2:
            sample = {"input": item[0], "label": item[1]}
        else:
            sample = {"input": item}
        if not isinstance(sample.get("input"), torch.Tensor):
            raise InputError(
                "an input must be a tensor, a (tensor, label) pair or a mapping with the key "
                f"'input', found {type(item).__name__}"
            )
        if not loader:
            yield sample
            continue
        for i in range(len(sample["input"])):
            yield {k: v[i] if hasattr(v, "__getitem__") else v for k, v in sample.items()}


def _settings(
    net: Network, parts: Sequence[Partition], program_hash: str, classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    described = net.layout.topology.to_json()
    for row, part in zip(described["layers"], parts, strict=True):
        row |= {"resolution": part.resolution, "n_units": part.n_units}
        if part.resolution == "custom":
            row["units"] = content_hash(part.labels)
    layers = net.layout.topology.layers
    own = {
        layer.name: part.labels
        for layer, part in zip(layers, parts, strict=True)
        if part.resolution == "custom"
    }
    packages = ("nrm-graph", "torch", "pyarrow", "duckdb", "numpy")
    return {
        "program_hash": program_hash,
        "composite": net.composite.to_json(),
        "layers": described["layers"],
        "groups": described["groups"],
        "classes": None if classes is None else list(classes),
        "versions": {name: version(name) for name in packages},
    }, own


def _label(value: Any) -> str | None:
    if value is None:
        return None
    return str(value.item()) if isinstance(value, torch.Tensor | np.generic) else str(value)


def _class_index(sample: dict[str, Any], classes: Sequence[str] | None) -> int:
    label: Any = sample.get("label")
    if isinstance(label, torch.Tensor | np.generic):
        label = label.item()
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if label is None:
        raise InputError(f"target='label', but input {sample['key']!r} has no label")
    if classes is None or label not in classes:
        raise InputError(
            f"the label {label!r} of input {sample['key']!r} is not a class name: pass classes="
            "the names of the outputs in their order"
        )
    return list(classes).index(label)


def _is_stored(
    sample: dict[str, Any],
    targets: Sequence[str | int],
    classes: Sequence[str] | None,
    writer: Writer,
) -> bool:
    """Whether every target of an input is stored, so that nothing need be computed.

    The prediction of a key that is there is known from the store: its content is the same.
    """
    for choice in targets:
        target: Any = choice
        if choice == "predicted":
            target = writer.predicted(sample["key"])
        elif choice == "label":
            target = _class_index(sample, classes)
        known = isinstance(target, int) and not isinstance(target, bool)
        # Without a target this checks the content all the same.
        if not writer.committed(sample["key"], target if known else -1, sample[_CONTENT]):
            return False
    return True


def _process(
    net: Network,
    parts: Sequence[Partition],
    batch: list[dict[str, Any]],
    targets: Sequence[str | int],
    classes: Sequence[str] | None,
    writer: Writer,
    where: torch.device,
    keep: bool,
) -> None:
    shape = net.program.inputs[0][1]
    wrong = next((s for s in batch if s[_ARRAY].shape != shape), None)
    if wrong is not None:
        raise InputError(
            f"input {wrong['key']!r} has shape {wrong['array'].shape}, the first had {shape}: all "
            "inputs of a store must have one shape"
        )
    x = torch.from_numpy(np.stack([sample[_ARRAY] for sample in batch])).to(where)
    try:
        state = propagate.forward(net, x)
    except NrmError as error:
        error.add_note(f"in a batch with the inputs {', '.join(s['key'] for s in batch)}")
        raise
    predicted = state.output.argmax(1).tolist()
    for choice in targets:
        if choice == "predicted":
            chosen = predicted
        elif choice == "label":
            chosen = [_class_index(sample, classes) for sample in batch]
        elif isinstance(choice, int) and not isinstance(choice, bool):
            chosen = [choice] * len(batch)
        else:
            raise InputError(f"target must be 'predicted', 'label' or an index, found {choice!r}")
        keys = [sample["key"] for sample in batch]
        if all(writer.committed(key, t) for key, t in zip(keys, chosen, strict=True)):
            continue
        weights = torch.cat(
            [output_weights(t, state.output[i : i + 1]) for i, t in enumerate(chosen)]
        )
        logits = (weights * state.output).sum(1).tolist()
        found = edge_tables(state, propagate.seed(state, weights), parts)
        for i, (sample, (nodes, edges)) in enumerate(zip(batch, found, strict=True)):
            extra = {k: v for k, v in sample.items() if k not in _RESERVED}
            writer.add(
                Record(
                    sample["key"],
                    chosen[i],
                    _label(sample.get("label")),
                    predicted[i],
                    logits[i],
                    extra,
                    sample[_CONTENT],
                    sample[_ARRAY] if keep else None,
                    nodes,
                    edges,
                )
            )
