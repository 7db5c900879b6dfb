"""Weights as the field's trainers leave them: averages and raw ones, wrapped names, shards, positions, and other content."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_process
from runs import settings
from safetensors.torch import load_file, save_file

from diffusion.config.files import dump_config
from diffusion.model import PixArt, build_model
from diffusion.model.convert import load_weights, save_diffusers, save_official
from diffusion.model.diffusers_layout import to_diffusers
from diffusion.model.matching import add_positions
from diffusion.tasks.denoising.network import build_network
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.state_dicts import find_state_dict
from diffusion.utils.weights import find_weights, read_weights
from diffusion.workdir import open_run
from tools.sample_256 import main as sample_256

SMALL = dict(hidden_size=16, depth=2, num_heads=2, caption_channels=12)
STAGES = {
    256: dict(input_size=32, pe_interpolation=0.5, model_max_length=1),
    512: dict(input_size=64, pe_interpolation=1.0, model_max_length=4, use_cond_pos_embed=True),
    1024: dict(input_size=128, pe_interpolation=2.0, model_max_length=16, use_cond_pos_embed=True),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


def network(stage: int = 256, **changes) -> PixArt:
    torch.manual_seed(0)
    return PixArt(**{**SMALL, **STAGES[stage], **changes})


@pytest.fixture(scope="module")
def average() -> dict[str, torch.Tensor]:
    return network().state_dict()


@pytest.fixture(scope="module")
def raw(average) -> dict[str, torch.Tensor]:
    return {name: tensor if "embed" in name else tensor + 1 for name, tensor in average.items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def prefixed(prefix: str, tensors: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def flat(tensors: dict) -> dict:
    """As CompVis' LitEma keeps averages: of parameters, without dots."""
    return {f"model_ema.diffusion_model{n}".replace(".", "").replace("model_ema", "model_ema."): t for n, t in tensors.items()
            if "embedding" not in n and "pos_embed" not in n}  # fmt: skip


COUNTS = {"n_averaged": torch.tensor(3)}
BOTH = {
    "original PixArt": lambda r, a: {"state_dict": r, "state_dict_ema": a, "epoch": 1, "optimizer": {"state": {}}},
    "DiT": lambda r, a: {"model": r, "ema": a, "opt": {"state": {0: {"exp_avg": r["pos_embed"]}}, "param_groups": []}},
    "model_ema": lambda r, a: {"model": r, "model_ema": a},
    "ema_state_dict": lambda r, a: {"model_state_dict": r, "ema_state_dict": a},
    "model_ema_state_dict": lambda r, a: {"model": {"state_dict": r}, "model_ema_state_dict": {"module": a}},
    "BasicSR": lambda r, a: {"params": r, "params_ema": a},
    "GAN": lambda r, a: {"net": r, "net_ema": a, "ema_decay": 0.999},
    "camel case": lambda r, a: {"model": r, "modelEMA": a},
    "averaged model": lambda r, a: {"model": r, "averaged": {**prefixed("module.", a), **COUNTS}},
    "swa": lambda r, a: {"model": prefixed("module.", r), "swa_model": {**prefixed("module.", a), **COUNTS}},
    "counted": lambda r, a: {"model": r, "second": {**prefixed("module.", a), **COUNTS}},
    "ema-pytorch": lambda r, a: {
        **{"initted": torch.tensor(True), "step": torch.tensor(9)},
        **prefixed("online_model.", r), **prefixed("ema_model.", a),
    },
    "lucidrains": lambda r, a: {
        "step": 9, "model": r, "scaler": None,
        "ema": {"step": torch.tensor(9), **prefixed("online_model.", r), **prefixed("ema_model.", a)},
    },
    "Lightning": lambda r, a: {
        "state_dict": {**prefixed("model.", r), **prefixed("ema_model.", a), "loss.logvar": torch.zeros(1)},
        "hyper_parameters": {"lr": 0.1},
    },
    "net": lambda r, a: {"state_dict": {**prefixed("net.", r), **prefixed("net_ema.", a)}},
    "nested": lambda r, a: {"checkpoint": {"ema": {"model": a}, "model": {"model": r}}},
    "latent diffusion": lambda r, a: {
        "state_dict": {**prefixed("model.diffusion_model.", r), **flat(a), "model_ema.decay": torch.tensor(0.9)}
    },
    "of parameters alone": lambda r, a: {"model": r, "ema": {n: t for n, t in a.items() if "embedding" not in n}},
    "diffusers names": lambda r, a: {"model": to_diffusers(r), "ema": to_diffusers(a)},
}  # fmt: skip


@pytest.mark.parametrize("trainer", BOTH)
def test_averages_come_first_and_raw_weights_on_request(average, raw, tmp_path, caplog, trainer):
    torch.save(BOTH[trainer](raw, average), tmp_path / "a.pth")
    if trainer == "diffusers names":
        save_diffusers(network(), tmp_path / "folder")
        (tmp_path / "folder/config.json").rename(tmp_path / "config.json")
    assert same(load_weights(tmp_path / "a.pth").state_dict, average)
    said = [record.message for record in caplog.records if "the averaged ones are taken, under" in record.message]
    assert len(said) == 1 and "--weights raw" in said[0]
    caplog.clear()
    assert same(load_weights(tmp_path / "a.pth", ema=False).state_dict, raw)
    assert not any("averaged" in record.message for record in caplog.records)


def test_the_log_names_the_places_of_both(average, raw, caplog):
    find_state_dict(
        {"state_dict": raw, "state_dict_ema": average}, "f.pth", ("x_embedder.proj.weight",), advice="--raw"
    )
    assert caplog.messages == [
        "f.pth holds averaged and raw weights: the averaged ones are taken, under state_dict_ema; "
        "--raw takes the raw ones, under state_dict"
    ]


@pytest.mark.parametrize("empty", [None, {}, []])
def test_an_empty_place_of_averages_is_named(average, tmp_path, caplog, empty):
    torch.save({"state_dict": average, "state_dict_ema": empty, "ema_rate": None}, tmp_path / "a.pth")
    assert same(load_weights(tmp_path / "a.pth").state_dict, average)
    assert [m.partition(": ")[2] for m in caplog.messages] == [
        "there are no averaged weights under state_dict_ema; the raw ones are taken, under state_dict"
    ]


def test_raw_weights_alone_are_loaded_without_a_warning(average, tmp_path, caplog):
    for content in (average, {"state_dict": average}, {"non_ema": average}, {"model": average, "state_dict": average}):
        torch.save(content, tmp_path / "a.pth")
        assert same(load_weights(tmp_path / "a.pth").state_dict, average) and not caplog.messages


def test_averages_without_names_are_refused(average, raw, tmp_path):
    torch.save({"model_ema": average}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds averaged weights only, under model_ema"):
        load_weights(tmp_path / "a.pth", ema=False)
    for shadow in ({"shadow_params": list(average.values()), "decay": 0.9}, list(average.values())):
        torch.save({"model": raw, "ema": shadow}, tmp_path / "a.pth")
        with pytest.raises(InputError, match="under ema are a list without names.*with --weights raw"):
            load_weights(tmp_path / "a.pth")
        assert same(load_weights(tmp_path / "a.pth", ema=False).state_dict, raw)
    torch.save({"ema_0.99": average, "ema_0.999": raw}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds several averages, under ema_0.99, ema_0.999"):
        load_weights(tmp_path / "a.pth")


def compiled_within(tensors: dict) -> dict:
    return {name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in tensors.items()}


WRAPPED = {
    **{prefix: lambda s, prefix=prefix: prefixed(prefix, s) for prefix in (
        "_orig_mod.", "module.", "module.module.", "module._orig_mod.", "_orig_mod.module.", "model.", "base_model.model.",
        "net.", "transformer.", "diffusion_model.", "model.diffusion_model.", "_fsdp_wrapped_module.", "_forward_module.",
    )},
    "within": compiled_within,
    "fsdp within": lambda s: {n.replace(".attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.attn."): t for n, t in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["torch", "safetensors", "diffusers"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_components_of_wrappers_are_removed_from_names(average, tmp_path, wrap, kind):
    path = tmp_path / ("a.ckpt" if kind == "torch" else WEIGHTS)
    if kind == "diffusers":
        save_diffusers(network(), tmp_path / "folder")
        (tmp_path / "folder/config.json").rename(tmp_path / "config.json")
        save_file(WRAPPED[wrap](to_diffusers(average)), path)
    elif kind == "torch":
        torch.save({"state_dict": WRAPPED[wrap](average)}, path)
    else:
        save_file(WRAPPED[wrap](average), path)
    assert same(load_weights(path).state_dict, average)


def test_colliding_and_unknown_names_are_refused(average, tmp_path):
    torch.save({**average, "module.final_layer.linear.bias": torch.zeros(128)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"both final_layer.linear.bias and module.final_layer.linear.bias"):
        load_weights(tmp_path / "a.pth")
    torch.save({"state_dict": prefixed("net.", {**average, "blocks.1.extra": torch.zeros(1)})}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="does not say enough"):
        open_run(tmp_path / "a.pth", "", CPU)
    with pytest.raises(InputError, match=r"\(unknown: blocks.1.extra\)"):
        from diffusion.model.matching import load_into

        load_into(network(), load_weights(tmp_path / "a.pth").state_dict, "a.pth")


def write_shards(
    tensors: dict, folder: Path, suffix: str = ".safetensors", index: bool = True, variant: str = ""
) -> list[Path]:
    """Two shards and their index, under the names of diffusers."""
    folder.mkdir(exist_ok=True)
    names, shards = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model{variant}-{i:05d}-of-00002{suffix}"
        content = {name: tensors[name] for name in part}
        save_file(content, folder / file) if suffix == ".safetensors" else torch.save(content, folder / file)
        shards |= dict.fromkeys(part, file)
    if index:
        name = f"diffusion_pytorch_model{suffix}.index{variant}.json"
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return sorted(folder.glob("*-of-*"))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_put_together(average, tmp_path, suffix, index, variant):
    """By the folder, the index, or one of the shards."""
    shards = write_shards(average, tmp_path, suffix, index, variant)
    for path in (tmp_path, *shards, *tmp_path.glob("*.json")):
        assert same(load_weights(path).state_dict, average), path


def test_shards_with_names_of_diffusers_are_put_together(tmp_path):
    model = network(512)
    save_diffusers(model, tmp_path / "folder")
    tensors = load_file(tmp_path / "folder" / WEIGHTS)
    (tmp_path / "folder" / WEIGHTS).unlink()
    write_shards(tensors, tmp_path / "folder")
    assert same(load_weights(tmp_path / "folder").state_dict, model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: (d / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink(),
            "lacks 1 of 2 shards: .*-00002-",
        ),
        (lambda d: index_of(d, "../elsewhere.safetensors"), "expected files beside it"),
        (lambda d: index_of(d, "/etc/passwd"), "expected files beside it"),
        (lambda d: index_of(d, 3), "is no index of shards"),
        (lambda d: (d / f"{WEIGHTS}.index.json").write_text("{"), "is no index of shards"),
        (lambda d: (d / f"{WEIGHTS}.index.json").write_text("[]"), "is no index of shards, but holds a list"),
        (lambda d: (d / f"{WEIGHTS}.index.json").write_text("{}"), "is no index of shards"),
        (lambda d: (d / f"{WEIGHTS}.index.json").write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        (lambda d: index_of(d, "diffusion_pytorch_model-00001-of-00002.safetensors"), "which its shards lack"),
    ],
)
def test_damaged_shards_are_refused(average, tmp_path, change, message):
    write_shards(average, tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        load_weights(tmp_path)
    assert "\n" not in str(error.value)


def index_of(folder: Path, shard: object) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"pos_embed": shard, "more": shard}}))


def test_a_name_in_two_shards_is_refused(average, tmp_path):
    shards = write_shards(average, tmp_path, index=False)
    save_file(average, shards[0])
    with pytest.raises(InputError, match="two shards hold"):
        load_weights(shards[1])


def test_usual_names_are_found_and_content_counts_before_the_suffix(average, tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", WEIGHTS):
        (tmp_path / name).write_bytes(b"")
    order = [WEIGHTS, "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"]
    for name in order:
        assert find_weights(tmp_path) == tmp_path / name
        (tmp_path / name).unlink()
    save_file(average, tmp_path / "a.ckpt")
    torch.save(average, tmp_path / "a.safetensors")
    for name in ("a.ckpt", "a.safetensors"):
        assert same(load_weights(tmp_path / name).state_dict, average)


def test_the_newest_checkpoint_of_an_original_run_is_found(average, raw, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step, shift in ((9, 1), (10, 0)):
        content = {"state_dict": raw, "state_dict_ema": {name: tensor + shift for name, tensor in average.items()}}
        torch.save(content, tmp_path / f"checkpoints/epoch_1_step_{step}.pth")
    assert same(load_weights(tmp_path).state_dict, average)
    assert same(load_weights(tmp_path, ema=False).state_dict, raw)


class TestPositions:
    """A file without them: from what it says, from the network, or as published."""

    @pytest.mark.parametrize("stage", STAGES)
    def test_positions_as_published_are_recognised(self, tmp_path, caplog, stage):
        model = network(stage)
        torch.save({n: t for n, t in model.state_dict().items() if "pos_embed" not in n}, tmp_path / "a.pth")
        weights = load_weights(tmp_path / "a.pth")
        assert same(weights.state_dict, model.state_dict()) and weights.metadata == {}
        assert {name: weights.architecture[name] for name in STAGES[stage]} == STAGES[stage]
        assert len(caplog.messages) == 1 and f"pe_interpolation={stage / 512:g}" in caplog.messages[0]

    def test_positions_follow_the_architecture_in_the_file(self, tmp_path, caplog):
        model = network(512, pe_interpolation=1.5, input_size=48, use_cond_pos_embed=False)
        arguments = {"input_size": 48, "pe_interpolation": 1.5, "use_cond_pos_embed": False}
        torch.save({"state_dict": {n: t for n, t in model.state_dict().items() if n != "pos_embed"}, "architecture": arguments},
                   tmp_path / "a.pth")  # fmt: skip
        assert same(load_weights(tmp_path / "a.pth").state_dict, model.state_dict()) and not caplog.messages

    def test_positions_follow_the_network(self, tmp_path, caplog):
        model = network(512, pe_interpolation=1.5)
        torch.save({n: t for n, t in model.state_dict().items() if "pos_embed" not in n}, tmp_path / "a.pth")
        weights = load_weights(tmp_path / "a.pth", positions=False)
        assert not {"pe_interpolation", "input_size"} & weights.architecture.keys() and not caplog.messages
        assert same(add_positions(model, weights.state_dict), model.state_dict())

    def test_released_layout_without_positions_of_the_tokens(self, tmp_path):
        """Its class computes them whenever there are several tokens; a network of ours without any says so."""
        for name, has in (("with", True), ("without", False)):
            model = network(1024, use_cond_pos_embed=has)
            save_diffusers(model, tmp_path / name)
            file = tmp_path / name / WEIGHTS
            save_file({n: t for n, t in load_file(file).items() if "y_pos_embed" not in n}, file)
            weights = load_weights(tmp_path / name)
            assert weights.architecture["use_cond_pos_embed"] is has and same(weights.state_dict, model.state_dict())
        assert "use_cond_pos_embed" not in json.loads((tmp_path / "with/config.json").read_text())

    def test_positions_in_half_precision_are_recognised(self, tmp_path):
        model = network(512).half()
        torch.save({n: t for n, t in model.state_dict().items() if "pos_embed" not in n}, tmp_path / "a.pth")
        assert same(load_weights(tmp_path / "a.pth").state_dict, model.state_dict())

    def test_positions_that_contradict_are_refused(self, tmp_path):
        model = network(model_max_length=3)
        torch.save({n: t for n, t in model.state_dict().items() if n != "pos_embed"}, tmp_path / "a.pth")
        with pytest.raises(InputError, match="does not say its input_size: 3 tokens make no square"):
            load_weights(tmp_path / "a.pth")


class TestInAWorkDir:
    """A run's own config says what stripped weights do not."""

    @pytest.fixture
    def config(self, tmp_path):
        config = settings(tmp_path, pe_interpolation=0.75, caption_channels=12)
        (tmp_path / "checkpoints").mkdir()
        dump_config(config, tmp_path / "config.py")
        return config

    @pytest.fixture
    def weights(self, config) -> dict[str, torch.Tensor]:
        return build_model(config.model, **config.model_arguments).state_dict()

    def test_weights_without_settings_take_those_of_the_config(self, config, weights, tmp_path, caplog):
        del (stripped := dict(weights))["pos_embed"]
        raw = {name: tensor + 1 if tensor.ndim == 1 else tensor for name, tensor in stripped.items()}
        torch.save({"state_dict": raw, "state_dict_ema": stripped}, tmp_path / "checkpoints/last_ema.ckpt")
        for ema, expected in ((True, stripped), (False, raw)):
            model = open_run(tmp_path, "checkpoints/last_ema.ckpt", CPU, ema=ema).model
            assert same(model.state_dict(), {**expected, "pos_embed": weights["pos_embed"]})
        assert not any("as published" in message for message in caplog.messages)
        build_network(config, str(tmp_path / "checkpoints/last_ema.ckpt"))  # whatever span the published networks have
        assert not any("as published" in message for message in caplog.messages)

    def test_the_command_line_can_ask_for_raw_weights(self, config, weights, tmp_path):
        metadata = {"architecture": {"hidden_size": 16}}
        torch.save({"state_dict": weights, **metadata}, tmp_path / "checkpoints/last_ema.ckpt")
        done = in_process(sample_256, "--workdir", tmp_path, "--weights", "raw", "--device", "cpu")
        assert done.returncode == 2
        assert "last_ema.ckpt holds averaged weights only; the weights themselves are in a step_<n>.ckpt" in done.stderr

    def test_other_weights_in_the_folder_are_named(self, config, weights, tmp_path):
        torch.save(weights, tmp_path / "checkpoints/epoch_1_step_2.pth")
        with pytest.raises(MissingError, match="last_ema.ckpt; there are epoch_1_step_2.pth in that folder"):
            open_run(tmp_path, "checkpoints/last_ema.ckpt", CPU)


def test_weights_alone_are_opened_from_their_folder(tmp_path):
    """Without any config: the published width, whose heads are known."""
    wide = dict(hidden_size=192, depth=1, num_heads=3)
    model = network(**wide)
    write_shards({name: tensor for name, tensor in model.state_dict().items() if name != "pos_embed"}, tmp_path)
    run = open_run(tmp_path, "", CPU)
    assert same(run.model.state_dict(), model.state_dict()) and run.config.image_size == 256


def test_weights_alone_with_their_config_are_opened_by_it(tmp_path):
    model = network(qk_norm=True, fp32_attention=True, class_dropout_prob=0.25)
    save_official(model, tmp_path / "a.ckpt")
    run = open_run(tmp_path / "a.ckpt", "", CPU)
    assert run.model.config == model.config and same(run.model.state_dict(), model.state_dict())


def lora(average: dict) -> dict:
    return {**average, "blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 16)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: [1, 2], "holds no state dict but a list"),
        (lambda s: s["pos_embed"], "holds no state dict but a Tensor"),
        (lambda s: {}, "holds no state dict but nothing"),
        (lambda s: {"state": {0: {"exp_avg": s["pos_embed"]}}, "param_groups": []}, "the state of an optimizer"),
        (lambda s: {**s, "epoch": 3}, "more than tensors by name .epoch is of type int"),
        (lambda s: {0: s["pos_embed"]}, "tensors without names"),
        (lambda s: {"epoch": 3, "lr": 0.1}, "the keys epoch, lr"),
        (lambda s: {"state_dict": lora(s)}, "no PixArt network: its tensors are those of a LoRA"),
        (lambda s: {"transformer.blocks.0.lora_down.weight": s["pos_embed"]}, "those of a LoRA"),
        (lambda s: {"controlnet_blocks.0.weight": s["pos_embed"]}, "those of a ControlNet"),
        (lambda s: {"encoder.conv_in.weight": s["pos_embed"]}, "those of an autoencoder"),
        (lambda s: {"cls_token": s["pos_embed"]}, "those of an embedder"),
        (lambda s: {"a": {"x": s}, "args": Path("a")}, "refers to code, pathlib.*torch.save"),
        (lambda s: {"state_dict": s, "loss": np.float64(1)}, "refers to code, numpy.*save only its state dict"),
        (lambda s: {n: t.numpy() for n, t in s.items()}, "refers to code, numpy.*save only its state dict"),
        (lambda s: {n: t for n, t in s.items() if "fc1" not in n}, "no whole PixArt network: blocks.0.mlp.fc1"),
        (lambda s: {**s, "x_embedder.proj.weight": torch.tensor(1.0)}, "other names or shapes"),
        (lambda s: {"a": s, "b": {n: t + 1 for n, t in s.items()}}, "holds several networks, under a, b"),
    ],
)
def test_content_that_is_no_weights_is_refused_in_one_line(average, tmp_path, content, message):
    torch.save(content(average), tmp_path / "a.pth")
    with pytest.raises(InputError, match=message) as error:
        load_weights(tmp_path / "a.pth")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(128, dtype=torch.int64), "final_layer.linear.bias is of type int64, expected floating-point"),
        (torch.zeros(128, dtype=torch.bool), "is of type bool"),
        (torch.zeros(128, device="meta"), "has a shape but no values"),
        (torch.tensor(1.0), r"of another shape: final_layer.linear.bias \(\) instead of \(128,\)"),
    ],
)
def test_tensors_that_are_no_floats_are_refused(average, tmp_path, tensor, message):
    from diffusion.model.matching import load_into

    torch.save({**average, "final_layer.linear.bias": tensor}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        load_into(network(), load_weights(tmp_path / "a.pth").state_dict, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"<html><body>Sign in</body></html>", "is an HTML page"),
        (b"", "is empty"),
    ],
)
def test_placeholders_are_refused_as_such(tmp_path, text, message):
    for name in ("a.ckpt", "a.safetensors", "folder/config.json", f"folder2/{WEIGHTS}"):
        path = tmp_path / name
        if path.parent != tmp_path:
            save_diffusers(network(), path.parent)
        path.write_bytes(text)
        with pytest.raises(InputError, match=f"{path.name} {message}"):
            load_weights(path.parent if path.parent != tmp_path else path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"\x80")
    with pytest.raises(InputError, match="is not a whole torch file"):
        read_weights(tmp_path / "a.ckpt")
    with pytest.raises(MissingError, match="no weights at"):
        read_weights(tmp_path / "a-00001-of-00002.safetensors")


def test_a_saved_command_line_beside_averages_in_a_list_is_read(average, tmp_path):
    """Some trainers keep several averages, and their arguments as a Namespace, which holds nothing but values."""
    raw = {name: tensor + 1 for name, tensor in average.items()}
    torch.save({"model": raw, "ema": [average], "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    taken = load_weights(tmp_path / "a.pth").state_dict
    assert all(torch.equal(taken[name], average[name]) for name in average)
