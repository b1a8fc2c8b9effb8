"""Files of --output: written beside and renamed, so that a full disk leaves what was there."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pyarrow as pa
import pytest
from helpers.processes import environment
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph import output_files
from nrm_graph.cli import main
from nrm_graph.cli.output import write_json, write_table
from nrm_graph.graphs.formats import GRAPH_SUFFIXES, write_graph
from nrm_graph.output_files import write_files
from nrm_graph.plots import save_subgraph

TABLE = pa.table({"n": list(range(1000))})


def graph():
    made = nx.DiGraph(inputs=20, share=0.5, absorbed=0.25, top=1, target=3)
    made.add_node(("x", 0), layer="x", unit=0, relevance=0.5, depth=0)
    made.add_node(("fc", 3), layer="fc", unit=3, relevance=1.0, depth=1)
    made.add_edge(("x", 0), ("fc", 3), relevance=0.5, stderr=0.1, agreement=1.0, top_share=0.9)
    return made


WRITERS = {
    **{f"table.{s}": lambda p: write_table(TABLE, output=p) for s in ("csv", "json", "parquet")},
    "table.txt": lambda p: write_table(TABLE, output=p),
    "event.json": lambda p: write_json({"event": list(range(1000))}, p),
    "picture.pdf": lambda p: save_subgraph(graph(), p),
    **{f"graph{suffix}": lambda p: write_graph(graph(), p) for suffix in GRAPH_SUFFIXES},
}


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_that_fails_leaves_what_was_there(tmp_path, monkeypatch, number):
    """Of every format; of a format of several files none is replaced."""
    plain, calls = output_files.write_synced, []

    def full(path, data):
        calls.append(path)
        if len(calls) % 2 == 0 or "table" in name:  # the second file of a graph
            path.write_bytes(data[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        plain(path, data)

    for name, write_one in WRITERS.items():
        if number != errno.ENOSPC and not name.endswith(".csv"):
            continue
        folder = tmp_path / name
        folder.mkdir()
        write_one(folder / name)
        before = contents(folder)
        calls.clear()
        if len(before) == 1:
            calls.append("one file alone")
        with monkeypatch.context() as patch:
            patch.setattr(output_files, "write_synced", full)
            with pytest.raises(ng.NrmError) as raised:
                write_one(folder / name)
        assert raised.value.exit_code == 1
        assert os.strerror(number) in str(raised.value)
        assert "as it was" in str(raised.value)
        assert contents(folder) == before, name


def test_a_full_disk(disk, tmp_path, capsys):
    """A store elsewhere, and a small disk that its tables do not fit on."""
    store = write(make(tmp_path / "s.nrm"), [record(0)])
    where = disk("size=64k")
    query = "SELECT range AS n, range * 7 AS m FROM range(20000)"
    out = where / "o.csv"
    out.write_text("before\n")
    (where / "filler").write_bytes(b"x" * (40 << 10))
    for form in ("csv", "json", "parquet", "table"):
        argv = ["sql", str(store), query, "--format", form, "--output", str(out)]
        assert main.main(argv) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == (
            f"nrm-graph: cannot write {out}: No space left on device; what was there before is as "
            "it was\n"
        )
        assert contents(where) == {"o.csv": b"before\n", "filler": b"x" * (40 << 10)}
    assert main.main(["sql", str(store), "SELECT 1 AS n", "--output", str(out)]) == 0
    assert out.read_text() == '"n"\n1\n'


LIMITED = """
import resource, sys
from nrm_graph.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_file_that_may_not_grow(tmp_path):
    """The exit code of a process."""
    store = write(make(tmp_path / "s.nrm"), [record(0)])
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.csv").write_text("before\n")
    argv = ["sql", str(store), "SELECT * FROM range(1000000)", "--output", str(out / "o.csv")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *argv],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert contents(out) == {"o.csv": b"before\n"}


def test_what_cannot_be_encoded_leaves_what_was_there(tmp_path):
    path = tmp_path / "c.graphml"
    write_graph(graph(), path)
    before = contents(tmp_path)
    odd = graph()
    odd.nodes["x", 0]["name"] = "\0"
    with pytest.raises(ng.InputError, match="XML"):
        write_graph(odd, path)
    assert contents(tmp_path) == before


def test_ctrl_c_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("before")
    plain = os.fsync

    def sync(handle):
        plain(handle)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(KeyboardInterrupt):
        write_table(TABLE, output=path)
    assert contents(tmp_path) == {"t.csv": b"before"}


def test_permissions_and_links_stay(tmp_path):
    old = os.umask(0o027)
    try:
        write_files({tmp_path / "new": b"1"})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    (tmp_path / "link").symlink_to("new")
    assert write_files({tmp_path / "link": b"2"}) == [tmp_path / "link"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == b"2"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604
    assert len(contents(tmp_path)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("before")
    path.chmod(0o444)
    with pytest.raises(ng.InputError, match="Permission denied"):
        write_table(TABLE, output=path)
    assert path.read_text() == "before"


def test_devices_and_pipes_are_written_to(tmp_path):
    write_table(TABLE, "csv", "/dev/null")
    with pytest.raises(ng.NrmError, match="No space left") as raised:
        write_table(TABLE, "csv", "/dev/full")
    assert raised.value.exit_code == 1
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    reading, writing_end = os.pipe()
    write_files({Path(f"/dev/fd/{writing_end}"): b"through"})
    assert os.read(reading, 100) == b"through"
    os.close(reading)
    os.close(writing_end)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    handle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_files({fifo: b"queued"})
    assert os.read(handle, 100) == b"queued"
    os.close(handle)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.slow
def test_standard_output_by_its_name(tmp_path):
    """Where it is redirected to a file, what is printed besides stays there."""
    store = write(make(tmp_path / "s.nrm"), [record(0)])
    out = tmp_path / "all"
    code = "from nrm_graph.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    with out.open("wb") as stream:
        subprocess.run(
            [
                *(sys.executable, "-c", code, "sql", str(store), "SELECT 1 AS n"),
                *("--format", "csv", "--output", "/dev/stdout"),
            ],
            stdout=stream,
            check=True,
            env=environment(),
        )
        assert os.fstat(stream.fileno()).st_ino == out.stat().st_ino
    assert b'"n"\n1\n' in out.read_bytes()


def test_folders_are_refused_in_words(tmp_path):
    with pytest.raises(ng.InputError, match="there is no folder"):
        write_table(TABLE, output=tmp_path / "no" / "t.csv")
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(ng.InputError, match="it is a folder"):
        write_table(TABLE, output=tmp_path / "t.csv")
    with pytest.raises(ng.InputError, match="File name too long") as raised:
        write_files({tmp_path / ("t" * 300): b"1"})
    assert raised.value.exit_code == 3
