"""Files of features from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.evaluation.sets import feature_files
from diffusion.evaluation.sets.feature_files import read_feature_file
from diffusion.evaluation.sets.features import Row
from diffusion.utils.errors import InputError, MissingError


def test_npy_and_npz_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "PART_ROWS", 7)
    values = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", features=values, names=[f"patch {i}" for i in range(20)])
    for name, first in (("a.npy", "0"), ("b.npz", "patch 0")):
        features = read_feature_file(tmp_path / name)
        assert len(features) == 20 and features.width == 5 and features.rows[0] == Row(first)
        assert torch.equal(torch.cat(list(features)), torch.from_numpy(values).float())
        assert torch.equal(features.take([19, 0, 7]), torch.from_numpy(values[[19, 0, 7]]).float())
        assert len(features.sample(6, seed=0)) == 6 and torch.equal(features.sample(6, 0), features.sample(6, 0))


def test_invalid_feature_files_are_refused(tmp_path):
    with pytest.raises(MissingError, match="no file of features"):
        read_feature_file(tmp_path / "a.npy")
    good, path = np.ones((3, 2), dtype=np.float32), tmp_path / "a.npy"
    for content, message in (
        (np.ones(3), r"float64 \(3,\), expected floating-point numbers \(N, D\)"),
        (np.ones((3, 2), dtype=int), "int64"),
        (np.where(good > 0, np.nan, good), "not finite, in rows 0"),
        (np.array([[{}]]), "not a whole file of features"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(InputError, match=message):
            read_feature_file(path)
    path.write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(InputError, match="not a whole file of features"):
        read_feature_file(path)
    np.savez(tmp_path / "b.npz", features=good)
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole file of features"):
        read_feature_file(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", values=good)
    with pytest.raises(InputError, match="not a whole file of features"):
        read_feature_file(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", features=good, names=["a", "b", "a"])
    with pytest.raises(InputError, match="2 different names for 3 rows"):
        read_feature_file(tmp_path / "b.npz")
