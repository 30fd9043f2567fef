"""The model-free metrics: flicker is VBench's to the digit, dynamic degree has its rule and measures true speeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from guidedcd_metrics import DiversityConfig, DynamicDegreeConfig, FlickerConfig
from guidedcd_metrics.diversity import Diversity
from guidedcd_metrics.flicker import Flicker
from guidedcd_metrics.motion import DynamicDegree, dynamic, flow, largest, stride

from guidedcd import GuidedCDError


@pytest.fixture
def golden(shared) -> Path:
    """Published values of the official evaluator."""
    return shared("vbench") / "golden"


def flicker(video: torch.Tensor) -> torch.Tensor:
    """The flicker of one or more videos."""
    return Flicker(FlickerConfig())(video)["temporal_flickering"]


def motion(video: torch.Tensor, fps: float = 8) -> dict[str, torch.Tensor]:
    """The motion of one or more videos."""
    return DynamicDegree(DynamicDegreeConfig(fps=fps, flow="classical"))(video)


def square(speed: float, *, frames: int = 8, height: int = 48, width: int = 64, noise: float = 0.0) -> torch.Tensor:
    """A red square on a soft texture, `speed` pixels per frame to the right, (1, F, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, height // 6, width // 6, generator=generator)
    ground = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0] * 0.2 + 0.4
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    video = []
    for f in range(frames):
        inside = (8.5 - torch.maximum((x - 16 - speed * f).abs(), (y - height / 2).abs())).clamp(0, 1)
        frame = ground * (1 - inside) + torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1) * inside
        video.append(frame + noise * torch.randn(frame.shape, generator=generator))
    return torch.stack(video)[None].clamp(0, 1)


@pytest.mark.parametrize(
    "name",
    ["noise_8x48x64", "moving_square_16x64x96", "global_flicker_24x56x80", "constant_5x32x48", "blackwhite_4x32x48"],
)
def test_flicker_equals_vbench(golden, name):
    """The official score of five videos, to 1e-6 (it sums in float32), and the exact one to 1e-12."""
    expected = json.loads((golden / "temporal_flickering.json").read_text())[name]
    video = torch.from_numpy(np.load(golden / "tf" / f"{name}.npy")).permute(0, 3, 1, 2).float() / 255

    score = flicker(video[None]).item()

    assert score == pytest.approx(expected["score_official_from_file"], abs=1e-6)
    assert score == pytest.approx(expected["score_float64"], abs=1e-12)


def test_flicker_by_hand():
    """Two frames that differ by 51 of 255 everywhere score 0.8; a batch scores each video alone."""
    video = torch.zeros(2, 2, 3, 5, 7)
    video[0, 1] = 51 / 255

    assert flicker(video).tolist() == [0.8, 1.0]


def test_one_frame_has_no_flicker():
    """A video of one frame has no value, as in VBench."""
    assert flicker(torch.zeros(1, 1, 3, 4, 4)).isnan().all()


def test_the_rule_equals_vbench(golden):
    """Whether given scores of frame pairs make a video dynamic: every published case."""
    for case in json.loads((golden / "dynamic_degree_rule.json").read_text())["rule_cases"]:
        pairs = torch.tensor([case["pair_scores"]])

        assert dynamic(pairs, case["T"], case["H"], case["W"]).tolist() == [case["is_dynamic"]], case["name"]


def test_the_score_of_a_pair_equals_vbench(golden):
    """The mean of the 5 % largest flow magnitudes of a given flow field."""
    expected = json.loads((golden / "dynamic_degree_rule.json").read_text())["random_flow"]
    field = torch.from_numpy(np.load(golden / expected["file"]))

    assert largest(field).item() == pytest.approx(expected["top5pct_mean"], rel=1e-6)


def test_the_stride_equals_vbench(golden):
    """Which frames are judged follows from the frame rate."""
    for case in json.loads((golden / "sampling.json").read_text())["dynamic_degree_stride"]:
        assert stride(case["fps"]) == case["step"]
        assert len(range(case["n_frames"])[:: stride(case["fps"])]) == case["kept"]


@pytest.mark.parametrize("speed", [0.0, 0.8, 1.8, 3.0, 4.0])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_flow_is_the_true_speed(speed, noise):
    """The flow of a square is its speed within 0.4 pixels, on clean and on noisy videos."""
    assert motion(square(speed, noise=noise))["flow_px"].item() == pytest.approx(speed, abs=0.4)


def test_flow_has_a_direction():
    """Inside a square that moves 2 pixels right, the flow is (2, 0)."""
    video = square(2.0)[0]
    mean_flow = flow(video[:1], video[1:2])[0, :, 20:28, 12:22].mean((1, 2))

    assert mean_flow.tolist() == pytest.approx([2.0, 0.0], abs=0.25)


def test_dynamic_degree_orders_videos():
    """Still and slow videos are not dynamic, fast ones are; flickering light and noise are no motion."""
    still = square(0.0)
    light = still + torch.tensor([0.0, 0.06, -0.06, 0.03, 0.0, 0.08, -0.04, 0.05]).view(1, 8, 1, 1, 1)
    videos = torch.cat([still, square(0.5), light, square(0.0, noise=0.04), square(2.0), square(4.0)])

    assert motion(videos)["dynamic_degree"].tolist() == [0, 0, 0, 0, 1, 1]


def test_one_frame_does_not_move():
    """A video of one frame is not dynamic and has no flow; of two frames every one is, by VBench's rounding."""
    one, two = motion(square(3.0, frames=1)), motion(square(0.0, frames=2))

    assert one["dynamic_degree"].tolist() == [0]
    assert one["flow_px"].isnan().all()
    assert two["dynamic_degree"].tolist() == [1]


def test_scores_do_not_depend_on_the_batch():
    """A video scores the same alone, among others, and in small pieces."""
    videos = torch.cat([square(1.0), square(3.0), square(0.0)])
    together = motion(videos)["flow_px"]
    pieces = DynamicDegree(DynamicDegreeConfig(batch_size=2, flow="classical"))(videos)["flow_px"]

    torch.testing.assert_close(together[1:2], motion(videos[1:2])["flow_px"])
    torch.testing.assert_close(together, pieces)


@pytest.mark.parametrize("speed", [0.0, 0.8, 1.8, 3.0, 4.0])
def test_dis_flow_is_the_true_speed(speed):
    """The flow of OpenCV's DIS is the speed of a square within 0.6 pixels, on small and on large frames."""
    pytest.importorskip("cv2")
    metric = DynamicDegree(DynamicDegreeConfig(flow="dis"))
    large = torch.nn.functional.interpolate(square(speed)[0], scale_factor=6, mode="bilinear")[None]

    assert metric(square(speed))["flow_px"].item() == pytest.approx(speed, abs=0.6)
    assert metric(large)["flow_px"].item() / 6 == pytest.approx(speed, abs=0.6)
    assert "DIS" in metric.titles["dynamic_degree"]


def test_the_default_flow_depends_on_the_size(monkeypatch):
    """With OpenCV, frames of at least 128 pixels have DIS, smaller ones the classical flow; the titles name both."""
    monkeypatch.setattr("guidedcd_metrics.motion.has_opencv", lambda: True)
    monkeypatch.setattr("guidedcd_metrics.motion.dis", lambda: flow)
    metric = DynamicDegree(DynamicDegreeConfig())
    names = [metric.chosen(side) for side in (127, 128)]
    before = dict(metric.titles)
    metric(torch.rand(1, 2, 3, 128, 160))

    assert names == ["classical", "dis"]
    assert metric.titles == before and "DIS flow from 128 pixels on, classical" in before["flow_px"]


def test_the_default_flow_needs_no_opencv(monkeypatch):
    """Without OpenCV the classical flow is the default, and the titles name it; `dis` is one clear error."""
    monkeypatch.setattr("guidedcd_metrics.motion.has_opencv", lambda: False)
    monkeypatch.setattr("guidedcd_metrics.flows.has_opencv", lambda: False)

    metric = DynamicDegree(DynamicDegreeConfig())
    metric(torch.rand(1, 2, 3, 160, 160))
    assert metric.titles["flow_px"] == "optical flow in pixels per frame (classical flow)"
    with pytest.raises(GuidedCDError, match="'dis' needs OpenCV"):
        DynamicDegree(DynamicDegreeConfig(flow="dis"))


def test_raft_needs_its_weights(tmp_path):
    """The flow and its weights belong together; a missing file and one of another network are clear errors."""
    pytest.importorskip("torchvision")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")

    for options in ({"flow": "raft"}, {"flow": "classical", "weights": tmp_path / "x"}):
        with pytest.raises(GuidedCDError, match="belong together"):
            DynamicDegree(DynamicDegreeConfig(**options))
    with pytest.raises(GuidedCDError, match="there are no weights of RAFT at"):
        DynamicDegree(DynamicDegreeConfig(flow="raft", weights=tmp_path / "gone.pth"))
    with pytest.raises(GuidedCDError, match="has no weights of torchvision's raft_large"):
        DynamicDegree(DynamicDegreeConfig(flow="raft", weights=tmp_path / "other.pth"))


@pytest.mark.slow
def test_raft_reads_torchvisions_file(tmp_path):
    """Weights of torchvision's network give its own flow, also for frames whose size it does not take."""
    optical_flow = pytest.importorskip("torchvision.models.optical_flow")
    network = optical_flow.raft_large(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    metric = DynamicDegree(DynamicDegreeConfig(flow="raft", weights=tmp_path / "raft.pth"))
    first, second = torch.rand(2, 1, 3, 128, 136)

    with torch.no_grad():
        expected = network(2 * first - 1, 2 * second - 1, num_flow_updates=20)[-1]
        torch.testing.assert_close(metric.flows["raft"](first, second), expected)
    assert metric.flows["raft"](first[..., :50, :77], second[..., :50, :77]).shape == (1, 2, 50, 77)


def test_diversity_by_hand():
    """Black, grey and white videos of one prompt have the mean difference to the two others; equal ones have 0."""
    metric = Diversity(DiversityConfig())
    shades = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1, 1).expand(3, 5, 3, 20, 24)
    features = torch.stack([metric.features(shades), metric.features(torch.full_like(shades, 0.3))], dim=1)

    values = metric.across(features)["diversity"]

    assert values[:, 0].tolist() == pytest.approx([0.75, 0.5, 0.75]) and values[:, 1].tolist() == pytest.approx(
        [0, 0, 0]
    )
    assert metric.across(features[:1])["diversity"].isnan().all()
    assert metric(shades, [])["diversity"].isnan().all()
