"""Folders and options that the teachers with transformers refuse, each in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from guidedcd_dits import WanConfig
from safetensors.torch import load_file, save_file

import guidedcd
from guidedcd.config.kinds import Chosen
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import hub
from guidedcd.models.student import Student

EULER = {"_class_name": "EulerDiscreteScheduler"}
HEUN = {"_class_name": "HeunDiscreteScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def refused(what: str, match: str, **size: object) -> str:
    """The error of a teacher that cannot be loaded: one sentence or two, on one line."""
    with pytest.raises(GuidedCDError, match=match) as caught:
        guidedcd.load_teacher(what, device="cpu", size=size)
    text = str(caught.value)
    assert "\n" not in text and text.rstrip().endswith((".", ")")) and len(text) < 700
    return text


def changed(one, tmp_path, file: str, **values: object) -> str:
    """A copy of a folder with other values in a JSON file; None removes a key."""
    folder = tmp_path / "changed"
    shutil.copytree(one.folder, folder)
    path = folder / file
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return f"{one.family}:{folder}"


def test_a_missing_folder_names_the_download(monkeypatch):
    """A path is no hub id; without access to the hub, the error has the command that downloads."""
    refused("wan:/nowhere/wan", "there is no folder /nowhere/wan")
    refused("wan:nowhere", "there is no folder nowhere")
    monkeypatch.setattr(hub, "why_not", lambda: "huggingface.co cannot be reached")
    for teacher, repository in (("wan", "acme/wan"), ("cogvideox", "acme/cog"), ("ltx", "acme/ltx")):
        name = repository.partition("/")[2]
        command = f"hf download {repository} --local-dir {name}; then --teacher {teacher}:{name}"
        assert command in refused(f"{teacher}:{repository}", "cannot be reached")


def test_a_file_is_no_folder(tmp_path):
    """A single file of weights is refused."""
    (tmp_path / "wan.safetensors").touch()
    refused(f"wan:{tmp_path / 'wan.safetensors'}", "is a file")
    refused(f"wan:{tmp_path}", r"model_index.json")


def test_another_family_names_its_teacher(tiny):
    """A folder of another family is refused with the teacher that reads it."""
    refused(f"wan:{tiny('cogvideox', 'small').folder}", "is a CogVideoXPipeline: use .*cogvideox:")
    refused(f"cogvideox:{tiny('ltx', 'small').folder}", "is a LTXPipeline: use .*ltx:")
    refused(f"ltx:{tiny('wan', 'small').folder}", "is a WanPipeline: use .*wan:")


@pytest.mark.parametrize(
    ("family", "name", "size", "match"),
    [
        ("wan", "small", {"frames": 8}, r"1, 5, 9, \.\.\. frames, not 8. Use 5 or 9"),
        ("cogvideox", "small", {"frames": 5}, r"1, 9, 17, \.\.\. frames, not 5. Use 1 or 9"),
        ("ltx", "small", {"frames": 16}, r"frames, not 16"),
        ("wan", "small", {"height": 40}, "height must be a multiple of 16"),
        ("wan", "tokens", {"width": 48}, "width must be a multiple of 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny, family, name, size, match):
    """A number of frames or a side that autoencoder and patches cannot take is refused, with one that they can."""
    refused(f"{family}:{tiny(family, name).folder}", match, **size)


def test_usual_sizes_that_do_not_fit_are_rounded(tiny):
    """Without options the videos have the pipeline's usual size."""
    geometry = guidedcd.load_teacher(f"wan:{tiny('wan', 'small').folder}", device="cpu").teacher.geometry
    assert (geometry.frames, geometry.height, geometry.width, geometry.fps) == (81, 480, 832, 16.0)
    geometry = guidedcd.load_teacher(f"wan:{tiny('wan', 'tokens').folder}", device="cpu").teacher.geometry
    assert (geometry.frames, geometry.height, geometry.width, geometry.fps) == (121, 704, 1280, 24.0)


def test_pixels_of_another_size_are_refused(tiny):
    """encode refuses a number of frames that the autoencoder would cut silently."""
    teacher = tiny("wan", "small").teacher.teacher
    with pytest.raises(GuidedCDError, match="1 more than a multiple of 4"):
        teacher.encode(torch.zeros(1, 8, 3, 32, 48))
    with pytest.raises(GuidedCDError, match="multiples of 8"):
        teacher.encode(torch.zeros(1, 5, 3, 30, 48))


def test_missing_experts_are_errors(tiny, tmp_path):
    """The low expert needs two, a listed expert must be there, and a boundary without a second expert is ignored."""
    one, two = tiny("wan", "small"), tiny("wan", "experts")

    def low(folder):
        return Chosen("wan", WanConfig(path=str(folder), expert="low"))

    with pytest.raises(GuidedCDError, match="has one expert only: its model_index.json names no transformer_2"):
        guidedcd.load_teacher(low(one.folder), device="cpu")
    teacher = guidedcd.load_teacher(low(two.folder), device="cpu").teacher
    high = two.teacher.teacher
    assert torch.equal(teacher.network.proj_out.weight, high.other.proj_out.weight)
    assert teacher.fingerprint() != high.fingerprint()
    # sigma 0.7 of a shift of 3 lies at u = 0.4375, where the first of 1000 timesteps is the cleanest
    assert high.noise_range == (pytest.approx(0.4375, abs=2e-3), 1.0)
    assert teacher.noise_range == (0.0, high.noise_range[0]) and one.teacher.teacher.noise_range == (0.0, 1.0)

    with_ratio = changed(one, tmp_path, "model_index.json", boundary_ratio=0.875)
    assert guidedcd.load_teacher(with_ratio, device="cpu").teacher.other is None
    folder = tmp_path / "without"
    shutil.copytree(two.folder, folder)
    shutil.rmtree(folder / "transformer_2")
    refused(f"wan:{folder}", "has no transformer_2/, which model_index.json names")


def test_an_expert_predicts_at_its_own_times(tiny):
    """In one batch each row is predicted by the expert of its time; a student replaces one, and learns there."""
    teacher = tiny("wan", "experts").teacher.teacher
    z = torch.randn(3, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([999, 100, 700]), teacher.embed(["a", "red", "ball"])
    times = teacher.schedule.network_time(t)
    student = Student(teacher).eval()
    with torch.no_grad():
        mixed = teacher.net(z, t, cond)
        for row, time in enumerate(times):
            expert = teacher.network if time >= teacher.boundary else teacher.other
            own = teacher.predict(expert, z[row, None], time[None], {"prompt_embeds": cond["prompt_embeds"][row, None]})
            torch.testing.assert_close(mixed[row, None], own, rtol=1e-5, atol=1e-5)
        assert torch.equal(student(z, t, cond, torch.ones(3)), mixed)
        low = torch.full((3,), 100)
        assert torch.equal(student(z, low, cond, torch.ones(3)), teacher.net(z, low, cond))
    for at, learns in ((low, False), (t, True)):
        student.zero_grad()
        student(z, at, cond, torch.ones(3)).square().mean().backward()
        gradients = torch.stack([weight.grad.abs().max() for weight in student.trainable])
        assert bool((gradients > 0).any()) == learns


@pytest.mark.parametrize(
    ("file", "values", "match"),
    [
        ("model_index.json", {"_class_name": None}, "names no pipeline"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline: wan reads a WanPipeline"),
        ("transformer/config.json", {"_class_name": None}, "names no class"),
        ("transformer/config.json", {"_class_name": "UNet3DConditionModel"}, "must be a WanTransformer3DModel"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "must be a AutoencoderKLWan"),
        ("scheduler/scheduler_config.json", {"_class_name": None}, "names no class"),
        ("scheduler/scheduler_config.json", {"_class_name": "Nothing"}, "which diffusers lacks"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "none of a flow model"),
        ("model_index.json", {"text_encoder": [None, None]}, "names no text_encoder"),
        ("transformer/config.json", {"num_layers": 3}, "lacks 27 weights that its config.json describes"),
        ("transformer/config.json", {"ffn_dim": 48}, "cannot read"),
        ("transformer/config.json", {"num_layers": 1}, r"transformer has 27 weights .* such as blocks\.1\."),
        ("vae/config.json", {"latents_mean": [0.0] * 3}, "latents_mean is .* must be 4 numbers, one"),
        ("vae/config.json", {"latents_std": [1.0, 1.0, 1.0, 0.0]}, "latents_std is .* must be 4 numbers above 0"),
        ("vae/config.json", {"scale_factor_temporal": "x"}, "scale_factor_temporal is 'x'; it must be a number above"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "is no scheduler of flow models"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "must be a number above 0"),
        ("scheduler/scheduler_config.json", {"flow_shift": "x"}, "flow_shift is 'x'; it must be a number above 0"),
        ("scheduler/scheduler_config.json", {"final_sigmas_type": "x"}, "computes no noise levels"),
    ],
)
def test_damaged_folders_are_refused_with_the_file(tiny, tmp_path, file, values, match):
    """A folder whose files lack a class, contradict each other or have wrong values is refused with the file."""
    refused(changed(tiny("wan", "small"), tmp_path, file, **values), match)


@pytest.mark.parametrize(
    ("family", "name", "file", "values", "match"),
    [
        ("wan", "experts", "model_index.json", {"boundary_ratio": 1.0}, "must be a number above 0 and below 1"),
        ("wan", "experts", "model_index.json", {"boundary_ratio": "x"}, "boundary_ratio is 'x'"),
        ("cogvideox", "small", "scheduler/scheduler_config.json", EULER, "is 'EulerDiscreteScheduler'; it must be"),
        ("cogvideox", "small", "scheduler/scheduler_config.json", HEUN, "is 'HeunDiscreteScheduler'; it must be"),
        ("cogvideox", "small", "scheduler/scheduler_config.json", FLOW, "is 'FlowMatchEulerDiscreteScheduler'"),
        ("cogvideox", "small", "transformer/config.json", {"max_text_seq_length": 0}, "max_text_seq_length is 0"),
        ("cogvideox", "small", "vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0; it must be"),
        ("ltx", "small", "transformer/config.json", {"patch_size_t": 2}, "patch_size_t is 2; it must be 1"),
        ("ltx", "small", "vae/config.json", {"scaling_factor": "x"}, "scaling_factor is 'x'; it must be"),
        ("ltx", "dynamic", "scheduler/scheduler_config.json", {"base_shift": "x"}, "base_shift is 'x'"),
        ("ltx", "dynamic", "scheduler/scheduler_config.json", {"max_image_seq_len": 16}, "than base_image_seq_len"),
        ("ltx", "dynamic", "scheduler/scheduler_config.json", {"shift_terminal": 2.0}, "noise levels from 0 to"),
        ("ltx", "dynamic", "scheduler/scheduler_config.json", {"use_dynamic_shifting": "x"}, "must be true or false"),
    ],
)
def test_values_with_which_a_pipeline_cannot_run_are_refused(tiny, tmp_path, family, name, file, values, match):
    """A value that the family's pipeline cannot use is refused with the file, in one sentence."""
    one = tiny(family, name)
    assert f"{tmp_path / 'changed' / file}" in refused(changed(one, tmp_path, file, **values), match, **one.size)


def test_null_is_refused_where_a_number_must_be(tiny, tmp_path):
    """An entry that is null in the scheduler's file is refused; diffusers would compute with it."""
    folder = Path(changed(tiny("ltx", "dynamic"), tmp_path, "model_index.json").partition(":")[2])
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_image_seq_len": None}))
    refused(f"ltx:{folder}", "base_image_seq_len is None; it must be a number")


def test_models_from_images_to_videos_are_refused(tmp_path):
    """CogVideoX 1.5 I2V has an input that no prompt fills; learned positions fit one height and width."""
    rotary = {"use_rotary_positional_embeddings": True}
    size = {"frames": 9, "height": 32, "width": 32}
    tiny_pipelines.cogvideox(tmp_path / "offset", transformer={**rotary, "ofs_embed_dim": 8})
    refused(f"cogvideox:{tmp_path / 'offset'}", "ofs_embed_dim is 8; it must be null", **size)
    learned = {**rotary, "use_learned_positional_embeddings": True}
    tiny_pipelines.cogvideox(tmp_path / "learned", transformer=learned)
    guidedcd.load_teacher(f"cogvideox:{tmp_path / 'learned'}", device="cpu", size=size)
    size["height"] = 48
    refused(f"cogvideox:{tmp_path / 'learned'}", "of height 32 and width 32, not 48 and 32", **size)


def test_weights_that_nothing_describes_are_refused_where_they_are_the_models_own(tiny, tmp_path):
    """A weight too many is refused; position tables, a tied embedding and a text decoder are left out, as usual."""
    one, image = tiny("wan", "small"), torch.ones(2)
    folder = tmp_path / "wan"
    shutil.copytree(one.folder, folder)

    def add(part: str, **weights: torch.Tensor) -> None:
        path = next((folder / part).glob("*.safetensors"))
        added = {name: weight.clone() for name, weight in weights.items()}
        save_file({**load_file(path), **added}, path, metadata={"format": "pt"})

    shared = load_file(folder / "text_encoder" / "model.safetensors")["shared.weight"]
    extra = {"encoder.embed_tokens.weight": shared.clone(), "decoder.block.0.weight": image, "lm_head.weight": image}
    add("text_encoder", **extra)
    add("transformer", **{"rope.freqs_cos": image, "blocks.0.attn2.norm_added_q.weight": image})
    guidedcd.load_teacher(f"wan:{folder}", device="cpu", size=one.size)
    add("text_encoder", **{"encoder.block.7.layer.0.weight": image})
    refused(f"wan:{folder}", "text_encoder has 1 weight that .* such as encoder.block.7")
    add("transformer", **{"blocks.9.weight": image})
    refused(f"wan:{folder}", "transformer has 1 weight that .* such as blocks.9")


@pytest.mark.parametrize(
    ("part", "file"),
    [("transformer", "diffusion_pytorch_model.fp16.safetensors"), ("text_encoder", "pytorch_model.bin")],
)
def test_other_files_of_weights_are_refused_with_their_names(tiny, tmp_path, capfd, part, file):
    """Weights as .bin or as a variant are refused with what is there; the libraries log nothing of their own."""
    folder = tmp_path / "wan"
    shutil.copytree(tiny("wan", "small").folder, folder)
    weights = next((folder / part).glob("*.safetensors"))
    weights.rename(weights.with_name(file))
    capfd.readouterr()
    refused(f"wan:{folder}", rf"has neither {weights.name} nor .*, only {file}. Save .*save_pretrained")
    (folder / part / file).unlink()
    refused(f"wan:{folder}", f"{part}/{weights.name} is missing. Copy")
    weights.write_bytes(b"half")
    refused(f"wan:{folder}", part)
    assert "rror" not in "".join(capfd.readouterr())


def test_frames_that_the_autoencoder_would_cut_are_not_encoded(tmp_path):
    """Wan's stock autoencoder encodes 4 frames at a time, also where it compresses 2 of them to one."""
    vae = {"temperal_downsample": [False, False, True], "scale_factor_temporal": 2}
    tiny_pipelines.wan(tmp_path / "wan", vae=vae)
    size = {"frames": 7, "height": 32, "width": 32}
    teacher = guidedcd.load_teacher(f"wan:{tmp_path / 'wan'}", device="cpu", size=size).teacher
    assert teacher.encode(torch.zeros(1, 5, 3, 32, 32)).shape[2] == 3
    with pytest.raises(GuidedCDError, match="would cut 7 frames to 5. Use 5 or 9"):
        teacher.encode(torch.zeros(1, 7, 3, 32, 32))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler", "transformer"])
def test_folders_without_a_part_are_refused(tiny, tmp_path, part):
    """A folder without one of its parts, or with half a file of weights, is refused with the part."""
    one = tiny("wan", "small")
    folder = tmp_path / "wan"
    shutil.copytree(one.folder, folder)
    for path in (folder / part).glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
        refused(f"wan:{folder}", part)
    for path in (folder / part).glob("*config.json"):
        path.rename(tmp_path / path.name)
        refused(f"wan:{folder}", rf"{part}/{path.name} is missing" if part != "tokenizer" else part)
    shutil.rmtree(folder / part)
    refused(f"wan:{folder}", f"has no {part}/, which model_index.json names. Copy or download the folder again")


def test_energies_of_attention_are_refused(tiny):
    """An energy that reads attention over frames is refused in a sentence that names one that works."""
    with pytest.raises(GuidedCDError, match="joins space and time"):
        tiny("wan", "small").teacher.sample(
            "a red ball", energies={"pta": {"relative": 0.1}}, reference=torch.rand(1, 9, 3, 32, 48), steps=2
        )


def test_a_tokenizer_without_padding_is_refused(tiny, tmp_path):
    """A folder whose tokenizer_config.json is empty is refused when it is read, not at the first prompt."""
    folder = tmp_path / "wan"
    shutil.copytree(tiny("wan", "small").folder, folder)
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(GuidedCDError, match="has no padding token"):
        guidedcd.load_teacher(f"wan:{folder}", device="cpu")
