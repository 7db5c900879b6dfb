"""Weights in every format: what comes back is what went in, and what is refused says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import in_process
from safetensors.torch import load_file, save_file

from diffusion.model import PixArt
from diffusion.model.architecture import diffusers_config, infer_architecture
from diffusion.model.convert import check_told, load_into, load_weights, save_diffusers, save_official, save_safetensors
from diffusion.model.names import from_diffusers, to_diffusers
from diffusion.model.pixart_config import PixArtConfig
from diffusion.utils.errors import InputError, MissingError
from tools.convert_checkpoint import main as convert

REFERENCE = Path(__file__).parents[1] / "reference"
ARGUMENTS = dict(
    input_size=64, hidden_size=48, depth=3, num_heads=4, caption_channels=20, model_max_length=4,
    pe_interpolation=1.0, use_cond_pos_embed=True, qk_norm=True, mlp_ratio=2.0,
)  # fmt: skip


@pytest.fixture
def model() -> PixArt:
    torch.manual_seed(0)
    return PixArt(**ARGUMENTS)


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_architecture_is_read_off_the_tensors(model):
    inferred = infer_architecture(model.state_dict())
    assert {name: inferred[name] for name in ARGUMENTS if name != "num_heads"} == {
        name: value for name, value in ARGUMENTS.items() if name != "num_heads"
    }
    assert PixArt(model.config).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("interpolation", [0.5, 1.0, 2.0])
def test_interpolation_is_read_off_the_positions(interpolation):
    model = PixArt(**{**ARGUMENTS, "pe_interpolation": interpolation})
    assert infer_architecture(model.state_dict())["pe_interpolation"] == interpolation


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s}, lambda s: s, lambda s: {"ema": s, "model": {}, "step": 3}]
)
def test_torch_files(model, tmp_path, wrap):
    torch.save(wrap(model.state_dict()), tmp_path / "a.ckpt")
    assert same(load_weights(tmp_path / "a.ckpt").state_dict, model.state_dict())


def test_averaged_or_raw_is_a_choice(model, tmp_path):
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"ema": model.state_dict(), "model": other}, tmp_path / "a.ckpt")
    assert same(load_weights(tmp_path / "a.ckpt").state_dict, model.state_dict())
    assert same(load_weights(tmp_path / "a.ckpt", ema=False).state_dict, other)


def test_safetensors(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    assert same(load_weights(tmp_path / "a.safetensors").state_dict, model.state_dict())


def test_diffusers_round_trip_is_exact(model, tmp_path):
    assert same(
        from_diffusers(to_diffusers(model.state_dict())),
        {k: v for k, v in model.state_dict().items() if k != "pos_embed"},
    )
    save_diffusers(model, tmp_path / "folder")
    weights = load_weights(tmp_path / "folder")
    assert same(weights.state_dict, model.state_dict())
    assert PixArtConfig(**weights.architecture) == model.config
    with pytest.raises(InputError, match="already there"):
        save_diffusers(model, tmp_path / "folder")


def test_the_released_layout_is_written_as_it_is(tmp_path):
    weights = load_weights(REFERENCE / "r256_diffusers")
    model = PixArt(**weights.architecture)
    load_into(model, weights.state_dict, "r256_diffusers")
    save_diffusers(model, tmp_path / "folder")
    name = "diffusion_pytorch_model.safetensors"
    assert same(load_file(tmp_path / "folder" / name), load_file(REFERENCE / "r256_diffusers" / name))
    released = json.loads((REFERENCE / "r256_diffusers/config.json").read_text())
    del released["_diffusers_version"]
    assert diffusers_config(model.config) == released


class Wrapped(torch.nn.Module):
    """A layer in another, as adapters have it: its tensors get longer names."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, self.gain = base, torch.nn.Parameter(torch.ones(base.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.base(x)


def test_a_network_with_a_wrapped_layer_is_saved_with_its_config(model, tmp_path):
    model.blocks[0].mlp.fc1 = Wrapped(model.blocks[0].mlp.fc1)
    save_official(model, tmp_path / "a.ckpt")
    save_safetensors(model, tmp_path / "a.safetensors")
    for name in ("a.ckpt", "a.safetensors"):
        weights = load_weights(tmp_path / name)
        assert PixArtConfig(**weights.architecture) == model.config and same(weights.state_dict, model.state_dict())
        again = PixArt(**weights.architecture)
        with pytest.raises(InputError, match="missing: blocks.0.mlp.fc1.bias.*unknown: blocks.0.mlp.fc1.base.bias"):
            load_into(again, weights.state_dict, tmp_path / name)
        again.blocks[0].mlp.fc1 = Wrapped(again.blocks[0].mlp.fc1)
        load_into(again, weights.state_dict, tmp_path / name)
        check_told(weights.told, again, "epsilon", tmp_path / name)
    with pytest.raises(InputError, match="no place for blocks.0.mlp.fc1.gain"):
        save_diffusers(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_stored_config_is_taken_without_a_look_at_the_tensors(tmp_path):
    """Heads, the ratio of the MLP and what serves training alone leave no trace in them."""
    model = PixArt(**{**ARGUMENTS, "mlp_ratio": 2.7, "num_heads": 3, "class_dropout_prob": 0.0, "fp32_attention": True})
    save_official(model, tmp_path / "a.ckpt")
    assert PixArtConfig(**load_weights(tmp_path / "a.ckpt").architecture) == model.config


@pytest.mark.parametrize("lacking", [{"class_dropout_prob", "fp32_attention"}, {"depth", "mlp_ratio", "input_size"}])
def test_stored_arguments_of_older_versions(model, tmp_path, lacking):
    told = {name: value for name, value in model.config.to_dict().items() if name not in lacking}
    torch.save({"state_dict": model.state_dict(), "architecture": told}, tmp_path / "a.ckpt")
    weights = load_weights(tmp_path / "a.ckpt")
    assert PixArtConfig(**weights.architecture) == model.config
    check_told(weights.told, model, "epsilon", tmp_path / "a.ckpt")


def test_files_are_compared_in_what_they_say_and_in_what_shapes_the_network(model):
    check_told({}, model, "epsilon", "a.ckpt")
    check_told({"class_dropout_prob": 0.5, "fp32_attention": True, "mlp_ratio": 2.009}, model, "epsilon", "a.ckpt")
    for told, message in (
        ({"num_heads": 2}, "num_heads 2 instead of 4"),
        ({"mlp_ratio": 2.1}, "mlp_ratio 2.1 instead of 2.0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio nan instead of 2.0"),
        ({"prediction_type": "v_prediction"}, "prediction_type v_prediction instead of epsilon"),
    ):
        with pytest.raises(InputError, match=message):
            check_told(told, model, "epsilon", "a.ckpt")
        check_told(told, model, "epsilon", "a.ckpt", but=told)


def test_another_architecture_is_named(model, tmp_path):
    torch.save({"state_dict": PixArt(**{**ARGUMENTS, "hidden_size": 32, "depth": 4}).state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="unknown: blocks.3.*of another shape: pos_embed") as error:
        load_into(model, load_weights(tmp_path / "a.ckpt").state_dict, tmp_path / "a.ckpt")
    assert "\n" not in str(error.value)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": Malicious(tmp_path / "trap")}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="code is never run here"):
        load_weights(tmp_path / "a.ckpt")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damaged_and_foreign_files(model, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(MissingError, match="no weights at"):
        load_weights(path)
    save = {".ckpt": torch.save, ".safetensors": save_file}[suffix]
    save({"conv.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds no PixArt network"):
        load_weights(path)
    save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a whole"):
        load_weights(path)


def test_foreign_folders(model, tmp_path):
    save_diffusers(model, tmp_path / "folder")
    assert same(load_weights(tmp_path / "folder/diffusion_pytorch_model.safetensors").state_dict, model.state_dict())
    for text, message in (
        ("{", "is not the config"),
        ('{"_class_name": "AutoencoderKL"}', "config of a AutoencoderKL"),
    ):
        (tmp_path / "folder/config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_weights(tmp_path / "folder")
    (tmp_path / "text.ckpt").write_text("no weights at all")
    with pytest.raises(InputError, match="is not a whole torch file"):
        load_weights(tmp_path / "text.ckpt")


def test_an_empty_folder(tmp_path):
    with pytest.raises(MissingError, match="looked for config.json"):
        load_weights(tmp_path)


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
            assert weights.told["prediction_type"] == "v_prediction" and same(weights.state_dict, model.state_dict())

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
            (("a.ckpt", "b", "--to", "diffusers"), "(width 48); give --num_heads"),
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


def test_a_whole_pipeline_s_folder(model, tmp_path):
    save_diffusers(model, tmp_path / "pipe" / "transformer")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert same(load_weights(tmp_path / "pipe").state_dict, model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(architecture={"hidden_size": "48"}), "a.ckpt: hidden_size is '48': expected int"),
        (dict(architecture={"num_heads": 0}), "a.ckpt: num_heads 0: expected at least 1"),
        (dict(architecture={"heads": 4}), "a.ckpt: heads: PixArt has no such argument; the nearest is 'num_heads'"),
        (
            dict(architecture={"pe_interpolation": float("nan")}),
            "pe_interpolation nan: expected a number that is finite",
        ),
        (dict(tensor=("x_embedder.proj.weight", torch.zeros(4, 4))), "other names or shapes"),
        (dict(tensor=("y_embedder.y_embedding", torch.zeros(1, 2, 3))), "other names or shapes"),
        (dict(tensor=("blocks.x.y", torch.zeros(1))), "other names or shapes"),
        (dict(tensor=("pos_embed", torch.zeros(5))), "other names or shapes"),
        (dict(tensor=("pos_embed", torch.zeros(1, 1024, 48))), "other names or shapes"),
    ],
)
def test_strange_checkpoints(model, tmp_path, change, message):
    name, tensor = change.get("tensor", ("final_layer.linear.bias", model.final_layer.linear.bias.detach()))
    content = {"state_dict": {**model.state_dict(), name: tensor}, "architecture": change.get("architecture", {})}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [("sample_size", None), ("sample_size", "8"), ("interpolation_scale", 0), ("num_attention_heads", None)],
)
def test_strange_configs(model, tmp_path, key, value):
    save_diffusers(model, tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match="folder: (input_size|num_heads|pe_interpolation) .*expected"):
        load_weights(tmp_path / "folder")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not the config of a"):
        load_weights(tmp_path / "folder")
