"""Measure the data path on this machine: reading crops, looking up names, drawing the order, extracting features.

Crops come from a set made here of random numbers, loose and packed, in a folder that is removed at the end. Beside our own
readers stand two loops to compare with: `published` reads a whole patch, draws the whole of its posterior and cuts, as the
public training code does; `full read` reads a whole patch, cuts and draws. Extraction is measured where --extract names an
index key with images, against a loop that reads, encodes, embeds and writes one patch after the other.
Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli import cores, pick_device, positive_int, run, tool_parser

EXAMPLES = """  python tools/bench_data.py
  python tools/bench_data.py --root data/demo --extract demo --vae tiny --encoder mobilenetv2 --out bench.json
"""
KEY, WIDTH, CROP, BATCH = "set_1024", 1536, 256, 128  # the published batch of one GPU
ROUNDS = 3  # the median of which is told
PUBLISHED_NAMES = 30_754_567  # of the published index
PUBLISHED_CROPS = 480_000_000


def main() -> None:
    args = parse_args()
    import torch

    report = {
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
    }
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    if args.extract:  # first: it ends with the process keeping freed memory
        report["extraction"] = extraction(args)
    with tempfile.TemporaryDirectory(prefix="bench_data_", dir=args.scratch) as folder:
        report["crops"] = crops(Path(folder), args.patches, args.seconds, args.seed)
        report["index"] = index(Path(folder), args.names)
    report["sampler"] = sampler()
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))
        print(f"written: {args.out}")


def crops(root: Path, patches: int, seconds: float, seed: int) -> list[dict]:
    """Crops a second and bytes a crop, for every way to read, number of workers, and cache."""
    from diffusion.data.datasets.pan_cancer import PanCancerDataLowRes
    from diffusion.data.packed import packed_folder

    make_set(root, patches, seed)
    pack = [
        sys.executable,
        str(Path(__file__).with_name("pack_features.py")),
        "--dataset_name",
        "set",
        "--root",
        str(root),
    ]
    began = time.perf_counter()
    subprocess.run(pack, check=True, capture_output=True)
    packing = patches / (time.perf_counter() - began)
    loose = PanCancerDataLowRes(root, CROP, features_dir="patches")
    ways = {
        "published": Published(loose),
        "full read": FullRead(loose),
        "partial read": loose,
        "packed": PanCancerDataLowRes(root, CROP, features_dir="packed"),
    }
    size = sum(path.stat().st_size for path in packed_folder(root / "packed", KEY, "sd3_vae", "uni").iterdir())
    print(
        f"\n{patches} patches, {size / 2**30:.2f} GiB packed, at {packing:.0f} patches a second, read back and compared"
    )
    rows = []
    print("crops of 256 pixels   workers  cache  crops/s  x published  x full read  KiB/crop asked  KiB/crop from disk")
    for workers in (0, 1, 2):
        for cache in ("cold", "warm"):
            rounds = [
                {name: read_crops(dataset, root, workers, cache, seconds, seed) for name, dataset in ways.items()}
                for _ in range(ROUNDS)  # one way after the other, since machines slow down and speed up
            ]
            bases = [
                median_of([each[name] for each in rounds])["crops_per_second"] for name in ("published", "full read")
            ]
            for name in ways:
                figures = median_of([each[name] for each in rounds])
                rows.append({"read": name, "workers": workers, "cache": cache, **figures})
                times = [figures["crops_per_second"] / base for base in bases]
                asked, disk = (f"{figures[k]:.0f}" if k in figures else "" for k in ("kib_asked", "kib_from_disk"))
                speed = f"{figures['crops_per_second']:7.0f}  {times[0]:11.1f}  {times[1]:11.1f}"
                print(f"{name:20}  {workers:7}  {cache:5}  {speed}  {asked:>14}  {disk:>18}".rstrip())
    return rows


def median_of(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in figures) for name in figures[0]}


def make_set(root: Path, patches: int, seed: int) -> None:
    """An index key of random patches with loose features, written to disk for certain."""
    import numpy as np

    from diffusion.data.features import feature_path, write_feature
    from diffusion.data.index import index_path, write_index

    names = [f"set/all/single_1024/slide_{i // 400:04d}/{i % 400}_0.jpeg" for i in range(patches)]
    write_index(index_path(root), {KEY: names})
    random = np.random.default_rng(seed)
    moments = random.normal(size=(32, 128, 128)).astype(np.float16)
    moments[16:] = 0.01 * np.abs(moments[16:])
    for i, name in enumerate(names):
        moments[0, 0, 0] = i / 100
        write_feature(feature_path(root / "patches", name, "sd3_vae"), moments)
        write_feature(feature_path(root / "patches", name, "uni"), random.normal(size=(16, WIDTH)))


class FullRead:
    """Items of a data set by the loop that reads both files of a patch whole, and cuts."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw):
        import torch

        from diffusion.data.batch import PatchItem

        patch, crop = divmod(draw.index, self.dataset.crops_per_side**2)
        name = self.dataset.index.name(patch)
        moments, tokens = self.read(name)
        latent = self.latent(moments, crop, torch.Generator().manual_seed(draw.seed))
        return PatchItem(latent, tokens[crop : crop + 1].float(), name, crop)

    def read(self, name: str):
        import numpy as np
        import torch

        from diffusion.data.features import feature_path

        folder = self.dataset.root / "patches"
        return tuple(torch.from_numpy(np.load(feature_path(folder, name, kind))) for kind in ("sd3_vae", "uni"))

    def latent(self, moments, crop: int, generator):
        import torch

        from diffusion.data.crops import square

        mean, std = moments[(slice(None), *square(crop, 4, 32))].float().chunk(2)
        return torch.randn(mean.shape, generator=generator).mul_(std).add_(mean)


class Published(FullRead):
    """The same, but the posterior of the whole patch is drawn, in half precision, before it is cut."""

    def latent(self, moments, crop: int, generator):
        import torch

        from diffusion.data.crops import square

        mean, std = moments.chunk(2)
        drawn = mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return drawn[(slice(None), *square(crop, 4, 32))].float()


def read_crops(dataset, root: Path, workers: int, cache: str, seconds: float, seed: int) -> dict[str, float]:
    """Read shuffled crops as training does, for some seconds (a cold cache: for one pass over a part of the crops at most)."""
    from diffusion.data.loader import training_loader
    from diffusion.data.sampler import BatchStream

    if cache == "cold":
        forget(root)
    else:
        for path in root.rglob("*.*"):
            if path.is_file():
                path.read_bytes()
    loader = training_loader(dataset, BatchStream(len(dataset), BATCH, seed), workers, pin_memory=False)
    batches = iter(loader)
    if cache == "warm":
        next(batches)  # workers start, files open
    asked, disk = io_counts()
    began, count = time.perf_counter(), 0
    # a quarter as many crops as there are patches, or some would be met twice, and be warm the second time
    limit = max(1, len(dataset) // 16 // 4 // BATCH) if cache == "cold" else 10**9
    for _ in islice(batches, limit):
        count += BATCH
        if cache == "warm" and time.perf_counter() - began > seconds:
            break
    figures = {"crops_per_second": count / (time.perf_counter() - began)}
    if workers == 0 and asked is not None:  # what other processes read is counted there
        now = io_counts()
        figures["kib_asked"] = (now[0] - asked) / count / 1024
        if cache == "cold":
            figures["kib_from_disk"] = (now[1] - disk) / count / 1024
    del batches, loader
    return figures


def forget(root: Path) -> None:
    """Ask the system to drop the pages of every file, once they are on the disk."""
    for path in root.rglob("*.*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def io_counts() -> tuple[int, int] | tuple[None, None]:
    """Bytes that this process asked for, and those that came from the disk; None where the system does not count them."""
    try:
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(lines["rchar"]), int(lines["read_bytes"])
    except OSError:
        return None, None


def index(root: Path, names: int) -> dict[str, float]:
    """Writing, opening and looking up an index; opening in a process of its own, for its memory."""
    import random

    from diffusion.data.index import PatchIndex, write_index

    path = root / "index.hdf5"
    began = time.perf_counter()
    listed = (f"set/brca/single_1024/TCGA-{i // 450:05d}-01Z-00-DX1/{i % 97}_{i % 450}.jpeg" for i in range(names))
    write_index(path, {KEY: listed})
    figures = {"names": names, "write_seconds": time.perf_counter() - began, "bytes": path.stat().st_size}
    figures |= alone(
        "from diffusion.data.index import PatchIndex\nfrom pathlib import Path",
        f"PatchIndex(Path({str(path)!r})).name({names // 2})",
        "open",
    )
    opened, draw = PatchIndex(path), random.Random(0)
    some = [draw.randrange(names) for _ in range(2000)]
    for i in some[:100]:
        opened.name(i)
    began = time.perf_counter()
    for i in some:
        opened.name(i)
    figures["look_up_microseconds"] = (time.perf_counter() - began) / len(some) * 1e6
    path.unlink()
    print(
        f"\nindex of {names:,} names (the published one has {PUBLISHED_NAMES / names:.1f} times as many): "
        f"written in {figures['write_seconds']:.1f} s, {figures['bytes'] / 2**20:.0f} MiB; opened, with a first name, in "
        f"{1000 * figures['open_seconds']:.1f} ms and {figures['open_mib']:.1f} MiB; "
        f"a name in {figures['look_up_microseconds']:.0f} us"
    )
    return figures


def sampler() -> dict[str, float]:
    """The first draws of the published number of crops, and how fast draws come."""
    from diffusion.data.sampler import BatchStream

    figures = alone(
        "from diffusion.data.sampler import BatchStream", f"next(iter(BatchStream({PUBLISHED_CROPS}, 1, 0)))", "first"
    )
    batches = iter(BatchStream(PUBLISHED_CROPS, 1000, 0))
    next(batches)
    began = time.perf_counter()
    for _ in range(20):
        next(batches)
    figures["draw_microseconds"] = (time.perf_counter() - began) / 20_000 * 1e6
    print(
        f"order of {PUBLISHED_CROPS:,} crops: the first in {1000 * figures['first_seconds']:.2f} ms and "
        f"{figures['first_mib']:.2f} MiB; each {figures['draw_microseconds']:.0f} us"
    )
    return figures


def alone(imports: str, action: str, name: str) -> dict[str, float]:
    """Seconds, and growth of the largest memory in MiB, of an action in a fresh process after its imports."""
    code = (
        f"import json, resource, sys, time\nsys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n{imports}\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before, began = peak(), time.perf_counter()\n{action}\n"
        "print(json.dumps([time.perf_counter() - began, (peak() - before) / 1024]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds, mib = json.loads(answer.stdout)
    return {f"{name}_seconds": seconds, f"{name}_mib": mib}


def extraction(args: argparse.Namespace) -> dict[str, float]:
    """Patches a second of the simple loop and of ours, with the same networks in float32, and how far values differ."""
    import numpy as np
    import torch

    from diffusion.data.features import read_moments, read_tokens
    from diffusion.data.index import PatchIndex, index_path
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.encoders.latents import LatentCodec
    from diffusion.engine.extract import FeatureFiles, Patches, choose_key, extract
    from diffusion.workdir import vae_location

    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    path = index_path(args.root)
    key, size = choose_key(path, args.extract, CROP)
    patches = PatchIndex(path, [key])
    names = [patches.name(i) for i in range(min(args.extract_patches, len(patches)))]
    codec = LatentCodec.load(vae_location(args.vae, args.root), device)
    embedder = PatchEmbedder.load(args.encoder, device, root=args.root)
    warm = torch.zeros(16, 3, CROP, CROP, dtype=torch.uint8)  # what is done once is not counted
    embedder.embed(warm), codec.moments(warm.float())
    speeds, found = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench_data_", dir=args.scratch) as scratch:
        for way in ("simple", "ours"):
            files = FeatureFiles(args.root, f"{scratch}/{way}", size, embedder.width, "vae", "ssl")
            if way == "ours":
                pick_device(device.type)  # as the tool does
                share = Patches(patches, files, 0, 1)
                share.mine = share.mine[: len(names)]
                steps: Iterator = extract(share, codec, embedder, CROP, 16, max(1, min(8, cores() - 1)))
            else:
                steps = simple_loop(files, names, codec, embedder)
            began = time.perf_counter()
            speeds[way] = sum(1 for _ in steps) / (time.perf_counter() - began)
            readers: tuple[Callable, Callable] = (read_moments, read_tokens)
            found[way] = [
                [read(p, size).astype(np.float32) for read, p in zip(readers, files.paths(name), strict=True)]
                for name in names
            ]
    off = [
        max(np.abs(a[i] - b[i]).max() / np.abs(a[i]).max() for a, b in zip(found["simple"], found["ours"], strict=True))
        for i in range(2)
    ]
    figures = {
        "patches": len(names),
        "patch_size": size,
        "simple_patches_per_second": speeds["simple"],
        "patches_per_second": speeds["ours"],
        "ratio": speeds["ours"] / speeds["simple"],
        "latents_off": float(off[0]),
        "embeddings_off": float(off[1]),
    }
    print(
        f"\nextraction of {len(names)} patches of {size} pixels, {codec.name} and {embedder.name}, float32, {device}: "
        f"simple loop {speeds['simple']:.2f}, ours {speeds['ours']:.2f} patches/s ({figures['ratio']:.2f} x); "
        f"largest difference, of the largest value: latents {off[0]:.1e}, embeddings {off[1]:.1e}"
    )
    return figures


def simple_loop(files, names: list[str], codec, embedder) -> Iterator[str]:
    """Read, encode all windows in one batch, embed them in another, save: one patch after the other, in one thread."""
    import numpy as np
    import torch

    from diffusion.data.patches import read_patch
    from diffusion.engine.extract import cut, join

    for name in names:
        pixels = torch.tensor(read_patch(files.root / "patches" / name, files.patch_size)).permute(2, 0, 1)[None]
        windows = cut(pixels.to(codec.vae.device), CROP)
        moments = join(codec.moments(windows.float() / 127.5 - 1), pixels.shape[-1] // CROP)[0]
        tokens = embedder.embed(windows)
        for path, array in zip(files.paths(name), (moments, tokens), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array.cpu().numpy().astype(np.float16))
        yield name


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--patches", type=positive_int, default=1024, help="patches of the set; each takes 2 MiB of disk, and of memory"
    )
    add("--seconds", type=float, default=3.0, help="of each reading with a warm cache")
    add("--names", type=positive_int, default=3_000_000, help="of the index that is measured; 120 bytes of disk each")
    add("--scratch", type=Path, help="folder for temporary files [the system's]")
    add("--extract", metavar="DATASET", help="data set whose patches, in ROOT, are extracted [none]")
    add("--extract_patches", type=positive_int, default=24, help="so many of them")
    add("--vae", default="pretrained_models/sd-3.5-vae", help="as for extract_features")
    add("--encoder", default="uni2", help="as for extract_features")
    add("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
