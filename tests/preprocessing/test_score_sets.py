"""Scores by energy and by its code: what is computed again, what is kept, and stores of the first format."""

from __future__ import annotations

import importlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from stores import shard_files
from toy_plugin import make as toy_run

from guidedcd import workflow
from guidedcd.documents import read_json
from guidedcd.energies import inversion
from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, write_json
from guidedcd.plugins import sources
from guidedcd.plugins.registry import Component
from guidedcd.preprocessing import score_sets, store_writer
from guidedcd.preprocessing import shard_files as writing
from guidedcd.preprocessing.identity import identify, is_same
from guidedcd.preprocessing.preprocess import find_store, preprocess
from guidedcd.preprocessing.store import LatentStore, open_store
from guidedcd.preprocessing.verify import verify_store

SMALL = {"videos": 2, "draws_per_video": 2, "shard_size": 1}


def make(*, energy: dict | None = None, **preprocessing):
    """A run of two videos whose energies are `energy`."""
    return toy_run(
        replace=("energy",),
        energy={"toy": {}} if energy is None else energy,
        solver={"steps": 4},
        preprocess=SMALL | preprocessing,
    )


@pytest.fixture
def store(toy, tmp_path):
    """A store with the scores of `toy`."""
    return preprocess(make(), store_folder=tmp_path / "s")


def forbidden(*args, **kwargs):
    """What must not be computed again."""
    raise AssertionError("computed again")


@pytest.mark.slow
def test_a_second_energy_computes_its_own_scores_only(store, monkeypatch, tmp_path):
    """Clips, predictions, inversions and other scores stay; the new scores equal those of a fresh store."""
    before, both = shard_files(store), make(energy={"toy": {}, "pta": {}})
    with monkeypatch.context() as patched:
        patched.setattr(store_writer, "Mixture", forbidden)
        patched.setattr(inversion, "inversion_passes", forbidden)
        preprocess(both, store_folder=store)
    fresh = open_store(both, preprocess(both, store_folder=tmp_path / "fresh"))

    after = shard_files(store)
    assert before == {name: after[name] for name in before} and len(after) == len(before) + 4
    for draw, expected in zip(open_store(both, store), fresh, strict=True):
        assert draw.scores.keys() == expected.scores.keys()
        torch.testing.assert_close(draw.scores, expected.scores, rtol=1e-4, atol=1e-8)
    assert preprocess(make(energy={}), store_folder=store) == store


@pytest.mark.slow
def test_interrupted_scores_are_continued(toy, tmp_path, monkeypatch):
    """Scores that stopped after a shard continue there; inversions that the store does not keep are computed again."""
    run = make(keep_inversions=False)
    whole, folder = preprocess(run, store_folder=tmp_path / "whole"), tmp_path / "s"
    save, calls = writing.save_parts, []

    def stop(*args):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(save(*args))

    preprocess(make(energy={}), store_folder=folder)
    monkeypatch.setattr(writing, "save_parts", stop)
    with pytest.raises(KeyboardInterrupt):
        preprocess(run, store_folder=folder)
    with pytest.raises(GuidedCDError, match="1 of its 2 shards are missing"):
        open_store(run, folder)
    monkeypatch.setattr(writing, "save_parts", save)
    preprocess(run, store_folder=folder)

    for draw, expected in zip(open_store(run, folder), open_store(run, whole), strict=True):
        torch.testing.assert_close(draw.scores, expected.scores, rtol=1e-4, atol=1e-8)
    assert not (folder / "inversions").exists()


def test_an_edited_energy_is_scored_again(store, monkeypatch, capsys):
    """Another source of an energy is stated in one sentence and has scores of its own; the old ones stay."""
    run, origin = make(), sources.origin
    old = open_store(run, store).scores["toy"]
    monkeypatch.setattr(
        "guidedcd.preprocessing.identity.origin", lambda component: origin(component) | {"source": "edited"}
    )
    monkeypatch.setattr(store_writer, "Mixture", forbidden)
    capsys.readouterr()
    preprocess(run, store_folder=store)
    printed = capsys.readouterr().out
    preprocess(run, store_folder=store)

    assert "energy 'toy' (" in printed.replace(
        "\n", " "
    ) and "has another source than before: its scores are computed again" in printed.replace("\n", " ")
    assert "another source" not in capsys.readouterr().out
    assert {old, open_store(run, store).scores["toy"]} == set(score_sets.listed(store)) and len({old}) == 1
    assert LatentStore(store).scores["toy"] != old


def forget_digests():
    """Forget the cached digests of sources, as in a new process."""
    sources._files.cache_clear()
    sources._digest.cache_clear()


def test_sources_are_read_before_they_are_imported(toy, monkeypatch):
    """The check of a run's components takes the digest of every source before the first of them is loaded."""
    seen, load = [], Component.load
    monkeypatch.setattr(workflow, "origin", lambda component: seen.append(component.kind))
    monkeypatch.setattr(Component, "load", lambda component: (seen.append("load"), load(component))[1])
    workflow._check_components(toy_run(), torch.device("cpu"))

    assert {"energy", "reward", "teacher", "dataset"} <= set(seen[: seen.index("load")])


def test_the_digest_follows_every_module_of_the_package(tmp_path, monkeypatch):
    """An edit anywhere in the target's package changes the digest, nothing is imported, and no source has none."""
    package = tmp_path / "acme_motion"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "energy.py").write_text("power = 2")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

    first = sources.source_digest("acme_motion.energy:Energy")
    (package / "energy.py").write_text("power = 1")
    (package / "new.py").touch()
    assert sources.source_digest("acme_motion.energy:Energy") == first != ""
    forget_digests()
    edited = sources.source_digest("acme_motion.energy:Energy")
    assert edited not in (first, "")
    (package / ".#energy.py").symlink_to("user@host.1234:5678")  # the lock of an editor
    (package / "gone.py").symlink_to(package / "nothing.py")
    forget_digests()
    assert sources.source_digest("acme_motion.energy:Energy") == edited
    assert sources.source_digest("itertools:count") == sources.source_digest("no_such_module:x") == ""


def as_format_1(store):
    """Rewrite a store as the first format has it: scores in the shards, no source, no moments, no inversions."""
    identity = read_json(store / "store.json")
    (part,) = score_sets.listed(store)
    scores = score_sets.read(part)["scores"]
    write_json(
        store / "store.json",
        {**identity, "format": 1, "energies": {"toy": scores["options"]}, "window": scores["fraction"]},
    )
    for path in sorted(store.glob("shard-*.safetensors")):
        tensors = {key: value for key, value in load_file(path).items() if key != "moments"}
        inline = {f"{key}.toy": value for key, value in load_file(part / path.name).items()}
        save_file(tensors | inline, path)
        manifest = path.with_suffix(".json")
        write_json(manifest, {**read_json(manifest), "sha256": file_digest(path)})
    for folder in (part, store / "inversions"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_a_store_of_the_first_format_opens(store, monkeypatch, capsys):
    """Its scores are used, with one sentence that their source is unknown; another energy is added beside them."""
    run, both = make(), make(energy={"toy": {}, "pta": {}})
    expected = [draw.scores for draw in open_store(run, store)]
    as_format_1(store)
    capsys.readouterr()
    preprocess(run, store_folder=store)
    printed = capsys.readouterr().out
    preprocess(both, store_folder=store)

    assert "a change of its code is unknown" in printed.replace("\n", " ") and "share    toy: unknown" in printed
    for draw, scores in zip(open_store(both, store), expected, strict=True):
        torch.testing.assert_close(draw.scores["toy"], scores.get("toy"), rtol=0, atol=0) if scores else None
        assert set(draw.scores) == ({"toy", "pta"} if scores else set())
    assert len(verify_store(store, samples=1)["samples"]) == 1


def test_stores_under_any_name_are_opened(store, tmp_path, monkeypatch):
    """A store of the first format, or of data whose files are gone, is found in runs/stores under any name."""
    run = make()
    identity = identify(run, run.teacher.build())
    assert find_store(identity, run) == find_store(identity, run)
    monkeypatch.setattr("guidedcd.preprocessing.preprocess.STORES", tmp_path)
    assert find_store(identity, run) == store
    assert find_store({**identity, "seed": 1}, run) != store


def test_data_with_another_fingerprint_is_another_store():
    """Equal options with other files differ, with a sentence of its own; an unknown fingerprint equals every one."""
    from guidedcd.preprocessing.identity import foreign

    def of(**fingerprint):
        return {"data": [{"name": "folder", "path": "x", **fingerprint}], "steps": 4}

    first, second, unknown = of(fingerprint="a"), of(fingerprint="b"), of(fingerprint=None)
    assert not is_same(first, second)
    assert foreign(first, second).startswith("the files of dataset 'folder' have changed")
    assert is_same(first, first) and is_same(first, unknown) and is_same(of(), second)


def test_scores_of_other_predictions_are_refused(store):
    """A shard's scores that were copied from another store are named; a recomputed shard deletes them."""
    run = make()
    (part,) = score_sets.listed(store)
    manifest = part / "shard-00001.json"
    whole = read_json(manifest)
    write_json(manifest, {**whole, "base": "0" * 64})
    with pytest.raises(GuidedCDError, match=r"scores/toy-.*/shard-00001\.safetensors is damaged \(it belongs to other"):
        open_store(run, store)
    other = store / "scores" / "other"
    write_json(other / "shard-00001.json", {**whole, "base": "0" * 64})
    (store / "shard-00001.json").unlink()
    preprocess(run, store_folder=store)

    assert read_json(manifest) == whole and not (other / "shard-00001.json").exists()
