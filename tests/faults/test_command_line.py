"""Odd options, names, numbers and prompts: exit status 2 and one clear line, before anything is computed."""

from __future__ import annotations

import os

import pytest
from faults import DEEP, NOBODY, Case, both, ids, judge, large, mode, pipe, text

pytestmark = pytest.mark.slow

SAMPLE = ("sample", "run", "a red circle")
EVALUATE = ("evaluate", "run")
TRAIN = ("train", "--config", "toy.toml", "--out", "new", "--store", "store")
TOML = {"needs": "toy.toml"}
NOT_UTF8 = os.fsdecode(b"red \xff circle")


def values(command: tuple[str, ...], flag: str, texts: str, words: str, **more: object) -> list[Case]:
    """A case for each of the values of a flag, which are separated by blanks."""
    return [Case(f"{command[0]} {flag} {one[:20]}", (*command, flag, one), words, **more) for one in texts.split(" ")]


CASES = [
    *values(SAMPLE, "--seed", f"{2**63} {10**30} -1 abc 1.5 nan \u00b2", "--seed"),
    *values(SAMPLE, "--per-prompt", f"0 -1 {10**12} x 1.5", "per-prompt"),
    *values(SAMPLE, "--steps", f"0 -1 201 {10**30} x 1.5 nan", "steps"),
    *values(SAMPLE, "--omega", "nan inf -inf x 1e400", "--omega"),
    *values(SAMPLE, "--scale", "nan inf x=1 toy=nan ,", "scale|no energy"),
    *values(SAMPLE, "--batch", "0 -1 x", "batch"),
    *values(SAMPLE, "--device", "xpu cuda:x cuda:-1 tpu", "device"),
    *values(SAMPLE, "--out", "n" * 300, "has 300 bytes"),
    Case("seeds that overflow", (*SAMPLE, "--seed", str(2**63 - 5), "--per-prompt", "2"), "last video's seed"),
    Case("an option without a value", (*SAMPLE, "--seed"), "--seed"),
    Case("an unknown option", (*SAMPLE, "--sede", "1"), "--seed"),
    Case("an option with control characters", (*SAMPLE, "--\x1b[31mred", "1"), "31mred"),
    Case("an unknown command", ("smaple", "run", "x"), "sample", needs=""),
    Case("a command of 100,000 letters", ("x" * 100_000,), "x", needs=""),
    Case("out a pipe", (*SAMPLE, "--out", "pipe"), "in the way", pipe("pipe")),
    Case("out a file", (*SAMPLE, "--out", "file"), "file", text("file", "x")),
    Case("out below a file", (*SAMPLE, "--out", "file/videos"), "file", text("file", "x")),
    Case("no such run", ("sample", "nowhere", "a red circle"), "nowhere"),
    Case("no prompt", ("sample", "run"), "prompt"),
    Case("an empty prompt", ("sample", "run", ""), "prompt"),
    Case("one name for two videos", (*SAMPLE, "a red circle", "--vbench-names"), "occurs twice"),
    Case("slash and space", ("sample", "run", "a/b", "a b", "--vbench-names"), "have the same file name"),
    Case("a name of 1,000 letters", ("sample", "run", "x" * 1000, "--vbench-names"), "bytes"),
    Case("a prompt with a null byte's escape", ("sample", "run", NOT_UTF8), "no UTF-8 text"),
    Case("an empty prompts file", ("sample", "run", "@p"), "p", text("p", "")),
    Case("a missing prompts file", ("sample", "run", "@p"), "p"),
    Case("huge prompts file", ("sample", "run", "@p"), "at most", large("p", 2**28)),
    Case("prompts with a null byte", ("sample", "run", "@p"), "p", text("p", b"a\x00b\n")),
    Case("prompts that are no text", ("sample", "run", "@p"), "p", text("p", bytes(range(256)) * 8)),
    Case("nested prompts", ("sample", "run", "@p.json"), "nested too deeply", text("p.json", DEEP)),
    Case("prompts of numbers", ("sample", "run", "@p.json"), "p.json", text("p.json", "[1, 2]")),
    Case("prompts an object", ("sample", "run", "@p.json"), "p.json", text("p.json", '{"a": 1}')),
    Case("prompts from a device", ("sample", "run", "@/dev/zero"), "device or pipe"),
    Case("prompts from a pipe", ("sample", "run", "@p"), "device or pipe", pipe("p")),
    Case("prompts from a folder", ("sample", "run", "@run"), "run"),
    Case(
        "prompts nobody may read",
        ("sample", "run", "@p"),
        "permission",
        both(text("p", "x"), mode("p", 0)),
        user=NOBODY,
    ),
    *values(EVALUATE, "--prompts", "0 -1 \u00b2 nothing nan 1e400", "prompts"),
    *values(EVALUATE, "--seeds", f"0 -1 x {10**30}", "seeds"),
    *values(EVALUATE, "--steps", "1000 0 -1 x", "steps"),
    *values(EVALUATE, "--teacher-omega", "nan inf x", "teacher-omega"),
    *values(EVALUATE, "--teacher-steps", "0 -1 1001 x", "teacher-steps"),
    *values(EVALUATE, "--videos", "-1 x 1.5", "videos"),
    *values(EVALUATE, "--batch-size", "0 -1 x", "batch-size"),
    Case("evaluate no run", ("evaluate", "nowhere"), "nowhere", needs=""),
    Case("evaluate a file", ("evaluate", "file"), "file", text("file", "x"), needs=""),
    Case("evaluate a run twice", ("evaluate", "run", "run"), "run"),
    Case("compare with nothing", ("evaluate", "run", "nowhere"), "nowhere"),
    Case("report of nothing", ("report", "nowhere"), "nowhere", needs=""),
    Case("report to a device", ("report", "run", "--out", os.devnull), "device, pipe or socket"),
    Case("report to a folder", ("report", "run", "--out", "run"), "run"),
    Case("report of a name too long", ("report", "run", "--out", "n" * 252 + ".html"), "bytes"),
    Case("export in an unknown format", ("export", "run", "new", "--format", "gguf"), "gguf"),
    Case("export over a folder", ("export", "run", "run"), "run"),
    Case("export of nothing", ("export", "nowhere", "new"), "nowhere", needs=""),
    Case("convert nothing", ("convert", "videocrafter2", "nowhere", "new"), "nowhere", needs=""),
    Case("convert an unknown kind", ("convert", "videocrafter9", "model.ckpt", "new"), "videocrafter", needs=""),
    Case("show no store", ("store", "show", "nowhere"), "nowhere", needs=""),
    Case("show a run as a store", ("store", "show", "run"), "run"),
    *values(("store", "verify", "store"), "--samples", "-1 x 1.5", "samples", needs="store"),
    Case("show an unknown component", ("plugins", "show", "ptaa"), "pta", needs=""),
    Case("new plugin of an unknown kind", ("plugins", "new", "sampler", "x"), "sampler", needs=""),
    Case("new plugin with a name of 300 letters", ("plugins", "new", "energy", "x" * 300), "", needs=""),
    Case("new plugin of a folder's name", ("plugins", "new", "energy", "../x"), "x", needs=""),
    Case("new plugin over a file", ("plugins", "new", "energy", "x", "--out", "f"), "f", text("f", "x"), needs=""),
    *values(("plan", "--config", "toy.toml"), "--on", "nothing h1000 -1", "", **TOML),
    *values(("data", "inspect", "--config", "toy.toml"), "--sample", "-1 x 1.5", "sample", **TOML),
    Case("run name too long", (*TRAIN[:3], "--name", "n" * 300), "at most 200 bytes", **TOML),
    Case("run name with a slash", (*TRAIN[:3], "--name", "a/../../b"), "name", **TOML),
    Case("rank of a launch", TRAIN, "RANK must be a whole number", variables={"RANK": "abc"}, **TOML),
    *values(TRAIN, "--train.steps", "0 -1 1.5 x nan", "train.steps", **TOML),
    *values(TRAIN, "--train.optimizer.lr", "0 -1 nan inf x", "train.optimizer.lr", **TOML),
    *values(TRAIN, "--train.batch-size", "0 -1 x", "train.batch-size", **TOML),
    *values(TRAIN, "--preprocess.videos", "0 -1 x", "preprocess.videos", **TOML),
    *values(TRAIN, "--preprocess.noise-range", "1,0 nan,1 0,2 x 0 -1,1", "noise-range", **TOML),
    *values(TRAIN, "--solver.omega", "4,1 nan,1 x inf,inf", "omega", **TOML),
    *values(TRAIN, "--solver.steps", "1 1001 x", "solver.steps", **TOML),
    *values(TRAIN, "--energies.toy.relative", "nan -1 x inf", "relative", **TOML),
    *values(TRAIN, "--rewards.toy.weight", "nan -1 x inf", "weight", **TOML),
    *values(TRAIN, "--teacher", "nothing toy:value to\x1by ,", "teacher", **TOML),
    *values(TRAIN, "--energies", "nothing toy,toy none,toy", "energ", **TOML),
    *values(TRAIN, "--data", "folder: nothing:x folder:/dev/null", "", **TOML),
    *values(TRAIN, "--seed", f"{2**63} -1 x", "seed", **TOML),
    *values(TRAIN, "--profile", "nothing ../shapes /etc/passwd", "profile", **TOML),
    *values(TRAIN, "--plugin", "nothing.py /dev/zero . x.txt", "plugin", **TOML),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_odd_options_are_one_line_and_write_nothing(case, toys, folder, monkeypatch):
    """A command with an odd option states it in one line and writes nothing."""
    if case.user is not None and os.getuid():
        pytest.skip("only root can become another user")
    for name, value in case.variables.items():
        monkeypatch.setenv(name, value)
    judge(case, toys, folder)
