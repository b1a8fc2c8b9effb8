"""A condition that is materialized: its event, its rows, and the run that makes it."""

from __future__ import annotations

import nrm_graph as ng

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
    from nrm_graph.store.write.writer import Writer

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
