"""From a published checkpoint to a diffusers folder."""

from __future__ import annotations

import json

import pytest
import torch
from guidedcd_unets import UNet3DConfig
from guidedcd_unets.teachers import unet3d
from safetensors.torch import load_file
from tiny_checkpoint import whole_state, write

from guidedcd.cli import main
from guidedcd.errors import GuidedCDError
from guidedcd.inference.export import convert
from guidedcd.inference.export.self_test import CleanProcess, assert_close, run_clean
from guidedcd.models.checkpoints.architecture import Architecture
from guidedcd.models.checkpoints.videocrafter2 import load
from guidedcd.models.teachers.videocrafter2 import load_videocrafter2
from guidedcd.testing.tiny_networks import LVDM_CONFIG


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """model.ckpt and config.json."""
    return write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    """The folder that the command wrote, its self-test passed."""
    out = tmp_path_factory.mktemp("converted") / "out"
    with pytest.raises(SystemExit) as status:
        main(["convert", "videocrafter2", str(checkpoint[0]), str(out), "--arch", str(checkpoint[1]), "--fps", "16"])
    assert not status.value.code
    return out


def test_the_folder_is_complete(converted):
    """Every part of a text-to-video pipeline, a card with the base's licence, nothing half-written beside it."""
    index = json.loads((converted / "model_index.json").read_text())
    card = (converted / "README.md").read_text()

    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert part in index
        assert any((converted / part).iterdir())
    assert "VideoCrafter2" in card
    assert "license_link: https://github.com/AILab-CVC/VideoCrafter" in card
    assert [path.name for path in converted.parent.iterdir()] == ["out"]


def test_the_folder_is_the_same_teacher(converted, checkpoint):
    """Read as any diffusers folder it gives the checkpoint's outputs, text included."""
    size = {"frames": 2, "height": 8, "width": 8}
    published = load_videocrafter2(checkpoint[0], arch=checkpoint[1], fps=16, **size)
    converted_teacher = unet3d(UNet3DConfig(path=str(converted), **size))
    z, t = torch.randn(2, 4, 2, 8, 8), torch.tensor([20, 700])
    cond, again = (teacher.embed(["A “red” cat!", ""]) for teacher in (published, converted_teacher))

    torch.testing.assert_close(again["prompt_embeds"], cond["prompt_embeds"], atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(converted_teacher.net(z, t, again), published.net(z, t, cond), atol=1e-5, rtol=0)
        torch.testing.assert_close(converted_teacher.decode(z), published.decode(z), atol=1e-5, rtol=0)
    assert torch.equal(converted_teacher.schedule.alphas_cumprod, published.schedule.alphas_cumprod)


class Silent:
    """In place of a fresh process: runs nothing, and returns the results of its constructor."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin(self, *_):
        pass

    def results(self):
        return self.tensors


def test_text_encoders_have_the_names_that_every_transformers_reads(converted):
    """Keys begin with text_model., which transformers 4 needs and 5 accepts."""
    assert all(key.startswith("text_model.") for key in load_file(converted / "text_encoder" / "model.safetensors"))


def test_a_folder_that_exists_is_never_overwritten(converted, checkpoint):
    """The message names it; its files stay."""
    with pytest.raises(GuidedCDError, match="exists already"):
        convert.convert_videocrafter2(checkpoint[0], converted, arch=checkpoint[1])


def test_a_foreign_vocabulary_is_converted_without_a_tokenizer(tmp_path, capsys, monkeypatch):
    """A text tower whose tokens are not open_clip's keeps its weights; the note lists what is missing."""
    monkeypatch.setattr(convert, "CleanProcess", lambda: Silent({}))
    monkeypatch.setattr(convert, "assert_close", lambda *_: 0.0)
    config = json.loads(json.dumps(LVDM_CONFIG))
    config["open_clip_arch"]["text_cfg"]["vocab_size"] = 300
    torch.save({key: value.contiguous() for key, value in whole_state(config).items()}, tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = convert.convert_videocrafter2(tmp_path / "model.ckpt", tmp_path / "out", arch=tmp_path / "config.json")

    assert "no tokenizer" in capsys.readouterr().out
    assert json.loads((out / "model_index.json").read_text())["tokenizer"] == [None, None]
    assert not (out / "tokenizer").exists()


def test_a_failed_self_test_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    """A folder that does not repeat the numbers does not appear."""
    monkeypatch.setattr(convert, "CleanProcess", lambda: Silent({"unet": torch.zeros(1)}))

    with pytest.raises(GuidedCDError, match="self-test failed"):
        convert.convert_videocrafter2(checkpoint[0], tmp_path / "out", arch=checkpoint[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["videocrafter", "FILE", "OUT"], "Did you mean 'videocrafter2'"),
        (["videocrafter2", "NOWHERE", "OUT"], "hf download VideoCrafter/VideoCrafter2"),
        (["videocrafter2", "FILE", "OUT"], "--arch"),
        (["videocrafter2", "FILE", "OUT", "--fps", "7.5"], "it must be a whole number from 1 to 1000"),
        (["videocrafter2", "FILE", "OUT", "--fps", "0"], "it must be a whole number from 1 to 1000"),
        (["videocrafter2", "FILE", "OUT", "--dtype", "int8"], "dtype must be"),
        (["videocrafter2", "FILE", "OUT", "--arch", "NOWHERE"], "architecture file"),
    ],
)
def test_mistakes_are_one_line_and_status_2(checkpoint, tmp_path, capsys, words, message):
    """Bad words, files, rates."""
    places = {"FILE": str(checkpoint[0]), "OUT": str(tmp_path / "out"), "NOWHERE": str(tmp_path / "nowhere")}
    with pytest.raises(SystemExit) as status:
        main(["convert", *(places.get(word, word) for word in words)])
    message_printed = capsys.readouterr().err

    assert status.value.code == 2
    assert message in message_printed
    assert message_printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_half_precision_folders_hold_half_precision(checkpoint, tmp_path, monkeypatch):
    """--dtype reaches every weight."""
    monkeypatch.setattr(convert, "CleanProcess", lambda: Silent({}))
    monkeypatch.setattr(convert, "assert_close", lambda *_: 0.0)
    convert.convert_videocrafter2(checkpoint[0], tmp_path / "out", arch=checkpoint[1], dtype="bfloat16")

    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_fresh_process_cannot_import_this_package(tmp_path):
    """A self-test that needs guidedcd would prove nothing; its failure is one line."""
    with pytest.raises(GuidedCDError, match=r"does not load in a fresh process \(.*guidedcd"):
        run_clean("import guidedcd", tmp_path, {"x": torch.zeros(1)}, {})


@pytest.mark.slow
def test_one_fresh_process_repeats_several_things(tmp_path):
    """It is given work while it does other work; results of all of it come together, and a failure names its part."""
    with CleanProcess() as process:
        process.begin("out['a'] = inputs['x'] + 1; print('a library')", tmp_path, {"x": torch.ones(1)}, {})
        process.begin("out['b'] = inputs['x'] * options['by']", tmp_path, {"x": torch.ones(2)}, {"by": 3})
        assert {k: v.tolist() for k, v in process.results().items()} == {"a": [2.0], "b": [3.0, 3.0]}
    with CleanProcess() as process, pytest.raises(GuidedCDError, match=r"second does not load .*ZeroDivisionError"):
        process.begin("out['a'] = inputs['x']", tmp_path / "first", {"x": torch.ones(1)}, {})
        process.begin("1 / 0", tmp_path / "second", {"x": torch.ones(1)}, {})
        process.results()


def test_comparing_finds_numbers_shapes_and_ids_that_differ():
    """Within the tolerance passes, beyond it, a wrong shape or a wrong id fails."""
    expected = {"a": torch.tensor([1.0, -2.0]), "ids": torch.tensor([1, 2])}

    assert assert_close(expected, {**expected, "a": torch.tensor([1.0001, -2.0])}) == pytest.approx(5e-5, rel=0.01)
    for wrong in ({"a": torch.tensor([1.1, -2.0])}, {"a": torch.zeros(3)}, {"ids": torch.tensor([1, 3])}):
        with pytest.raises(GuidedCDError, match="self-test failed"):
            assert_close(expected, {**expected, **wrong})
    with pytest.raises(GuidedCDError, match="self-test failed"):
        assert_close(expected, {**expected, "a": torch.tensor([float("nan"), -2.0])})


def test_loading_reads_the_file_that_conversion_reads(checkpoint):
    """A whole checkpoint of another size loads with its architecture."""
    parts = load(checkpoint[0], fps=None, arch=Architecture.read(checkpoint[1]))

    assert parts.unet.time_embedding.post_act is not None
    assert len(parts.schedule) == 1000
