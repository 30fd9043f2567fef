"""The reward `imscore`: imscore's classes, or fakes of their interface, with tiny random weights."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from guidedcd_imscore import MODELS, ImscoreConfig
from guidedcd_imscore.reward import SCORERS, Imscore
from torch import nn

from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks_of

FAKE = """
import torch

class Tokenizer:
    def convert_tokens_to_ids(self, tokens): ...
    def __call__(self, text): return {"input_ids": [0, *text.split(), 1]}

class Holder:
    tokenizer = Tokenizer()

class Fake(torch.nn.Module):
    loaded = None
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(0.5))
        self.tokenizer, self.processor, self.blip = Tokenizer(), Holder(), Holder()

    @classmethod
    def from_pretrained(cls, source):
        if source == "missing":
            raise OSError("no such\\nrepository")
        torch.manual_seed(0)
        model = cls()
        model.loaded = source
        return model

    def score(self, pixels, prompts):
        assert pixels.ndim == 4 and len(pixels) == len(prompts)
        lengths = torch.tensor([float(len(p)) for p in prompts])
        scores = self.layer(pixels.mean((2, 3))) * lengths[:, None]
        return {shape}

{name} = Fake
"""
SHAPES = {"flat": "scores[:, 0]", "column": "scores", "squeezed": "scores.squeeze()"}
WRONG = {"too many": "scores.repeat(2, 1)", "one": "scores.mean()"}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake("hpsv2")`: a package imscore whose class of this scorer is a fake."""
    with monkeypatch.context() as patch:

        def write(model: str, shape: str = SHAPES["flat"]) -> None:
            for name in [name for name in sys.modules if name.partition(".")[0] == "imscore"]:
                patch.delitem(sys.modules, name)
            scorer = SCORERS[model]
            folder = tmp_path / "imscore" / scorer.module
            folder.mkdir(parents=True, exist_ok=True)
            (tmp_path / "imscore" / "__init__.py").touch()
            (folder / "__init__.py").touch()
            (folder / "model.py").write_text(FAKE.replace("{shape}", shape).replace("{name}", scorer.cls))

        patch.syspath_prepend(tmp_path)
        yield write
        for name in [name for name in sys.modules if name.partition(".")[0] == "imscore"]:
            patch.delitem(sys.modules, name)


def test_the_option_and_the_table_list_the_same_models():
    """The names of the option and of the table agree."""
    assert tuple(SCORERS) == MODELS


@pytest.mark.parametrize("model", MODELS)
def test_every_scorer_is_imported_and_frozen(fake, model):
    """Each model is imported from its module, built from its repository or path, in eval mode and without training."""
    fake(model)
    reward = Imscore(ImscoreConfig(model=model))
    other = Imscore(ImscoreConfig(model=model, path="elsewhere"))
    assert (reward.model.loaded, other.model.loaded) == (SCORERS[model].repo, "elsewhere")
    assert not reward.training and not reward.train().model.layer.training
    assert reward.count_tokens("a red cat") == (5 if SCORERS[model].tokenizer else 3)
    assert reward.max_tokens == SCORERS[model].max_tokens


@pytest.mark.parametrize("model", ["hpsv2", "mps", "laion-aesthetic"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_are_means_over_frames(fake, model, shape):
    """Whatever shape imscore returns, each frame is scored with its video's caption, and the gradient arrives."""
    fake(model, shape)
    reward = Imscore(ImscoreConfig(model=model))
    for batch, frames in ((2, 3), (1, 1), (2, 1)):
        video = torch.rand(batch, frames, 3, 8, 8, requires_grad=True)
        captions = ["a", "a cat"][:batch]
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        expected = reward.model.layer[0](video.mean((3, 4)))[..., 0].mean(1) * lengths
        scores = reward(video, captions)
        torch.testing.assert_close(scores, expected)
        assert torch.autograd.grad(scores.sum(), video)[0].abs().min() > 0


@pytest.mark.parametrize("shape", WRONG.values(), ids=WRONG)
def test_another_number_of_scores_is_one_sentence(fake, shape):
    """Scores that do not belong to the images are refused."""
    fake("hpsv2", shape)
    with pytest.raises(
        GuidedCDError, match=r"reward 'imscore:hpsv2': imscore returned scores of shape .* for 4 images"
    ):
        Imscore(ImscoreConfig(model="hpsv2"))(torch.rand(2, 2, 3, 8, 8), ["a", "b"])


def test_conformance(fake):
    """It passes every check of a reward."""
    fake("imagereward")
    config = ImscoreConfig(model="imagereward")
    for check in checks_of(load_plugins().get("reward", "imscore"), config=config, installation=False):
        check()


def test_missing_parts_are_one_sentence(fake, monkeypatch):
    """No model, no package, a package without its requirements, and missing weights each state what to do."""
    with pytest.raises(GuidedCDError, match="reward 'imscore' needs a model: write imscore:MODEL, one of hpsv2"):
        Imscore(ImscoreConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GuidedCDError, match="needs the package imscore: pip install imscore"):
        Imscore(ImscoreConfig(model="mps"))
    monkeypatch.undo()
    fake("hpsv2")
    with pytest.raises(GuidedCDError, match="cannot build HPSv2 from missing: OSError: no such repository"):
        Imscore(ImscoreConfig(model="hpsv2", path="missing"))
    monkeypatch.setitem(sys.modules, "imscore.hps.model", None)
    with pytest.raises(GuidedCDError, match="imscore cannot be imported here .*install what it requires"):
        Imscore(ImscoreConfig(model="hpsv2"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["clipscore", "siglip"])
def test_imscores_own_classes_run(model, tmp_path):
    """Where imscore is installed, its classes score tiny random networks of transformers, with gradients."""
    pytest.importorskip("imscore")
    pytest.importorskip("torchvision")
    tag = _tiny(model, tmp_path)
    folder = tmp_path / "scorer"
    folder.mkdir()
    module = __import__(f"imscore.{SCORERS[model].module}.model", fromlist=["_"])
    original = getattr(module, SCORERS[model].cls)(tag)
    nn.Module.to(original, "cpu")
    from safetensors.torch import save_model

    save_model(original, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"tag": tag}))

    reward = Imscore(ImscoreConfig(model=model, path=str(folder)))
    video = torch.rand(2, 2, 3, 40, 48, requires_grad=True)
    scores = reward(video, ["a cat", "a dog"])
    expected = torch.stack([original.eval().score(video[i], [c] * 2).mean() for i, c in enumerate(["a cat", "a dog"])])
    torch.testing.assert_close(scores, expected)
    assert torch.autograd.grad(scores.sum(), video)[0].abs().max() > 0
    assert reward.count_tokens("a cat") <= reward.max_tokens


def _tiny(model: str, folder) -> str:
    """The folder of a tiny random CLIP or SigLIP with its processor."""
    import transformers

    from guidedcd.rewards.tokenizers import TransformersClipTokens

    path = folder / "tag"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = {**sizes, "vocab_size": 49408}, {**sizes, "image_size": 32, "patch_size": 16}
    tokenizer = TransformersClipTokens()._tokenizer
    if model == "clipscore":
        tokenizer.model_max_length = 77
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        network = transformers.CLIPModel(config)
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        processor = transformers.CLIPProcessor(images, tokenizer)
    else:
        tokenizer.model_max_length = 64
        config = transformers.SiglipConfig(text_config={**text, "max_position_embeddings": 64}, vision_config=vision)
        network = transformers.SiglipModel(config)
        images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        processor = transformers.CLIPProcessor(images, tokenizer)
    network.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)
