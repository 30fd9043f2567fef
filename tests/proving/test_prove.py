"""`guidedcd prove`: jobs, resuming, the command, and one small proof from end to end."""

import json
import os
import subprocess
import sys

import pytest
from proofs import with_change, write_result

from guidedcd.cli import build, main
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import load_plugins
from guidedcd.proving import prove as proving
from guidedcd.proving.pool import Job, Pool
from guidedcd.proving.proof import read_proof
from guidedcd.proving.prove import ProofConfig


def config_of(tmp_path, **options):
    """A call with all arms and one seed."""
    arms = ["teacher", "plain", "slow", "slow-3"]
    return ProofConfig(**{"out": tmp_path / "out", "work": tmp_path / "work", "arms": arms, "seeds": [0], **options})


@pytest.fixture
def computed(monkeypatch):
    """The jobs of a call, none of which is computed."""
    jobs = []
    monkeypatch.setattr(proving, "_compute", lambda config, some: jobs.extend(some) or {})
    return jobs


def test_one_store_and_one_training_serve_several_arms(proof_file, tmp_path, computed):
    """The store comes first; two ways of sampling a student are one job after it; the teacher needs no store."""
    proving.prove(read_proof(proof_file), config_of(tmp_path, seeds=[0, 1]), load_plugins())
    stores = [job for job in computed if job.content["kind"] == "store"]
    students = [job for job in computed if job.content["kind"] == "student"]

    assert len(stores) == 2 and len(students) == 4
    assert {job.after for job in students} == {job.id for job in stores}
    assert [arm["name"] for arm in students[1].content["arms"]] == ["slow", "slow-3"]
    assert [job.after for job in computed if job.content["kind"] == "teacher"] == [None, None]
    assert len({job.content["folder"] for job in students}) == 4
    assert all(json.dumps(job.content) for job in computed)


def test_only_what_is_missing_is_computed(proof_file, tmp_path, computed):
    """A result that is there is kept, also where it belongs to another call."""
    proof, registry = read_proof(proof_file), load_plugins()
    proving.prove(proof, config_of(tmp_path, arms=["plain"]), registry)
    settings = computed[-1].content["arms"][0]["settings"]
    write_result(tmp_path / "out", "plain", 0, [0.1], settings=settings)
    computed.clear()
    ledger = proving.prove(proof, config_of(tmp_path), registry)

    assert [job.id for job in computed if job.content["kind"] == "student"] == ["slow, seed 0"]
    assert [arm["arm"] for arm in ledger["arms"]] == ["plain"]


def test_results_of_other_settings_are_refused(proof_file, tmp_path, computed):
    """A changed option of an arm is one sentence that names its result."""
    registry = load_plugins()
    proving.prove(read_proof(proof_file), config_of(tmp_path, arms=["plain"]), registry)
    write_result(tmp_path / "out", "plain", 0, [0.1], settings=computed[-1].content["arms"][0]["settings"])
    with_change(proof_file, "batch_size = 1", "batch_size = 2")
    with pytest.raises(GuidedCDError, match="arm 'plain', seed 0 is of other settings"):
        proving.prove(read_proof(proof_file), config_of(tmp_path), registry)


def test_results_of_several_machines_are_merged(proof_file, tmp_path):
    """The ledger of a folder needs no computation, and refuses seeds of one arm with several settings."""
    proof, out = read_proof(proof_file), tmp_path / "out"
    with pytest.raises(GuidedCDError, match="has no results of this proof"):
        proving.rewrite(proof, out)
    for arm, seed in (("plain", 0), ("plain", 1), ("slow", 0), ("slow", 1)):
        write_result(out, arm, seed, [0.1 * seed], settings={"run": arm})

    assert proving.rewrite(proof, out)["claims"][0]["criteria"][0]["n"] == 2
    write_result(out, "slow", 1, [0.1], settings={"run": "edited"})
    with pytest.raises(GuidedCDError, match="arm 'slow' in .* are of several settings"):
        proving.rewrite(proof, out)


def test_an_edited_energy_has_other_results(proof_file, tmp_path, computed, monkeypatch):
    """The settings of an arm contain the source of its energies, and the run's folder is another one."""
    proof, registry = read_proof(proof_file), load_plugins()
    config = config_of(tmp_path, arms=["slow"])
    proving.prove(proof, config, registry)
    monkeypatch.setattr(proving, "origin", lambda component: {"source": "edited"})
    proving.prove(proof, config, registry)
    before, after = (job.content for job in computed if job.content["kind"] == "student")

    assert before["arms"][0]["settings"] != after["arms"][0]["settings"]
    assert before["folder"] != after["folder"]


def test_jobs_wait_for_what_they_need(monkeypatch):
    """A job begins after the one that it needs, fails with it, and none begins once the budget is used."""
    order, ended = [], {}

    def ask(process, content):
        order.append(content["name"])
        return "broken" if content["name"] == "b" else None

    monkeypatch.setattr("guidedcd.proving.pool._compute_in", ask)
    monkeypatch.setattr(Pool, "_start", lambda self: subprocess.Popen([sys.executable, "-c", ""], stdin=-1))
    jobs = [
        Job(id="a", content={"name": "a"}),
        Job(id="b", content={"name": "b"}),
        Job(id="after b", content={"name": "never"}, after="b"),
        Job(id="after a", content={"name": "c"}, after="a"),
    ]
    finished = lambda job, error: ended.setdefault(job.id, error)  # noqa: E731
    assert Pool(parallel=3, budget=60, finished=finished).compute(jobs) == []
    assert ended == {"a": None, "b": "broken", "after b": "broken", "after a": None}
    assert "never" not in order and order.index("c") > order.index("a")
    assert len(Pool(parallel=2, budget=-1, finished=finished).compute(jobs)) == 4


def test_the_list_needs_no_torch(proof_file):
    """`--list` prints arms, claims and those without a meaning, in a process that never imports torch."""
    code = "import sys; from guidedcd.cli import _run; _run(sys.argv[1:]); print('torch' in sys.modules)"
    words = ["prove", "--list", "--proof", str(proof_file)]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)

    assert "slow-3" in result.stdout and "More steps are better." in result.stdout
    assert "Z: there is no such thing" in result.stdout and result.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seeds", "1-"], "--seeds takes numbers such as 0,1,2 or 0-9 (got '1-')"),
        (["--arms", "plan"], "there is no arm 'plan'. Did you mean 'plain'?"),
        (["--parallel", "0"], "--parallel is 0; it must be at least 1"),
        (["--quick", "--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--energy", "pt"], "no energy named 'pt'"),
    ],
)
def test_mistakes_are_one_sentence(proof_file, words, sentence, capsys):
    """A wrong flag ends the command with status 2 before anything is written."""
    with pytest.raises(SystemExit) as exit_:
        main(["prove", "--proof", str(proof_file), "--out", str(proof_file.parent / "out"), *words])

    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (proof_file.parent / "out").exists()


def test_the_command_is_in_the_help():
    """`prove` is a command of the application."""
    assert "prove" in list(build(load_plugins()))


@pytest.mark.slow
def test_a_proof_is_computed_interrupted_and_continued(proof_file, tmp_path, monkeypatch):
    """Two calls give the results of one: the second computes what the budget of the first left."""
    monkeypatch.chdir(tmp_path)
    words = ["prove", "--proof", str(proof_file), "--device", "cpu", "--out", "out", "--seeds", "0"]

    def call(*more):
        command = [sys.executable, "-m", "guidedcd", *words, *more]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout

    first = call("--arms", "teacher,plain", "--parallel", "2")
    assert sorted(path.name for path in (tmp_path / "out" / "results").iterdir()) == ["plain-0.json", "teacher-0.json"]
    assert "2 results to compute" in first
    kept = (tmp_path / "out" / "results" / "plain-0.json").stat().st_mtime_ns
    assert "4 jobs not begun" not in call()
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())

    assert (tmp_path / "out" / "results" / "plain-0.json").stat().st_mtime_ns == kept
    assert [arm["arm"] for arm in ledger["arms"]] == ["teacher", "plain", "slow", "slow-3"]
    assert not ledger["failed"] and "not run" not in {claim["verdict"] for claim in ledger["claims"]}
    assert len(list((tmp_path / "out" / "videos").glob("*.png"))) == 4
    assert "results to compute, 4 results kept" in call()
