"""Dropping conditions, while others read, write and are killed."""

import os
import shutil
import threading

import pytest
from helpers import interrupted
from helpers.commit_steps import Steps, no_space
from helpers.compacted import FACTS, ages, condition_of, files
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.store import materialize
from nrm_graph.store.format import settings as store_settings
from nrm_graph.store.read import conditions
from nrm_graph.store.verify import verify
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.dropping import drop


@pytest.fixture
def path(tmp_path):
    found = make(tmp_path / "s.nrm")
    for number in range(3):
        write(found, [record(number)])
    condition_of(found, "given")
    condition_of(found, "Other", [1])
    return found


def count(db, name):
    return db.sql(f"SELECT count(*), count(DISTINCT input_id) FROM {name}_nodes").fetchall()[0]


def problems(path):
    """What is wrong or odd, but for numbers, which are made up here, and what is to be deleted."""
    found = [str(found) for found in verify(path, sample=0).findings if found.key is None]
    return [text for text in found if "replaced, and may be deleted" not in text]


def again(path, name="given", numbers=(2,), unit=3):
    """Make a condition of another event under a name."""
    meta = store_settings.read_settings(path)
    with conditions.undropped(path, name):
        folder = conditions.create(path, meta, name, ng.Layer("0")[unit], None)
        write(folder, [record(n, tensor=False, metadata=FACTS) for n in numbers])


def test_a_condition_goes_and_its_name_is_free(path):
    with ng.open(path) as db:
        assert db.conditions()["name"].to_pylist() == ["Other", "given"]
        db.drop("given")
        assert db.conditions()["name"].to_pylist() == ["Other"]
        with pytest.raises(ng.QueryError, match="no table 'given_nodes'"):
            count(db, "given")
        assert count(db, "other") == (5, 1)
        assert not problems(path)
        again(path)
        db.refresh()
        (row,) = (r for r in db.conditions().to_pylist() if r["name"] == "given")
        assert (row["event"], row["inputs"]) == (repr(ng.Layer("0")[3]), 1)
        assert count(db, "given") == (5, 1)
    assert not problems(path)
    # And once more.
    assert drop(path, "given") == 1
    again(path, numbers=(0, 1), unit=1)
    with ng.open(path) as db:
        assert count(db, "given") == (10, 2)


def test_a_second_drop_of_a_name(path):
    for _ in range(3):
        drop(path, "given")
        again(path)
    assert drop(path, "given") == 1
    with ng.open(path) as db:
        assert db.conditions()["name"].to_pylist() == ["Other"]
    assert len(files(path / "conditions" / "given")) == 15 + 4 + 3 * 5


def test_a_reader_of_before_goes_on_until_the_files_are_old(path):
    with ng.open(path) as reader:
        drop(path, "given")
        again(path)
        assert count(reader, "given") == (15, 3)
        compact(path)
        assert count(reader, "given") == (15, 3)
        before = files(path / "conditions" / "given")
        ages(path, 2 * 86400)
        compact(path)
        # The three shards of before; and the new one, which was merged with the note of the drop.
        assert len(before - files(path / "conditions" / "given")) == 15 + 5 + 1
        with pytest.raises(ng.QueryError, match="is no longer there: open the store again"):
            count(reader, "given")
        reader.refresh()
        assert count(reader, "given") == (5, 1)
    assert not problems(path)


def test_files_of_a_dropped_condition_are_deleted_by_age(path):
    drop(path, "given")
    folder = path / "conditions" / "given"
    waiting = compact(path).waiting_files
    assert len(files(folder)) == 16
    assert compact(path, older_than=0).deleted_files == waiting
    assert len(files(folder)) == 1  # a note that nothing of before counts
    assert not problems(path)
    again(path)
    with ng.open(path) as db:
        assert count(db, "given") == (5, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"^there is no condition 'nothing' in .+: it holds Other, given$"),
        ("GIVEN", r"^there is no condition 'GIVEN' in .+: it holds Other, given$"),
        ("../given", "cannot name a condition"),
        ("edges", "it is a table of the store"),
        (3, "cannot name a condition"),
    ],
)
def test_unknown_names_are_refused(path, name, message):
    with ng.open(path) as db, pytest.raises(ng.InputError, match=message):
        db.drop(name)


def test_a_store_without_conditions_says_so(tmp_path):
    path = make(tmp_path / "s.nrm")
    with pytest.raises(ng.InputError, match="it holds none"):
        drop(path, "given")
    condition_of(path, "given", [])  # made, but nothing computed yet
    assert drop(path, "given") == 0
    assert not problems(path)
    with ng.open(path) as db:
        assert db.conditions().num_rows == 0
    with pytest.raises(ng.StoreError, match="no store"):
        drop(tmp_path / "no.nrm", "given")


def test_the_command(path, capsys):
    assert main.main(["drop", str(path), "given"]) == 0
    assert capsys.readouterr().out == (
        f"{path}: dropped given, which held 3 inputs; a compaction deletes its files once they are "
        "old enough\n"
    )
    assert main.main(["drop", str(path), "given"]) == 3
    assert capsys.readouterr().err.endswith(": it holds Other\n")


def test_a_materialization_at_work_is_not_overtaken(path):
    with conditions.undropped(path, "given"), ng.open(path) as db:
        with pytest.raises(ng.StoreError, match=r"^a materialization of given is at work"):
            db.drop("given")
        with conditions.undropped(path, "given"):  # several processes may materialize
            pass
        assert count(db, "given") == (15, 3)
    drop(path, "given")


def test_a_drop_at_work_is_not_overtaken(path, monkeypatch):
    from nrm_graph.store.write import dropping

    plain = dropping.OpenShard.commit

    def commit(*args):
        for call in (lambda: again(path), lambda: compact(path), lambda: drop(path, "Other")):
            with pytest.raises(ng.StoreError, match="is at work"):
                call()
        return plain(*args)

    monkeypatch.setattr(dropping.OpenShard, "commit", commit)
    drop(path, "given")


def test_materialize_holds_it(tmp_path, monkeypatch):
    """From before the condition is made until its last commit; and a name is used again."""
    path = tmp_path / "s.nrm"
    event, other = ng.Layer("0")[2], ~ng.Layer("0")[2]
    plain, told = materialize.measure, []

    def measure(db, *args, **options):
        with pytest.raises(ng.StoreError, match="a materialization of b is at work"):
            drop(path, "b")
        told.append(1)
        return plain(db, *args, **options)

    with interrupted.extract(path, 3, 2) as db:
        monkeypatch.setattr(materialize, "measure", measure)
        db.materialize(event, name="b", inputs=["k0"], progress=False)
        assert told
        monkeypatch.undo()
        first = db.sql("SELECT * FROM b_nodes ORDER BY ALL").fetchall()
        db.drop("b")
        with pytest.raises(ng.InputError, match="materiali"):
            db.circuit("target = 1", given="b")
        db.materialize(other, name="b", inputs=["k0"], progress=False)
        second = db.sql("SELECT * FROM b_nodes ORDER BY ALL").fetchall()
        assert {row[0] for row in first} == {row[0] for row in second}
        assert first != second
        db.drop("b")
        db.materialize(event, name="b", inputs=["k0"], progress=False)
        assert db.sql("SELECT * FROM b_nodes ORDER BY ALL").fetchall() == first
        assert db.verify(sample=2).sound


def test_a_fault_at_any_step_drops_or_does_not(path, tmp_path):
    told = []
    for k in range(1, 100):
        copy = shutil.copytree(path, tmp_path / f"{k}.nrm")
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, k, no_space)
            patch.setattr(os, "unlink", steps._wrap("unlink", os.unlink))
            try:
                drop(copy, "given")
            except ng.StoreError as error:
                told.append(str(error))
            if steps.count < k:
                break
        assert not problems(copy)
        with ng.open(copy) as db:
            held = db.conditions().to_pylist()
            assert {row["name"]: row["inputs"] for row in held}.get("given", 0) in (0, 3)
            if any(row["name"] == "given" for row in held):
                db.drop("given")
            again(copy)
            db.refresh()
            assert count(db, "given") == (5, 1)
    assert len(told) > 3
    assert all("No space left" in text for text in told)


def test_readers_while_a_name_is_dropped_and_made_again(path):
    """What is opened is of one event: unit 1 with three inputs, unit 3 with one, or none."""
    seen, errors = set(), []
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                with ng.open(path) as db:
                    for row in db.conditions().to_pylist():
                        if row["name"] == "given":
                            seen.add((row["event"], row["inputs"]))
            except ng.NrmError as error:
                errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(6):
        drop(path, "given")
        again(path)
        drop(path, "given")
        again(path, numbers=range(3), unit=1)
    done.set()
    for reader in readers:
        reader.join()
    assert not errors
    one, three = repr(ng.Layer("0")[1]), repr(ng.Layer("0")[3])
    assert seen <= {(one, 3), (one, 0), (three, 1), (three, 0)}
