"""Config files of the original project."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from diffusion.config.files import load_config, read_config
from diffusion.config.legacy import modernise
from diffusion.config.settings import DataConfig, OptimizerConfig
from diffusion.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_files_of_the_original_project_load(tmp_path, caplog):
    (tmp_path / "base.py").write_text(
        "data_root = '/data'\ndata = dict(type='InternalData', root='images', image_list_json=['x.json'], load_vae_feat=True)\n"
        "kv_compress = False\nvalidation_prompts = ['dog']\nauto_lr = dict(rule='sqrt')\nema_rate = 0.9999\n"
        "optimizer = dict(type='AdamW', lr=1e-4, weight_decay=3e-2, eps=1e-10)\nresume_from = dict(checkpoint=None, load_ema=False)\n"
    )
    (tmp_path / "stage.py").write_text(
        "_base_ = ['base.py']\nimage_size = 256\nroot = f'/lus/pan_cancer'\n"
        "data = dict(type='PanCancerDataLowRes', root=root, resolution=image_size)\nmodel = 'PixArt_XL_2_UNI'\nmodel_max_length = 1\n"
        "optimizer = dict(type='CAMEWrapper', lr=2e-5, weight_decay=0.0, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16))\n"
        "lr_schedule_args = dict(num_warmup_steps=1000)\nauto_lr = None\nwork_dir = f'{root}/run'\nclass_dropout_prob = 0.2\n"
    )
    with caplog.at_level(logging.WARNING):
        config = load_config(tmp_path / "stage.py")
    assert config.data.root == "/lus/pan_cancer" and config.data.type == "PanCancerDataLowRes"
    assert config.optimizer.type == "CAMEWrapper" and config.auto_lr is None and config.resume_from is None
    assert config.model_arguments["class_dropout_prob"] == 0.2
    (record,) = caplog.records  # one line for all
    for key in ("data_root", "kv_compress", "validation_prompts", "data.image_list_json", "data.load_vae_feat"):
        assert key in record.getMessage()


ORIGINAL = """
image_size = 256
data = dict(
    type='PanCancerData', root='/lus/x', resolution=image_size)
model = 'PixArt_XL_2_UNI'
model_max_length = 1
use_cond_pos_embed = False
pe_interpolation = 1e-1 * 5
qk_norm = False
kv_compress = False
kv_compress_config = dict(sampling=None, scale_factor=1, kv_compress_layer=[])
vae_pretrained = 'tiny'
class_dropout_prob = 0.1
optimizer = dict(type='CAMEWrapper', betas=tuple([0.9, 0.999, 0.9999]), eps=(1e-30, 1e-16), **{'lr': 2e-05})
work_dir = "."
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_configs_of_the_original_project_are_data(tmp_path, encoding):
    """As its inference configs are written, and as mmcv and mmengine dump them: executed or read, they are the same."""
    path = tmp_path / "config.py"
    path.write_bytes(ORIGINAL.replace("\n", "\r\n").encode(encoding))
    config = read_config(path)
    assert config.data == DataConfig("PanCancerData", resolution=256, root="/lus/x") and config.pe_interpolation == 0.5
    assert config.optimizer == OptimizerConfig("CAMEWrapper", 2e-5, 0.0, (0.9, 0.999, 0.9999), (1e-30, 1e-16))
    path.write_text(f'"""What it is."""\n{ORIGINAL}')
    assert load_config(path) == read_config(path) == config


def test_older_forms_are_rewritten_and_what_was_given_stays(caplog):
    data, path = dict(root="r", transform="t"), Path("c.py")
    given = dict(seed=1, w_max=2.0, resume_from=dict(checkpoint="a"), data=data)
    assert modernise(given, path) == dict(seed=1, resume_from="a", data=dict(root="r")) and given["data"] is data
    assert caplog.messages == ["c.py: these keys have no effect here: w_max, data.transform"]
    with pytest.raises(InputError, match="c.py: data is 3: expected dict"):
        modernise({"data": 3}, path)
