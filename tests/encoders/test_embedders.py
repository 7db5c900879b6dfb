"""Patch embedders: the transform against Pillow's, widths, strict loading, and what must be refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.encoders import embedders
from diffusion.encoders.embedders import PatchEmbedder, check_encoders, resolve_embedder
from diffusion.encoders.networks import (
    EMBEDDERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    EmbedderSpec,
    build_inception,
    build_mobilenetv2,
    build_uni2h,
)
from diffusion.utils.errors import InputError, MissingError


@pytest.fixture
def windows() -> torch.Tensor:
    """Two smooth, coloured windows with an edge in them, uint8 (2, 3, 256, 256)."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    waves = [128 + 120 * torch.sin(x / (9 + i) + i) * torch.cos(y / (13 - i)) for i in range(6)]
    pixels = torch.stack(waves).reshape(2, 3, 256, 256)
    pixels[:, :, 100:140, 60:90] = 255
    return pixels.clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory):
    """A folder with a whole MobileNetV2, classifier included, as torchvision saves it."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    model = mobilenet_v2(weights=None)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain mean of what it saw
                module.reset_running_stats()
        model(torch.randn(4, 3, 224, 224))  # with statistics of nothing, 50 layers fade every input to zero
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2-test.pth"
    torch.save(model.state_dict(), path)
    return path


def tiny_spec(**changes) -> EmbedderSpec:
    fields = {"name": "tiny", "width": 4, "build": lambda: torch.nn.Linear(3, 4), "weights": ("tiny.pth",),
              "folders": (), "default": "tiny.pth", "how_to_get": "make it"}  # fmt: skip
    return EmbedderSpec(**{**fields, **changes})


def test_transform_is_pillows(windows):
    embedder = PatchEmbedder(torch.nn.Identity(), "none", width=1)
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    for window, got in zip(windows, embedder.transform(windows), strict=True):
        image = Image.fromarray(window.permute(1, 2, 0).numpy())
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) / 255
        expected = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)
        off = (got - expected).abs() * 255 * torch.tensor(std).view(3, 1, 1)
        assert off.max() < 2.01  # Pillow reckons in fixed point: a tie in the first pass moves the second,
        assert off.mean() < 0.1  # but rarely; without the rounding between the passes this is 0.3


def test_embedding_does_not_depend_on_the_batch(mobilenet_file, windows):
    embedder = PatchEmbedder.load(mobilenet_file)
    together = embedder.embed(windows)
    assert together.shape == (2, 1280) and together.dtype == torch.float32
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together[1:], embedder.embed(windows[1:]), rtol=1e-4, atol=1e-5)


def test_mobilenetv2_pools_the_last_features(mobilenet_file, windows):
    from torchvision.models import mobilenet_v2

    whole = mobilenet_v2(weights=None).eval()
    whole.load_state_dict(torch.load(mobilenet_file, weights_only=True))
    embedder = PatchEmbedder.load(mobilenet_file)
    with torch.no_grad():
        logits = whole(embedder.transform(windows))
        torch.testing.assert_close(whole.classifier(embedder.embed(windows)), logits, rtol=1e-4, atol=1e-5)


def test_low_precision_embeddings_come_out_in_float32(mobilenet_file, windows):
    embedder = PatchEmbedder.load(mobilenet_file, dtype=torch.bfloat16)
    assert next(embedder.model.parameters()).dtype == torch.bfloat16
    assert embedder.embed(windows).dtype == torch.float32


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
                                   torch.zeros(3, 256, 256, dtype=torch.uint8)], ids=["float", "224", "no batch"])  # fmt: skip
def test_only_uint8_windows_are_embedded(wrong):
    embedder = PatchEmbedder(build_mobilenetv2().eval(), "mobilenetv2", 1280)
    with pytest.raises(InputError, match="expected uint8"):
        embedder.embed(wrong)


def test_uni2h_architecture():
    with torch.device("meta"):
        model = build_uni2h()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(model.blocks) == 24 and model.num_features == EMBEDDERS["uni2"].width == 1536
    assert shapes["reg_token"] == (1, 8, 1536)
    assert shapes["pos_embed"] == (1, 256, 1536)
    assert shapes["blocks.23.mlp.fc1.weight"] == (8192, 1536) and shapes["blocks.23.mlp.fc2.weight"] == (1536, 4096)
    assert not any(name.startswith("head") for name in shapes)
    assert sum(parameter.numel() for parameter in model.parameters()) == 681_394_176


@pytest.mark.slow
def test_uni2h_embeds(windows):
    embedder = PatchEmbedder(build_uni2h().eval(), "uni2", 1536)
    assert embedder.embed(windows[:1]).shape == (1, 1536)


@pytest.mark.parametrize("form", ["folder", "file", "explicit", "explicit folder"])
def test_encoder_values(mobilenet_file, form):
    value = {"folder": mobilenet_file.parent, "file": mobilenet_file, "explicit": f"mobilenetv2={mobilenet_file}",
             "explicit folder": f"mobilenetv2={mobilenet_file.parent}"}[form]  # fmt: skip
    spec, path = resolve_embedder(value)
    assert (spec.name, path) == ("mobilenetv2", mobilenet_file)


def test_uni2_values(tmp_path):
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


def test_absent_demo_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedders, "REPOSITORY", tmp_path)
    with pytest.raises(MissingError, match="python tools/fetch_demo_data.py"):
        PatchEmbedder.load("mobilenetv2")


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/vit_tiny_patch16_224", "torchvision/resnet18"])
def test_networks_of_libraries(tmp_path, windows, name):
    """Any network by name, its weights with the classifier, seen as its library says: whole windows, its own size."""
    import timm
    import torchvision

    torch.manual_seed(0)
    library, _, network = name.partition("/")
    if library == "timm":
        whole = timm.create_model(network, pretrained=False).eval()
        head = whole.get_classifier()
    else:
        whole = torchvision.models.get_model(network, weights=None).eval()
        head = whole.fc
    path = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), path)
    embedder = PatchEmbedder.load(f"{name}={path}")
    assert embedder.name == network and embedder.fingerprint
    features = embedder.embed(windows)
    assert features.shape == (2, embedder.width)
    with torch.no_grad():
        torch.testing.assert_close(head(features), whole(embedder.transform(windows)), rtol=1e-4, atol=1e-5)


def test_networks_take_arguments(tmp_path, windows):
    """A pathology encoder is often a known network with layer scale, registers or another image size."""
    import timm

    torch.manual_seed(0)
    arguments = dict(init_values=1e-5, img_size=112, reg_tokens=2, global_pool="avg")
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    name = "timm/vit_tiny_patch16_224?init_values=1e-5&img_size=112&reg_tokens=2&global_pool=avg"
    embedder = PatchEmbedder.load(f"{name}={tmp_path / 'w.pth'}")
    assert embedder.view.size == 112 and embedder.name == "vit_tiny_patch16_224"
    with torch.no_grad():
        expected = whole(embedder.transform(windows))
    torch.testing.assert_close(embedder.embed(windows), expected, rtol=1e-4, atol=1e-5)
    for wrong, message in (("?depht=3", "timm cannot make vit_tiny"), ("?depth", "expected NAME=VALUE")):
        with pytest.raises(InputError, match=message):
            PatchEmbedder.load(f"timm/vit_tiny_patch16_224{wrong}={tmp_path / 'w.pth'}")


def test_two_encoders_of_one_name_are_refused(mobilenet_file, tmp_path):
    other = tmp_path / "mobilenet_v2-other.pth"
    other.write_bytes(mobilenet_file.read_bytes())
    check_encoders([str(mobilenet_file)])
    with pytest.raises(InputError, match="two are called mobilenetv2"):
        check_encoders([str(mobilenet_file), str(other)])


def test_a_network_has_the_view_of_its_library(tmp_path):
    import timm

    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict(), path)
    view = PatchEmbedder.load(f"timm/vit_tiny_patch16_224={path}").view
    assert (view.size, view.interpolation, view.mean) == (224, "bicubic", (0.5, 0.5, 0.5))


def test_bicubic_is_pillows(windows):
    got = embedders.resize(windows, 224, 224, "bicubic")
    for window, resized in zip(windows, got, strict=True):
        image = Image.fromarray(window.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        off = (resized - torch.from_numpy(np.array(image)).permute(2, 0, 1)).abs()
        assert off.max() <= 2 and off.mean() < 0.1


def test_inception_is_the_one_of_the_fid(tmp_path, windows):
    """The same numbers as torch-fidelity's own extractor gives, from weights that are read as data."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = tmp_path / "weights-inception-2015-12-05-random.pth"
    torch.save(build_inception().state_dict(), path)
    embedder = PatchEmbedder.load(tmp_path)
    assert embedder.name == "inception" and embedder.width == 2048
    own = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.testing.assert_close(embedder.embed(windows), own(windows)[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*embedder.embed(windows))


def test_networks_that_are_not_there_are_told(tmp_path):
    for value, message in (
        ("timm/resnet10t", "name its weights file, too, as timm/resnet10t=FILE"),
        (f"timm/resnet10x={tmp_path / 'w'}", "timm knows no network resnet10x"),
        (f"torchvision/resnet10={tmp_path / 'w'}", "torchvision knows no classifier resnet10"),
    ):
        with pytest.raises(InputError, match=message):
            PatchEmbedder.load(value)
    with pytest.raises(MissingError, match="no weights of resnet18"):
        PatchEmbedder.load(f"torchvision/resnet18={tmp_path / 'w'}")


def test_unknown_encoder_lists_the_known(tmp_path):
    for value in ("resnet50", tmp_path, f"resnet50={tmp_path}", tmp_path / "model.safetensors"):
        with pytest.raises(InputError, match="none of uni2, mobilenetv2"):
            PatchEmbedder.load(value)


class Payload:
    """What an attacker would put in a weights file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path, writer):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    contents = {"cls_token": Payload(trace)}
    if writer == "torch":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=2))  # the one that torch writes
    with pytest.raises(InputError, match="pytorch_model.bin is refused: it refers to code, .* never run here"):
        embedders.read_weights(path)
    assert not trace.exists()


def test_a_file_that_is_no_weights_is_refused(tmp_path):
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


def test_wrong_weights_name_their_keys(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec())
    path = tmp_path / "tiny.pth"
    torch.save({"weight": torch.zeros(4, 3), "extra": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="missing bias; unexpected extra"):
        PatchEmbedder.load("tiny", root=tmp_path)
    torch.save({"weight": torch.zeros(4, 5), "bias": torch.zeros(4)}, path)
    with pytest.raises(InputError, match=r"weight \(4, 5\), expected \(4, 3\)"):
        PatchEmbedder.load("tiny", root=tmp_path)


class Small(torch.nn.Module):
    """A network whose names have components."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = torch.nn.Sequential(torch.nn.Linear(3, 4)), torch.nn.Linear(4, 4)


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
def test_wrapped_encoders(tmp_path, monkeypatch, wrap):
    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec(build=Small))
    weights = Small().state_dict()
    torch.save(wrap(weights), tmp_path / "tiny.pth")
    loaded = PatchEmbedder.load("tiny", root=tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_shards_of_an_encoder(tmp_path, monkeypatch):
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


def test_weights_of_whole_numbers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec())
    torch.save({"weight": torch.zeros(4, 3, dtype=torch.int8), "bias": torch.zeros(4)}, tmp_path / "tiny.pth")
    with pytest.raises(InputError, match="weight is of type int8, expected floating-point numbers"):
        PatchEmbedder.load("tiny", root=tmp_path)


def test_safetensors_and_torch_files_give_the_same(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setitem(EMBEDDERS, "tiny", tiny_spec(weights=("tiny.pth", "tiny.safetensors")))
    weights = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    torch.save(weights, tmp_path / "tiny.pth")
    save_file(weights, tmp_path / "tiny.safetensors")
    x = torch.randn(2, 3)
    outputs = [PatchEmbedder.load(f"tiny={tmp_path / name}").model(x) for name in ("tiny.pth", "tiny.safetensors")]
    torch.testing.assert_close(outputs[0], x @ weights["weight"].T + weights["bias"])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
