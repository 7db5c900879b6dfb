"""ControlNet: equal to a composition of diffusers' own layers, at first nothing, and only where a sample has a control."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import PatchEmbed, PixArtAlphaTextProjection
from diffusers.models.normalization import AdaLayerNormSingle
from safetensors.torch import load_file, save_file
from small_pixart import ARGUMENTS, build_small_pixart, same
from torch import nn

from diffusion.condition import Condition
from diffusion.control import ControlledNetwork
from diffusion.guidance import guided_prediction
from diffusion.model.controlnet import ControlNet, check_control_fits, load_controlnet, save_controlnet
from diffusion.model.embed import token_grid
from diffusion.model.pixart import PixArt
from diffusion.utils.errors import InputError, MissingError

FILE = "diffusion_pytorch_model.safetensors"
SHAPE = (16, 64, 64)  # of the small network's latents
BLOCK = dict(
    attention_bias=True, activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False,
    norm_eps=1e-6,
)  # fmt: skip


def build_base(**changes) -> PixArt:
    """The small network, with all of its weights random: new ones end in zeros."""
    base = build_small_pixart() if not changes else PixArt(**{**ARGUMENTS, **changes})
    return randomise(base)


def randomise(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def inputs(count: int = 2, channels: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, control = (torch.randn(count, each, *SHAPE[1:], generator=generator) for each in (16, channels))
    tokens = torch.randn(count, ARGUMENTS["model_max_length"], ARGUMENTS["caption_channels"], generator=generator)
    return x, torch.arange(count) * 300 + 100, tokens, control


class Reference(nn.Module):
    """The released class, put together from the layers of diffusers under the names that its files have."""

    def __init__(self, config):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        grid = dict(
            height=config.input_size, width=config.input_size, patch_size=config.patch_size, in_channels=16,
            embed_dim=width, interpolation_scale=config.pe_interpolation,
        )  # fmt: skip
        self.pos_embed, self.cond_pos_embed = PatchEmbed(**grid), PatchEmbed(**grid)
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = PixArtAlphaTextProjection(config.caption_channels, width)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(width, heads, width // heads, cross_attention_dim=width, **BLOCK)
            for _ in range(config.depth)
        )
        self.controlnet_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        arguments = (config.caption_channels, config.model_max_length, config.base_size, config.pe_interpolation)
        self.positions = token_grid(*arguments) if config.use_cond_pos_embed else 0

    def forward(self, x, timestep, tokens, control):
        x = self.pos_embed(x) + self.cond_pos_embed(control)
        modulation, _ = self.adaln_single(timestep, None, batch_size=len(x), hidden_dtype=x.dtype)
        condition = self.caption_projection(tokens + self.positions)
        found = []
        for block, projection in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            x = block(x, encoder_hidden_states=condition, timestep=modulation)
            found.append(projection(x))
        return found


@pytest.mark.parametrize("changes", [{}, {"model_max_length": 1, "use_cond_pos_embed": False}], ids=["16", "1"])
@torch.no_grad()
def test_it_equals_the_layers_of_diffusers(tmp_path, changes):
    controlnet = randomise(ControlNet.of(build_base(qk_norm=False, mlp_ratio=4.0, **changes)))
    save_controlnet(controlnet, tmp_path / "controlnet")
    stored = load_file(tmp_path / "controlnet" / FILE)
    reference = Reference(controlnet.config).eval()
    unused = {"scale_shift_table", "proj_out.weight", "proj_out.bias", "caption_projection.uncond_embedding"}
    assert unused <= stored.keys()
    unused.add("y_pos_embed.y_pos_embed")  # computed above
    reference.load_state_dict({name: tensor for name, tensor in stored.items() if name not in unused})
    x, timestep, tokens, control = inputs()
    tokens = tokens[:, : controlnet.config.model_max_length]
    expected = reference(x, timestep, tokens, control)
    for mine, theirs in zip(controlnet(x, timestep, tokens, control), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert len(expected) == 2  # of the three blocks, the last has none


def test_positions_of_a_single_condition_are_kept(tmp_path):
    """Which released networks of one condition do not have."""
    controlnet = randomise(ControlNet.of(build_base(model_max_length=1, use_cond_pos_embed=True), blocks=1))
    save_controlnet(controlnet, tmp_path / "controlnet")
    again = load_controlnet(tmp_path / "controlnet")
    assert again.config.use_cond_pos_embed and same(again.state_dict(), controlnet.state_dict())


def test_files_there_and_back_to_the_bit(tmp_path):
    controlnet = randomise(ControlNet.of(build_base(), blocks=1, maps=("nuclei", "vessels"), mask_kind="types"))
    save_controlnet(controlnet, tmp_path / "first")
    again = load_controlnet(tmp_path / "first")
    assert again.config == dataclasses.replace(controlnet.config, class_dropout_prob=again.config.class_dropout_prob)
    assert same(again.state_dict(), controlnet.state_dict())
    save_controlnet(again, tmp_path / "second")
    assert same(load_file(tmp_path / "first" / FILE), load_file(tmp_path / "second" / FILE))
    # names of the first released class, and a folder of a whole pipeline
    old = {
        name if name.startswith(("controlnet_blocks", "cond_pos_embed")) else f"transformer.{name}": tensor
        for name, tensor in load_file(tmp_path / "first" / FILE).items()
    }
    save_file(old, tmp_path / "first" / FILE)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "first").rename(tmp_path / "pipeline/controlnet")
    assert same(load_controlnet(tmp_path / "pipeline").state_dict(), controlnet.state_dict())


@torch.no_grad()
def test_a_new_one_changes_no_bit_and_starts_from_the_blocks():
    base = build_base()
    controlnet = ControlNet.of(base, maps=("nuclei",))
    copied, own = base.state_dict(), controlnet.state_dict()
    assert all(torch.equal(own[name], copied[name]) for name in own if name in copied)
    x, timestep, tokens, control = inputs(channels=64)
    controlled = ControlledNetwork(base, controlnet)(x, timestep, Condition(tokens, control))
    assert torch.equal(controlled, base(x, timestep, tokens))


def test_the_control_is_learned_from_the_second_step_on():
    """The projections have gradients at once; the embedding of the control as soon as they are not zero."""
    base = build_base().requires_grad_(False)
    controlnet = ControlNet.of(base)
    network = ControlledNetwork(base, controlnet)
    x, timestep, tokens, control = inputs()
    for step in range(2):
        network(x, timestep, Condition(tokens, control)).square().mean().backward()
        trained = [weight for weight in controlnet.parameters() if weight.requires_grad]
        assert all(weight.grad is not None for weight in trained)
        assert (controlnet.control_embedder.proj.weight.grad.abs().sum() > 0) == (step == 1)
        torch.optim.SGD(trained, lr=0.1).step()
    assert all(weight.grad is None for weight in (*base.parameters(), *controlnet.final_layer.parameters()))


@torch.no_grad()
def test_only_samples_with_a_control_get_one():
    base = build_base()
    controlnet = randomise(ControlNet.of(base))
    x, timestep, tokens, control = inputs(3)
    network = ControlledNetwork(base, controlnet)
    weight = torch.tensor([1.0, 0.0, 0.5])
    mixed = network(x, timestep, Condition(tokens, control, weight))
    assert torch.equal(mixed[1], base(x, timestep, tokens)[1])
    residuals = [each * weight[:, None, None] for each in controlnet(x, timestep, tokens, control)]
    torch.testing.assert_close(mixed, base(x, timestep, tokens, residuals=residuals))
    limited = ControlledNetwork(base, controlnet, interval=(0.0, 1.0))(x, timestep, Condition(tokens, control))
    plain, steered = base(x, timestep, tokens), network(x, timestep, Condition(tokens, control))
    torch.testing.assert_close(limited, torch.stack([steered[0], plain[1], plain[2]]))  # timesteps 100, 400, 700


@torch.no_grad()
def test_the_null_pass_gets_no_control():
    """At guidance 2 the prediction is 2 * controlled - uncontrolled null; with control kept, both passes have it."""
    base = build_base()
    network = ControlledNetwork(base, randomise(ControlNet.of(base)))
    x, timestep, tokens, control = inputs()
    condition = Condition(tokens, control)
    steered, null = network(x, timestep, condition)[:, :16], base.null_condition.expand_as(tokens)
    released, _ = guided_prediction(network, x, timestep, condition, base.null_condition, 2.0)
    torch.testing.assert_close(released, 2 * steered - base(x, timestep, null)[:, :16], rtol=1e-4, atol=1e-4)
    kept, _ = guided_prediction(network, x, timestep, condition, condition.null(base, keep_control=True), 2.0)
    both = network(x, timestep, Condition(null, control))[:, :16]
    torch.testing.assert_close(kept, 2 * steered - both, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    base = build_base()
    controlnet = ControlNet.of(base)
    x, timestep, tokens, control = inputs()
    with pytest.raises(ValueError, match="control of shape"):
        controlnet(x, timestep, tokens, control[:, :3])
    with pytest.raises(InputError, match="of 4 blocks: the network that it steers has 3"):
        ControlNet.of(base, blocks=4)
    with pytest.raises(InputError, match="of another network .num_heads 4 instead of 2"):
        check_control_fits(controlnet.config, build_base(num_heads=2).config)
    with pytest.raises(MissingError, match="no ControlNet in"):
        load_controlnet(tmp_path)
    save_controlnet(controlnet, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / FILE)
    del tensors["controlnet_blocks.1.bias"]
    save_file(tensors, tmp_path / "saved" / FILE)
    with pytest.raises(InputError, match=r"missing: projections\.1\.bias"):
        load_controlnet(tmp_path / "saved")
    config = tmp_path / "saved/config.json"
    config.write_text(config.read_text().replace("PixCellControlNet", "PixCellTransformer2DModel"))
    with pytest.raises(InputError, match="expected a PixCellControlNet"):
        load_controlnet(tmp_path / "saved")
