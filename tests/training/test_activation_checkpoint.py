"""Activations that the backward pass computes again."""

from __future__ import annotations

import pytest
from short_training import trained
from toy_plugin import make

from guidedcd.config.sections import ActivationCheckpointConfig
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training.trainer import Trainer


@pytest.mark.slow
def test_temporal_layers_alone_can_be_recomputed(toy, tmp_path):
    """With `layers` "temporal" and "most", the backward pass runs temporal layers again, and no number changes."""
    from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer

    calls: dict[str, list[type]] = {}
    lines = {}
    for layers in ("none", "temporal", "most", "all"):
        run = make(train={"steps": 1, "activation_checkpoint": {"layers": layers, "decoder": False}})
        store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
        trainer = Trainer(run, tmp_path / layers, store, run.teacher.build())
        heard = calls.setdefault(layers, [])
        for module in trainer.step.student.network.modules():
            if (kind := type(module)) in (ResnetBlock2D, TemporalConvLayer):
                first = next(m for m in module.modules() if not list(m.children()))
                first.register_forward_hook(lambda m, a, o, kind=kind, heard=heard: heard.append(kind))
        lines[layers] = {k: v for k, v in trainer.step(1).items() if not k.startswith("seconds")}
    count = {name: (heard.count(ResnetBlock2D), heard.count(TemporalConvLayer)) for name, heard in calls.items()}

    spatial, temporal = count["none"]
    assert count["temporal"] == (spatial, temporal * 3 // 2)  # two forward passes, one of them with gradient
    assert count["most"] == count["temporal"]
    assert count["all"] == (spatial * 3 // 2, temporal * 3 // 2)
    assert lines["temporal"] == pytest.approx(lines["none"], rel=1e-4)
    assert lines["most"] == pytest.approx(lines["none"], rel=1e-4)


@pytest.mark.parametrize(
    ("layers", "decoder", "recomputed"),
    [
        ("none", None, False),
        ("all", None, True),
        ("most", None, False),
        ("most", True, True),
        ("all", False, False),
    ],
)
def test_the_decoder_is_recomputed_where_everything_is(layers, decoder, recomputed):
    """By default decoded frames are recomputed with `layers = "all"` alone; `decoder` decides otherwise."""
    config = ActivationCheckpointConfig(layers=layers, decoder=decoder)

    assert config.recomputes_decoder == recomputed


@pytest.mark.slow
def test_frames_are_decoded_one_by_one_where_memory_is_short(toy, tmp_path, monkeypatch):
    """`activation_checkpoint.decoder` decodes single frames, twice each, and changes no number beyond rounding."""
    from guidedcd.models.teachers.latent import LatentTeacher

    seen, decode = [], LatentTeacher.decode

    def counted(self, z, frames=None):
        seen.append((len(z), len(frames)))
        return decode(self, z, frames)

    preprocess(make(), store_folder=tmp_path / "s")
    monkeypatch.setattr(LatentTeacher, "decode", counted)
    lines = [
        trained(make(train={"steps": 1, "activation_checkpoint": {"decoder": on}}), tmp_path / str(on), tmp_path / "s")
        for on in (False, True)
    ]

    assert seen == [(2, 2)] + [(1, 1)] * 8
    assert lines[1][0]["grad_norm"] == pytest.approx(lines[0][0]["grad_norm"], rel=1e-4)
