"""Tiles of public repositories: found by their content, in a folder or in an archive, and written as RGB images."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import tarfile
import threading
from http.client import IncompleteRead
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
from PIL import Image

from diffusion.config.files import SHIPPED
from diffusion.data import tiles
from diffusion.data.tiles import TileSet, fetch_tiles, read_tile_sets
from diffusion.utils.errors import InputError, MissingError


def png(value: int, mode: str = "RGB") -> bytes:
    """Return an image of 4 x 4 pixels as a PNG file's content."""
    file = io.BytesIO()
    Image.new(mode, (4, 4), (value, 0, 0, 255)[: len(mode)]).save(file, "PNG")
    return file.getvalue()


def tile_set(enlarge_to: int | None = None, **contents: bytes) -> TileSet:
    files = {f"{name}.tif": hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return TileSet("some", "owner/name", "abc", "a title", "someone", "CC0", 0.5, files, enlarge_to)


class InterruptedResponse(io.BytesIO):
    """An answer whose connection ends in the middle of a part."""

    def read(self, size: int | None = -1) -> bytes:
        raise IncompleteRead(b"")


class QuietHandler(SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve a folder on this machine as the place of all archives, and return the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(tiles, "ARCHIVES", f"http://127.0.0.1:{server.server_port}/{{commit}}.tar.gz")
    yield folder
    server.shutdown()
    server.server_close()


def test_tiles_of_a_folder_are_known_by_their_content_and_written_once(tmp_path):
    (source := tmp_path / "source" / "deep").mkdir(parents=True)
    (source / "other name.png").write_bytes(png(10, "RGBA"))
    (source / "not asked for.png").write_bytes(png(20))
    wanted = tile_set(a=png(10, "RGBA"))
    assert fetch_tiles(wanted, tmp_path / "out", tmp_path / "source") == 1
    (written,) = (tmp_path / "out").iterdir()
    with Image.open(written) as image:
        assert (written.name, image.mode, image.size) == ("a.png", "RGB", (4, 4))
        assert np.asarray(image)[0, 0].tolist() == [10, 0, 0]
    assert fetch_tiles(wanted, tmp_path / "out", tmp_path / "nowhere") == 0  # needs nothing any more
    with pytest.raises(InputError, match="no files with the SHA-256 of b.tif of some"):
        fetch_tiles(tile_set(a=png(10, "RGBA"), b=png(30)), tmp_path / "out", tmp_path / "source")
    with pytest.raises(MissingError, match="no folder .*nowhere with tiles"):
        fetch_tiles(wanted, tmp_path / "elsewhere", tmp_path / "nowhere")


def test_small_tiles_are_enlarged_to_a_window(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10))
    fetch_tiles(tile_set(enlarge_to=8, a=png(10)), tmp_path / "out", tmp_path)
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (8, 8)


def test_tiles_come_out_of_a_repository_s_archive(tmp_path, serve, monkeypatch):
    with tarfile.open(serve / "abc.tar.gz", "w:gz") as archive:
        for name, content in (("name-abc/README.md", b"text"), ("name-abc/data/x.png", png(10))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert fetch_tiles(tile_set(a=png(10)), tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    with monkeypatch.context() as patched, pytest.raises(InputError, match="could not be downloaded .IncompleteRead"):
        patched.setattr(tiles.urllib.request, "urlopen", lambda *_, **__: InterruptedResponse())
        fetch_tiles(tile_set(a=png(10)), tmp_path / "again")
    whole = (serve / "abc.tar.gz").read_bytes()
    for content, problem in ((whole[:40], "could not be downloaded"), (None, "HTTP Error 404")):
        (serve / "abc.tar.gz").unlink()
        if content is not None:
            (serve / "abc.tar.gz").write_bytes(content)
        with pytest.raises(InputError, match=problem):
            fetch_tiles(tile_set(a=png(10)), tmp_path / "again")
        assert not list(tmp_path.glob("again/*"))


def test_the_list_that_comes_with_the_package_has_free_licences_and_whole_hashes():
    sets = read_tile_sets(SHIPPED / "demo/nano_tiles.json")
    assert sum(len(each.files) for each in sets) == 136
    for each in sets:
        assert each.licence in ("CC0 1.0", "CC BY 4.0", "CC BY 3.0", "MIT", "BSD-3-Clause") and each.attribution
        assert each.archive == f"https://github.com/{each.repository}/archive/{each.commit}.tar.gz"
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in each.files.values())


def test_a_list_of_something_else_is_refused(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"sets": [{"name": "a"}]}))
    with pytest.raises(InputError, match="is no list of tiles"):
        read_tile_sets(tmp_path / "list.json")
