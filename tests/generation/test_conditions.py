"""Conditions of indexed patches, neighbouring patches and files; interpolation between two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import WIDTH, texture
from PIL import Image

from diffusion.data.datasets.pan_cancer import PanCancerData, PanCancerDataLowRes
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.features.parts import TOKENS
from diffusion.data.slides.patches import neighbour_name
from diffusion.data.slides.records import grid_stride
from diffusion.generation.conditions import (
    IndexConditions,
    RepeatedConditions,
    load_image_conditions,
    load_token_conditions,
    neighbourhood,
    open_condition_dataset,
    slerp,
)
from diffusion.utils.errors import InputError


def test_slerp_interpolates_angle_and_length():
    """On the unit circle it is the angle; lengths go in between; at its ends it is the ends."""
    angles = torch.tensor([0.2, 1.4])
    first, second = (
        length * torch.stack([angle.cos(), angle.sin()])[None] for length, angle in zip((1, 3), angles, strict=True)
    )
    middle = slerp(first, second, 0.25)
    expected = 1.5 * torch.tensor([[torch.cos(torch.tensor(0.5)), torch.sin(torch.tensor(0.5))]])
    torch.testing.assert_close(middle, expected)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    torch.testing.assert_close(slerp(first, 2 * first, 0.5), 1.5 * first)


def test_conditions_are_whole_patches_or_crops_as_the_index_allows(feature_root):
    """Released weights of 256 pixels with an index of 1024: crops. In training it is a setting, and named."""
    arguments = dict(root=feature_root, resolution=256, patch_names_file="patch_names_all.hdf5")
    for kind in ("PanCancerData", "PanCancerDataLowRes"):
        dataset = open_condition_dataset({**arguments, "type": kind, "train_subset_keys": None}, None)
        assert isinstance(dataset, PanCancerDataLowRes) and len(dataset) == 3 * 16
    with pytest.raises(InputError, match="no patches of 256 pixels, but of 1024: set data.type=PanCancerDataLowRes"):
        PanCancerData(**arguments)


def test_neighbouring_patches_fill_the_grid(feature_root):
    """Patches i_0 lie on slides of their own; give one a neighbour on its right, of which its tokens then come."""
    patches = feature_root / "patches"
    for i in range(3):
        for prefix, shape in (("uni", (16, WIDTH)), ("sd3_vae", (32, 128, 128))):
            name = f"set/brca/single_1024/slide_{i}/{i + 1}_0.jpeg"
            write_feature(feature_path(patches, name, prefix), np.full(shape, i + 1.0))
    dataset = PanCancerData(feature_root, 1024)
    seen = set()
    for i in range(3):
        condition = neighbourhood(dataset, i, 0, rows=5, columns=8)
        slide = int(condition.name.split("_")[1])
        seen.add(slide)
        own = TOKENS.read_file(feature_path(patches, f"set/brca/single_1024/slide_{slide}/{slide}_0.jpeg", "uni"), 1024)
        own = torch.from_numpy(own).float().unflatten(0, (4, 4))
        (grid,) = condition.condition.tokens
        assert grid.shape == (5, 8, WIDTH)
        assert torch.equal(grid[:4, :4], own) and torch.all(grid[:4, 4:] == slide + 1)
        assert torch.equal(grid[4, :4], own[3])  # none below: mirrored
        assert torch.equal(grid[4, 4:], own[3].flip(0))  # neither there, and mirrored in both ways
    assert seen == {0, 1, 2}

    record = patches / "set/brca/slides_1024/slide_0.json"
    record.parent.mkdir()
    for text, apart in (('{"settings": {"step": 512}}', 2), ('{"settings": {"step": 600}}', None)):
        record.write_text(text)
        assert grid_stride(patches, "set/brca/single_1024/slide_0/0_0.jpeg", 1024) == apart
    record.write_text('{"settings')
    with pytest.raises(InputError, match="is no record of a slide"):
        grid_stride(patches, "set/brca/single_1024/slide_0/0_0.jpeg", 1024)
    assert neighbour_name("a/single_1024/s/3_4.jpeg", 2, 1) == "a/single_1024/s/5_5.jpeg"
    assert neighbour_name("a/single_1024/s/tile_one.jpeg", 2, 1) is None


def test_token_files_give_one_condition_an_image(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(2, 4, WIDTH)).astype(np.float32)
    np.save(tmp_path / "several.npy", tokens)
    np.save(tmp_path / "one.npy", tokens[1])
    conditions = load_token_conditions([tmp_path / "several.npy", tmp_path / "one.npy"], 4)
    assert [each.name for each in conditions] == ["several_0", "several_1", "one"]
    for named, expected in zip(conditions, [*tokens, tokens[1]], strict=True):
        assert torch.equal(named.condition.tokens, torch.from_numpy(expected)[None]) and named.pixels is None
    repeated = RepeatedConditions(conditions)
    assert len(repeated) == 3 and repeated[4] is conditions[1] and not repeated.has_pixels(4)
    with pytest.raises(InputError, match=r"expected \(5, D\), or several as \(n, 5, D\)"):
        load_token_conditions([tmp_path / "one.npy"], 5)


def test_indexed_conditions_come_without_repeats_until_all_were_taken(feature_root):
    dataset = PanCancerData(feature_root, 1024)
    conditions = IndexConditions(dataset, seed=1, pixels=True)
    first, second = ({conditions[i].name for i in range(start, start + 3)} for start in (0, 3))
    assert len(conditions) == 3 and len(first) == 3 and first == second
    assert not conditions.has_pixels(0)  # there are features and no images
    assert [conditions[i].name for i in range(3)] != [IndexConditions(dataset, seed=2)[i].name for i in range(3)]


def test_an_image_of_finer_pixels_is_shrunk_to_those_of_the_network(tmp_path, embedder):
    """Of 0.25 um per pixel: the middle 512 pixels, at half the side; one of coarser pixels than the network's is refused."""
    image = texture(1024, seed=0)
    image.save(tmp_path / "tissue.png")
    (shrunk,) = load_image_conditions([tmp_path / "tissue.png"], embedder, 256, image_mpp=0.25)
    half = image.resize((512, 512), Image.Resampling.LANCZOS).crop((128, 128, 384, 384))
    assert np.array_equal(shrunk.pixels.permute(1, 2, 0).numpy(), np.asarray(half))
    (plain,) = load_image_conditions([tmp_path / "tissue.png"], embedder, 256)
    assert np.array_equal(plain.pixels.permute(1, 2, 0).numpy(), np.asarray(image.crop((384, 384, 640, 640))))
    with pytest.raises(InputError, match=r"tissue.png.* 1 um/px"):
        load_image_conditions([tmp_path / "tissue.png"], embedder, 256, image_mpp=1.0)
