"""The tools that sample at 512, 1024 and beyond, and vary.py, on a network with random weights: every source of conditions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from conftest import WIDTH, in_process, read_pixels, save_texture, texture
from PIL import Image
from runs import save_run

from diffusion.formats import LAST_WEIGHTS
from diffusion.model import PixArt
from diffusion.model.convert import load_weights, save_diffusers, save_official
from tools.sample_4k import main as sample_4k
from tools.sample_1024 import main as sample_1024
from tools.vary import main as vary

QUICK = ("--sampling_steps", 2, "--device", "cpu", "--vae", "tiny")


@pytest.fixture
def run_dir(feature_root, tmp_path) -> Path:
    """Of 1024 pixels, with features and an index but no images."""
    return save_run(tmp_path / "output" / "run", feature_root, WIDTH)


@pytest.fixture
def smaller_run(feature_root, tmp_path) -> Path:
    """The same of 512 pixels, a sixteenth of the work: for what is the same at both sizes."""
    return save_run(tmp_path / "output" / "run", feature_root, WIDTH, 512)


@pytest.fixture(scope="module")
def embedding_run(tissue_root, mobilenet_weights, tmp_path_factory) -> tuple[Path, Path]:
    """A run of 512 pixels whose conditions come from MobileNetV2, and that one's weights."""
    folder = save_run(tmp_path_factory.mktemp("runs") / "run", tissue_root, 1280, 512, ssl_prefix="mobilenetv2")
    return folder, mobilenet_weights


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestSample1024:
    def test_token_files_condition(self, run_dir, tmp_path):
        np.save(tmp_path / "one.npy", np.ones((16, WIDTH), dtype=np.float16))
        np.save(tmp_path / "two.npy", np.random.default_rng(0).normal(size=(2, 16, WIDTH)))
        tokens = ("--tokens", tmp_path / "one.npy", tmp_path / "two.npy")
        out = tmp_path / "out"
        done = in_process(sample_1024, "--workdir", run_dir, *tokens, "--out_dir", out, *QUICK)
        assert done.returncode == 0, done.stderr
        assert names(out) == ["samples.json", "syn"]
        assert names(out / "syn") == ["000000_one.png", "000001_two_0.png", "000002_two_1.png"]
        assert read_pixels(out / "syn" / "000000_one.png").shape == (1024, 1024, 3)
        with Image.open(out / "syn" / "000002_two_1.png") as image:
            note = json.loads(image.info["pixcell"])
        assert (note["condition"], note["number"], note["run"], note["guidance_strength"]) == ("two_1", 2, "run", 2.0)
        assert note["guidance_interval"] is None and str(tmp_path) not in json.dumps(note)

    def test_indexed_features_condition_beside_their_tissue(self, run_dir, feature_root, tmp_path):
        """feature_root has no images: what the tool pairs with samples must be there."""
        for patch in (feature_root / "patches").rglob("*_uni.npy"):
            texture(1024, seed=1).save(patch.with_name(patch.name.replace("_uni.npy", ".jpeg")), quality=95)
        interval = ("--guidance_interval", 0.5, 5)
        arguments = ("--workdir", run_dir, "--n_images", 4, "--batch_size", 3, "--out_dir", tmp_path / "out", *interval)
        done = in_process(sample_1024, *arguments, *QUICK)
        assert done.returncode == 0, done.stderr
        assert names(tmp_path / "out/real") == names(tmp_path / "out/syn") and len(names(tmp_path / "out/syn")) == 4
        slides = [name.split("_", 1)[1] for name in names(tmp_path / "out/syn")]
        assert len(set(slides)) == 3  # the three patches, then one of them again
        settings = json.loads((tmp_path / "out/samples.json").read_text())
        assert settings["guidance_interval"] == [0.5, 5.0]
        other = in_process(sample_1024, *arguments[:-3], *QUICK)
        assert other.returncode == 2 and "--guidance-interval 0.5 5.0, not --guidance-interval unset" in other.stderr
        backwards = in_process(sample_1024, *arguments[:-2], 5, 0.5, *QUICK)
        assert backwards.returncode == 2 and "0 <= LO < HI" in backwards.stderr

    def test_a_folder_is_completed_after_weights_and_data_moved(self, smaller_run, feature_root, tmp_path):
        """Weights and data are known by their content; features condition without images, which are made up for later."""
        common = ("--out_dir", tmp_path / "out", *QUICK)
        done = in_process(sample_1024, "--workdir", smaller_run, "--n_images", 1, *common)
        assert done.returncode == 0, done.stderr
        assert "1 patches have no image in" in done.stdout and names(tmp_path / "out") == ["samples.json", "syn"]
        moved = shutil.copytree(smaller_run, tmp_path / "copies" / "run")
        data = tmp_path / "copies" / "data"
        data.mkdir()
        shutil.move(feature_root / "patches", data)
        for patch in data.rglob("*_uni.npy"):
            texture(1024, seed=1).save(patch.with_name(patch.name.replace("_uni.npy", ".jpeg")), quality=95)
        arguments = ("--workdir", moved, "--data_root", data, "--n_images", 2, *common)
        done = in_process(sample_1024, *arguments)
        assert done.returncode == 0, done.stderr
        assert len(names(tmp_path / "out/syn")) == 2 and names(tmp_path / "out/real") == names(tmp_path / "out/syn")
        content = torch.load(moved / LAST_WEIGHTS, weights_only=True)
        content["state_dict"]["final_layer.linear.bias"] += 1
        torch.save(content, moved / LAST_WEIGHTS)
        done = in_process(sample_1024, *arguments)
        assert done.returncode == 2 and "holds samples with weights" in done.stderr

    def test_image_files_condition(self, embedding_run, tmp_path):
        run, weights = embedding_run
        image = save_texture(tmp_path / "tissue.png", 600, 700)
        arguments = ("--workdir", run, "--images", image, "--encoder", weights, "--out_dir", tmp_path / "out")
        done = in_process(sample_1024, *arguments, "--n_images", 2, *QUICK)
        assert done.returncode == 0, done.stderr
        assert names(tmp_path / "out/syn") == ["000000_tissue.png", "000001_tissue.png"]
        assert np.array_equal(read_pixels(tmp_path / "out/real/000000_tissue.png"), read_pixels(image)[44:556, 94:606])
        first, second = (read_pixels(tmp_path / f"out/syn/00000{i}_tissue.png") for i in (0, 1))
        assert first.shape == (512, 512, 3) and not np.array_equal(first, second)

    def test_compiled_images_equal_eager_ones_but_for_rounding(self, smaller_run, tmp_path, monkeypatch):
        """As without, but for rounding, and never in one folder; the back end that only traces takes no compiler."""
        compiled = torch.nn.Module.compile
        calls = []
        monkeypatch.setattr(torch.nn.Module, "compile", lambda m: (calls.append(m), compiled(m, backend="eager")))
        np.save(tmp_path / "grid.npy", np.random.default_rng(0).normal(size=(2, 4, WIDTH)))
        arguments = (
            "--workdir",
            smaller_run,
            "--tokens",
            tmp_path / "grid.npy",
            "--vae",
            "tiny",
            "--sampling_steps",
            2,
        )
        for out, options in (("eager", ()), ("compiled", ("--compile",))):
            done = in_process(sample_1024, *arguments, "--out_dir", tmp_path / out, *options)
            assert done.returncode == 0, done.stderr
            assert bool(calls) == (out == "compiled")
        for name in names(tmp_path / "eager/syn"):
            eager, fused = (read_pixels(tmp_path / out / "syn" / name).astype(int) for out in ("eager", "compiled"))
            assert np.abs(eager - fused).max() <= 1
        done = in_process(sample_1024, *arguments, "--out_dir", tmp_path / "compiled")
        assert done.returncode == 2 and "--compile on, not --compile off" in done.stderr

    def test_other_settings_in_one_folder_raise(self, smaller_run, tmp_path):
        """Other conditions under the same name, another kind of picture, and damaged settings are refused."""
        out, file = tmp_path / "out", tmp_path / "grid.npy"
        arguments = ("--workdir", smaller_run, "--tokens", file, "--out_dir", out, "--sampling_steps", 1)
        np.save(file, np.ones((4, WIDTH)))
        assert in_process(sample_1024, *arguments, "--vae", "tiny").returncode == 0
        np.save(file, np.zeros((2, 4, WIDTH)))
        other = in_process(sample_1024, *arguments, "--vae", "tiny")
        assert other.returncode == 2 and "holds samples with conditions" in other.stderr
        np.save(file, np.ones((5, 5, WIDTH)))
        large = in_process(sample_4k, *arguments, "--vae", "tiny", "--height", 1280, "--width", 1280)
        assert large.returncode == 2 and "pictures patches, not pictures large" in large.stderr
        np.save(file, np.ones((4, WIDTH)))
        (out / "samples.json").write_text("[1]")
        assert "samples.json is no record of samples" in in_process(sample_1024, *arguments, "--vae", "tiny").stderr
        assert names(out / "syn") == ["000000_grid.png"]

    @pytest.mark.parametrize("form", ["official", "diffusers", "pipeline"])
    def test_released_weights_sample_as_their_run(self, smaller_run, tmp_path, form):
        """A checkpoint or a folder as downloaded, with codec and embedder of the released networks."""
        weights = load_weights(smaller_run / "checkpoints" / "last_ema.ckpt")
        model = PixArt(**weights.architecture)
        model.load_state_dict(weights.state_dict)
        source = tmp_path / {"official": "pixcell.ckpt", "diffusers": "pixcell", "pipeline": "pipe/transformer"}[form]
        (save_official if form == "official" else save_diffusers)(model, source)
        if form == "pipeline":
            source = source.parent
            (source / "model_index.json").write_text("{}")
        np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=(4, WIDTH)))
        pictures = []
        for workdir in (source, smaller_run):
            out = tmp_path / f"out_{workdir.name}"
            done = in_process(
                sample_1024, "--workdir", workdir, "--tokens", tmp_path / "one.npy", "--out_dir", out, *QUICK
            )
            assert done.returncode == 0, done.stderr
            pictures.append(read_pixels(out / "syn/000000_one.png"))
        assert np.array_equal(*pictures)
        nowhere = in_process(sample_1024, "--workdir", source, "--root", tmp_path, "--out_dir", tmp_path / "x")
        assert nowhere.returncode == 2 and "sd-3.5-vae" in nowhere.stderr

    def test_bad_conditions_and_options_raise(self, run_dir, embedding_run, tmp_path):
        np.save(tmp_path / "few.npy", np.ones((4, WIDTH)))
        np.save(tmp_path / "wide.npy", np.ones((16, 5)))
        np.save(tmp_path / "empty.npy", np.zeros((0, 16, WIDTH)))
        np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
        small = save_texture(tmp_path / "small.png", 500, 600)
        run, weights = embedding_run
        for arguments, message in (
            (("--workdir", run_dir, "--tokens", tmp_path / "few.npy"), "expected (16, D), or several as (n, 16, D)"),
            (("--workdir", run_dir, "--tokens", tmp_path / "wide.npy"), "the config expects (16, 8)"),
            (("--workdir", run_dir, "--tokens", tmp_path / "object.npy"), "not a whole .npy file of real numbers"),
            (("--workdir", run_dir, "--tokens", tmp_path / "none.npy"), "none.npy to condition on"),
            (("--workdir", run_dir, "--tokens", tmp_path / "empty.npy"), "float64 of shape (0, 16, 8)"),
            (("--workdir", run_dir, "--tokens", tmp_path / "few.npy", "--precision", "fp16"), "needs a GPU"),
            (("--workdir", run, "--images", small, "--encoder", weights), "expected 512 x 512 or more"),
            (("--workdir", run, "--images", tmp_path / "no.png", "--encoder", weights), "no.png to condition on"),
            (("--workdir", run_dir, "--images", small, "--encoder", weights), "embeddings of 1280 values"),
            (("--workdir", run, "--images", small, "--tokens", small), "one of them conditions"),
        ):
            done = in_process(sample_1024, *arguments, "--out_dir", tmp_path / "out", *QUICK)
            assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)
            assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


class TestSample4k:
    COMMAND = ("--num_timesteps", "2", "--guidance_scale", "2", "--sliding_window_size", "64", "--gpu_id", "0")

    def test_the_documented_command_finds_the_newest_run(self, run_dir, feature_root, tmp_path, monkeypatch):
        """Without --workdir: the newest run below ./output, or $PIXCELL_WORKDIR; conditions from its index."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("PIXCELL_WORKDIR", raising=False)
        size = ("--height", 1280, "--width", 1024, "--output_dir", "samples_4k", "--num_samples", 2)
        done = in_process(sample_4k, *self.COMMAND, *size)
        assert done.returncode == 0, done.stderr
        assert "1280 x 1024 pixels, 2 windows" in done.stdout and "seams" not in done.stdout
        assert len(names(tmp_path / "samples_4k/syn")) == 2 and not (tmp_path / "samples_4k/real").exists()
        assert read_pixels(next((tmp_path / "samples_4k/syn").iterdir())).shape == (1280, 1024, 3)
        again = in_process(sample_4k, *self.COMMAND, *size)
        assert again.returncode == 0 and "written" not in again.stdout

        monkeypatch.setenv("PIXCELL_WORKDIR", str(tmp_path / "elsewhere"))
        assert "elsewhere" in in_process(sample_4k, *self.COMMAND, *size).stderr
        monkeypatch.delenv("PIXCELL_WORKDIR")
        monkeypatch.chdir(feature_root / "patches")
        assert "no run in ./output" in in_process(sample_4k, *self.COMMAND, *size).stderr

    def test_a_large_image_depends_on_neither_batch_nor_tiles(self, embedding_run, tmp_path):
        np.save(tmp_path / "grid.npy", np.random.default_rng(0).normal(size=(3, 4, 1280)))
        pictures = []
        for batch, tile, out in ((1, 96, "a"), (7, 64, "b")):
            several = ("--batch_size", batch, "--decode_tile", tile)
            size = ("--height", 768, "--width", 1024, "--tokens", tmp_path / "grid.npy", *several)
            done = in_process(sample_4k, "--workdir", embedding_run[0], *size, "--out_dir", tmp_path / out, *QUICK)
            assert done.returncode == 0, done.stderr
            pictures.append(read_pixels(tmp_path / out / "syn/000000_grid.png").astype(int))
        difference = np.abs(pictures[0] - pictures[1])
        assert np.percentile(difference, 70) <= 1 and difference.mean() < 2 and pictures[0].std() > 20  # tiles see less

    def test_windows_that_hardly_overlap_print_a_warning(self, embedding_run, tmp_path):
        run, _ = embedding_run
        np.save(tmp_path / "grid.npy", np.random.default_rng(0).normal(size=(2, 4, 1280)))
        size = ("--height", 512, "--width", 1024, "--tokens", tmp_path / "grid.npy", "--sliding_window_size", 64)
        done = in_process(sample_4k, "--workdir", run, *size, "--out_dir", tmp_path / "out", *QUICK)
        assert done.returncode == 0 and "seams will show; 32 apart they do not" in done.stdout

    def test_images_smaller_than_a_window_and_small_strides(self, run_dir, tmp_path):
        np.save(tmp_path / "grid.npy", np.random.default_rng(0).normal(size=(1, 5, WIDTH)))
        size = ("--height", 256, "--width", 1280, "--tokens", tmp_path / "grid.npy", "--sliding_window_size", 20)
        done = in_process(sample_4k, "--workdir", run_dir, *size, "--out_dir", tmp_path / "out", *QUICK)
        assert done.returncode == 0, done.stderr
        assert read_pixels(tmp_path / "out/syn/000000_grid.png").shape == (256, 1280, 3)

    def test_references_and_slides_condition_and_results_open_as_slides(self, embedding_run, tmp_path):
        """The tissue that conditions lies beside; the result is a TIFF that OpenSlide opens, and may condition in turn."""
        run, weights = embedding_run
        image = save_texture(tmp_path / "tissue.png", 800, 1100)
        arguments = ("--workdir", run, "--encoder", weights, *QUICK)
        out = tmp_path / "out"
        size = ("--height", 768, "--width", 1024)
        done = in_process(
            sample_4k, *arguments, *size, "--reference", image, "--format", "tiff", "--mpp", 0.25, "--out_dir", out
        )
        assert done.returncode == 0, done.stderr
        with openslide.OpenSlide(out / "real/000000_tissue.tiff") as slide:
            real = np.asarray(slide.read_region((0, 0), 0, (1024, 768)).convert("RGB"))
        assert np.array_equal(real, read_pixels(image)[:768, :1024])
        made = out / "syn/000000_tissue.tiff"
        with openslide.OpenSlide(made) as slide:
            assert slide.dimensions == (1024, 768) and float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
            pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))

        region = ("--slide", made, "--mpp", 0.5, "--x", 20, "--y", 40, "--height", 256, "--width", 256)
        again = in_process(sample_4k, *arguments, *region, "--out_dir", tmp_path / "again")
        assert again.returncode == 0, again.stderr
        real = read_pixels(
            tmp_path / "again/real" / f"000000_{made.stem}_20_40.png"
        )  # half the resolution, from x 20, y 40
        shrunk = pixels[40:552, 20:532].reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
        assert np.abs(real - shrunk).mean() < 3

    def test_beyond_the_edge_of_a_reference_is_white(self, embedding_run, tmp_path):
        run, weights = embedding_run
        image = save_texture(tmp_path / "tissue.png", 800, 1100)
        arguments = ("--workdir", run, "--encoder", weights, "--reference", image, "--out_dir", tmp_path / "out")
        done = in_process(sample_4k, *arguments, "--height", 1024, "--width", 1024, *QUICK)
        assert done.returncode == 0 and "ends 224 pixels before the picture" in done.stdout
        real = read_pixels(tmp_path / "out/real/000000_tissue.png")
        assert np.array_equal(real[:800], read_pixels(image)[:, :1024]) and np.all(real[800:] == 255)

    def test_bad_sizes_and_regions_raise(self, run_dir, embedding_run, tmp_path):
        np.save(tmp_path / "grid.npy", np.ones((4, 4, WIDTH)))
        image = save_texture(tmp_path / "tissue.png", 800, 1100)
        run, weights = embedding_run
        size = ("--height", 1280, "--width", 1280)
        for arguments, message in (
            (("--workdir", run_dir, "--tokens", tmp_path / "grid.npy", *size), "expected (5, 5, 8)"),
            (("--workdir", run_dir, "--sliding_window_size", 129), "expected 1 to 128"),
            (("--workdir", run_dir, "--height", 1000), "expected a multiple of 256"),
            (("--workdir", run, "--encoder", weights, "--reference", image, *size), "is 1100 pixels wide and 800 high"),
            (("--workdir", run, "--encoder", weights, "--reference", image, "--x", 4), "--x and --y are of a region"),
            (("--workdir", run, "--reference", image, "--slide", image), "one of them conditions"),
            (("--workdir", run, "--slide", tmp_path / "no.svs"), "no slide at"),
            (("--workdir", run, "--slide", image, "--mpp", 0), "expected a number above 0"),
        ):
            done = in_process(sample_4k, *arguments, "--out_dir", tmp_path / "out", *QUICK)
            assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)
            assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


class TestVary:
    def test_variations_and_interpolations_form_one_image(self, embedding_run, tmp_path):
        run, weights = embedding_run
        images = [save_texture(tmp_path / f"{name}.png", 512, 512, seed) for seed, name in enumerate("ab")]
        out = tmp_path / "grid.png"
        arguments = ("--workdir", run, "--encoder", weights, "--variations", 2, "--between", 3, "--out", out)
        done = in_process(vary, *images, *arguments, *QUICK)
        assert done.returncode == 0, done.stderr
        sheet = read_pixels(out)
        assert sheet.shape == (3 * (512 + 30) + 8, 3 * (512 + 8) + 8, 3)

        def cell(row: int, column: int) -> np.ndarray:
            top, left = 30 + row * 542, 8 + column * 520
            return sheet[top : top + 512, left : left + 512].astype(int)

        for row, image in enumerate(images):
            assert np.array_equal(cell(row, 0), read_pixels(image))
        # the way begins at the first variation of the first image and ends at that of the second: the same noise
        assert np.abs(cell(2, 0) - cell(0, 1)).max() <= 1 and np.abs(cell(2, 2) - cell(1, 1)).max() <= 1
        assert np.abs(cell(2, 1) - cell(2, 0)).mean() > 0.1 and np.abs(cell(0, 1) - cell(0, 2)).mean() > 1

    def test_bad_options_of_variations_raise(self, run_dir, tmp_path):
        image = tmp_path / "a.png"
        for arguments, message in (
            ((image, "--variations", 0), "nothing to sample"),
            ((image, "--between", 3), "expected two images"),
            ((image, image, "--between", 1), "two or more from one to the other"),
            ((image, "--out", tmp_path / "a.tif", "--workdir", run_dir), "pictures are written as .png"),
        ):
            done = in_process(vary, *arguments)
            assert done.returncode == 2 and message in done.stderr, done.stderr
