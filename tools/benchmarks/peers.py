"""Peers to measure against: diffusers' network with the same weights, and plain loops that do one thing at a time.

Letters: B batch, C channels, H W cells of the latents, L condition tokens of width D, N image tokens, W width, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from benchmarks.operations import typed_blocks
from diffusion.model.diffusers_layout import to_diffusers
from diffusion.model.pixart import PixArt
from diffusion.panorama import Windows

NULL = "caption_projection.uncond_embedding"
POSITIONS = "y_pos_embed.y_pos_embed"


class DiffusersNetwork(nn.Module):
    """diffusers' PixArt with our weights; it has no positions of condition tokens, so they are added here."""

    positions: torch.Tensor | None

    def __init__(self, model: PixArt):
        super().__init__()
        config = model.config
        self.network = PixArtTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.hidden_size // config.num_heads,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.depth,
            cross_attention_dim=config.hidden_size,
            sample_size=config.input_size,
            patch_size=config.patch_size,
            caption_channels=config.caption_channels,
            interpolation_scale=config.pe_interpolation,  # pyright: ignore[reportArgumentType]  # diffusers means any number
            use_additional_conditions=False,
        )
        weights = to_diffusers(model.state_dict())
        self.network.load_state_dict({k: v for k, v in weights.items() if k not in (NULL, POSITIONS)}, strict=True)
        self.register_buffer("positions", model.y_pos_embed)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y = y if self.positions is None else y + self.positions
        return self.network(x, encoder_hidden_states=y, timestep=timestep, return_dict=False)[0]


class PlainNetwork:
    """The formulas of the paper on our weights, one image at a time, in the weights' own precision.

    Attention is a softmax of products; nothing is fused.
    """

    def __init__(self, model: PixArt):
        self.model = model

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat(
                [self._predict_one(x[i : i + 1], timestep[i : i + 1], y[i : i + 1]) for i in range(len(x))]
            )

    def _predict_one(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        model, p = self.model, self.model.config.patch_size
        rows, columns = x.shape[2] // p, x.shape[3] // p
        x = model.x_embedder.proj(x).flatten(2).transpose(1, 2) + model.pos_embed  # (1, N, W)
        time = model.t_embedder(timestep)  # (1, W)
        y = y if model.y_pos_embed is None else y + model.y_pos_embed
        y = model.y_embedder.y_proj(y)  # (1, L, W)
        for block in typed_blocks(model):
            table = block.scale_shift_table + model.t_block(time).reshape(1, 6, -1)
            shift1, scale1, gate1, shift2, scale2, gate2 = table.chunk(6, dim=1)
            own, cross = block.attn, block.cross_attn
            q, k, v = own.qkv(block.norm1(x) * (1 + scale1) + shift1).chunk(3, dim=-1)
            x = x + gate1 * own.proj(attention(q, k, v, own.heads))
            k, v = cross.kv_linear(y).chunk(2, dim=-1)
            x = x + cross.proj(attention(cross.q_linear(x), k, v, cross.heads))
            hidden = F.gelu(block.mlp.fc1(block.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
            x = x + gate2 * block.mlp.fc2(hidden)
        shift, scale = (model.final_layer.scale_shift_table + time[:, None]).chunk(2, dim=1)
        x = model.final_layer.linear(model.final_layer.norm_final(x) * (1 + scale) + shift)
        x = x.reshape(1, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(1, -1, rows * p, columns * p)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the attention of queries (1, N, W) over keys and values (1, M, W), each head by itself."""
    parts = [
        (q_h @ k_h.transpose(1, 2) * q_h.shape[-1] ** -0.5).softmax(-1) @ v_h
        for q_h, k_h, v_h in zip(*(each.chunk(heads, dim=-1) for each in (q, k, v)), strict=True)
    ]
    return torch.cat(parts, dim=-1)


def build_solver(steps: int) -> DPMSolverMultistepScheduler:
    """Return diffusers' solver with the settings of ours, so that latents can be compared."""
    solver = DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="sigma_min",
        euler_at_final=True,
    )
    solver.set_timesteps(steps)
    return solver


@torch.no_grad()
def sample_diffusers_loop(
    network: nn.Module, noise: torch.Tensor, y: torch.Tensor, null: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """Sample as diffusers' PixArt pipeline does: both passes in one batch, only one without guidance; null (L, D)."""
    solver, x, guided = build_solver(steps), noise, guidance > 1
    tokens = torch.cat([null.expand_as(y), y]) if guided else y
    for t in solver.timesteps:
        inputs = torch.cat([x, x]) if guided else x
        output = network(inputs, t.to(x.device).expand(len(inputs)), tokens)[:, : x.shape[1]].float()
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        x = solver.step(output, t, x, return_dict=False)[0]
    return x


@torch.no_grad()
def sample_plain_loop(
    network: PlainNetwork, noise: torch.Tensor, y: torch.Tensor, null: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """Sample image after image, a conditional and a null pass each."""
    images = []
    for start, tokens in zip(noise.split(1), y.split(1), strict=True):
        solver, x = build_solver(steps), start
        for t in solver.timesteps:
            prediction = guide_in_two_passes(network, x, t, tokens, null, guidance)
            x = solver.step(prediction, t, x, return_dict=False)[0]
        images.append(x)
    return torch.cat(images)


@torch.no_grad()
def panorama_plain_loop(
    network: nn.Module,
    windows: Windows,
    noise: torch.Tensor,
    y: torch.Tensor,
    null: torch.Tensor,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    """Sample window after window, a conditional and a null pass each; noise (1, C, H, W), y (n, L, D) of the windows."""
    solver, x, side = build_solver(steps), noise, windows.side
    fade = (windows.blend_weights()[:, None] * windows.blend_weights()).to(x.device)
    for t in solver.timesteps:
        total, weights = torch.zeros_like(x), torch.zeros_like(x)
        for (row, column), tokens in zip(windows.corners, y.split(1), strict=True):
            place = (..., slice(row, row + side), slice(column, column + side))
            total[place] += fade * guide_in_two_passes(network, x[place], t, tokens, null, guidance)
            weights[place] += fade
        x = solver.step(total / weights, t, x, return_dict=False)[0]
    return x


def guide_in_two_passes(
    network, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, null: torch.Tensor, guidance: float
):
    """Return null + w * (conditional - null) of one image in two passes."""
    timestep, channels = t.to(x.device).expand(1), x.shape[1]
    conditional, unconditional = (network(x, timestep, tokens)[:, :channels].float() for tokens in (y, null[None]))
    return unconditional + guidance * (conditional - unconditional)
