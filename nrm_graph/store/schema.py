"""Tables of a shard: Arrow schemas, pseudo-units, identities and Parquet options."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError

BIAS = -1
STABILIZER = -2
PRUNED = -3
REMAINDER = -4
PSEUDO_UNITS: Mapping[int, str] = {
    BIAS: "bias",
    STABILIZER: "stabilizer",
    PRUNED: "pruned",
    REMAINDER: "remainder",
}

TABLES = ("inputs", "nodes", "edges", "tensors")

INPUTS = pa.schema(
    [
        pa.field("input_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)
NODES = pa.schema(
    [
        pa.field("input_id", pa.int64(), nullable=False),
        pa.field("layer_id", pa.int16(), nullable=False),
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("relevance", pa.float32(), nullable=False),
        pa.field("activation", pa.float32()),
    ]
)
EDGES = pa.schema(
    [
        pa.field("input_id", pa.int64(), nullable=False),
        pa.field("dst_layer", pa.int16(), nullable=False),
        pa.field("dst_unit", pa.int32(), nullable=False),
        pa.field("src_layer", pa.int16(), nullable=False),
        pa.field("src_unit", pa.int32(), nullable=False),
        pa.field("relevance", pa.float32(), nullable=False),
        pa.field("conditional", pa.float32()),
    ]
)
TENSORS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)
SCHEMAS: Mapping[str, pa.Schema] = {
    "inputs": INPUTS,
    "nodes": NODES,
    "edges": EDGES,
    "tensors": TENSORS,
}

# Sort keys within one input; each is unique there.
NODE_ORDER = ("layer_id", "unit")
EDGE_ORDER = ("dst_layer", "src_layer", "dst_unit", "src_unit")

# Metadata types by name in a manifest; "null" is a field that never held a value.
METADATA_TYPES: Mapping[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
}

ROWS_PER_GROUP = 1 << 20
GROUPS_PER_FILE = 200

TENSOR_DTYPES = frozenset(
    f"{kind}{bits}"
    for kind, widths in {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}.items()
    for bits in widths
) | {"bool"}


@dataclass(frozen=True)
class Record:
    """Everything that a store keeps about one (key, target) pair.

    Attributes
    ----------
    key
        Name of the input, unique per content.
    target
        Index of the explained output, int32.
    label
        True label of the input, if known.
    predicted
        Index of the strongest output, int32.
    logit
        Value of the explained output, finite.
    metadata
        Further columns of the table ``inputs``.
    content
        ``content_hash`` of the input tensor.
    tensor
        The input, or None to leave it out of the store.
    nodes
        Columns layer_id, unit, relevance, activation.
    edges
        Columns dst_layer, dst_unit, src_layer, src_unit, relevance, conditional.
    """

    key: str
    target: int
    label: str | None
    predicted: int
    logit: float
    metadata: Mapping[str, bool | int | float | str | None]
    content: str
    tensor: np.ndarray | None
    nodes: pa.Table
    edges: pa.Table


def input_id(key: str, target: int) -> int:
    """Identity of a (key, target) pair: 63 bits of a SHA-256, never negative.

    The hash is over the UTF-8 bytes of ``<n>:<key>:<target>`` with n the key's length in bytes,
    so that no two pairs join to the same bytes; its first 8 bytes, big-endian, lose their lowest
    bit to fit a signed 64-bit column.

    Raises
    ------
    InputError
        If the key is not valid Unicode (a file name with undecodable bytes).

    Examples
    --------
    >>> input_id("cat.png", 3)
    1411744013116024447
    """
    try:
        encoded = key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected a key of valid Unicode, found {key!r}; rename the file or give a key"
        ) from error
    digest = hashlib.sha256(b"%d:%s:%d" % (len(encoded), encoded, target)).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def tensor_bytes(tensor: np.ndarray) -> bytes:
    """Bytes of an array in C order, little-endian.

    Raises
    ------
    InputError
        If the array's type is none of float, int, uint (8 to 64 bits) and bool.
    """
    if tensor.dtype.name not in TENSOR_DTYPES:
        raise InputError(
            f"expected an input of type {', '.join(sorted(TENSOR_DTYPES))}, "
            f"found {tensor.dtype.name}; convert it"
        )
    return np.asarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes(order="C")


def content_hash(tensor: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes, in hexadecimal digits.

    Examples
    --------
    >>> content_hash(np.zeros(2, np.float32)) == content_hash(np.zeros((2, 1), np.float32))
    False
    """
    shape = ",".join(map(str, tensor.shape))
    head = f"{tensor.dtype.name}|{shape}|".encode()
    return hashlib.sha256(head + tensor_bytes(tensor)).hexdigest()


def parquet_options(table: str) -> dict[str, Any]:
    """Options of ``pyarrow.parquet.ParquetWriter`` for one table of a shard.

    Notes
    -----
    Measured on 20 million edges: the default dictionary alone costs 5.9 bytes per value, pages of
    20,000 rows (the default) cost 5 %.
    """
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_page_checksum": True,
        "max_rows_per_page": 131072,
    }
    if table in ("nodes", "edges"):
        options["column_encoding"] = {
            field.name: "BYTE_STREAM_SPLIT"
            if pa.types.is_floating(field.type)
            else "DELTA_BINARY_PACKED"
            for field in SCHEMAS[table]
        }
    return options
