"""One stage from the weights of another: what is taken, made anew, left, and what is refused."""

from __future__ import annotations

import pytest
import torch

from diffusion.config.files import load_config
from diffusion.model import PixArt, build_model
from diffusion.model.convert import load_weights
from diffusion.model.initial_weights import plan_transfer, transfer_weights
from diffusion.utils.errors import InputError

SMALL = dict(hidden_size=16, depth=2, num_heads=2, caption_channels=12)
STAGES = {
    256: dict(input_size=32, pe_interpolation=0.5, model_max_length=1),
    512: dict(input_size=64, pe_interpolation=1.0, model_max_length=4, use_cond_pos_embed=True),
    1024: dict(input_size=128, pe_interpolation=2.0, model_max_length=16, use_cond_pos_embed=True),
}


def network(stage: int, **changes) -> PixArt:
    torch.manual_seed(stage)
    return PixArt(**{**SMALL, **STAGES[stage], **changes})


@pytest.mark.parametrize(
    ("before", "after", "remade", "ignored"),
    [
        (256, 512, {"pos_embed", "y_embedder.y_embedding", "y_pos_embed"}, set()),
        (512, 1024, {"pos_embed", "y_embedder.y_embedding", "y_pos_embed"}, set()),
        (512, 512, {"pos_embed", "y_pos_embed"}, set()),
        (512, 256, {"pos_embed", "y_embedder.y_embedding"}, {"y_pos_embed"}),
    ],
)
def test_stages(before, after, remade, ignored):
    weights, model = network(before).state_dict(), network(after)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = transfer_weights(model, weights, (), "weights")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name] if name in remade else weights[name]), name
    transfer = plan_transfer(own, weights, (), "weights")
    assert set(transfer.remade) == remade and set(transfer.ignored) == ignored
    lines = table.splitlines()
    assert lines[0].split() == ["taken", "over", str(len(own) - len(remade)), "tensors", "of", "0.02", "M", "values"]
    assert {line.split()[2] for line in lines[1:] if "made anew" in line} == remade
    assert {line.split()[1] for line in lines[1:] if "ignored" in line} == ignored


def test_the_table_says_shapes_and_why():
    own, weights = network(512).state_dict(), network(256).state_dict()
    table = plan_transfer(own, weights, (), "w").format_table(own, weights)
    assert "pos_embed  (1, 256, 16) -> (1, 1024, 16)  position grid of the latents" in table
    assert "y_pos_embed  - -> (1, 4, 12)  positions of the condition tokens" in table
    assert "y_embedder.y_embedding  (1, 12) -> (4, 12)  null condition, of another number of tokens" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_size=20), "of another shape: x_embedder.proj.weight"),
        (dict(depth=3), "unknown: blocks.2.attn.proj.bias"),
        (dict(depth=1), "missing: blocks.1.attn.proj.bias"),
        (dict(caption_channels=8), r"of another shape: y_embedder.y_embedding \(1, 8\) instead of \(4, 12\)"),
        (dict(qk_norm=True), "unknown: blocks.0.attn.k_norm.bias"),
    ],
)
def test_anything_unexpected_is_an_error_and_changes_nothing(change, message):
    model = network(512)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        transfer_weights(model, network(256, **change).state_dict(), (), "w")
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_ignored_keys():
    own, weights = network(256).state_dict(), network(256).state_dict()
    transfer = plan_transfer(own, weights, ("final_layer.linear.bias", "y_embedder.y_embedding"), "w")
    assert transfer.remade["final_layer.linear.bias"] == transfer.remade["y_embedder.y_embedding"] == "ignore_keys"
    extra = {**weights, "old.weight": torch.zeros(1)}
    assert plan_transfer(own, extra, ("old.weight",), "w").ignored["old.weight"] == "ignore_keys"
    with pytest.raises(InputError, match="unknown: old.weight"):
        plan_transfer(own, extra, (), "w")
    with pytest.raises(InputError, match="ignore_keys blocks.9.x: neither the network nor w has"):
        plan_transfer(own, weights, ("blocks.9.x",), "w")


@pytest.mark.parametrize(("before", "after"), [("256", "512_pos_embed"), ("512_pos_embed", "1024_pos_embed")])
def test_the_official_names_of_each_published_stage_load_into_the_next(before, after, tmp_path):
    """A checkpoint as released, of the published architecture at a small width, by the published configs."""
    models = []
    for name in (before, after):
        config = load_config(f"configs/pan_cancer/pixart_20x_{name}.py")
        models.append(
            (config, build_model(config.model, **config.model_arguments, hidden_size=48, depth=2, num_heads=4))
        )
    torch.save({"state_dict": models[0][1].state_dict()}, tmp_path / "pixcell.ckpt")
    weights = load_weights(tmp_path / "pixcell.ckpt").state_dict
    config, model = models[1]
    transfer_weights(model, weights, config.ignore_keys, "pixcell.ckpt")
    assert torch.equal(model.blocks[1].attn.qkv.weight, models[0][1].blocks[1].attn.qkv.weight)
    side = config.image_size // 16
    assert model.pos_embed.shape[1] == side**2 and model.y_pos_embed.shape[1] == config.model_max_length
