"""Data loaders of PyTorch: their batches taken apart into items, none dropped and none guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from nrm_graph.errors import InputError, NrmError

if TYPE_CHECKING:
    from collections.abc import Iterator

Item = tuple[str, Any]
"""A name for messages, and what a data set gives, or the exception that it raised."""


STREAM = (
    "a stream ends with an item that fails, so it cannot be skipped, and what was stored before "
    "stays: give a data set with length and index"
)


class Marked(InputError):
    """An error that this package tells from others, and raises as an InputError."""


class Ended(Marked):
    """An item failed that nothing can be read behind, so that it cannot be skipped."""


def reason(error: BaseException) -> str:
    """Kind and first line of an error; of one from a loader's process, what was raised there."""
    lines = str(error).strip().splitlines() or [""]
    if _in_worker(error):
        return lines[-1].strip()[:300]
    return f"{type(error).__name__}: {lines[0]}"[:300].removesuffix(": ")


def refusal(error: Exception, name: str) -> NrmError:
    """Return what to raise where an item failed: one line, with the item's name."""
    if isinstance(error, Marked):
        refused = InputError(str(error))
        refused.__cause__ = error.__cause__
    elif isinstance(error, NrmError) and not _in_worker(error):
        return error
    else:
        refused = InputError(f"{name} cannot be read: {reason(error)}")
        refused.__cause__ = error
    return refused


def _in_worker(error: BaseException) -> bool:
    first, *rest = str(error).strip().splitlines() or [""]
    return bool(rest) and first.startswith("Caught ") and "in DataLoader worker process" in first


def length(loader: DataLoader[Any]) -> int | None:
    """Return the number of items that a loader gives, where it can tell."""
    size = loader.batch_size
    if isinstance(loader.dataset, IterableDataset):
        try:
            return len(loader.dataset)  # type: ignore[arg-type]
        except Exception:  # a data set's own code can raise anything
            return None
    count = _sampled(loader)
    if loader.batch_sampler is None or count is None:
        return count
    return None if size is None else min(count, len(loader) * size)


def items_of(loader: DataLoader[Any]) -> Iterator[Item]:
    """Items of a loader, in its order.

    A loader without batches (``batch_size=None``) gives items.  Where a batch fails, and the loader
    goes through its data set in order, its items are read again, one by one, so that the one that
    fails stands alone.
    """
    place = number = 0
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # a data set's own code can raise anything
            items = _failed(loader, number, place, error)
        else:
            items = _items(batch, loader, number)
        for item in items:
            yield _name(loader, number, place), item
            if isinstance(item, Ended):
                return
            place += 1
        number += 1


def _items(batch: object, loader: DataLoader[Any], number: int) -> list[Any]:
    if loader.batch_sampler is None:
        return [batch]
    try:
        return _apart(batch, loader, number)
    except InputError as error:  # so would be the others
        return [Ended(str(error))]


def _name(loader: DataLoader[Any], number: int, place: int) -> str:
    return f"item {place}" + ("" if loader.batch_sampler is None else f" (batch {number})")


def _failed(
    loader: DataLoader[Any], number: int, place: int, error: Exception
) -> Iterator[Any] | list[Any]:
    """Items of a batch that failed, an exception in the place of each that does."""
    alone = loader.batch_sampler is None or loader.batch_size == 1
    subject = _name(loader, number, place) if alone else f"batch {number} (from item {place} on)"
    text = f"{subject} cannot be read: {reason(error)}"
    advice = "give the data set itself, or a list, as inputs"
    count = _sampled(loader)
    died = loader.num_workers and not _in_worker(error)  # a process ended, or took too long
    if isinstance(loader.dataset, IterableDataset):
        text += f"; {STREAM}"
    elif died or count is None or place >= count:
        text += f"; the loader cannot go on: {advice}"
    elif _in_order(loader):
        return _one_by_one(loader, place)
    elif alone:
        return [error]
    else:
        text += (
            "; the loader does not say which of its items failed, so it cannot be skipped: "
            f"{advice}"
        )
    ended = Ended(text)
    ended.__cause__ = error
    return [ended]


def _in_order(loader: DataLoader[Any]) -> bool:
    """Whether the places of a loader's items are their indices in the data set."""
    sampler = loader.batch_sampler
    is_plain = type(sampler) is BatchSampler and sampler.sampler is loader.sampler
    return (sampler is None or is_plain) and type(loader.sampler) is SequentialSampler


def _sampled(loader: DataLoader[Any]) -> int | None:
    """Return the number of items that a loader's sampler gives, where it can tell."""
    try:
        return len(loader.sampler)  # type: ignore[arg-type]
    except Exception:  # the user's own code can raise anything
        return None


def _one_by_one(loader: DataLoader[Any], place: int) -> Iterator[Any]:
    size = loader.batch_size or 1
    for index in range(place, min(place + size, len(loader.sampler))):  # type: ignore[arg-type]
        try:
            item = loader.dataset[index]
            if loader.collate_fn is not default_collate and loader.batch_sampler is not None:
                (item,) = _apart(loader.collate_fn([item]), loader, index)
        except Exception as error:  # a data set's own code can raise anything
            item = error
        yield item


def _apart(batch: Any, loader: DataLoader[Any], number: int) -> list[Any]:
    """Items of a batch.

    Raises
    ------
    InputError
        If a batch that a function of the user's own collated can be taken apart in several ways,
        or in none.
    """
    if loader.collate_fn is not default_collate:
        return _own_apart(batch, f"batch {number} of the loader", _expected(loader, number))
    size = _size(batch)
    items = [batch] if size is None else [_at(batch, i) for i in range(size)]
    pairs = all(type(item) is list and len(item) == 2 for item in items)
    return [{"input": x, "label": label} for x, label in items] if pairs else items


def _is_leaf(value: object) -> bool:
    """Whether a value of a collated batch counts the items: a tensor, or a list of text."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(v, str | bytes) for v in value)
    return isinstance(value, torch.Tensor)


def _size(batch: Any) -> int | None:
    """Return the number of items of a batch that PyTorch collated."""
    if _is_leaf(batch):
        return len(batch)
    if not isinstance(batch, Mapping | list | tuple):
        return None
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return next((size for part in parts if (size := _size(part)) is not None), None)


def _at(value: Any, i: int) -> Any:
    """One item of a batch that PyTorch collated: the way back of ``default_collate``."""
    if _is_leaf(value):
        return value[i]
    if isinstance(value, Mapping):
        return {name: _at(part, i) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_at(part, i) for part in value))
    if isinstance(value, list | tuple):
        return [_at(part, i) for part in value]
    return value


def _expected(loader: DataLoader[Any], number: int) -> int | None:
    """Return the number of items in a batch, where the loader tells it."""
    size = loader.batch_size
    count = _sampled(loader)
    if size is None or count is None or isinstance(loader.dataset, IterableDataset):
        return None
    return min(size, count - number * size)


def _own_apart(batch: Any, subject: str, expected: int | None) -> list[Any]:
    """Items of a batch that a function of the user's own collated: inputs, pairs, or items."""
    if isinstance(batch, Mapping):
        return _fields_apart(batch, subject)
    if _count(batch) is None:
        return [batch]
    if isinstance(batch, list | tuple) and _is_pair(batch, subject, expected):
        return _fields_apart({"input": batch[0], "label": batch[1]}, subject)
    return list(batch)


def _count(value: object) -> int | None:
    """Length of a tensor, array, list or tuple; None of anything else, such as text."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None


def _are_tensors(values: object) -> bool:
    kinds = torch.Tensor | np.ndarray
    return isinstance(values, list | tuple) and all(isinstance(v, kinds) for v in values)


def _is_pair(batch: list[Any] | tuple[Any, ...], subject: str, expected: int | None) -> bool:
    """Whether a batch is (inputs, labels), rather than a list of items."""
    if len(batch) != 2:
        return False
    x, y = batch
    counts = {_count(x)}
    if isinstance(x, Mapping):
        counts = {_count(v) for v in x.values()} if "input" not in x else set()
    elif isinstance(x, list | tuple):
        counts = {len(x), *map(_count, x)} if x and _are_tensors(x) else set()
    if None in counts or not (y is None or _count(y) in counts):
        return False
    # Two inputs may look like one batch of inputs and one of labels.
    rows = [[x], [y]] if isinstance(batch, list) else []
    rows = [x, y] if _are_tensors(x) and _are_tensors(y) and len(x) == len(y) == 2 else rows
    if not rows or not all(map(_are_tensors, rows)):
        return True
    shapes = [[tuple(v.shape) for v in row] for row in rows]
    if shapes[0] == shapes[1] and len(set(shapes[0])) == 1:
        if expected is not None and (expected == 2) != (expected in counts):
            return expected != 2
        raise InputError(
            f"{subject} may be two inputs, or inputs and their labels: let collate_fn give a "
            "mapping with 'input' (and 'label')"
        )
    return len(rows[0]) == 1 or len(set(shapes[0])) == 1


def _fields_apart(batch: Mapping[str, Any], subject: str) -> list[dict[str, Any]]:
    """Items of a batch of mappings."""
    if "input" not in batch:
        raise InputError(
            f"{subject} is a mapping with {', '.join(map(str, batch)) or 'nothing'}: expected the "
            "inputs as 'input'"
        )
    x: Any = batch["input"]
    several = isinstance(x, Mapping) or _collated(x, batch)
    first = (next(iter(x.values()), None) if isinstance(x, Mapping) else x[0]) if several else x
    size = _count(first)
    if size is None:
        raise InputError(
            f"{subject} holds {type(first).__name__} as 'input': expected a batch of inputs"
        )
    for name, value in batch.items():
        if name != "input" and _count(value) not in (None, size):
            raise InputError(
                f"{subject}: {name!r} has {_count(value)} entries for {size} inputs: expected one "
                "for each"
            )

    def field_of(name: str, value: Any, i: int) -> Any:
        if name == "input" and isinstance(value, Mapping):
            return {k: v[i] for k, v in value.items()}
        if name == "input" and several:
            return tuple(v[i] for v in value)
        return value if _count(value) is None else value[i]

    return [{name: field_of(name, value, i) for name, value in batch.items()} for i in range(size)]


def _collated(x: object, batch: Mapping[str, Any]) -> bool:
    """Whether a list holds the batches of several inputs, not the inputs of a batch."""
    if not isinstance(x, list | tuple) or not x or not all(isinstance(v, torch.Tensor) for v in x):
        return False
    sizes = {len(v) for v in x if v.ndim}
    others = {count for name in ("key", "label") if (count := _count(batch.get(name))) is not None}
    alike = len({v.shape for v in x}) == 1  # as the inputs of a batch are
    return sizes == others and not (alike and others == {len(x)})
