"""What the doctor finds, on machines that have this and lack that."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from diffusion import diagnosis
from diffusion.cli.commands.doctor import doctor
from diffusion.cli.parser import EXTRAS
from diffusion.diagnosis import Finding, declared_packages, diagnose
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import NUMERIC_VARIABLES


@pytest.fixture
def uninstall(monkeypatch):
    """Return a function after which packages are not installed, or have another version."""
    version = importlib.metadata.version

    def uninstall(**versions: str | None):
        def find(name: str) -> str:
            if name.replace("-", "_") not in versions:
                return version(name)
            if (found := versions[name.replace("-", "_")]) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, "version", find)

    return uninstall


def test_the_packages_are_those_of_the_project_without_a_toml_reader():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {name: extras[name] for name in extras if name not in ("all", "dev")}
    assert declared_packages() == {"": project["dependencies"], **wanted}


def test_an_installed_package_knows_them_from_its_metadata(monkeypatch, tmp_path):
    monkeypatch.setattr(diagnosis, "PACKAGES", tmp_path)
    lines = ["torch>=2.6", 'scipy>=1.15; extra == "scores"', "ruff; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert declared_packages() == {"": ["torch>=2.6"], "scores": ["scipy>=1.15"]}


def test_an_old_or_absent_core_package_is_missing_and_an_extra_s_a_warning(uninstall):
    uninstall(h5py=None, timm="0.9.1", scipy=None)
    core, scores = diagnosis.check_core(), diagnosis.check_extra("scores")
    assert core.status == "missing" and "h5py>=3.8" in core.text and "timm>=1.0 (there is 0.9.1)" in core.text
    assert "-m pip install pixcell" in core.text
    assert scores.status == "warning" and scores.text.startswith("without scipy>=1.15; pip install 'pixcell[scores]'")


def test_weights_are_found_where_commands_look_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for check, name, files in (
        (diagnosis.check_weights, "PixCell-256", ("pixcell-256/config.json", "pixcell-256/x.safetensors")),
        (diagnosis.check_weights, "PixCell-1024", ("pixcell_1024.ckpt",)),
        (
            diagnosis.check_weights,
            "SD3.5's VAE",
            ("sd-3.5-vae/config.json", "sd-3.5-vae/diffusion_pytorch_model.safetensors"),
        ),
        (diagnosis.check_encoder, "uni2", ("uni2/pytorch_model.bin",)),
    ):
        before = check(name, tmp_path / "root")
        assert before.status == "warning" and "huggingface.co/" in before.text
        for file in files:
            place = tmp_path / "root/pretrained_models" / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        after = check(name, tmp_path / "root")
        assert after.status == "ok" and place.is_relative_to(after.text)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "stored"])
def test_a_token_is_found_and_not_shown(variable, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if variable == "stored":
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    else:
        monkeypatch.setenv(variable, "hf_secret")
    found = diagnosis.check_token()
    assert found.status == "ok" and "secret" not in found.text


def test_variables_that_change_numbers_are_named(monkeypatch):
    for name in NUMERIC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert diagnosis.check_variables().text.startswith("NVIDIA_TF32_OVERRIDE=1 change")


def test_a_launcher_s_variables_that_are_not_whole_are_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    found = {finding.name: finding for finding in diagnose(tmp_path, tmp_path)}
    assert found["launcher"].status == "warning" and "without MASTER_ADDR" in found["launcher"].text


def test_the_config_of_accelerate_is_read(monkeypatch, tmp_path):
    file = tmp_path / "default_config.yaml"
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    assert diagnosis.check_accelerate().text.startswith(f"no {file}")
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    assert diagnosis.check_accelerate() == Finding("accelerate", "ok", f"{file}: 8 processes, MULTI_GPU")
    file.write_text("distributed_type: DEEPSPEED\nnum_processes: 8\n")
    assert diagnosis.check_accelerate().status == "warning"


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr(diagnosis, "_ask_driver", lambda: ["NVIDIA A100, 470.1"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "NVIDIA A100, 470.1, which torch" in diagnosis.check_gpu().text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES=''" in diagnosis.check_gpu().text


def test_a_folder_that_cannot_be_made_or_has_no_space_is_missing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    found = diagnosis.check_folder("root", tmp_path / "file/below", "--root", read_only="warning")
    assert found.status == "missing" and "--root" in found.text

    def usage(free: int):
        return type("Usage", (), {"free": free})

    for free, status in ((10**6, "missing"), (10**10, "warning"), (10**12, "ok")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage(free))
        assert diagnosis.check_folder("work dir", tmp_path / "new", "--workdir", "missing").status == status
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    assert diagnosis.check_locks(tmp_path / "new").status == "ok"
    monkeypatch.setattr(diagnosis, "has_locks", lambda folder: False)
    assert diagnosis.check_locks(tmp_path / "new").status == "warning"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModuleNotFoundError("", name="torch"), "cannot be told without torch"),
        (InputError("as it is"), "as it is"),
        (RuntimeError("broken\nlibrary"), "cannot be told (RuntimeError: broken)"),
    ],
)
def test_a_check_that_fails_is_a_finding(error, text):
    def check():
        raise error

    found = diagnosis._attempt("it", check)
    assert found.status == "warning" and found.text.startswith(text)


def test_the_exit_code_tells_what_is_needed_and_missing(tmp_path, capsys, uninstall):
    assert doctor(tmp_path, tmp_path / "run") == 0
    assert "nothing that is needed is missing" in capsys.readouterr().out
    uninstall(torch=None)
    assert doctor(tmp_path, tmp_path / "run") == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("missing: core packages")


def test_it_works_without_any_extra_and_even_without_torch(tmp_path):
    blocked = dict.fromkeys([*EXTRAS, "torch"])
    code = (
        f"import sys; sys.modules.update({blocked!r}); from diffusion.cli.main import call; sys.exit(call(['doctor']))"
    )
    environment = {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # torch is installed, and only does not load
    assert not done.stderr and "cannot be told without torch" in done.stdout
    assert not [path for path in Path(tmp_path).iterdir() if path.name != ".cache"]
