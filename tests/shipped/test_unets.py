"""Teachers of the plugin `unets`: VideoCrafter2, any 3D UNet folder, AnimateDiff."""

from __future__ import annotations

import pytest
import torch
from guidedcd_unets import AnimateDiffConfig, UNet3DConfig, VideoCrafter2Config
from guidedcd_unets.teachers import animatediff, unet3d, videocrafter2
from tiny_checkpoint import write

from guidedcd.config.sections import Student as StudentConfig
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.open_clip_tokens import write_tokenizer
from guidedcd.models.student import Student
from guidedcd.models.teachers.unet3d import load_unet3d
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks

SIZE = {"frames": 4, "height": 8, "width": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny diffusers folders of both families, saved as their publishers do."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        MotionAdapter,
        UNet2DConditionModel,
        UNet3DConditionModel,
        UNetMotionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    root = tmp_path_factory.mktemp("folders")
    torch.manual_seed(0)
    common = {"layers_per_block": 1, "cross_attention_dim": 16}
    flat = UNet2DConditionModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **common,
    )
    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )
    adapter.save_pretrained(root / "adapter")
    networks = {
        "unet3d": UNet3DConditionModel(
            block_out_channels=(16, 32),
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            **common,
        ),
        "image": flat,
        "motion": UNetMotionModel.from_unet2d(flat, adapter),
    }
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=20,
            bos_token_id=598,
            eos_token_id=599,
            pad_token_id=0,
        )
    )
    for name, network in networks.items():
        network.save_pretrained(root / name / "unet")
        vae.save_pretrained(root / name / "vae")
        text.save_pretrained(root / name / "text_encoder")
        write_tokenizer(root / name / "tokenizer", 600, 20)
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
            root / name / "scheduler"
        )
    return root


@pytest.fixture(scope="module")
def teachers(folders, tmp_path_factory):
    """One of each."""
    path, arch = write(tmp_path_factory.mktemp("published"))
    return {
        "videocrafter2": videocrafter2(VideoCrafter2Config(path=str(path), arch=str(arch), **SIZE)),
        "unet3d": unet3d(UNet3DConfig(path=str(folders / "unet3d"), **SIZE)),
        "animatediff": animatediff(
            AnimateDiffConfig(path=str(folders / "image"), adapter=str(folders / "adapter"), **SIZE)
        ),
        "animatediff-pipeline": animatediff(AnimateDiffConfig(path=str(folders / "motion"), **SIZE)),
    }


NAMES = ["videocrafter2", "unet3d", "animatediff", "animatediff-pipeline"]


@pytest.mark.parametrize("name", NAMES)
def test_every_teacher_encodes_decodes_and_denoises(teachers, name):
    """Shapes follow from the geometry; the text matters."""
    teacher = teachers[name]
    geometry = teacher.geometry
    z = torch.randn(2, *geometry.latent_shape)
    t = torch.tensor([10, 900])
    with torch.no_grad():
        output = teacher.net(z, t, teacher.embed(["a cat!", "two dogs"]))
        silent = teacher.net(z, t, teacher.null(2))

        assert teacher.encode(torch.rand(1, *geometry.pixel_shape)).shape == (1, *geometry.latent_shape)
        assert teacher.decode(z, [0, 2]).shape == (2, 2, 3, geometry.height, geometry.width)
    assert output.shape == z.shape
    assert not torch.equal(output, silent)


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_reads_its_own_caption(teachers, name):
    """Text repeated per frame stays with its video: a batch equals its samples one by one."""
    teacher = teachers[name]
    z, t = torch.randn(2, *teacher.geometry.latent_shape), torch.tensor([10, 900])
    captions = ["a cat!", "two dogs run"]
    with torch.no_grad():
        together = teacher.net(z, t, teacher.embed(captions))
        for i, caption in enumerate(captions):
            alone = teacher.net(z[i : i + 1], t[i : i + 1], teacher.embed([caption]))
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", ["official", "motionclone", "up_blocks.1"])
def test_temporal_attention_is_recorded_and_reaches_the_latents(teachers, name, layers):
    """Rows sum to 1, N is positions times heads, and a function of the maps has a gradient in z."""
    teacher = teachers[name]
    z = torch.randn(1, *teacher.geometry.latent_shape, requires_grad=True)
    need = f"temporal-attention:{layers}"
    seen = teacher.seen(z, torch.tensor([700]), teacher.embed(["a cat"]), needs=(need,))
    maps = seen.records[need]

    assert maps
    for value in maps.values():
        assert value.shape[0] == 1
        assert value.shape[2:] == (4, 4)
        torch.testing.assert_close(value.sum(-1), torch.ones_like(value.sum(-1)))
    (gradient,) = torch.autograd.grad(sum(value.square().mean() for value in maps.values()), z)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_student_equals_its_teacher(teachers, name):
    """Guidance inputs start at zero on every family."""
    teacher = teachers[name]
    student = Student(teacher, StudentConfig(), ("pta",)).eval()
    student.requires_grad_(False)  # torch folds a product with a trainable weight otherwise, which rounds otherwise
    z, t, cond = torch.randn(1, *teacher.geometry.latent_shape), torch.tensor([500]), teacher.embed(["x"])
    with torch.no_grad():
        assert torch.equal(student(z, t, cond, torch.tensor([7.5]), torch.tensor([[0.05]])), teacher.net(z, t, cond))


def test_separate_adapters_use_linear_noise_levels(teachers, folders):
    """As published adapters were trained; a whole pipeline's scheduler is taken as it is."""
    image, pipeline = teachers["animatediff"].schedule, teachers["animatediff-pipeline"].schedule
    told = animatediff(
        AnimateDiffConfig(path=str(folders / "image"), adapter=str(folders / "adapter"), betas="folder", **SIZE)
    )

    assert float(image.alphas_cumprod[-1]) == pytest.approx(0.0016, abs=1e-4)
    assert float(pipeline.alphas_cumprod[-1]) == pytest.approx(0.0047, abs=1e-4)
    assert torch.equal(told.schedule.alphas_cumprod, pipeline.alphas_cumprod)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "image", "adapter": "adapter", "frames": 9}, "frames must be 1 to 8"),
        ({"path": "image"}, "motion adapter"),
        ({"path": "image", "adapter": "adapter", "width": 13}, "multiples of 2"),
        ({}, "animatediff:FOLDER"),
        ({"path": "nowhere"}, "cannot read AnimateDiff"),
        ({"path": "image", "adapter": "nowhere"}, "nowhere"),
    ],
)
def test_animatediff_mistakes_are_one_line(folders, options, message):
    """Too many frames, no adapter, odd sizes, nothing there."""
    config = {key: str(folders / value) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(GuidedCDError, match=message) as error:
        animatediff(AnimateDiffConfig(**{**SIZE, **config}))
    assert "\n" not in str(error.value)


def test_a_file_is_no_folder_of_a_3d_unet(tmp_path):
    """For a checkpoint file, the error of `unet3d` names the loader that reads it."""
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(GuidedCDError, match=r"model\.ckpt is a file: .*`teacher=.videocrafter2:FILE.`"):
        load_unet3d(tmp_path / "model.ckpt", frames=1, height=8, width=8, fps=8)


def test_a_videocrafter2_size_that_the_network_cannot_take_is_refused(tmp_path):
    """Before the file is read."""
    with pytest.raises(GuidedCDError, match="multiples of 64"):
        videocrafter2(VideoCrafter2Config(path=str(tmp_path / "model.ckpt"), height=100))
    with pytest.raises(GuidedCDError, match="hf download"):
        videocrafter2(VideoCrafter2Config(path=str(tmp_path / "model.ckpt")))


def test_half_precision_teachers_compute_in_half_precision(tmp_path):
    """`dtype` reaches every part, and latents keep the dtype they come in."""
    path, arch = write(tmp_path)
    teacher = videocrafter2(VideoCrafter2Config(path=str(path), arch=str(arch), dtype="bfloat16", **SIZE))
    z = torch.randn(1, *teacher.geometry.latent_shape)
    with torch.no_grad():
        output = teacher.net(z, torch.tensor([500]), teacher.embed(["x"]))

    assert teacher.dtype == torch.bfloat16
    assert next(teacher.vae.parameters()).dtype == torch.bfloat16
    assert output.dtype == torch.float32


@pytest.mark.parametrize("name", ["videocrafter2", "unet3d", "animatediff"])
def test_conformance(name, folders, tmp_path):
    """Each passes every check of the kit that third parties use."""
    path, arch = write(tmp_path)
    config = {
        "videocrafter2": lambda: VideoCrafter2Config(path=str(path), arch=str(arch), **SIZE),
        "unet3d": lambda: UNet3DConfig(path=str(folders / "unet3d"), **SIZE),
        "animatediff": lambda: AnimateDiffConfig(path=str(folders / "motion"), **SIZE),
    }[name]()

    for check in checks("teacher", name, config=config):
        check()


def test_the_plugin_offers_three_teachers():
    """By the names that the documentation uses."""
    assert {"videocrafter2", "unet3d", "animatediff"} <= set(load_plugins().of_kind("teacher"))
