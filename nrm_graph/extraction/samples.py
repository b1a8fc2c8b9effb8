"""Bring every accepted form of inputs to one: samples, one at a time, with keys and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from nrm_graph.errors import InputError
from nrm_graph.extraction import input_labels, loaders
from nrm_graph.extraction.loaders import STREAM, Ended, reason
from nrm_graph.network.ir.input_spec import arranged
from nrm_graph.store.format.schema import content_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.network.ir.input_spec import InputSpec

_RESERVED = ("input", "key", "label")


@dataclass(frozen=True)
class OwnTarget:
    """What to explain of one input, which stands in the place of what the call says.

    Attributes
    ----------
    aim : int, tuple, mapping, or "predicted"
        As the network's own.
    """

    aim: Any


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
        A class name or index, or None; or a list or dict, as
        :func:`nrm_graph.extraction.input_labels.plain` gives it.
    metadata : mapping
        Further fields.
    item : int or None
        Place in the data set, counted through all calls.
    own : OwnTarget or None
        What to explain of it, where that is said of it alone.
    """

    key: str
    content: str
    arrays: tuple[npt.NDArray[Any], ...]
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    item: int | None = None
    own: OwnTarget | None = None

    @property
    def label_text(self) -> str | None:
        """Label as it is stored."""
        return input_labels.text(self.label)


def length(inputs: Any) -> int | None:
    """Return the number of inputs, where it is known."""
    if isinstance(inputs, DataLoader):
        return loaders.length(inputs)
    try:
        return len(inputs)
    except Exception:  # a data set's own code can raise anything
        return None


def indexed(inputs: object) -> bool:
    """Whether inputs have a length and an index, so that each can be read by itself."""
    others = (DataLoader, IterableDataset, Mapping, str, bytes)
    has_index = not isinstance(inputs, others) and hasattr(inputs, "__getitem__")
    return has_index and length(inputs) is not None


def items(inputs: Any) -> Iterator[tuple[str, Any]]:
    """Raw items of the inputs, each with a name for messages, or an exception in its place.

    Every place has one, so that the nth entry is of the nth item.  A data set (with length and
    index) goes on behind an item that fails; any other iterable ends with it, and so does a data
    loader that does not say which one failed: see :func:`nrm_graph.extraction.loaders.items_of`.

    Raises
    ------
    InputError
        If the inputs are of another kind.
    """
    if isinstance(inputs, DataLoader):
        yield from loaders.items_of(inputs)
        return
    arrays = isinstance(inputs, torch.Tensor | np.ndarray)
    if isinstance(inputs, Mapping | str | bytes | np.generic) or not (
        hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__")
    ):
        raise InputError(
            f"inputs must be a data set, a data loader or an iterable of inputs, found "
            f"{type(inputs).__name__}"
        )
    if arrays and inputs.ndim < 2:
        raise InputError(
            f"inputs is of shape {tuple(inputs.shape)}: its first axis must count the inputs; put "
            "one input into a list"
        )
    if not indexed(inputs):
        yield from _stream(inputs)
        return
    keys = None if arrays else getattr(inputs, "keys", None)
    for n in range(len(inputs)):
        name = str(keys[n]) if isinstance(keys, Sequence) else f"item {n}"
        try:
            item = inputs[n]
        except Exception as error:  # a data set's own code can raise anything
            item = error
        yield name, item


def _stream(inputs: Any) -> Iterator[tuple[str, Any]]:
    rest = iter(inputs)
    n = 0
    while True:
        name = f"item {n}"
        try:
            item = next(rest)
        except StopIteration:
            return
        except Exception as error:  # a generator's own code can raise anything
            ended = Ended(f"{name} cannot be read: {reason(error)}; {STREAM}")
            ended.__cause__ = error
            yield name, ended
            return
        yield name, item
        n += 1


def fields_of(item: Any, name: str) -> dict[str, Any]:
    """Bring an item to a mapping with tensors as ``input``.

    Raises
    ------
    InputError
        If it is none that is known.
    """
    if isinstance(item, Exception):
        raise item
    if "input" in getattr(item, "_fields", ()):
        item = item._asdict()  # a named tuple
    if isinstance(item, Mapping):
        fields = dict(item)
    elif isinstance(item, tuple | list) and len(item) == 2:
        fields = {"input": item[0], "label": item[1]}
    else:
        fields = {"input": item}
    x: Any = fields.get("input")
    if isinstance(x, Mapping):
        x = {k: tensor_of(part, name) for k, part in x.items()}
    else:
        parts = x if isinstance(x, tuple | list) else [x]
        parts = [tensor_of(part, name) for part in parts]
        x = tuple(parts) if isinstance(x, tuple | list) else parts[0]
    parts = list(x.values()) if isinstance(x, Mapping) else x if isinstance(x, tuple) else [x]
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        raise InputError(
            f"{name}: an input must be a tensor, a (tensor, label) pair or a mapping with a "
            "tensor as 'input' (a tuple or mapping of tensors for a network of several inputs), "
            f"found {_shown(item, fields)}"
        )
    for part in parts:
        if part.is_complex():
            raise InputError(f"{name}: expected real numbers, found {part.dtype}")
    return fields | {"input": x}


def _shown(item: object, fields: Mapping[str, Any]) -> str:
    if isinstance(item, Mapping) and "input" not in item:
        return f"a mapping with {', '.join(map(str, item)) or 'nothing'}"
    return type(fields["input"] if isinstance(item, Mapping) else item).__name__


def tensor_of(value: object, name: str) -> Any:
    """Return a NumPy array as the tensor of its numbers; anything else as it is.

    Raises
    ------
    InputError
        If the array holds what is no number that a network takes.
    """
    if not isinstance(value, np.ndarray):
        return value
    kind = value.dtype
    if kind.kind not in "fiub" or kind.itemsize > 8:
        raise InputError(f"{name}: expected numbers, found an array of {kind}")
    if kind.kind in "iu" and kind != np.uint8:
        if value.size and int(value.max()) >= 1 << 63:
            raise InputError(f"{name}: whole numbers must fit 64 bits, found {value.max()}")
        kind = np.dtype(np.int64)
    return torch.from_numpy(np.array(value, kind.newbyteorder("="), order="C"))


def sample(item: object, name: str, spec: InputSpec, dtype: torch.dtype) -> Sample:
    """Check one item and bring it to a :class:`Sample`.

    Parameters
    ----------
    item : tensor, (tensor, label) or mapping
        What a user's data set gives.
    name : str
        For messages, where the item has no key.
    spec : InputSpec
        What the network takes.
    dtype : torch.dtype
        Of the network's floats.

    Raises
    ------
    InputError
        If it is something else, has another shape, or holds NaN or infinity.
    """
    fields = fields_of(item, name)
    key = _key(fields.get("key"), name)
    shown = key or name
    arrays = []
    for k, tensor in enumerate(arranged(fields["input"], spec.names, shown)):
        array = spec.cast(k, tensor.detach().cpu(), dtype).contiguous().numpy()
        if array.shape == (1, *spec.shapes[k]):  # a batch of one
            array = array[0]
        arrays.append(array)
    for array, shape, input_name in zip(arrays, spec.shapes, spec.names, strict=True):
        subject = f"input {shown!r}" if len(arrays) == 1 else f"{input_name!r} of input {shown!r}"
        if array.shape[1:] == shape and array.ndim == len(shape) + 1:
            raise InputError(
                f"{subject} has shape {array.shape}: a batch of {len(array)}, expected one input "
                f"of shape {shape}; give each by itself, or a DataLoader, whose batches are taken "
                "apart"
            )
        if array.shape != shape:
            raise InputError(
                f"{subject} has shape {array.shape}, expected {shape}: all inputs of a store have "
                "one shape, that of the first"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{subject} holds NaN or infinity")
    content = content_of(dict(zip(spec.names, arrays, strict=True)))
    label = input_labels.plain(fields.get("label"), f"the label of input {shown!r}")
    own = fields.get("target")
    own = own if isinstance(own, OwnTarget) else None
    extra = {k: v for k, v in fields.items() if k not in _RESERVED and v is not own}
    try:
        input_labels.text(label)  # whether it can be stored
    except InputError as error:
        raise InputError(f"input {shown!r}: {error}") from None
    return Sample(key or content, content, tuple(arrays), label, extra, own=own)


def _key(value: object, name: str) -> str | None:
    """Text of a key."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if value is None or type(value) is str:
        return value
    if isinstance(value, torch.Tensor | np.ndarray | list | dict | bytes):
        raise InputError(f"{name}: a key must be text or a number, found {type(value).__name__}")
    return str(value)
