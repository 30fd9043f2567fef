"""Files that are no checkpoints, or more than that."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.reading import exists, open_state


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    """The message names the code; nothing of it was executed."""
    target = tmp_path / "ran"
    torch.save({"a": torch.zeros(2), "b": Bomb(target)}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)

    with pytest.raises(GuidedCDError, match=r"holds code \([\w.]*exec\).*refused"):
        open_state(tmp_path / "x.ckpt")
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_bare_pickle_is_refused_and_not_run(tmp_path):
    """Also without PyTorch's container, in any protocol."""
    target = tmp_path / "ran"
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"b": Bomb(target)}, protocol=protocol))
        with pytest.raises(GuidedCDError, match="refused|no checkpoint"):
            open_state(tmp_path / "x.pkl")
    assert not target.exists()


@pytest.mark.parametrize("name", ["x.ckpt", "old.ckpt", "x.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_files_are_errors_with_their_size(tmp_path, name, share):
    """Every format, cut anywhere, is one line with the size."""
    state = {f"layer{i}.weight": torch.randn(20, 20) for i in range(20)}
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"state_dict": state}, tmp_path / name, _use_new_zipfile_serialization=name == "x.ckpt")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])

    with pytest.raises(GuidedCDError, match=r"truncated or is no checkpoint \(.* bytes"):
        open_state(tmp_path / name)


def test_errors_of_other_files_name_their_content(tmp_path):
    """Text, a tensor, numbers, a list."""
    (tmp_path / "text.pt").write_text("not a checkpoint at all, only some words\n" * 9)
    with pytest.raises(GuidedCDError, match="no checkpoint"):
        open_state(tmp_path / "text.pt")
    for value, message in (
        (torch.zeros(2), "holds Tensor"),
        ({"epoch": 1}, "'epoch' is not a tensor"),
        ([torch.zeros(1), torch.zeros(1)], "list of 2 tensors.*`student`"),
    ):
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises(GuidedCDError, match=message):
            open_state(tmp_path / "x.pt")


def test_missing_files_and_folders_are_errors_with_a_remedy(tmp_path):
    """The error of a missing file states where to get it, that of a diffusers folder which loader reads it."""
    with pytest.raises(GuidedCDError, match="is not at .*: from there"):
        exists(tmp_path / "model.ckpt", "the model", "from there")
    (tmp_path / "unet").mkdir()
    with pytest.raises(GuidedCDError, match='`teacher="unet3d'):
        exists(tmp_path, "the model", "from there")
    with pytest.raises(GuidedCDError, match="does not exist"):
        open_state(tmp_path / "nothing.pt")
