"""Config files: what is shipped, saved and overridden."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.config.files import dump_config, find_config, load_config, parse_override, read_config
from diffusion.config.settings import Config, OptimizerConfig
from diffusion.tasks.registry import CONFIGS as KINDS
from diffusion.utils.errors import InputError, MissingError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_survive_the_round_trip(path, tmp_path):
    config = load_config(path, kinds=KINDS)
    dump_config(config, tmp_path / "config.py")
    assert read_config(tmp_path / "config.py", KINDS) == config


def test_settings_of_another_task_survive_the_round_trip_where_it_is_known(tmp_path):
    (tmp_path / "short.py").write_text("task = 'codec'; seed = 3")
    config = load_config(tmp_path / "short.py", kinds=KINDS)
    assert config == KINDS["codec"](seed=3)
    dump_config(config, tmp_path / "config.py")
    assert read_config(tmp_path / "config.py", KINDS) == config
    with pytest.raises(InputError, match="task 'codec': expected denoising"):
        read_config(tmp_path / "config.py")


def test_a_task_with_settings_of_its_own(tmp_path, write_config):
    """They stand in a section of the task's name, and an override of that section wins."""
    text = "task = dict(type='control', base='nano', blocks=3)\ndata = dict(mask_prefix='mask')"
    config = load_config(write_config(text), {"control.base": "other"}, KINDS)
    assert config.task == "control" and (config.control.base, config.control.blocks) == ("other", 3)
    assert config.class_dropout_prob == 0.1, "of the base file"
    assert load_config(CONFIGS / "control/nuclei_256.py", kinds=KINDS).class_dropout_prob == 0.0
    with pytest.raises(InputError, match=r"expected dict\(type=...\), with the name of a task"):
        load_config(write_config("task = dict(_delete_=True, base='nano')"), kinds=KINDS)
    with pytest.raises(InputError, match="unknown key 'control.bass'"):
        load_config(write_config("task = dict(type='control', bass='nano')"), kinds=KINDS)


def test_configs_that_come_with_the_package_have_names(tmp_path, monkeypatch):
    expected = CONFIGS / "demo/demo_256.py"
    for name in ("demo/demo_256", "demo/demo_256.py", expected):
        assert find_config(name).samefile(expected)
    with pytest.raises(
        MissingError,
        match="no config file demo/none; .* are control/nuclei_1024, control/nuclei_256, control/nuclei_512, demo/control_256, "
        "demo/demo_1024, demo/demo_256, demo/demo_512, demo/distill_256, demo/finetune_256, demo/nano_256, demo/nano_start_256, "
        "demo/stain_control_256, demo/stain_flow_256, demo/stain_lora_256, distillation/released_256, "
        "distillation/released_lora_256, finetune/own_slides_256, pan",
    ):
        find_config("demo/none")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/demo_256.py").touch()
    monkeypatch.chdir(tmp_path)
    assert find_config("demo/demo_256.py") == Path("demo/demo_256.py")  # the user's own first


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingError, match="no config file"):
        load_config(tmp_path / "none.py")
    (tmp_path / "orphan.py").write_text("_base_ = ['nowhere.py']")
    with pytest.raises(MissingError, match="nowhere.py"):
        load_config(tmp_path / "orphan.py")


def test_overrides_that_do_not_fit_are_refused(write_config):
    for key in ("seed.x", "data"):
        with pytest.raises(InputError):
            load_config(write_config(""), {key: 3})


def test_overrides_make_sections_and_merge_dicts(write_config):
    config = load_config(write_config(""), {"auto_lr.rule": "sqrt", "optimizer": {"lr": 2}, "model_kwargs.depth": 3})
    assert config.auto_lr == {"rule": "sqrt"} and config.model_kwargs == {"depth": 3}
    assert config.optimizer == OptimizerConfig("AdamW", lr=2.0)  # a dict is merged with the one before


def test_paths_are_expanded_as_by_a_shell(write_config, tmp_path, monkeypatch):
    """In files and overrides alike; a saved config says what it says."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/disk")
    text = "root = '~/x'\ndata = dict(root='$DISK/y', features_dir='${DISK}/f')\nvae_pretrained = 'tiny'"
    overrides = {"load_from": "~/w.ckpt", "evaluation.encoder": "mobilenetv2=~/m.pth"}
    config = load_config(write_config(text), overrides)
    assert (config.root, config.data.root, config.data.features_dir) == ("/home/me/x", "/disk/y", "/disk/f")
    assert (config.load_from, config.evaluation.encoder) == ("/home/me/w.ckpt", "mobilenetv2=/home/me/m.pth")
    monkeypatch.setenv("PIXCELL_ROOT", "~/slides")
    assert Config().data_root == Path("/home/me/slides")
    (tmp_path / "saved.py").write_text("root = '/data/$RECYCLE.BIN'")
    assert read_config(tmp_path / "saved.py").root == "/data/$RECYCLE.BIN"


def test_overrides_win_over_the_file(write_config):
    config = load_config(write_config("max_steps = 5"), {"max_steps": 7, "optimizer.lr": 3})
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
def test_invalid_saved_configs_are_refused(tmp_path, content, message):
    (tmp_path / "config.py").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "config.py")


def test_a_missing_saved_config_is_named(tmp_path):
    with pytest.raises(MissingError, match="is that the work dir"):
        read_config(tmp_path / "sub" / "config.py")


def test_a_dump_of_mmengine_is_read(tmp_path):
    from mmengine.config import Config as ConfigFile

    path = CONFIGS / "pan_cancer/pixart_20x_256.py"
    ConfigFile.fromfile(str(path)).dump(str(tmp_path / "config.py"))
    assert "dict(" in (tmp_path / "config.py").read_text()
    assert read_config(tmp_path / "config.py") == load_config(path)


def test_invalid_training_keys_of_a_saved_config_are_left_out(tmp_path, caplog):
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=(1, 2)", (1, 2)),
        ("a=None", None),
        ("a=bf16", "bf16"),
        ("a={[]: 1}", "{[]: 1}"),
        ("a=", ""),
    ],
)
def test_overrides_are_literals_or_text(text, value):
    assert parse_override(text) == ("a", value)


def test_an_override_without_a_value_is_refused():
    with pytest.raises(InputError, match="--set max_steps: expected KEY=VALUE"):
        parse_override("max_steps")
