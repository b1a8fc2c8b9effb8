"""``verify``: sound stores are found sound whatever their settings; its command, and its reads."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.damaged import OPTIONS, branches, build, dense, images, rewrite, scaled

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.cli.demo.fashion_cnn import load_demo
from nrm_graph.store.format.files import sha256_of
from nrm_graph.store.verify import verify

CUSTOM = np.arange(36).reshape(6, 6) % 5 + np.zeros((4, 1, 1), int)
SOUND = {
    "neurons": {},
    "channels": {"resolution": "channel"},
    "mixed": {"resolution": {"first": "neuron", "second": "channel"}},
    "custom": {"resolution": {"first": CUSTOM, "second": "channel"}},
    "pruned": {"coverage": 0.7},
    "top": {"top": 9, "resolution": "channel"},
    "rounded": {"mantissa_bits": 7},
    "rounded and pruned": {"mantissa_bits": 4, "coverage": 0.5},
    "two targets": {"target": ["predicted", 0], "batch_size": 3},
    "gamma": {"composite": "epsilon_gamma"},
    "alpha beta": {"composite": "epsilon_alpha2_beta1", "resolution": "channel"},
}


SELDOM = ("neurons", "mixed", "pruned", "rounded", "gamma")
"""What others of these settings have in them too."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SELDOM else []) for n in SOUND]
)
def test_sound_stores(tmp_path, name):
    path = build(tmp_path / "s.nrm", **SOUND[name])
    report = verify(path, sample=3)
    assert report.findings == ()
    assert report.sound
    assert report.recomputed == 3
    assert str(report).endswith(": sound")
    with ng.open(path) as db:
        assert db.verify(sample=0).findings == ()
        assert report.inputs == len(db)


@pytest.mark.parametrize("resolution", ["auto", pytest.param("channel", marks=pytest.mark.slow)])
def test_the_demo_network(tmp_path, resolution):
    net, rows = load_demo()
    path = tmp_path / "s.nrm"
    ng.extract(net, rows[:16], path, progress=False, resolution=resolution).close()
    report = verify(path, sample=16)
    assert report.findings == ()
    assert report.recomputed == 16


def test_networks_in_float64_and_several_shards(tmp_path):
    path = tmp_path / "s.nrm"
    net = ng.trace(branches().double(), images(1)[0]["input"].double())
    for start in range(3):
        ng.extract(net, images(3)[start : start + 1], path, **OPTIONS).close()
    report = verify(path)
    assert report.findings == ()
    assert (report.shards, report.inputs) == (3, 3)


@pytest.mark.smoke
def test_the_committed_store_of_format_1():
    from helpers.make_format1 import PATH

    report = verify(PATH)
    assert report.sound, report.findings
    assert {finding.severity for finding in report.findings} <= {"note"}


def test_stores_without_tensors_say_so(tmp_path):
    path = build(tmp_path / "s.nrm", tensors="omit")
    report = verify(path, sample=2)
    assert report.sound
    assert report.recomputed == 0
    assert len(report.notes) == 2
    assert all("holds no input tensors" in note.problem for note in report.notes)


def test_empty_stores_and_no_store(tmp_path):
    path = build(tmp_path / "s.nrm", count=1)
    for file in (path / "shards").iterdir():
        file.unlink()
    assert verify(path).findings == ()
    with pytest.raises(ng.StoreError, match="there is no store"):
        verify(tmp_path)
    with pytest.raises(ng.InputError, match="sample must be"):
        verify(path, sample=-1)


@pytest.fixture
def copy(two_shards, tmp_path):
    return shutil.copytree(two_shards, tmp_path / "copy.nrm")


@pytest.mark.smoke
def test_the_command(copy, capsys):
    assert main.main(["verify", str(copy), "--sample", "1"]) == 0
    assert capsys.readouterr().out == f"{copy}: 3 inputs in 2 shards, 1 recomputed: sound\n"
    assert main.main(["verify", str(copy), "--format", "json", "--sample", "0"]) == 0
    assert capsys.readouterr().out == "[]\n"
    file = rewrite(copy, "edges", scaled)
    (copy / "shards" / "x.tmp").write_bytes(b"")
    assert main.main(["verify", str(copy), "--sample", "0"]) == 6
    captured = capsys.readouterr()
    *lines, last = captured.out.splitlines()
    assert lines
    assert all(line.startswith(("error: ", "note: ")) for line in lines)
    assert lines[0].startswith(f"error: shard {file.name.split('.')[0]}, input 'k")
    assert "DAMAGED" in last
    assert "is damaged" in captured.err
    assert captured.err.count("\n") == 1
    output = copy.parent / "found.csv"
    assert main.main(["verify", str(copy), "--sample", "0", "--output", str(output)]) == 6
    assert output.read_text().startswith('"severity","problem","shard"')
    assert main.main(["verify", str(copy.parent / "none.nrm")]) == 6
    assert main.main(["verify", str(copy), "--sample", "-1"]) == 2


def test_ctrl_c_ends_it(copy, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = {f: sha256_of(f) for f in copy.rglob("*") if f.is_file()}
    monkeypatch.setattr("nrm_graph.store.verify.conservation.check", interrupted)
    assert main.main(["verify", str(copy)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {f: sha256_of(f) for f in copy.rglob("*") if f.is_file()} == before


def test_memory_is_bounded_by_an_input(tmp_path, monkeypatch):
    """No read asks for more row groups than one input has."""
    path = build(tmp_path / "s.nrm", dense(), 12, (4,))
    sizes = []
    plain = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, **more: sizes.append(len(groups)) or plain(self, groups, **more),
    )
    assert verify(path, sample=0).sound
    assert sizes == [1] * 24
