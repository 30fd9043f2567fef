"""Files and texts of reward models: finding, strict loading without copies, tokenizers, remembered captions."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from guidedcd_clip import CLIPConfig
from guidedcd_clip.reward import CLIPScore
from guidedcd_hps import HPSConfig
from guidedcd_hps.reward import HPS
from guidedcd_hps.reward import PUBLISHED as HPS_PUBLISHED
from guidedcd_internv2 import InternV2Config
from guidedcd_internv2.reward import InternV2, load_internvideo2
from safetensors.torch import load_file
from tiny_rewards import CAPTIONS, WORDS, image_text, video, write

from guidedcd import GuidedCDError
from guidedcd.models.checkpoints import loading
from guidedcd.models.checkpoints.hub import Published, find
from guidedcd.parity import rewards as parity
from guidedcd.rewards.image_text import load_clip
from guidedcd.rewards.tokenizers import BertTokens, CaptionFeatures, ClipTokens
from guidedcd.testing.tiny_networks import IMAGE_TEXT_SIZES, VIDEO_TEXT_SIZES

DATA = Path(__file__).parents[1] / "goldens" / "rewards"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models in the published formats, their sizes and a vocabulary."""
    return write(tmp_path_factory.mktemp("models"))


# Files


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
def test_wrapped_and_bare_files_are_the_same(files, suffix):
    """A state dict may be wrapped or bare, in any of the three formats."""
    state = loading.open_weights(files / f"clip.{suffix}", "hps")
    whole = load_file(files / "clip.safetensors")
    assert set(state) == set(whole)
    assert all(torch.equal(state[key], whole[key]) for key in whole)


def test_weights_that_need_no_conversion_are_not_copied(files):
    """Parameters of the file's own dtype are the file's memory, so that nothing is held twice."""
    state = loading.open_weights(files / "clip.pt", "hps")
    model = load_clip(IMAGE_TEXT_SIZES, state, "hps")
    assert all(p.data_ptr() == state[name].data_ptr() for name, p in model.named_parameters())


def test_wrong_keys_are_named(files, tmp_path):
    """A missing, an unexpected and a misshapen key are each refused by name, with what the file looks like."""
    whole = load_file(files / "clip.safetensors")
    with pytest.raises(GuidedCDError, match=r"hps: .*missing visual\.proj"):
        load_clip(IMAGE_TEXT_SIZES, {k: v for k, v in whole.items() if k != "visual.proj"}, "hps")
    with pytest.raises(GuidedCDError, match=r"hps: .*unexpected score_head"):
        load_clip(IMAGE_TEXT_SIZES, whole | {"score_head": torch.zeros(1)}, "hps")
    with pytest.raises(GuidedCDError, match=r"visual\.proj has shape \[3, 3\]"):
        load_clip(IMAGE_TEXT_SIZES, whole | {"visual.proj": torch.zeros(3, 3)}, "hps")
    with pytest.raises(GuidedCDError, match=r"internv2: .*`reward=.hps:FILE.`"):
        load_internvideo2(VIDEO_TEXT_SIZES, whole)
    with pytest.raises(GuidedCDError, match=r"unexpected vision_encoder\.extra"):
        state = loading.open_weights(files / "video.pt", "internv2")
        load_internvideo2(VIDEO_TEXT_SIZES, {**state, "vision_encoder.extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "config", "publisher", "file"),
    [
        ("hps", HPSConfig, "xswu/HPSv2", "HPS_v2.1_compressed.pt"),
        ("clip", CLIPConfig, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_model.safetensors"),
        (
            "internv2",
            InternV2Config,
            "OpenGVLab/InternVideo2-Stage2_1B-224p-f4",
            "InternVideo2-stage2_1b-224p-f4.pt",
        ),
    ],
)
@pytest.mark.parametrize("path", ["auto", "nowhere.pt"])
def test_a_missing_file_is_an_error_with_the_download(name, config, publisher, file, path, tmp_path, monkeypatch):
    """Without the weights there is one line with publisher, file name, command and place; nothing is downloaded."""
    _offline(tmp_path, monkeypatch)
    kind = {"hps": HPS, "clip": CLIPScore, "internv2": InternV2}[name]
    with pytest.raises(GuidedCDError) as caught:
        kind(config(path=path))
    message = str(caught.value)
    assert "\n" not in message
    assert f"hf download {publisher} {file} --local-dir {tmp_path / 'cache'}" in message
    assert message.startswith(f"{name}: ")


def test_a_missing_vocabulary_is_an_error_with_the_download(files, tmp_path, monkeypatch):
    """InternVideo2 also needs BERT's vocabulary, which has an error of its own."""
    _offline(tmp_path, monkeypatch)
    with pytest.raises(GuidedCDError, match=r"vocabulary: .*hf download google-bert/bert-large-uncased vocab\.txt"):
        InternV2(InternV2Config(path=str(files / "video.pt"), arch=str(files / "video.json")))


def test_auto_searches_the_cache_folder_and_the_original_folders(files, tmp_path, monkeypatch):
    """`auto` takes the file from GUIDEDCD_CACHE first, then from where the model's own code keeps it."""
    _offline(tmp_path, monkeypatch)
    legacy, cached = tmp_path / ".cache" / "hpsv2", tmp_path / "cache"
    for folder, winner in ((legacy, legacy), (cached, cached)):
        folder.mkdir(parents=True)
        (folder / "HPS_v2.1_compressed.pt").symlink_to(files / "clip.pt")
        published = attrs.evolve(HPS_PUBLISHED, folders=("~/.cache/hpsv2",))
        assert find("auto", published, "hps") == winner / "HPS_v2.1_compressed.pt"
    reward = HPS(HPSConfig(path="auto", arch=str(files / "clip.json")))
    assert torch.equal(reward(video(), CAPTIONS), image_text(files)(video(), CAPTIONS))


def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home and cache, and no hub."""
    import huggingface_hub

    monkeypatch.setenv("GUIDEDCD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


def test_files_of_common_names_have_folders_of_their_own(tmp_path, monkeypatch):
    """A model.safetensors in the cache is taken from the folder of its model only: it may be anybody's."""
    _offline(tmp_path, monkeypatch)
    published = Published(repo="some/Score_v1", files=("model.safetensors",), size="1 GB")
    (tmp_path / "cache" / "Score_v1").mkdir(parents=True)
    (tmp_path / "cache" / "model.safetensors").touch()
    with pytest.raises(GuidedCDError, match=r"--local-dir \S+cache/Score_v1"):
        find("auto", published, "score")
    (tmp_path / "cache" / "Score_v1" / "model.safetensors").touch()
    assert find("auto", published, "score").parent.name == "Score_v1"


def test_open_clip_models_are_known_by_name(tmp_path, monkeypatch):
    """NAME/TAG gives sizes, activation and publisher; what is no plain CLIP, and unknown tags, are refused."""
    _offline(tmp_path, monkeypatch)
    small = CLIPScore(CLIPConfig(path="auto", arch="ViT-B-32/openai"), weights=False)
    assert small.image_size == 224 and small.model.visual.conv1.kernel_size == (32, 32)
    assert type(small.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    for arch, message in (
        ("ViT-B-32/laion2b_s34b_b79k", "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K open_clip_model.safetensors"),
        ("ViT-B-32", "ViT-B-32 has no weights ''; write ViT-B-32/TAG with one of: openai"),
        ("ViT-B-32/none", "no weights 'none'"),
        ("ViT-SO400M-14-SigLIP/webli", "other towers"),
    ):
        with pytest.raises(GuidedCDError, match=message):
            CLIPScore(CLIPConfig(path="auto", arch=arch))


def test_code_in_a_rewards_file_is_refused_and_not_run(tmp_path):
    """The sentence names the code and gives no advice to run it; nothing was executed."""

    class Bomb:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"state_dict": {"a": torch.zeros(2)}, "extra": Bomb()}, tmp_path / "x.pt")
    with pytest.raises(GuidedCDError, match=r"^hps: \S+x.pt holds code \([\w.]*exec\)") as caught:
        loading.open_weights(tmp_path / "x.pt", "hps")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_weights_are_refused(tmp_path):
    """Damaged files, and files whose loading could run code, are refused in one line."""
    (tmp_path / "a.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "b.safetensors").write_bytes(b"not a checkpoint")
    torch.save(HPSConfig(), tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "d.pt")
    for name in "a.pt", "b.safetensors", "c.pt", "d.pt":
        with pytest.raises(GuidedCDError, match=name) as caught:
            loading.open_weights(tmp_path / name, "hps")
        assert "\n" not in str(caught.value)


def test_architectures_that_cannot_be_read_are_refused(files, tmp_path):
    """A missing or malformed arch file is one sentence."""
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "odd.json").write_text(json.dumps({**IMAGE_TEXT_SIZES, "vision_cfg": {"hight": 28}}))
    (tmp_path / "half.json").write_text(json.dumps({"embed_dim": 16}))
    named = [str(tmp_path / f"{name}.json") for name in ("list", "odd", "half")]
    for arch in ("nowhere.json", *named, str(files / "vocab.txt")):
        with pytest.raises(GuidedCDError, match="architecture"):
            HPS(HPSConfig(path=str(files / "clip.pt"), arch=arch))


# Texts


def test_clip_tokens_are_the_published_ids():
    """Ids, counts and truncation of 32 difficult captions are open_clip's and HPSv2's, exactly."""
    golden = json.loads((DATA / "tokens.json").read_text(encoding="utf-8"))
    tokens = ClipTokens(golden["context_length"])
    for row in golden["rows"]:
        ids, mask = tokens([row["caption"]])
        assert ids[0].tolist() == row["open_clip_ids"]
        assert tokens.count(row["caption"]) == row["n_tokens_untruncated_with_sot_eot"]
        assert mask.sum() == min(tokens.count(row["caption"]), tokens.max_tokens) or "<end_of_text>" in row["caption"]


def test_bert_tokens_follow_the_uncased_rules(files):
    """Lower case, no accents, single Chinese characters, word pieces, [UNK]; padded and cut to the fixed length."""
    tokens = BertTokens(files / "vocab.txt", 8)
    ids, mask = tokens(["A RED cat walks!", "Café 猫 dog", "a a a a a a a a a a"])
    named = [[WORDS[i] for i in row] for row in ids.tolist()]
    assert named[0] == ["[CLS]", "a", "red", "cat", "walk", "##s", "!", "[SEP]"]
    assert named[1] == ["[CLS]", "cafe", "猫", "[UNK]", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert named[2] == ["[CLS]", *["a"] * 6, "[SEP]"]
    assert mask.sum(1).tolist() == [8, 5, 8]
    assert [tokens.count(text) for text in ("a red cat", "", "a a a a a a a a a a")] == [5, 2, 12]


def test_interpolated_positions_are_the_published_ones():
    """Position tables resized in time and space agree with the reference to 1e-6."""
    results = parity._positions(DATA / "pos_embed_interp.safetensors")
    golden = load_file(DATA / "pos_embed_interp.safetensors")
    assert results.keys() == golden.keys()
    assert all((results[key] - golden[key]).abs().max() < 1e-6 for key in golden)


def test_remembered_features_are_bounded():
    """The oldest captions are forgotten first, and only beyond the limit."""
    calls = []
    memory = CaptionFeatures(lambda caption: calls.append(caption) or torch.tensor([float(len(caption))]), size=2)
    for caption in ("a", "bb", "a", "ccc", "a", "bb"):
        memory([caption])
    assert calls == ["a", "bb", "ccc", "bb"]
