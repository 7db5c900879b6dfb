"""Config files: what is shipped, what the original project wrote, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from diffusion.config.settings import (
    Config,
    DataConfig,
    OptimizerConfig,
    PowerEmaConfig,
    TimestepConfig,
    dump_config,
    load_config,
    parse_config,
    read_config,
)
from diffusion.utils.errors import InputError, MissingError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.py"))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.py"
    path.write_text(f"_base_ = [{str(CONFIGS / '_base_.py')!r}]\n{text}")
    return path


def test_the_base_file_states_the_defaults():
    assert load_config(CONFIGS / "_base_.py") == Config()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_survive_the_round_trip(path, tmp_path):
    config = load_config(path)
    dump_config(config, tmp_path / "config.py")
    assert read_config(tmp_path / "config.py") == config


@pytest.mark.parametrize(
    ("name", "size", "tokens", "interpolation", "batch"),
    [
        ("pixart_20x_256", 256, 1, 0.5, 16 * 128 * 2),
        ("pixart_20x_512_pos_embed", 512, 4, 1.0, 24 * 64),
        ("pixart_20x_1024_pos_embed", 1024, 16, 2.0, 32 * 12),
    ],
)
def test_the_published_recipe(name, size, tokens, interpolation, batch):
    config = load_config(CONFIGS / "pan_cancer" / f"{name}.py")
    processes = {256: 16, 512: 24, 1024: 32}[size]
    assert config.train_batch_size * config.gradient_accumulation_steps * processes == batch
    assert (config.image_size, config.model_max_length, config.pe_interpolation) == (size, tokens, interpolation)
    assert config.use_cond_pos_embed == (size > 256)
    assert config.max_steps == {256: 120_000, 512: 60_000, 1024: 80_000}[size]
    assert config.sample_grid.guidance == (1.2 if size == 1024 else 2.0)
    assert (config.scale_factor, config.shift_factor, config.seed, config.ema_rate) == (1.5305, 0.0609, 24, 0.9999)
    assert (config.optimizer.type, config.optimizer.lr, config.gradient_clip) == ("CAME", 2e-5, 0.01)
    assert config.optimizer.betas == (0.9, 0.999, 0.9999) and config.optimizer.eps == (1e-30, 1e-16)
    assert config.lr_schedule_args.num_warmup_steps == 1000 and config.class_dropout_prob == 0.1
    assert config.mixed_precision == "fp16" and config.grad_checkpointing and config.save_model_steps == 2000


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_batchsize = 3", "unknown key 'train_batchsize'; the nearest known one is 'train_batch_size'"),
        ("optimizer = dict(lrr=1)", "unknown key 'optimizer.lrr'; the nearest known one is 'optimizer.lr'"),
        ("train_batch_size = 'many'", "train_batch_size is 'many': expected int"),
        ("qk_norm = 1", "qk_norm is 1: expected bool"),
        ("image_size = 512", "model_max_length 1 contradicts image_size 512: one token per 256-pixel window makes 4"),
        ("data = dict(resolution=512)", "data.resolution 512 contradicts image_size 256"),
        ("mixed_precision = 'fp8'", "expected one of auto, no, fp16, bf16"),
        ("scale_factor = 1.5", "scale_factor and shift_factor go together"),
        ("class_dropout_prob = 1.5", "expected 0 <= p < 1"),
        ("train_batch_size = 0", "expected at least 1"),
        ("gradient_clip = 0.0", "expected more than 0"),
        ("max_steps = -3", "expected at least 0"),
        ("save_model_epochs = 0", "expected at least 1, or None"),
        ("num_workers = -1", "expected at least 0"),
        ("data = 3", "data"),
        ("data = dict(train_subset_keys=[1])", "data.train_subset_keys is 1: expected str"),
        ("model_kwargs = dict(pred_sigma=False)", "the objective trains the variance"),
        ("model_kwargs = dict(input_size=64, qk_norm=True)", "model_kwargs has input_size, qk_norm"),
        ("sample_grid = dict(count=-1)", "sample_grid.count -1"),
        ("local_start = True", "local_start needs qk_norm"),
        ("local_start = qk_norm = True; load_from = 'a.ckpt'", "load_from of weights; set local_start=False"),
        ("prediction_type = 'x0'", "prediction_type 'x0': expected one of epsilon, v_prediction"),
        ("min_snr_gamma = 0", "min_snr_gamma 0.0: expected more than 0, or None"),
        ("timestep_sampling = dict(type='cosine')", "expected one of uniform, logit_normal, loss_aware"),
        ("timestep_sampling = dict(type='logit_normal', std=0)", "timestep_sampling.std 0.0: expected more than 0"),
        (
            "timestep_sampling = dict(type='loss_aware', mean=0.5)",
            "mean and std are of type logit_normal, not loss_aware",
        ),
        ("power_ema = dict(lengths=[0.3])", "power_ema.lengths 0.3: expected 0 < length < 0.289"),
        ("power_ema = dict(lengths=[0.05, 0.05])", "one is there twice"),
        ("power_ema = dict(lengths=[0.0505])", "power_ema.lengths 0.0505: expected thousandths"),
        ("power_ema = dict(lengths=[0.05], snapshot_steps=0)", "power_ema.snapshot_steps 0: expected at least 1"),
        ("power_ema = dict(lengths=0.05)", "power_ema.lengths is 0.05: expected a tuple of float"),
        ("image_size = 0", "image_size 0: expected at least 256"),
        ("image_size = 300", "image_size 300: expected a multiple of 256"),
        ("seed = 2**63", "seed 9223372036854775808: expected at most 9223372036854775807"),
        ("seed = -1", "seed -1: expected at least 0"),
        ("seed = True", "seed is True: expected int"),
        ("compile = 'True'", "compile is 'True': expected bool, True or False"),
        ("gradient_clip = float('inf')", "gradient_clip inf: expected a number that is finite"),
        ("optimizer = dict(lr=float('nan'))", "optimizer.lr nan: expected a number that is finite"),
        ("optimizer = dict(betas=(0.9, 1.0))", "optimizer.betas 1.0: expected 0 <= beta < 1"),
        ("optimizer = dict(betas=(0.9, 0.99, 0.999))", "expected two betas, one eps"),
        ("optimizer = dict(type='CAME', eps=1e-8)", "expected three betas, two eps"),
        ("optimizer = dict(eps=-1e-8)", "optimizer.eps -1e-08: expected at least 0"),
        ("optimizer = dict(weight_decay=-1)", "optimizer.weight_decay -1.0: expected at least 0"),
        ("optimizer = dict(type='Lion')", "no optimizer 'Lion'; known are AdamW, CAME, Muon"),
        ("lr_schedule_args = dict(num_warmup_steps=-1)", "lr_schedule_args.num_warmup_steps -1: expected at least 0"),
        ("auto_lr = dict(rule='cubic')", "expected dict(rule='sqrt') or dict(rule='linear')"),
        ("sample_grid = dict(steps=0)", "sample_grid.steps 0: expected at least 1"),
        ("sample_grid = None", "sample_grid is None: expected dict(count=..., steps=..., guidance=...)"),
        ("timestep_sampling = dict(type='logit_normal', mean=1e9)", "timestep_sampling.mean 1000000000.0: expected"),
        ("num_workers = 10**6", "num_workers 1000000: expected at least 0, at most 1024"),
        ("freeze = ('',)", "freeze '': expected a name that is not empty"),
        ("data = dict(train_subset_keys='a, b, a')", "('a', 'b', 'a'): expected each once (one is there twice)"),
        ("data = dict(train_subset_keys=())", "data.train_subset_keys (): expected at least one name"),
        ("root = '$PIXCELL_NOT_SET/x'", "root: $PIXCELL_NOT_SET/x: there is no environment variable PIXCELL_NOT_SET"),
        ("this is no Python", "not a Python config file"),
        ("raise RuntimeError('boo')", "RuntimeError: boo"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, text))
    assert message in str(error.value)


def test_nested_keys_become_settings(tmp_path):
    text = "timestep_sampling = dict(type='logit_normal', mean=-1)\npower_ema = dict(lengths=[0.05, 0.1])"
    config = load_config(write(tmp_path, text))
    assert config.timestep_sampling == TimestepConfig("logit_normal", -1.0, 1.0) and config.auto_lr is None
    assert config.power_ema == PowerEmaConfig((0.05, 0.1), 2000)
    dump_config(config, tmp_path / "saved.py")
    assert read_config(tmp_path / "saved.py") == config


def test_a_rule_for_the_learning_rate_can_be_set_and_taken_back(tmp_path):
    assert load_config(write(tmp_path, "auto_lr = dict(rule='sqrt')")).auto_lr == {"rule": "sqrt"}
    assert load_config(write(tmp_path, "auto_lr = dict(rule='sqrt')"), {"auto_lr": None}).auto_lr is None


def test_missing_files(tmp_path):
    with pytest.raises(MissingError, match="no config file"):
        load_config(tmp_path / "none.py")
    (tmp_path / "orphan.py").write_text("_base_ = ['nowhere.py']")
    with pytest.raises(MissingError, match="nowhere.py"):
        load_config(tmp_path / "orphan.py")


def test_overrides_that_do_not_fit(tmp_path):
    for key in ("seed.x", "data"):
        with pytest.raises(InputError):
            load_config(write(tmp_path, ""), {key: 3})


def test_overrides_reach_what_is_not_there_yet(tmp_path):
    config = load_config(write(tmp_path, ""), {"auto_lr.rule": "sqrt", "optimizer": {"lr": 2}, "model_kwargs.depth": 3})
    assert config.auto_lr == {"rule": "sqrt"} and config.model_kwargs == {"depth": 3}
    assert config.optimizer == OptimizerConfig("AdamW", lr=2.0)  # a dict is merged with the one before


def test_paths_are_expanded_as_by_a_shell(tmp_path, monkeypatch):
    """In files and overrides alike; a saved config says what it says."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/disk")
    text = "root = '~/x'\ndata = dict(root='$DISK/y', features_dir='${DISK}/f')\nvae_pretrained = 'tiny'"
    overrides = {"load_from": "~/w.ckpt", "evaluation.encoder": "mobilenetv2=~/m.pth"}
    config = load_config(write(tmp_path, text), overrides)
    assert (config.root, config.data.root, config.data.features_dir) == ("/home/me/x", "/disk/y", "/disk/f")
    assert (config.load_from, config.evaluation.encoder) == ("/home/me/w.ckpt", "mobilenetv2=/home/me/m.pth")
    monkeypatch.setenv("PIXCELL_ROOT", "~/slides")
    assert Config().data_root == Path("/home/me/slides")
    (tmp_path / "saved.py").write_text("root = '/data/$RECYCLE.BIN'")
    assert read_config(tmp_path / "saved.py").root == "/data/$RECYCLE.BIN"


def test_overrides_win(tmp_path):
    config = load_config(write(tmp_path, "max_steps = 5"), {"max_steps": 7, "optimizer.lr": 3})
    assert config.max_steps == 7 and config.optimizer.lr == 3.0


@pytest.mark.parametrize(
    "text",
    [
        "open({trap}, 'w')",
        "seed = open({trap}, 'w')",
        "seed = __import__('os').system('touch ' + {trap})",
        "import os",
        "seed =",
        "seed = [x for x in 'ab']",
        "seed = dict.fromkeys('ab')",
        "seed = inf",
        "seed, lr = 1, 2",
        "seed = 1 / 0",
        "seed = 9**9**9",
        "model = 'a' * 10**9",
        "optimizer = dict([1])",
    ],
)
def test_a_saved_config_is_never_executed(tmp_path, text):
    """The message has the line and the source, on one line."""
    trap, path = tmp_path / "trap", tmp_path / "config.py"
    statement = text.format(trap=repr(str(trap)))
    path.write_text(f"qk_norm = True\n{statement}")
    with pytest.raises(InputError, match=r"literals only") as error:
        read_config(path)
    assert "line 2: " in str(error.value) and " object at 0x" not in str(error.value) and "\n" not in str(error.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, or was not written to its end"),
        (b"# a comment", "is empty"),
        (b"seed = 1\x00", "null bytes"),
        (b"# M\xfcller\nseed = 1", "byte 0xfc is not UTF-8"),
        (b"seed = " + b"[" * 10**6, "too many nested parentheses"),
        (b"seed = " + b"-" * 10**6 + b"1", "nested too deep"),
        (b"seed = " + b"1+" * 10**5 + b"1", "nested too deep"),
        (b"x = " + b"[" * 5 * 10**6, "5000004 bytes"),
        (b"_base_ = ['../_base_.py']", "a config to train with"),
        (b"a = 'xxxxxxxx'\n" + b"a = f'{a}{a}{a}{a}{a}{a}{a}{a}'\n" * 9, "a text of 16777216 characters"),
    ],
    ids=range(10),
)
def test_what_no_trainer_saved(tmp_path, content, message):
    (tmp_path / "config.py").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "config.py")


def test_a_saved_config_that_is_not_there(tmp_path):
    with pytest.raises(MissingError, match="is that the work dir"):
        read_config(tmp_path / "sub" / "config.py")


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


def test_a_dump_of_mmengine_is_read(tmp_path):
    from mmengine.config import Config as ConfigFile

    path = CONFIGS / "pan_cancer/pixart_20x_256.py"
    ConfigFile.fromfile(str(path)).dump(str(tmp_path / "config.py"))
    assert "dict(" in (tmp_path / "config.py").read_text()
    assert read_config(tmp_path / "config.py") == load_config(path)


def test_root_falls_back_to_the_environment(monkeypatch):
    monkeypatch.setenv("PIXCELL_ROOT", "/slides")
    assert Config().data_root == Path("/slides") and Config(root="/here").data_root == Path("/here")
    monkeypatch.delenv("PIXCELL_ROOT")
    assert Config().data_root == Path(".")


def test_a_text_stands_for_a_list_of_names():
    assert parse_config({"data": {"train_subset_keys": "mine_1024"}}, Path("here")).data.train_subset_keys == (
        "mine_1024",
    )
    several = parse_config({"data": {"train_subset_keys": "a_256, b_256"}, "freeze": "t_block"}, Path("here"))
    assert several.data.train_subset_keys == ("a_256", "b_256") and several.freeze == ("t_block",)


def test_a_finished_run_opens_whatever_training_has_become(tmp_path, caplog):
    """Ranges that later versions hold training to say nothing of its network."""
    path = tmp_path / "config.py"
    path.write_text("image_size = 256\nseed = -1\nsample_grid = dict(count=0, steps=0)\npe_interpolation = 0.5\n")
    config = read_config(path)
    assert (config.pe_interpolation, config.seed, config.sample_grid.steps) == (
        0.5,
        Config().seed,
        Config().sample_grid.steps,
    )
    assert len(caplog.messages) == 2 and "seed -1: expected at least 0" in caplog.text
    path.write_text("image_size = 300\n")
    with pytest.raises(InputError, match="image_size 300"):
        read_config(path)


@pytest.mark.parametrize("prefix", ["../x", "a/b", "", ".."])
def test_prefixes_lead_to_no_other_folder(prefix):
    with pytest.raises(InputError, match="data.vae_prefix"):
        DataConfig(vae_prefix=prefix)
