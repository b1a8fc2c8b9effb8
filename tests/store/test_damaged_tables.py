"""Pages, row groups and tensors that are not what the manifest says, found while they are read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_stores import (
    edit,
    manifest_of,
    record,
    write,
)

import nrm_graph as ng
from nrm_graph.store.format.schema import TENSORS, input_id
from nrm_graph.store.read.snapshot import Snapshot

pytestmark = pytest.mark.smoke


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("table", ["nodes", "edges", "tensors"])
def test_every_flipped_bit_of_a_page_is_found(path, table):
    write(path, [record(0)])
    snapshot = Snapshot(path)
    (identity,) = snapshot.entries
    file = next((path / "shards").glob(f"*.{table}.parquet"))
    kept = file.read_bytes()
    meta = pq.read_metadata(file).row_group(0)
    starts = [meta.column(i).data_page_offset for i in range(meta.num_columns)]
    ends = [s + meta.column(i).total_compressed_size for i, s in enumerate(starts)]

    def read():
        return (
            snapshot.tensors(identity)[""] if table == "tensors" else snapshot.rows(identity, table)
        )

    read()
    for end in ends:
        flip(file, end - 1)
        with pytest.raises(ng.StoreError):
            read()
        file.write_bytes(kept)


def test_row_groups_that_are_not_the_inputs_own_are_found(path):
    write(path, [record(0), record(1)])
    file = manifest_of(path)
    edit(file, inputs__0__edges=[1, 1])
    with pytest.raises(ng.StoreError, match="rows of another input"):
        Snapshot(path).rows(input_id("input0", 0), "edges")
    edit(file, inputs__0__edges=[1, 9])
    with pytest.raises(ng.StoreError, match="2 row groups, its manifest speaks of 10"):
        Snapshot(path).rows(input_id("input0", 0), "edges")


def test_another_tensor_under_the_right_checksums_is_found(path):
    write(path, [record(0)])
    file = next((path / "shards").glob("*.tensors.parquet"))
    (row,) = pq.read_table(file).to_pylist()
    snapshot = Snapshot(path)
    for change, message in (
        ({"data": bytes(12)[:-1] + b"\1"}, "not the one that was explained"),
        ({"data": b"123"}, "not of the size"),
        ({"dtype": "object"}, "unknown type"),
        ({"dtype": "<f4"}, "unknown type"),
        ({"shape": [-3]}, "unknown type or shape"),
        ({"shape": [1 << 40, 1 << 40]}, "not of the size"),
    ):
        pq.write_table(pa.Table.from_pylist([row | change], TENSORS), file)
        with pytest.raises(ng.StoreError, match=message):
            snapshot.tensors(input_id("input0", 0))[""]
