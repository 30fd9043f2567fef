"""A trained student in formats that others read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from guidedcd_pta import PTAConfig
from guidedcd_shapes.vocabulary import VOCABULARY, WorldTokenizer, save_tokenizer
from guidedcd_unets import VideoCrafter2Config
from tiny_checkpoint import write

from guidedcd.cli import main
from guidedcd.config import sections
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.diffusion.embeddings import guidance_scale_embedding
from guidedcd.diffusion.sampler import multistep_timesteps
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.inference.export import diffusers_folder, export, few_step_pipeline, merged_student, peft_lora, t2v_turbo
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.lvdm_unet import FPS_KEYS
from guidedcd.models.checkpoints.reading import open_state
from guidedcd.models.guidance_inputs import GuidanceProjection
from guidedcd.models.student import Student
from guidedcd.plugins.configs import DatasetConfig, TeacherConfig
from guidedcd.testing.tiny_networks import LVDM_UNET
from guidedcd.testing.tiny_teacher import tiny_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(component, built) of a tiny VideoCrafter2."""
    path, config = write(tmp_path_factory.mktemp("published"))
    size = {"frames": 2, "height": 8, "width": 8}
    chosen = Chosen("videocrafter2", VideoCrafter2Config(path=str(path), arch=str(config), **size))
    return chosen, chosen.build()


def trained(teacher, kind: str = "full", energies: tuple[str, ...] = ("pta",)) -> StudentPipeline:
    """A student whose every trainable weight has moved."""
    chosen, built = teacher
    run = Run(
        teacher=chosen,
        data=(Chosen("any", DatasetConfig()),),
        energies={name: PTAConfig() for name in energies},
        student=sections.Student(kind=kind, rank=2),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Student(built, run.student, energies).eval()
        for parameter in student.trainable:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return StudentPipeline(run=run, teacher=built, student=student, folder=Path("run"), weights=Path("run"))


def outputs(network, width: int):
    """The predictions of a network for fixed inputs with a guidance embedding of `width`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    z, cond, text = normal(2, 4, 2, 4, 4), normal(2, width), normal(2, 3, LVDM_UNET["context_dim"])
    with torch.no_grad():
        return network(z, torch.tensor([10, 800]), text, timestep_cond=cond).sample


@pytest.mark.parametrize("energies", [(), ("pta",), ("pta", "other")])
def test_one_linear_layer_does_what_the_projections_do(teacher, energies):
    """The stock class represents every student whose energies' inputs are constant."""
    network = merged_student.merged_network(trained(teacher, energies=energies).student)
    stock = merged_student.stock(network, merged_student.composite(merged_student.projection(network)))
    width = 256 * (1 + len(energies))

    torch.testing.assert_close(outputs(stock, width), outputs(network, width), atol=1e-5, rtol=1e-5)
    assert type(stock.time_embedding.cond_proj) is torch.nn.Linear


def test_adapters_are_merged_into_plain_layers(teacher):
    """A LoRA student's plain network predicts the same and has no adapter left; the student keeps its own."""
    student = trained(teacher, "lora").student
    plain = merged_student.merged_network(student)

    torch.testing.assert_close(outputs(plain, 512), outputs(student.network, 512), atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name in plain.state_dict())
    assert any("lora" in name for name in student.network.state_dict())


@pytest.mark.slow
def test_a_diffusers_folder_samples_without_this_package(teacher, tmp_path):
    """A fresh process makes the same latents; pipeline.py is the file that was tested."""
    one = trained(teacher)
    result = diffusers_folder.write_folder(one, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())

    assert "fresh process" in result
    assert (index["energies"], index["strengths"], index["clean_text"]) == (["pta"], [500.0], True)
    assert (tmp_path / "pipeline.py").read_text() == Path(few_step_pipeline.__file__).read_text()


@pytest.mark.slow
def test_the_turbo_layout_restores_the_frame_rate_mlp(teacher, tmp_path):
    """unet_mg.pt has the original keys, and the frame-rate MLP of the base that was folded."""
    one = trained(teacher, "lora")
    t2v_turbo.write_turbo(one, tmp_path)
    state = open_state(tmp_path / "unet_mg.pt")

    for key in FPS_KEYS:
        torch.testing.assert_close(state[key], one.teacher.fps_weights[key], atol=0, rtol=0)
    assert state["motion_cond_proj.weight"].shape == (32, 256)
    assert state["init_attn.0.proj_in.weight"].ndim == 3


@pytest.mark.slow
def test_a_trained_adapter_is_exported_as_it_is(teacher, tmp_path):
    """PEFT reads it on the base and gives the student."""
    result = peft_lora.write_lora(trained(teacher, "lora"), tmp_path, None)
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    assert result.startswith("rank 2 leaves out 0.00%")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)


def test_an_extracted_adapter_is_better_with_more_rank(teacher):
    """The part that is left out shrinks with the rank; biases and norms cannot be held."""
    one = trained(teacher)
    network = merged_student.merged_network(one.student)
    lost = [peft_lora.extracted_pairs(one.teacher.network, network, rank)[1] for rank in (1, 8, 1000)]

    assert 1 > lost[0] > lost[1] > lost[2] > 0
    biases = [(n, p) for n, p in network.named_parameters() if p.ndim == 1]
    before = dict(one.teacher.network.named_parameters())
    moved = sum(float((p - before[n]).square().sum()) for n, p in biases)
    total = sum(float((p - before[n]).square().sum()) for n, p in network.named_parameters() if n in before)
    assert lost[2] == pytest.approx((moved / total) ** 0.5, rel=1e-3)


def test_teachers_without_a_clip_text_model_name_the_other_formats(tmp_path):
    """The diffusers folder is refused with the formats that remain; T2V-Turbo's layout works."""
    built = tiny_teacher(frames=2)
    chosen = Chosen("any", TeacherConfig())
    one = trained((chosen, built), energies=())

    with pytest.raises(GuidedCDError, match='`format="t2v-turbo-v2"` or `format="lora"`'):
        diffusers_folder.write_folder(one, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "`format` is 'onnx'; it must be one of"),
        ({"format": "diffusers", "rank": 4}, '`rank` belongs to `format="lora"`'),
        ({"format": "lora", "rank": 0}, "`rank` is 0; it must be from 1 to"),
        ({"format": "lora", "rank": 10**9}, "it must be from 1 to"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(tmp_path, options, message):
    """One line; no folder."""
    with pytest.raises(GuidedCDError, match=message):
        export.export(tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_with_a_card(teacher, tmp_path, monkeypatch):
    """The card names the base, its licence and the run's configuration; a failure leaves nothing."""
    one = trained(teacher)
    monkeypatch.setattr(export.StudentPipeline, "from_run", lambda *_, **__: one)
    monkeypatch.setattr(export.peft_lora, "write_lora", lambda *_: "rank 1 leaves out much")
    export.export(tmp_path, tmp_path / "out", format="lora")
    card = (tmp_path / "out" / "README.md").read_text()

    assert "base_model: VideoCrafter/VideoCrafter2" in card
    assert '"pta"' in card
    assert "time_cond_proj_dim=512" in card

    def fails(*_):
        raise GuidedCDError("the self-test failed")

    monkeypatch.setattr(export.t2v_turbo, "write_turbo", fails)
    with pytest.raises(GuidedCDError, match="self-test"):
        export.export(tmp_path, tmp_path / "second", format="t2v-turbo-v2")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_pipeline_file_shares_nothing_and_agrees():
    """It imports no guidedcd, and its embedding, timesteps and consistency function are ours."""
    imports = [
        line
        for line in Path(few_step_pipeline.__file__).read_text().splitlines()
        if line.startswith(("from ", "import "))
    ]
    assert not any("guidedcd" in line for line in imports)
    w = torch.tensor([0.0, 0.05, 7.5, 15.0])
    assert torch.equal(few_step_pipeline.embed(w), guidance_scale_embedding(w))
    from diffusers import DDIMScheduler

    for kind, name in (("eps", "epsilon"), ("v", "v_prediction")):
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=name
        )
        pipe = few_step_pipeline.FewStepPipeline(None, None, None, None, scheduler)
        schedule = NoiseSchedule.scaled_linear(prediction=kind)
        z, output = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
        for steps in (1, 3, 4, 16, 50):
            assert pipe.timesteps(steps) == multistep_timesteps(steps)
        for t in (0, 4, 999):
            ours = schedule.consistency(z, output, torch.tensor([t]))
            torch.testing.assert_close(pipe.consistency(z, output, t), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "other"])
def test_schedules_are_written_exactly_or_to_rounding(tmp_path, kind):
    """Known formulas by formula, bit for bit; any other table as its betas."""
    from diffusers import DDIMScheduler

    tables = {
        "scaled_linear": NoiseSchedule.scaled_linear().alphas_cumprod,
        "linear": (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0),
        "other": torch.linspace(0.9999, 0.005, 1000),
    }
    diffusers_folder.write_schedule(NoiseSchedule(tables[kind], "v"), tmp_path)
    again = DDIMScheduler.from_pretrained(tmp_path)

    assert again.config.prediction_type == "v_prediction"
    assert (again.config.trained_betas is not None) == (kind == "other")
    torch.testing.assert_close(again.alphas_cumprod, tables[kind], rtol=1e-4 if kind == "other" else 0, atol=0)


def test_the_worlds_words_are_a_tokenizer_of_transformers(tmp_path):
    """Saved and loaded, it gives WorldTokenizer's ids, for unknown words, cases and special texts as well."""
    from transformers import PreTrainedTokenizerFast

    texts = ["", "a red ball, moving.", "A RED zebra 42 !", "<pad> <bos> red <eos>", "red " * 200, VOCABULARY[5]]
    assert save_tokenizer(tmp_path, 32) == "PreTrainedTokenizerFast"
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = again(texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt").input_ids

    assert torch.equal(ids, WorldTokenizer(32)(texts))


def test_a_network_without_guidance_inputs_cannot_be_exported(teacher):
    """A teacher's own network is no student."""
    with pytest.raises(GuidedCDError, match="no guidance inputs"):
        merged_student.projection(teacher[1].network)


def test_projections_refuse_embeddings_of_another_width():
    """A guidance embedding of the wrong number of energies is named."""
    with pytest.raises(ValueError, match="takes 256 or 512"):
        GuidanceProjection(8, 256, 256)(torch.zeros(1, 768))


def test_strengths_and_steps_out_of_range_are_refused():
    """The pipeline's errors list the energies and the possible steps."""
    from diffusers import DDIMScheduler

    pipe = few_step_pipeline.FewStepPipeline(
        None, None, None, None, DDIMScheduler(), energies=["pta"], strength_scale=[1e-4]
    )
    with pytest.raises(ValueError, match="pta"):
        pipe._strengths([1.0, 2.0])
    with pytest.raises(ValueError, match="1 to 200"):
        pipe.timesteps(201)
    assert pipe._strengths(500) == [0.05]


@pytest.mark.slow
def test_a_run_of_the_embedded_teacher_is_exported_in_every_format(tmp_path, monkeypatch):
    """From `guidedcd train` to `guidedcd export`: each folder has passed its self-test in a fresh process."""
    monkeypatch.chdir(tmp_path)
    small = "--preprocess.videos 2 --preprocess.draws-per-video 2 --solver.steps 5 --train.steps 2 --train.batch-size 2"
    short = "--evaluate.prompts 1 --evaluate.videos 0 --evaluate.teacher-omega 2"
    for words in (
        f"train --energy pta --out run --device cpu {small} {short}",
        *(f"export run {name} --format {name}" for name in export.FORMATS),
    ):
        with pytest.raises(SystemExit) as done:
            main(words.split())
        assert not done.value.code, words

    assert all((tmp_path / name / "README.md").is_file() for name in export.FORMATS)
