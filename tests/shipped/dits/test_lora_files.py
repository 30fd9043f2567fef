"""LoRA files of video transformers, beside diffusers' own loader and converters."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from guidedcd_dits import lora_files
from guidedcd_dits.lora_files import Adapter, Sampling, check_base, merge, parse
from guidedcd_dits.lora_names import COGVIDEOX, LTX, WAN, family_of
from safetensors.torch import load_file, save_file
from torch import nn

from guidedcd.errors import GuidedCDError

RANK = 4
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def wan(**sizes):
    """A tiny Wan transformer with random weights; options for one with an image."""
    torch.manual_seed(0)
    tiny = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 2,
    }
    return diffusers.WanTransformer3DModel(**tiny | sizes)


def ltx(**sizes):
    """A tiny LTX-Video transformer."""
    tiny = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "num_layers": 2,
        "caption_channels": 24,
    }
    return diffusers.LTXVideoTransformer3DModel(**tiny | sizes)


def cogvideox(**sizes):
    """A tiny CogVideoX transformer."""
    tiny = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
        "num_layers": 2,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
    }
    return diffusers.CogVideoXTransformer3DModel(**tiny | sizes)


def linears(network: nn.Module, blocks: str = "") -> dict[str, nn.Linear]:
    """The linear layers, all or those of blocks."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and n.startswith(blocks)}


def random_adapter(network: nn.Module, blocks: str = "", ranks=lambda number: RANK, **fields) -> Adapter:
    """Random pairs for the linear layers."""
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for number, (name, layer) in enumerate(linears(network, blocks).items()):
        rank = ranks(number)
        down = torch.randn(rank, layer.in_features, generator=generator)
        pairs[name] = (down, torch.randn(layer.out_features, rank, generator=generator))
    return Adapter(pairs, **fields)


def assert_same(one: Adapter, other: Adapter, scale: float = 1.0) -> None:
    """Both change the same parameters by the same amounts, up to a scale."""
    first, second = one.changes(), other.changes()
    assert first.keys() == second.keys() and first
    for name, change in first.items():
        torch.testing.assert_close(change, second[name] * scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "count", "parameters", "attention"),
    [
        ({"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}, 300, 1_367_040, 737_280),
        ({"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}, 400, 4_792_320, 3_276_800),
        ({"num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336}, 300, 2_519_040, 1_474_560),
        (
            {
                "num_layers": 40,
                "num_attention_heads": 40,
                "ffn_dim": 13824,
                "image_dim": 1280,
                "added_kv_proj_dim": 5120,
                "in_channels": 36,
            },
            480,
            5_611_520,
            4_096_000,
        ),
    ],
    ids=["1.3B", "14B", "5B", "14B-I2V"],
)
def test_names_and_sizes_of_wan_are_the_published_ones(sizes, count, parameters, attention):
    """Each parameter of the full transformers has one native name, and adapters have the published sizes."""
    with torch.device("meta"):
        network = diffusers.WanTransformer3DModel(**{"attention_head_dim": 128, "text_dim": 4096, **sizes})
    layers = linears(network, "blocks.")
    sizes_of = {name: layer.in_features + layer.out_features for name, layer in layers.items()}
    assert len(layers) == count and sum(sizes_of.values()) == parameters
    assert sum(size for name, size in sizes_of.items() if ".attn" in name) == attention
    modules = {_module(name) for name, _ in network.named_parameters()}
    native = {name: WAN.to_native(name) for name in modules}
    assert len(set(native.values())) == len(modules)
    assert all(
        WAN.to_diffusers(other) == name and WAN.from_kohya(WAN.to_kohya(name)) == name for name, other in native.items()
    )
    assert native["blocks.0.norm2"] == "blocks.0.norm3" and native["blocks.0.attn2.to_out.0"] == "blocks.0.cross_attn.o"


def _module(parameter: str) -> str:
    return parameter if parameter.endswith("scale_shift_table") else parameter.rpartition(".")[0]


@pytest.mark.parametrize(("network", "count"), [(ltx, 280), (cogvideox, 180)])
def test_layers_of_ltx_and_cogvideox_have_names(network, count):
    """Every layer of LTX-Video and CogVideoX has a name in LoRA files; block layers are as many as published."""
    tiny = network(num_layers=28 if network is ltx else 30)
    family = family_of(tiny)
    for name in {_module(name) for name, _ in tiny.named_parameters()}:
        assert family.to_diffusers(family.to_native(name)) == name == family.from_kohya(name.replace(".", "_"))
    targets = [name for name in linears(tiny, "transformer_blocks.") if "norm" not in name]
    assert len(targets) == count


def test_native_names_are_those_that_diffusers_converts():
    """diffusers' own converter turns a native file into the names and values from which it was written."""
    adapter = random_adapter(wan())
    tensors, _ = lora_files.native_state(adapter, WAN)
    converted = lora_conversion_utils._convert_non_diffusers_wan_lora_to_diffusers(dict(tensors))
    expected, _ = lora_files.diffusers_state(adapter)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())
    assert "diffusion_model.blocks.1.ffn.0.lora_down.weight" in tensors


@pytest.mark.parametrize("network", [wan, ltx, cogvideox])
@pytest.mark.parametrize("has_metadata", [True, False])
def test_diffusers_loads_what_is_written(network, has_metadata, tmp_path):
    """diffusers' loader applies each layer's change exactly, with the metadata and without it, mixed ranks included."""
    pipelines = {wan: diffusers.WanPipeline, ltx: diffusers.LTXPipeline, cogvideox: diffusers.CogVideoXPipeline}
    transformer = network()
    # diffusers before 0.43 scales mixed ranks wrongly where the metadata is lost.
    adapter = random_adapter(transformer, ranks=lambda number: RANK if number or not has_metadata else 2)
    tensors, metadata = lora_files.diffusers_state(adapter)
    name = "pytorch_lora_weights.safetensors"
    lora_files.write(tmp_path / name, tensors, metadata)
    pipeline = pipelines[network]
    state, read = pipeline.lora_state_dict(str(tmp_path), weight_name=name, return_lora_metadata=True)
    pipeline.load_lora_into_transformer(
        state, transformer=transformer, adapter_name="one", metadata=read if has_metadata else None
    )
    changes = adapter.changes()
    loaded = {n: m for n, m in transformer.named_modules() if hasattr(m, "get_delta_weight")}
    assert loaded.keys() == adapter.pairs.keys()
    for name, module in loaded.items():
        torch.testing.assert_close(module.get_delta_weight("one"), changes[f"{name}.weight"], rtol=1e-6, atol=1e-6)
    assert_same(lora_files.read(tmp_path, network()), adapter)


@pytest.mark.parametrize("layout", ["native", "kohya", "diffusers"])
@pytest.mark.parametrize("network", [wan, ltx, cogvideox])
def test_every_layout_is_read_back(network, layout, tmp_path):
    """What is written in each layout is the same adapter when it is read, with how it is sampled."""
    sampling = Sampling(scheduler="FlowMatchEulerDiscreteScheduler", shift=5.0, steps=4, expert="high")
    adapter = random_adapter(network(), sampling=sampling, ranks=lambda number: 3 + number % 2)
    family = family_of(network())
    if layout == "native" and family is COGVIDEOX:
        with pytest.raises(GuidedCDError, match="no common native layout for LoRA files of CogVideoX"):
            lora_files.native_state(adapter, family)
        return
    writers = {"native": lora_files.native_state, "kohya": lora_files.kohya_state}
    arguments = (adapter,) if layout == "diffusers" else (adapter, family)
    tensors, metadata = writers.get(layout, lora_files.diffusers_state)(*arguments)
    lora_files.write(tmp_path / "one.safetensors", tensors, metadata)
    again = lora_files.read(tmp_path / "one.safetensors", network())
    assert_same(again, adapter)
    assert again.sampling == sampling and again.ranks == adapter.ranks


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_lightning_files_are_read(prefix):
    """Wan2.2-Lightning: pairs of block layers with an int64 alpha of 8 at rank 64, which is a scale of 1/8."""
    network = wan(attention_head_dim=64)
    adapter = random_adapter(network, "blocks.", ranks=lambda number: 64)
    state = {}
    for name, (down, up) in adapter.pairs.items():
        base = prefix + WAN.to_native(name)
        state |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up, f"{base}.alpha": torch.tensor(8)}
    assert len(state) == 2 * 10 * 3
    assert_same(parse(state, WAN, {}), adapter, 1 / 8)


def test_lightx2v_files_are_read(tmp_path):
    """LightX2V's extractions: pairs without alpha, and full changes of norms, biases, patches and modulation."""
    network, generator = wan(), torch.Generator().manual_seed(2)
    pairs = random_adapter(network, "blocks.").pairs
    state, deltas = {}, {}
    for name, (down, up) in pairs.items():
        base = f"diffusion_model.{WAN.to_native(name)}"
        state |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
    for name, parameter in network.named_parameters():
        if name.removesuffix(".weight") in pairs:
            continue
        deltas[name] = torch.randn(parameter.shape, generator=generator)
        native = WAN.to_native(_module(name))
        if name.endswith("scale_shift_table"):
            key = native.removesuffix("modulation") + "diff_m"
        else:
            key = f"{native}.diff_b" if name.endswith("bias") else f"{native}.diff"
        state[f"diffusion_model.{key}"] = deltas[name]
    assert {
        "diffusion_model.blocks.0.diff_m",
        "diffusion_model.head.diff_m",
        "diffusion_model.blocks.1.norm3.diff_b",
    } <= state.keys()
    adapter = parse(state, WAN, {})
    assert_same(adapter, Adapter(pairs, deltas))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    merge(adapter, network, 0.5)
    for name, change in adapter.changes().items():
        torch.testing.assert_close(network.state_dict()[name], before[name] + 0.5 * change, rtol=1e-6, atol=1e-6)
    written, _ = lora_files.native_state(adapter, WAN)
    assert "diffusion_model.blocks.0.modulation.diff" in written  # the spelling that ComfyUI reads too
    assert_same(parse(written, WAN, {}), adapter)
    with pytest.raises(GuidedCDError, match="no place for the change of"):
        lora_files.diffusers_state(adapter)


@pytest.mark.parametrize(
    ("down", "up", "alpha"),
    [
        ("lora_A", "lora_B", None),
        ("lora_A.default", "lora_B.default", 8.0),
        ("lora.down", "lora.up", None),
        ("lora_linear_layer.down", "lora_linear_layer.up", 2.0),
    ],
)
def test_all_spellings_of_pairs_give_the_same_adapter(down, up, alpha):
    """All spellings that ComfyUI reads give the same adapter; alpha / rank is its scale, for any shape of alpha."""
    adapter = random_adapter(wan(), "blocks.")
    state = {}
    for number, (name, (first, second)) in enumerate(adapter.pairs.items()):
        base = f"diffusion_model.{WAN.to_native(name)}"
        state |= {f"{base}.{down}.weight": first, f"{base}.{up}.weight": second}
        if alpha is not None:
            state[f"{base}.alpha"] = torch.tensor(alpha) if number % 2 else torch.tensor([alpha])
    assert_same(parse(state, WAN, {}), adapter, 1 if alpha is None else alpha / RANK)


def test_alpha_in_metadata_belongs_to_diffusers_names(tmp_path):
    """PEFT's alpha counts for diffusers' names, its patterns too, and not for native files, which have their own."""
    network = wan()
    adapter = random_adapter(network, "blocks.")
    tensors, _ = lora_files.diffusers_state(adapter)
    config = {
        "transformer.r": RANK,
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"blocks.0.attn1.to_q": 2},
    }
    metadata = {lora_files.PEFT_METADATA: json.dumps(config)}
    changes = parse(tensors, WAN, metadata).changes()
    for name, change in adapter.changes().items():
        scale = 0.5 if name == "blocks.0.attn1.to_q.weight" else 2.0
        torch.testing.assert_close(changes[name], scale * change)
    native, _ = lora_files.native_state(adapter, WAN)
    assert_same(parse(native, WAN, metadata), adapter)
    save_file(
        {f"base_model.model.{k.removeprefix('transformer.')}": v for k, v in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(GuidedCDError, match="its adapter_config.json, which has the alpha, is not beside it"):
        lora_files.read(tmp_path, network)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 12}))
    assert_same(lora_files.read(tmp_path, network), adapter, 3.0)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "renamed.safetensors")
    assert_same(lora_files.read(tmp_path / "renamed.safetensors", network), adapter, 3.0)


@pytest.mark.parametrize("pattern", [r"attn1\.to_(q|k)", r"^blocks\.0\.attn2\.to_v", "to_q", ".*to_v", "o_q"])
def test_patterns_of_alpha_are_pefts(pattern):
    """A key of alpha_pattern selects the layers that PEFT's own matching selects."""
    from peft.utils.other import get_pattern_key

    adapter = random_adapter(wan(), "blocks.")
    tensors, _ = lora_files.diffusers_state(adapter)
    config = {"transformer.lora_alpha": 8, "transformer.alpha_pattern": {pattern: 2}}
    changes = parse(tensors, WAN, {lora_files.PEFT_METADATA: json.dumps(config)}).changes()
    for name, change in adapter.changes().items():
        fits = get_pattern_key([pattern], name.removesuffix(".weight")) == pattern
        torch.testing.assert_close(changes[name], (0.5 if fits else 2.0) * change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_scale_is_not_rounded_to_the_dtype_of_the_file(dtype):
    """alpha / rank is applied in float32: matrices of 16 and 8 bits give the product of their exact values."""
    down, up, alpha = torch.randn(RANK, 24).to(dtype), torch.randn(24, RANK).to(dtype), torch.tensor(3)
    state = {f"{BASE}.lora_down.weight": down, f"{BASE}.lora_up.weight": up, f"{BASE}.alpha": alpha}
    (change,) = parse(state, WAN, {}).changes().values()
    torch.testing.assert_close(change, 0.75 * (up.float() @ down.float()), rtol=1e-5, atol=1e-5)


def test_biases_of_other_layers_than_linear_ones_are_no_part_of_diffusers_layout():
    """Changes of biases of norms and convolutions are refused by name; those of linear layers need no other pair."""
    network = wan()
    for name in ("blocks.0.norm2.bias", "patch_embedding.bias"):
        adapter = random_adapter(network, "blocks.", deltas={name: torch.ones_like(network.get_parameter(name))})
        with pytest.raises(GuidedCDError, match=f"no place for the change of {name}"):
            lora_files.diffusers_state(adapter, network)
    alone = Adapter({}, {"blocks.0.attn1.to_q.bias": torch.ones(24)})
    tensors, metadata = lora_files.diffusers_state(alone, network)
    torch.testing.assert_close(parse(tensors, WAN, metadata).changes()["blocks.0.attn1.to_q.bias"], torch.ones(24))


def test_kohya_files_are_read():
    """musubi's alpha of 1 is a scale of 1 / rank, and none or 0 is the rank; VideoX-Fun writes two underscores."""
    adapter = random_adapter(wan(), "blocks.")
    for alpha, scale in ((1.0, 1 / RANK), (0.0, 1.0), (None, 1.0)):
        for prefix in ("lora_unet_", "lora_unet__"):
            state = {}
            for name, (down, up) in adapter.pairs.items():
                base = prefix + WAN.to_native(name).replace(".", "_")
                state |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
                if alpha is not None:
                    state[f"{base}.alpha"] = torch.tensor(alpha)
            assert_same(parse(state, WAN, {}), adapter, scale)
    cog = random_adapter(cogvideox(), "transformer_blocks.")
    state = {}
    for name, (down, up) in cog.pairs.items():
        base = "lora_unet__" + name.replace(".", "_")
        state |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
    assert_same(parse(state, COGVIDEOX, {}), cog)


def test_metadata_has_every_field_of_peft():
    """PEFT's configuration has every field, since diffusers 0.38 reads them all, and an alpha that is the rank."""
    from peft import LoraConfig

    adapter = random_adapter(ltx(), ranks=lambda number: RANK if number else 2)
    _, metadata = lora_files.diffusers_state(adapter)
    values = json.loads(metadata[lora_files.PEFT_METADATA])
    assert values.keys() == {f"transformer.{key}" for key in LoraConfig().to_dict()}
    first = next(iter(adapter.pairs))
    assert values["transformer.r"] == values["transformer.lora_alpha"] == RANK
    assert values["transformer.rank_pattern"] == values["transformer.alpha_pattern"] == {first: 2}


BASE = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({f"{BASE}.dora_scale": torch.ones(2)}, "dora_scale belongs to no layout"),
        ({f"{BASE}.lora_down.weight": torch.ones(2, 24)}, "one matrix of a pair"),
        ({f"{BASE}.alpha": torch.ones(())}, "has an alpha or a bias, but no matrices"),
        ({f"{BASE}.lora_down.weight": torch.ones(2, 24), f"{BASE}.lora_A.weight": torch.ones(2, 24)}, "is there twice"),
        ({f"{BASE}.lora_down.weight": torch.ones(2, 24), f"{BASE}.lora_up.weight": torch.ones(24, 3)}, "ranks 2 and 3"),
        ({f"{BASE}.lora_A.weight": torch.ones(2, 24), f"{BASE}.lora_B.weight": torch.ones(24)}, "no shapes of a pair"),
        ({f"{BASE}.lora_A.weight": torch.ones(0, 24), f"{BASE}.lora_B.weight": torch.ones(24, 0)}, "no shapes of a"),
        (
            {f"{BASE}.lora_A": torch.ones(2, 24), f"{BASE}.lora_B": torch.ones(24, 2), f"{BASE}.alpha": torch.ones(0)},
            "its alpha is empty",
        ),
        ({"transformer.blocks.0.self_attn.q.diff": torch.ones(2)}, "blocks.0.self_attn.q is no layer of Wan"),
        ({"diffusion_model.double_blocks.0.q.diff": torch.ones(2)}, "the file belongs to another model"),
        ({}, "contains no tensor"),
    ],
)
def test_wrong_files_are_one_sentence(state, message):
    """Unknown, incomplete and ambiguous files are refused with the key at fault."""
    with pytest.raises(GuidedCDError, match=message):
        parse(state, WAN, {}, "x.safetensors")


@pytest.mark.parametrize(
    "config", [{"lora_alpha": None}, {"lora_alpha": "x"}, {"alpha_pattern": {"*": 1}}, {"alpha_pattern": [1]}]
)
def test_a_damaged_configuration_of_peft_is_one_sentence(config):
    """An alpha that is no number, and a pattern that is none, are refused with the layer."""
    tensors, _ = lora_files.diffusers_state(random_adapter(wan(), "blocks."))
    metadata = {lora_files.PEFT_METADATA: json.dumps(config)}
    with pytest.raises(GuidedCDError, match=r"blocks\.0\.attn1\.to_q: PEFT's configuration has no alpha"):
        parse(tensors, WAN, metadata)


def test_a_file_of_another_base_is_one_sentence(tmp_path):
    """Too many blocks, image layers on a text model and other widths are refused before anything is changed."""
    base = wan()
    for other in (wan(num_layers=3), wan(image_dim=20, added_kv_proj_dim=24), wan(num_attention_heads=3)):
        with pytest.raises(GuidedCDError, match="it belongs to another base"):
            check_base(random_adapter(other, "blocks."), base, "x")
    with pytest.raises(GuidedCDError, match="there is no LoRA file"):
        lora_files.read(tmp_path / "none.safetensors", base)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(GuidedCDError, match="is no safetensors file"):
        lora_files.read(tmp_path / "bad.safetensors", base)
    with pytest.raises(GuidedCDError, match="LoRA files are read for .*, not for Linear"):
        family_of(nn.Linear(1, 1))
    assert family_of(ltx()) is LTX


def test_a_merged_adapter_is_what_diffusers_fuses(tmp_path):
    """A network with a merged adapter predicts what diffusers predicts with the written file loaded."""
    torch.manual_seed(3)
    first, second = wan(), wan()
    second.load_state_dict(first.state_dict())
    adapter = random_adapter(first, "blocks.")
    adapter = Adapter({name: (down * 0.05, up * 0.05) for name, (down, up) in adapter.pairs.items()})
    lora_files.write(tmp_path / "a.safetensors", *lora_files.native_state(adapter, WAN))
    merge(lora_files.read(tmp_path / "a.safetensors", first), first)
    state = lora_conversion_utils._convert_non_diffusers_wan_lora_to_diffusers(load_file(tmp_path / "a.safetensors"))
    diffusers.WanPipeline.load_lora_into_transformer(state, transformer=second, adapter_name="one")
    inputs = (torch.randn(1, 4, 2, 4, 4), torch.tensor([500]), torch.randn(1, 5, 32))
    with torch.no_grad():
        one, two = (network.eval()(*inputs).sample for network in (first, second))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
