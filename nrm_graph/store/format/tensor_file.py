"""A safetensors file in parts: nothing is copied to be hashed and written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt


def tensor_file(
    tensors: Mapping[str, npt.NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Return the bytes that ``safetensors.numpy.save`` would return, part by part.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        The tensors; the parts share the memory of those that are contiguous.
    metadata : mapping of str to str, optional
        Texts beside them.

    Notes
    -----
    The order of tensors in a file is the library's own, and has changed with its version: it is
    read off a file of the same names and types that holds no numbers.
    """
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    nothing = {name: np.empty(0, tensor.dtype) for name, tensor in contiguous.items()}
    empty = safetensors.numpy.save(nothing, None if metadata is None else dict(metadata))
    header: dict[str, dict[str, Any]] = json.loads(empty[8:])
    parts: list[memoryview] = []
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor = contiguous[name]
        start, end = end, end + tensor.nbytes
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        parts.append(little.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return [memoryview(head), *parts]
