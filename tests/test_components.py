"""What a config names beside its network: where its codec is, the scale of its latents, its embedder, its tokens' shape."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from runs import settings

from diffusion.components import (
    check_dataset_tokens,
    check_tokens,
    load_codec,
    load_embedder,
    name_codecs,
    resolve_latent_scale,
    resolve_vae,
)
from diffusion.data.batch import PatchItem
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentScale
from diffusion.utils.errors import InputError, MissingError

CPU = torch.device("cpu")


def test_codecs_have_short_names_and_are_named_once(tmp_path):
    (tmp_path / "a/vae").mkdir(parents=True)
    assert name_codecs(["tiny", "a/vae"], tmp_path) == {"tiny": "tiny", "vae": tmp_path / "a/vae"}
    with pytest.raises(InputError, match="a/vae is named more than once"):
        name_codecs(["a/vae", "tiny", str(tmp_path / "a/vae")], tmp_path)


def test_a_vae_is_an_embedded_one_or_a_folder_below_the_root_or_here(tmp_path, monkeypatch):
    (tmp_path / "root/vae").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_vae("tiny", tmp_path) == "tiny"
    assert resolve_vae("vae", tmp_path / "root") == tmp_path / "root/vae"
    assert resolve_vae("here", tmp_path / "root").resolve() == tmp_path / "here"
    with pytest.raises(
        MissingError, match=r"no VAE folder .*root/nowhere or nowhere; name another .*embedded ones are"
    ):
        resolve_vae("nowhere", tmp_path / "root")


def test_the_scale_is_the_config_s_or_the_codec_s_and_both_must_agree(tmp_path):
    own = resolve_latent_scale(settings(tmp_path, vae_pretrained="tiny", scale_factor=None, shift_factor=None))
    both = settings(tmp_path, vae_pretrained="tiny", scale_factor=own.scale, shift_factor=own.shift)
    assert resolve_latent_scale(both) == own == load_codec(both, CPU).scale
    with pytest.raises(InputError, match="scale_factor 2.0, shift_factor 0.5 contradict tiny, which has"):
        resolve_latent_scale(settings(tmp_path, vae_pretrained="tiny", scale_factor=2.0, shift_factor=0.5))
    absent = settings(tmp_path, vae_pretrained="nowhere", scale_factor=2.0, shift_factor=0.5)
    assert resolve_latent_scale(absent) == LatentScale(2.0, 0.5)
    with pytest.raises(MissingError, match="no VAE folder"):
        resolve_latent_scale(settings(tmp_path, vae_pretrained="nowhere", scale_factor=None, shift_factor=None))


def test_the_embedder_is_the_features_own_or_the_one_named_and_of_the_network_s_width(tmp_path, monkeypatch):
    names = []

    def load(name, device, root):
        names.append((name, root))
        return SimpleNamespace(name=name, width=12)

    monkeypatch.setattr(PatchEmbedder, "load", load)
    for ending in ("uni", "mobilenetv2"):
        config = settings(tmp_path, caption_channels=12)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, ssl_prefix=ending))
        load_embedder(config, CPU)
    load_embedder(config, CPU, root=tmp_path / "other", encoder="inception")
    assert names == [("uni2", tmp_path), ("mobilenetv2", tmp_path), ("inception", tmp_path / "other")]
    with pytest.raises(InputError, match="uni2 makes embeddings of 12 values, and the network takes 8"):
        load_embedder(settings(tmp_path, caption_channels=8), CPU)


def test_tokens_of_another_shape_are_refused_by_name():
    check_tokens(torch.zeros(4, 8), 4, 8, "a.jpeg")
    with pytest.raises(InputError, match=r"the tokens of a.jpeg are \(4, 8\): the config expects \(1, 8\)"):
        check_tokens(torch.zeros(4, 8), 1, 8, "a.jpeg")


def test_the_first_item_that_can_be_read_shows_a_data_set_s_tokens():
    bad = SimpleNamespace(reason="torn")
    good = PatchItem(torch.zeros(16, 4, 4), torch.zeros(1, 8), "b.jpeg", 0)
    check_dataset_tokens([bad, bad, good], 1, 8)
    with pytest.raises(InputError, match="the tokens of b.jpeg"):
        check_dataset_tokens([bad, good], 1, 9)
    with pytest.raises(InputError, match="none of 16 items can be read; the first: torn"):
        check_dataset_tokens([bad], 1, 8)
