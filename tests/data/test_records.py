"""Records of slides that were cut."""

from __future__ import annotations

import pytest
from slide_files import file_names

from diffusion.data.slides import reader as slides
from diffusion.data.slides.records import SlideRecord


def test_a_finished_slide_is_left_alone_and_one_cut_otherwise_is_refused(png, cut, tmp_path):
    cut(png)
    folder, record = tmp_path / "patches/toy/a/single_128/half", tmp_path / "patches/toy/a/slides_128/half.json"
    (folder / "2_0.jpeg").write_bytes(b"left alone")
    run = cut(png)
    assert run.returncode == 0 and "made before" in run.stdout
    assert (folder / "2_0.jpeg").read_bytes() == b"left alone"
    run = cut(png, "--tissue_threshold", 0.9)
    assert run.returncode == 1 and "half.png was cut with tissue_threshold 0.5 before, and now 0.9" in run.stdout
    assert (folder / "2_0.jpeg").read_bytes() == b"left alone"
    record.unlink()
    run = cut(png)
    assert run.returncode == 1 and "no record of how they were cut" in run.stdout
    assert len(file_names(folder)) == 6


def test_image_mpp_overrides_files_and_counts_as_a_setting(png, pyramid, cut, tmp_path):
    """Given later, it is another setting, for a slide that says its own resolution, too."""
    assert cut(png).returncode == 0 and "made before" not in cut(pyramid).stdout
    for path in (png, pyramid):
        run = cut(path, "--image_mpp", 0.5)
        assert run.returncode == 1 and "cut with image_mpp None before, and now 0.5" in run.stdout
    slide = slides.open_slide(pyramid, mpp=0.5, image_mpp=0.4)  # it says 0.25
    assert (slide.width, slide.height, slide.mpp_given) == (1280, 960, True)
    assert slide.note == "0.5 um/px; 0.4 um/px of the file by --image-mpp, it says 0.25"


def test_records_keep_their_keys_on_disk():
    record = SlideRecord("a.svs", 3, {"size": 256}, True, "native", 2)
    assert {"told": True, "before": False}.items() <= record.to_json().items()
    assert SlideRecord.from_json(record.to_json()) == record
    with pytest.raises(TypeError):
        SlideRecord.from_json({"slide": "a.svs"})
