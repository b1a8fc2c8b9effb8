"""Bring every accepted form of inputs to one: samples, one at a time, with keys and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.store.schema import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

_RESERVED = ("input", "key", "label")


@dataclass(frozen=True)
class Sample:
    """One input, ready for the network.

    Attributes
    ----------
    key : str
        Its name; the SHA-256 of its content by default.
    content : str
        SHA-256 of type, shape and bytes.
    array : ndarray
        The input without batch axis.
    label : object
        A class name or index, or None.
    metadata : mapping
        Further fields.
    """

    key: str
    content: str
    array: npt.NDArray[Any]
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def items(inputs: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Raw items of the inputs, each with a name for messages, or an exception in its place.

    A data set (with length and index) goes on behind an item that fails; any other iterable
    ends with it.
    """
    if isinstance(inputs, torch.utils.data.DataLoader):
        for n, batch in enumerate(inputs):
            for i, item in enumerate(_apart(batch)):
                yield f"item {i} of batch {n}", item
        return
    if isinstance(inputs, Mapping | str | bytes):
        raise InputError(
            f"inputs must be a data set, a data loader or an iterable of inputs, found "
            f"{type(inputs).__name__}"
        )
    indexed = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
    if not indexed or isinstance(inputs, torch.Tensor):
        for n, item in enumerate(inputs):
            yield f"item {n}", item
        return
    data: Any = inputs
    keys = getattr(data, "keys", None)
    for n in range(len(data)):
        name = str(keys[n]) if isinstance(keys, Sequence) else f"item {n}"
        try:
            item = data[n]
        except Exception as error:  # a data set's own code can raise anything
            item = error
        yield name, item


def _apart(batch: Any) -> Iterator[Any]:
    """Items of a data loader's batch."""
    if isinstance(batch, Mapping):
        size = len(batch["input"]) if "input" in batch else 0
        for i in range(size):
            yield {k: v[i] if hasattr(v, "__getitem__") else v for k, v in batch.items()}
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        yield from zip(*batch, strict=True)
    elif isinstance(batch, torch.Tensor):
        yield from batch
    else:
        yield batch


def sample(item: Any, name: str, dtype: torch.dtype, shape: tuple[int, ...] | None) -> Sample:
    """Check one item and bring it to a :class:`Sample`.

    Parameters
    ----------
    item : tensor, (tensor, label) or mapping
        What a user's data set gives.
    name : str
        For messages, where the item has no key.
    dtype : torch.dtype
        Of the network.
    shape : tuple of int, or None
        What the network takes; None for the first input.

    Raises
    ------
    InputError
        If it is something else, has another shape, or holds NaN or infinity.
    """
    if isinstance(item, Exception):
        raise item
    if isinstance(item, Mapping):
        fields = dict(item)
    elif isinstance(item, tuple | list) and len(item) == 2:
        fields = {"input": item[0], "label": item[1]}
    else:
        fields = {"input": item}
    x = fields.get("input")
    if not isinstance(x, torch.Tensor):
        raise InputError(
            f"{name}: an input must be a tensor, a (tensor, label) pair or a mapping with a "
            f"tensor as 'input', found {type(x if isinstance(item, Mapping) else item).__name__}"
        )
    if x.is_complex():
        raise InputError(f"{name}: expected real numbers, found {x.dtype}")
    array = x.detach().cpu().to(dtype).contiguous().numpy()
    if shape is not None and array.shape == (1, *shape):  # a batch of one
        array = array[0]
    content = content_hash(array)
    key = _text(fields.get("key")) or content
    if shape is not None and array.shape != shape:
        raise InputError(
            f"input {key!r} has shape {array.shape}, expected {shape}: all inputs of a store have "
            "one shape, that of the first"
        )
    if not np.isfinite(array).all():
        raise InputError(f"input {key!r} holds NaN or infinity")
    extra = {k: v for k, v in fields.items() if k not in _RESERVED}
    return Sample(key, content, array, fields.get("label"), extra)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return str(value.item()) if isinstance(value, torch.Tensor | np.generic) else str(value)


def label_text(sample: Sample) -> str | None:
    """Label of a sample as it is stored."""
    return _text(sample.label)


def class_index(sample: Sample, classes: Sequence[str] | None) -> int:
    """Output that a sample's label names.

    Raises
    ------
    InputError
        If there is no label, or it is no class: never a guess.
    """
    label = sample.label
    if isinstance(label, torch.Tensor | np.generic):
        label = label.item()
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if label is None:
        raise InputError(f"target='label', but input {sample.key!r} has no label")
    if classes is None or label not in classes:
        raise InputError(
            f"the label {label!r} of input {sample.key!r} is not a class name: pass classes= "
            "the names of the outputs in their order"
        )
    return list(classes).index(label)
