"""Videos as files: what is written can be read back, shown by browsers, and never half there."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from guidedcd.data import media
from guidedcd.errors import GuidedCDError


def moving_square(frames: int = 6, height: int = 48, width: int = 48) -> torch.Tensor:
    """A red square that moves right on grey, (F, 3, H, W)."""
    video = torch.full((frames, 3, height, width), 0.5)
    for f in range(frames):
        video[f, :, 10:22, 4 + 3 * f : 16 + 3 * f] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    return video


def test_an_mp4_is_what_browsers_show(tmp_path):
    """The file is H.264 in yuv420p, with the frames and the rate of the call."""
    path = media.write_video(tmp_path / "a.mp4", moving_square(), fps=8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]

        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 8
        assert sum(1 for _ in container.decode(stream)) == 6


def test_an_mp4_reads_back(tmp_path):
    """An enlarged video comes back within the error of the codec."""
    video = moving_square()
    path = media.write_video(tmp_path / "a.mp4", video, fps=8, enlarge=4)
    back, fps = media.read_video(path)

    assert fps == 8
    assert back.shape == (6, 3, 192, 192)
    assert (back[..., 2::4, 2::4] - video).abs().mean() < 0.01


@pytest.mark.parametrize(("height", "width"), [(47, 48), (48, 33), (35, 41)])
def test_odd_sizes_survive(tmp_path, height, width):
    """H.264 in yuv420p has even sizes only; an odd video is padded for it and comes back as it was."""
    video = moving_square(3, height, width)
    back, _ = media.read_video(media.write_video(tmp_path / "odd.mp4", video, fps=5))

    assert back.shape == video.shape
    assert (back - video).abs().mean() < 0.05


def test_metadata_lies_beside_the_video(tmp_path):
    """The JSON beside an mp4 has what the caller gave and the size of the video."""
    path = media.write_video(tmp_path / "a.mp4", moving_square(), fps=8, enlarge=2, metadata={"prompt": "a red square"})
    metadata = json.loads((tmp_path / "a.json").read_text())

    assert metadata["prompt"] == "a red square"
    assert (metadata["frames"], metadata["height"], metadata["width"], metadata["fps"], metadata["enlarge"]) == (
        6,
        96,
        96,
        8,
        2,
    )
    assert media.sidecar(path) == tmp_path / "a.json"


@pytest.mark.parametrize("shape", [(6, 32, 48), (24, 130, 322), (48, 128, 320)])
def test_the_same_frames_give_the_same_file(tmp_path, shape):
    """Encoding is deterministic, so files can be compared by their digest, whatever the size of the video."""
    frames = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    frames = frames[:, ::16, ::16].repeat(16, 1).repeat(16, 2)[:, : shape[1], : shape[2]]
    contents = set()
    for _ in range(6):
        media.write_mp4(tmp_path / "a.mp4", frames, 8)
        contents.add((tmp_path / "a.mp4").read_bytes())

    assert len(contents) == 1


def test_a_gif_loops_and_keeps_its_colours(tmp_path):
    """A gif has every frame, repeats for ever, and shows the colours of the video."""
    path = media.write_video(tmp_path / "a.gif", moving_square(), fps=8, enlarge=2)
    with Image.open(path) as image:
        assert image.n_frames == 6
        assert image.info["loop"] == 0
        assert image.info["duration"] == 120
        image.seek(5)
        red = image.convert("RGB").getpixel((2 * 24, 2 * 15))

    assert all(abs(a - b) <= 8 for a, b in zip(red, (230, 26, 26), strict=True))
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("video", [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(0, 3, 8, 8)])
def test_a_wrong_shape_is_a_clear_error(tmp_path, video):
    """Anything but (F, 3, H, W) is refused in one sentence, and nothing is written."""
    with pytest.raises(GuidedCDError, match="shape"):
        media.write_video(tmp_path / "a.mp4", video, fps=8)

    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_refused(tmp_path):
    """A video with NaN pixels is an error, not a black video."""
    with pytest.raises(GuidedCDError, match="finite"):
        media.write_video(tmp_path / "a.mp4", moving_square() * float("nan"), fps=8)


def test_another_suffix_is_refused(tmp_path):
    """Only mp4 and gif are written."""
    with pytest.raises(GuidedCDError, match="avi"):
        media.write_video(tmp_path / "a.avi", moving_square(), fps=8)


def test_a_damaged_file_is_a_clear_error(tmp_path):
    """What is no video is an error with its path."""
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(GuidedCDError, match=r"bad\.mp4"):
        media.read_video(tmp_path / "bad.mp4")
    with pytest.raises(GuidedCDError, match="missing"):
        media.read_video(tmp_path / "none.mp4")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    """When encoding fails there is neither a video nor metadata nor a temporary file."""

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "write_mp4", fail)
    with pytest.raises(KeyboardInterrupt):
        media.write_video(tmp_path / "a.mp4", moving_square(), fps=8)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("caption", ["word " * 20_000, "x" * 1_000_000, "\u200b" * 1_000_000])
def test_long_captions_are_cut_at_once(tmp_path, caption):
    """A caption of any length is measured a few times only."""
    font = ImageFont.load_default(13)
    measured = []

    class Counting:
        def getlength(self, text):
            measured.append(text)
            return font.getlength(text)

    assert font.getlength(media._fitted(caption, Counting(), 300)) <= 300
    assert len(measured) < 20


@pytest.mark.parametrize("content", ["[1]", '{"height": "x"}', '{"height": 1.5}', "{"])
def test_damaged_metadata_is_named(tmp_path, content):
    """Metadata of another form than a video's is one sentence with the file's name."""
    path = media.write_video(tmp_path / "a.mp4", moving_square(), fps=8)
    media.sidecar(path).write_text(content)

    with pytest.raises(GuidedCDError, match=r"a\.json"):
        media.read_video(path)


def test_a_contact_sheet_has_a_row_per_video(tmp_path):
    """The sheet is as wide as its widest row; long captions are cut, not wrapped."""
    videos = [moving_square(), moving_square(3, 200, 120)]
    path = media.contact_sheet(tmp_path / "sheet.png", videos, ["a red square", "very long " * 60], frames=4)
    with Image.open(path) as image:
        assert image.size == (4 * 96 + 3 * 2 + 8, 2 * (96 + 24) + 4)


def test_names_of_files_come_from_prompts():
    """A prompt becomes lower-case words joined by "-", never empty and never too long."""
    assert media.slug("A red Circle, moving!") == "a-red-circle-moving"
    assert media.slug("红色") == "video"
    assert len(media.slug("word " * 40)) <= 48


def test_tiny_videos_are_enlarged_for_viewing():
    """48 pixels become 240, 320 stay."""
    assert media.viewing_factor(48, 48) == 5
    assert media.viewing_factor(320, 512) == 1
