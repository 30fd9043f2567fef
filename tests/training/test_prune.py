"""Pruning of stores: what no run needs is removed, and what an unfinished or running run uses never is."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from toy_plugin import make as toy_run

from guidedcd.cli import main
from guidedcd.files import write_json
from guidedcd.locks import locked
from guidedcd.preprocessing import score_sets
from guidedcd.preprocessing.identity import identify_scores
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import open_store
from guidedcd.training import store_uses
from guidedcd.training.prune import prune, removable
from guidedcd.training.run_folder import RESULTS


def make(*, seed: int = 0, energy: dict | None = None):
    """A run of two videos."""
    options = {"videos": 2, "draws_per_video": 2, "shard_size": 1}
    energy = {"toy": {}} if energy is None else energy
    return toy_run(replace=("energy",), energy=energy, solver={"steps": 4}, preprocess=options, seed=seed)


def begin(run, name: str, *, finished: bool) -> Path:
    """A run's folder in `runs`."""
    folder = Path("runs") / name
    write_json(folder / "run.json", run.to_dict())
    for result in RESULTS if finished else ():
        (folder / result).parent.mkdir(exist_ok=True)
        (folder / result).write_text("{}")
    return folder


@pytest.fixture
def store(toy, tmp_path, tmp_path_factory) -> Path:
    """The store of `make()` in `runs/stores`, with scores of the present code and of two earlier versions."""
    computed = tmp_path_factory.getbasetemp() / "store-to-prune"  # once for all tests
    if not computed.exists():
        shutil.copytree(preprocess(make()).parent, computed)
    shutil.copytree(computed, "runs/stores", dirs_exist_ok=True)
    (folder,) = Path("runs/stores").iterdir()
    scores = identify_scores(make(), "toy")
    for version in ("0.1", "0.2"):
        earlier = scores | {"version": version}
        score_sets.begin(score_sets.folder_of(folder, earlier), earlier, score_sets.strength_of(make(), "toy"))
    return folder


def names(store: Path, **options) -> list[str]:
    """What can be removed, in words."""
    return sorted(one.what for one in removable(store, **options))


EARLIER = [f"scores of toy: version {version} of its code" for version in ("0.1", "0.2")]


def test_earlier_scores_are_removed_and_present_ones_stay(store, capsys):
    """After pruning, a run opens the store as before, with nothing to compute; a second pruning removes nothing."""
    assert names(store) == EARLIER
    assert prune(confirm=lambda: False, folders=[store]) == []
    assert names(store) == EARLIER

    removed = prune(confirm=lambda: True)

    assert sorted(one.what for one in removed) == EARLIER and not any(one.path.exists() for one in removed)
    assert len(open_store(make(), store)) == 4
    assert prune(confirm=lambda: pytest.fail("asked for nothing")) == []
    assert "version 0.1 of its code" in capsys.readouterr().out


def test_inversions_are_removed_once_all_runs_are_finished(store):
    """They stay while a run is unfinished, and while no run is known that was trained on the store."""
    assert not any(text.startswith("inversions") for text in names(store))
    begin(make(), "one", finished=True)
    assert "inversions: all 1 runs of this store are finished" in names(store)
    begin(make(energy={}), "two", finished=False)
    assert not any(text.startswith("inversions") for text in names(store))


def test_what_an_unfinished_run_was_trained_with_stays(store, tmp_path):
    """The scores that a run recorded at its last start stay, wherever its folder is."""
    elsewhere = tmp_path / "elsewhere"
    write_json(elsewhere / "run.json", make().to_dict())
    code = {key: identify_scores(make(), "toy")[key] for key in score_sets.CODE}
    write_json(elsewhere / "sources.json", {"energy 'toy'": code | {"version": "0.1"}})
    store_uses.note(store, elsewhere)
    assert names(store) == EARLIER[1:]

    for result in RESULTS:
        (elsewhere / result).parent.mkdir(exist_ok=True)
        (elsewhere / result).write_text("{}")
    with locked(elsewhere, "the run"):
        assert names(store) == EARLIER[1:]  # a running process may need them
    assert set(EARLIER) < set(names(store))


def test_scores_that_no_run_has_are_removed_on_request(store):
    """With `unused`, scores of the present code go too, unless a run has this energy with these options."""
    assert "scores of toy: no run has this energy with these options" in names(store, unused=True)
    begin(make(), "one", finished=True)
    assert not any("no run" in text for text in names(store, unused=True))


def test_scores_of_an_energy_that_is_not_installed(store):
    """They are removed, unless an unfinished run has the energy."""
    scores = identify_scores(make(), "toy") | {"energy": "gone"}
    score_sets.begin(score_sets.folder_of(store, scores), scores, score_sets.strength_of(make(), "toy"))
    assert "scores of gone: the energy is not installed" in names(store)

    described = make().to_dict()
    described["energies"] = {"gone": described["energies"]["toy"]}
    write_json(Path("runs/two/run.json"), described)
    assert "scores of gone: the energy is not installed" not in names(store)


def test_an_unfinished_store_is_removed_after_a_day(store, capsys):
    """It stays while it is new, while an unfinished run needs it, and while a process writes it."""
    (store / "shard-00001.json").unlink()
    prune(confirm=lambda: pytest.fail("asked"))
    assert "it is unfinished, but was written in the last 24 hours" in capsys.readouterr().out

    for path in store.iterdir():
        os.utime(path, (0, time.time() - 100_000))
    folder = begin(make(), "one", finished=False)
    assert names(store) == []
    (folder / "run.json").unlink()
    with locked(store, "part 0/2", ".part-0-of-2"):
        assert names(store) == []
    assert names(store) == ["unfinished store, 1 of 2 shards missing, no unfinished run"]
    assert len(prune(confirm=lambda: True)) == 1 and not store.exists()


def test_the_command_asks_before_it_removes(store, capsys):
    """Without a terminal nothing is removed and the error names --yes."""
    with pytest.raises(SystemExit) as exit_:
        main(["store", "prune"])
    assert exit_.value.code == 2 and "give --yes" in capsys.readouterr().err and names(store) == EARLIER

    with pytest.raises(SystemExit) as exit_:
        main(["store", "prune", str(store), "--yes"])
    assert not exit_.value.code and names(store) == []
    with pytest.raises(SystemExit) as exit_:
        main(["store", "prune", "runs", "--yes"])
    assert exit_.value.code == 2 and "runs is no latent store" in capsys.readouterr().err
