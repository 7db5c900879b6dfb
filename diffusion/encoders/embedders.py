"""Patch embedders: one 256x256 window of tissue -> one vector. An embedder is model + transform + dtype, defined once.

Letters: B batch, D width of the embedding.
Known networks stand in `EMBEDDERS`. Weights are read as data, never unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from diffusion.errors import InputError, MissingError
from diffusion.files import fingerprint
from diffusion.weights import read_safetensors, read_torch_file

WINDOW = 256  # pixels a side of what is embedded at once
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EmbedderSpec:
    """One known network: how it is built, how its weights are recognised, where they are by default."""

    name: str
    width: int  # D
    input_size: int  # pixels a side that the network sees
    build: Callable[[], nn.Module]  # random weights; maps (B, 3, input_size, input_size) to (B, D)
    weights: tuple[str, ...]  # patterns of its weights files, the best first
    folders: tuple[str, ...]  # folder names that mean this network
    default: str  # weights file, below --root or the current folder
    how_to_get: str
    head: str | None = None  # prefix of weights for classification, which an embedding does not use


def build_uni2h() -> nn.Module:
    """UNI2-h: a ViT-giant with 8 registers and SwiGLU, 681.4 M parameters; (B, 3, 224, 224) -> (B, 1536)."""
    import timm

    return timm.create_model(
        "vit_giant_patch14_224", pretrained=False, img_size=224, patch_size=14, depth=24, num_heads=24, init_values=1e-5,
        embed_dim=1536, mlp_ratio=2.66667 * 2, num_classes=0, no_embed_class=True, reg_tokens=8, dynamic_img_size=True,
        mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip


def build_mobilenetv2() -> nn.Module:
    """MobileNetV2 without its classifier; (B, 3, 224, 224) -> (B, 1280), pooled over the image."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(weights=None)
    model.classifier = nn.Identity()
    return model


EMBEDDERS = {
    spec.name: spec
    for spec in (
        EmbedderSpec(
            name="uni2", width=1536, input_size=224, build=build_uni2h,
            weights=("pytorch_model.bin", "model.safetensors"), folders=("uni2", "uni2-h"),
            default="pretrained_models/uni2/pytorch_model.bin",
            how_to_get="ask for access to UNI2-h at huggingface.co/MahmoodLab/UNI2-h and put its pytorch_model.bin there, or set --root",
        ),
        EmbedderSpec(
            name="mobilenetv2", width=1280, input_size=224, build=build_mobilenetv2,
            weights=("mobilenet_v2*.pth", "mobilenet_v2*.safetensors"), folders=(),
            default="data/demo/source/mobilenet_v2-b0353104.pth",
            how_to_get="run `python tools/fetch_demo_data.py`, or name the file with mobilenetv2=FILE", head="classifier.",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class PatchEmbedder:
    """A network in eval mode with the transform that it expects."""

    model: nn.Module
    name: str
    width: int  # D
    input_size: int = 224
    dtype: torch.dtype = torch.float32  # of the network; embeddings come out in float32
    fingerprint: str = ""  # of the weights file

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        root: Path = Path("."),
    ) -> PatchEmbedder:
        """Load a known network: `uni2`, `mobilenetv2`, a weights file, its folder, or `name=path`.

        Raises InputError for an unknown network and for weights that are not its own, MissingError for absent ones.
        """
        spec, path = resolve_embedder(name_or_path, root)
        with torch.device("meta"):  # nothing is allocated or drawn: every weight comes from the file
            model = spec.build()
        _fill(model, read_weights(path), spec, path)
        # channels last nearly halves the time of these convolutions on a CPU
        model = model.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
        return cls(model, spec.name, spec.width, spec.input_size, dtype, fingerprint(path))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """uint8 windows (B, 3, 256, 256), RGB -> embeddings (B, D) in float32, on the embedder's device."""
        expected = (3, WINDOW, WINDOW)
        if windows.dtype != torch.uint8 or windows.ndim != 4 or windows.shape[1:] != expected:
            raise InputError(
                f"got windows of {windows.dtype} {tuple(windows.shape)}, expected uint8 (B, 3, {WINDOW}, {WINDOW})"
            )
        images = self.transform(windows.to(self.device)).to(self.dtype, memory_format=torch.channels_last)
        return self.model(images).float()

    def transform(self, windows: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, 256, 256) -> float32 (B, 3, input_size, input_size), normalised as for ImageNet.

        Rounded to 8 bits after either pass of the resize, as Pillow does it: these networks were trained behind Pillow.
        """
        pixels = windows.float()
        for size in ((windows.shape[2], self.input_size), (self.input_size, self.input_size)):  # across, then down
            pixels = (
                F.interpolate(pixels, size=size, mode="bilinear", antialias=True).add(0.5).floor()
            )  # Pillow rounds half up
        pixels = pixels / 255
        mean = pixels.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
        std = pixels.new_tensor(IMAGENET_STD).view(3, 1, 1)
        return (pixels - mean) / std


def resolve_embedder(name_or_path: str | Path, root: Path = Path(".")) -> tuple[EmbedderSpec, Path]:
    """Which network an --encoder value means, and its weights file.

    Raises InputError when no known network fits, MissingError when the weights are not there.
    """
    text = str(name_or_path)
    name, explicit, path = text.partition("=")
    if explicit and name in EMBEDDERS:
        return EMBEDDERS[name], _weights_file(EMBEDDERS[name], Path(path))
    if text in EMBEDDERS:
        spec = EMBEDDERS[text]
        places = [root / spec.default, Path(spec.default)]  # where it was put with the same --root, or without
        return spec, _weights_file(spec, next((place for place in places if place.is_file()), places[0]))
    spec = _recognise(Path(text))
    return spec, _weights_file(spec, Path(text))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a .safetensors or torch file. Raises InputError for a file of anything but tensors by name."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    weights = read_torch_file(path)
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(
            f"{path} holds more than tensors by name; expected what torch.save(model.state_dict(), file) writes"
        )
    return dict(weights)


def _recognise(path: Path) -> EmbedderSpec:
    """The network that a folder or file is named after, or whose weights lie in the folder."""
    for spec in EMBEDDERS.values():
        if path.is_dir() and (path.resolve().name.lower() in spec.folders or _first_match(spec, path)):
            return spec
        if (
            not path.is_dir()
            and any(path.match(pattern) for pattern in spec.weights)
            and path.name != "model.safetensors"
        ):
            return spec
    known = ", ".join(EMBEDDERS)
    patterns = " or ".join(spec.weights[0] for spec in EMBEDDERS.values())
    raise InputError(
        f"encoder {str(path)!r} is none of {known}, nor a folder or file with {patterns}; name it as NAME=PATH if it is"
    )


def _weights_file(spec: EmbedderSpec, path: Path) -> Path:
    """`path` itself, or the weights in it when it is a folder."""
    found = _first_match(spec, path) if path.is_dir() else path
    if found is None or not found.is_file():
        wanted = f"{path / spec.weights[0]}" if path.is_dir() else f"{path}"
        raise MissingError(f"no weights of {spec.name} at {wanted}; {spec.how_to_get}")
    return found


def _first_match(spec: EmbedderSpec, folder: Path) -> Path | None:
    return next((found for pattern in spec.weights for found in sorted(folder.glob(pattern))), None)


def _fill(model: nn.Module, weights: dict[str, torch.Tensor], spec: EmbedderSpec, path: Path) -> None:
    """Load strictly, but for the classification head. Raises InputError with the keys that are missing or unexpected."""
    used = {key: value for key, value in weights.items() if spec.head is None or not key.startswith(spec.head)}
    expected = model.state_dict()
    missing = [key for key in expected if key not in used]
    unexpected = [key for key in used if key not in expected]
    if missing or unexpected:
        raise InputError(f"{path} does not fit {spec.name}: missing {_few(missing)}; unexpected {_few(unexpected)}")
    misshapen = [
        f"{key} {tuple(used[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if used[key].shape != expected[key].shape
    ]
    if misshapen:
        raise InputError(f"{path} does not fit {spec.name}: {_few(misshapen)}")
    model.load_state_dict(used, strict=True, assign=True)


def _few(keys: list[str], limit: int = 3) -> str:
    """`a, b, c and 17 more`."""
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return (", ".join(keys[:limit]) + rest) or "none"
