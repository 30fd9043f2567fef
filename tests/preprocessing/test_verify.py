"""Checks and descriptions of stores."""

from __future__ import annotations

from functools import partial

import pytest
from safetensors.torch import load_file, save_file
from toy_plugin import make as toy_run

from guidedcd.cli import main
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, write_json
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.shards import shard_name
from guidedcd.preprocessing.show import show_store
from guidedcd.preprocessing.verify import verify_store

make = partial(toy_run, replace=("energy",))


def test_verify_finds_a_flipped_bit(toy, tmp_path, capsys):
    """One bit of one shard, or its missing file, is found and named, with exit status 2; a whole store passes."""
    run = make(energy={"pta": {}}, solver={"steps": 4}, preprocess={"draws_per_video": 2})
    folder = preprocess(run, store_folder=tmp_path / "s")
    result = verify_store(folder, samples=9)
    assert (result["shards"], result["missing"], len(result["samples"])) == (3, 0, 5)
    assert max(error for one in result["samples"].values() for error in one.values()) < 1e-4

    path = folder / f"{shard_name(1)}.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged \(its checksum differs\)\. Delete"):
        verify_store(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["store", "verify", str(folder), "--samples", "0"])
    assert stopped.value.code == 2
    assert "shard-00001.safetensors is damaged" in capsys.readouterr().err
    (folder / f"{shard_name(2)}.safetensors").unlink()
    with pytest.raises(GuidedCDError, match=r"shard-00001.*, and so are shard-00002"):
        verify_store(folder)


@pytest.mark.parametrize("key", ["cond_output", "score.pta", "z0"])
def test_verify_compares_with_the_teacher(toy, tmp_path, key):
    """Values that differ from the teacher's predictions are an error that names the shard, despite right checksums."""
    run = make(energy={"pta": {}}, preprocess={"videos": 2})
    folder = preprocess(run, store_folder=tmp_path / "s")
    owner = next((folder / "scores").iterdir()) if key.startswith("score") else folder
    path, about = (owner / f"{shard_name(0)}.{ending}" for ending in ("safetensors", "json"))
    tensors, name = load_file(path), key.partition(".")[0]
    tensors[name] = tensors[name] * 1.2
    save_file(tensors, path)
    write_json(about, {**read_json(about), "sha256": file_digest(path)})

    verify_store(folder)
    with pytest.raises(GuidedCDError, match=rf"shard-00000.*differs from the teacher.*{key} differs by 0\.1"):
        verify_store(folder, samples=2)


def test_store_show_prints_contents_and_missing_shards(toy, tmp_path, capsys):
    """`store show` prints teacher, energies, videos and missing shards, without loading the teacher."""
    folder = preprocess(make(), store_folder=tmp_path / "s", shard=(0, 2))
    capsys.readouterr()
    show_store(folder)
    shown = capsys.readouterr().out

    for text in ("toy", "(inversion)", "10 steps", "3 of 5", "2 of 3 shards", "missing   1", "30 % of the"):
        assert text in shown
    with pytest.raises(GuidedCDError, match="is no latent store"):
        show_store(tmp_path)
