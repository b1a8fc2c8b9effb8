"""What sessions do in a process of their own: ``python -m helpers.forked WHAT STORE``.

Every scenario opens the store, asks it, forks, and prints what came of it, one line for each.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time

import duckdb

import nrm_graph as ng

COUNT = "SELECT count(*) FROM flows"
LONG = "SELECT sum(a.range * b.range % 7) FROM range(100000000) a, range(1000000) b"
PATIENCE = 30


def ask(db):
    return db.sql(COUNT).fetchall()[0][0]


def child(work, end=os._exit):
    """Fork, work there, and say how the child ended and what it told."""
    heard, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        try:
            told = repr(work())
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        os.write(tell, told.encode())
        os.close(tell)
        end(0)
    os.close(tell)
    timer = threading.Timer(PATIENCE, lambda: os.kill(pid, signal.SIGKILL))
    timer.start()
    told = b"".join(iter(lambda: os.read(heard, 4096), b"")).decode()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    os.close(heard)
    return os.waitstatus_to_exitcode(status), told


def fork(path):
    """A child answers, however it ends, and the parent goes on."""
    db = ng.open(path)
    relation = db.sql(COUNT)
    relation.fetchall()
    for end in (os._exit, sys.exit):
        print(*child(lambda: ask(db), end))
    print(*child(lambda: (db.close(), ask(db)), end))
    print(*child(lambda: relation.fetchall(), end))
    print(*child(lambda: relation.columns, end))
    print(*child(lambda: (db.refresh(), ask(db)), end))
    print(*child(lambda: child(lambda: ask(db), sys.exit), end))  # a child of the child
    print(0, relation.fetchall()[0][0])

    def forget():
        nonlocal db, relation
        del db, relation

    print(*child(forget, sys.exit))
    print(0, ask(db))
    duckdb.sql("SELECT 1").fetchall()  # on DuckDB's own connection
    print(*child(lambda: ask(db), sys.exit))


def busy(path):
    """A child that is forked while threads of the parent query, parse and open."""
    db = ng.open(path)
    ask(db)
    done = threading.Event()

    def query():
        while not done.is_set():
            ask(db)

    def open_all():
        while not done.is_set():
            with ng.open(path) as other:
                ask(other)

    stopped = []

    def long():
        try:
            db.sql(LONG).fetchall()
        except ng.QueryError as error:
            stopped.append(str(error))

    threads = [threading.Thread(target=t) for t in (query, open_all, long)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    for _ in range(3):
        print(*child(lambda: ask(db), sys.exit))
    done.set()
    while threads[2].is_alive():
        db.cancel()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    print(0, stopped)


def in_worker(db):
    return ask(db)


def workers(path, methods=("fork",)):
    """Workers of multiprocessing."""
    db = ng.open(path)
    ask(db)
    for method in methods:
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(0, *pool.map_async(in_worker, [db, copy.copy(db)]).get(PATIENCE))


class Rows:
    """A data set of a data loader that asks a database for each item."""

    def __init__(self, db):
        self.db = db
        self.keys = [
            key for (key,) in db.sql("SELECT DISTINCT key FROM inputs ORDER BY key").fetchall()
        ]

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, place):
        key = self.keys[place]
        rows = self.db.sql("SELECT count(*) FROM edges", inputs=[key]).fetchall()[0][0]
        return rows, self.db.measure(key, 1).logit


def loader(path, methods=("fork",)):
    """Workers of a data loader, which measure, too."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(4)
    db = ng.open(path)
    data = Rows(db)
    alone = [[float(v) for v in data[n]] for n in range(len(data))]
    for method in methods:
        found = DataLoader(data, num_workers=2, multiprocessing_context=method, timeout=PATIENCE)
        assert [[float(v) for v in item] for item in found] == alone, method
        print(0, method, len(alone))
    large = torch.ones(1000, 1000)
    large @ large  # with all threads, which a child does not have
    key = data.keys[0]
    m = db.measure(key, 1)
    print(*child(lambda: db.measure(key, 1).logit == m.logit))
    print(*child(lambda: m(ng.Layer("0")[0]) == m(ng.Layer("0")[0])))


def everywhere(path):
    """As ``loader`` and ``workers``, by every way to start them."""
    loader(path, ("fork", "forkserver", "spawn"))
    workers(path, ("fork", "forkserver", "spawn"))


def writer(path):
    """A writer belongs to its process; what the parent added is committed once."""
    from pathlib import Path

    from helpers.tiny_stores import record
    from nrm_graph.store.write.writer import Writer

    with Writer(Path(path)) as held:
        held.add(record(50))
        for call in (
            lambda: held.add(record(51)),
            lambda: held.fail("k", "why"),
            held.flush,
            held.close,
        ):
            print(*child(call, sys.exit))
        held.add(record(52))
    with ng.open(path) as db:
        keys = db.sql("SELECT key FROM inputs WHERE key LIKE 'input5%' ORDER BY key").fetchall()
        print(0, keys)


def pickled(path):
    """A pickle is read in a process that never saw the database."""
    db = ng.open(path)
    ask(db)
    sys.stdout.buffer.write(pickle.dumps(db))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
