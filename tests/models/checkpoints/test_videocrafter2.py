"""VideoCrafter2's checkpoint on stock modules: names, numbers, files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import unet_state, whole_state, write

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import videocrafter2 as vc2
from guidedcd.models.checkpoints.architecture import Architecture, check_fps
from guidedcd.models.checkpoints.lvdm_unet import PUBLISHED, lvdm_config
from guidedcd.models.checkpoints.reading import View, open_state
from guidedcd.models.guidance_inputs import set_fps
from guidedcd.testing.tiny_networks import LVDM_CONFIG, LVDM_UNET

STUDENT = {**PUBLISHED, "time_cond_proj_dim": 256, "motion_cond_proj_dim": 256}
SIZES = [
    LVDM_UNET,
    {**LVDM_UNET, "channel_mult": [1]},
    {**LVDM_UNET, "channel_mult": [1, 3, 2], "num_res_blocks": 2, "attention_resolutions": [4, 2]},
    {**LVDM_UNET, "model_channels": 64, "attention_resolutions": [2], "num_head_channels": 16, "num_res_blocks": 3},
    {**LVDM_UNET, "attention_resolutions": []},
    {**LVDM_UNET, "use_linear": False},
]


def manifest(shared, name: str) -> dict[str, list[int]]:
    """Key to shape of a full-size file."""
    manifest_of_parts = json.loads((shared().parent / "facts" / "manifests" / f"{name}_manifest.json").read_text())
    return {key: shape for part, keys in manifest_of_parts.items() if part != "_meta" for key, shape in keys.items()}


def test_full_size_names_are_the_published_ones_in_their_order(shared):
    """Every key of the published UNet has a name, in the state dict's own order."""
    keys = [key for key in manifest(shared, "vc2_full") if key.startswith(vc2.PREFIXES["unet"])]

    assert [vc2.PREFIXES["unet"] + key for key in vc2.rename_unet(PUBLISHED)] == keys


def test_full_size_student_names_are_the_published_ones(shared):
    """The three guidance inputs complete the keys of unet_mg.pt."""
    assert set(vc2.rename_unet(STUDENT)) == set(manifest(shared, "t2v_turbo_v2_student"))


def test_full_size_file_fills_the_stock_modules_on_the_meta_device(shared):
    """The whole published file fits the stock classes key by key and shape by shape."""
    state = {key: torch.empty(shape, device="meta") for key, shape in manifest(shared, "vc2_full").items()}
    views, arch = vc2.split(state), Architecture()
    unet = vc2.load_unet(arch.unet, views["unet"], fps=None, device="meta")

    assert sum(p.numel() for p in unet.parameters()) == 1_413_284_420
    assert sum(p.numel() for p in vc2.load_vae(arch, views["vae"], device="meta").parameters()) == 83_653_863
    assert len(vc2.load_text(arch, views["text"], device="meta").state_dict()) == 372


@pytest.mark.parametrize("config", SIZES)
def test_reading_and_writing_a_unet_changes_no_weight(config):
    """Reading a UNet of any size and writing it under its original keys changes no weight and no shape."""
    state = unet_state(config)
    folded = vc2.load_unet(config, state, fps=7)
    weights = {key: state[key] for key in vc2.FPS_KEYS}

    for again in (
        vc2.lvdm_state(config, vc2.load_unet(config, state, fps=None)),
        vc2.lvdm_state(config, folded, fps=7, fps_weights=weights),
    ):
        assert list(again) == list(state)
        for key, value in state.items():
            torch.testing.assert_close(again[key], value, atol=1e-6, rtol=0, msg=key)


@pytest.mark.parametrize("config", SIZES[:4])
def test_the_architecture_follows_from_the_network(config):
    """lvdm's arguments follow from the diffusers configuration."""
    network = vc2.load_unet(config, unet_state(config), fps=8)
    arguments = lvdm_config(network.config)

    assert vc2.unet_arguments(arguments) == vc2.unet_arguments(config)


def test_folded_and_live_frame_rates_agree(network_inputs):
    """A folded frame rate gives what the frame-rate input gives, for each sample of a batch."""
    state = unet_state()
    live = vc2.load_unet(LVDM_UNET, state, fps=None, dtype=torch.float64)
    set_fps(live, torch.tensor([5, 24]))
    mixed = live(**network_inputs).sample

    for i, fps in enumerate((5, 24)):
        folded = vc2.load_unet(LVDM_UNET, state, fps=fps, dtype=torch.float64)
        torch.testing.assert_close(folded(**network_inputs).sample[i], mixed[i], atol=1e-12, rtol=0)


def test_a_live_frame_rate_is_trainable_and_must_fit_the_batch(network_inputs):
    """Gradients reach the frame-rate MLP under its original name; a wrong number of rates is refused."""
    live = vc2.load_unet(LVDM_UNET, unet_state(), fps=None, dtype=torch.float64)
    live(**network_inputs).sample.sum().backward()
    named = {vc2.lvdm_name(LVDM_UNET)[name]: p.grad for name, p in live.named_parameters()}

    assert all(grad is not None for grad in named.values())
    assert named["fps_embedding.0.weight"].abs().sum() > 0
    set_fps(live, torch.tensor([8, 8, 8]))
    with pytest.raises(ValueError, match="3 values for a batch of 2"):
        live(**network_inputs)


def test_a_folded_network_has_no_frame_rate_to_set():
    """Setting the frame rate of a folded network is a mistake, not silence."""
    with pytest.raises(ValueError, match="folded"):
        set_fps(vc2.load_unet(LVDM_UNET, unet_state(), fps=8), 16)


@pytest.mark.parametrize("name", ["vc2_tiny"])
def test_numbers_are_the_reference_ones_in_float32(shared, name):
    """UNet, autoencoder and text tower give the original code's outputs in single precision."""
    folder = shared("videocrafter2", name)
    io = load_file(folder / "io.safetensors")
    parts = vc2.load(folder / "model.safetensors", fps=8, arch=Architecture.read(folder / "config.json"))
    t = io["unet.t_pair"][:1]
    with torch.no_grad():
        tensors = {
            f"out.unet.eps_t{int(t)}_fps8": parts.unet(io["unet.x"], t.expand(2), io["unet.context"]).sample,
            "out.vae.mean": parts.vae.encode(io["vae.image"]).latent_dist.mean,
            "out.vae.decode_z": parts.vae.decode(io["vae.z"]).sample,
            "out.text.embedding": parts.text(input_ids=io["text.tokens"]).last_hidden_state,
        }

    for key, value in tensors.items():
        torch.testing.assert_close(value, io[key], atol=2e-5, rtol=0, msg=key)


def test_every_container_and_format_is_read(tmp_path):
    """state_dict, DeepSpeed's module, bare and safetensors hold the same checkpoint."""
    state = {key: value.contiguous() for key, value in whole_state().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.ckpt")
    torch.save({"module": {f"_forward_module.{key}": value for key, value in state.items()}}, tmp_path / "b.ckpt")
    torch.save(state, tmp_path / "c.ckpt")
    torch.save({"state_dict": state}, tmp_path / "d.ckpt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "e.safetensors")
    (tmp_path / "f.ckpt").write_bytes((tmp_path / "e.safetensors").read_bytes())

    for path in sorted(tmp_path.iterdir()):
        content = open_state(path)
        assert set(content) == set(state), path
        assert all(torch.equal(content[key], value) for key, value in state.items()), path


def test_half_precision_files_are_read_and_folded_once(tmp_path, network_inputs):
    """Weights stored in float16 are upcast; a float16 network's fold is rounded once, from float64."""
    state = {key: value.half() for key, value in unet_state().items()}
    constant = vc2.fps_vector(state, 8)
    unet = vc2.load_unet(LVDM_UNET, state, fps=8, dtype=torch.float16)
    expected = (state["time_embed.2.bias"].double() + constant).half()

    assert torch.equal(unet.time_embedding.linear_2.bias.data, expected)
    assert vc2.load_unet(LVDM_UNET, state, fps=8).dtype == torch.float32


def test_a_folded_file_maps_to_disk_until_it_is_copied(tmp_path):
    """Parameters do not share memory with the file: overwriting the file later does not change them."""
    path, config = write(tmp_path)
    parts = vc2.load(path, fps=8, arch=Architecture.read(config))
    before = parts.vae.quant_conv.weight.clone()
    with open(path, "r+b") as handle:
        handle.write(b"\0" * path.stat().st_size)

    assert torch.equal(parts.vae.quant_conv.weight, before)


def test_missing_and_unexpected_keys_are_named(tmp_path):
    """The first of them are in the message."""
    state = unet_state()
    del state["out.2.bias"]
    state["extra.weight"] = torch.zeros(1)

    with pytest.raises(GuidedCDError, match=r"missing out\.2\.bias; unexpected extra\.weight"):
        vc2.load_unet(LVDM_UNET, state, fps=8)


def test_whole_numbers_are_no_weights(tmp_path):
    """A file with integers in the place of weights, as a quantised one has them, is refused."""
    state = unet_state()
    state["out.2.bias"] = state["out.2.bias"].to(torch.int32)

    with pytest.raises(GuidedCDError, match=r"out\.2\.bias has values of type int32.*as it was published"):
        vc2.load_unet(LVDM_UNET, state, fps=8)


def test_a_file_of_another_size_names_the_option_arch(tmp_path):
    """A file of another size names the option that helps."""
    path, _ = write(tmp_path)

    with pytest.raises(GuidedCDError, match="`arch"):
        vc2.load(path, fps=8)
    with pytest.raises(GuidedCDError, match=r"input_blocks.0.0.weight has shape .*`arch"):
        vc2.load_unet({**LVDM_UNET, "in_channels": 5}, unet_state(), fps=8)


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (["time_cond_proj.weight", "input_blocks.0.0.weight", "init_attn.0.norm.weight"], "`student="),
        (["visual.transformer.resblocks.0.ln_1.weight", "transformer.resblocks.0.x", "logit_scale"], '`reward="hps'),
        (["module.vision_encoder.x", "module.text_encoder.x", "module.vision_proj.weight"], '`reward="internv2'),
        (["down_blocks.0.temp_convs.0.x", "transformer_in.x", "time_embedding.x"], '`teacher="unet3d'),
        (["down_blocks.0.motion_modules.0.x", "conv_in.x", "time_embedding.x"], '`teacher="animatediff'),
        (["something.else"], "another architecture"),
    ],
)
def test_other_formats_are_recognised(tmp_path, keys, hint):
    """A file of another kind names the loader that it belongs to."""
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "x.pt")

    with pytest.raises(GuidedCDError, match=hint):
        vc2.load(tmp_path / "x.pt", fps=8)


def test_other_schedules_are_refused(tmp_path):
    """A file whose noise table is not the architecture's is an error."""
    state = {"alphas_cumprod": torch.linspace(1, 0.01, 1000)}

    with pytest.raises(GuidedCDError, match="alphas_cumprod"):
        vc2.schedule(Architecture(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_relative_position": True}, "use_relative_position"),
        ({"num_head_channels": 7}, "num_head_channels"),
        ({"model_channels": 40}, "multiples of 32"),
        ({"channel_mult": [2, 2]}, "begin with 1"),
    ],
)
def test_layers_that_stock_classes_lack_are_refused(change, message):
    """An architecture that cannot be represented exactly is not represented at all."""
    with pytest.raises(GuidedCDError, match=message):
        vc2.unet_arguments({**LVDM_UNET, **change})


@pytest.mark.parametrize("fps", [0, -1, 7.5, 1001, True, "8", float("nan")])
def test_frame_rates_are_whole_and_positive(fps):
    """Anything else is one clear line."""
    with pytest.raises(GuidedCDError, match="fps is .*; it must be a whole number"):
        check_fps(fps)


def test_sizes_are_multiples_of_all_halvings():
    """Latents that the UNet cannot halve are refused with the multiple."""
    Architecture().check_size(1, 320, 512)
    with pytest.raises(GuidedCDError, match="multiples of 64"):
        Architecture().check_size(16, 320, 500)
    with pytest.raises(GuidedCDError, match="frames"):
        Architecture().check_size(0, 320, 512)


def test_the_architecture_file_may_be_json_or_yaml(tmp_path):
    """The published YAML's structure is read from both; a damaged file is one line."""
    import yaml

    (tmp_path / "a.json").write_text(json.dumps(LVDM_CONFIG))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(LVDM_CONFIG))
    assert Architecture.read(tmp_path / "a.json") == Architecture.read(tmp_path / "b.yaml")
    assert Architecture.read(None) == Architecture()
    for name, text in (("c.json", "{"), ("d.yaml", "a: ["), ("e.json", "[1]"), ("f.json", "{}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(GuidedCDError, match="architecture"):
            Architecture.read(tmp_path / name)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("unet_config", "num_res_block", 2, "no argument 'num_res_block'. Did you mean 'num_res_blocks'"),
        ("unet_config", "num_res_blocks", None, "lack num_res_blocks"),
        ("unet_config", "use_relative_position", True, "only False can be read"),
        ("first_stage_config", "ddconfig", {"chmult": [1]}, "the autoencoder has no argument 'chmult'. Did you mean"),
        ("first_stage_config", "ddconfig", {"ch_mult": 3}, "describes no such network"),
    ],
)
def test_architecture_files_with_mistakes_are_one_line(tmp_path, part, name, value, message):
    """Unknown, missing and impossible arguments are named, with the file; nothing is passed over in silence."""
    config = json.loads(json.dumps(LVDM_CONFIG))
    config["model"]["params"][part]["params"][name] = value
    (tmp_path / "a.json").write_text(json.dumps(config))

    with pytest.raises(GuidedCDError, match="a.json") as caught:
        Architecture.read(tmp_path / "a.json")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_views_read_only_the_values_that_are_used():
    """A view lists its keys without reading a value."""

    class Lazy(dict):
        def __getitem__(self, key):
            raise AssertionError("read")

    view = View(Lazy({"a.x": 1, "a.y": 2, "b.z": 3}), "a.", hidden=("y",))

    assert list(view) == ["x"]
    assert "y" not in view


@pytest.fixture
def network_inputs():
    """A batch of two for the tiny UNet, float64."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 3, 4, 6, generator=generator, dtype=torch.float64),
        "timestep": torch.tensor([30, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=generator, dtype=torch.float64),
    }
