"""``verify``: sound stores are found sound, and every kind of damage is named with its place."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.cli.demo.fashion_cnn import load_demo
from nrm_graph.store.format.files import seal, sha256_of
from nrm_graph.store.format.manifest import new_name
from nrm_graph.store.format.schema import ORDER, parquet_options
from nrm_graph.store.verify import verify


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)  # test_store_commit.py is about that


class Branches(nn.Module):
    """A residual sum, a concatenation and a pool."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.side = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(7 * 9, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = torch.relu(self.second(x)) + x
        z = torch.cat([y, torch.relu(self.side(x))], 1)
        return self.head(torch.max_pool2d(z, 2).flatten(1))


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def branches():
    torch.manual_seed(0)
    return Branches().eval()


def images(count, shape=(2, 6, 6)):
    torch.manual_seed(1)
    return [{"input": torch.randn(shape), "key": f"k{i}", "score": 0.5} for i in range(count)]


OPTIONS = {"progress": False, "composite": "epsilon"}


def build(path, net=None, count=4, shape=(2, 6, 6), **options):
    ng.extract(net or branches(), images(count, shape), path, **{**OPTIONS, **options}).close()
    return path


# --- sound ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", SOUND)
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


@pytest.mark.parametrize("resolution", ["auto", "channel"])
def test_the_demo_network(tmp_path, resolution):
    net, rows = load_demo()
    path = tmp_path / "s.nrm"
    ng.extract(net, rows[:16], path, progress=False, resolution=resolution).close()
    report = verify(path, sample=16)
    assert report.findings == ()
    assert report.recomputed == 16


def test_networks_in_float64_and_several_shards(tmp_path):
    path = tmp_path / "s.nrm"
    net = branches().double()
    for start in range(3):
        ng.extract(net, images(3)[start : start + 1], path, **OPTIONS).close()
    report = verify(path)
    assert report.findings == ()
    assert (report.shards, report.inputs) == (3, 3)


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


def test_without_a_sample_torch_is_not_imported(tmp_path):
    path = build(tmp_path / "s.nrm")
    code = (
        "import sys; from nrm_graph.store.verify import verify; "
        "report = verify(sys.argv[1], sample=0); assert report.sound; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# --- bytes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store of two small shards with custom units: copied before it is damaged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        path = tmp_path_factory.mktemp("small") / "s.nrm"
        own = {"0": np.arange(12) // 4}
        for rows in (images(2, (4,)), images(3, (4,))[2:]):
            ng.extract(dense(), rows, path, resolution=own, **OPTIONS).close()
    return path


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy.nrm")


def kinds(path):
    """One file of every kind."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            kind = file.name.split(".", 1)[1] if file.parent.name == "shards" else file.name
            found.setdefault(kind, file)
    return found


KINDS = (
    "store.json",
    "program.json",
    "weights.safetensors",
    "units.safetensors",
    "json",
    *(f"{table}.parquet" for table in ("inputs", "nodes", "edges", "tensors")),
)


def test_kinds_of_files(copy):
    assert set(kinds(copy)) == set(KINDS)


def finds_flips(path, kind, positions):
    file = kinds(path)[kind]
    data = file.read_bytes()
    for at, bit in positions(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        report = verify(path, sample=0)
        assert not report.sound, (kind, at, bit)
        named = [error for error in report.errors if file.name in str(error)]
        assert named, (kind, at, bit, report.errors)
    file.write_bytes(data)
    assert verify(path, sample=0).findings == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found(copy, kind):
    rng = np.random.default_rng(0)
    finds_flips(
        copy, kind, lambda size: [(0, 0), (size - 1, 7), *rng.integers((0, 0), (size, 8), (10, 2))]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found(copy, kind):
    finds_flips(copy, kind, lambda size: [(at, at % 8) for at in range(0, size, size // 250 + 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_found(copy, kind):
    file = kinds(copy)[kind]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ng.StoreError):
        ng.open(copy)
    report = verify(copy)
    assert any(file.name in str(error) for error in report.errors)
    file.unlink()
    if kind == "store.json":
        with pytest.raises(ng.StoreError):
            verify(copy)
    elif kind != "json":  # without its manifest a shard is none
        assert any("found none" in error.problem for error in verify(copy).errors)


def test_swapped_files_of_two_shards_are_found(copy):
    for table in ("inputs", "nodes", "edges", "tensors"):
        one, two = sorted((copy / "shards").glob(f"*.{table}.parquet"))
        data = one.read_bytes(), two.read_bytes()
        one.write_bytes(data[1])
        two.write_bytes(data[0])
        report = verify(copy, sample=0)
        assert {error.file for error in report.errors} >= {one.name, two.name}
        for name in (one, two):
            reseal(name)
        report = verify(copy, sample=0)
        assert {error.file for error in report.errors} == {one.name, two.name}, table
        one.write_bytes(data[0])
        two.write_bytes(data[1])
        for name in (one, two):
            reseal(name)
    assert verify(copy).findings == ()


def test_links_are_refused(copy, tmp_path):
    file = kinds(copy)["edges.parquet"]
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    (error,) = [e for e in verify(copy).errors if "symbolic link" in e.problem]
    assert error.file == file.name
    shutil.move(copy / "shards", tmp_path / "shards")
    (copy / "shards").symlink_to(tmp_path / "shards")
    (error,) = verify(copy).errors
    assert "symbolic link" in error.problem


# --- content, with valid checksums ------------------------------------------------------------


def edit_json(file, change):
    """Change a JSON file and seal it again."""
    raw = json.loads(file.read_text())
    raw.pop("seal", None)
    change(raw)
    file.write_text(json.dumps(raw | {"seal": seal(raw)}))


def reseal(file, rows=None, groups=None):
    """Write size, checksum and counts of a data file into its manifest."""
    name, table, _ = file.name.split(".")

    def change(raw):
        info = raw["files"][table]
        info |= {"size": file.stat().st_size, "sha256": sha256_of(file)}
        if rows is not None:
            info["rows"] = rows
        for entry, group in zip(raw["inputs"], groups or (), strict=False):
            entry[table] = group

    edit_json(file.with_name(f"{name}.json"), change)


def rewrite(path, table, change, sealed=True):
    """Change the rows of the first input of a table, and everything that speaks of them."""
    file = kinds(path)[f"{table}.parquet"]
    with pq.ParquetFile(file) as opened:
        parts = [opened.read_row_group(i) for i in range(opened.num_row_groups)]
        schema = opened.schema_arrow
    first = {name: parts[0][name].to_pylist() for name in parts[0].column_names}
    parts[0] = pa.table(change(first) or first, schema=schema)
    with pq.ParquetWriter(file, schema, **parquet_options(table)) as writer:
        for part in parts:
            writer.write_table(part)
    if sealed:
        groups = [[i, 1] for i in range(len(parts))] if table in ORDER else None
        reseal(file, sum(map(len, parts)), groups)
    return file


def set_value(column, row, value):
    def change(rows):
        rows[column][row] = value(rows[column][row]) if callable(value) else value

    return change


def strongest(rows):
    return int(np.argmax(np.abs(rows["relevance"])))


def scaled(rows):
    rows["relevance"][strongest(rows)] *= 1.001


def dropped(rows):
    at = strongest(rows)
    return {name: values[:at] + values[at + 1 :] for name, values in rows.items()}


def doubled(rows):
    at = strongest(rows)
    return {name: values[: at + 1] + values[at:] for name, values in rows.items()}


def reversed_(rows):
    return {name: values[::-1] for name, values in rows.items()}


def balanced(rows):
    """Move relevance along a rectangle of four edges: no sum changes, conditionals tell."""
    keys = zip(*(rows[name] for name in ORDER["edges"]), strict=True)
    at = {key: row for row, key in enumerate(keys)}
    for (dst, src, upper, lower), (_, _, other, low) in itertools.combinations(at, 2):
        ends = [(dst, src, *pair) for pair in itertools.product((upper, other), (lower, low))]
        if other != upper and low > lower >= 0 and all(end in at for end in ends):
            for sign, end in zip((1, -1, -1, 1), ends, strict=True):
                rows["relevance"][at[end]] += sign * 0.01
            return
    raise AssertionError


DAMAGE = {
    "changed node": ("nodes", scaled, "its relevance is"),
    "changed edge": ("edges", scaled, "sum to"),
    "moved relevance": ("edges", balanced, "its conditional relevance says"),
    "changed conditional": (
        "edges",
        lambda rows: set_value("conditional", strongest(rows), lambda q: q * 1.001)(rows),
        "the conditional relevances of unit",
    ),
    "dropped node": ("nodes", dropped, "its relevance is 0 "),
    "dropped edge": ("edges", dropped, "sum to"),
    "node twice": ("nodes", doubled, "is there twice"),
    "edge twice": ("edges", doubled, "is there twice"),
    "nodes not sorted": ("nodes", reversed_, "not sorted"),
    "edges not sorted": ("edges", reversed_, "not sorted"),
    "unit of a node": ("nodes", set_value("unit", 1, 9999), "a unit that its layer has not"),
    "layer of a node": ("nodes", set_value("layer_id", 1, 99), "a layer that the store has not"),
    "unit of an edge": ("edges", set_value("src_unit", -1, 99), "a unit that its layer has not"),
    "layer of an edge": ("edges", set_value("dst_layer", 0, -1), "a layer that the store has not"),
    "group of an edge": ("edges", set_value("dst_layer", 0, 0), "pseudo-unit of the same layer"),
    "pruned": ("edges", set_value("dst_unit", 0, -3), "pseudo-unit of the same layer|is pruned"),
    "other input": ("nodes", set_value("input_id", 0, 5), "of another input"),
    "NaN in an edge": ("edges", set_value("relevance", 3, float("nan")), "row 3 is nan"),
    "infinity in q": ("edges", set_value("conditional", 0, float("inf")), "is inf"),
    "NaN in a node": ("nodes", set_value("relevance", 0, float("nan")), "row 0 is nan"),
    "activation": ("nodes", set_value("activation", 0, None), "an activation is null"),
    "missing q": ("edges", set_value("conditional", 0, None), "relevance is missing"),
    "key": ("inputs", set_value("key", 0, "zz"), "the manifest lists it, the table does not"),
    "input twice": (
        "inputs",
        lambda rows: {k: v + v[:1] for k, v in rows.items()},
        "twice",
    ),
    "logit": ("inputs", set_value("logit", 0, float("nan")), "logit is nan"),
    "score": ("inputs", set_value("score", 0, float("-inf")), "score is -inf"),
    "prediction": ("inputs", set_value("predicted", 0, 3), "the network has 3 outputs"),
    "tensor": (
        "tensors",
        set_value("data", 0, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "is not the one that was explained",
    ),
    "shape": ("tensors", set_value("shape", 0, [2, 2]), "expected a tensor of shape"),
    "tensor of another": ("tensors", set_value("key", 0, "zz"), "that the shard does not hold"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A store of single neurons, one shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        path = tmp_path_factory.mktemp("plain") / "s.nrm"
        return build(path, dense(), 2, (4,))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_with_valid_checksums_is_named(plain, tmp_path, name):
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    table, change, text = DAMAGE[name]
    file = rewrite(path, table, change)
    report = verify(path, sample=0)
    hits = [e for e in report.errors if any(part in e.problem for part in text.split("|"))]
    assert hits, report.findings
    assert {e.key for e in report.errors if "twice" not in e.problem} <= {"k0", "k1", "zz"}
    assert hits[0].shard == file.name.split(".")[0]
    assert {e.file for e in report.errors} <= {file.name, None}
    if table in ORDER:
        assert len({e.key for e in report.errors}) == 1  # the other input is sound
        if "layer" not in name and "other" not in name and "NaN" not in name and "inf" not in name:
            assert hits[0].layer is not None


def test_the_same_damage_without_checksums_is_named_twice(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    file = rewrite(path, "edges", scaled, sealed=False)
    report = verify(path, sample=0)
    assert [e for e in report.errors if e.file == file.name and "SHA-256" in e.problem]


@pytest.mark.parametrize("options", [{"resolution": "channel"}, {"coverage": 0.6}, {"top": 40}])
@pytest.mark.parametrize("table", ["nodes", "edges"])
@pytest.mark.parametrize("change", [scaled, dropped])
def test_damage_of_grouped_and_pruned_stores(tmp_path, options, table, change):
    path = build(tmp_path / "s.nrm", count=2, **options)
    rewrite(path, table, change)
    report = verify(path, sample=0)
    assert report.errors
    assert all("sum to" in e.problem or "sums to" in e.problem or "has relevance" in e.problem
               for e in report.errors)  # fmt: skip
    assert all(e.key and e.layer and e.shard for e in report.errors)


@pytest.mark.parametrize("table", ["nodes", "edges"])
def test_page_checksums_name_the_input(plain, tmp_path, table):
    """A bit that was flipped before the manifest was written: only the page's checksum tells."""
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    file = kinds(path)[f"{table}.parquet"]
    with pq.ParquetFile(file) as opened:
        column = opened.metadata.row_group(1).column(3)
        at = column.data_page_offset + column.total_compressed_size - 1
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    reseal(file)
    (error,) = verify(path, sample=0).errors
    second = json.loads(kinds(path)["json"].read_text())["inputs"][1]["key"]
    assert (error.file, error.key) == (file.name, second)
    assert "cannot be read" in error.problem


def test_pruned_rows_are_checked(tmp_path):
    path = build(tmp_path / "s.nrm", count=2, coverage=0.6)

    def corner(rows):
        pairs = zip(rows["dst_unit"], rows["src_unit"], strict=True)
        at = [i for i, pair in enumerate(pairs) if pair == (-3, -3)]
        row = max(at, key=lambda i: abs(rows["relevance"][i]))
        rows["relevance"][row] *= 1.01

    rewrite(path, "edges", corner)
    assert any("the corner says" in e.problem for e in verify(path, sample=0).errors)
    edit_json(path / "store.json", lambda raw: raw.update(pruned=[]))
    assert any("a pruned row where" in e.problem for e in verify(path, sample=0).errors)


def test_settings_that_the_rows_do_not_keep_to(tmp_path):
    path = build(tmp_path / "s.nrm", count=2, mantissa_bits=8)
    edit_json(path / "store.json", lambda raw: raw.update(mantissa_bits=5))
    assert any("more than 5 mantissa bits" in e.problem for e in verify(path, sample=0).errors)
    path = build(tmp_path / "t.nrm", count=2, top=40)

    def fewer(raw):
        for row in raw["pruned"]:
            row[3] = 5

    edit_json(path / "store.json", fewer)
    assert any("the store keeps 5" in e.problem for e in verify(path, sample=0).errors)


def test_columns_counts_and_row_groups(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    file = kinds(path)["nodes.parquet"]
    table = pq.read_table(file)

    def problem(*changed, **written):
        pq.write_table(*changed, file, **written)
        reseal(file)
        return " | ".join(e.problem for e in verify(path, sample=0).errors)

    assert "the columns are not those" in problem(table.drop_columns(["activation"]))
    wide = table.set_column(3, "relevance", table["relevance"].cast(pa.float64()))
    assert "relevance double" in problem(wide)
    assert "belong" in problem(table) or "but there are 1" in problem(table)
    assert "holds no input" not in problem(table)
    both = problem(table, row_group_size=3)
    assert "belongs to no input" in both
    assert "of another input" in both or "sum to" in both
    reseal(file, rows=3)
    assert any("expected 3 rows" in e.problem for e in verify(path, sample=0).errors)


def test_an_edited_program_is_found(plain, tmp_path):
    for name, change in (
        ("weights.safetensors", lambda data: data[:-4] + b"\0\0\0\0"),
        ("program.json", lambda data: data.replace(b"relu", b"tanh")),
    ):
        path = shutil.copytree(plain, tmp_path / f"{name}.nrm")
        file = path / name
        file.write_bytes(change(file.read_bytes()))
        assert [e.file for e in verify(path, sample=0).errors] == [name]

        def described(raw, file=file, name=name):
            raw["files"][name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}

        edit_json(path / "store.json", described)
        assert verify(path, sample=0).sound  # nothing but the program itself can tell
        assert any("cannot be recomputed" in e.problem for e in verify(path).errors)


def test_edited_settings_are_found(plain, tmp_path):
    def composite(raw):
        raw["composite"] = ng.composites.get("excitation_backprop").to_json()

    foreign = "are not those of its program"
    for name, change, text in (
        (
            "kind",
            lambda raw: raw["layers"][1].update(kind="convolution"),
            "are not those of its program",
        ),
        (
            "alias",
            lambda raw: raw["layers"][1].update(aliases=["x9"]),
            "are not those of its program",
        ),
        ("composite", composite, "recomputed, the relevance of"),
        ("groups", lambda raw: raw["groups"].append([2, 0, 3]), foreign),
        ("hash", lambda raw: raw.update(program_hash="0" * 64), "is not the one it was made with"),
    ):
        path = shutil.copytree(plain, tmp_path / f"{name}.nrm")
        edit_json(path / "store.json", change)
        report = verify(path)
        assert any(text in e.problem for e in report.errors), (name, report.findings)
        path = shutil.copytree(plain, tmp_path / f"{name}-unsealed.nrm")
        raw = json.loads((path / "store.json").read_text())
        change(raw)
        (path / "store.json").write_text(json.dumps(raw))
        assert any("it was edited" in e.problem for e in verify(path, sample=0).errors)
    path = build(tmp_path / "channels.nrm", count=1, resolution="channel")
    edit_json(path / "store.json", lambda raw: raw["layers"][1].update(n_units=99))
    assert any("units, expected 99" in e.problem for e in verify(path).errors)
    path = shutil.copytree(plain, tmp_path / "version.nrm")
    edit_json(path / "store.json", lambda raw: raw.update(format_version=2))
    (error,) = verify(path).errors
    assert "format version 2" in error.problem


def test_other_facts_are_recomputed(plain, tmp_path):
    for name, table, change, text in (
        ("logit", "inputs", set_value("logit", 0, lambda v: v + 0.1), "the store says"),
        (
            "prediction",
            "inputs",
            set_value("predicted", 0, lambda v: (v + 1) % 3),
            "the stored prediction is",
        ),
        (
            "activation",
            "nodes",
            set_value("activation", 0, lambda v: v + 1.0),
            "the activation of unit 0",
        ),
    ):
        path = shutil.copytree(plain, tmp_path / f"{name}.nrm")
        rewrite(path, table, change)
        assert verify(path, sample=0).sound
        assert any(text in e.problem for e in verify(path, sample=2).errors), name


def test_flips_of_near_ties_are_notes(tmp_path):
    """Relevance that moves within a channel is noted; what leaves the channel is an error."""
    path = build(tmp_path / "s.nrm", count=1)
    with ng.open(path) as db:
        names = {row["name"]: row["layer_id"] for row in db.meta["layers"]}
        from nrm_graph.store.verify import recompute
        from nrm_graph.store.verify.report import Findings

        m = db.measure("k0")
        nodes = db.sql("SELECT layer_id, unit, relevance, activation FROM nodes").to_arrow_table()
    for other, severity in ((1, "note"), (36, "error")):
        columns = {name: nodes[name].to_numpy().copy() for name in nodes.column_names}
        mine = np.flatnonzero(columns["layer_id"] == names["first"])
        unit = {int(columns["unit"][row]): row for row in mine}
        start = next(u for u in unit if u >= 0 and u + 1 in unit and u % 36 < 35 and u + 36 in unit)
        for u, step in ((start, 0.05), (start + other, -0.05)):
            columns["relevance"][unit[u]] += step
        found = Findings()
        recompute._compare_nodes(m, columns, found, {"key": "k0"})
        assert {finding.severity for finding in found.sorted()} == {severity}
        if severity == "note":
            assert "near-tied max-pools chose other neurons" in found.sorted()[0].problem
            assert "2 of first" in found.sorted()[0].problem


# --- several shards ---------------------------------------------------------------------------


def duplicate(path, change=lambda raw: None):
    """Copy the first shard under a later name."""
    first = min((path / "shards").glob("*.json"))
    name = new_name(after=max(f.stem for f in (path / "shards").glob("*.json")))
    for file in (path / "shards").glob(f"{first.stem}.*"):
        shutil.copy(file, file.with_name(file.name.replace(first.stem, name)))

    def renamed(raw):
        raw["name"] = name
        for table, info in raw["files"].items():
            info["name"] = f"{name}.{table}.parquet"
        change(raw)

    edit_json(first.with_name(f"{name}.json"), renamed)
    return first.stem, name


def test_a_pair_in_two_manifests_is_reported(copy):
    first, second = duplicate(copy)
    report = verify(copy)
    assert report.sound
    assert len(report.notes) == 2
    for note in report.notes:
        assert note.shard == second
        assert first in note.problem
        assert note.key in ("k0", "k1")


def test_one_key_with_two_contents_is_an_error(copy):
    _, second = duplicate(copy, lambda raw: raw["inputs"][0].update(content="0" * 64))
    (error,) = [e for e in verify(copy, sample=0).errors if "two contents" in e.problem]
    assert (error.shard, error.key) == (second, "k0")


def test_replaced_shards_and_circles(copy):
    first, second = duplicate(copy)
    manifests = {name: copy / "shards" / f"{name}.json" for name in (first, second)}
    edit_json(manifests[second], lambda raw: raw.update(replaces=[first]))
    report = verify(copy)
    assert report.sound
    assert [(n.shard, n.problem) for n in report.notes] == [
        (None, f"the shard {first} was replaced, and may be deleted: a compaction does so, by age")
    ]
    edit_json(manifests[first], lambda raw: raw.update(replaces=[second]))
    assert any("in a circle" in e.problem for e in verify(copy).errors)


def test_leftovers_are_notes(copy):
    shards = copy / "shards"
    (shards / "abc.edges.parquet.tmp").write_bytes(b"x")
    (shards / "abc.edges.parquet").write_bytes(b"x")
    (shards / "notes.txt").write_text("x")
    (copy / "weights.safetensors.0123.tmp").write_text("x")
    report = verify(copy)
    assert report.sound
    assert {note.file: note.problem.split(",")[0] for note in report.notes} == {
        "abc.edges.parquet.tmp": "unfinished",
        "abc.edges.parquet": "no manifest names it",
        "notes.txt": "no part of the store",
        "weights.safetensors.0123.tmp": "unfinished",
    }
    assert all("seconds old" in note.problem for note in report.notes)
    (shards / "odd name!.json").write_text("{}")
    assert [e.file for e in verify(copy).errors] == ["odd name!.json"]


def test_a_shard_of_failures_alone_is_sound(copy):
    from nrm_graph.store.write.writer import Writer

    with Writer(copy) as writer:
        writer.fail("gone.png", "cannot be read")
    assert verify(copy).findings == ()


# --- command ----------------------------------------------------------------------------------


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
