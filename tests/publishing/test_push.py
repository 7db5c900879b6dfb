"""A run as a folder of the hub, and its upload to a hub that is not there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from runs import save_run

from diffusion.cli.commands.push import push
from diffusion.cli.commands.sample import sample
from diffusion.config.files import dump_config, read_config
from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder
from diffusion.formats import DEFAULT_VAE, LAST_WEIGHTS
from diffusion.pipeline import PixCellPipeline, PixCellTransformer2DModel
from diffusion.publishing.parts import find_parts
from diffusion.utils.assets import NETWORKS
from diffusion.utils.errors import InputError, MissingError
from diffusion.workdir import open_run

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def run(tmp_path) -> Path:
    return save_run(tmp_path / "work/mine", tmp_path / "secret-root", 8, image_size=256, ssl_prefix="mobilenetv2")


@pytest.fixture
def sd3_like(tmp_path) -> Path:
    """A codec with the scale of Stable Diffusion 3's."""
    folder = tmp_path / "some-vae"
    shutil.copytree(EMBEDDED_CODECS["tiny"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": 1.5305, "shift_factor": 0.0609}))
    return folder


@pytest.fixture
def hub(monkeypatch) -> SimpleNamespace:
    """A hub that notes what it is asked."""
    noted = SimpleNamespace(calls=[], private=True, token=TOKEN, error=None)

    class Api:
        def create_repo(self, name, **arguments):
            noted.calls.append(("create", name, arguments))
            if noted.error:
                raise noted.error

        def model_info(self, name):
            return SimpleNamespace(private=noted.private)

        def upload_folder(self, **arguments):
            folder = Path(arguments["folder_path"])
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            noted.calls.append(("upload", arguments["repo_id"], files))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: noted.token)
    return noted


def change(run: Path, **changes) -> None:
    """Change settings of a run, as if it had been trained with them."""
    dump_config(dataclasses.replace(read_config(run / "config.py"), **changes), run / "config.py")


def read_card(folder: Path) -> tuple[dict, str]:
    """Return the fields on top of a card, and its text."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_folder_samples_the_same_images(run, tmp_path, capsys):
    push(workdir=run, out=tmp_path / "hub", dry_run=True)
    model = open_run(run, "checkpoints/last_ema.ckpt", torch.device("cpu")).model
    before = PixCellPipeline.from_pretrained(
        run / "checkpoints/last_ema.ckpt", PixCellTransformer2DModel(model), "tiny"
    )
    after = PixCellPipeline.from_pretrained(tmp_path / "hub")
    for pipeline in (before, after):
        pipeline.set_progress_bar_config(disable=True)
    tokens, noise = torch.randn(1, 1, 8), torch.randn(1, 16, 32, 32)
    images = [pipe(tokens, num_inference_steps=3, latents=noise, output_type="pt").images for pipe in (before, after)]
    assert torch.equal(*images) and images[0].std() > 0.01
    shown = capsys.readouterr().out
    assert "codec: tiny codec of PixCell (Apache 2.0)" in shown and "encoder: MobileNetV2 (MIT)" in shown
    assert "uploaded" not in shown


def test_nothing_of_this_machine_is_in_the_folder(run, tmp_path, hub):
    change(run, work_dir=str(run), load_from=str(tmp_path / "secret-base.ckpt"))
    push("me/mine", workdir=run, out=tmp_path / "hub")
    for path in (tmp_path / "hub").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content and TOKEN.encode() not in content, path
    config = read_config(tmp_path / "hub/config.py")
    assert (config.root, config.data.root, config.work_dir, config.load_from) == (None, None, None, "secret-base.ckpt")
    assert config.optimizer == read_config(run / "config.py").optimizer


def test_the_card_tells_scores_data_settings_and_terms(run, tmp_path):
    values = {
        "fd": {"value": 31.25, "low": 30.0, "high": 33.0},
        "similarity": {"value": 0.75, "low": None, "high": None},
    }
    record = {
        "encoders": {"uni2": {"counts": {"real": 96, "synthetic": 64}, "values": values}},
        "notes": ["few images"],
    }
    (tmp_path / "report").mkdir()
    (tmp_path / "report/scores.json").write_text(json.dumps(record))
    change(run, data=dataclasses.replace(read_config(run / "config.py").data, ssl_prefix="uni"))
    push(workdir=run, out=tmp_path / "hub", dry_run=True, report=tmp_path / "report", data="Nine slides | of mine.")
    fields, text = read_card(tmp_path / "hub")
    assert fields["license"] == "other" and fields["license_name"] == "cc-by-nc-nd-4.0"
    assert fields["library_name"] == "diffusers" and fields["license_link"].startswith("https://creativecommons.org")
    for part in (
        "# mine",
        "| Fréchet distance (less is better) | 31.25 (30 to 33) |",
        "| Similarity of pairs (more is better) | 0.75 |",
        "Images: 96 real, 64 synthetic.",
        "- few images",
        "Nine slides | of mine.",
        "| optimizer | AdamW, learning rate 0.0001, constant |",
        "| encoder | UNI2-h | [CC BY-NC-ND 4.0](",
        'from_pretrained("mine")',
    ):
        assert part in text, part


def test_a_codec_with_terms_is_left_out_unless_it_is_meant(run, tmp_path, sd3_like):
    push(workdir=run, vae=str(sd3_like), out=tmp_path / "without", dry_run=True)
    assert not (tmp_path / "without/vae").exists()
    fields, text = read_card(tmp_path / "without")
    assert fields["license_name"] == "stabilityai-ai-community" and 'vae="FOLDER"' in text
    with pytest.raises(MissingError, match="has no VAE"):
        PixCellPipeline.from_pretrained(tmp_path / "without")
    PixCellPipeline.from_pretrained(tmp_path / "without", vae=sd3_like)
    push(workdir=run, vae=str(sd3_like), out=tmp_path / "with", dry_run=True, with_codec=True)
    assert PixCellPipeline.from_pretrained(tmp_path / "with").vae.config.scaling_factor == 1.5305


def test_a_licence_of_the_user_is_on_the_card_unless_it_is_freer(run, tmp_path, sd3_like):
    push(workdir=run, out=tmp_path / "hub", dry_run=True, license="cc-by-4.0")
    fields, text = read_card(tmp_path / "hub")
    assert fields["license"] == "cc-by-4.0" and "These weights are under CC BY 4.0." in text
    with pytest.raises(InputError, match="--license apache-2.0 is freer than the terms of the codec, VAE of Stable"):
        push(workdir=run, vae=str(sd3_like), out=tmp_path / "free", dry_run=True, license="apache-2.0")
    assert not (tmp_path / "free").exists()


def test_weights_that_a_run_began_with_are_parts_of_it_through_all_stages(run, tmp_path):
    second = save_run(tmp_path / "work/second", tmp_path, 8, image_size=256, ssl_prefix="mobilenetv2")
    change(run, load_from="/data/pretrained_models/pixcell-256")
    change(second, load_from=str(run / "checkpoints/last_ema.ckpt"))
    opened = open_run(second, "checkpoints/last_ema.ckpt", torch.device("cpu"))
    parts = find_parts(opened, opened.config, tmp_path)
    assert [(part.role, part.name) for part in parts] == [
        ("base weights", "StonyBrook-CVLab/PixCell-256"),
        ("encoder", "MobileNetV2"),
        ("codec", "tiny codec of PixCell"),
    ]
    with pytest.raises(InputError, match="freer than the terms of the base weights, StonyBrook-CVLab/PixCell-256"):
        push(workdir=second, out=tmp_path / "hub", dry_run=True, license="cc-by-nc-nd-4.0")
    push(workdir=second, out=tmp_path / "hub", dry_run=True)
    fields, text = read_card(tmp_path / "hub")
    assert fields["license"] == "other" and fields["base_model"] == ["StonyBrook-CVLab/PixCell-256"]
    assert "terms that are not known here" in text


def test_weights_alone_have_terms_that_are_not_known(run, tmp_path):
    alone = tmp_path / "foreign.ckpt"
    shutil.copy(run / "checkpoints/last_ema.ckpt", alone)
    push(workdir=alone, vae="tiny", out=tmp_path / "hub", dry_run=True)
    _, text = read_card(tmp_path / "hub")
    assert "| base weights | foreign.ckpt | not known |" in text and not (tmp_path / "hub/config.py").exists()


class TestUpload:
    def test_a_private_repository_gets_the_folder(self, run, hub, capsys):
        push("me/mine", workdir=run)
        (_, name, arguments), (_, uploaded, files) = hub.calls
        assert name == uploaded == "me/mine" and arguments == dict(repo_type="model", private=True, exist_ok=True)
        assert {"README.md", "config.py", "model_index.json", "transformer/config.json", "vae/config.json"} <= set(
            files
        )
        shown = capsys.readouterr().out
        assert "uploaded: https://huggingface.co/me/mine, private" in shown and TOKEN not in shown

    def test_a_public_one_has_to_be_meant(self, run, hub):
        hub.private = False
        with pytest.raises(InputError, match="me/mine is public, for anyone to see; say --public"):
            push("me/mine", workdir=run)
        assert [call[0] for call in hub.calls] == ["create"]
        push("me/mine", workdir=run, public=True)
        assert hub.calls[-1][0] == "upload" and hub.calls[-2][2]["private"] is False

    def test_without_a_token_nothing_is_sent(self, run, hub):
        hub.token = None
        with pytest.raises(InputError, match="no token of the hub.*HF_TOKEN"):
            push("me/mine", workdir=run)
        assert not hub.calls

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (ConnectionError(101, "Network is unreachable"), "Network is unreachable.; run again"),
            (type("HttpError", (Exception,), {"response": SimpleNamespace(status_code=403)})(f"Bearer {TOKEN}"),
             "the hub answered 403.; see that the token may write"),
        ],
    )  # fmt: skip
    def test_a_hub_that_refuses_is_one_line_without_the_token(self, run, hub, error, message):
        hub.error = error
        with pytest.raises(InputError, match=f"me/mine was not uploaded .{message}") as raised:
            push("me/mine", workdir=run)
        assert TOKEN not in str(raised.value)

    def test_a_dry_run_asks_no_hub(self, run, hub, tmp_path):
        push("me/mine", workdir=run, out=tmp_path / "hub", dry_run=True)
        assert not hub.calls and "# me/mine" in read_card(tmp_path / "hub")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dry_run=True), "name the folder with --out"),
        (dict(), "name the repository to upload to, OWNER/NAME"),
        (dict(repository="mine"), "'mine' is no repository of the hub: expected OWNER/NAME"),
        (dict(repository="me/mine", report=Path("nowhere")), "no file nowhere/scores.json"),
    ],
)
def test_what_cannot_be_done_is_refused_first(arguments, message, run):
    with pytest.raises(InputError, match=message):
        push(workdir=run, **arguments)


def test_a_folder_that_is_there_is_left_alone(run, tmp_path):
    (tmp_path / "hub").mkdir()
    with pytest.raises(InputError, match="is already there; name a new folder"):
        push(workdir=run, out=tmp_path / "hub", dry_run=True)


def test_scores_of_another_kind_are_refused(run, tmp_path):
    (tmp_path / "scores.json").write_text('{"encoders": ["uni2"]}')
    with pytest.raises(InputError, match="has no scores of encoders"):
        push(workdir=run, out=tmp_path / "hub", dry_run=True, report=tmp_path)


def test_a_published_run_is_sampled_with_its_own_settings_codec_and_embeddings(run, tmp_path, monkeypatch):
    change(run, seed=7)
    for name in ("gland", "stroma"):
        np.save(tmp_path / f"{name}.npy", np.random.rand(1, 8).astype(np.float16))
    conditions = [tmp_path / "stroma.npy", tmp_path / "gland.npy"]
    push(workdir=run, out=tmp_path / "hub", dry_run=True, precision="fp16", conditions=conditions)
    opened = open_run(tmp_path / "hub", LAST_WEIGHTS, torch.device("cpu"))
    assert opened.config.data.ssl_prefix == "mobilenetv2" and opened.config.seed == 7
    assert codec_folder(opened.config.vae_pretrained) == tmp_path / "hub" / "vae"
    original = open_run(run, LAST_WEIGHTS, torch.device("cpu")).model.state_dict()
    for name, tensor in opened.model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, original[name].half().float()), name

    monkeypatch.setitem(NETWORKS, "small", tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    sample(workdir=Path("small"), out=tmp_path / "samples", steps=2)
    assert sorted(path.name for path in (tmp_path / "samples/syn").iterdir()) == [
        "000000_gland.png",
        "000001_stroma.png",
    ]


def test_a_codec_that_everyone_has_can_be_left_out(run, tmp_path):
    push(workdir=run, out=tmp_path / "hub", dry_run=True, without_codec=True)
    assert not (tmp_path / "hub/vae").exists() and open_run(tmp_path / "hub", LAST_WEIGHTS, torch.device("cpu"))
    with pytest.raises(InputError, match="contradict"):
        push(workdir=run, out=tmp_path / "more", dry_run=True, without_codec=True, with_codec=True)


def test_embeddings_that_would_not_be_found_again_are_refused(run, tmp_path):
    for path in (tmp_path / "a/gland.npy", tmp_path / "b/gland.npy", tmp_path / "gland.NPY"):
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            np.save(file, np.zeros((1, 8), np.float32))
    for conditions in ([tmp_path / "a/gland.npy", tmp_path / "b/gland.npy"], [tmp_path / "gland.NPY"]):
        with pytest.raises(InputError, match=r"expected .npy files, each with a name of its own"):
            push(workdir=run, out=tmp_path / "hub", dry_run=True, conditions=conditions)
    assert not (tmp_path / "hub").exists()


def test_embeddings_of_another_width_do_not_go_along(run, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((1, 9), np.float32))
    with pytest.raises(InputError, match=r"tokens of wide are \(1, 9\)"):
        push(workdir=run, out=tmp_path / "hub", dry_run=True, conditions=[tmp_path / "wide.npy"])
    assert not (tmp_path / "hub").exists()


def test_a_folder_without_its_codec_looks_for_it_where_pixcell_download_puts_it(run, sd3_like, tmp_path):
    place = tmp_path / "root" / DEFAULT_VAE
    shutil.copytree(sd3_like, place)
    change(run, vae_pretrained=str(place))
    push(workdir=run, out=tmp_path / "hub", dry_run=True)
    assert not (tmp_path / "hub/vae").exists()
    assert open_run(tmp_path / "hub", LAST_WEIGHTS, torch.device("cpu")).config.vae_pretrained == DEFAULT_VAE


@pytest.mark.parametrize("text", ["import os\n", "task = 'denoising'\nlater_key = 1\n"])
def test_a_config_of_others_beside_weights_is_left_alone_with_a_warning(run, tmp_path, caplog, text):
    push(workdir=run, out=tmp_path / "hub", dry_run=True)
    (tmp_path / "hub/config.py").write_text(text)
    assert open_run(tmp_path / "hub", LAST_WEIGHTS, torch.device("cpu")).config.caption_channels == 8
    assert "settings are those that the weights imply" in caplog.text


def test_half_precision_refuses_what_it_cannot_hold_and_positions_of_others(run, tmp_path):
    path = run / LAST_WEIGHTS
    stored = torch.load(path, weights_only=True)
    for name, value, problem in (
        ("final_layer.linear.bias", 1e6, "float16 cannot hold"),
        ("pos_embed", 0.5, "not the grid"),
    ):
        changed = {**stored["state_dict"], name: torch.full_like(stored["state_dict"][name], value)}
        torch.save({**stored, "state_dict": changed}, path)
        with pytest.raises(InputError, match=problem):
            push(workdir=run, out=tmp_path / "hub", dry_run=True, precision="fp16")
    assert not (tmp_path / "hub").exists()


def test_a_run_from_nano_says_so(run, tmp_path):
    change(run, load_from="nano")
    push(workdir=run, out=tmp_path / "hub", dry_run=True)
    assert "| base weights | nano of PixCell | " in read_card(tmp_path / "hub")[1]
