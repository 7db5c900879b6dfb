"""The index of names and the order of crops, at the size of the published set."""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.startup import time_in_fresh_process
from benchmarks.table import Row
from diffusion.data.index.patch_index import PatchIndex
from diffusion.data.index.writer import write_index
from diffusion.data.sampler import BatchStream

PUBLISHED_CROPS = 480_000_000
TRIES = 2000


def lookup_rows(root: Path, names: int) -> list[Row]:
    """Return rows of an index of `names` names, and of the order of the published number of crops.

    root: a folder for 120 bytes a name. Opening and the first draw happen in processes of their own.
    """
    path = root / "index.hdf5"
    began = time.perf_counter()
    paths = (f"set/brca/single_1024/TCGA-{i // 450:05d}-01Z-00-DX1/{i % 97}_{i % 450}.jpeg" for i in range(names))
    write_index(path, {"set_1024": paths})
    written = time.perf_counter() - began
    imports = "from pathlib import Path\nfrom diffusion.data.index.patch_index import PatchIndex"
    opened = time_in_fresh_process(imports, f"PatchIndex(Path({str(path)!r})).name({names // 2})")
    index, draw = PatchIndex(path), random.Random(0)
    picked = [draw.randrange(names) for _ in range(TRIES)]
    for i in picked[:100]:
        index.name(i)
    began = time.perf_counter()
    for i in picked:
        index.name(i)
    lookup = (time.perf_counter() - began) / TRIES
    path.unlink()
    imports = "from diffusion.data.sampler import BatchStream"
    first = time_in_fresh_process(imports, f"next(iter(BatchStream({PUBLISHED_CROPS}, 1, 0)))")
    batches = iter(BatchStream(PUBLISHED_CROPS, 1000, 0))
    next(batches)
    began = time.perf_counter()
    for _ in range(20):
        next(batches)
    drawn = (time.perf_counter() - began) / 20_000
    index_of, order_of = f"index of {names:,} names, written", f"order of {PUBLISHED_CROPS:,} crops, the first"
    return [
        Row(index_of, "s", written),
        Row("opened, with a first name", "ms", 1e3 * opened, part_of=index_of),
        Row("a name", "us", 1e6 * lookup, part_of=index_of),
        Row(order_of, "ms", 1e3 * first),
        Row("each of the next 20,000", "us", 1e6 * drawn, part_of=order_of),
    ]
