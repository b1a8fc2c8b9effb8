"""Arrow schemas, Parquet encoding and identity of the store's tables."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

FORMAT_VERSION = 1

EDGES = pa.schema(
    [
        ("input_id", pa.int64()),
        ("dst_layer", pa.int16()),
        ("dst_unit", pa.int32()),
        ("src_layer", pa.int16()),
        ("src_unit", pa.int32()),
        ("relevance", pa.float32()),
        ("conditional", pa.float32()),
    ]
)
NODES = pa.schema(
    [
        ("input_id", pa.int64()),
        ("layer_id", pa.int16()),
        ("unit", pa.int32()),
        ("relevance", pa.float32()),
        ("activation", pa.float32()),
    ]
)
INPUTS = pa.schema(
    [
        ("input_id", pa.int64()),
        ("key", pa.string()),
        ("label", pa.string()),
        ("target", pa.int32()),
        ("predicted", pa.int32()),
        ("logit", pa.float32()),
    ]
)
TENSORS = pa.schema(
    [
        ("key", pa.string()),
        ("content", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("data", pa.large_binary()),
    ]
)
LAYERS = pa.schema(
    [
        ("layer_id", pa.int16()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("resolution", pa.string()),
        ("n_units", pa.int32()),
        ("depth", pa.int16()),
    ]
)
SCHEMAS = {"inputs": INPUTS, "nodes": NODES, "edges": EDGES, "tensors": TENSORS}


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the encoding measured to be smallest: delta ids, byte-split floats, no dictionary."""
    encoding = {}
    for field in schema:
        if pa.types.is_integer(field.type):
            encoding[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(field.type):
            encoding[field.name] = "BYTE_STREAM_SPLIT"
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "column_encoding": encoding or None,
        "max_rows_per_page": 131_072,
        "write_page_checksum": True,
    }


@dataclass(frozen=True)
class Record:
    """Everything about one (key, target) pair; ``nodes`` and ``edges`` lack ``input_id``."""

    key: str
    target: int
    label: str | None
    predicted: int
    logit: float
    metadata: Mapping[str, bool | int | float | str | None]
    tensor: npt.NDArray[Any]
    nodes: pa.Table
    edges: pa.Table


def input_id(key: str, target: int) -> int:
    """63 bits of SHA-256 over key, a zero byte and the target (see the format).

    >>> input_id("cat.png", 3) == input_id("cat.png", 4)
    False
    """
    digest = hashlib.sha256(key.encode() + b"\0" + str(int(target)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def content_hash(tensor: npt.NDArray[np.generic]) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    header = f"{tensor.dtype.str}{tensor.shape}".encode()
    return hashlib.sha256(header + tensor.tobytes(order="C")).hexdigest()
