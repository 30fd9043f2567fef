"""The trained copy: it begins as its teacher, has the inputs omega and lambda, and is loaded from disk."""

from __future__ import annotations

import os

import attrs
import pytest
import torch
from torch import nn

from guidedcd.config import sections
from guidedcd.diffusion.embeddings import guidance_embedding, guidance_scale_embedding
from guidedcd.diffusion.randomness import noise
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student, set_dropout, write_checksums
from guidedcd.testing.tiny_teacher import tiny_teacher
from guidedcd.training.master_weights import MasterWeights

LORA = sections.Student(kind="lora", rank=2)


@pytest.fixture(scope="module")
def teacher():
    """One tiny teacher for all tests."""
    return tiny_teacher(frames=3)


@pytest.fixture(scope="module")
def inputs(teacher):
    """(z, t, cond, omega, lambdas of two energies) for two samples."""
    z = noise(0, 0, (2, *teacher.geometry.latent_shape))
    cond = teacher.embed(["a red circle", "a blue square"])
    return z, torch.tensor([999, 300]), cond, torch.tensor([7.5, 12.0]), torch.tensor([[0.05, 0.0], [0.0, 0.03]])


def shaken(student: Student, size: float = 0.05) -> Student:
    """The student with noise on every trained weight."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in student.trainable:
            p.add_(size * torch.randn(p.shape, generator=generator))
    return student


def test_a_damaged_student_is_named(teacher, tmp_path):
    """Truncated or missing weights give one sentence with the file and what to do."""
    Student(teacher).save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(GuidedCDError, match=r"model\.safetensors is damaged .*Delete"):
        Student.load(tmp_path, teacher)
    path.unlink()
    with pytest.raises(GuidedCDError, match=r"model\.safetensors is damaged .*Delete"):
        Student.load(tmp_path, teacher)
    os.mkfifo(path)
    with pytest.raises(GuidedCDError, match=r"model\.safetensors is a device or pipe"):
        Student.load(tmp_path, teacher)


@pytest.mark.parametrize("config", [sections.Student(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("energies", [(), ("pta",), ("pta", "jerk")], ids=len)
def test_a_fresh_student_is_its_teacher(teacher, inputs, config, energies):
    """For all inputs, in train mode too, a fresh student predicts bit for bit what the teacher predicts."""
    z, t, cond, omega, lambdas = inputs
    student = Student(teacher, config, energies).train()
    with torch.no_grad():
        expected = teacher.net(z, t, cond)

        assert torch.equal(student(z, t, cond, omega, lambdas[:, : len(energies)] if energies else None), expected)
        assert torch.equal(student(z, t, cond), expected)


def test_only_the_outermost_matrix_is_zero(teacher, inputs):
    """A zero matrix outside and a random one inside: the first gradient reaches the outer one, the next all three."""
    z, t, cond, omega, lambdas = inputs
    student = Student(teacher, None, ("pta", "jerk"))
    conditioning = student.network.time_embedding.cond_proj
    assert not conditioning.combine_proj.weight.any()
    assert conditioning.time_cond_proj.weight.any() and conditioning.motion_cond_proj.weight.any()

    optimizer = torch.optim.SGD(student.trainable, lr=0.1)
    student(z, t, cond, omega, lambdas).square().mean().backward()
    assert conditioning.combine_proj.weight.grad.any()
    assert not conditioning.time_cond_proj.weight.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    student(z, t, cond, omega, lambdas).square().mean().backward()
    assert conditioning.time_cond_proj.weight.grad.any() and conditioning.motion_cond_proj.weight.grad.any()


def test_a_trained_student_depends_on_every_input(teacher, inputs):
    """Omega, each energy's input, and their absence change a trained prediction; samples stay independent."""
    z, t, cond, omega, lambdas = inputs
    student = shaken(Student(teacher, None, ("pta", "jerk"))).eval()
    with torch.no_grad():
        base = student(z, t, cond, omega, lambdas)
        changes = [
            student(z, t, cond, omega + 1, lambdas),
            student(z, t, cond, omega, lambdas + torch.tensor([0.01, 0.0])),
            student(z, t, cond, omega, lambdas + torch.tensor([0.0, 0.01])),
            student(z, t, cond, omega),
            student(z, t, cond),
        ]
        for changed in changes:
            assert not torch.allclose(base, changed, atol=1e-6)
        other = student(z, t, cond, torch.tensor([7.5, 1.0]), lambdas)

    torch.testing.assert_close(base[0], other[0])
    assert not torch.allclose(base[1], other[1], atol=1e-6)


def test_lambdas_must_fit_the_energies(teacher, inputs):
    """A wrong number of lambdas, or lambdas without omega, is a programming error with a sentence."""
    z, t, cond, omega, lambdas = inputs
    student = Student(teacher, None, ("pta",))
    with pytest.raises(ValueError, match="2 columns; this student has 1"):
        student(z, t, cond, omega, lambdas)
    with pytest.raises(ValueError, match="lambdas need omega"):
        student(z, t, cond, None, lambdas[:, :1])


@pytest.mark.parametrize("dim", [7, 64, 256])
def test_embedding_is_sines_then_cosines(dim):
    """sin|cos of 1000 w with frequencies 1 to 1e-4, zero-padded when the width is odd; 0 is not the zero vector."""
    w = torch.tensor([0.0, 0.05, 7.5], dtype=torch.float64)
    embedding, half = guidance_scale_embedding(w, dim, torch.float64), dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    phase = 1000 * w[:, None] * frequencies

    assert embedding.shape == (3, dim)
    torch.testing.assert_close(embedding[:, :half], phase.sin(), atol=1e-8, rtol=0)
    torch.testing.assert_close(embedding[:, half : 2 * half], phase.cos(), atol=1e-8, rtol=0)
    assert not embedding[:, 2 * half :].any()
    assert embedding[0].sum() == half
    assert guidance_embedding(w.float(), torch.zeros(3, 2)).shape == (3, 768)
    assert guidance_embedding(None) is None


def test_the_teacher_is_no_part_of_the_student(teacher):
    """State and parameters hold the copy alone, and training it leaves the teacher as it was."""
    student = Student(teacher)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    shaken(student)

    assert all(name.startswith("network.") for name in student.state_dict())
    assert not any("vae" in name for name, _ in student.named_parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().training


def test_dropout_is_off_by_default(teacher, inputs):
    """Training mode alone adds no noise; with dropout 0.1 the temporal convolutions do, and nothing else."""
    z, t, cond, *_ = inputs
    quiet, noisy = Student(teacher).train(), Student(teacher, sections.Student(dropout=0.1)).train()
    rates = {m.p for m in noisy.modules() if isinstance(m, nn.Dropout)}
    assert {0.0, 0.1} == rates
    assert {0.0} == {m.p for m in quiet.modules() if isinstance(m, nn.Dropout)}
    assert torch.equal(quiet(z, t, cond), quiet(z, t, cond))

    # The last temporal convolutions of a new UNet are zero, so its dropout cannot be seen yet.
    shaken(noisy)
    assert not torch.equal(noisy(z, t, cond), noisy(z, t, cond))
    noisy.eval()
    assert torch.equal(noisy(z, t, cond), noisy(z, t, cond))
    set_dropout(noisy.network, 0.0)
    assert {0.0} == {m.p for m in noisy.modules() if isinstance(m, nn.Dropout)}


def test_lora_trains_few_weights(teacher):
    """With LoRA only adapters and guidance inputs train: less than half of the weights, none of the base."""
    student = Student(teacher, LORA, ("pta",))
    names = {name for name, p in student.network.named_parameters() if p.requires_grad}

    assert all("lora_" in name or "cond_proj" in name for name in names)
    assert any("conv" in name for name in names) and any("attn1" in name for name in names)
    assert sum(p.numel() for p in student.trainable) < 0.5 * sum(p.numel() for p in student.network.parameters())


@pytest.mark.parametrize("config", [sections.Student(), LORA], ids=["full", "lora"])
def test_a_student_comes_back_from_disk(teacher, inputs, config, tmp_path):
    """A saved student that is loaded predicts exactly the same, in eval mode, with its energies' names."""
    z, t, cond, omega, lambdas = inputs
    student = shaken(Student(teacher, config, ("pta", "jerk"))).eval()
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student", teacher)

    assert loaded.energies == ("pta", "jerk")
    assert config == loaded.config
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(student(z, t, cond, omega, lambdas), loaded(z, t, cond, omega, lambdas))


@pytest.mark.parametrize("config", [sections.Student(), LORA], ids=["full", "lora"])
def test_a_flipped_bit_is_one_sentence(teacher, config, tmp_path):
    """Any bit of the weights is covered; a folder without checksums, as older versions wrote it, loads."""
    Student(teacher, config, ("pta",)).save(tmp_path)
    write_checksums(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for place in (len(whole) // 2, len(whole) - 1, len(whole) * 9 // 10):
        content = bytearray(whole)
        content[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(GuidedCDError, match=r"is damaged \(the checksum of model.safetensors differs\)\. Delete"):
            Student.load(tmp_path, teacher)
    (tmp_path / "checksums.json").unlink()
    Student.load(tmp_path, teacher)


def test_a_student_of_another_network_is_refused(teacher, tmp_path):
    """Weights of another shape, adapters of another teacher and other formats are refused in one sentence each."""
    Student(teacher, None, ("pta",)).save(tmp_path / "full")
    text = (tmp_path / "full" / "student.json").read_text()
    (tmp_path / "full" / "student.json").write_text(text.replace('"pta"', '"pta", "jerk"'))
    with pytest.raises(GuidedCDError, match="does not fit this teacher"):
        Student.load(tmp_path / "full", teacher)
    Student(teacher, LORA).save(tmp_path / "lora")
    with pytest.raises(GuidedCDError, match="another teacher"):
        Student.load(tmp_path / "lora", tiny_teacher(frames=3, seed=1))
    (tmp_path / "full" / "student.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(GuidedCDError, match="format 2"):
        Student.load(tmp_path / "full", teacher)
    with pytest.raises(GuidedCDError, match="missing"):
        Student.load(tmp_path / "nowhere", teacher)


def test_the_average_follows_slowly(teacher, inputs):
    """With ema = 0.9 the averaged network moves a tenth of the way; it is the target."""
    z, t, cond, omega, _ = inputs
    student = Student(teacher, sections.Student(ema=0.9))
    weights = MasterWeights(student.network, decay=0.9, target=student.averaged)
    start = [p.clone() for p in student.network.parameters()]
    shaken(student)
    weights.publish()

    for mean, old, new in zip(student.averaged.parameters(), start, student.network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new, atol=1e-6, rtol=1e-5)
        assert not mean.requires_grad
    with torch.no_grad():
        assert torch.equal(student.target(z, t, cond, omega), student(z, t, cond, omega, averaged=True))
        assert not torch.equal(student.target(z, t, cond, omega), student(z, t, cond, omega))


def test_without_an_average_the_target_is_the_student(teacher, inputs):
    """The default has no second network: the target is the student itself."""
    z, t, cond, omega, _ = inputs
    student = shaken(Student(teacher))

    assert student.averaged is None
    with torch.no_grad():
        assert torch.equal(student.target(z, t, cond, omega), student(z, t, cond, omega))


def test_gradient_checkpointing_changes_no_number(teacher, inputs):
    """Recomputing activations gives the same output and the same gradients."""
    z, t, cond, omega, _ = inputs
    plain, saving = shaken(Student(teacher)), shaken(Student(teacher))
    saving.enable_gradient_checkpointing()
    saving.enable_gradient_checkpointing()  # twice is once
    for student in (plain, saving):
        student(z, t, cond, omega).square().mean().backward()

    for one, two in zip(plain.trainable, saving.trainable, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_saved_settings_are_readable(teacher, tmp_path):
    """student.json names the energies, the student's options and its teacher's fingerprint."""
    from guidedcd.documents import read_json

    Student(teacher, LORA, ("pta",)).save(tmp_path)
    meta = read_json(tmp_path / "student.json")

    assert meta["energies"] == ["pta"]
    assert attrs.asdict(LORA) == meta["student"]
    assert teacher.fingerprint() == meta["teacher"]
