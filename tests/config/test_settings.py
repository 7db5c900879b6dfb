"""Settings: ranges, defaults, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusion.config.base import documented_keys
from diffusion.config.files import dump_config, load_config, parse_config, read_config
from diffusion.config.settings import (
    OPTIMIZERS,
    Config,
    DataConfig,
    Numbers,
    OptimizerConfig,
    PowerEmaConfig,
    TimestepConfig,
)
from diffusion.optim.build import build_optimizer
from diffusion.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "size", "tokens", "interpolation", "batch"),
    [
        ("pixart_20x_256", 256, 1, 0.5, 16 * 128 * 2),
        ("pixart_20x_512_pos_embed", 512, 4, 1.0, 24 * 64),
        ("pixart_20x_1024_pos_embed", 1024, 16, 2.0, 32 * 12),
    ],
)
def test_the_published_recipe_is_shipped(name, size, tokens, interpolation, batch):
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
            "mean, std and uniform_share are of type logit_normal, not loss_aware",
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
        ("optimizer = dict(type='Nonesuch')", "no optimizer 'Nonesuch'; known are AdamW, CAME, Muon"),
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
def test_invalid_values_are_refused(write_config, text, message):
    with pytest.raises(InputError) as error:
        load_config(write_config(text))
    assert message in str(error.value)


def test_an_optimizer_without_eps_or_betas_refuses_them(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "Lion", Numbers(betas=2, eps=0))
    monkeypatch.setitem(OPTIMIZERS, "SGD", Numbers(betas=0, eps=0))
    assert OptimizerConfig("Lion", betas=(0.9, 0.99)).eps is None and OptimizerConfig("SGD").betas is None
    for eps in (1e-8, (1e-8,), (1e-30, 1e-3)):
        with pytest.raises(InputError, match="expected two betas, no eps"):
            OptimizerConfig("Lion", eps=eps)
    with pytest.raises(InputError, match="expected no betas, no eps"):
        OptimizerConfig("SGD", betas=(0.9,))


def test_every_optimizer_is_documented_and_built():
    (doc,) = (key.doc for key in documented_keys(OptimizerConfig) if key.name == "type")
    for name in OPTIMIZERS.keys() - {"CAMEWrapper"}:
        assert name in doc
    for name in OPTIMIZERS:
        build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(name), lr=1e-3)


def test_nested_keys_become_settings(write_config, tmp_path):
    text = "timestep_sampling = dict(type='logit_normal', mean=-1)\npower_ema = dict(lengths=[0.05, 0.1])"
    config = load_config(write_config(text))
    assert config.timestep_sampling == TimestepConfig("logit_normal", -1.0, 1.0, 0.0) and config.auto_lr is None
    assert config.power_ema == PowerEmaConfig((0.05, 0.1), 2000)
    dump_config(config, tmp_path / "saved.py")
    assert read_config(tmp_path / "saved.py") == config


def test_a_rule_for_the_learning_rate_can_be_set_and_taken_back(write_config):
    assert load_config(write_config("auto_lr = dict(rule='sqrt')")).auto_lr == {"rule": "sqrt"}
    assert load_config(write_config("auto_lr = dict(rule='sqrt')"), {"auto_lr": None}).auto_lr is None


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


@pytest.mark.parametrize("prefix", ["../x", "a/b", "", ".."])
def test_prefixes_lead_to_no_other_folder(prefix):
    with pytest.raises(InputError, match="data.vae_prefix"):
        DataConfig(vae_prefix=prefix)
