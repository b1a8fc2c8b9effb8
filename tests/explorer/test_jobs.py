"""A newer call of a tab ends the older one; those of other tabs wait for their turn."""

import threading
import time

import pytest

from nrm_graph.explorer.jobs import Jobs
from nrm_graph.progress import Ended, Progress, look


def test_a_newer_call_ends_the_older_one_of_its_tab_alone():
    jobs, running, ended, answers = Jobs(), threading.Event(), [], {}

    def endless():
        running.set()
        with Progress("passes", 10**9, "passes") as meter:
            while True:
                meter.advance()

    def older():
        with pytest.raises(Ended):
            jobs.run("tab", endless)
        ended.append("older")

    def waiting():
        answers["other tab"] = jobs.run("other", lambda: look() and 2)

    threads = [threading.Thread(target=older), threading.Thread(target=waiting)]
    threads[0].start()
    assert running.wait(10)
    threads[1].start()
    told = jobs.progress("tab")
    assert (told["what"], told["total"], told["unit"]) == ("passes", 10**9, "passes")
    assert jobs.progress("other").get("what", "computing") == "computing"
    answers["tab"] = jobs.run("tab", lambda: look() and 1)
    for thread in threads:
        thread.join(10)
    assert answers == {"tab": 1, "other tab": 2}
    assert ended == ["older"]
    assert jobs.progress("tab") == jobs.progress("other") == {}


def test_an_error_leaves_the_turn_to_the_next():
    jobs = Jobs()
    with pytest.raises(ZeroDivisionError):
        jobs.run("tab", lambda: 1 / 0)
    assert jobs.run("tab", lambda: 3) == 3


def test_the_end_ends_all_and_takes_no_more():
    jobs, begun = Jobs(), threading.Event()
    ended: list[str] = []

    def compute() -> None:
        begun.set()
        while look():
            time.sleep(0.001)

    def ask(tab: str) -> None:
        with pytest.raises(Ended):
            jobs.run(tab, compute)
        ended.append(tab)

    threads = [threading.Thread(target=ask, args=(tab,)) for tab in "ab"]  # one of them waits
    for thread in threads:
        thread.start()
    assert begun.wait(5)
    jobs.end()
    for thread in threads:
        thread.join(5)
    assert sorted(ended) == ["a", "b"]
    with pytest.raises(Ended):
        jobs.run("c", compute)


def test_parts_of_a_page_do_not_end_each_other_and_a_page_ends_them_all():
    jobs, begun, ended = Jobs(), threading.Barrier(3, timeout=10), []

    def endless():
        while look():
            time.sleep(0.001)

    def part(name):
        begun.wait()
        with pytest.raises(Ended):
            jobs.run("tab", endless, part=name)
        ended.append(name)

    threads = [threading.Thread(target=part, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    begun.wait()
    while len(jobs._newest) < 2:  # one runs, the other waits for its turn
        time.sleep(0.001)
    assert ended == []
    assert jobs.progress("tab") == {}
    assert jobs.run("tab", lambda: 4) == 4
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == ["left", "right"]
    assert jobs.run("tab", lambda: 5, part="left") == 5
