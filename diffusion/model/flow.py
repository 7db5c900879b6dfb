"""Flows between embeddings: a network that predicts velocities, from the embeddings of one stain, or from noise, to others.

Rectified flow (Liu et al. 2022, Flow straight and fast; Lipman et al. 2022, Flow matching): x_t = (1 - t) x_0 + t x_1, and the
network predicts x_1 - x_0. Its residual MLP is that of PixCell's virtual staining, under the names of the released files;
classes and grids of tokens are added to it.
Letters: N rows or images, L tokens of an image, D width of an embedding, K width of what the network sees, W width within.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from diffusion.formats import LAST_WEIGHTS
from diffusion.model.embedding_scale import EmbeddingScale
from diffusion.model.matching import check_fit
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.state_dicts import is_state_dict
from diffusion.utils.values import Count, Distinct, Name, NaturalInt, Range, Section
from diffusion.utils.weights import read_weights

ARCHITECTURE = "flow"  # key of checkpoints, and of the metadata of safetensors, under which its arguments are
TIME_SCALE = 999.0  # times from 0 to 1 are embedded as timesteps, as in the released network
LONGEST_PERIOD = 10_000.0
Method = Literal["euler", "heun"]


@dataclass(frozen=True)
class FlowConfig(Section):
    """The arguments of a flow; the defaults are those of the released network, 24.2 M parameters.

    width: of the embeddings. hidden_size: W of the residual stream; bottleneck: within a block. time_size, sinusoids: of the
    embedding of time. tokens: of an image that are drawn together, 1 or more. components: K of a flow from noise, principal
    components of the embeddings; 0 for a flow from embeddings, which works on these as they are. classes: names of what a flow
    can be asked for, with the share of each in `shares`.
    Raises InputError for values out of their range, and for those that contradict each other.
    """

    PREFIX: ClassVar[str] = "the flow's "

    width: Count = 1536
    hidden_size: Count = 1024
    bottleneck: Count = 1024
    time_size: Count = 1024
    sinusoids: Count = 1024
    depth: Annotated[int, Range(least=1, most=1024)] = 6
    tokens: Count = 1
    num_heads: Count = 8
    components: NaturalInt = 0
    classes: Annotated[tuple[Name, ...], Distinct()] = ()
    shares: tuple[Annotated[float, Range(least=0, most=1)], ...] = ()

    def check(self) -> None:
        if self.tokens > 1 and self.hidden_size % self.num_heads:
            raise InputError(
                f"{self.PREFIX}hidden_size {self.hidden_size}: expected a multiple of {self.num_heads} heads"
            )
        if self.sinusoids % 2:
            raise InputError(f"{self.PREFIX}sinusoids {self.sinusoids}: expected an even number")
        if self.components > self.width:
            raise InputError(f"{self.PREFIX}components {self.components}: embeddings have {self.width} values")
        if len(self.shares) != len(self.classes):
            raise InputError(f"{self.PREFIX}shares {self.shares}: expected one for each of {len(self.classes)} classes")

    @property
    def from_noise(self) -> bool:
        """Tell a flow from noise from one that translates embeddings."""
        return self.components > 0

    @property
    def size(self) -> int:
        """Values of a token as the network sees it."""
        return self.components or self.width

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class ResidualBlock(nn.Module):
    """A residual block of two linear maps with time added between them, and, for grids of tokens, attention behind it."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        width, inner = config.hidden_size, config.bottleneck
        self.in_layers = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, inner))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.time_size, inner))
        # the third is dropout in the released network, whose rate is 0; it keeps the number of the fourth
        self.out_layers = nn.Sequential(nn.LayerNorm(inner), nn.SiLU(), nn.Identity(), zero_linear(inner, width))
        self.attention = TokenAttention(width, config.num_heads) if config.tokens > 1 else None

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return x (N, L, W) after the block; time: its embedding (N, 1, T)."""
        x = x + self.out_layers(self.in_layers(x) + self.emb_layers(time))
        return x if self.attention is None else x + self.attention(x)


class TokenAttention(nn.Module):
    """Attention among the tokens of an image, which begins as nothing."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), zero_linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to tokens (N, L, W)."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EmbeddingFlow(nn.Module):
    """Velocities of a flow to embeddings, and what follows them.

    Its velocity begins at that of the straight way from a Gaussian to itself (from noise), or at zero (between embeddings).
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.time_embed = nn.Sequential(
            nn.Linear(config.sinusoids, config.time_size), nn.SiLU(), nn.Linear(config.time_size, config.time_size)
        )
        self.input_proj = nn.Linear(config.size, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.depth))
        self.out = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.SiLU(), zero_linear(width, config.size))
        self.class_embed = nn.Embedding(len(config.classes), config.time_size) if config.classes else None
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)
        self.positions = nn.Parameter(torch.zeros(1, config.tokens, width)) if config.tokens > 1 else None
        scale = EmbeddingScale(config.width, config.components, config.tokens, len(config.classes))
        self.scale = scale if config.from_noise else None

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self.input_proj.weight.device

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return velocities of the shape of x: rows (N, K) of single tokens, or images (N, L, K).

        t: times (N,) from 0 to 1. label: numbers of classes (N,), which a flow with classes needs.
        Raises ValueError for another number of tokens, and for labels that are missing.
        """
        images = x[:, None] if x.ndim == 2 else x
        if images.shape[1:] != (self.config.tokens, self.config.size) or t.shape != (len(x),):
            raise ValueError(
                f"x {tuple(x.shape)} at times {tuple(t.shape)}: expected (N, {self.config.tokens}, {self.config.size}), (N,)"
            )
        if (label is None) != (self.class_embed is None):
            raise ValueError(
                f"the flow has {len(self.config.classes)} classes, and {'no ' * (label is None)}labels are given"
            )
        time = self.time_embed(sinusoids(TIME_SCALE * t, self.config.sinusoids).to(self.input_proj.weight.dtype))
        if self.class_embed is not None:
            time = time + self.class_embed(label)
        if self.config.from_noise:
            level = (t.square() + (1 - t).square())[:, None, None]  # variance of x where both ends are unit Gaussians
            straight = (2 * t - 1)[:, None, None] / level * images  # the exact velocity if they are
            hidden = self.input_proj(images * level.rsqrt())
        else:
            straight, hidden = 0.0, self.input_proj(images)
        hidden = hidden if self.positions is None else hidden + self.positions
        for block in self.res_blocks:
            hidden = block(hidden, time[:, None])
        return (self.out(hidden) + straight).view_as(x)

    @torch.no_grad()
    def integrate(
        self, x: torch.Tensor, steps: int, method: Method = "euler", label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Follow the velocities from x at time 0 to time 1, as the function `integrate` does."""
        return integrate(lambda now, t: self(now, now.new_full((len(now),), t), label), x, steps, method)

    def translate(self, x: torch.Tensor, steps: int = 100, method: Method = "euler") -> torch.Tensor:
        """Return the embeddings that the flow leads to from embeddings x, rows (N, D) or images (N, L, D).

        Each token is translated by itself. Raises InputError for a flow from noise, and for embeddings of another width.
        """
        if self.config.from_noise:
            raise InputError("this flow begins at noise: it is a prior, which draws embeddings and translates none")
        if x.shape[-1] != self.config.width:
            raise InputError(f"embeddings of {x.shape[-1]} values: the flow translates those of {self.config.width}")
        rows = x.reshape(-1, x.shape[-1]).to(self.input_proj.weight)
        return self.integrate(rows, steps, method).view_as(x)

    def draw(
        self, noise: torch.Tensor, label: torch.Tensor | None = None, steps: int = 20, method: Method = "heun"
    ) -> torch.Tensor:
        """Return the tokens (N, L, D) that noise (N, L, K) becomes; label: numbers of classes (N,).

        Raises InputError for a flow that translates embeddings.
        """
        if self.scale is None:
            raise InputError("this flow begins at embeddings: it translates them, and draws none")
        return self.scale.colour(self.integrate(noise, steps, method, label), label)


def integrate(
    velocity: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, steps: int, method: Method = "euler"
) -> torch.Tensor:
    """Follow velocities (x, time) -> of x's shape from x at time 0 to time 1, in equal steps.

    method: euler, one evaluation a step, or heun, two. Raises InputError for less than one step and an unknown method.
    """
    if steps < 1:
        raise InputError(f"{steps} steps of a flow: expected at least 1")
    if method not in ("euler", "heun"):
        raise InputError(f"no method {method!r} of a flow: known are euler, heun")
    for step in range(steps):
        slope = velocity(x, step / steps)
        if method == "heun":
            slope = (slope + velocity(x + slope / steps, (step + 1) / steps)) / 2
        x = x + slope / steps
    return x


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Build a linear map that begins at zero, of what is added to a residual stream, and of the output."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def sinusoids(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return cosines, then sines (N, size) of values (N,), whose periods grow geometrically, in float32."""
    half = size // 2
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def infer_config(weights: Mapping[str, torch.Tensor], source: str | Path) -> FlowConfig:
    """Return the arguments that the tensors of a released flow imply. Raises InputError for those of something else."""
    try:
        hidden, width = weights["input_proj.weight"].shape
        time_size, sinusoid_count = weights["time_embed.0.weight"].shape
        bottleneck = len(weights["res_blocks.0.in_layers.2.weight"])
    except (KeyError, ValueError):
        raise InputError(f"{source} holds no embedding flow: expected input_proj, time_embed and res_blocks") from None
    depth = len({name.split(".")[1] for name in weights if name.startswith("res_blocks.")})
    return FlowConfig(
        width=width,
        hidden_size=hidden,
        bottleneck=bottleneck,
        time_size=time_size,
        sinusoids=sinusoid_count,
        depth=depth,
    )


def read_flow_config(arguments: Mapping[str, Any], source: str | Path) -> FlowConfig:
    """Return the arguments that a file has stored. Raises InputError for unknown ones."""
    unknown = sorted(arguments.keys() - {each.name for each in fields(FlowConfig)})
    if unknown:
        raise InputError(
            f"{source} is a flow with {', '.join(unknown)}, which this version does not know; update pixcell"
        )
    return FlowConfig(**arguments)


def load_flow(path: str | Path, ema: bool = True) -> EmbeddingFlow:
    """Read a flow: the state dict of a release (.pth), a file of `save_flow`, or a run that trained one or a checkpoint of it.

    ema: of a checkpoint that holds both, take the averaged weights. Raises MissingError, and InputError for a file that is
    damaged or holds something else.
    """
    path = Path(path)
    file = path / LAST_WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise MissingError(f"no embedding flow at {file}; name a run of the task embedding_flow, or a file of weights")
    content = read_weights(file).content
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds no embedding flow: expected tensors by name")
    arguments = content.get(ARCHITECTURE) or _stored_arguments(file)
    weights: Any = content
    if not is_state_dict(content):
        parts = ("state_dict", "ema", "model") if ema else ("model",)
        weights = next((content[part] for part in parts if part in content), None)
        if weights is None and not ema and "state_dict" in content:
            raise InputError(f"{file} holds averaged weights only; the weights themselves are in a step_<n>.ckpt")
        if weights is None or not is_state_dict(weights):
            raise InputError(f"{file} holds no embedding flow: expected a checkpoint of the task embedding_flow")
    config = read_flow_config(arguments, file) if isinstance(arguments, Mapping) else infer_config(weights, file)
    flow = EmbeddingFlow(config)
    check_fit(flow.state_dict(), weights, file)
    flow.load_state_dict(weights)
    return flow.eval()


def _stored_arguments(file: Path) -> dict[str, Any] | None:
    """Return the arguments in the metadata of a safetensors file; None for any other, and for one without."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get(ARCHITECTURE)
    except (SafetensorError, OSError):
        return None
    return None if text is None else json.loads(text)


def save_flow(flow: EmbeddingFlow, path: str | Path) -> None:
    """Write a flow as one safetensors file with its arguments in the metadata. Raises InputError when it is already there."""
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists():
        raise InputError(f"{path} is already there; name a new file")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in flow.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", ARCHITECTURE: json.dumps(flow.config.to_dict())})
