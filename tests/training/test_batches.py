"""The samples of a step and their routes."""

from __future__ import annotations

import attrs
from toy_plugin import make

from guidedcd.data.routing import Sample
from guidedcd.plugins.configs import EnergyConfig
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


def test_a_route_switches_one_of_two_energies(toy, tmp_path):
    """The strength of the excluded energy is 0 for the sample, that of the other is unchanged."""
    store = LatentStore(preprocess(make(preprocess={"fraction": 1.0}), store_folder=tmp_path / "s"))
    energies = {name: EnergyConfig(relative=0.3, fraction=1.0) for name in ("toy", "other")}
    rules = [lambda sample, route: attrs.evolve(route, without_energies=sample.energies - {"toy"})]
    options = {"readers": {}, "energies": energies, "size": 2, "omega": (1.0, 4.0), "seed": 0}
    strengths = {len(some): Batches(store, rules=some, **options)(0).strengths for some in (rules, [])}

    assert (strengths[0][:, 0] > 0).any()
    assert (strengths[1][:, 0] == strengths[0][:, 0]).all() and (strengths[1][:, 1] == 0).all()
