"""The samples of a step and their routes."""

from __future__ import annotations

from toy_plugin import make

from guidedcd.data.routing import Sample
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training.batches import Batches


def test_clips_of_two_datasets_may_have_one_id(toy, tmp_path):
    """A route belongs to the clip and its caption, not to the id that a dataset gives it."""
    run = make()
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    rule = {"readers": {}, "rules": [], "energies": run.energies, "size": 2, "omega": (1.0, 4.0), "seed": 0}
    batches = Batches(store, **rule)
    routes = [batches.routed(Sample(id="0", dataset=name, caption=name))[1] for name in ("one", "other", "one")]

    assert [route.caption for route in routes] == ["one", "other", "one"]
