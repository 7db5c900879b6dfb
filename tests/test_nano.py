"""The network that comes with the package: what is in its folder, and what it samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from diffusion.cli.commands.sample import sample
from diffusion.config.files import SHIPPED, load_config
from diffusion.data.tiles import read_tile_sets
from diffusion.formats import DIFFUSERS_WEIGHTS, LAST_WEIGHTS
from diffusion.pipeline import PixCellPipeline
from diffusion.tasks.denoising.network import build_network
from diffusion.utils.assets import NETWORKS
from diffusion.utils.errors import MissingError
from diffusion.workdir import open_run

NANO = NETWORKS["nano"]


def brightness(path: Path) -> float:
    """Return the mean of an image's pixels, 0 to 255."""
    with Image.open(path) as image:
        return float(np.asarray(image).mean())


def test_it_is_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= 16_000_000
    with safe_open(NANO / "transformer" / DIFFUSERS_WEIGHTS, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in list(file.keys())} == {"F16"}


def test_it_is_what_its_config_file_trains(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trained, opened = load_config(SHIPPED / "demo/nano_256.py"), open_run("nano", LAST_WEIGHTS, torch.device("cpu"))
    for key in ("model_arguments", "prediction_type", "timestep_sampling", "optimizer", "max_steps", "vae_pretrained"):
        assert getattr(opened.config, key) == getattr(trained, key), key
    assert opened.config.data.ssl_prefix == "mobilenetv2"
    model, source = build_network(load_config(SHIPPED / "demo/finetune_256.py"), "nano")
    assert str(NANO) in source
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), opened.model.parameters(), strict=True))


def test_its_card_names_data_licences_scores_and_limits():
    card = (NANO / "README.md").read_text(encoding="utf-8")
    for tiles in read_tile_sets(SHIPPED / "demo/nano_tiles.json"):
        assert tiles.attribution in card and tiles.licence in card
    for words in ("BSD-3-Clause", "CC0", "| Fréchet distance", " to ", "not for diagnosis", "not a foundation model"):
        assert words in card, words


def test_without_an_image_it_samples_tissues_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and no weights of an encoder are needed
    sample(workdir=Path("nano"), out=tmp_path / "samples", steps=6, guidance=1.0)
    images = {path.stem.partition("_")[2]: path for path in (tmp_path / "samples/syn").iterdir()}
    assert sorted(images) == sorted(path.stem for path in (NANO / "conditions").iterdir()) and len(images) == 8
    assert brightness(images["colon_adipose"]) > brightness(images["ovary_tumour"]) + 40
    for path in images.values():
        with Image.open(path) as image:
            red, green, blue = np.asarray(image).reshape(-1, 3).mean(axis=0)
        assert green < min(red, blue), "tissue stained with haematoxylin and eosin absorbs green most"


def test_the_pipeline_opens_it_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = PixCellPipeline.from_pretrained("nano", vae="tiny", torch_dtype=torch.float32)
    tokens = torch.from_numpy(np.load(NANO / "conditions/colon_adipose.npy")).float()[None]
    assert pipeline(tokens, num_inference_steps=1, output_type="np").images.shape == (1, 256, 256, 3)


def test_a_run_of_that_name_wins_and_another_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano/syn").mkdir(parents=True)
    assert open_run("nano", LAST_WEIGHTS, torch.device("cpu")).folder == NANO
    (tmp_path / "nano/config.py").write_text("seed = 1\n")
    with pytest.raises(MissingError, match="no weights at nano/checkpoints"):
        open_run("nano", LAST_WEIGHTS, torch.device("cpu"))
