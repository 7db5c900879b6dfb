"""Distances against closed forms and scipy; features of folders; the report and its command line."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.errors import InputError, MissingError
from diffusion.evaluation.curves import Curve
from diffusion.evaluation.distances import frechet_distance
from diffusion.evaluation.features import embed_images, list_images
from diffusion.evaluation.report import choose_pairs, pairs_grid, plot_loss, read_loss, read_settings


def gaussian_with(mean: torch.Tensor, covariance: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Samples (samples, D) whose own mean and unbiased covariance are exactly these."""
    noise = torch.randn(samples, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    whitened = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 1.5, 0.1]).double()
    mean_a, mean_b = torch.tensor([0.0, 1.0, 100.0, -5.0]).double(), torch.tensor([3.0, 1.0, 96.0, -5.0]).double()
    real = gaussian_with(mean_a, torch.diag(sigma_a**2), 50, seed=1)
    synthetic = gaussian_with(mean_b, torch.diag(sigma_b**2), 70, seed=2)
    expected = float((mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum())
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(2, 24, 24, generator=generator)
    real = (torch.randn(200, 24, generator=generator) @ mixing[0] + 7).float()
    synthetic = (torch.randn(150, 24, generator=generator) @ mixing[1] + 6.5).float()
    a, b = real.double().numpy(), synthetic.double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-4)


def test_a_set_has_no_distance_to_itself_and_the_same_both_ways():
    generator = torch.Generator().manual_seed(4)
    few = torch.randn(20, 64, generator=generator) * 3 + 50  # fewer samples than features: singular covariances
    other = torch.randn(20, 64, generator=generator) + 50
    scale = float(torch.cov(few.T).trace())
    assert frechet_distance(few, few) < 1e-6 * scale
    assert frechet_distance(few, other) > 0.1 * scale
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few), rel=1e-6)


def test_frechet_distance_holds_for_fewer_samples_than_features():
    """With covariances A'A and B'B the trace of the root of their product is the sum of the singular values of AB'."""
    generator = torch.Generator().manual_seed(5)
    real, synthetic = (torch.randn(n, 100, generator=generator).double() * scale + 9 for n, scale in ((12, 1), (15, 2)))
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (real, synthetic))
    between_means = (real.mean(0) - synthetic.mean(0)).square().sum()
    expected = between_means + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert frechet_distance(real, synthetic) == pytest.approx(float(expected), rel=1e-5)


def test_unusable_features_are_refused():
    good = torch.randn(5, 3)
    for real, synthetic, message in (
        (good[:1], good, r"real features \(1, 3\), expected at least 2"),
        (good, good[:1], "synthetic features"),
        (good, torch.randn(5, 4), "3 wide, synthetic ones 4"),
        (good, good.where(good > 0, torch.nan), "not finite"),
        (good.flatten(), good, "expected at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            frechet_distance(real, synthetic)


class MeanColour(torch.nn.Module):
    """A network whose answer is known: the mean of each normalised channel."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture
def embedder() -> PatchEmbedder:
    return PatchEmbedder(MeanColour(), "mean colour", width=3)


def plain(colour: tuple[int, int, int], size: int = 256) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def test_features_come_in_name_order(tmp_path, embedder):
    (tmp_path / "b").mkdir()
    for name, red in (("b/0.png", 10), ("a.jpeg", 20), ("c.png", 30), ("a_1.PNG", 40), (".d.png", 50), ("e.txt", 60)):
        plain((red, 0, 0)).save(tmp_path / name, format="PNG")
    images = list_images(tmp_path)
    assert list(images) == ["a", "a_1", "b/0", "c"]
    features = embed_images(list(images.values()), embedder, batch_size=3)
    assert features.shape == (4, 3) and features.dtype == torch.float32
    torch.testing.assert_close(features[:, 0] * 0.229 + 0.485, torch.tensor([20, 40, 10, 30]) / 255, rtol=0, atol=1e-5)


def test_folders_that_cannot_be_scored_are_refused(tmp_path, embedder):
    with pytest.raises(MissingError, match="no folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no image"):
        list_images(tmp_path)
    plain((1, 2, 3)).save(tmp_path / "a.png")
    plain((1, 2, 3), size=224).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="b.png has 224 x 224 pixels, expected 256 x 256"):
        embed_images(list(list_images(tmp_path).values()), embedder)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="c.png is no image"):
        embed_images([tmp_path / "c.png"], embedder)
    plain((1, 2, 3)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="have one name"):
        list_images(tmp_path)


def write_events(folder: Path, values: dict[int, float], tag: str = "train/loss", wall_time: float = 0.0) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), filename_suffix=f".{wall_time:.0f}") as writer:
        for step, value in values.items():
            writer.add_scalar(tag, value, step, walltime=wall_time + step)


def test_loss_of_a_resumed_run(tmp_path):
    write_events(tmp_path / "logs", {1: 5.0, 2: 4.0, 3: 9.0}, wall_time=2000)  # step 3 was lost with the crash
    write_events(tmp_path / "logs", {3: 3.0, 4: 2.0}, wall_time=3000)
    curve = read_loss(tmp_path)
    assert curve == Curve([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0])
    picture = np.asarray(Image.open(io.BytesIO(plot_loss(curve))))
    assert picture[0, 0, 3] == 0 and picture[..., 3].max() == 255  # drawn, and clear where nothing is drawn


def test_a_long_run_keeps_every_point_and_its_level(tmp_path):
    write_events(tmp_path, {step: step % 2 for step in range(12_000)})  # more than TensorBoard keeps by default
    curve = read_loss(tmp_path)
    assert curve.steps == list(range(12_000))
    smooth = curve.smoothed()
    assert max(abs(value - 0.5) for value in smooth) < 0.01
    line = Curve(list(range(300)), [3.0 * step for step in range(300)])
    short = Curve(list(range(90)), [1.0, 0.0] * 45)  # as many points as the demo's run logs
    assert max(abs(value - 0.5) for value in short.smoothed()) < 0.2
    assert line.smoothed()[10:290] == pytest.approx(line.values[10:290])  # it does not lag behind a slope


def test_loss_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(MissingError, match="no work dir"):
        read_loss(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no TensorBoard file"):
        read_loss(tmp_path)
    write_events(tmp_path, {1: 1.0}, tag="train/lr")
    with pytest.raises(InputError, match="no scalar train/loss in .*; there are train/lr"):
        read_loss(tmp_path)


def test_pairs_are_drawn_by_seed_from_the_common_names():
    real = {f"{i}": Path(f"{i}.png") for i in range(40)}
    synthetic = {f"{i}": Path(f"{i}.png") for i in range(20, 60)}
    chosen = choose_pairs(real, synthetic, seed=1)
    assert len(set(chosen)) == 16 and set(chosen) <= {f"{i}" for i in range(20, 40)}
    assert (
        chosen == choose_pairs(dict(reversed(real.items())), synthetic, seed=1) != choose_pairs(real, synthetic, seed=2)
    )
    assert choose_pairs(real, {"99": Path("99.png")}, seed=1) == []


def test_grid_has_real_rows_above_synthetic_rows(tmp_path):
    for i in range(10):
        plain((10 + i, 0, 0)).save(tmp_path / f"r{i}.png")
        plain((0, 0, 10 + i)).save(tmp_path / f"s{i}.png")
    grid = np.asarray(
        pairs_grid([tmp_path / f"r{i}.png" for i in range(10)], [tmp_path / f"s{i}.png" for i in range(10)])
    )
    found = list(dict.fromkeys(map(tuple, grid.reshape(-1, 3).tolist())))  # colours as first met, row by row
    of_images = [colour for colour in found if colour[1] == 0 and max(colour) in range(10, 20)]
    first, second = range(10, 18), range(18, 20)
    expected = (
        [(r, 0, 0) for r in first]
        + [(0, 0, b) for b in first]
        + [(r, 0, 0) for r in second]
        + [(0, 0, b) for b in second]
    )
    assert of_images == expected


def test_settings_beside_the_samples(tmp_path):
    folder = tmp_path / "syn"
    folder.mkdir()
    assert read_settings(folder) == {}
    (tmp_path / "samples.json").write_text(
        '{"steps": 20, "keys": ["a", "b"], "run": {"lr": 0.1}, "names": [1,2,3,4,5,6,7,8,9]}'
    )
    assert read_settings(folder) == {"steps": "20", "keys": "a, b", "run.lr": "0.1", "names": "9 entries"}
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(InputError, match="samples.json is not JSON"):
        read_settings(folder)


@pytest.fixture
def evaluate(monkeypatch, embedder):
    """tools/evaluate.py as a function of its arguments, with the embedder whose answers are known."""
    spec = importlib.util.spec_from_file_location(
        "evaluate", Path(__file__).resolve().parents[1] / "tools" / "evaluate.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(PatchEmbedder, "load", lambda *_, **__: embedder)

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        return module.main()

    return run


def folder_of(path: Path, reds: list[int], suffix: str = "png") -> Path:
    path.mkdir(parents=True)
    for i, red in enumerate(reds):
        plain((red, 7, 7)).save(path / f"patch_{i}.{suffix}")
    return path


def distance_of_reds(a: list[int], b: list[int]) -> float:
    """The distance when only red varies: one-dimensional, in units of the normalised channel."""
    a, b = np.array(a) / 255 / 0.229, np.array(b) / 255 / 0.229
    return (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2


def test_report(tmp_path, evaluate, capsys):
    reds = {"real": [10, 20, 30], "syn": [20, 30, 60], "untrained": [200, 90, 100]}
    real, syn, untrained = (folder_of(tmp_path / name / "images", values) for name, values in reds.items())
    (tmp_path / "syn" / "samples.json").write_text('{"sampling_steps": 17}')
    write_events(tmp_path / "run", {step: 1 / (1 + step) for step in range(100)})
    arguments = [
        "--real",
        real,
        "--syn",
        syn,
        "--untrained",
        untrained,
        "--run",
        tmp_path / "run",
        "--device",
        "cpu",
        "--note",
        "a <b> & c",
    ]
    assert evaluate(*arguments, "--out", tmp_path / "one") == 0

    scores = json.loads((tmp_path / "one" / "scores.json").read_text())
    near, far = distance_of_reds(reds["real"], reds["syn"]), distance_of_reds(reds["real"], reds["untrained"])
    assert scores["distance"]["real_vs_synthetic"] == pytest.approx(near, rel=1e-4)
    assert scores["distance"]["real_vs_untrained"] == pytest.approx(far, rel=1e-4)
    assert scores["distance"]["ratio"] == pytest.approx(near / far, rel=1e-4)
    assert scores["pairs"] == ["patch_0", "patch_1", "patch_2"]
    assert f"real_vs_synthetic: {near:.4g}" in capsys.readouterr().out

    page = (tmp_path / "one" / "index.html").read_text()
    assert f"<b>{near:.4g}</b>" in page and f"<b>{far:.4g}</b>" in page
    assert "a &lt;b&gt; &amp; c" in page and "sampling_steps</th><td>17" in page
    assert "100 logged points up to step 99" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', page)
    assert len(sources) == 1 + 1 + 2 * 3 and all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)

    assert evaluate(*arguments, "--out", tmp_path / "two") == 0
    files = ["index.html", "pairs.png", "scores.json"]
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert sorted(path.name for path in folder.iterdir()) == files
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_folders_without_pairs_are_scored_but_told(tmp_path, evaluate, capsys):
    real, syn = folder_of(tmp_path / "real", [10, 20, 30]), folder_of(tmp_path / "deeper" / "syn", [10, 20], "jpeg")
    for path in syn.iterdir():
        path.rename(path.with_stem(f"other_{path.stem}"))
    assert evaluate("--real", real, "--syn", syn, "--out", tmp_path / "out", "--device", "cpu") == 1
    output = capsys.readouterr()
    assert "no file name is in both" in output.err
    assert "unequal numbers" in output.out and "Score PNG" in output.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "scores.json"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "No pair" in page and "untrained" not in page and "Training loss" not in page


def test_nothing_is_written_when_something_is_refused(tmp_path, evaluate):
    real = folder_of(tmp_path / "real", [10, 20])
    one = folder_of(tmp_path / "syn", [10])
    with pytest.raises(InputError, match="at least 2"):
        evaluate("--real", real, "--syn", one, "--out", tmp_path / "out", "--device", "cpu")
    with pytest.raises(MissingError, match="no work dir"):
        evaluate("--real", real, "--syn", real, "--run", tmp_path / "run", "--out", tmp_path / "out", "--device", "cpu")
    assert not (tmp_path / "out").exists()
