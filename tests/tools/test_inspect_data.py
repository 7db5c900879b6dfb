"""tools/inspect_data.py: counts, coverage and the sheet of pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image
from slide_files import pixels_of, tool

from diffusion.cli.commands.inspect import inspect
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature


def test_patches_features_and_pictures_are_surveyed(tmp_path, capsys):
    names_of = [f"toy/{'ab'[i % 2]}/single_256/slide_{i // 4}/{i % 4}_0.jpeg" for i in range(8)]
    for i, name in enumerate(names_of):
        path = tmp_path / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256), (20 * i, 0, 255)).save(path)
        if i > 1:
            write_feature(feature_path(tmp_path / "patches", name, "sd3_vae"), np.zeros((32, 32, 32)))
        if i > 3:
            write_feature(feature_path(tmp_path / "patches", name, "uni"), np.zeros((1, 4)))
    assert tool("build_index.py", "--root", tmp_path, "--size", 256).returncode == 0
    run = tool("inspect_data.py", "--root", tmp_path)
    assert run.returncode == 0, run.stderr
    assert [line.split() for line in run.stdout.splitlines()[1:3]] == [["toy_256", c, "4", "2"] for c in "ab"]
    assert "toy_256: 100 % images, 75 % latents, 50 % embeddings (of all 8)\n" in run.stdout
    sheet = pixels_of(tmp_path / "patches/metadata/contact_sheet.png")
    assert sheet.shape == (178, 8 * 160, 3)
    # in the order of their names, a JPEG's rounding apart: those of cohort a have even numbers
    assert np.abs(sheet[80, 80::160, 0] - [0, 40, 80, 120, 20, 60, 100, 140]).max() < 4
    (tmp_path / "patches" / names_of[5]).unlink()
    run = tool("inspect_data.py", "--root", tmp_path, "--pictures", 8, "--sample", 3, "--sheet", tmp_path / "s.png")
    assert "(of 3 drawn at random)" in run.stdout and "1 cannot be read, such as no image" in run.stdout
    assert (tmp_path / "s.png").is_file()
    (tmp_path / "s.png").unlink()
    inspect(sample=0, pictures=1, out=tmp_path / "s.png", root=tmp_path)
    assert "(of all 8)" in capsys.readouterr().out and pixels_of(tmp_path / "s.png").shape == (178, 160, 3)
    assert "no index at" in tool("inspect_data.py", "--root", tmp_path / "none").stderr
