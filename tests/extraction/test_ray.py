"""Ray: extractions and circuits by several processes are those of one.

What needs Ray runs in processes of its own (``ray_runs.py``); the rest stands in for it.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import interrupted
from helpers.processes import environment
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph import _optional
from nrm_graph.circuits.ray_engine import partial_sums, split_inputs
from nrm_graph.extraction import ray_workers
from nrm_graph.extraction.samples import items
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer


@pytest.mark.slow
@pytest.mark.parametrize("what", ["engines", "killed", "interrupted", "terminated"])
def test_runs_of_ray(what, tmp_path):
    """Warnings are errors there, too."""
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "helpers.ray_runs", what, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if what in ("interrupted", "terminated"):
        assert found["stopped"]
        assert 0 < found["held"] < found["all"]


def extract(path, data, **options):
    return ng.extract(interrupted.network(), data, path, progress=False, **options)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(_optional.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ng.InputError, match=r"pip install 'nrm-graph\[ray\]'"):
        extract(tmp_path / "s.nrm", interrupted.Images(3), engine="ray")
    assert not (tmp_path / "s.nrm").exists()
    path = write(make(tmp_path / "t.nrm"), [record(0)])
    with ng.open(path) as db, pytest.raises(ng.InputError, match=r"nrm-graph\[ray\]"):
        db.circuit(engine="ray")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine must be 'local' or 'ray'"),
        ({"workers": 2}, "with engine='ray'"),
        ({"engine": "ray", "workers": 0}, "at least 1"),
        ({"engine": "ray", "workers": True}, "workers must be a number"),
    ],
)
def test_bad_options(tmp_path, options, message):
    pytest.importorskip("ray")
    with pytest.raises(ng.InputError, match=message):
        extract(tmp_path / "s.nrm", interrupted.Images(3), **options)
    assert not (tmp_path / "s.nrm").exists()


@pytest.mark.parametrize(
    "inputs", [iter([]), torch.utils.data.DataLoader(interrupted.Images(3), batch_size=2)]
)
def test_inputs_without_an_index_are_refused(tmp_path, inputs):
    pytest.importorskip("ray")
    with pytest.raises(ng.InputError, match="a length and an index"):
        extract(tmp_path / "s.nrm", inputs, engine="ray")


@pytest.mark.parametrize("count", [1, 2, 7, 16, 399, 1000])
@pytest.mark.parametrize("size", [1, 3, 16, 250])
@pytest.mark.parametrize("workers", [1, 2, 13])
def test_chunks_are_whole_batches(count, size, workers):
    chunks = ray_workers._chunks(count, size, workers)
    assert [n for chunk in chunks for n in chunk] == list(range(count))
    assert all(len(chunk) % size == 0 for chunk in chunks[:-1])
    assert all(len(chunk) <= max(ray_workers.CHUNK, size) for chunk in chunks)
    if count >= 8 * workers * size:
        assert len(chunks) >= 3 * workers


@pytest.mark.parametrize(
    "data", [interrupted.Images(5), torch.arange(10.0).reshape(5, 2), [torch.ones(1)] * 5]
)
def test_a_part_names_its_inputs_as_the_whole_does(data):
    whole = list(items(data))
    part = ray_workers.Selection(data, range(2, 4))
    found = list(items(part))
    assert [name for name, _ in found] == [name for name, _ in whole[2:4]] == ["item 2", "item 3"]
    assert len(list(part)) == len(part) == 2
    named = SimpleNamespace(keys=["a", "b", "c"])
    assert ray_workers.Selection(named, range(1, 3)).keys == ["b", "c"]


def test_equal_inputs_with_other_labels_are_refused_across_processes(tmp_path):
    path = make(tmp_path / "s.nrm")
    for item, label in enumerate(("cat", None, "cat", "dog")):
        with Writer(path) as writer:
            # Each began before the others committed.
            writer._known.clear()
            writer.add(record(0, label=label, item=item))
        found = Snapshot(path)
        assert len(found.manifests) == item + 1
        if label == "dog":
            with pytest.raises(ng.InputError, match=r"item 3 and item 0 hold .* 'dog' and 'cat'"):
                ray_workers._check_labels(found)
        else:
            ray_workers._check_labels(found)


class Died(Exception):
    pass


class FakeRay:
    """Results are known at once; a script says which chunks end their process, how often."""

    exceptions = SimpleNamespace(RayActorError=Died)

    def __init__(self, script):
        self.script, self.log, self.made, self.stopped = script, [], 0, 0

    def make(self):
        self.made += 1
        number = self.made

        def explain(chunk):
            if not chunk:
                return []
            self.log.append((number, chunk.start))
            found = self.script.get(chunk.start, [])
            return found.pop(0) if found else [(f"shard{chunk.start}", len(chunk), 0)]

        def stop():
            self.stopped += 1

        return SimpleNamespace(
            explain=SimpleNamespace(remote=lambda chunk: _Result(explain(chunk))),
            stop=SimpleNamespace(remote=stop),
        )

    def wait(self, results, num_returns, timeout=None):
        return results[:num_returns], results[num_returns:]

    def get(self, result):
        if isinstance(result.value, BaseException):
            raise result.value
        return result.value


class _Result:
    def __init__(self, value):
        self.value = value


def pool(script, chunks=4, workers=2):
    ray, done = FakeRay(script), []
    found = ray_workers._Pool(ray, ray.make, lambda count: done.append(count))
    return (
        ray,
        done,
        lambda: found.work_off([range(5 * n, 5 * n + 5) for n in range(chunks)], workers),
    )


def test_what_a_dead_process_did_not_report_goes_to_a_new_one():
    ray, done, run = pool({5: [Died(), Died()]})
    shards = run()
    assert sorted(name for name, *_ in shards) == ["shard0", "shard10", "shard15", "shard5"]
    assert done == [5] * 4
    assert ray.made == 4
    assert [number for number, start in ray.log if start == 5] == [2, 3, 4]
    assert ray.stopped == 0


def test_inputs_that_end_every_process_are_named():
    ray, _, run = pool({5: [Died() for _ in range(9)]}, chunks=9)
    with pytest.raises(ng.StoreError, match="inputs 5 to 9 ended 3 processes"):
        run()
    assert ray.made == 4
    assert ray.stopped == 1  # the other one completes what it is at


def test_processes_that_never_start_are_not_waited_for():
    """Where the cluster has no room for one, the others do all."""
    ray, done, _ = pool({})
    plain = ray.wait

    def wait(results, num_returns, timeout=None):
        able = [r for r in results if r is not pending[0]]
        return plain(able, num_returns)

    pending = []
    make = ray.make

    def first(*args):
        worker = make()
        if not pending:
            explain = worker.explain.remote

            def remote(chunk):
                pending.append(explain(chunk))
                return pending[-1]

            worker.explain.remote = remote
        return worker

    ray.wait = wait
    found = ray_workers._Pool(ray, first, lambda count: done.append(count))
    assert len(found.work_off([range(5 * n, 5 * n + 5) for n in range(4)], 3)) == 4
    assert done == [5] * 4
    assert {number for number, _ in ray.log} == {2, 3}


@pytest.mark.parametrize("error", [ng.InputError("no such file"), KeyboardInterrupt()])
def test_an_error_stops_the_others(error):
    wrapped = error
    if isinstance(error, ng.NrmError):
        wrapped = RuntimeError("what Ray makes of it")
        wrapped.cause = error
    ray, done, run = pool({10: [wrapped]})
    with pytest.raises(type(error)) as caught:
        run()
    assert caught.value is error
    assert ray.stopped == 1
    assert done == [5, 5]


def test_pieces_of_a_circuit(tmp_path):
    """Whole shards, every input once; a task sees its inputs alone, whatever else shards hold."""
    path = make(tmp_path / "s.nrm")
    records = [record(n) for n in range(9)]
    with Writer(path, shard_inputs=2) as first, Writer(path, shard_inputs=4) as second:
        for item in records:
            first.add(item)
        for item in records[3:]:
            second.add(item)  # twice in the store: the first counts
        first.flush()
    with ng.open(path) as db:
        ids = sorted(db._snapshot.entries)[1:]
        whole = dict(
            db.sql("SELECT input_id, sum(relevance) FROM edges GROUP BY 1", inputs=ids).fetchall()
        )
        weights = {"weights": pa.table({"input_id": ids, "weight": np.ones(len(ids))})}
        for number in (1, 2, 3, 100):
            found = split_inputs(db, ids, number)
            assert len(found) <= min(number, 5)
            assert sorted(i for piece in found for i in piece.ids) == ids
            rows = {}
            for piece in found:
                table = partial_sums(
                    piece,
                    "SELECT input_id, sum(relevance * weight) AS total FROM edges "
                    "JOIN weights USING (input_id) GROUP BY input_id",
                    weights,
                )
                count = partial_sums(piece, "SELECT count(*) AS n FROM weights", weights)
                assert count["n"].to_pylist() == [len(piece.ids)]
                rows |= zip(table["input_id"].to_pylist(), table["total"].to_pylist(), strict=True)
            assert rows.keys() == whole.keys()
            assert np.allclose([rows[i] for i in ids], [whole[i] for i in ids], rtol=1e-12)


def test_a_local_ray_takes_what_python_finds(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(sys, "path", ["", "/a", "/b"])
    with _optional._search_path():
        assert os.environ["PYTHONPATH"] == os.pathsep.join(["/a", "/b"])
    assert os.environ["PYTHONPATH"] == "before"
    monkeypatch.delenv("PYTHONPATH")
    with _optional._search_path():
        pass
    assert "PYTHONPATH" not in os.environ
