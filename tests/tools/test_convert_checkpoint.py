"""The tool that converts weights: any way there and back, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import in_process
from safetensors.torch import load_file
from small_pixart import build_small_pixart, same

from diffusion.model import PixArt
from diffusion.model.convert import load_weights, save_official
from diffusion.utils.errors import InputError, MissingError
from tools.convert_checkpoint import main as convert

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def model() -> PixArt:
    return build_small_pixart()


class TestConvertCheckpoint:
    """The tool: any way there and back, to the bit."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("between", ["diffusers", "safetensors"])
    @pytest.mark.parametrize("reference", ["r256", "r512"])
    def test_official_there_and_back(self, tmp_path, between, reference, dtype):
        """The reference networks as a released file has them: tensors under state_dict and nothing told."""
        tensors = load_file(REFERENCE / f"{reference}.safetensors")
        weights = {n.removeprefix("model."): t.to(dtype) for n, t in tensors.items() if n.startswith("model.")}
        torch.save({"state_dict": weights}, tmp_path / "a.ckpt")
        middle = tmp_path / ("folder" if between == "diffusers" else "a.safetensors")
        heads = ("--num_heads", 2)  # no preset has this width
        there = in_process(convert, tmp_path / "a.ckpt", middle, "--to", between, *heads)
        assert there.returncode == 0, there.stderr
        back = in_process(convert, middle, tmp_path / "b.ckpt", "--to", "official")
        assert back.returncode == 0, back.stderr
        written = torch.load(tmp_path / "b.ckpt", weights_only=True)
        assert same(written["state_dict"], weights)
        assert all(written["state_dict"][name].dtype == tensor.dtype for name, tensor in weights.items())
        assert written["architecture"]["num_heads"] == 2

    def test_diffusers_there_and_back(self, tmp_path):
        """The folder as released, both of its files."""
        source = REFERENCE / "r256_diffusers"
        assert in_process(convert, source, tmp_path / "a.pth", "--to", "official").returncode == 0
        assert in_process(convert, tmp_path / "a.pth", tmp_path / "folder", "--to", "diffusers").returncode == 0
        name = "diffusion_pytorch_model.safetensors"
        assert same(load_file(tmp_path / "folder" / name), load_file(source / name))
        configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "folder")]
        del configs[0]["_diffusers_version"]
        assert configs[0] == configs[1]

    def test_what_a_network_predicts_goes_along(self, model, tmp_path):
        save_official(model, tmp_path / "a.ckpt", "v_prediction")
        for i, (kind, target) in enumerate(
            (("diffusers", "b"), ("safetensors", "c.safetensors"), ("official", "d.ckpt"))
        ):
            source = tmp_path / ("a.ckpt", "b", "c.safetensors")[i]
            assert in_process(convert, source, tmp_path / target, "--to", kind).returncode == 0
            weights = load_weights(tmp_path / target)
            assert weights.metadata["prediction_type"] == "v_prediction" and same(
                weights.state_dict, model.state_dict()
            )

    def test_averaged_or_raw(self, model, tmp_path):
        raw = {name: tensor + 1 if tensor.ndim == 1 else tensor for name, tensor in model.state_dict().items()}
        torch.save(
            {"ema": model.state_dict(), "model": raw, "architecture": model.config.to_dict()}, tmp_path / "s.ckpt"
        )
        for choice, expected in (("ema", model.state_dict()), ("raw", raw)):
            target = tmp_path / f"{choice}.safetensors"
            done = in_process(convert, tmp_path / "s.ckpt", target, "--to", "safetensors", "--weights", choice)
            assert done.returncode == 0 and same(load_file(target), expected)

    def test_raw_is_never_the_average(self, model, tmp_path):
        """Of a folder the newest step; a file with the average alone is refused; a work dir is a folder, too."""
        raw = {name: tensor + 1 if tensor.ndim == 1 else tensor for name, tensor in model.state_dict().items()}
        folder = tmp_path / "run" / "checkpoints"
        folder.mkdir(parents=True)
        told = {"architecture": model.config.to_dict()}
        for step, shift in ((20, 0.5), (100, 0)):
            weights = {name: tensor + shift for name, tensor in raw.items()}
            torch.save({"ema": model.state_dict(), "model": weights, **told}, folder / f"step_{step:08d}.ckpt")
        torch.save({"state_dict": model.state_dict(), **told}, folder / "last_ema.ckpt")
        for source in (folder, folder.parent):
            assert same(load_weights(source, ema=False).state_dict, raw)
            assert same(load_weights(source).state_dict, model.state_dict())
        with pytest.raises(InputError, match="holds averaged weights only"):
            load_weights(folder / "last_ema.ckpt", ema=False)
        (folder / "step_00000100.ckpt").unlink(), (folder / "step_00000020.ckpt").unlink()
        with pytest.raises(MissingError, match=r"and for step_\*.ckpt"):
            load_weights(folder, ema=False)

    def test_what_is_refused_leaves_nothing(self, model, tmp_path):
        torch.save({"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
        moved = {**model.state_dict(), "pos_embed": model.pos_embed + 0.1}
        torch.save({"state_dict": moved, "architecture": model.config.to_dict()}, tmp_path / "moved.ckpt")
        before = sorted(tmp_path.iterdir())
        for arguments, message in (
            (("a.ckpt", "b", "--to", "diffusers"), "(width 48); give --num-heads"),
            (("a.ckpt", "b.pt", "--to", "official", "--num_heads", 4), "writes a .ckpt or .pth file"),
            (("a.ckpt", "b.safetensors", "--to", "diffusers", "--num_heads", 4), "writes a folder"),
            (("a.ckpt", "a.ckpt", "--to", "official", "--num_heads", 4), "already there"),
            (("a.ckpt", "b", "--to", "diffusers", "--num_heads", 7), "must be a multiple of num_heads 7"),
            (("moved.ckpt", "b", "--to", "diffusers"), "pos_embed is not the grid of its size"),
            (("moved.ckpt", "b.ckpt", "--to", "official", "--num_heads", 2), "says that it has 4 heads, not 2"),
            (("none.ckpt", "b.ckpt", "--to", "official"), "no weights at"),
        ):
            source, target, *options = arguments
            done = in_process(convert, tmp_path / source, tmp_path / target, *options)
            assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)
            assert sorted(tmp_path.iterdir()) == before
