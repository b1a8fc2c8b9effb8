"""The first input that can be read: the one that a network is traced with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import InputError, NrmError
from nrm_graph.extraction.loaders import Ended, refusal
from nrm_graph.extraction.samples import fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class FirstInput:
    """The first input that can be read.

    Attributes
    ----------
    fields : dict
        Its tensors as ``input``, and what else the item holds.
    name : str
        For messages.
    read : list of (str, item)
        Entries that were read to find it; it is the last one.
    """

    fields: dict[str, Any]
    name: str
    read: list[tuple[str, Any]]

    def keys_of(self, inputs: object) -> Sequence[str] | None:
        """Keys of all inputs, where a data set names them without reading any."""
        keys = getattr(inputs, "keys", None)
        return keys if isinstance(keys, Sequence) and self.fields.get("key") == self.name else None


def first_readable(entries: Iterator[tuple[str, Any]], on_error: str) -> FirstInput:
    """Find the first input that can be read.

    Parameters
    ----------
    entries : iterator of (str, item)
        As of :func:`nrm_graph.extraction.samples.items`.
    on_error : "stop" or "skip"
        What to do with one that cannot be read.

    Raises
    ------
    NrmError
        If there is none, or one fails that may not be skipped.
    """
    entries_read: list[tuple[str, Any]] = []
    reason: NrmError | None = None
    for name, item in entries:
        entries_read.append((name, item))
        try:
            return FirstInput(_finite(item, name), name, entries_read)
        except Exception as error:  # a data set's own code can raise anything
            refused = refusal(error, name)
            if on_error == "stop" or isinstance(error, Ended):
                raise refused from refused.__cause__
            reason = reason or refused
    if reason is None:
        raise InputError("there are no inputs to extract")
    raise InputError(
        f"no input could be read; the first of {len(entries_read):,}: {reason}"
    ) from reason


def _finite(item: object, name: str) -> dict[str, Any]:
    """Fields of an item whose numbers are finite."""
    fields = fields_of(item, name)
    x = fields["input"]
    for part in x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else [x]:
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise InputError(f"input {fields.get('key') or name!r} holds NaN or infinity")
    return fields
