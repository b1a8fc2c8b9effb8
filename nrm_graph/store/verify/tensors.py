"""Input tensors of a shard: their names, shapes, types and contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.store.format.schema import TENSOR_DTYPES, content_hash, joined_content
from nrm_graph.store.read.snapshot import array_of, tensor_problem
from nrm_graph.store.verify.files import BROKEN

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from nrm_graph.store.format.manifest import Manifest
    from nrm_graph.store.verify.report import Findings, Place

Forms = list[dict[str, Any]]  # name, shape and dtype of every input of the network


def check(file: pq.ParquetFile, manifest: Manifest, forms: Forms, findings: Findings) -> None:
    """Check the table ``tensors``, a row group at a time, against the manifest's contents."""
    contents = {entry.key: entry.content for entry in manifest.inputs}
    place: Place = {"shard": manifest.name, "file": manifest.files["tensors"].name}
    hashes: dict[str, list[str]] = {}  # by key, of the tensors seen so far
    with file:
        for group in range(file.num_row_groups):
            try:
                rows = file.read_row_group(group).to_pylist()
            except BROKEN as error:
                findings.error(f"row group {group} cannot be read: {error}", **place)
                continue
            for row in rows:
                content_hashes = hashes.setdefault(row["key"], [])
                problem = _tensor_problem(row, len(content_hashes), forms, row["key"] in contents)
                if problem is None:
                    content_hashes.append(content_hash(array_of(row)))
                    problem = _content_problem(row, content_hashes, forms, contents[row["key"]])
                if problem:
                    findings.error(problem, **place | {"key": row["key"]})
    for key in sorted(set(contents) - set(hashes)) if hashes else ():
        findings.note("no tensor is stored of it", **place | {"key": key})
    for key, content_hashes in sorted(hashes.items()):
        if key in contents and 0 < len(content_hashes) < len(forms):
            names = ", ".join(form["name"] for form in forms[len(content_hashes) :])
            findings.error(f"of its tensors, these are missing: {names}", **place | {"key": key})


def _tensor_problem(
    row: dict[str, Any], position: int, forms: Forms, is_listed: bool
) -> str | None:
    if not is_listed:
        return "a tensor of a key that the shard does not hold"
    if position >= len(forms):
        return "it is there twice"
    form = forms[position]
    name = form["name"] if len(forms) > 1 else None
    if row.get("name") != name:
        return f"expected the tensor of the input {name!r}, found {row.get('name')!r}"
    floats = str(row["dtype"]).startswith("float")
    if row["dtype"] not in TENSOR_DTYPES or row["shape"] != form["shape"]:
        return (
            f"expected a tensor of shape {form['shape']}, found {row['dtype']} of shape "
            f"{row['shape']}"
        )
    if floats != (form["dtype"] == "float") or (not floats and row["dtype"] != form["dtype"]):
        return f"expected a tensor of {form['dtype']}, found {row['dtype']}"
    if tensor_problem(row):
        return f"the tensor {tensor_problem(row)}"
    tensor = array_of(row)
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        return "the tensor is not finite"
    return None


def _content_problem(
    row: dict[str, Any], hashes: list[str], forms: Forms, content: str
) -> str | None:
    """Compare contents once all tensors of an input were seen."""
    wrong = "the tensor is not the one that was explained: its SHA-256 differs"
    if row["content"] != hashes[-1]:
        return wrong
    if len(hashes) < len(forms):
        return None
    joined = joined_content([form["name"] for form in forms], hashes)
    return None if joined == content else wrong
