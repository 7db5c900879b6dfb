"""The task distillation: a student learns from a teacher that stays, says what it was made for, and is sampled as any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from PIL import Image
from runs import (
    control_settings,
    distillation_settings,
    equal,
    forget_processes,
    launch,
    logged,
    read,
    settings,
    train,
    train_for,
)
from safetensors.torch import load_file, save_file

import pixcell
from diffusion.cli.commands.convert import convert
from diffusion.cli.commands.large import large
from diffusion.cli.commands.push import push
from diffusion.cli.commands.sample import sample
from diffusion.condition import Condition
from diffusion.config.distillation_settings import DistillationSection
from diffusion.config.settings import LoraConfig, ValidationConfig
from diffusion.data.features.loose import feature_path
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.formats import LAST_WEIGHTS
from diffusion.generation.editing import Canvas, Editor, EditSettings
from diffusion.generation.session import open_session
from diffusion.generation.solver import Solver
from diffusion.model.jumps import JumpingNetwork
from diffusion.model.lora import (
    LORA_FILE,
    PEFT_FILE,
    LoraSettings,
    add_lora,
    is_adapter,
    load_lora,
    read_lora_metadata,
    save_lora,
    set_lora_scales,
)
from diffusion.model.student import Student
from diffusion.sampling import SPACED, prepare_scheduler, sample_latents
from diffusion.schedule import add_noise, clean_of_prediction, linear_schedule
from diffusion.tasks.distillation.consistency import ConsistencyLosses
from diffusion.tasks.distillation.task import Distillation
from diffusion.tasks.distillation.trajectory import TrajectoryLosses
from diffusion.utils.errors import InputError
from diffusion.utils.weights import read_torch_file
from diffusion.workdir import open_run

CPU = torch.device("cpu")
TEACHER = dict(vae_pretrained="tiny", scale_factor=None, shift_factor=None, prediction_type="v_prediction")
METHODS = ("trajectory", "consistency")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.fixture
def teacher(feature_root: Path, tmp_path: Path) -> Path:
    """A trained network of one block."""
    train(settings(feature_root, **TEACHER), tmp_path / "teacher", cpu=True)
    forget_processes()
    return tmp_path / "teacher"


def student_settings(root: Path, teacher: Path, method: str = "trajectory", **changes):
    return distillation_settings(root, teacher, dict(method=method), **{"prediction_type": "v_prediction", **changes})


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / "syn").iterdir())]


@pytest.mark.parametrize("method", METHODS)
def test_it_resumes_to_the_bit_beside_a_teacher_that_stays(feature_root, teacher, tmp_path, method):
    config = student_settings(feature_root, teacher, method, max_steps=5, gradient_accumulation_steps=2)
    before = (teacher / LAST_WEIGHTS).read_bytes()
    train(config, tmp_path / "whole", cpu=True)
    train_for(config, tmp_path / "parts", 3)
    train(config, tmp_path / "parts", cpu=True)
    content = read(tmp_path / "whole", 5)
    assert equal(content, read(tmp_path / "parts", 5)) and (teacher / LAST_WEIGHTS).read_bytes() == before
    assert content["frozen_networks"]["teacher"]["path"].startswith(str(teacher))
    stored = {"method": method, "guidance": 1.5, "guidance_interval": None, "steps": [1, 2, 4], "spacing": "power:1.5"}
    assert content["student"] == stored
    run = open_run(tmp_path / "whole", LAST_WEIGHTS, CPU)
    assert run.student == Student(method, 1.5, (1, 2, 4), "power:1.5") and run.model.config.use_target_timestep == (
        method == "trajectory"
    )
    other = dataclasses.replace(config, distillation=dataclasses.replace(config.distillation, guidance=2.0))
    with pytest.raises(InputError, match=r"guidance=1\.5.*guidance=2\.0.*new run"):
        train(other, tmp_path / "whole", cpu=True)


def test_two_processes_resume_to_the_bit_and_shards_learn_the_same(feature_root, teacher, tmp_path):
    section = dict(teacher=str(teacher), steps=[1, 2])
    own = dict(prediction_type="v_prediction", max_steps=4, sample_grid=dict(count=0))
    alike = own | dict(distillation=section | dict(method="consistency"))
    own |= dict(distillation=section | dict(teacher_steps=2))
    runs = [(own, "ddp", None), (own, "parts", 2), (own, "parts", None), (alike, "consistency", None)]
    launch(feature_root, tmp_path, [*runs, (own | dict(use_fsdp=True), "fsdp", None)])
    assert equal(read(tmp_path / "ddp", 4), read(tmp_path / "parts", 4))
    learned, began = (read(tmp_path / "consistency", step)["model"] for step in (4, 0))
    assert all(torch.isfinite(tensor).all() for tensor in learned.values()) and not equal(learned, began)
    for name, tensor in read(tmp_path / "ddp", 4)["model"].items():
        assert torch.allclose(tensor, read(tmp_path / "fsdp", 4)["model"][name], atol=1e-5), name


def test_the_adapter_of_a_student_is_a_file_beside_the_teacher(feature_root, teacher, tmp_path):
    lora = LoraConfig(rank=2, targets=("cross_attention", "mlp"))
    config = student_settings(feature_root, teacher, lora=lora, max_steps=4)
    train(config, tmp_path / "run", cpu=True)
    train_for(config, tmp_path / "parts", 2)
    train(config, tmp_path / "parts", cpu=True)
    assert equal(read(tmp_path / "run", 4), read(tmp_path / "parts", 4))
    forget_processes()
    exported = read_torch_file(tmp_path / "run" / LAST_WEIGHTS)
    assert (
        "target_embedder.mlp.0.weight" in exported["state_dict"]
        and "blocks.0.attn.qkv.weight" not in exported["state_dict"]
    )
    convert(tmp_path / "run", tmp_path / "released", to="lora")
    sample(workdir=tmp_path / "run", out=tmp_path / "own", count=2)
    sample(workdir=teacher, lora=[str(tmp_path / "run")], out=tmp_path / "added", count=2)
    sample(workdir=teacher, lora=[str(tmp_path / "released")], out=tmp_path / "converted", count=2)
    assert all(map(np.array_equal, pixels(tmp_path / "own"), pixels(tmp_path / "added")))
    assert all(map(np.array_equal, pixels(tmp_path / "own"), pixels(tmp_path / "converted")))
    as_peft = tmp_path / "released" / PEFT_FILE
    assert is_adapter(as_peft)
    sample(workdir=teacher, lora=[str(as_peft)], out=tmp_path / "peft", count=2)
    assert all(map(np.array_equal, pixels(tmp_path / "own"), pixels(tmp_path / "peft")))
    tensors = load_file(as_peft)
    save_file({name: tensor for name, tensor in tensors.items() if "target_embedder" not in name}, as_peft)
    with pytest.raises(InputError, match="a student of jumps, without its target_embedder: it is damaged"):
        sample(workdir=teacher, lora=[str(as_peft)], out=tmp_path / "damaged")
    with pytest.raises(InputError, match="leave the scale out"):
        sample(workdir=teacher, lora=[f"{tmp_path / 'run'}:0.5"], out=tmp_path / "half")
    network = open_run(teacher, LAST_WEIGHTS, CPU).model
    add_lora(network, LoraSettings.of(2), name="look")
    load_lora(network, tmp_path / "run")
    with pytest.raises(InputError, match=r"run makes the network a student, and 0\.5 times it none"):
        set_lora_scales(network, {"look": 0.5, "run": 0.5})
    save_lora(network, tmp_path / "look", "look")  # which the student beside it does not change
    assert not any("target" in name for name in load_file(tmp_path / "look" / LORA_FILE))
    assert read_lora_metadata(tmp_path / "look" / LORA_FILE, {}).keys().isdisjoint({"student"})
    start = LoraConfig(rank=2, targets=("cross_attention", "mlp"), load_from=str(tmp_path / "run"))
    for rank in (0, 2):  # added to the weights, or trained on
        begun = settings(
            feature_root, **TEACHER, load_from=str(teacher / LAST_WEIGHTS), lora=dataclasses.replace(start, rank=rank)
        )
        with pytest.raises(
            InputError, match="makes the network a student: expected an adapter that it is trained with"
        ):
            train(begun, tmp_path / "begun", cpu=True)
    forget_processes()
    with pytest.raises(InputError, match="it is one already"):
        sample(workdir=teacher, lora=[str(tmp_path / "run")] * 2, out=tmp_path / "twice")


@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_sampled_by_every_way_with_its_folder_alone(feature_root, teacher, tmp_path, method):
    train(student_settings(feature_root, teacher, method, max_steps=2), tmp_path / "run", cpu=True)
    forget_processes()
    run = tmp_path / "run"
    sample(workdir=run, out=tmp_path / "usual", count=2)
    sample(workdir=run, out=tmp_path / "four", count=2, steps=4, guidance=1.5)
    sample(workdir=run, out=tmp_path / "one", count=2, steps=1)
    assert all(map(np.array_equal, pixels(tmp_path / "usual"), pixels(tmp_path / "four")))
    assert not np.array_equal(pixels(tmp_path / "usual")[0], pixels(tmp_path / "one")[0])
    large(workdir=run, out=tmp_path / "large", height=512, width=256, count=1)
    assert pixels(tmp_path / "large")[0].shape[:2] == (512, 256)
    picture = np.full((256, 256, 3), 100, dtype=np.uint8)
    mask = np.zeros((256, 256), dtype=bool)
    mask[50:200, 80:190] = True
    editor = Editor(open_session(run, device="cpu"), EditSettings(0.5))
    seen: list[int] = []
    editor.condition_tokens = lambda *_: torch.zeros(1, 1, 8)  # pyright: ignore[reportAttributeAccessIssue]
    edited = editor.edit(Canvas(picture, mask), on_step=lambda step, timestep, _: seen.append(int(timestep)))
    assert np.array_equal(edited[~mask], picture[~mask]) and not np.array_equal(edited, picture)
    assert len(seen) == editor.steps == 2, "of four steps the last two"
    (tmp_path / "weights").mkdir()
    for kind, name in (("diffusers", "diffusers"), ("safetensors", "one.safetensors")):
        convert(run, tmp_path / "weights" / name, to=kind)
        assert open_run(tmp_path / "weights" / name, LAST_WEIGHTS, CPU).student == Student(
            method, 1.5, (1, 2, 4), "power:1.5"
        )
    opened = open_run(run, LAST_WEIGHTS, CPU)
    tokens, noise = torch.randn(2, 1, 8), torch.randn(2, 16, 32, 32)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    latents = Solver().latents(opened, noise, tokens, generators)
    pipe = pixcell.PixCellPipeline.from_pretrained(tmp_path / "weights" / "diffusers", vae="tiny")
    again = [torch.Generator().manual_seed(i) for i in range(2)]
    piped = pipe(tokens, latents=noise, generator=again, output_type="latent").images
    assert torch.allclose(latents, piped, atol=1e-6)
    again = [torch.Generator().manual_seed(i) for i in range(2)]
    task = Distillation(student_settings(feature_root, teacher, method))
    assert torch.equal(latents, task.sample(opened.model, noise, Condition(tokens), 20, 2.0, again)), (
        "as while it learns"
    )
    convert(teacher, tmp_path / "weights" / "teacher", to="diffusers")
    whole = pixcell.PixCellPipeline.from_pretrained(tmp_path / "weights" / "teacher", vae="tiny")
    whole.save_pretrained(tmp_path / "weights" / "pipeline")
    exchanged = pixcell.PixCellPipeline.from_pretrained(
        tmp_path / "weights" / "pipeline", transformer=pipe.transformer
    )  # whose folder has the teacher's scheduler
    again = [torch.Generator().manual_seed(i) for i in range(2)]
    assert torch.equal(exchanged(tokens, latents=noise, generator=again, output_type="latent").images, piped)
    exchanged.scheduler = DPMSolverMultistepScheduler(
        solver_order=1, prediction_type="v_prediction", use_karras_sigmas=True
    )
    with pytest.raises(InputError, match="leave the scheduler out"):
        exchanged(tokens)
    for wrong, message in (
        (dict(guidance_scale=2.0), "guidance 2: the network is a student with guidance 1.5"),
        (dict(num_inference_steps=20), "20 sampling steps: the network is a student of 1, 2, 4 steps"),
        (
            dict(guidance_interval=(0.3, 5.0)),
            "guidance interval 0.3 to 5: the network is a student with guidance at all",
        ),
    ):
        with pytest.raises(InputError, match=message):
            pipe(tokens, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(guidance=2.0), "guidance 2: the network is a student with guidance 1.5 in every prediction"),
        (dict(steps=20), "20 sampling steps: the network is a student of 1, 2, 4 steps; take one of these"),
        (dict(algorithm="unipc"), "unipc: the network is a student that is sampled by ddim"),
        (
            dict(block_cache="fast"),
            "block cache fast: the network is a student, whose few steps leave nothing to reuse",
        ),
        (dict(spacing="karras"), "spacing karras: the network is a student"),
        (dict(spacing="uniform"), "spacing uniform: the network is a student"),
        (dict(guidance_interval=(0.3, 5.0)), "guidance interval 0.3 to 5: .* a student with guidance from 0.3 to 4 in"),
    ],
)
def test_settings_that_a_student_was_not_made_for_are_errors(wrong, message):
    class Opened:
        student, weak = Student("trajectory", 1.5, (1, 2, 4), "power:1.5", (0.3, 4.0)), None

    with pytest.raises(InputError, match=message):
        Solver(**wrong).for_run(Opened())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(steps=(4, 2)), "expected rising numbers"),
        (dict(steps=(3, 4)), "does not divide 4"),
        (dict(teacher_steps=6), "expected a multiple of the student's 8 steps"),
        (dict(skip=30), "skip 30 is of another method than trajectory: leave it out"),
        (dict(method="consistency", solver="ddim"), "solver ddim is of another method than consistency: leave it out"),
    ],
)
def test_settings_of_no_student_are_errors(section, message):
    with pytest.raises(InputError, match=message):
        DistillationSection(**section)


def test_a_teacher_is_needed_and_is_no_student(feature_root, teacher, tmp_path):
    config = student_settings(feature_root, teacher, max_steps=2)
    none = dataclasses.replace(config, distillation=dataclasses.replace(config.distillation, teacher=None))
    with pytest.raises(InputError, match=r"distillation\.teacher None: expected"):
        train(none, tmp_path / "none", cpu=True)
    for wrong, message in (
        (dict(lora=LoraConfig(load_from="a"), load_from="b"), "lora.load_from with task distillation"),
        (dict(lora=LoraConfig(rank=2), load_from="b"), "load_from b with lora.rank"),
    ):
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(config, **wrong), tmp_path / "none", cpu=True)
    train(config, tmp_path / "run", cpu=True)
    forget_processes()
    twice = dataclasses.replace(
        config, distillation=dataclasses.replace(config.distillation, teacher=str(tmp_path / "run"))
    )
    with pytest.raises(InputError, match="is a student itself: expected the network that it was made of"):
        train(twice, tmp_path / "twice", cpu=True)


def test_the_loss_falls_on_samples_that_are_held_out(feature_root, teacher, tmp_path):
    held_out = ValidationConfig(count=3, subset_keys=("set_1024",))
    config = student_settings(
        feature_root, teacher, max_steps=40, save_model_steps=40, validation=held_out, report_to="tensorboard"
    )
    train(config, tmp_path / "run", cpu=True)
    losses = logged(tmp_path / "run", "validation/loss")
    assert losses[40] < 0.8 * losses[0]


# ---- the losses


def exact(x: torch.Tensor, timestep: torch.Tensor, y: object) -> torch.Tensor:
    """The velocity of a data set that is one image of zeros: its paths are straight in the angle between noise and signal."""
    signal = linear_schedule().alpha_bar.sqrt().float()[timestep][:, None, None, None]
    noise = (1 - signal**2).sqrt()
    return signal * x / noise


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_student_that_jumps_along_the_path_has_no_loss(prediction):
    section = DistillationSection(teacher="x", steps=(1, 2, 4), teacher_steps=8, jumps=9)
    losses = TrajectoryLosses(section, prediction)
    noise, tokens = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 1, 3)

    def network(x: torch.Tensor, timestep: torch.Tensor, y: object) -> torch.Tensor:
        v = exact(x, timestep, y)
        level = (1 - linear_schedule().alpha_bar).sqrt().float()[timestep][:, None, None, None]
        return v if prediction == "v_prediction" else (1 - level**2).sqrt() * v + level * x

    path = losses.path(network, noise, Condition(tokens), torch.zeros(1, 3))
    assert len(path) == 9 and torch.equal(path[0], noise)
    uniform = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    jumps = [losses.choose_jumps(row) for row in uniform]
    assert sorted(jumps[0]) == sorted({(i, i + n) for n in (8, 4, 2) for i in range(0, 8, n)})
    found = losses.losses(lambda x, t, s, y: network(x, t, y), path, Condition(tokens), jumps)
    assert found.shape == (2,) and found.max() < 1e-6
    wrong = losses.losses(lambda x, t, s, y: network(x, t, y) + 1, path, Condition(tokens), jumps)
    assert wrong.min() > (0.9 if prediction == "v_prediction" else 1.0)


def test_jumps_are_chosen_evenly_and_none_twice():
    losses = TrajectoryLosses(DistillationSection(teacher="x", jumps=2), "v_prediction")
    uniform = torch.rand(400, 15, generator=torch.Generator().manual_seed(0))
    chosen = [losses.choose_jumps(row) for row in uniform]
    assert all(len(own) == len(set(own)) == 7 for own in chosen)
    starts = [jump.start for own in chosen for jump in own if jump.end - jump.start == 2]
    assert set(starts) == set(range(0, 16, 2)) and max(map(starts.count, starts)) < 150


def test_a_network_that_jumps_is_told_where_the_steps_of_its_solver_end():
    told = []

    class Network:
        null_condition = torch.zeros(1, 3)

        def __call__(self, x, timestep, y, dropped, residuals, target):
            told.append((int(timestep[0]), int(target[0])))
            return torch.zeros_like(x)

    network = JumpingNetwork(Network(), [999, 649, 353, 125])  # type: ignore[arg-type] - what it calls of a PixArt
    x, y = torch.randn(1, 4, 8, 8), torch.zeros(1, 1, 3)
    settings = dict(steps=4, guidance=1.0, algorithm="ddim", prediction_type="v_prediction")
    sample_latents(network, x, y, spacing="power:1.5", **settings)
    assert told == [(999, 649), (649, 353), (353, 125), (125, 0)]
    with pytest.raises(ValueError, match=r"timesteps \[749\]: no step of this sampling begins there"):
        sample_latents(network, x, y, spacing="uniform", **settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_is_guided_at_the_noise_levels_of_its_interval_alone(method):
    asked: list[tuple[int, int]] = []  # the timesteps of each pass, and its samples

    def network(x: torch.Tensor, timestep: torch.Tensor, y: object) -> torch.Tensor:
        asked.append((int(timestep[0]), len(x)))
        return torch.zeros_like(x)

    settings = DistillationSection(teacher="x", method=method, guidance_interval=(0.3, 5.0))  # type: ignore[arg-type]
    x, y, null = torch.zeros(2, 4, 8, 8), Condition(torch.zeros(2, 1, 3)), torch.zeros(1, 3)
    levels = linear_schedule().noise_levels
    if method == "trajectory":
        TrajectoryLosses(settings, "v_prediction").path(network, x, y, null)
        assert len(asked) == 16 and all((count == 4) == (0.3 <= levels[t] <= 5) for t, count in asked)
        assert {count for _, count in asked} == {2, 4}
    else:
        strengths = ConsistencyLosses(settings, "v_prediction").strengths(torch.tensor([30, 500, 999]))
        assert strengths.flatten().tolist() == [1.0, 1.5, 1.0]


def test_a_teacher_whose_path_depends_on_more_than_its_noise_is_refused():
    for solver in ("iddpm", "sa-solver", "lcm"):
        with pytest.raises(
            InputError, match=f"{solver}: its path depends on more than the noise .* expected dpm-solver, dpm"
        ):
            TrajectoryLosses(DistillationSection(teacher="x", solver=solver), "v_prediction")
    for solver in SPACED:  # whose steps are the student's
        steps = prepare_scheduler(solver, 16, spacing="uniform").timesteps.tolist()
        assert steps[::2] == prepare_scheduler("ddim", 8, spacing="uniform").timesteps.tolist()


def test_steps_that_a_student_cannot_take_are_refused_before_it_is_trained(feature_root, teacher, tmp_path):
    for method in METHODS:
        section = dict(method=method, steps=(4,), spacing="400,300,200,100")
        with pytest.raises(InputError, match="cannot take 4 steps: its timesteps would begin late"):
            train(distillation_settings(feature_root, teacher, section), tmp_path / "run", cpu=True)
        assert not (tmp_path / "run").exists()


def test_an_end_of_a_path_is_consistent_with_its_latents():
    losses = ConsistencyLosses(DistillationSection(teacher="x"), "v_prediction")
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.zeros(3, 4, 8, 8), torch.randn(3, 4, 8, 8, generator=generator)
    timestep = losses.choose_timesteps(torch.tensor([0.0, 0.5, 0.999]))
    assert timestep.tolist() == [20, 510, 999]
    y = Condition(torch.zeros(3, 1, 3))
    found = losses.losses(exact, exact, clean, noise, timestep, y, torch.zeros(1, 3))
    assert found.shape == (3,) and found.max() < 0.01
    off = losses.losses(lambda *parts: exact(*parts) + 0.5, exact, clean, noise, timestep, y, torch.zeros(1, 3))
    assert off[1] > found[1]
    start = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(losses.end(exact, noise, start, y), noise), "at timestep 0 the latents themselves"


def test_the_solver_of_consistency_goes_to_the_end_and_back():
    x, tokens = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 3)
    seen = []

    def network(x: torch.Tensor, timestep: torch.Tensor, y: object) -> torch.Tensor:
        seen.append(int(timestep[0]))
        return 0.1 * x

    one = sample_latents(network, x, tokens, steps=1, guidance=1.0, algorithm="lcm", prediction_type="v_prediction")
    end = clean_of_prediction(linear_schedule(), 0.1 * x, x, torch.tensor([999]), "v_prediction")
    assert torch.allclose(one, end, atol=1e-5)
    settings = dict(guidance=1.0, algorithm="lcm", prediction_type="v_prediction")
    sample_latents(network, x, tokens, steps=4, generators=[torch.Generator().manual_seed(1)], **settings)
    assert seen == [999, 999, 749, 500, 250]
    there = sample_latents(network, x, tokens, steps=2, generators=[torch.Generator().manual_seed(1)], **settings)
    new = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    back, timestep = add_noise(linear_schedule(), end, new, torch.tensor([500])), torch.tensor([500])
    wanted = clean_of_prediction(linear_schedule(), 0.1 * back, back, timestep, "v_prediction")
    assert seen[-2:] == [999, 500] and torch.allclose(there, wanted, atol=1e-4)


def test_a_card_names_student_and_teacher(feature_root, teacher, tmp_path):
    section = dict(guidance_interval=(0.3, 5.0))
    config = distillation_settings(feature_root, teacher, section, max_steps=2, prediction_type="v_prediction")
    train(config, tmp_path / "run", cpu=True)
    forget_processes()
    push(workdir=tmp_path / "run", out=tmp_path / "hub", dry_run=True)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "a student, distilled for 1, 2, 4 steps" in card and "guidance_scale" not in card
    assert "guidance 1.5 in every prediction between the noise levels 0.3 and 5." in card
    assert str(tmp_path) not in (tmp_path / "hub" / "config.py").read_text()
    student = open_run(tmp_path / "hub", LAST_WEIGHTS, CPU).student
    assert student == Student("trajectory", 1.5, (1, 2, 4), "power:1.5", (0.3, 5.0))


def test_a_controlnet_of_the_teacher_steers_its_student(feature_root, teacher, tmp_path):
    for name in iterate_names(index_path(feature_root), "set_1024"):
        mask = np.kron(np.eye(16), np.ones((64, 64))) * 255
        Image.fromarray(mask.astype(np.uint8)).save(
            feature_path(feature_root / "patches", name, "mask").with_suffix(".png")
        )
    controlled = control_settings(feature_root, teacher, max_steps=2, prediction_type="v_prediction")
    train(controlled, tmp_path / "controlnet", cpu=True)
    forget_processes()
    train(student_settings(feature_root, teacher, max_steps=2), tmp_path / "run", cpu=True)
    forget_processes()
    shared = dict(workdir=tmp_path / "run", controlnet=tmp_path / "controlnet", control=[tmp_path / "mask.png"])
    Image.fromarray(np.full((256, 256), 255, np.uint8)).save(tmp_path / "mask.png")
    sample(**shared, out=tmp_path / "steered")
    sample(**shared, out=tmp_path / "unscaled", control_scale=0.0)
    sample(workdir=tmp_path / "run", out=tmp_path / "plain", count=1)
    assert np.array_equal(pixels(tmp_path / "unscaled")[0], pixels(tmp_path / "plain")[0])
    assert not np.array_equal(pixels(tmp_path / "steered")[0], pixels(tmp_path / "plain")[0])
