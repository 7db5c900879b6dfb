"""Extraction of features against a loop that reads, encodes, embeds and writes one patch after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.clock import run_in_fresh_process
from benchmarks.table import Row, rate_row
from diffusion.components import resolve_vae
from diffusion.data.features.loose import feature_path
from diffusion.data.features.parts import LATENTS, TOKENS
from diffusion.data.index.patch_index import PatchIndex, index_path
from diffusion.data.index.writer import write_index
from diffusion.data.slides.patches import read_patch
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec, from_uint8
from diffusion.encoders.networks import EMBEDDERS
from diffusion.extraction import FeatureFiles, PatchDataset, choose_index_key, extract_features
from diffusion.formats import PATCHES_DIR
from diffusion.utils.hardware import count_cores, prepare_device
from diffusion.utils.windows import cut_windows, join_windows

CROP, BATCH = 256, 16
SYNTHETIC_SET = "made"  # name of the data set that is made where none is given


@dataclass(frozen=True)
class Source:
    """Patches of an index of `root`, and the networks that see them; encoder "": MobileNetV2 with random weights."""

    root: Path
    dataset: str
    vae: str
    encoder: str
    device: torch.device

    def load_networks(self) -> tuple[LatentCodec, PatchEmbedder]:
        """Return the codec and the embedder on the device."""
        codec = LatentCodec.load(resolve_vae(self.vae, self.root), self.device)
        if self.encoder:
            return codec, PatchEmbedder.load(self.encoder, self.device, root=self.root)
        spec = EMBEDDERS["mobilenetv2"]
        torch.manual_seed(0)
        model = spec.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model(torch.randn(4, 3, 224, 224))  # norms fitted to such weights, or every embedding would be 0
        model = model.to(memory_format=torch.channels_last).to(self.device).eval().requires_grad_(False)
        return codec, PatchEmbedder(model, spec.name, spec.width, spec.view)

    def open_patches(self) -> tuple[PatchIndex, int]:
        """Return the index of the patches, and their size in pixels."""
        key, size = choose_index_key(index_path(self.root), self.dataset, CROP)
        return PatchIndex(index_path(self.root), [key]), size


def extraction_rows(source: Source, scratch: Path, count: int, rounds: int) -> list[Row]:
    """Return a row of both loops' patches a second with the same networks, and the largest difference of what they write.

    Every loop has a process of its own: ours sets up the allocator, for good.
    """
    patches, size = source.open_patches()
    count = min(count, len(patches))
    speeds: dict[str, list[float]] = {"ours": [], "simple loop": []}
    for turn in range(rounds):
        for way, taken in speeds.items():
            taken.append(run_in_fresh_process(measure_speed, source, way, scratch / f"{way}_{turn}", count))
    what = f"extraction of {count} patches of {size} pixels, {source.vae}, {source.encoder or 'mobilenetv2'}"
    apart = max_feature_difference(
        [scratch / f"{way}_0" for way in speeds], [patches.name(i) for i in range(count)], size
    )
    return [rate_row(what, "patches/s", speeds, "simple loop", off=apart)]


def measure_speed(source: Source, way: str, folder: Path, count: int) -> float:
    """Return the patches a second of one of the loops."""
    if way == "ours":
        prepare_device(source.device.type)  # sets up the allocator, as in every tool
    (codec, embedder), (patches, size) = source.load_networks(), source.open_patches()
    warm = torch.zeros(BATCH, 3, CROP, CROP, dtype=torch.uint8)  # what is done once is not counted
    embedder.embed(warm), codec.moments(from_uint8(warm))
    files = FeatureFiles(source.root, str(folder), size, embedder.width, "vae", "ssl")
    if way == "ours":
        share = PatchDataset(patches, files, 0, 1)
        share.mine = share.mine[:count]
        steps: Iterator = extract_features(share, codec, embedder, CROP, BATCH, max(1, min(8, count_cores() - 1)))
    else:
        steps = extract_in_a_loop(files, [patches.name(i) for i in range(count)], codec, embedder)
    began = time.perf_counter()
    return sum(1 for _ in steps) / (time.perf_counter() - began)


def max_feature_difference(folders: list[Path], names: list[str], size: int) -> float:
    """Return the largest difference between two folders of features, over the largest value of the second's file."""
    apart = 0.0
    for name, (kind, read) in product(names, (("vae", LATENTS.read_file), ("ssl", TOKENS.read_file))):
        a, b = (read(feature_path(folder, name, kind), size).astype(np.float32) for folder in folders)
        apart = max(apart, float(np.abs(a - b).max() / np.abs(b).max()))
    return apart


def extract_in_a_loop(
    files: FeatureFiles, names: list[str], codec: LatentCodec, embedder: PatchEmbedder
) -> Iterator[str]:
    """Encode all windows of a patch in one batch, embed them in another, save: in one thread."""
    for name in names:
        pixels = torch.tensor(read_patch(files.root / PATCHES_DIR / name, files.patch_size)).permute(2, 0, 1)[None]
        windows = cut_windows(pixels.to(codec.vae.device), CROP)
        moments = join_windows(codec.moments(from_uint8(windows)), pixels.shape[-1] // CROP)[0]
        tokens = embedder.embed(windows)
        for path, array in zip(files.paths(name), (moments, tokens), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array.cpu().numpy().astype(np.float16))
        yield name


def make_patches(root: Path, count: int) -> None:
    """Make a data set of 1024-pixel patches of noise, which decodes no faster than tissue."""
    random, names = np.random.default_rng(0), []
    for i in range(count):
        name = f"{SYNTHETIC_SET}/all/single_1024/slide/{i}_0.jpeg"
        path = root / PATCHES_DIR / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(80, 255, (256, 256, 3), dtype=np.uint8))
        coarse.resize((1024, 1024), Image.Resampling.BICUBIC).save(path, quality=95)
        names.append(name)
    write_index(index_path(root), {f"{SYNTHETIC_SET}_1024": names})
