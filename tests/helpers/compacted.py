"""What tests of compaction and deletion share: stores by hand, and what they answer."""

import os
import pathlib
from dataclasses import replace

import nrm_graph as ng
from helpers.commit_steps import Steps, contents
from helpers.tiny_stores import all_rows, record, tables, write
from nrm_graph.store.format import settings as store_settings
from nrm_graph.store.read import conditions
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete
from nrm_graph.store.write.writer import Writer


def rows(path):
    """All that a store answers: SQL, and exact reads."""
    with ng.open(path) as db:
        return all_rows(db), exact(path)


def exact(path):
    """Exact reads; a field that a shard does not have is null, as in SQL."""
    return {
        identity: ({n: v for n, v in facts.items() if v is not None}, *others)
        for identity, (facts, *others) in contents(path).items()
    }


def shards(path):
    return list(Snapshot(path).manifests)


def files(path):
    return {p.name for p in (path / "shards").iterdir()}


def named(path):
    """Files of the shards that count."""
    held = Snapshot(path).manifests.values()
    return {f"{m.name}.json" for m in held} | {i.name for m in held for i in m.files.values()}


def ages(path, seconds):
    """Make every file of a store so much older."""
    for file in path.rglob("*"):
        if file.is_file():
            found = file.stat()
            os.utime(file, (found.st_atime - seconds, found.st_mtime - seconds))


def twice(path, *records):
    """Commit the same pairs in two shards, as two writers at once do."""
    with Writer(path) as first, Writer(path) as second:
        for writer, shift in ((first, 0), (second, 1)):
            for item in records:
                x = tables(item.target + 7 * shift)
                writer.add(replace(item, nodes=x[0], edges=x[1], logit=item.logit + shift))
            writer.flush()


FACTS = {
    "relevance": 0.5,
    "amplification": 1.0,
    "absorbed": 0.0,
    "status": "defined",
    "reason": None,
}


def condition_of(path, name="given", numbers=range(3)):
    """A condition by hand, one input in each shard."""
    meta = store_settings.read_settings(path)
    folder = conditions.create(path, meta, name, ng.Layer("0")[1], None)
    for number in numbers:
        write(folder, [record(number, tensor=False, metadata=FACTS)])
    return folder


class AllSteps(Steps):
    """Deletions of files too."""

    def __init__(self, patch, at=None, action=None):
        super().__init__(patch, at, action)
        patch.setattr(pathlib.Path, "unlink", self._wrap("unlink", pathlib.Path.unlink))


JOBS = {
    "compact": lambda path: compact(path, progress=False),
    "delete": lambda path: delete(path, ["input1", "input5"], progress=False),
}
