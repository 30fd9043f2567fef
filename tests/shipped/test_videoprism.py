"""The reward `videoprism` beside transformers' own VideoPrismClipModel, with tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from guidedcd_videoprism import VideoPrismConfig
from guidedcd_videoprism.reward import NEEDED, VideoPrism
from safetensors.torch import load_file, save_file

from guidedcd.errors import GuidedCDError
from guidedcd.planning.meter import metered
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks_of

has_videoprism = pytest.mark.skipif(
    not hasattr(transformers, "VideoPrismClipModel"), reason=f"transformers {NEEDED} has VideoPrism first"
)
WORDS = [
    "▁a",
    "▁red",
    "▁ball",
    "▁boat",
    "▁rolls",
    "▁to",
    "▁the",
    "▁left",
    "▁two",
    "▁boats",
    "▁drift",
    "▁under",
    "▁bridge",
]
CAPTIONS = ["a red ball", "two boats drift"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny random network with its tokenizer, in transformers' format."""
    path = tmp_path_factory.mktemp("videoprism")
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((word, -1.0) for word in WORDS)]
    transformers.VideoPrismTokenizer(vocab=vocab, extra_ids=0).save_pretrained(path)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.VideoPrismConfig(
        vision_config={
            **sizes,
            "image_size": 36,
            "num_frames": 4,
            "num_spatial_layers": 2,
            "num_temporal_layers": 1,
            "num_auxiliary_layers": 1,
        },
        text_config={**sizes, "vocab_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 12},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.VideoPrismClipModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return str(path)


def clips(frames: int, size: int = 36) -> torch.Tensor:
    """Random clips (2, frames, 3, size, size)."""
    return torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


@has_videoprism
@pytest.mark.parametrize("frames", [4, 6])
def test_scores_and_gradients_are_those_of_transformers(folder, frames):
    """With frames of the network's size, scores are the products of the embeddings of transformers' forward pass."""
    reward = VideoPrism(VideoPrismConfig(path=folder))
    model = transformers.VideoPrismClipModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(CAPTIONS, padding="max_length", max_length=12, return_tensors="pt")
    video = clips(frames).requires_grad_()

    output = model(pixel_values_videos=video, **encoded, interpolate_pos_encoding=frames != 4)
    expected = (output.video_embeds * output.text_embeds).sum(-1)
    scores = reward(video, CAPTIONS)

    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(one.sum(), video)[0] for one in (scores, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 0 and scores[0] != scores[1]


@has_videoprism
def test_frames_are_resized_as_transformers_does(folder):
    """Frames of another size are resized as transformers' video processor does, but for its rounding to 8 bits."""
    pytest.importorskip("torchvision")
    reward = VideoPrism(VideoPrismConfig(path=folder))
    processor = transformers.LlavaOnevisionVideoProcessor(
        size={"height": 36, "width": 36}, do_normalize=False, do_sample_frames=False
    )
    video = (clips(4, 50) * 255).round().to(torch.uint8)
    prepared = processor(videos=list(video), return_tensors="pt")["pixel_values_videos"]
    received = []
    reward.pixel_features = lambda pixel_values: received.append(pixel_values) or torch.zeros(2, 16)
    reward(video / 255, CAPTIONS)
    difference = (received[0] - prepared).abs()
    assert difference.mean() < 0.5 / 255 and difference.max() < 12 / 255  # noise leaves [0, 1] between its two passes


@has_videoprism
def test_captions_are_counted_and_cut(folder):
    """A word of the vocabulary is one token, there is no end token, and the limit is the text tower's."""
    reward, tokens = VideoPrism(VideoPrismConfig(path=folder)), VideoPrism.tokens(VideoPrismConfig(path=folder))
    assert reward.max_tokens == tokens.max_tokens == 12
    assert reward.count_tokens("a red ball") == tokens.count("a red ball") == 3
    ids, mask = tokens(["a red ball", "boat " * 20])
    assert ids.shape == mask.shape == (2, 12) and mask.sum(1).tolist() == [3, 12]


@has_videoprism
def test_conformance(folder):
    """It passes every check of a reward, and a plan needs no weights."""
    config = VideoPrismConfig(path=folder)
    for check in checks_of(load_plugins().get("reward", "videoprism"), config=config, installation=False):
        check()
    outline = VideoPrism(config, weights=False)
    video = torch.empty(2, 4, 3, 40, 40, device="meta", requires_grad=True)
    with metered() as cost:
        assert outline(video, CAPTIONS).shape == (2,)
    assert cost.flops > 0
    half = VideoPrism(VideoPrismConfig(path=folder, dtype="bf16"))
    scores = [reward(clips(4), CAPTIONS) for reward in (half, VideoPrism(config))]
    torch.testing.assert_close(*scores, rtol=0, atol=0.05)


@has_videoprism
def test_wrong_weights_are_one_sentence(folder, tmp_path):
    """A missing folder, one without weights, and one with other weights are refused with what to do."""
    with pytest.raises(GuidedCDError, match="/nowhere cannot be loaded .*hf download google/videoprism-lvt-base"):
        VideoPrism(VideoPrismConfig(path="/nowhere"))
    config, path = json.loads(Path(folder, "config.json").read_text()), tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(GuidedCDError, match="cannot be loaded"):
        VideoPrism(VideoPrismConfig(path=str(tmp_path)))
    state = load_file(f"{folder}/model.safetensors")
    removed = sorted(state)[0]
    del state[removed]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GuidedCDError, match=f"has no weights of VideoPrismClipModel: missing keys {removed}"):
        VideoPrism(VideoPrismConfig(path=str(tmp_path)))


def test_an_old_transformers_is_one_sentence(monkeypatch):
    """Without the class, the error names the version that has it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GuidedCDError, match=f"needs transformers {NEEDED} or later, and .* is installed: pip install"):
        VideoPrism(VideoPrismConfig())
