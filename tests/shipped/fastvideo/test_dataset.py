"""The dataset `fastvideo`: rows as clips, and a sentence for everything that is wrong with a file."""

from __future__ import annotations

import os
import sys
from unittest import SkipTest

import attrs
import fastvideo_files
import pytest
import torch
from guidedcd_fastvideo import FastVideoConfig
from guidedcd_fastvideo.dataset import FastVideo

from guidedcd.config.kinds import Chosen
from guidedcd.data.clips import ClipError, sample_of
from guidedcd.data.contract import check_sizes, opened
from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.testing import checks
from guidedcd.testing.datasets import RULES

pytest.importorskip("pyarrow")

GEOMETRY = Geometry(frames=9, height=32, width=48, fps=16, channels=4, compression=8, temporal_compression=4)
"""A size whose latents are (4, 3, 4, 6)."""


def latents(number: int = 0, shape: tuple[int, ...] = (4, 3, 4, 6)) -> torch.Tensor:
    """Latents of a clip."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def embeds(tokens: int = 5) -> torch.Tensor:
    """An embedded caption."""
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(tokens))


def clips_of(folder, geometry=GEOMETRY):
    """The clips of a folder, as a run reads them."""
    return opened(Chosen("fastvideo", FastVideoConfig(path=folder)), geometry)


def test_rows_of_all_files_become_clips(tmp_path):
    """Rows of files at any depth are clips with the stored latents, the caption's tokens and tags, in order."""
    for file, numbers in (("rank_0/worker_0/data_chunk_0", range(5)), ("rank_0/worker_1/data_chunk_0", range(5, 7))):
        rows = [fastvideo_files.row(f"clip{n}", latents(n), embeds(n + 1), f"caption {n}") for n in numbers]
        fastvideo_files.write(tmp_path / f"{file}.parquet", rows)

    clips = clips_of(tmp_path)

    assert len(clips) == 7
    assert [clips[n].id for n in (0, 4, 5)] == [
        "rank_0/worker_0/data_chunk_0/clip0",
        "rank_0/worker_0/data_chunk_0/clip4",
        "rank_0/worker_1/data_chunk_0/clip5",
    ]
    for number in (3, 6, 0):
        clip = clips[number]
        assert clip.caption == f"caption {number}" and clip.video is None
        assert torch.equal(clip.latents, latents(number)) and torch.equal(clip.prompt_embeds, embeds(number + 1))
        assert clips.sample(number) == sample_of(clip)
        assert clip.tags == {"file_name": f"clip{number}", "media_type": "video", "duration_sec": 1.0, "fps": 16.0}


def test_older_rows_and_half_precision_are_read(tmp_path):
    """An embedding with a dimension of the batch, float16 latents, names of torch and repeated ids are read."""
    half = latents().half()
    rows = [
        fastvideo_files.row("a", half, embeds()[None], vae_latent_dtype="torch.float16"),
        fastvideo_files.row("a", latents(1), embeds()),
        fastvideo_files.row("", latents(2), embeds()),
    ]
    clips = clips_of(fastvideo_files.write(tmp_path / "data.parquet", rows))
    assert torch.equal(clips[0].latents, half.float()) and torch.equal(clips[0].prompt_embeds, embeds())
    assert [clip.id for clip in clips] == ["data/a", "data/a#1", "data/#2"]


BAD_ROWS = {
    "no caption": ({"caption": " "}, "data/a: has no caption"),
    "no latents": ({"vae_latent_bytes": b"", "vae_latent_shape": []}, "data/a: has no vae latent"),
    "cut bytes": ({"vae_latent_bytes": b"abc"}, "data/a: its vae latent has 3 bytes, which are no float32 of shape"),
    "a dtype": ({"vae_latent_dtype": "int7"}, "data/a: its vae latent has the dtype 'int7'; known are float32"),
    "a text": ({"text_embedding_shape": [1, 5, 4, 4]}, r"data/a: its text embedding is \(1, 5, 4, 4\)"),
    "another size": (
        {"vae_latent_shape": [4, 3, 6, 4]},
        r"data/a: its latents are \(4, 3, 6, 4\), and this teacher's are \(4, 3, 4, 6\)",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_a_clip_error_with_its_id(tmp_path, case):
    """A row that cannot be used is skipped by a run with one sentence, and the rows beside it are read."""
    changes, sentence = BAD_ROWS[case]
    rows = [fastvideo_files.row("a", latents(), embeds(), **changes), fastvideo_files.row("b", latents(1), embeds())]
    fastvideo_files.write(tmp_path / "data.parquet", rows)
    clips = clips_of(tmp_path)
    with pytest.raises(ClipError, match=sentence):
        clips[0]
    assert torch.equal(clips[1].latents, latents(1))


def test_numbers_that_are_not_finite_skip_a_clip(tmp_path):
    """Latents with a NaN are an unusable clip."""
    bad = latents()
    bad[0, 0, 0, 0] = float("nan")
    fastvideo_files.write(tmp_path / "data.parquet", [fastvideo_files.row("a", bad, embeds())])
    with pytest.raises(ClipError, match="clip 'data/a' has latents that are not finite"):
        clips_of(tmp_path)[0]


def test_a_damaged_file_is_one_unusable_clip(tmp_path):
    """A file that is no Parquet, or was cut off, counts as one clip with the reason; other files are read."""
    good = fastvideo_files.write(tmp_path / "b.parquet", [fastvideo_files.row("x", latents(), embeds())])
    (tmp_path / "a.parquet").write_bytes(good.read_bytes()[:-40])
    clips = clips_of(tmp_path)
    assert len(clips) == 2 and clips[1].id == "b/x"
    with pytest.raises(ClipError, match="a: the file is damaged or no Parquet file"):
        clips[0]


def test_a_pipe_is_an_unusable_clip(tmp_path):
    """A named pipe, which would wait for a writer, counts as a file that cannot be read."""
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(ClipError, match="it is no regular file"):
        clips_of(tmp_path)[0]


def test_damaged_pages_are_an_unusable_clip(tmp_path):
    """Bytes that changed inside a file of intact structure are reported with the clip's id, not as a traceback."""
    path = fastvideo_files.write(tmp_path / "a.parquet", [fastvideo_files.row("x", latents(), embeds())])
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(ClipError, match="the file is damaged"):
        clips_of(tmp_path)[0]


def test_latents_of_another_autoencoder_are_refused(tmp_path):
    """Latents of 48 channels for a teacher with 16 are one sentence that names both autoencoders."""
    shape = (48, 3, 2, 3)
    fastvideo_files.write(tmp_path / "a.parquet", [fastvideo_files.row("x", latents(0, shape), embeds())])
    with pytest.raises(
        GuidedCDError, match=r"48 channels, and this teacher's have 16: another autoencoder .* 5B has 48"
    ):
        clips_of(tmp_path, attrs.evolve(GEOMETRY, channels=16))


def test_latents_of_another_size_are_refused(tmp_path):
    """If no clip has the teacher's size, the error states that of the data in frames and pixels."""
    rows = [fastvideo_files.row("x", latents(0, (4, 5, 4, 6)), embeds())]
    fastvideo_files.write(tmp_path / "a.parquet", rows)
    with pytest.raises(
        GuidedCDError, match="latents of 17 frames of 32x48, and .* 9 frames of 32x48: set the teacher's"
    ):
        check_sizes(clips_of(tmp_path), GEOMETRY)
    fastvideo_files.write(tmp_path / "b.parquet", [fastvideo_files.row("y", latents(), embeds())])
    check_sizes(clips_of(tmp_path), GEOMETRY)


def test_missing_columns_files_and_folders(tmp_path):
    """A file of another schema, an empty folder, a missing one and no folder at all are one sentence each."""
    with pytest.raises(GuidedCDError, match="there is no .parquet file in"):
        clips_of(tmp_path)
    rows = [fastvideo_files.row("x", latents(), embeds())]
    fastvideo_files.write(tmp_path / "a.parquet", rows, without=("vae_latent_bytes", "caption"))
    with pytest.raises(GuidedCDError, match="a.parquet has no column vae_latent_bytes, caption; FastVideo's"):
        clips_of(tmp_path)
    with pytest.raises(GuidedCDError, match="there is no folder .*nowhere"):
        clips_of(tmp_path / "nowhere")
    with pytest.raises(GuidedCDError, match="dataset .fastvideo. needs its folder: .*fastvideo:FOLDER"):
        opened(Chosen("fastvideo", FastVideoConfig()), GEOMETRY)


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    """Where pyarrow is not installed, one sentence states the command that installs it."""
    fastvideo_files.write(tmp_path / "a.parquet", [fastvideo_files.row("x", latents(), embeds())])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        GuidedCDError, match=r"needs pyarrow, which is not installed: pip install 'guidedcd\[parquet\]'"
    ):
        clips_of(tmp_path)


def test_the_fingerprint_changes_with_the_files(tmp_path):
    """A dataset's fingerprint is that of its files, wherever the folder is."""
    rows = [fastvideo_files.row("x", latents(), embeds())]
    path = fastvideo_files.write(tmp_path / "data" / "a.parquet", rows)
    dataset = FastVideo(FastVideoConfig(path=path.parent))
    before = dataset.fingerprint()
    fastvideo_files.write(path.parent / "b.parquet", rows)
    assert dataset.fingerprint() != before
    (path.parent / "b.parquet").unlink()
    assert dataset.fingerprint() == before


def test_the_conformance_checks_leave_latents_to_a_run(tmp_path):
    """`guidedcd plugins check` skips a dataset of latents with the reason, and does not call it broken."""
    fastvideo_files.write(tmp_path / "a.parquet", [fastvideo_files.row("x", latents(), embeds())])
    skipped = 0
    for check in checks("dataset", "fastvideo", config=FastVideoConfig(path=tmp_path)):
        try:
            check()
        except SkipTest as reason:
            skipped += "its clips are latents" in str(reason)
    assert skipped == len(RULES)
