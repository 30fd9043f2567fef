"""Damaged configurations, run folders, checkpoints, stores and published files: refused, or served unharmed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import forked
import pytest
import torch
from faults import (
    DEEP,
    NOBODY,
    STEP,
    Case,
    Hostile,
    binary_damages,
    both,
    checkpoint,
    drop,
    edit,
    flip,
    ids,
    json_damages,
    judge,
    link,
    mode,
    other_types,
    pipe,
    remove,
    tensors,
    text,
    unfinished,
)

pytestmark = pytest.mark.campaign

SAMPLE = ("sample", "run", "a red circle")
REPORT = ("report", "run")
EVALUATE = ("evaluate", "run", "--prompts", "1")
TRAIN = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
NEW = ("train", "--config", "toy.toml", "--out", "new", "--store", "store")
PREPROCESS = ("preprocess", "--config", "toy.toml", "--store", "store")
SHOW = ("store", "show", "store")
VERIFY = ("store", "verify", "store", "--samples", "0")
CONVERT = ("convert", "videocrafter2", "x.pt", "out", "--arch", "config.json")
STORE = {"needs": "store toy.toml"}
RESUME = {"needs": "run store toy.toml"}
EITHER = {"status": (0, 2)}
HTML = {"status": 0, "writes": ("run/report.html",)}
SCORES = "store/scores/toy-*/shard-00000"


def bomb() -> bytes:
    """A file of 600 KB that is 600 MB when it is unpacked."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data.pkl", "w") as entry:
            for _ in range(60):
                entry.write(bytes(10**7))
    return target.getvalue()


def all_of(what: str, arguments: tuple[str, ...], changes: dict, **more: object) -> list[Case]:
    """A case for each of several damages."""
    return [Case(f"{what} {name}", arguments, change=change, **more) for name, change in changes.items()]


def in_checkpoint(changes: dict) -> dict:
    """The same damages in a run that was interrupted."""
    return {name: both(unfinished, change) for name, change in changes.items()}


def some(changes: dict, names: str) -> dict:
    """The damages of these names, which are separated by commas."""
    return {name: changes[name] for name in names.split(", ")}


RUN_JSON = ("format", "teacher", "data", "energies", "rewards", "solver", "train", "evaluate", "seed", "name", "device")
RUNS = [
    *all_of("run.json", SAMPLE, json_damages("run/run.json")),
    *all_of("run.json for a report", REPORT, some(json_damages("run/run.json"), "missing, a list, cut")),
    *all_of("run.json to resume", TRAIN, some(json_damages("run/run.json"), "a list, cut, nested, binary"), **RESUME),
    *[
        Case(
            f"run.json {key} a number",
            SAMPLE,
            change=edit("run/run.json", **{key: 10**400}),
            **EITHER,
            writes=("run/samples*",),
        )
        for key in RUN_JSON
    ],
    *all_of("student.json", SAMPLE, json_damages("run/student/student.json")),
    *[
        Case(f"student.json {name}", SAMPLE, change=edit("run/student/student.json", **change))
        for name, change in other_types({"format": 1, "energies": [], "teacher": "", "student": {}}).items()
    ],
    Case("student of another kind", SAMPLE, "student.json", edit("run/student/student.json", student={"kind": "xx"})),
    Case("student of another run", SAMPLE, "different runs", edit("run/student/student.json", energies=["other"])),
    *all_of("weights", SAMPLE, binary_damages("run/student/model.safetensors")),
    *[
        Case(
            f"bit {where} of the student",
            SAMPLE,
            "checksum of model.safetensors",
            flip("run/student/model.safetensors", where),
        )
        for where in (0.5, 0.99)
    ],
    Case(
        "student in whole numbers",
        SAMPLE,
        "whole numbers",
        tensors("run/student/model.safetensors", lambda state: {k: v.to(torch.int8) for k, v in state.items()}),
    ),
    Case(
        "student without a weight",
        SAMPLE,
        "",
        tensors("run/student/model.safetensors", lambda state: dict(list(state.items())[1:])),
    ),
    Case(
        "student with a weight of another size",
        SAMPLE,
        "",
        tensors("run/student/model.safetensors", lambda state: {k: v[:1] for k, v in state.items()}),
    ),
    Case("student unreadable", SAMPLE, "check its permissions", mode("run/student", 0), user=NOBODY),
    *all_of(
        "evaluation.json",
        REPORT,
        json_damages("run/evaluation.json"),
        **EITHER,
        writes=HTML["writes"],
    ),
    *[
        Case(
            f"evaluation.json {name}",
            REPORT,
            change=edit("run/evaluation.json", **change),
            **EITHER,
            writes=HTML["writes"],
        )
        for name, change in other_types(
            {"splits": {}, "seeds": [], "steps": 2, "videos": [], "run": "", "timing": {}, "student": "", "asked": {}}
        ).items()
    ],
    *all_of("log.jsonl", REPORT, json_damages("run/log.jsonl"), **EITHER, writes=HTML["writes"]),
    Case("log with a script", REPORT, "report", text("run/log.jsonl", '{"step": 1, "loss": "<script>x"}\n'), **HTML),
    Case("log with 1e308", REPORT, "report", text("run/log.jsonl", '{"step": 1, "loss": 1e308}\n' * 2), **HTML),
    Case("log without a step", REPORT, "", text("run/log.jsonl", '{"loss": 1}\n'), **EITHER, writes=HTML["writes"]),
    Case("log of deep lines", REPORT, "", text("run/log.jsonl", DEEP + "\n"), **EITHER, writes=HTML["writes"]),
    *all_of("sources.json", REPORT, json_damages("run/sources.json"), **EITHER, writes=HTML["writes"]),
    *all_of(
        "a video's metadata",
        REPORT,
        some(json_damages("run/videos/000-student.json"), "missing, a list, binary, a pipe, 2 GB"),
        **EITHER,
        writes=HTML["writes"],
    ),
    *all_of(
        "a video",
        REPORT,
        some(binary_damages("run/videos/000-student.mp4"), "missing, empty, text, a pipe, a device, a folder"),
        **EITHER,
        writes=HTML["writes"],
    ),
]
STATE = f"{STEP}/state.pt"
CHECKPOINTS = [
    *all_of("checksums", TRAIN, in_checkpoint(json_damages(f"{STEP}/checksums.json")), **RESUME),
    *all_of("state", TRAIN, in_checkpoint(binary_damages(STATE)), **RESUME),
    *all_of("weights", TRAIN, in_checkpoint(binary_damages(f"{STEP}/model.safetensors")), **RESUME),
    *[
        Case(f"bit of {name}", TRAIN, f"checksum of {name}", both(unfinished, flip(f"{STEP}/{name}")), **RESUME)
        for name in ("state.pt", "model.safetensors", "online.safetensors", "student.json")
    ],
    Case("state without keys", TRAIN, "is damaged", both(unfinished, checkpoint("state.pt", {"step": 2})), **RESUME),
    Case("state a list", TRAIN, "is damaged", both(unfinished, checkpoint("state.pt", [1, 2])), **RESUME),
    Case("state of another step", TRAIN, "of step 3", both(unfinished, checkpoint("state.pt", {"step": 3})), **RESUME),
    Case(
        "state with code",
        TRAIN,
        "is damaged",
        both(unfinished, checkpoint("state.pt", pickle.dumps(Hostile()))),
        **RESUME,
    ),
    Case("state a zip bomb", TRAIN, "is damaged", both(unfinished, checkpoint("state.pt", bomb())), **RESUME),
    Case("checksums of another step", TRAIN, "", both(unfinished, edit(f"{STEP}/checksums.json", step=9)), **RESUME),
    Case("checksums without files", TRAIN, "", both(unfinished, edit(f"{STEP}/checksums.json", sha256={})), **RESUME),
    Case("lock a link", TRAIN, "symbolic link", both(unfinished, link("run/.lock", "toy.toml")), **RESUME),
    Case("lock a pipe", TRAIN, "no regular file", both(unfinished, pipe("run/.lock")), **RESUME),
    Case(
        "sample a damaged checkpoint",
        ("sample", STEP, "x"),
        "checksum of model.safetensors",
        flip(f"{STEP}/model.safetensors"),
    ),
]
STORES = [
    *all_of("store.json", SHOW, json_damages("store/store.json"), **STORE),
    *all_of("store.json to train", NEW, some(json_damages("store/store.json"), "a list, without keys, cut"), **STORE),
    *[
        Case(f"store.json {name}", SHOW, change=edit("store/store.json", **change), **EITHER, **STORE)
        for name, change in other_types(
            {"format": 1, "fingerprint": "", "shards": 3, "samples": 5, "draws": 2, "energies": []}
        ).items()
    ],
    Case("store of 10^12 shards", SHOW, "cannot hold", edit("store/store.json", shards=10**12), **STORE),
    *all_of("shard", VERIFY, json_damages("store/shard-00000.json"), **EITHER, **STORE),
    *all_of("shard's tensors", VERIFY, binary_damages("store/shard-00000.safetensors"), **STORE),
    *all_of(
        "shard's tensors to train", NEW, some(binary_damages("store/shard-00000.safetensors"), "cut, a pipe"), **STORE
    ),
    *[
        Case(
            f"bit {where} of a shard", VERIFY, "checksum differs", flip("store/shard-00000.safetensors", where), **STORE
        )
        for where in (0.0, 0.01, 0.3, 0.99)
    ],
    Case("samples of a number", NEW, "shard-00000", edit("store/shard-00000.json", samples=[1]), **STORE),
    Case("shard without samples", NEW, "shard-00000", drop("store/shard-00000.json", "samples"), **STORE),
    Case(
        "shard too short",
        NEW,
        "z0 has shape",
        tensors("store/shard-00000.safetensors", lambda state: state | {"z0": state["z0"][:1]}),
        **STORE,
    ),
    Case(
        "shard without a tensor",
        NEW,
        "z0",
        tensors("store/shard-00000.safetensors", lambda state: {k: v for k, v in state.items() if k != "z0"}),
        **STORE,
    ),
    Case(
        "shard of whole numbers",
        NEW,
        "",
        tensors("store/shard-00000.safetensors", lambda state: {k: v.int() for k, v in state.items()}),
        **STORE,
    ),
    *all_of("run.json of a store", VERIFY, json_damages("store/run.json"), **EITHER, **STORE),
    *all_of("report of a store", SHOW, json_damages("store/report.json"), **EITHER, **STORE),
    Case("store unreadable", SHOW, "permission", mode("store", 0), user=NOBODY, **STORE),
    Case(
        "store that cannot be written",
        PREPROCESS,
        "",
        both(remove("store/shard-00000.json"), mode("store", 0o555)),
        user=NOBODY,
        **STORE,
    ),
]
ARCH = {"needs": "config.json"}
PUBLISHED = [
    *all_of(
        "architecture",
        CONVERT,
        {name: both(text("x.pt", b"x"), change) for name, change in json_damages("config.json").items()},
        **ARCH,
    ),
    *all_of(
        "checkpoint",
        CONVERT,
        some(
            binary_damages("x.pt"),
            "text, a folder, a pipe, a device, a broken link, long header, header of another form",
        ),
        **ARCH,
    ),
    Case("empty checkpoint", CONVERT, "x.pt", text("x.pt", ""), **ARCH),
    Case("pickle with code", CONVERT, "holds code", text("x.pt", pickle.dumps(Hostile())), **ARCH),
    Case("zip bomb", CONVERT, "is compressed", text("x.pt", bomb()), **ARCH),
    Case("empty zip", CONVERT, "x.pt", text("x.pt", b"PK\x05\x06" + bytes(18)), **ARCH),
    *[
        Case(
            f"half a checkpoint {fraction}",
            ("convert", "videocrafter2", "model.ckpt", "out", "--arch", "config.json"),
            "",
            lambda folder, fraction=fraction: os.truncate(folder / "model.ckpt", int(6_551_131 * fraction)),
            needs="config.json model.ckpt",
        )
        for fraction in (0.0001, 0.1, 0.5, 0.9, 0.9999)
    ],
    *[
        Case(f"checkpoint {name}", CONVERT, "", lambda folder, value=value: torch.save(value, folder / "x.pt"), **ARCH)
        for name, value in {
            "a list": [torch.zeros(2)],
            "of texts": {"state_dict": {"a": "text"}},
            "of nothing": {},
            "of other keys": {"state_dict": {"a" * 300: torch.zeros(2)}},
            "of keys with escapes": {"state_dict": {"\x1b[31mred\x07": torch.zeros(2)}},
            "of numbers as keys": {"state_dict": {1: torch.zeros(2)}},
            "of complex numbers": {"model.diffusion_model.out.0.weight": torch.zeros(2, dtype=torch.complex64)},
            "a tensor": torch.zeros(3),
        }.items()
    ],
]
TOML = {"needs": "toy.toml"}
PLAN = ("train", "--config", "c.toml", "--out", "new")
CONFIGS = [
    Case(f"TOML {name}", PLAN, words, text("c.toml", content), needs="")
    for name, words, content in (
        ("nested", "nested too deeply", "a = " + DEEP),
        ("seed 10^30", "seed", f"seed = {10**30}"),
        ("seed a text", "seed", 'seed = "x"'),
        ("seed nan", "seed", "seed = nan"),
        ("seed of 5,000 digits", "c.toml", "seed = " + "9" * 5000),
        ("unknown key", "sede", "sede = 1"),
        ("unknown section", "trian", "[trian]\nsteps = 1"),
        ("unknown option", "stepz", "[train]\nstepz = 1"),
        ("section a number", "train", "train = 1"),
        ("section a list", "train", "train = [1]"),
        ("option a section", "steps", "[train.steps]\na = 1"),
        ("group a number", "optimizer", "[train]\noptimizer = 1"),
        ("key twice", "c.toml", "seed = 1\nseed = 2"),
        ("binary", "c.toml", bytes(range(256))),
        ("no UTF-8", "c.toml", b'name = "\xff"'),
        ("UTF-16", "c.toml", "seed = 1".encode("utf-16")),
        ("null byte", "c.toml", b"seed = 1\x00"),
        ("name with a slash", "name", 'name = "../x"'),
        ("name with escapes", "name", 'name = "\\u001b[31m"'),
        ("energies a number", "energies", "energies = 1"),
        ("energies a date", "energies", "energies = 2026-01-01"),
        ("unknown energy", "nothing", 'energies = ["nothing"]'),
        ("option of an energy not selected", "pta", "[energies.pta]\nscale = 1.0\nx = 2"),
        ("data a table of numbers", "data", "[data]\nfolder = 1"),
        ("profile", "", 'profile = "nothing"'),
        ("device", "device", 'device = "tpu"'),
        ("date for a number", "steps", "[train]\nsteps = 2026-01-01"),
        ("true for a number", "steps", "[train]\nsteps = true"),
        ("no closing bracket", "c.toml", "[train"),
    )
]
CONFIGS += [
    *all_of(
        "configuration",
        PLAN,
        some(json_damages("c.toml"), "binary, a pipe, a device, a link to itself, a broken link, 2 GB, a folder"),
        needs="",
    ),
    *all_of(
        "JSON configuration",
        ("train", "--config", "c.json", "--out", "new"),
        some(json_damages("c.json"), "empty, a list, a number, nested, nested objects, binary, NaN, long digits"),
        needs="",
    ),
    Case("no configuration", PLAN, "c.toml", needs=""),
    Case(
        "configuration nobody may read",
        PLAN,
        "permission",
        both(text("c.toml", "seed = 1"), mode("c.toml", 0)),
        user=NOBODY,
        needs="",
    ),
]


@pytest.mark.parametrize("case", [*RUNS, *CHECKPOINTS, *STORES, *PUBLISHED, *CONFIGS], ids=ids)
def test_damaged_files_are_refused_or_not_needed(case, toys, folder):
    """A damaged file is refused in one line, or the command serves what it does not need; nothing is lost."""
    if case.user is not None and os.getuid():
        pytest.skip("only root can become another user")
    judge(case, toys, folder)


def test_a_report_shows_no_other_file_and_runs_no_script(toys, folder):
    """Texts of an evaluation are escaped, and a video outside of the run's folder is not embedded."""
    toys.copy(folder, "run")
    (folder / "secret").write_text("SECRET-WORDS" * 10)
    path = folder / "run" / "evaluation.json"
    evaluation = json.loads(path.read_text().replace("student", "<script>alert(1)</script>"))
    for video in evaluation["videos"]:
        for pane in video["panes"]:
            pane["file"] = "../secret"
    path.write_text(json.dumps(evaluation))
    forked.ended(forked.start(REPORT, folder, modules=toys.modules), folder)
    page = (folder / "run" / "report.html").read_text()

    assert "<script>alert" not in page
    assert "U0VDUkVULVdPUkRT" not in page  # the secret in base64


def test_the_evaluation_of_a_checkpoint_leaves_that_of_the_run(toys, folder):
    """A checkpoint's evaluation goes into a folder of its own."""
    toys.copy(folder, "run")
    before = (folder / "run" / "evaluation.json").read_bytes()
    done = forked.ended(forked.start(("evaluate", STEP), folder, modules=toys.modules), folder)

    assert done.status == 0, done.err
    assert (folder / "run" / "evaluation.json").read_bytes() == before
    assert (folder / "run" / "evaluations" / "step-000002" / "evaluation.json").is_file()
