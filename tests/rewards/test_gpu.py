"""Rewards on a GPU: the host launches a step's rewards without waiting for what the GPU is still to do."""

from __future__ import annotations

import pytest
import tiny_rewards
import torch
from guidedcd_clip import CLIPConfig
from guidedcd_clip.reward import CLIPScore
from guidedcd_videoreward import VideoRewardConfig
from guidedcd_videoreward.reward import VideoReward
from tiny_videoreward import write_release

from guidedcd import RewardConfig, Route
from guidedcd.data.geometry import Geometry
from guidedcd.devices import tensor_like
from guidedcd.rewards.scorer import RewardScorer


class Frames:
    """A teacher whose latents (B, 3, F, H, W) are pixels."""

    geometry = Geometry(frames=8, height=64, width=64, fps=8.0)

    def decode(self, z: torch.Tensor, frames: list[int]) -> torch.Tensor:
        """The chosen frames (B, k, 3, H, W), in [0, 1]."""
        return z[:, :, tensor_like(frames, z, torch.long)].transpose(1, 2).sigmoid()


@pytest.mark.gpu
def test_rewards_do_not_wait_for_the_gpu(tmp_path):
    """Rewards are scored and differentiated without a blocking copy, of new captions for all but InternVideo2."""
    files = tiny_rewards.write(tmp_path)
    modules = {
        "hps": tiny_rewards.image_text(files),
        "clip": tiny_rewards.image_text(files, CLIPScore, CLIPConfig),
        "internv2": tiny_rewards.video_text(files),
        "videoreward": VideoReward(VideoRewardConfig(**write_release(tmp_path))),
    }
    config = RewardConfig(weight=1.0, frames=4, pick="even")
    scorer = RewardScorer({name: (module.cuda(), config) for name, module in modules.items()}, Frames())
    z = torch.randn(3, 3, 8, 64, 64, device="cuda").requires_grad_()

    def step(caption: str) -> torch.Tensor:
        routes = [Route(caption=f"{caption} {i}", rewards=frozenset(names)) for i, names in enumerate(chosen)]
        total = scorer.total(scorer.score(z, routes, torch.Generator().manual_seed(0)))
        return torch.autograd.grad(total, z)[0]

    chosen = [("hps", "videoreward"), (), ("clip", "internv2", "videoreward")]
    step("a red square")  # libraries are loaded
    for i in range(3):
        modules["internv2"].caption_features([f"a blue circle {i}"])  # transformers' BERT waits for its mask
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient = step("a blue circle")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(gradient).all()
    assert [bool(one.any()) for one in gradient] == [True, False, True]
