"""The segmentation probe: what pairs of image and mask are worth, on phantoms whose nuclei are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from phantoms import phantom
from PIL import Image

from diffusion.cli.commands.probe import probe
from diffusion.data.features.masks import write_mask
from diffusion.evaluation.segmentation import (
    UNet,
    draw_batch,
    score_segmenter,
    segmentation_loss,
)
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.evaluation.sets.masked_images import MaskedImages, load_masked_images, resample_slides
from diffusion.utils.errors import InputError, MissingError


def pairs_of(count: int, seed: int = 0) -> MaskedImages:
    pixels, labels = map(np.stack, zip(*(phantom(20, seed=seed + i) for i in range(count)), strict=True))
    return MaskedImages(pixels, labels, np.array([f"slide_{i % 2}/" for i in range(count)]))


def test_unet_sees_all_of_a_window_and_keeps_its_size():
    torch.manual_seed(0)  # of few channels, all may be dead
    network = UNet((4, 6, 8)).eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    logits = network(image)
    assert logits.shape == (1, 64, 64)
    logits[0, 32, 32].backward()
    assert image.grad[0, :, 32, 10].abs().sum() > 0  # 22 pixels away


def test_the_loss_of_a_perfect_prediction_is_none():
    inside = (torch.rand(2, 16, 16) > 0.5).float()
    assert segmentation_loss(200 * inside - 100, inside) < 0.01 < 2 < segmentation_loss(100 - 200 * inside, inside)


def test_images_and_masks_are_turned_together():
    pairs = pairs_of(2)
    images, masks = draw_batch(pairs, 16, np.random.default_rng(0))
    assert images.shape == (16, 3, 256, 256) and images.abs().max() <= 1
    blue = images[:, 2] - images[:, 0]  # nuclei are blue, the rest is pink
    for colour, mask in zip(blue, masks, strict=True):
        assert colour[mask > 0].mean() > colour[mask == 0].mean() + 0.2


def test_scores_and_differences_are_over_slides():
    test = pairs_of(4)
    right = score_segmenter("real", 4, test.labels, test, 0)
    worse = score_segmenter("both", 4, np.where(np.arange(4)[:, None, None] % 2, test.labels, 0), test, 0)
    assert right.values()["dice"] == (1, 1, 1)
    assert worse.values()["aji"].value == 0.5  # one slide is right, the other empty
    assert (worse.values()["aji"].low, worse.values()["aji"].high) == (0, 1)
    assert worse.difference_to(right)["pq"].value == -0.5
    one_slide = MaskedImages(test.pixels, test.labels, np.array(["slide/"] * 4))
    windows, told = resample_slides(one_slide)
    assert (
        len(set(windows.slides)) == 4
        and "too narrow" in told
        and resample_slides(test)[1].startswith("2 slides; with fewer")
    )


def test_pairs_teach_to_segment(tmp_path, capsys):
    """Masks beside images, as pixcell masks writes them, and in control/, as pixcell sample does."""
    for name, count, seed in (("train", 6, 0), ("test", 4, 50), ("made/syn", 6, 20)):
        for i in range(count):
            pixels, labels = phantom(20, seed=seed + i)
            folder = tmp_path / name / ("" if name.startswith("made") else f"slide_{i % 2}_{name}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
            mask = tmp_path / "made" / "control" / f"{i}.png" if name.startswith("made") else folder / f"{i}_mask.png"
            write_mask(mask, 255 * (labels > 0).astype(np.uint8))
    sets = dict(test=tmp_path / "test", train_real=tmp_path / "train", train_syn=tmp_path / "made" / "syn")
    probe(**sets, segmentation=True, train_steps=20, out=tmp_path / "out", batch_size=4, device="cpu")
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [(each["training"], each["windows"]) for each in record["scores"]] == [
        ("real", 6),
        ("synthetic", 6),
        ("both", 12),
    ]
    assert all(each["dice"]["value"] > 0.8 for each in record["scores"]), record["scores"]
    assert [each["of"] for each in record["differences"]] == ["both - real", "synthetic - real"]
    assert Image.open(tmp_path / "out" / "examples.png").size == (4 * 132 - 4, 5 * 132 - 4)
    printed = capsys.readouterr().out
    assert "both - real" in printed and "resamples of the test set's 2 slides" in printed

    with pytest.raises(InputError, match="--k is of probes of classes"):
        probe(**sets, segmentation=True, k=3)
    (tmp_path / "made" / "control" / "3.png").unlink()
    with pytest.raises(
        MissingError, match=r"1 of 6 images of .*syn have no mask, such as 3: expected <image>_mask\.png"
    ):
        load_masked_images(ImageSet.open(tmp_path / "made" / "syn"))
