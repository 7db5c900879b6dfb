"""Packed features against the loose ones they are made of; packing that is killed, extended, damaged, undone."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, WIDTH, in_process

from diffusion.cli.commands.pack import pack
from diffusion.data.batch import collate
from diffusion.data.crops import CropBox
from diffusion.data.datasets.pan_cancer import PanCancerData, PanCancerDataLowRes, build_dataset
from diffusion.data.features import packed, packed_metadata, packing, parts, shards
from diffusion.data.features.loose import feature_path, made_by_path
from diffusion.data.features.npy import write_feature
from diffusion.data.features.packed import PackedFeatures
from diffusion.data.features.packed_metadata import PackedMetadata
from diffusion.data.features.parts import Moments, part_prefixes
from diffusion.data.features.store import open_features
from diffusion.data.features.table import write_table
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.index.verify import PatchCheck
from diffusion.data.index.writer import write_index
from diffusion.data.loader import training_loader
from diffusion.data.sampler import BatchStream, Draw
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.locks import file_lock
from tools import build_index, pack_features

PACK = (pack_features.main, "--dataset_name", "set")
TWO_A_SHARD = ("--shard_gb", 2.2 / 1024)


@pytest.fixture
def folder(feature_root) -> Path:
    return feature_root / "packed/set_1024/sd3_vae-uni"


@pytest.fixture
def packed_root(feature_root, folder) -> Path:
    """feature_root with its three patches packed into two shards as well."""
    done = in_process(*PACK, "--root", feature_root, *TWO_A_SHARD)
    assert done.returncode == 0 and "3 of 3 patches packed in 2 shards, 3 of them now" in done.stdout, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        "packed.json",
        "shard_00000.hdf5",
        "shard_00001.hdf5",
        "table.npy",
    ]
    return feature_root


def loose_files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.npy")}


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_items_are_those_of_the_loose_files(packed_root, size):
    kind = PanCancerData if size == 1024 else PanCancerDataLowRes
    loose, together = kind(packed_root, size), kind(packed_root, size, features_dir="packed")
    assert isinstance(together.features[0], PackedFeatures) and len(loose) == len(together)
    for i in range(len(loose)):
        one, other = loose[Draw(i, seed=i)], together[Draw(i, seed=i)]
        assert torch.equal(one.latent, other.latent) and torch.equal(one.tokens, other.tokens)
        assert (one.name, one.crop) == (other.name, other.crop)


def test_packed_features_are_found_where_no_loose_ones_are(packed_root):
    expected = PanCancerDataLowRes(packed_root, 256)[Draw(17, 1)].latent
    for path in packed_root.glob("patches/**/*.npy"):
        path.unlink()
    data = PanCancerDataLowRes(packed_root, 256)
    assert torch.equal(data[Draw(17, 1)].latent, expected)
    assert torch.equal(pickle.loads(pickle.dumps(data))[Draw(17, 1)].latent, expected)
    batches = [
        next(iter(training_loader(data, collate, BatchStream(len(data), 8, 1), workers, False))) for workers in (0, 2)
    ]
    assert torch.equal(batches[0].latents, batches[1].latents)  # opened here, then in two processes
    with pytest.raises(MissingError, match="or .*packed/set_1024/other-uni"):
        PanCancerDataLowRes(packed_root, 256, vae_prefix="other")


def test_a_third_part_is_loose_packed_read_and_verified(feature_root, tmp_path, monkeypatch):
    """Latents of a control image, from files of a third prefix."""
    control = Moments("control", "control_prefix", "control latents")
    monkeypatch.setitem(parts.PARTS, "control", control)
    prefixes = {**part_prefixes("sd3_vae", "uni"), "control": "mask"}
    names, random = list(iterate_names(index_path(feature_root), "set_1024")), np.random.default_rng(1)
    for name in names:
        write_feature(feature_path(feature_root / "patches", name, "mask"), random.normal(size=(32, 128, 128)))
    folder = packed_metadata.packed_folder(feature_root / "packed", "set_1024", prefixes)
    assert folder.name == "sd3_vae-uni-mask"
    loose = open_features(feature_root, None, "set_1024", names, 1024, prefixes, packed=False)
    metadata = PackedMetadata("set_1024", 1024, WIDTH, prefixes)
    packing.init_folder(folder, metadata)
    patches = packing.read_patches(loose, names, metadata, workers=1)
    assert packing.write_shard(folder, 0, metadata, patches, rows=3) == write_table(folder) == 3
    together = open_features(feature_root, "packed", "set_1024", names, 1024, prefixes)
    assert isinstance(together, PackedFeatures) and packed_metadata.read_metadata(folder) == metadata
    for box in (None, CropBox(0, 0, 4), CropBox(2, 0, 2), CropBox(3, 1, 1)):
        one, other = loose.read(names[1], box), together.read(names[1], box)
        assert list(one) == list(other) == ["latents", "tokens", "control"] and together.present(names[1])["control"]
        assert all(np.array_equal(one[part], other[part]) for part in prefixes)
        assert one["control"].shape == one["latents"].shape and not np.array_equal(one["control"], one["latents"])
        assert np.array_equal(together.read_part("control", names[1], box), one["control"])
    feature_path(feature_root / "patches", names[0], "mask").unlink()
    kinds = [fault.kind for fault in PatchCheck(feature_root, 1024, loose).find_faults(names[0])]
    assert kinds == ["image missing", "control latents missing"]
    monkeypatch.setitem(parts.PARTS, "stain", Moments("stain", "stain_prefix", "stain latents"))
    with pytest.raises(InputError, match="shard_00000.hdf5 cannot be read .it has no data set stain"):
        shards.open_shard(shards.shard_path(folder, 0), ["stain"])


def test_names_the_index_gains_go_to_further_shards(packed_root, folder):
    before = {path.name: path.read_bytes() for path in folder.glob("shard*")}
    new = "set/brca/single_1024/slide_0/5_5.jpeg"  # in the index between two packed ones
    names = list(iterate_names(index_path(packed_root), "set_1024"))
    write_index(index_path(packed_root), {"set_1024": [names[0], new, *names[1:]]})
    write_feature(feature_path(packed_root / "patches", new, "sd3_vae"), np.ones((32, 128, 128)))
    write_feature(feature_path(packed_root / "patches", new, "uni"), np.ones((16, WIDTH)))
    with pytest.raises(MissingError, match="5_5.jpeg is not packed"):
        PanCancerData(packed_root, 1024, features_dir="packed")[1]
    done = in_process(*PACK, "--root", packed_root, *TWO_A_SHARD)
    assert "4 of 4 patches packed in 3 shards, 1 of them now" in done.stdout
    assert {name: (folder / name).read_bytes() for name in before} == before
    loose, together = PanCancerData(packed_root, 1024), PanCancerData(packed_root, 1024, features_dir="packed")
    assert all(torch.equal(loose[Draw(i, 0)].latent, together[Draw(i, 0)].latent) for i in range(4))


def test_a_packed_set_that_is_not_complete_is_refused_at_once(packed_root):
    names = list(iterate_names(index_path(packed_root), "set_1024"))
    write_index(index_path(packed_root), {"set_1024": [*names, "set/brca/single_1024/slide_9/0_0.jpeg"]})
    arguments = {"root": packed_root, "resolution": 256, "features_dir": "packed"}
    with pytest.raises(InputError, match="set_1024 has 4 patches, and .* only 3; run pixcell pack"):
        build_dataset("PanCancerDataLowRes", **arguments)
    assert len(build_dataset("PanCancerDataLowRes", on_error="skip", **arguments)) == 64


def test_loose_files_that_changed_since_are_found(packed_root):
    verify = (*PACK, "--root", packed_root, "--verify")
    name = next(iterate_names(index_path(packed_root), "set_1024"))
    write_feature(feature_path(packed_root / "patches", name, "uni"), np.ones((16, WIDTH)))
    done = in_process(*verify)
    assert done.returncode == 1 and "shard_00000.hdf5: 1 patches differ from their loose files" in done.stderr
    feature_path(packed_root / "patches", name, "uni").unlink()
    assert in_process(*verify).returncode == 0


def test_a_killed_run_loses_one_shard_at_most(feature_root, folder):
    """Killed with a whole shard there and half of the next one on the disk."""
    code = (
        "import os, signal, sys; sys.argv = ['pack', *sys.argv[1:]]\n"
        "from diffusion.data.features import packing\n"
        "from tools import pack_features\n"
        "digest, count = packing._digest, []\n"
        "def until_the_third(patch):\n"
        "    count.append(1)\n"
        "    if len(count) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"  # each is digested twice
        "    return digest(patch)\n"
        "packing._digest = until_the_third\n"
        "sys.exit(pack_features.main())"
    )
    arguments = [str(a) for a in (*PACK[1:], "--root", feature_root, *TWO_A_SHARD)]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, check=False)
    assert killed.returncode == -9
    assert shards.list_shards(folder) == [0] and len(list(folder.glob(".shard*.tmp"))) == 1
    with pytest.raises(InputError, match="packed in part"):
        PanCancerData(feature_root, 1024, features_dir="packed")
    first = (folder / "shard_00000.hdf5").stat().st_mtime_ns
    done = in_process(*PACK, "--root", feature_root, *TWO_A_SHARD)
    assert done.returncode == 0 and "3 of 3 patches packed in 2 shards, 1 of them now" in done.stdout
    assert (folder / "shard_00000.hdf5").stat().st_mtime_ns == first and not list(folder.glob(".*"))
    loose, together = PanCancerData(feature_root, 1024), PanCancerData(feature_root, 1024, features_dir="packed")
    assert all(torch.equal(loose[Draw(i, 0)].latent, together[Draw(i, 0)].latent) for i in range(3))


def test_unpacking_gives_the_files_back(packed_root):
    before = loose_files(packed_root / "patches")
    unpack = (*PACK, "--root", packed_root, "--unpack", "--features_dir", "features")
    done = in_process(*unpack)
    assert done.returncode == 0 and "6 files written" in done.stdout
    assert loose_files(packed_root / "features") == before
    some = next((packed_root / "features").rglob("*_uni.npy"))
    some.write_bytes(b"torn")
    assert "1 files written" in in_process(*unpack).stdout and loose_files(packed_root / "features") == before


def test_damage_is_found(packed_root, folder):
    verify = (*PACK, "--root", packed_root, "--verify")
    assert in_process(*verify).returncode == 0
    shard = folder / "shard_00000.hdf5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = in_process(*verify)
    assert done.returncode == 1 and "shard_00000.hdf5 cannot be read" in done.stderr and "; damaged" in done.stdout
    unpack = (*PACK, "--root", packed_root, "--unpack", "--features_dir", "salvaged")
    done = in_process(*unpack)
    assert done.returncode == 1 and "1 shards damaged" in done.stdout
    salvaged = loose_files(packed_root / "salvaged")
    assert salvaged and all(loose_files(packed_root / "patches")[name] == content for name, content in salvaged.items())
    assert any("slide_2" in name for name in salvaged)  # of the shard after the damaged one
    shard.write_bytes(content[:1000])
    with pytest.raises(InputError, match="shard_00000.hdf5 is not a readable HDF5 file .*; if it is damaged"):
        PanCancerDataLowRes(packed_root, 256, features_dir="packed")[0]
    shard.unlink()
    with pytest.raises(MissingError, match="no shard"):
        PanCancerDataLowRes(packed_root, 256, features_dir="packed")[0]
    done = in_process(*PACK, "--root", packed_root, *TWO_A_SHARD)  # from the loose files, which are still there
    assert "3 of 3 patches packed" in done.stdout and in_process(*verify).returncode == 0


def test_a_shard_written_anew_is_not_read_by_an_older_table(packed_root, folder):
    """The last shard is deleted and packed again, with another patch first; the run is killed before the table."""
    names = list(iterate_names(index_path(packed_root), "set_1024"))
    new = "set/brca/single_1024/slide_0/5_5.jpeg"
    table = (folder / "table.npy").read_bytes()
    write_index(index_path(packed_root), {"set_1024": [new, *names]})
    for kind, array in (("sd3_vae", np.ones((32, 128, 128))), ("uni", np.ones((16, WIDTH)))):
        write_feature(feature_path(packed_root / "patches", new, kind), array)
    (folder / "shard_00001.hdf5").unlink()
    assert in_process(*PACK, "--root", packed_root, *TWO_A_SHARD).returncode == 0
    whole = (folder / "table.npy").read_bytes()
    (folder / "table.npy").write_bytes(table)
    data = PanCancerData(packed_root, 1024, features_dir="packed")
    with pytest.raises(InputError, match="table.npy is older than .*shard_00001.hdf5"):
        data[3]
    done = in_process(*PACK, "--root", packed_root, "--verify")
    assert done.returncode == 1 and "does not tell what the shards hold" in done.stderr
    (folder / "table.npy").write_bytes(whole)
    loose, together = PanCancerData(packed_root, 1024), PanCancerData(packed_root, 1024, features_dir="packed")
    assert all(torch.equal(loose[Draw(i, 0)].latent, together[Draw(i, 0)].latent) for i in range(4))


def test_two_do_not_pack_one_folder(packed_root, folder):
    with file_lock(folder / ".lock"):
        done = in_process(*PACK, "--root", packed_root)
    assert done.returncode == 2 and "another process is at work here" in done.stderr
    assert in_process(*PACK, "--root", packed_root).returncode == 0


def test_features_made_by_other_weights_are_not_added(packed_root, folder):
    """Extraction notes by what a set was made; one packed before by something else is refused."""
    record = made_by_path(packed_root / "patches", "set_1024")
    record.parent.mkdir(exist_ok=True)
    record.write_text('{"uni": {"weights": "other"}}')
    done = in_process(*PACK, "--root", packed_root)
    assert done.returncode == 2 and "differ in made_by; take another --out" in done.stderr


def test_the_command_is_a_function(feature_root, folder, capsys):
    assert pack("set", shard_gb=2.2 / 1024, workers=1, root=feature_root) == 0
    assert "3 of 3 patches packed in 2 shards, 3 of them now" in capsys.readouterr().out
    assert pack("set", verify=True, root=feature_root) == 0
    assert capsys.readouterr().out == f"3 patches read in {folder}; all sound\n"
    assert pack("set", unpack=True, features="again", root=feature_root) == 0
    assert loose_files(feature_root / "again") == loose_files(feature_root / "patches")
    with pytest.raises(InputError, match="--unpack and --verify are two calls"):
        pack("set", unpack=True, verify=True, root=feature_root)
    with pytest.raises(InputError, match="no packed features in .*; check --dataset, --size and the suffixes"):
        pack("set", size=256, unpack=True, root=feature_root)


def test_few_files_are_open_at_once(packed_root, monkeypatch):
    monkeypatch.setattr(packed, "_open_at_once", lambda: 1)
    loose, together = PanCancerData(packed_root, 1024), PanCancerData(packed_root, 1024, features_dir="packed")
    for i in (0, 2, 1, 2, 0):
        assert torch.equal(loose[Draw(i, 0)].latent, together[Draw(i, 0)].latent)
        assert len(together.features[0]._shards) == 1


def test_bad_features_are_not_packed(feature_root, folder):
    names = list(iterate_names(index_path(feature_root), "set_1024"))
    np.save(feature_path(feature_root / "patches", names[1], "sd3_vae"), np.full((32, 128, 128), np.nan, np.float16))
    done = in_process(*PACK, "--root", feature_root)
    assert done.returncode == 2 and "1_0_sd3_vae.npy" in done.stderr and "not finite" in done.stderr
    assert not shards.list_shards(folder) and not list(folder.glob(".*"))
    done = in_process(*PACK, "--root", feature_root, "--on_error", "skip")
    assert done.returncode == 1 and "1_0_sd3_vae.npy" in done.stderr
    assert "2 of 3 patches packed" in done.stdout and "1 left out" in done.stdout


def test_what_cannot_be_packed_together(packed_root, folder, tmp_path):
    shutil.rmtree(packed_root / "patches/set")
    done = in_process(*PACK, "--root", packed_root)
    assert done.returncode == 2 and "no features at" in done.stderr
    for name in iterate_names(index_path(packed_root), "set_1024"):
        write_feature(feature_path(packed_root / "patches", name, "sd3_vae"), np.ones((32, 128, 128)))
        write_feature(feature_path(packed_root / "patches", name, "uni"), np.ones((16, WIDTH + 1)))
    done = in_process(*PACK, "--root", packed_root)
    assert done.returncode == 2 and "differ in embedding_width; take another --out" in done.stderr
    done = in_process(pack_features.main, "--dataset_name", "none", "--root", packed_root, "--unpack")
    assert done.returncode == 2 and "no packed features in" in done.stderr
    (folder / "packed.json").write_text('{"key": 3')
    with pytest.raises(InputError, match="packed.json is no description of packed features"):
        PanCancerData(packed_root, 1024, features_dir="packed")


def test_build_index_verifies_packed_features(packed_root):
    verify = (build_index.main, "--root", packed_root, "--verify", "--features_dir", "packed")
    done = in_process(*verify)  # there are no images
    assert "3 patches, 0 sound; 3 image missing\n" in done.stdout
    shard = packed_root / "packed/set_1024/sd3_vae-uni/shard_00001.hdf5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "3 image missing, 1 latents bad" in in_process(*verify).stdout


def test_verify_finds_embeddings_of_another_width_and_names_listed_twice(packed_root):
    name = next(iter(sorted((packed_root / "patches").rglob("*_uni.npy"))))
    write_feature(name, np.ones((16, WIDTH + 1)))
    index = packed_root / "patches/metadata/patch_names_all.hdf5"
    with h5py.File(index, "a") as file:
        names = list(file["set_1024"])
        del file["set_1024"]
        file["set_1024"] = [*names, names[-1]]
    done = in_process(build_index.main, "--root", packed_root, "--verify", "--workers", 1)
    assert done.returncode == 1 and "1 embeddings bad" in done.stdout and "1 named more than once" in done.stdout
