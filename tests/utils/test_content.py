"""Fingerprints, and placeholders of files that were not fetched."""

from __future__ import annotations

import hashlib

import torch

from diffusion.utils.content import fingerprint_file, fingerprint_tensors, recognise_placeholder, sha256_file


def test_placeholders_are_recognised_by_their_content(tmp_path):
    contents = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "Git LFS pointer",
        b"\n<!DOCTYPE html>\n<html>": "HTML page",
        b"\xef\xbb\xbf<HTML lang=en>": "HTML page",
        b"": "is empty",
        b"PK\x03\x04": None,
        b"<htmlish": None,
    }
    for content, expected in contents.items():
        (tmp_path / "file").write_bytes(content)
        message = recognise_placeholder(tmp_path / "file")
        assert (message is None) if expected is None else (expected in message), content
    assert recognise_placeholder(tmp_path) is None


def test_hashes_of_files_are_those_of_their_content(tmp_path):
    content = bytes(range(256)) * 2**13  # more than is read at a time
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert fingerprint_file(tmp_path / "a") == fingerprint_file(tmp_path / "b") == expected


def test_fingerprints_of_tensors_depend_on_names_shapes_types_and_values():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    same = {"b": torch.ones(4), "a": torch.zeros(3, 2).T}
    variants = [
        {"a": torch.zeros(2, 3), "c": torch.ones(4)},
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(4)},
    ]
    assert fingerprint_tensors(same) == fingerprint_tensors(tensors)
    assert len({fingerprint_tensors(each) for each in (tensors, *variants)}) == 5
