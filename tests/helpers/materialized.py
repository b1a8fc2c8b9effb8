"""A condition that is materialized: its event, its rows, and the run that makes it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa

import nrm_graph as ng
from nrm_graph.store.format.files import seal
from nrm_graph.store.format.schema import Record
from nrm_graph.store.write.writer import Writer

COUNT = 4
CHANNEL = ng.Layer("0")[2]
PIXEL = ng.Layer("0")[2, 3, 1]  # loses its max-pool in some inputs: there R is exactly 0


def rows(db, name, **options):
    """Rows of a condition's tables, in order."""
    return {
        table: db.sql(f"SELECT * FROM {name}_{table} ORDER BY ALL", **options).fetchall()
        for table in ("inputs", "nodes", "edges")
    }


def small_shards(monkeypatch):
    from functools import partial

    import nrm_graph.store.materialize

    monkeypatch.setattr(nrm_graph.store.materialize, "Writer", partial(Writer, shard_inputs=2))


def run(path, keys=("k0", "k1")):
    with ng.open(path) as db:
        db.materialize(PIXEL, name="B", inputs=keys, progress=False)


def held(path):
    """What a condition holds; None where there is none."""
    with ng.open(path) as db:
        if not db.conditions().num_rows:
            return None
        return rows(db, "B")


def edit(path, change, resealed=True, name="b"):
    """Change what stands in ``condition.json``."""
    file = path / "conditions" / name / "condition.json"
    raw = json.loads(file.read_text())
    change(raw)
    if resealed:
        raw["seal"] = seal({k: v for k, v in raw.items() if k != "seal"})
    file.write_text(json.dumps(raw))


def rewritten(path, change, name="B", **facts):
    """Shards of a condition written anew, all checksums right, from changed tables."""
    folder = path / "conditions" / name.lower()
    with ng.open(path) as db:
        snapshot = db._conditions[name].snapshot
        records = []
        for identity, entry in snapshot.entries.items():
            row = snapshot.facts(identity)
            nodes, edges = (
                snapshot.rows(identity, t).drop_columns(["input_id"]) for t in ("nodes", "edges")
            )
            names = ("relevance", "amplification", "absorbed", "status", "reason")
            known = {name: row.get(name) for name in names}
            if row["status"] == "defined":
                nodes, edges = change(nodes, edges)
                known |= facts
            records.append(
                Record(
                    *(row[name] for name in ("key", "target", "label", "predicted", "logit")),
                    known,
                    entry.content,
                    None,
                    nodes,
                    edges,
                )
            )
    shutil.rmtree(folder / "shards")
    (folder / "shards").mkdir()
    with Writer(folder) as writer:
        for record in records:
            writer.add(record)


def scaled(table, row, factor):
    values = table["relevance"].to_numpy().copy()
    values[row] *= factor
    place = table.schema.get_field_index("relevance")
    return table.set_column(place, table.schema.field(place), pa.array(values))


def strongest(table):
    return int(np.argmax(np.abs(table["relevance"].to_numpy())))
