"""Bring every accepted form of inputs to one: samples, one at a time, with keys and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.forms import arranged
from nrm_graph.store.schema import content_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from nrm_graph.forms import Form

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
    arrays : tuple of ndarray
        The input without batch axis: an array for each tensor that the network takes.
    label : object
        A class name or index, or None.
    metadata : mapping
        Further fields.
    """

    key: str
    content: str
    arrays: tuple[npt.NDArray[Any], ...]
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
        yield from _fields_apart(batch)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        pair = {"input": batch[0], "label": batch[1]}
        if isinstance(batch[0], Mapping) or _collated(batch[0], pair):
            yield from _fields_apart(pair)
        else:
            yield from zip(*batch, strict=True)
    elif isinstance(batch, torch.Tensor):
        yield from batch
    else:
        yield batch


def _fields_apart(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Items of a batch of mappings, as PyTorch collates them."""
    x: Any = batch.get("input")
    several = isinstance(x, Mapping) or _collated(x, batch)
    first = next(iter(x.values()), ()) if isinstance(x, Mapping) else x[0] if several else x
    size = len(first) if hasattr(first, "__len__") else 0

    def one(name: str, value: Any, i: int) -> Any:
        if name == "input" and isinstance(value, Mapping):
            return {k: v[i] for k, v in value.items()}
        if name == "input" and several:
            return tuple(v[i] for v in value)
        lists = isinstance(value, list) and all(isinstance(v, tuple | list) for v in value)
        if lists and value and isinstance(value[0], tuple) and {len(v) for v in value} == {size}:
            return [v[i] for v in value]  # lists of text are collated by their positions
        return value[i] if hasattr(value, "__getitem__") else value

    for i in range(size):
        yield {name: one(name, value, i) for name, value in batch.items()}


def _collated(x: Any, batch: Mapping[str, Any]) -> bool:
    """Whether a list holds the batches of several inputs, not the inputs of a batch."""
    if not isinstance(x, list | tuple) or not x or not all(isinstance(v, torch.Tensor) for v in x):
        return False
    sizes = {len(v) for v in x if v.ndim}
    others = {
        len(value)
        for name, value in batch.items()
        if name in ("key", "label") and hasattr(value, "__len__")
    }
    alike = len({v.shape for v in x}) == 1  # as the inputs of a batch are
    return sizes == others and not (alike and others == {len(x)})


def fields_of(item: Any, name: str) -> dict[str, Any]:
    """Bring an item to a mapping with ``input``.

    Raises
    ------
    InputError
        If it is none that is known.
    """
    if isinstance(item, Exception):
        raise item
    if isinstance(item, Mapping):
        fields = dict(item)
    elif isinstance(item, tuple | list) and len(item) == 2:
        fields = {"input": item[0], "label": item[1]}
    else:
        fields = {"input": item}
    x: Any = fields.get("input")
    parts: Any = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else [x]
    parts = list(parts)
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        raise InputError(
            f"{name}: an input must be a tensor, a (tensor, label) pair or a mapping with a "
            "tensor as 'input' (a tuple or mapping of tensors for a network of several inputs), "
            f"found {type(x if isinstance(item, Mapping) else item).__name__}"
        )
    for part in parts:
        if part.is_complex():
            raise InputError(f"{name}: expected real numbers, found {part.dtype}")
    return fields


def sample(item: Any, name: str, form: Form, dtype: torch.dtype) -> Sample:
    """Check one item and bring it to a :class:`Sample`.

    Parameters
    ----------
    item : tensor, (tensor, label) or mapping
        What a user's data set gives.
    name : str
        For messages, where the item has no key.
    form : Form
        What the network takes.
    dtype : torch.dtype
        Of the network's floats.

    Raises
    ------
    InputError
        If it is something else, has another shape, or holds NaN or infinity.
    """
    fields = fields_of(item, name)
    key = _text(fields.get("key"))
    arrays = []
    for k, tensor in enumerate(arranged(fields["input"], form.names, key or name)):
        array = form.cast(k, tensor.detach().cpu(), dtype).contiguous().numpy()
        shape = form.shapes[k]
        if array.shape == (1, *shape):  # a batch of one
            array = array[0]
        arrays.append(array)
    content = content_of(dict(zip(form.names, arrays, strict=True)))
    key = key or content
    for array, shape, which in zip(arrays, form.shapes, form.names, strict=True):
        one = f"input {key!r}" if len(arrays) == 1 else f"{which!r} of input {key!r}"
        if array.shape != shape:
            raise InputError(
                f"{one} has shape {array.shape}, expected {shape}: all inputs of a store have "
                "one shape, that of the first"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{one} holds NaN or infinity")
    extra = {k: v for k, v in fields.items() if k not in _RESERVED}
    return Sample(key, content, tuple(arrays), fields.get("label"), extra)


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
