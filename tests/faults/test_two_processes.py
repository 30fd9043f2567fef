"""Two commands at once in one place: each ends well or is refused in one line, and the files are those of one alone."""

from __future__ import annotations

import forked
import pytest
from faults import check_error, results

pytestmark = pytest.mark.campaign

TRAIN = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
OTHER = ("train", "--config", "toy.toml", "--out", "other", "--store", "store")
PREPROCESS = ("preprocess", "--config", "toy.toml", "--store", "store")
SAMPLE = ("sample", "run", "circle 1", "circle 2", "--out", "out")
EVALUATE = ("evaluate", "run", "--prompts", "2")
PAIRS = {
    "two trainings of one run": (TRAIN, TRAIN, "toy.toml store"),
    "two trainings with one new store": (TRAIN, OTHER, "toy.toml"),
    "training and preprocessing": (TRAIN, PREPROCESS, "toy.toml"),
    "two preprocessings": (PREPROCESS, PREPROCESS, "toy.toml"),
    "two parts of one store": ((*PREPROCESS, "--shard", "0/2"), (*PREPROCESS, "--shard", "1/2"), "toy.toml"),
    "one part twice": ((*PREPROCESS, "--shard", "0/2"), (*PREPROCESS, "--shard", "0/2"), "toy.toml"),
    "preprocessing and its check": (PREPROCESS, ("store", "verify", "store", "--samples", "0"), "toy.toml store"),
    "two samplings": (SAMPLE, SAMPLE, "run"),
    "two evaluations": (EVALUATE, EVALUATE, "run"),
    "evaluation and report": (EVALUATE, ("report", "run"), "run"),
    "two reports": (("report", "run"), ("report", "run"), "run"),
    "two exports": (("export", "run", "out", "--format", "t2v-turbo-v2"),) * 2 + ("run",),
}


@pytest.mark.parametrize("name", PAIRS, ids=lambda name: name.replace(" ", "-"))
def test_of_two_commands_at_once_one_ends_well(name, toys, folder):
    """At least one of two commands ends well; another is refused in one line, and can be run afterwards."""
    first, second, needs = PAIRS[name]
    alone = folder.with_name("alone")
    for copy in (folder, alone):
        toys.copy(copy, needs)
    children = [
        forked.start(command, folder, modules=toys.modules, output=f"-{number}")
        for number, command in enumerate((first, second))
    ]
    both = [forked.ended(child, folder, output=f"-{number}") for number, child in enumerate(children)]

    assert 0 in [done.status for done in both], [done.err for done in both]
    for command, done in zip((first, second), both, strict=True):
        assert done.status in (0, 2), done.err
        assert "Traceback" not in done.out + done.err
        if done.status == 2:
            check_error(done.err)
            assert command[0] == "export" or "another process" in done.err, done.err
            if command[0] != "export":  # the format's folder is there now
                again = forked.ended(forked.start(command, folder, modules=toys.modules), folder)
                assert again.status == 0, again.err
    for command in dict.fromkeys((first, second)):
        done = forked.ended(forked.start(command, alone, modules=toys.modules), alone)
        assert done.status == 0, done.err

    assert results(folder) == results(alone)
    assert not list(folder.rglob("*.part"))
