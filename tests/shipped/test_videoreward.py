"""The reward `videoreward` beside transformers' own Qwen2-VL, finite differences and the published numbers."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import attrs
import pytest
import torch
import transformers
from guidedcd_videoreward import VideoRewardConfig
from guidedcd_videoreward.chat import template
from guidedcd_videoreward.checkpoint import find_release, merged_weights, present_name
from guidedcd_videoreward.model import FULL, load_videoreward
from guidedcd_videoreward.patches import Preparation
from guidedcd_videoreward.protocol import even_count, prepared_size, sampled_count
from guidedcd_videoreward.reward import VideoReward
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_videoreward import ALPHA, RANK, SETTINGS, write_release
from transformers.models.qwen2_vl import modeling_qwen2_vl

from guidedcd.errors import GuidedCDError
from guidedcd.parity import compare, videoreward
from guidedcd.planning.meter import metered
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks_of

CAPTIONS = ["A red ball rolls.", "Two boats drift under a bridge in Zürich at night."]
LORA = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    """The options that load a tiny random checkpoint."""
    return write_release(tmp_path_factory.mktemp("videoreward"))


@pytest.fixture(scope="module")
def reward(options) -> VideoReward:
    """The reward with that checkpoint."""
    return VideoReward(VideoRewardConfig(**options))


def clips(frames: int = 4, height: int = 40, width: int = 64) -> torch.Tensor:
    """Smooth random clips (2, frames, 3, height, width) in [0, 1]."""
    noise = torch.rand(2, frames, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(1))
    video = torch.nn.functional.interpolate(noise.flatten(0, 1), size=(height, width), mode="bilinear")
    return video.view(2, frames, 3, height, width)


def changed(options: dict, tmp_path: Path, change) -> VideoRewardConfig:
    """The options of a copy of the checkpoint whose weights and settings `change(state, settings)` modified."""
    source = find_release(options["path"])
    folder = tmp_path / "release" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "tokenizer").symlink_to(source.tokenizer)
    state, settings = torch.load(source.weights, weights_only=True), json.loads(json.dumps(SETTINGS))
    change(state, settings)
    torch.save(state, folder / "model.pth")
    (tmp_path / "release" / "model_config.json").write_text(json.dumps(settings))
    return VideoRewardConfig(**{**options, "path": str(tmp_path / "release")})


@pytest.mark.slow
def test_the_published_numbers_agree(shared):
    """Frames, sizes, patches, ids, hidden states, scores, gradients and merged weights equal those of the release."""
    folder = shared("rewards", "videoreward_tiny")
    rows = []
    for name, values in videoreward.compute(folder).items():
        compare_file = compare.compare_tensors if name.endswith(".safetensors") else compare.compare_json
        file = f"{folder.name}/{name}"
        rows += compare_file(folder / name, values, lambda key, file=file: videoreward.tolerance(file, key))
    assert len(rows) > 100 and not [row for row in rows if not row.ok]


def test_keys_and_shapes_are_those_of_the_published_file(shared):
    """The full network has each weight of the published file, with its shape, under the name that its key becomes."""
    path = shared().parent / "facts" / "manifests" / "videoreward_manifest.json"
    if not path.is_file():
        pytest.skip(f"no manifest at {path}")
    keys = json.loads(path.read_text(encoding="utf-8"))["keys"]
    kept = {key: entry for key, entry in keys.items() if entry["role"] not in ("lora_A", "lora_B", "unused")}
    state = load_videoreward(FULL, None).state_dict()
    assert {present_name(key): entry["shape"] for key, entry in kept.items()} == {
        name: list(value.shape) for name, value in state.items()
    }
    assert all(entry["target"] == present_name(key) for key, entry in kept.items())


def test_the_template_is_the_published_one():
    """The prompt has the published digest."""
    digest = hashlib.sha256(template().encode()).hexdigest()
    assert digest == "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"


@pytest.mark.skipif(not hasattr(modeling_qwen2_vl, "Qwen2VLTextModel"), reason="transformers has no such class")
def test_hidden_states_are_those_of_transformers(reward):
    """With plain positions, transformers' own Qwen2VLModel gives the same states, padding and mask included."""
    grids = [(2, 4, 6), (1, 4, 4)]
    patches = torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=torch.Generator().manual_seed(0))
    chats = [reward.chat.chat(caption) for caption in CAPTIONS]
    hidden = reward.model.hidden(patches, grids, chats, reward.chat.pad)

    model = transformers.Qwen2VLModel(reward.model.config).eval()
    model.load_state_dict(reward.model.model.state_dict())
    rows = [torch.tensor(chat.ids(t * h * w // 4)) for chat, (t, h, w) in zip(chats, grids, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=reward.chat.pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    model.config.video_token_id = chats[0].video
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=torch.arange(ids.shape[1]).expand(3, *ids.shape),
            pixel_values_videos=patches,
            video_grid_thw=torch.tensor(grids),
        )
    places = [chat.positions(t * h * w // 4) for chat, (t, h, w) in zip(chats, grids, strict=True)]
    expected = torch.stack([output.last_hidden_state[i, place] for i, place in enumerate(places)])
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


def in_float64(model, monkeypatch) -> None:
    """Compute in float64 also where transformers casts to float32: in norms and in the rotation of the vision tower."""

    def rotate(query, key, cos, sin):
        def rotated(x):
            return x * cos.unsqueeze(-2) + modeling_qwen2_vl.rotate_half(x) * sin.unsqueeze(-2)

        return rotated(query), rotated(key)

    def norm(module, x):
        return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)

    monkeypatch.setattr(modeling_qwen2_vl, "apply_rotary_pos_emb_vision", rotate)
    for module in model.double().modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(norm, module)


def test_gradients_are_those_of_finite_differences(options, monkeypatch):
    """In float64 without rounding, directional derivatives with respect to the pixels equal central differences."""
    reward = VideoReward(VideoRewardConfig(**options, rounding=False))
    in_float64(reward.model, monkeypatch)
    generator = torch.Generator().manual_seed(2)
    video = clips(height=36, width=48).double() * 0.6 + 0.2  # the bicubic result stays within the clamp
    leaf = video.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf, CAPTIONS).sum(), leaf)
    assert gradient.flatten(1).norm(dim=1).min() > 0
    for _ in range(2):
        direction = torch.randn(video.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (reward(video + step * direction, CAPTIONS).sum() for step in (1e-5, -1e-5))
        expected = (ahead - behind) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-9)


def test_a_reward_is_the_weighted_sum_of_normalised_scores(reward, options):
    """Weights multiply normalised scores, or raw ones by option; the sequence may end at the last token that counts."""
    with torch.no_grad():
        raw = reward.raw(clips(), CAPTIONS)
        mean, std = torch.tensor([[0.3, 2.0], [-0.2, 0.5], [0.1, 1.5]]).T
        scores = (raw - mean) / std
        for weights in ((1.0, 1.0, 1.0), (0.5, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)):
            names = dict(zip(("quality", "motion", "alignment"), weights, strict=True))
            weighted = _with(reward, VideoRewardConfig(**options, **names))
            expected = (scores * torch.tensor(weights)).sum(1)
            torch.testing.assert_close(weighted(clips(), CAPTIONS), expected, rtol=1e-5, atol=1e-5)
        plain = _with(reward, VideoRewardConfig(**options, normalised=False))
        torch.testing.assert_close(plain(clips(), CAPTIONS), raw.sum(1), rtol=1e-5, atol=1e-5)


def test_only_alignment_reads_the_caption(reward, options):
    """Without alignment, the caption has no effect on the reward, which is computed without it."""
    quality = _with(reward, VideoRewardConfig(**options, alignment=0.0))
    with torch.no_grad():
        assert torch.equal(quality(clips(), CAPTIONS), quality(clips(), CAPTIONS[::-1]))
        assert not torch.allclose(reward(clips(), CAPTIONS), reward(clips(), CAPTIONS[::-1]), rtol=1e-4)


def test_checkpointing_changes_no_number(reward, options):
    """Recomputed activations give the same reward and gradient, bit for bit."""
    results = []
    for one in (reward, VideoReward(VideoRewardConfig(**options, gradient_checkpointing=True))):
        video = clips().requires_grad_()
        score = one(video, CAPTIONS)
        results += [score.detach(), *torch.autograd.grad(score.sum(), video)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_adapters_are_merged(options):
    """A merged weight is W + alpha / rank * B A, its bias is unchanged, and the language head is left out."""
    release = find_release(options["path"])
    state, weights = torch.load(release.weights, weights_only=True), merged_weights(release)
    product = state[f"{LORA}.lora_B.default.weight"] @ state[f"{LORA}.lora_A.default.weight"]
    name = "model.language_model.layers.0.self_attn.q_proj"
    torch.testing.assert_close(
        weights[f"{name}.weight"], state[f"{LORA}.base_layer.weight"] + ALPHA / RANK * product, rtol=0, atol=1e-6
    )
    assert torch.equal(weights[f"{name}.bias"], state[f"{LORA}.base_layer.bias"])
    assert not [key for key in weights if "lora" in key or "lm_head" in key]


def test_a_checkpoint_of_present_names_is_the_same(options, reward, tmp_path):
    """Weights that were merged and saved under transformers' present names give the same reward."""
    weights = dict(merged_weights(find_release(options["path"])))

    def merge(state, settings):
        state.clear()
        state.update(weights)

    with torch.no_grad():
        again = VideoReward(changed(options, tmp_path, merge))(clips(), CAPTIONS)
        assert torch.equal(again, reward(clips(), CAPTIONS))


def test_a_head_of_three_rows_is_read_diagonally(tmp_path):
    """With three outputs, each token is scored by its own row."""
    reward = VideoReward(VideoRewardConfig(**write_release(tmp_path, outputs=3)))
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("bkc,kc->bk", hidden, reward.model.rm_head.weight)
    torch.testing.assert_close(reward.model.raw(hidden), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, _: state.pop("base_model.model.rm_head.weight"), "missing rm_head.weight"),
        (lambda state, _: state.update(extra=torch.zeros(2)), "unexpected extra"),
        (lambda state, _: state.pop(f"{LORA}.lora_B.default.weight"), "lacks its other half or its weight"),
        (lambda state, _: state.pop(f"{LORA}.base_layer.weight"), "lacks its other half or its weight"),
        (lambda _, settings: settings["peft_lora_config"].update(lora_r=8), "has rank 3, model_config.json states 8"),
        (lambda _, settings: settings["peft_lora_config"].pop("lora_alpha"), "states no lora_r and lora_alpha"),
        (lambda _, settings: settings["model_config"].update(reward_token="mean"), "only 'special' is supported"),
        (lambda _, settings: settings["inference_config"].pop("MQ_std"), "lacks 'MQ_std'"),
        (lambda _, settings: settings["inference_config"].update(MQ_std=0.0), "a deviation that is not positive"),
        (lambda state, _: state.update({f"{LORA}.lora_A.default.weight": torch.zeros(3, 5)}), "has shapes"),
    ],
)
def test_a_wrong_checkpoint_is_one_sentence(options, tmp_path, change, message):
    """Missing, unexpected or unfitting weights and settings stop the load with a sentence that names them."""
    config = changed(options, tmp_path, change)
    with pytest.raises(GuidedCDError, match=message):
        VideoReward(config)


def test_without_statistics_scores_are_raw(options, tmp_path):
    """A model_config.json without inference_config gives raw scores, as in the released code."""
    reward = VideoReward(changed(options, tmp_path, lambda _, settings: settings.pop("inference_config")))
    with torch.no_grad():
        torch.testing.assert_close(reward(clips(), CAPTIONS), reward.raw(clips(), CAPTIONS).sum(1))


def test_files_that_are_missing_are_one_sentence(options, tmp_path, monkeypatch):
    """A missing folder, one without weights, and code in a checkpoint are refused; the highest checkpoint is read."""
    monkeypatch.setenv("GUIDEDCD_CACHE", str(tmp_path / "cache"))
    for path in ("/nowhere", "auto"):
        with pytest.raises(GuidedCDError, match="hf download KwaiVGI/VideoReward --local-dir"):
            find_release(path)
    config = changed(options, tmp_path, lambda state, settings: None)
    folder = Path(config.path)
    assert find_release(str(folder / "checkpoint-1" / "model.pth")) == find_release(str(folder / "checkpoint-1"))
    (folder / "checkpoint-10").mkdir()
    with pytest.raises(GuidedCDError, match="checkpoint-10 has no model.pth"):
        find_release(str(folder))
    torch.save(print, folder / "checkpoint-10" / "model.pth")
    with pytest.raises(GuidedCDError, match="holds code"):
        merged_weights(find_release(str(folder)))


def test_inputs_that_cannot_be_scored_are_one_sentence(reward, options):
    """An odd number of frames, reserved tokens in a caption, weights of 0 and extreme sides are refused."""
    with pytest.raises(GuidedCDError, match="reads frames in pairs, not 3"):
        reward(clips(3), CAPTIONS)
    for token in ("<|TA_reward|>", "<|video_pad|>"):
        with pytest.raises(GuidedCDError, match="contains one of the tokens .*; remove it"):
            reward(clips(), ["a", f"b {token}"])
    with pytest.raises(GuidedCDError, match="are all 0"):
        VideoReward(VideoRewardConfig(**options, quality=0.0, motion=0.0, alignment=0.0))
    with pytest.raises(GuidedCDError, match="too narrow"):
        reward(torch.rand(2, 2, 3, 4, 804), CAPTIONS)
    with pytest.raises(ValueError, match="2 videos need as many captions"):
        reward(clips(), CAPTIONS[:1])


def test_conformance(options):
    """It passes every check of a reward."""
    config = VideoRewardConfig(**options)
    for check in checks_of(load_plugins().get("reward", "videoreward"), config=config, installation=False):
        check()


def test_a_plan_needs_no_files():
    """The full network on the meta device scores 10 frames of 480x832, with the operations of a hand count."""
    outline = VideoReward(VideoRewardConfig(), weights=False)
    video = torch.empty(1, 10, 3, 480, 832, device="meta", requires_grad=True)
    with metered() as cost:
        assert outline(video, CAPTIONS[:1]).shape == (1,)
    assert cost.flops == pytest.approx(1.3e13, rel=0.1)


def test_bfloat16_scores_differ_by_rounding(reward, options):
    """In bfloat16 the reward differs by rounding, and the head stays float32."""
    half = VideoReward(VideoRewardConfig(**options, dtype="bf16"))
    assert half.model.rm_head.weight.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(half.raw(clips(), CAPTIONS), reward.raw(clips(), CAPTIONS), rtol=0, atol=0.1)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_sizes_are_those_of_transformers(height, width):
    """Sizes are multiples of 28 in the limits, and those of transformers' smart_resize where it has the same rule."""
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(GuidedCDError, match="too narrow"):
            prepared_size(height, width, 28, 100_352, 200_704)
        return
    size = prepared_size(height, width, 28, 100_352, 200_704)
    assert not size[0] % 28 and not size[1] % 28 and 0 < size[0] * size[1] <= 200_704
    smart_resize = modeling_module("image_processing_qwen2_vl").smart_resize
    if min(height, width) >= 28:  # some versions refuse smaller frames
        assert size == tuple(smart_resize(height, width, factor=28, min_pixels=100_352, max_pixels=200_704))


def modeling_module(name: str):
    """A module of transformers' Qwen2-VL."""
    return __import__(f"transformers.models.qwen2_vl.{name}", fromlist=["_"])


@given(st.integers(2, 2000), st.floats(1, 120), st.integers(2, 1000))
def test_numbers_of_frames_are_even(total, clip_fps, frames):
    """Any clip of two frames has an even number of picked frames; a stated number of at least two keeps that."""
    config = VideoRewardConfig()
    count = config.count(total, clip_fps)
    assert count % 2 == 0 and 2 <= count <= min(total, 768) and count == sampled_count(total, clip_fps, 2.0)
    capped = attrs.evolve(config, frames=frames).count(total, clip_fps)
    assert capped % 2 == 0 and capped == min(count, even_count(total, frames)) <= frames + 1


def test_patches_have_the_published_order():
    """A patch has its channel, frame, row and column in this order; patches of a token follow one another."""
    prepare = Preparation(784, 4 * 84 * 56, rounding=False)
    video = torch.rand(2, 4, 3, 56, 84)
    patches = prepare(video)
    t, h, w = prepare.grid(4, 56, 84)
    mean, std = torch.tensor(videoreward_mean()), torch.tensor(videoreward_std())
    normal = (video - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    row = 0
    for one in normal:
        for pair in range(t):
            for top in range(0, h, 2):
                for left in range(0, w, 2):
                    for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                        block = one[2 * pair : 2 * pair + 2, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
                        torch.testing.assert_close(patches[row], block.transpose(0, 1).flatten())
                        row += 1
    assert row == len(patches)


def videoreward_mean() -> tuple[float, ...]:
    """CLIP's mean, from the preprocessor_config.json of Qwen2-VL."""
    return (0.48145466, 0.4578275, 0.40821073)


def videoreward_std() -> tuple[float, ...]:
    """CLIP's standard deviation, likewise."""
    return (0.26862954, 0.26130258, 0.27577711)


def test_pixels_are_rounded_with_a_straight_gradient():
    """Prepared frames are whole numbers of 255 within [0, 1], and the gradient is that without rounding."""
    rounded, smooth = (Preparation(3136, 4704, rounding=rounding) for rounding in (True, False))
    video = torch.rand(1, 2, 3, 30, 44, generator=torch.Generator().manual_seed(0)).requires_grad_()
    frames, plain = rounded.frames(video), smooth.frames(video)
    assert torch.equal(frames * 255, (frames * 255).round()) and frames.min() >= 0 and frames.max() <= 1
    assert (frames - plain).abs().max() <= 0.5 / 255 + 1e-6
    direction = torch.rand(frames.shape)
    gradients = [torch.autograd.grad((one * direction).sum(), video)[0] for one in (frames, plain)]
    assert torch.equal(*gradients)


def _with(reward: VideoReward, config: VideoRewardConfig) -> VideoReward:
    """The same network with other options of the score."""
    other = VideoReward.__new__(VideoReward)
    other.__dict__.update(reward.__dict__)
    other.config, other.factors = config, (config.quality, config.motion, config.alignment)
    return other


@pytest.mark.gpu
@pytest.mark.parametrize("recomputes", [False, True])
def test_graphs_change_no_number(options, recomputes):
    """The vision tower as CUDA graphs gives the same reward and gradient as without, for two sizes in turn."""
    configs = (VideoRewardConfig(**options, gradient_checkpointing=again) for again in (recomputes, False))
    reward, plain = (VideoReward(config).cuda() for config in configs)
    reward.use_graphs()
    for height in (40, 60, 40):
        results = []
        for one in (reward, plain):
            video = clips(height=height).cuda().requires_grad_()
            score = one(video, CAPTIONS)
            results.append((score.detach(), *torch.autograd.grad(score.sum(), video)))
        for replayed, expected in zip(*results, strict=True):
            torch.testing.assert_close(replayed, expected, rtol=1e-5, atol=1e-6)


def test_a_reward_after_inference_has_a_gradient(options):
    """A score in inference mode keeps nothing that a later gradient cannot use."""
    reward = VideoReward(VideoRewardConfig(**options))
    with torch.inference_mode():
        reward(clips(), CAPTIONS)
    video = clips().requires_grad_()
    assert torch.autograd.grad(reward(video, CAPTIONS).sum(), video)[0].abs().max() > 0
