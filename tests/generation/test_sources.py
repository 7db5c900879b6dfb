"""Sources of conditions, and what identifies them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion.generation.sources import ConditionSource, choose_source, identify_files, training_data_notes
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError, MissingError


def test_conditions_come_from_images_or_from_tokens():
    with pytest.raises(InputError, match="one of them conditions"):
        ConditionSource(images=[Path("a.png")], tokens=[Path("a.npy")])


def test_a_text_is_the_name_of_one_data_set():
    assert ConditionSource(dataset="set").dataset == ("set",)


def test_files_are_identified_by_name_content_and_embedder(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"pixels")
    session = SimpleNamespace(embedder=SimpleNamespace(name="uni2", fingerprint="0f"))
    content = {"conditions": [["a.png", fingerprint_file(file)]]}
    assert identify_files(session, [file], embedded=False) == content
    assert identify_files(session, [file], embedded=True) == {**content, "encoder": ["uni2", "0f"]}
    for path, problem in ((tmp_path, "is a folder: name the files in it"), (tmp_path / "b.png", "is not there")):
        with pytest.raises(MissingError, match=problem):
            identify_files(session, [path], embedded=False)


def test_conditions_of_the_training_set_are_noted():
    assert (
        len(training_data_notes(ConditionSource())) == len(training_data_notes(ConditionSource(features="packed"))) == 1
    )
    for source in (ConditionSource(dataset=["held_out"]), ConditionSource(images=[Path("a.png")])):
        assert training_data_notes(source) == []


def test_the_embeddings_beside_published_weights_count_where_nothing_is_named(tmp_path):
    session = SimpleNamespace(run=SimpleNamespace(folder=tmp_path))
    assert not choose_source(session, ConditionSource()).files
    (tmp_path / "conditions").mkdir()
    for name in ("b.npy", "a.npy", "note.txt"):
        (tmp_path / "conditions" / name).touch()
    assert [path.name for path in choose_source(session, ConditionSource()).tokens] == ["a.npy", "b.npy"]
    for named in (
        ConditionSource(images=[tmp_path / "x.png"]),
        ConditionSource(dataset="mine"),
        ConditionSource(index="i"),
    ):
        assert choose_source(session, named) is named
