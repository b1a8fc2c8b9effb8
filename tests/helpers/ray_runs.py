"""Runs with Ray in a process of its own, whose Ray and warnings are not pytest's.

``python -m helpers.ray_runs WHAT FOLDER`` prints what it did as JSON, or fails.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch

import nrm_graph as ng
from helpers import interrupted
from helpers.tiny_stores import all_rows
from nrm_graph import _optional
from nrm_graph.circuits.circuit import engine_of
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.verify import verify
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.writer import Writer

COUNT = 24


class Deadly(interrupted.Images):
    """Images; at one of them, once, what came before is committed and the process is killed."""

    def __init__(self, marker, at):
        super().__init__(COUNT)
        self.marker, self.place = marker, at

    def __getitem__(self, n):
        if n == self.place and not self.marker.exists():
            self.marker.touch()
            for found in gc.get_objects():
                if isinstance(found, Writer):
                    found.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(n)


class Broken(interrupted.Images):
    """Images, of which one cannot be read and one holds infinity."""

    def __getitem__(self, n):
        if n == 9:
            raise OSError("no such file")
        item = super().__getitem__(n)
        return item | {"input": item["input"] / 0} if n == 5 else item


class Twins(interrupted.Images):
    """Images without keys, the first and the last of which are equal but for their labels."""

    def __getitem__(self, n):
        item = super().__getitem__(0 if n == len(self) - 1 else n)
        return {"input": item["input"], "label": n}


class Interrupting(interrupted.Images):
    """Images; at one of them, Ctrl-C or another signal reaches the process that waits."""

    def __init__(self, count, at, number):
        super().__init__(count)
        self.parent, self.place, self.number = os.getpid(), at, number

    def __getitem__(self, n):
        if n == self.place:
            os.kill(self.parent, self.number)
        return super().__getitem__(n)


class Unsent(interrupted.Images):
    def __reduce__(self):
        raise TypeError("not for others")


def extract(path, data, engine="ray", **options):
    if engine == "ray":
        options = {"workers": 2} | options
    return ng.extract(
        interrupted.network(),
        data,
        path,
        composite="epsilon",
        target=interrupted.TARGETS,
        batch_size=2,
        progress=False,
        engine=engine,
        **options,
    )


def rows(path):
    with ng.open(path) as db:
        found = all_rows(db)
    snapshot = Snapshot(path)
    return found, {key: snapshot.tensors(ids[0]) for key, ids in snapshot.by_key.items()}


def same(path, other):
    (found, tensors), (wanted, others) = rows(path), rows(other)
    assert found == wanted
    assert {k: v[""].tolist() for k, v in tensors.items()} == {
        k: v[""].tolist() for k, v in others.items()
    }


def once(path):
    """Every pair is in one shard."""
    pairs = [(e.key, e.target) for m in Snapshot(path).manifests.values() for e in m.inputs]
    assert len(pairs) == len(set(pairs))
    return len(pairs)


def raised(path, data, engine="ray", **options):
    try:
        extract(path, data, engine, **options)
    except ng.NrmError as error:
        return type(error).__name__, str(error)
    raise AssertionError("nothing was raised")


def engines(folder):
    """Rows, failures, errors, and what goes on after all of it, as in one process."""
    alone, many = folder / "alone.nrm", folder / "many.nrm"
    with _optional.started(2) as ray:
        extract(alone, interrupted.Images(COUNT), "local").close()
        with extract(many, interrupted.Images(COUNT)) as db:
            assert len(db) == once(many)
        same(many, alone)
        shards = len(Snapshot(many).manifests)
        assert shards > 1
        more = folder / "more.nrm"  # continued, by a few inputs; a pruned and rounded store
        for engine, path in (("local", folder / "more-alone.nrm"), ("ray", more)):
            options = {"coverage": 0.9, "mantissa_bits": 10, "tensors": "omit", "weights": "named"}
            extract(path, interrupted.Images(4), "local", **options).close()
            extract(path, interrupted.Images(COUNT), engine, **options).close()
        with ng.open(more) as db, ng.open(folder / "more-alone.nrm") as other:
            assert all_rows(db) == all_rows(other)
        once(more)
        for engine in ("local", "ray"):
            path = folder / f"failed-{engine}.nrm"
            with extract(path, Broken(COUNT), engine, on_error="skip") as db:
                assert len(db.sql("SELECT * FROM failures").fetchall()) == 2
        with (
            ng.open(folder / "failed-ray.nrm") as db,
            ng.open(path.with_name("failed-local.nrm")) as other,
        ):
            assert keys_of(all_rows(db)) == keys_of(all_rows(other))
            assert all_rows(db)["failures"] == all_rows(other)["failures"]
        told = [
            raised(folder / f"stop-{e}.nrm", Broken(COUNT), e, **o)
            for e, o in (("local", {}), ("ray", {"workers": 1}))
        ]
        assert told[0] == told[1], told
        with ng.open(more) as db:
            assert db.sql("SELECT count(*) FROM inputs WHERE item <> n").fetchall() == [(0,)]
        kind, text = raised(folder / "twins.nrm", Twins(COUNT))
        assert kind in ("InputError", "Relabelled")
        assert "hold the same input with different labels, '23' and '0'" in text, text
        kind, text = raised(folder / "unsent.nrm", Unsent(COUNT))
        assert kind == "InputError"
        assert "cannot be sent to other processes: TypeError: not for others" in text, text
        assert ray.is_initialized()
        circuits(alone)
    assert not ray.is_initialized()
    return {"shards": shards}


def keys_of(found):
    return {table: [row[:5] for row in found[table]] for table in ("edges", "failures")}


def circuits(path):
    """Both engines give the same graphs but for the rounding of sums."""
    with ng.open(path) as db:
        event = ng.Layer("0")[0]
        db.materialize(event, name="given", progress=False)
        compact(path, shard_inputs=7, progress=False)  # shards of other inputs than the condition's
        db.refresh()
        for options in (
            {},
            {"where": "n < 20", "weight": "logit", "top": 30},
            {"given": "given", "layers": ["0", db.topology.layers[0].name], "top": 50},
            {"given": event, "per_input": True},
        ):
            options = {"mixed_targets": True} | options
            found = db.circuit(engine="ray", **options)
            wanted = db.circuit(**options)
            alike(found.graph, wanted.graph)
            assert list(found.nodes) == list(wanted.nodes)
            assert set(found.edges) == set(wanted.edges)
            for node, data in wanted.nodes.items():
                alike(found.nodes[node], data)
            for edge, data in wanted.edges.items():
                alike(found.edges[edge], data)
        try:
            engine_of("ray")(db, "SELECT nothing FROM edges", list(db._snapshot.entries), {}, [])
        except ng.QueryError:
            return
        raise AssertionError


def alike(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, float):
            assert abs(found[name] - value) <= 1e-9 * max(1.0, abs(value)), (
                name,
                found[name],
                value,
            )
        elif isinstance(value, dict):
            alike(found[name], value)
        else:
            assert found[name] == value, name


def killed(folder):
    """A process that is killed after it committed some of its inputs: they are not done again."""
    extract(folder / "alone.nrm", interrupted.Images(COUNT), "local").close()
    path, marker = folder / "s.nrm", folder / "killed"
    extract(path, Deadly(marker, 11)).close()
    assert marker.exists()
    with ng.open(path) as db, ng.open(folder / "alone.nrm") as other:
        assert keys_of(all_rows(db)) == keys_of(all_rows(other))
        assert len(db) == len(other) == once(path)
    assert verify(path, sample=1).sound
    return {"inputs": once(path), "shards": len(Snapshot(path).manifests)}


def interrupted_(folder):
    """Ctrl-C: what was completed is there, and the same call goes on."""
    return stopped_by(folder, signal.SIGINT, KeyboardInterrupt, None)


def terminated(folder):
    """SIGTERM, too, although Ray has a handler of its own."""
    return stopped_by(folder, signal.SIGTERM, SystemExit, 143)


def stopped_by(folder, number, kind, code):
    path = folder / "s.nrm"
    before = signal.getsignal(signal.SIGTERM)
    try:
        extract(path, Interrupting(60, 30, number))
    except kind as error:
        stopped = getattr(error, "code", None) == code
    else:
        stopped = False
    assert signal.getsignal(signal.SIGTERM) is before
    held = once(path)
    assert not [p for p in (path / "shards").iterdir() if p.name.endswith(".tmp")]
    assert verify(path, sample=1).sound
    extract(path, interrupted.Images(60), "local").close()  # the engines may take turns
    extract(folder / "alone.nrm", interrupted.Images(60), "local").close()
    assert once(path) == once(folder / "alone.nrm")
    return {"stopped": stopped, "held": held, "all": once(path)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = {
        "engines": engines,
        "killed": killed,
        "interrupted": interrupted_,
        "terminated": terminated,
    }
    print(json.dumps(jobs[sys.argv[1]](Path(sys.argv[2]))))
