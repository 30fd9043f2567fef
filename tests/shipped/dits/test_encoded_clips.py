"""Clips that are latents and embedded captions already: the same training as from the videos, without encoding."""

from __future__ import annotations

import fastvideo_files
import pytest
import tiny_pipelines
import torch
import video_files
from guidedcd_fastvideo import FastVideoConfig
from guidedcd_videos import FolderConfig
from safetensors.torch import load_file
from short_training import trained

from guidedcd.config.kinds import Chosen
from guidedcd.config.resolve import run_from_dict
from guidedcd.data.clips import Clip
from guidedcd.data.contract import opened
from guidedcd.data.mixture import Mixture
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.transformer import TransformerTeacher
from guidedcd.planning.preprocess_cost import teaching
from guidedcd.preprocessing.encoding import clean_latents, conditioning

CAPTIONS = ("a red ball", "two boats in the rain", "a ball moves left", "the ball")


def run_of(one, *data: dict, **preprocess):
    """A run of four clips and two steps."""
    return run_from_dict(
        {
            "seed": 3,
            "device": "cpu",
            "teacher": {one.family: {"path": str(one.folder), **one.size}},
            "data": list(data),
            "energies": {"x0-motion": {"relative": 0.2, "fraction": 1.0}},
            "rewards": {},
            "solver": {"steps": 20, "omega": [1.0, 3.0]},
            "preprocess": {"videos": 4, "draws_per_video": 2, "batch_size": 2, "shard_size": 2, **preprocess},
            "train": {"steps": 2, "batch_size": 2, "log_every": 1},
        }
    )


def write_videos(folder, size):
    """Four captioned videos below `folder`, in a folder named like a Parquet file."""
    random = torch.Generator().manual_seed(5)
    for number, caption in enumerate(CAPTIONS):
        path = folder / "chunk" / f"clip{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size["frames"], size["height"], size["width"], 3)
        frames = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8).numpy()
        path.write_bytes(video_files.video(list(frames), fps=16))
        path.with_suffix(".txt").write_text(caption)


def encode(one, videos, captions):
    """By video, its latents and its caption's own tokens, by the pipeline's VAE and text encoder, as FastVideo does."""
    pipeline, latents, tokens = one.pipeline, [], []
    with torch.no_grad():
        for pair in videos.split(2):
            latents += [*pipeline.vae.encode(pair.transpose(1, 2) * 2 - 1).latent_dist.mean]
        prompts = tiny_pipelines.embedded(one.family, pipeline, list(captions), one.teacher.teacher)["prompt_embeds"]
        masks = one.teacher.teacher.text.tokens(captions)[1]
        tokens = [row[: int(mask.sum())] for row, mask in zip(prompts, masks, strict=True)]
    return latents, tokens


@pytest.fixture
def data(tiny, tmp_path):
    """A tiny Wan, its clips, a folder of videos and a folder with the Parquet file of the same clips."""
    pytest.importorskip("pyarrow")
    one = tiny("wan", "small")
    write_videos(tmp_path / "videos", one.size)
    chosen = Chosen("folder", FolderConfig(path=tmp_path / "videos", fps=16))
    clips = opened(chosen, one.teacher.teacher.geometry)[:]
    latents, tokens = encode(one, torch.stack([clip.video for clip in clips]), [clip.caption for clip in clips])
    rows = [
        fastvideo_files.row(clip.id.removeprefix("chunk/"), z, row, clip.caption)
        for clip, z, row in zip(clips, latents, tokens, strict=True)
    ]
    fastvideo_files.write(tmp_path / "latents" / "chunk.parquet", rows)
    return one, clips, tmp_path


def counted(monkeypatch):
    """Lists of the numbers of videos and captions that a teacher encodes and embeds from now on."""
    numbers: dict[str, list[int]] = {"encode": [], "embed": []}
    for name, calls in numbers.items():
        original = getattr(TransformerTeacher, name)

        def count(self, items, original=original, calls=calls):
            calls.append(len(items))
            return original(self, items)

        monkeypatch.setattr(TransformerTeacher, name, count)
    return numbers


@pytest.mark.slow
def test_training_from_parquet_equals_training_from_videos(data, monkeypatch):
    """Latents and tokens of FastVideo's format give the store and the student that their videos and captions give."""
    one, _, folder = data
    videos = run_of(one, {"folder": {"path": str(folder / "videos"), "fps": 16.0}})
    parquet = run_of(one, {"fastvideo": {"path": str(folder / "latents")}})

    straight = trained(videos, folder / "a", folder / "store-a")
    calls = counted(monkeypatch)
    assert trained(parquet, folder / "b", folder / "store-b") == straight

    # The rehearsal of the teacher encodes one video of noise; captions are those of rehearsals, and the empty one.
    assert calls["encode"] == [1] and 4 not in calls["embed"]
    for name in ("shard-00000", "shard-00001"):
        one_shard, other = (load_file(folder / f"store-{x}" / f"{name}.safetensors") for x in "ab")
        assert one_shard.keys() == other.keys()
        for key, value in one_shard.items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6)
    weights, again = (load_file(folder / x / "student" / "model.safetensors") for x in "ab")
    for key, value in weights.items():
        torch.testing.assert_close(again[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_shard_may_mix_videos_and_latents(data):
    """Clips of videos and of latents in one shard keep their order, latents and captions."""
    one, clips, folder = data
    teacher = one.teacher.teacher
    encoded = opened(Chosen("fastvideo", FastVideoConfig(path=folder / "latents")), teacher.geometry)
    mixed, unreadable = Mixture([("a", clips), ("b", encoded)], [1, 1], 4).read(range(4))
    assert not unreadable and [clip.video is None for clip in mixed] == [False, True, False, True]
    same = [clips[0], clips[0], clips[1], clips[1]]
    with torch.no_grad():
        torch.testing.assert_close(clean_latents(teacher, mixed, 2), clean_latents(teacher, same, 2))
        expected = teacher.embed([clip.caption for clip in same])
        torch.testing.assert_close(conditioning(teacher, mixed), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("wan", "tokens"), ("ltx", "small"), ("cogvideox", "long")])
def test_every_family_takes_its_autoencoders_own_latents(tiny, family, name):
    """Latents before normalization become what `encode` returns, with the family's padding, bit for bit."""
    one = tiny(family, name)
    teacher = one.teacher.teacher
    video = torch.rand(1, *teacher.geometry.pixel_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = one.pipeline.vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
        assert own.shape[1:] == teacher.geometry.encoded_shape
        assert torch.equal(teacher.scaled(own), teacher.encode(video))


@pytest.mark.slow
def test_masked_captions_predict_the_same(tiny):
    """LTX-Video predicts the same from a caption's own tokens as from the embedding that includes its padding."""
    teacher = tiny("ltx", "small").teacher.teacher
    whole = teacher.embed(["a red ball", "two boats in the rain"])
    masks = whole["prompt_mask"]
    own = teacher.conditioning([row[mask] for row, mask in zip(whole["prompt_embeds"], masks, strict=True)])
    assert torch.equal(own["prompt_mask"], masks)
    z = torch.randn(2, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([500, 900])
    with torch.no_grad():
        torch.testing.assert_close(teacher.net(z, t, own), teacher.net(z, t, whole))


@pytest.mark.slow
def test_captions_that_do_not_fit_are_refused(tiny):
    """A caption of another width, or of more tokens than the teacher reads, is one sentence; padding does not count."""
    teacher = tiny("wan", "small").teacher.teacher
    length, width = teacher.text.length, 16
    with pytest.raises(GuidedCDError, match="embedded in 24 numbers a token, but this teacher's text encoder has 16"):
        teacher.conditioning([torch.ones(3, 24)])
    with pytest.raises(GuidedCDError, match=f"{length + 1} embedded tokens, but this teacher reads {length}: raise"):
        teacher.conditioning([torch.ones(length + 1, width)])
    padded = torch.cat([torch.ones(3, width), torch.zeros(length, width)])
    assert int(teacher.conditioning([padded])["prompt_embeds"].ne(0).any(2).sum()) == 3


@pytest.mark.slow
def test_a_teacher_without_the_optional_methods(tiny):
    """Without `conditioning` captions are embedded from their text; without `scaled` latents are one sentence."""

    class Plain:
        """A teacher of videos and captions alone."""

        def __init__(self, teacher):
            self.device, self.encode, self.embed = teacher.device, teacher.encode, teacher.embed

    teacher = tiny("wan", "small").teacher.teacher
    shape = teacher.geometry.encoded_shape
    clip = Clip(id="a", dataset="d", caption="a ball", latents=torch.zeros(shape), prompt_embeds=torch.ones(3, 16))
    torch.testing.assert_close(conditioning(Plain(teacher), [clip]), teacher.embed(["a ball"]))
    with pytest.raises(GuidedCDError, match="clips of dataset 'd' are latents, and this teacher takes videos only"):
        clean_latents(Plain(teacher), [clip], 1)


@pytest.mark.slow
def test_a_plan_leaves_out_what_is_encoded_already(data):
    """The cost of a store has no pass of the VAE for clips that are latents, and half of it in a mixture."""
    one, _, folder = data
    videos = {"folder": {"path": str(folder / "videos")}}
    parquet = {"fastvideo": {"path": str(folder / "latents")}}
    runs = {name: run_of(one, *data) for name, data in (("a", [videos]), ("b", [parquet]), ("c", [videos, parquet]))}
    flops = {name: teaching(run, run.teacher.outline().to("meta")).flops() for name, run in runs.items()}
    assert flops["b"] < flops["c"] < flops["a"]
    assert flops["c"] == pytest.approx((flops["a"] + flops["b"]) / 2)
