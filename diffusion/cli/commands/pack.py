"""pixcell pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import output_folder, path_text, positive_float, positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX, VAE_PREFIX

if TYPE_CHECKING:
    from diffusion.data.features.packed_metadata import PackedMetadata
    from diffusion.data.features.store import FeatureStore


@checked
def pack(
    dataset: options.IndexedDataset,
    size: Annotated[options.Size, Here(note=" of the patches; a key says so itself")] = 1024,
    index: options.DataIndex = DEFAULT_INDEX,
    features: Annotated[
        str | None, Option(f"{options.FEATURES} [beside the images, else features]", path_text, metavar="FOLDER")
    ] = None,
    latent_suffix: options.LatentSuffix = VAE_PREFIX,
    embedding_suffix: options.EmbeddingSuffix = SSL_PREFIX,
    out: Annotated[
        Path | None,
        Option(f"{options.OUT} [ROOT/packed, where data sets look]", output_folder, metavar="FOLDER"),
    ] = None,
    shard_gb: Annotated[float, Option("gigabytes of a shard; a stopped run loses one at most", positive_float)] = 4.0,
    on_error: options.OnError = "raise",
    unpack: Annotated[bool, Option("write the loose files again")] = False,
    verify: Annotated[
        bool,
        Option("test every checksum of what is packed, and compare with the loose files that are there"),
    ] = False,
    workers: Annotated[int, Option(options.WORKERS, positive_int, group=options.MACHINE)] = 4,
    root: options.Root = None,
    mask_suffix: options.MaskSuffix = None,
    control_suffix: options.ControlSuffix = None,
    *,
    published: bool = False,
) -> int:
    """Pack features into HDF5 shards, from which training reads a crop at once.

    Those of one key of the index, <dataset>_<size>, go to OUT/<key>/<latent suffix>-<embedding suffix>/; each shard is written
    aside, read back, compared and renamed. A run that was stopped goes on with the shard that it was at, and names that the index
    gained since are packed into further shards. Loose files are left alone. With --unpack, the files that are packed and not whole
    below ROOT/FEATURES are written there; with --verify, every chunk's checksum is tested, and loose files that are there are
    compared. The exit code is 1 where a patch is left out, or a shard damaged.

    Examples:
      pixcell pack --dataset tcga_diagnostic --workers 8
      pixcell pack --dataset demo --latent-suffix tiny_vae --embedding-suffix mobilenetv2
      pixcell pack --dataset demo --verify
      pixcell pack --dataset demo --unpack --features features
    """
    from diffusion.data.features.loose import features_folder
    from diffusion.data.features.packed_metadata import packed_folder
    from diffusion.data.features.packing import pack_key
    from diffusion.data.features.parts import part_prefixes
    from diffusion.data.features.store import open_features, probe_names
    from diffusion.data.features.unpacking import require_metadata
    from diffusion.data.index.patch_index import PatchIndex, find_keys, index_keys, index_path, split_key
    from diffusion.formats import PACKED_DIR
    from diffusion.utils.errors import InputError, MissingError
    from diffusion.utils.locks import file_lock
    from diffusion.utils.text import default_root

    if unpack and verify:
        raise InputError("--unpack and --verify are two calls; unpacking tests the checksums too")
    if unpack or verify:
        of_packing = dict(shard_gb=shard_gb, on_error=on_error, workers=workers)
        refuse_unused(pack, of_packing, f"beside {'--unpack' if unpack else '--verify'}", published)
    root = root or default_root()
    path, target, prefixes = (
        index_path(root, index),
        out or root / PACKED_DIR,
        part_prefixes(latent_suffix, embedding_suffix, mask_suffix, control_suffix),
    )
    if unpack or verify:  # what is packed says what it is, without an index
        key = dataset if (target / dataset).is_dir() else f"{dataset}_{size}"
    else:
        (key,) = find_keys(index_keys(path), [dataset], (size,))
        size = split_key(key)[1]
    folder = packed_folder(target, key, prefixes)
    if unpack:
        return unpack_all(folder, require_metadata(folder), features_folder(root, features))
    if verify:
        metadata = require_metadata(folder)
        try:
            names = probe_names(PatchIndex(path, [key]), 0)
            loose = open_features(root, features, key, names, metadata.patch_size, metadata.prefixes, packed=False)
        except MissingError:
            loose = None
        return verify_all(folder, metadata, loose)
    with file_lock(folder / ".lock"):
        patches = PatchIndex(path, [key])
        loose = open_features(root, features, key, probe_names(patches, 0), size, prefixes, packed=False)
        done = pack_key(folder, patches, loose, size, shard_gb * 2**30, workers, skip=on_error == "skip")
    print(f"{key}: {done.total} of {len(patches)} patches packed in {done.shards} shards, {done.new} of them now")
    print(f"in {folder}")
    if done.left_out:
        print(f"{done.left_out} left out, whose features are missing or bad; the lines above name them")
    return 1 if done.left_out else 0


def unpack_all(folder: Path, metadata: PackedMetadata, target: Path) -> int:
    """Write the loose files again, and say how many; return the exit code."""
    from diffusion.data.features.unpacking import unpack_folder

    done = unpack_folder(folder, metadata, target)
    damaged = f"; {done.damaged} shards damaged" if done.damaged else ""
    print(f"{done.written} files written below {target}; {done.there} were there{damaged}")
    return 1 if done.damaged else 0


def verify_all(folder: Path, metadata: PackedMetadata, loose: FeatureStore | None) -> int:
    """Read all that is packed, and say what is wrong; return the exit code."""
    import sys

    from diffusion.data.features.unpacking import verify_folder

    found = verify_folder(folder, metadata, loose)
    for line in found.faults:
        print(line, file=sys.stderr)
    print(f"{found.patches} patches read in {folder}; {'damaged' if found.faults else 'all sound'}")
    return 1 if found.faults else 0
