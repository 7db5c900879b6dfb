"""Finding slides in files, folders and lists."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion.data.slides.discovery import find_slides


def test_files_of_one_slide_are_found_once(tmp_path, caplog):
    for name in ("a/1.dcm", "a/1below/x.svs", "a/2.dcm", "b/3.dcm", "c/slide.vms", "c/slide_0.jpg", "d/photo.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_slides([tmp_path]).paths]
    assert found == ["a/1.dcm", "a/1below/x.svs", "b/3.dcm", "c/slide.vms", "d/photo.jpg"]
    assert (
        f"left out: DICOM files taken as levels of the first in their folder (1): {tmp_path}/a/2.dcm" in caplog.messages
    )


def test_hidden_linked_and_ambiguous_files_in_folders(png, tmp_path, caplog):
    """Hidden folders, linked ones, sidecar images, two slides of one name, names of other systems."""
    folder, elsewhere = tmp_path / "all", tmp_path / "elsewhere"
    for path in (
        *(folder / "a.svs", folder / "a.jpg", folder / "b.tif", folder / "old" / "b.tif", folder / "c.kfb"),
        *(folder / ".Trash-1000" / "files" / "d.svs", folder / "@eaDir" / "e.svs", elsewhere / "f.ndpi"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "linked").symlink_to(elsewhere)
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.svs")).touch()
    found = find_slides([folder])
    assert [path.relative_to(folder).as_posix() for path in found.paths] == ["a.svs", "b.tif", "linked/f.ndpi"]
    assert list(found.refused) == [folder / "old" / "b.tif"] and "would share the folder b" in str(found.refused)
    for line in (
        f"left out: images with the name of a slide beside them (1): {folder}/a.jpg",
        f"left out: entries whose names are not UTF-8 (rename them) (1): {folder}/M\\xfcller.svs",
        f"left out: files that no reader opens (1): {folder}/c.kfb",
    ):
        assert line in caplog.messages


def test_slides_are_read_from_a_list(png, cut, tmp_path):
    second = png.with_name("second.png")
    second.write_bytes(png.read_bytes())
    listing = tmp_path / "list.txt"
    listing.write_text(f"{second}\n\n")
    run = cut(listing)
    assert run.returncode == 0 and "second.png" in run.stdout and "half.png" not in run.stdout
    listing.write_text(f"{png}\n{tmp_path / 'gone.png'}\n")
    run = cut(listing)
    assert run.returncode == 1 and "no slide at" in run.stdout and "half.png" in run.stdout
    listing.write_bytes(b"\xef\xbb\xbf" + f"{png}\r\n".encode())  # of Notepad
    assert "half.png" in cut(listing).stdout
    listing.write_bytes(b"/x/\xe4.png\n")
    assert "list.txt, line 1 or soon after: byte 0xe4 is not UTF-8" in cut(listing).stderr
    listing.write_text("\n")
    assert "lists nothing" in cut(listing).stderr
