"""The reward models: published numbers, and the contract of a reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from guidedcd_clip import CLIPConfig
from guidedcd_clip.reward import CLIPScore
from guidedcd_hps import HPSConfig
from guidedcd_hps.reward import HPS
from guidedcd_internv2 import InternV2Config
from guidedcd_internv2.model import FULL, InternVideo2, is_unused
from guidedcd_internv2.reward import InternV2, load_internvideo2
from guidedcd_shapes import models
from safetensors.torch import load_file, save_file
from tiny_rewards import BUILDERS, CAPTIONS, image_text, video, video_text, write
from torch.utils._python_dispatch import TorchDispatchMode

from guidedcd.devices import dtype_of_short
from guidedcd.models.checkpoints import loading
from guidedcd.models.checkpoints.loading import skeleton
from guidedcd.parity import rewards as parity
from guidedcd.parity.__main__ import _compare, _results
from guidedcd.plugins.registry import Component
from guidedcd.rewards.image_text import build_clip, load_clip
from guidedcd.testing import checks_of

each = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models in the published formats, their sizes and a vocabulary."""
    return write(tmp_path_factory.mktemp("models"))


# Published numbers


def test_published_numbers_are_reproduced(shared):
    """Pixels, ids, features, scores and gradients of every published fixture agree within its stated tolerance."""
    rows = []
    for folder, family, results in _results(shared("rewards")):
        if family is parity:
            rows += [row for name, values in results.items() for row in _compare(folder / name, values, family)]
    assert len(rows) > 250
    assert [f"{row.file.parent.name} {row.key} {row.error} {row.note}" for row in rows if not row.ok] == []


def test_goldens_are_never_read(shared, tmp_path):
    """With everything but the inputs removed from the files, the same results come out."""
    for name in ("clip_tiny", "internvideo2_stage2_tiny"):
        source, folder = shared("rewards") / name, tmp_path / name
        folder.mkdir()
        for file in ("config.json", "weights.safetensors"):
            (folder / file).symlink_to(source / file)
        inputs = ("images", "tokens", "video", "input_ids", "attention_mask")
        cases = load_file(source / parity.CASES)
        save_file({k: v for k, v in cases.items() if k.rpartition(".")[2] in inputs}, folder / parity.CASES)
        ours, expected = (parity.compute(path)[parity.CASES] for path in (folder, source))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in ours)


@pytest.mark.parametrize("name", ["clip_tiny", "hpsv2_tiny", "internvideo2_stage2_tiny"])
def test_published_checkpoint_formats_load_strictly(shared, name):
    """checkpoint.pt (wrapped, full training key set) and weights.safetensors give the same model, key for key."""
    folder = shared("rewards") / name
    config = json.loads((folder / "config.json").read_text())
    models = []
    for file in ("checkpoint.pt", "weights.safetensors"):
        state = loading.open_weights(folder / file, name)
        load = load_internvideo2 if "bert" in config else load_clip
        models.append(load(config.get("model_cfg", config), state, name).state_dict())
    original = load_file(folder / "weights.safetensors")
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[1])
    assert all(torch.equal(original[key], value) for key, value in models[1].items())


@pytest.mark.parametrize("manifest", ["hpsv2_vit_h_14", "open_clip_vit_h_14"])
def test_full_size_image_text_models_have_the_published_keys(shared, manifest):
    """At full size the network has exactly the 686 keys and shapes of the released HPS v2.1 and CLIP ViT-H/14."""
    import open_clip

    expected = _manifest(shared, manifest)
    model = skeleton(lambda: build_clip(open_clip.get_model_config("ViT-H-14")))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    assert len(expected) == 686


def test_full_size_internvideo2_has_the_published_keys(shared):
    """At full size the towers have exactly the keys and shapes that the score uses; every other key is known."""
    expected = _manifest(shared, "internvideo2_stage2_1b")
    ours = {key: list(value.shape) for key, value in skeleton(InternVideo2).state_dict().items()}
    used = {key: one["shape"] for key, one in expected.items() if one["role"].startswith("used")}
    assert ours == used
    assert len(used) == 852
    assert all(is_unused(key, FULL["bert"]["fusion_layer"]) for key in expected.keys() - used.keys())
    assert not any(is_unused(key, FULL["bert"]["fusion_layer"]) for key in used)


def _manifest(shared, name: str) -> dict:
    path = shared("rewards").parents[1] / "facts" / "manifests" / f"{name}_manifest.json"
    if not path.is_file():
        pytest.skip("the manifests of full-size checkpoints are not here")
    return json.loads(path.read_text())["keys"]


def test_an_image_tower_multiplies_all_tokens_with_a_frozen_weight_at_once():
    """Every projection of two images is one product of all their tokens, not one for every token's place."""

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.bmm:
                batched.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    batched: list[tuple[int, ...]] = []
    sizes = {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = build_clip({"embed_dim": 16, "vision_cfg": sizes, "text_cfg": text}).requires_grad_(False).eval()
    images = torch.randn(2, 3, 28, 28, requires_grad=True)
    with Products():
        model.encode_image(images).sum().backward()
    tokens = 1 + (28 // 14) ** 2
    assert not [shape for shape in batched if shape[0] == tokens]


# The contract of a reward


@each
def test_scores_are_cosines_with_gradient(files, name):
    """Scores are (B,) float32 in [-1, 1] with a gradient in every frame but none in weights; train() has no effect."""
    reward = BUILDERS[name](files)
    x = video().requires_grad_()
    state = torch.get_rng_state()
    scores = reward.train()(x, CAPTIONS)
    assert torch.equal(state, torch.get_rng_state())
    assert scores.shape == (2,) and scores.dtype == torch.float32
    assert scores.abs().max() <= 1 + 1e-6
    (grad,) = torch.autograd.grad(scores.sum(), x)
    assert (grad.abs().amax((2, 3, 4)) > 0).all()
    assert not any(p.requires_grad for p in reward.parameters())
    assert not any(module.training for module in reward.modules())


@each
def test_a_batch_is_its_parts(files, name):
    """Scores of two videos are the scores of each alone."""
    reward, x = BUILDERS[name](files), video()
    together = reward(x, CAPTIONS)
    alone = torch.cat([reward(x[i : i + 1], CAPTIONS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@each
@pytest.mark.parametrize(("dtype", "close"), [("bf16", 0.03), ("fp16", 0.005)])
def test_low_precision_is_close_and_lean(files, name, dtype, close):
    """In bf16 and fp16 the matrices are stored in that dtype, also for low-precision pixels, and scores stay close."""
    exact, low = BUILDERS[name](files), BUILDERS[name](files, dtype=dtype)
    torch.testing.assert_close(
        low(video().to(dtype_of_short(dtype)), CAPTIONS), exact(video(), CAPTIONS), atol=close, rtol=0
    )
    matrices = [p for p in low.parameters() if p.ndim == 2 and p.shape[0] == 3 * p.shape[1]]
    assert matrices
    assert all(p.dtype == dtype_of_short(dtype) for p in matrices)


@each
def test_an_outer_autocast_changes_nothing(files, name):
    """A reward computes in its own dtype, whatever precision the training loop runs in."""
    reward = BUILDERS[name](files)
    plain = reward(video(), CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        fresh = BUILDERS[name](files)(video(), CAPTIONS)
    assert torch.equal(plain, fresh)


@each
def test_gradient_checkpointing_changes_nothing(files, name):
    """Recomputed activations give the same gradient."""
    grads = []
    for checkpointing in (False, True):
        x = video().requires_grad_()
        scores = BUILDERS[name](files, gradient_checkpointing=checkpointing)(x, CAPTIONS)
        grads.append(torch.autograd.grad(scores.sum(), x)[0])
    torch.testing.assert_close(grads[0], grads[1])


@each
def test_captions_are_encoded_once_and_alone(files, name):
    """A caption's features are computed once, without gradient, and do not depend on its company."""
    reward = BUILDERS[name](files)
    calls = []
    encode = reward.caption_features._encode
    reward.caption_features._encode = lambda caption: calls.append(caption) or encode(caption)
    reward(video(), CAPTIONS)
    reward(video(), CAPTIONS[::-1])
    assert calls == CAPTIONS
    assert torch.equal(reward.caption_features(CAPTIONS)[1], BUILDERS[name](files).caption_features(CAPTIONS[1:])[0])
    reward.double()
    assert not reward.caption_features._features


def test_image_rewards_are_means_over_frames(files):
    """The score of a video is the mean of its frames' scores with its own caption; tiling pairs them as documented."""
    reward, x = image_text(files), video(frames=3)
    frames = torch.stack([reward(x[:, i : i + 1], CAPTIONS) for i in range(3)])
    torch.testing.assert_close(reward(x, CAPTIONS), frames.mean(0))
    tiled = image_text(files, tiled_captions=True)(x, CAPTIONS)
    order = [(row // 3, row % 3, CAPTIONS[row % 2]) for row in range(6)]
    paired = torch.cat([reward(x[v : v + 1, f : f + 1], [caption]) for v, f, caption in order])
    torch.testing.assert_close(tiled, paired.view(2, 3).mean(1))
    assert (tiled - reward(x, CAPTIONS)).abs().max() > 1e-4


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 16])
def test_internvideo2_reads_any_number_of_frames(files, frames):
    """The position table fits any number of frames; a single frame has its own table."""
    reward = video_text(files)
    assert reward(video(frames), CAPTIONS).isfinite().all()
    table = reward.model.vision_encoder.positions(frames)
    assert table.shape == (1, 1 + frames * 4, 32)
    if frames == 4:
        assert torch.equal(table, reward.model.vision_encoder.pos_embed)
    if frames == 1:
        assert torch.equal(table, reward.model.vision_encoder.img_pos_embed)


def test_internvideo2_crops_randomly_only_with_a_generator(files):
    """Without a generator the crop is central and scores repeat; with one they follow its seed; `centre` ignores it."""
    reward, x = video_text(files), video()
    central = reward(x, CAPTIONS)
    drawn = []
    for seed in range(4):
        reward.generator = torch.Generator().manual_seed(seed)
        drawn.append(reward(x, CAPTIONS))
    assert len({tuple(one.tolist()) for one in drawn}) > 1
    fixed = video_text(files, crop="centre")
    fixed.generator = torch.Generator()
    assert torch.equal(fixed(x, CAPTIONS), central)


def test_the_tanh_form_of_gelu_differs_a_little(files):
    """`gelu = "tanh"` is the fused kernels' activation: other scores, by less than 1e-2."""
    difference = (video_text(files)(video(), CAPTIONS) - video_text(files, gelu="tanh")(video(), CAPTIONS)).abs().max()
    assert 0 < difference < 1e-2


def test_padding_does_not_change_text_features(files):
    """InternVideo2's text features ignore padding."""
    reward = video_text(files)
    ids, mask = reward.tokenizer(["a red cat"])
    cut = int(mask.sum())
    short = reward.text_features(ids[:, :cut], mask[:, :cut])
    torch.testing.assert_close(reward.text_features(ids, mask), short, atol=1e-6, rtol=0)


@each
def test_embedded_models_work(name):
    """The embedded reward models load, have a context length, and score."""
    folder = models.WEIGHTS
    if not (folder / f"{name}.safetensors").is_file():
        pytest.skip("the embedded weights are not part of this checkout")
    kind, config = {"hps": (HPS, HPSConfig), "clip": (CLIPScore, CLIPConfig), "internv2": (InternV2, InternV2Config)}[
        name
    ]
    reward = kind(config())
    scores = reward(video(4, 48, 48), CAPTIONS)
    assert scores.isfinite().all() and scores.shape == (2,)
    assert reward.max_tokens == {"internv2": 40}.get(name, 77)
    assert reward.count_tokens("a red circle") >= 3


OFFERED = {
    "hps": ("guidedcd_hps.reward:HPS", HPSConfig, "clip"),
    "clip": ("guidedcd_clip.reward:CLIPScore", CLIPConfig, "clip"),
    "internv2": ("guidedcd_internv2.reward:InternV2", InternV2Config, "video"),
}


@each
def test_the_conformance_kit_passes(files, name):
    """Every rule for rewards holds, for the tiny models as for any third party's."""
    target, config, stem = OFFERED[name]
    texts = {"vocab": str(files / "vocab.txt")} if name == "internv2" else {}
    options = config(path=str(files / f"{stem}.pt"), arch=str(files / f"{stem}.json"), **texts)
    for check in checks_of(Component("reward", name, target, config, "guidedcd/test"), config=options):
        check()
