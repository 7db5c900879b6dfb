"""What a machine has of what this package needs: each check is one finding, and none needs the network or an extra.

A check may import anything; where that is not installed, or something unexpected happens, its finding says so.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.utils.assets import PACKAGES
from diffusion.utils.errors import InputError
from diffusion.utils.files import check_writable
from diffusion.utils.hardware import NUMERIC_VARIABLES, count_cores, find_compiler, has_bf16
from diffusion.utils.launch import check_launcher, read_launch
from diffusion.utils.locks import has_locks

OLDEST_PYTHON = (3, 10)
NOT_FOR_USERS = ("all", "dev")  # extras that say nothing of their own
LITTLE_MEMORY, LITTLE_DISK, FULL_DISK = 8 * 2**30, 20 * 2**30, 2**30  # bytes
LONGEST_ANSWER = 4.0  # seconds to wait for another program
# what is called so -> entries of the hub's table, any of which is enough; encoders have a table of their own
WEIGHTS: Mapping[str, Sequence[str]] = {
    "PixCell-256": ("pixcell-256", "pixcell-256-ckpt"),
    "PixCell-1024": ("pixcell-1024", "pixcell-1024-ckpt"),
    "SD3.5's VAE": ("vae-open", "vae"),
}
ENCODERS = ("uni2", "mobilenetv2")


@dataclass(frozen=True)
class Finding:
    """What a check found. ok; warning: something works less well, or not at all, that not everyone needs; missing: needed."""

    name: str
    status: Literal["ok", "warning", "missing"]
    text: str


def diagnose(root: Path, work_dir: Path) -> Iterator[Finding]:
    """Check this machine for data in `root` and runs in `work_dir`, and yield what is found. Nothing is left behind."""
    checks: dict[str, Callable[[], Finding]] = {
        "Python": check_python,
        "core packages": check_core,
        **{f"extra {name}": lambda name=name: check_extra(name) for name in declared_packages() if name},
        "GPU": check_gpu,
        "cores": check_threads,
        "memory": check_memory,
        "root": lambda: check_folder("root", root, "--root", read_only="warning"),
        "work dir": lambda: check_folder("work dir", work_dir, "--workdir", read_only="missing"),
        "locks": lambda: check_locks(work_dir),
        **{name: lambda name=name: check_weights(name, root) for name in WEIGHTS},
        **{name: lambda name=name: check_encoder(name, root) for name in ENCODERS},
        "token": check_token,
        "compiler": check_compiler,
        "OpenSlide": check_openslide,
        "accelerate": check_accelerate,
        "launcher": check_launch,
        "variables": check_variables,
    }
    for name, check in checks.items():
        yield _attempt(name, check)


def _attempt(name: str, check: Callable[[], Finding]) -> Finding:
    """Return what a check finds, or that it cannot be done."""
    try:
        return check()
    except ModuleNotFoundError as error:
        return Finding(name, "warning", f"cannot be told without {error.name}; install the packages first")
    except InputError as error:
        return Finding(name, "warning", str(error))
    except Exception as error:  # broken installations raise anything
        reason = str(error).strip().partition("\n")[0]
        return Finding(name, "warning", f"cannot be told ({type(error).__name__}: {reason})")


# ---- Python and packages


def check_python() -> Finding:
    """Check the version of Python."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Finding("Python", "missing", f"{found}; needed is {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    return Finding("Python", "ok", found)


def declared_packages() -> dict[str, list[str]]:
    """Return requirements such as `torch>=2.6` by the extra that asks for them; those of the core by an empty name."""
    file = PACKAGES / "pyproject.toml"
    if file.is_file():  # a clone's own file is newer than what was noted when it was installed
        return _read_project(file.read_text())
    found: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires("pixcell") or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        found.setdefault(extra[1] if extra else "", []).append(requirement.strip())
    return {name: lines for name, lines in found.items() if name not in NOT_FOR_USERS}


def _read_project(text: str) -> dict[str, list[str]]:
    """Return the requirements in a pyproject.toml, for which Python 3.10 has no reader: lists of texts are as in Python."""
    _, _, project = text.partition("\n[project]\n")
    core, _, extras = project.partition("\n[project.optional-dependencies]\n")
    lists = r"^(\w+) = (\[.*?\])$"
    found = {"": ast.literal_eval(dict(re.findall(lists, core, re.M | re.S))["dependencies"])}
    for name, items in re.findall(lists, extras.partition("\n[")[0], re.M | re.S):
        if name not in NOT_FOR_USERS:
            found[name] = ast.literal_eval(items)
    return found


def check_core() -> Finding:
    """Check that what sampling and training need is installed, and new enough."""
    present, absent = _compare_versions(declared_packages()[""])
    if absent:
        return Finding("core packages", "missing", f"{', '.join(absent)}; {sys.executable} -m pip install pixcell")
    return Finding("core packages", "ok", ", ".join(present))


def check_extra(name: str) -> Finding:
    """Check that an extra's packages are installed, and new enough."""
    present, absent = _compare_versions(declared_packages()[name])
    if absent:
        text = f"without {', '.join(absent)}; pip install 'pixcell[{name}]', if you need it"
        return Finding(f"extra {name}", "warning", text)
    return Finding(f"extra {name}", "ok", ", ".join(present))


def _compare_versions(requirements: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the packages that are there with their versions, and the requirements that are not met."""
    present, absent = [], []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(requirement)
            continue
        if _is_new_enough(version, requirement):
            present.append(f"{name} {version}")
        else:
            absent.append(f"{requirement} (there is {version})")
    return present, absent


def _is_new_enough(version: str, requirement: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:  # several core packages bring it; they are named already
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


# ---- the machine


def check_gpu() -> Finding:
    """Check what GPUs torch can use: name, memory, driver, bf16."""
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        named = ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
        driver = ", ".join(dict.fromkeys(line.split(", ")[1] for line in _ask_driver())) or "not known"
        found = f"{named}; driver {driver}, CUDA {torch.version.cuda}"
        if has_bf16("cuda"):
            return Finding("GPU", "ok", f"{found}; bf16")
        return Finding("GPU", "warning", f"{found}; no bf16 in hardware: fp16 is what mixed_precision auto takes")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple's, by --device mps")
    seen = _ask_driver()
    if seen:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return Finding("GPU", "warning", f"{'; '.join(seen)}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}")
        advice = "install a torch that fits the driver, by the selector on pytorch.org"
        return Finding("GPU", "warning", f"{'; '.join(seen)}, which {build} cannot use; {advice}")
    bf16 = "bf16 in hardware" if has_bf16("cpu") else "no bf16 in hardware"
    return Finding(
        "GPU", "warning", f"none; networks run on the CPU ({bf16}): enough for small ones, not to train a published one"
    )


def _ask_driver() -> list[str]:
    """Return what NVIDIA's own tool says of each GPU, `name, driver version`; nothing where there is no such tool."""
    command = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def check_threads() -> Finding:
    """Check that networks on the CPU would take all cores."""
    import torch

    cores, threads = count_cores(), torch.get_num_threads()
    found = f"{cores}, {threads} threads for networks on the CPU"
    if threads < cores and not torch.cuda.is_available():
        named = os.environ.get("OMP_NUM_THREADS")
        cause = f"OMP_NUM_THREADS={named}" if named else "torch's own choice"
        return Finding("cores", "warning", f"{found} ({cause}); OMP_NUM_THREADS={cores} would take all")
    return Finding("cores", "ok", found)


def check_memory() -> Finding:
    """Check how much memory the machine has, and is free."""
    import torch

    from diffusion.utils.memory import total_bytes

    total = total_bytes(torch.device("cpu"))
    if total is None:
        return Finding("memory", "ok", "this system does not say")
    info = Path("/proc/meminfo")
    free = re.search(r"^MemAvailable: +(\d+) kB", info.read_text(), re.M) if info.is_file() else None
    found = f"{total / 2**30:.1f} GiB" + (f", {1024 * int(free[1]) / 2**30:.1f} free" if free else "")
    if total < LITTLE_MEMORY:
        return Finding("memory", "warning", f"{found}; UNI2-h, and a published network, take {LITTLE_MEMORY >> 30}")
    return Finding("memory", "ok", found)


def check_folder(name: str, folder: Path, option: str, read_only: Literal["warning", "missing"]) -> Finding:
    """Check that a folder is there or can be made, can be written to, and has space; read_only: how bad it is if not."""
    try:
        check_writable(folder)
    except InputError as error:
        status = read_only if folder.is_dir() else "missing"
        return Finding(name, status, f"{error} ({option})")
    free = shutil.disk_usage(_nearest(folder)).free
    found = f"{folder.absolute()}{'' if folder.is_dir() else ', which is to be made'}: {free / 1e9:.1f} GB free"
    if free < FULL_DISK:
        return Finding(name, read_only, f"{found}; make room, or name another folder ({option})")
    if free < LITTLE_DISK:
        return Finding(name, "warning", f"{found}; the published weights and a few checkpoints take more")
    return Finding(name, "ok", found)


def check_locks(folder: Path) -> Finding:
    """Check that the file system of a folder has locks, by which two processes keep out of each other's way."""
    place = _nearest(folder)
    with tempfile.TemporaryDirectory(prefix=".pixcell-", dir=place) as scratch:
        if has_locks(Path(scratch)):
            return Finding("locks", "ok", f"work in {place}")
    text = f"the file system of {place} has none: see to it that no two commands write to one folder at once"
    return Finding("locks", "warning", f"{text} (Lustre: mount it with -o flock)")


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above that is there."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())


def check_compiler() -> Finding:
    """Check that torch.compile has a C++ compiler."""
    found = find_compiler()
    if found is None:
        return Finding("compiler", "warning", "no C++ compiler, which torch.compile needs (--compile); install g++")
    return Finding("compiler", "ok", found)


def check_openslide() -> Finding:
    """Check that OpenSlide's library loads."""
    try:
        openslide = importlib.import_module("openslide")
    except ImportError as error:  # absent, or without the library that it wraps
        reason = str(error).strip().partition("\n")[0]
        return Finding(
            "OpenSlide", "warning", f"does not load ({reason}); to read slides: pip install 'pixcell[slides]'"
        )
    return Finding("OpenSlide", "ok", f"library {openslide.__library_version__}")


# ---- weights, and who may download them


def check_weights(name: str, root: Path) -> Finding:
    """Check whether one of WEIGHTS is where `pixcell download` puts it."""
    from diffusion.hub import MODELS, is_present

    models = [MODELS[entry] for entry in WEIGHTS[name]]
    targets = [(model, model.place(base / "pretrained_models")) for model in models for base in (root, Path())]
    for model, target in targets:
        if is_present(model, target):
            return Finding(name, "ok", str(target))
    return Finding(name, "warning", f"not at {targets[0][1]}; pixcell download {models[0].name} ({models[0].page})")


def check_encoder(name: str, root: Path) -> Finding:
    """Check whether an encoder's weights are where commands look for them."""
    from diffusion.encoders.embedder_files import REPOSITORY
    from diffusion.encoders.networks import EMBEDDERS

    spec = EMBEDDERS[name]
    places = [base / spec.default for base in (root, Path(), REPOSITORY)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        how = "it is downloaded when it is first used" if spec.wheel else spec.how_to_get
        return Finding(name, "warning", f"not at {places[0]}; {how}")
    return Finding(name, "ok", str(found))


def check_token() -> Finding:
    """Check whether the hub's token is known, of which nothing is shown."""
    from huggingface_hub import get_token

    if any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")):
        return Finding("token", "ok", "HF_TOKEN is set")
    if get_token():
        return Finding("token", "ok", "a stored login of the hub")
    return Finding("token", "warning", "none; UNI2-h is given on request: set HF_TOKEN to download it")


# ---- accelerate, and variables


def check_accelerate() -> Finding:
    """Check what `accelerate launch` takes its defaults from."""
    from accelerate.commands.config.config_args import default_config_file
    from yaml import safe_load

    file = Path(default_config_file)
    if not file.is_file():
        return Finding("accelerate", "ok", f"no {file}: accelerate launch takes its own defaults, or --config_file")
    values = safe_load(file.read_text())
    if not isinstance(values, dict):
        return Finding("accelerate", "warning", f"{file} is no accelerate config; make one by accelerate config")
    kind = str(values.get("distributed_type"))
    found = f"{file}: {values.get('num_processes', '?')} processes, {kind}"
    if kind in ("DEEPSPEED", "MEGATRON_LM", "XLA", "TPU"):
        return Finding("accelerate", "warning", f"{found}, which is not served; launch with a file of docs/accelerate")
    return Finding("accelerate", "ok", found)


def check_launch() -> Finding:
    """Check that variables of launchers are whole, and ask for nothing that is not served."""
    import torch

    check_launcher()
    launch = read_launch(on_cpu=not torch.cuda.is_available())
    return Finding("launcher", "ok", "one process" if launch is None else str(launch))


def check_variables() -> Finding:
    """Check for variables that change how numbers are computed."""
    changed = [f"{name}={os.environ[name]}" for name in NUMERIC_VARIABLES if os.environ.get(name)]
    if changed:
        text = f"{', '.join(changed)} change how numbers are computed: unset what you did not mean"
        return Finding("variables", "warning", text)
    return Finding("variables", "ok", "none that change how numbers are computed")
