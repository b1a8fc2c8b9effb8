"""Targets in words: what the command line and the page's address take."""

import pytest

import nrm_graph as ng
from nrm_graph.network.target_texts import read_target
from nrm_graph.network.targets import Outputs

CLASSES = ["cat", "dog", "dog"]
ONE, PLACES = Outputs((("", (3,)),)), Outputs((("logits", (4, 3)),))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("", None),
        ("2", 2),
        ("cat", 0),
        ("-1:2", (-1, 2)),
        ("-1:cat", (-1, 0)),
        ("logits:1:predicted", ("logits", 1, "predicted")),
        ("cat=1,2=-0.5", {0: 1.0, 2: -0.5}),
        ('{"0":1.0,"2":-1.0}', {0: 1.0, 2: -1.0}),
    ],
)
def test_targets_are_read(text, target):
    assert read_target(text, CLASSES, PLACES) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog", "there is no target 'dog': expected a number, the name of a class or weights"),
        ("1:", "there is no target '1:'"),
        ("²", "there is no target"),
        ("9" * 30, "there is no target"),
        ("cat=1,0=2", "names the output 0 twice"),
        ("cat=", "there is no target"),
        ("{1: 2}", "weights"),
        ("x" * 500, r"there is no target 'x{57}\.\.\.'"),
    ],
)
def test_what_is_no_target_is_refused(text, message):
    with pytest.raises(ng.InputError, match=message):
        read_target(text, CLASSES, ONE)
