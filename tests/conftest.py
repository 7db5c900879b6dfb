"""Small data on disk that every test can use: patches, an index, features, weights of an embedder."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import server
from PIL import Image
from slide_files import cut, png, pyramid  # noqa: F401 - fixtures

from diffusion.cli.parser import run
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import index_path
from diffusion.data.index.writer import write_index

REPOSITORY = Path(__file__).resolve().parents[1]
WIDTH = 8  # of the embeddings of `feature_root`
PATIENCE = 300  # seconds for any command
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # several processes; one GPU would be too few for them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how many faults tests/fault inflicts on a run")
    parser.addoption("--fault-seed", type=int, default=0, help="of their kinds' moments")


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Have the tests that share a process share no state of accelerate."""
    yield
    if "accelerate" in sys.modules:
        from runs import forget_processes

        forget_processes()


@pytest.fixture
def feature_root(tmp_path: Path) -> Path:
    """ROOT with three 1024 patches and their features (random numbers, width 8), no images."""
    return write_features(tmp_path)


def write_features(root: Path) -> Path:
    """Make a folder such a root."""
    names = [f"set/brca/single_1024/slide_{i}/{i}_0.jpeg" for i in range(3)]
    write_index(index_path(root), {"set_1024": names})
    random = np.random.default_rng(0)
    for name in names:
        moments = random.normal(size=(32, 128, 128))
        moments[16:] = 0.01 * np.abs(moments[16:])
        write_feature(feature_path(root / "patches", name, "sd3_vae"), moments)
        write_feature(feature_path(root / "patches", name, "uni"), random.normal(size=(16, WIDTH)))
    return root


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a config file that goes on from the base file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.py"
        path.write_text(f"_base_ = [{str(REPOSITORY / 'configs/_base_.py')!r}]\n{text}")
        return path

    return write


@pytest.fixture(scope="session")
def tissue_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT with two 1024 and two 256 patches of coloured texture, indexed, without features."""
    root = tmp_path_factory.mktemp("tissue")
    names = {"toy_1024": [], "small_256": []}
    for key, size in (("toy_1024", 1024), ("small_256", 256)):
        for i in range(2):
            name = f"{key.rpartition('_')[0]}/any/single_{size}/slide/{i}_0.jpeg"
            path = root / "patches" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            texture(size, seed=i).save(path, quality=95, subsampling=0)
            names[key].append(name)
    write_index(index_path(root), names)
    return root


@pytest.fixture(scope="session")
def mobilenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of MobileNetV2 with random numbers, its normalization fitted so that embeddings differ."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2-random.pth"
    model = mobilenet_v2().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, 224, 224))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def embedder():
    """An embedder whose features are known: the mean of each channel."""
    from scoring_data import PLAIN, MeanColour

    from diffusion.encoders.embedders import PatchEmbedder

    return PatchEmbedder(MeanColour(), "mean colour", width=3, view=PLAIN)


@pytest.fixture
def state():
    """The process by itself, on the CPU."""
    from accelerate import PartialState

    return PartialState(cpu=True)


@pytest.fixture
def windows():
    """Two smooth, coloured windows with an edge in them, uint8 (2, 3, 256, 256)."""
    import torch

    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    waves = [128 + 120 * torch.sin(x / (9 + i) + i) * torch.cos(y / (13 - i)) for i in range(6)]
    pixels = torch.stack(waves).reshape(2, 3, 256, 256)
    pixels[:, :, 100:140, 60:90] = 255
    return pixels.clamp(0, 255).to(torch.uint8)


def texture(size: int, seed: int) -> Image.Image:
    """Pink and purple blobs."""
    coarse = np.random.default_rng(seed).integers(0, 255, (size // 32, size // 32), dtype=np.uint8)
    grey = (
        np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)[..., None]
        / 255
    )
    return Image.fromarray((grey * [120, 60, 140] + (1 - grey) * [235, 170, 200]).astype(np.uint8))


def save_texture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """Write blobs of a size as an image file."""
    texture(1024, seed).resize((width, height)).save(path)
    return path


def read_pixels(path: Path) -> np.ndarray:
    """Return the pixels (H, W, 3) of an image file."""
    with Image.open(path) as image:
        return np.asarray(image)


def in_process(main: Callable[[], int | None], *arguments: str | Path) -> subprocess.CompletedProcess:
    """Call a tool's `main` here, as `diffusion.cli.parser.run` would: starting a process with its imports takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["tool", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            run(main)
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def launcher(processes: int) -> list[str]:
    """What starts a script: Python, or `accelerate launch` of several processes on the CPU."""
    if not processes:
        return [sys.executable]
    # accelerate starts several processes on a CPU under the name of several GPUs
    options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]
    unasked = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *unasked]


def command(
    *arguments: str | Path, processes: int = 0, interpreter: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository, under `accelerate launch` on the CPU when `processes` is given.

    It is a fork of a process with the libraries (server.py), unless it is to be an interpreter of its own.
    """
    call = [*launcher(processes), *map(str, arguments)]
    variables = {**os.environ, **(ON_CPU if processes else {"OMP_NUM_THREADS": "1"}), **environment}
    if interpreter:
        return subprocess.run(call, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    return server.run(call[1:], REPOSITORY, variables, PATIENCE)


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset what launchers, and their settings, leave in the environment."""
    from diffusion.utils.launch import TORCH_VARIABLES

    for name in os.environ:
        if name.startswith(("ACCELERATE_", "FSDP_", "SLURM_", "PMI_", "OMPI_")) or name in TORCH_VARIABLES:
            monkeypatch.delenv(name)
