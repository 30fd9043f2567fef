"""The folder that a run continues in or starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from toy_plugin import make

from guidedcd import workflow
from guidedcd.config.resolve import run_from_dict
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json
from guidedcd.training import run_folder, trainer
from guidedcd.workflow import distil


@pytest.fixture
def unmeasured(monkeypatch):
    """Training without evaluation and report, which tests of their own have."""

    def report(folder: Path) -> Path:
        (folder / "report.html").write_text("done")
        return folder / "report.html"

    monkeypatch.setattr("guidedcd.workflow._is_evaluated", lambda folder: (folder / "evaluation.json").is_file())
    monkeypatch.setattr(
        "guidedcd.evaluation.evaluate.evaluate", lambda folder: (folder / "evaluation.json").write_text("{}")
    )
    monkeypatch.setattr("guidedcd.evaluation.report.page.write_report", report)


def test_an_unfinished_run_of_an_older_version_is_continued(toy, tmp_path, monkeypatch):
    """Older versions wrote the key `energy`; the configuration is the same."""
    monkeypatch.chdir(tmp_path)
    run = make()
    older = {"energy" if key == "energies" else key: value for key, value in run.to_dict().items()}
    Path("runs/older").mkdir(parents=True)
    Path("runs/older/run.json").write_text(json.dumps(older))

    assert run_folder.run_folder(run, None, new=False) == Path("runs/older")
    assert run_folder.run_folder(make(seed=1), None, new=False) != Path("runs/older")


def test_a_run_from_before_an_option_existed_is_continued(toy, tmp_path, monkeypatch):
    """An option that run.json lacks has its default; another value than the default is another run."""
    monkeypatch.chdir(tmp_path)
    older = make().to_dict()
    del older["preprocess"]["keep_inversions"]
    write_json(Path("runs/older/run.json"), older)

    run = make()
    assert run_folder.run_folder(run, None, new=False) == Path("runs/older")
    assert run_folder.run_folder(run, Path("runs/older"), new=False) == Path("runs/older")
    other = attrs.evolve(run, preprocess=attrs.evolve(run.preprocess, keep_inversions=False))
    assert run_folder.run_folder(other, None, new=False) != Path("runs/older")
    with pytest.raises(GuidedCDError, match=r"another configuration \(preprocess.keep_inversions: True there"):
        run_folder.run_folder(other, Path("runs/older"), new=False)


def test_a_run_with_an_edited_plugin_file_is_continued(toy, tmp_path, monkeypatch):
    """The hash of a file of --plugin does not tell runs apart; the changed component is stated, as any other."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "edited_plugin.py"
    file.write_text("")
    monkeypatch.setenv("GUIDEDCD_PLUGINS", str(file))
    recorded = make().to_dict()
    write_json(Path("runs/begun/run.json"), recorded)
    file.write_text("# edited")

    assert make().to_dict()["plugin_files"] != recorded["plugin_files"]
    assert run_folder.run_folder(make(), None, new=False) == Path("runs/begun")


@pytest.mark.slow
def test_rewards_are_built_once(toy, unmeasured, tmp_path, monkeypatch):
    """Training takes the rewards that were rehearsed before the store was computed."""
    built = []
    build = workflow.build_rewards
    for module in (workflow, trainer):
        monkeypatch.setattr(module, "build_rewards", lambda run: built.append(1) or build(run))

    distil(make())
    assert built == [1]


@pytest.mark.slow
def test_a_run_keeps_the_command_that_made_it(toy, unmeasured, tmp_path):
    """run.json has the command line of the first call; another command line continues the same run."""
    run = make()
    folder = distil(run, command="guidedcd train --name 'a b'")
    (folder / "report.html").unlink()

    assert read_json(folder / "run.json")["command"] == "guidedcd train --name 'a b'"
    assert distil(run, command="guidedcd train") == folder
    assert read_json(folder / "run.json") == {"command": "guidedcd train --name 'a b'", **run.to_dict()}
    assert "command" not in read_json(distil(run, new=True) / "run.json")


def test_a_student_without_weights_is_an_error_before_any_work(toy, tmp_path):
    """A folder `student` whose weights are missing is named, and how to continue."""
    run = make()
    (tmp_path / "run" / "student").mkdir(parents=True)
    write_json(tmp_path / "run" / "run.json", run.to_dict())
    write_json(tmp_path / "run" / "student" / "student.json", {})

    with pytest.raises(GuidedCDError, match="has no model.safetensors. Restore the file, or delete the folder"):
        distil(run, out=tmp_path / "run")


def test_runs_that_start_together_do_not_share_a_folder(toy, tmp_path, monkeypatch):
    """A run whose new name another run takes first chooses another name, also where that run is finished."""
    one, other = make(), make(seed=1)
    real = run_folder.run_folder

    def late(run, out, *, new, seen=[]):  # noqa: B006 - remembers its calls
        seen.append(run)
        return first if len(seen) == 1 else real(run, out, new=new)

    with run_folder.claimed(one, None, new=False, command="a") as first:
        monkeypatch.setattr(run_folder, "run_folder", late)
        with run_folder.claimed(other, None, new=False) as second:
            assert (first.name, second.name) == (first.name, f"{first.name}-2")
        monkeypatch.setattr(run_folder, "run_folder", real)
        with (
            pytest.raises(GuidedCDError, match="being written by another process"),
            run_folder.claimed(one, None, new=False),
        ):
            pass
        with run_folder.claimed(one, None, new=True) as third:
            assert third.name == f"{first.name}-3"
    for name in run_folder.RESULTS:
        (first / name).parent.mkdir(exist_ok=True)
        (first / name).touch()
    monkeypatch.setattr(run_folder, "run_folder", lambda *args, seen=[], **how: late(*args, seen=seen, **how))
    with run_folder.claimed(make(seed=2), None, new=False) as fourth:
        assert fourth.name == f"{first.name}-4"
    assert [read_json(folder / "run.json")["seed"] for folder in (first, second, fourth)] == [0, 1, 2]


@pytest.mark.slow
def test_a_report_does_not_finish_a_run(toy, unmeasured, tmp_path):
    """A run whose report was written before its time is continued; one with all its results is not."""
    run = make()
    with run_folder.claimed(run, None, new=False) as folder:
        (folder / "report.html").touch()

    assert distil(run) == folder
    assert distil(run) != folder


def test_a_damaged_run_does_not_stop_others(toy, tmp_path):
    """A run.json that cannot be read stops no other run, and does not count as one to continue."""
    for number, text in enumerate(("{", "[1]")):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "run.json").write_text(text)

    with run_folder.claimed(make(), None, new=False) as folder:
        assert folder.name.endswith("-shapes")


def test_a_folder_that_cannot_be_written_is_refused_first(toy, tmp_path):
    """--out below a file is refused before anything is computed, in one sentence."""
    (tmp_path / "file").touch()

    with pytest.raises(GuidedCDError, match="a file is in the way"):
        distil(make(), out=tmp_path / "file" / "run")
    assert not (tmp_path / "runs").exists()


def test_a_missing_file_of_a_reward_stops_the_run_first(toy, tmp_path, monkeypatch):
    """A reward whose file is missing stops the run before its latents are computed, and nothing is written."""

    def missing(self, config):
        raise GuidedCDError("hps: there is no file")

    monkeypatch.setattr("toy_plugin.Reward.__init__", missing)
    with pytest.raises(GuidedCDError, match="there is no file"):
        distil(make())
    assert not (tmp_path / "runs").exists()


def test_run_json_reads_back(toy, tmp_path):
    """run.json of a run, read back, is the run."""
    run = make()
    write_json(tmp_path / "run.json", run.to_dict())

    assert run_from_dict(read_json(tmp_path / "run.json")) == run


@pytest.mark.parametrize("name", ["run.json", run_folder.SOURCES])
def test_a_run_that_is_killed_at_its_start_can_be_continued(toy, tmp_path, monkeypatch, name):
    """run.json is the first file of a run, so that its folder is never one with other files only."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_folder, "write_json", _killed_at(name))
        with run_folder.claimed(make(), tmp_path / "r", new=False):
            pass
    with run_folder.claimed(make(), tmp_path / "r", new=False) as folder:
        assert (folder / run_folder.SOURCES).exists()


def _killed_at(name: str) -> Callable[..., None]:
    """A `write_json` that is interrupted before it writes the file `name`, which leaves the others."""

    def write(path: Path, content: object) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write_json(path, content)

    return write


def test_changed_components_are_stated_before_a_run_continues(toy, tmp_path, monkeypatch, capsys):
    """A component with another source or version than at the last start is named once; the run continues."""
    run, origin, folder = make(), run_folder.origin, tmp_path / "r"

    def claim() -> str:
        with run_folder.claimed(run, folder, new=False):
            return " ".join(capsys.readouterr().out.split())

    def edited(component):
        change = {"energy": {"source": "edited"}, "reward": {"version": "2"}}.get(component.kind, {})
        return origin(component) | change

    assert "since" not in claim()
    recorded = read_json(folder / run_folder.SOURCES)
    monkeypatch.setattr(run_folder, "origin", edited)
    (folder / "student").mkdir()
    (folder / "student" / "student.json").touch()
    assert "since" not in claim() and read_json(folder / run_folder.SOURCES) == recorded  # training is finished
    (folder / "student" / "student.json").unlink()
    text = claim()
    assert "since its last step, energy 'toy' (" in text and "has another source than before and reward 'toy'" in text
    assert "has version 2 instead of" in text and "continues with the present code" in text
    assert "since" not in claim()
