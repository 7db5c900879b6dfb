"""Text files of other systems, paths as users type them, and what lies in the place of a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import (
    abbreviate,
    expand_path,
    format_number,
    format_table,
    printable_name,
    read_json,
    read_lines,
    read_text,
    shortest_names,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_reads_what_windows_and_unix_programs_write(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_bytes("Müller.svs\r\n\r\n  b.svs \nc.svs".encode(encoding))
    assert read_lines(path) == ["Müller.svs", "b.svs", "c.svs"]


def test_another_encoding_is_refused_with_its_place(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a.svs\nMüller.svs\n".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"list.txt, line 1 or soon after: byte 0xfc is not UTF-8; save the file as UTF-8"
    ):
        read_text(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path)
    with pytest.raises(MissingError, match="no file"):
        read_text(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "3", "[" * 100_000])
def test_json_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"record.json"):
        read_json(path)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"a": "ü"}), encoding="utf-8-sig")
    assert read_json(path) == {"a": "ü"}


def test_paths_expand_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.chdir(tmp_path)
    expected = {"~/x": "/home/me/x", "$SCRATCH/x": "/scratch/x", "${SCRATCH}x": "/scratchx", "a~b": "a~b", "": ""}
    assert {text: expand_path(text) for text in expected} == expected
    with pytest.raises(InputError, match="there is no environment variable NOT_SET"):
        expand_path("$NOT_SET/x")
    with pytest.raises(InputError, match="there is no user nobody-of-this-name"):
        expand_path("~nobody-of-this-name/x")


def test_names_in_messages_are_printable_and_few():
    assert printable_name("M\udcfcller") == "M\\xfcller"
    assert abbreviate("abcd") == "a, b, c and 1 more"
    assert abbreviate("ab") == "a, b"
    assert abbreviate([]) == "none"


def test_a_table_aligns_its_columns():
    rows = [("name", "n", "note"), ("a", "10", ""), ("longer", "5", "x")]
    assert format_table(rows) == "name    n   note\na       10\nlonger  5   x"
    assert format_table(rows, "lrl") == "name     n  note\na       10\nlonger   5  x"
    assert format_table(rows, "lr") == "name     n  note\na       10\nlonger   5     x"


class TestShortestNames:
    def test_shortest_endings_that_differ(self):
        assert shortest_names([Path("/w/256/adamw")]) == ["adamw"]
        paths = [Path("/w/256/adamw"), Path("/w/256/muon"), Path("/w/512/muon/"), Path("/muon")]
        assert shortest_names(paths) == ["adamw", "256/muon", "512/muon", "/muon"]

    def test_the_current_folder_has_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shortest_names([Path(".")]) == [tmp_path.name]
        with pytest.raises(InputError, match="more than once"):
            shortest_names([Path("."), tmp_path])


def test_numbers_in_few_letters():
    expected = {
        0.25: "0.25",
        1816.4: "1816",
        54321.9: "54322",
        2e-5: "2e-5",
        -1.5e-7: "-1.5e-7",
        1e7: "1e7",
        0.0: "0",
        math.inf: "inf",
    }
    assert {value: format_number(value) for value in expected} == expected
