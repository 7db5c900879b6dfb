"""The accelerator is as the config has it, whatever variables accelerate reads."""

from __future__ import annotations

import pytest
from runs import dry_run, set_variables, settings

from diffusion.training.environment import check_accelerator, environment_notes, start_accelerator
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import NUMERIC_VARIABLES

OVERRULING = dict(
    ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4",
    ACCELERATE_MIXED_PRECISION="bf16",
    ACCELERATE_DYNAMO_BACKEND="inductor",
    ACCELERATE_DYNAMO_USE_FULLGRAPH="true",
    ACCELERATE_GRADIENT_CLIPPING="0.5",
)


pytestmark = pytest.mark.usefixtures("no_launcher")


def test_the_config_overrules_variables(feature_root, monkeypatch):
    set_variables(monkeypatch, OVERRULING)
    accelerator = start_accelerator(settings(feature_root, gradient_accumulation_steps=3), cpu=True)
    assert (accelerator.gradient_accumulation_steps, accelerator.mixed_precision) == (3, "no")
    assert accelerator.state.dynamo_plugin.backend.value == "NO"


def test_an_accelerator_that_contradicts_the_config_is_refused(feature_root):
    config = settings(feature_root)
    accelerator = start_accelerator(config, cpu=True)
    accelerator.gradient_state.plugin_kwargs["num_steps"] = 4
    with pytest.raises(InputError, match="gradient_accumulation_steps 4, and the config 1; its variables: none"):
        check_accelerator(accelerator, config, cpu=True)


def test_the_log_begins_with_variables_without_effect(feature_root, tmp_path, monkeypatch):
    config = settings(feature_root)
    for name in NUMERIC_VARIABLES:  # which the machine may have set
        monkeypatch.delenv(name, raising=False)
    set_variables(
        monkeypatch,
        dict(ACCELERATE_MIXED_PRECISION="bf16", ACCELERATE_DYNAMO_BACKEND="NO", ACCELERATE_USE_CPU="False"),
    )
    assert environment_notes(config) == []  # what accelerate launch sets with a file of docs/accelerate
    set_variables(monkeypatch, OVERRULING | dict(NVIDIA_TF32_OVERRIDE="0"))
    first, second, third, *_ = dry_run(config, tmp_path / "run", cpu=True).splitlines()
    assert (
        first
        == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 has no effect: the config's gradient_accumulation_steps=1 holds"
    )
    assert second == "ACCELERATE_DYNAMO_BACKEND=inductor has no effect: the config's compile=False holds"
    assert third == "the environment changes how numbers are computed: NVIDIA_TF32_OVERRIDE=0"


def test_modules_excluded_from_sharding_are_refused(feature_root, monkeypatch):
    set_variables(monkeypatch, dict(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_IGNORED_MODULES="blocks.0"))
    with pytest.raises(InputError, match="FSDP_IGNORED_MODULES=blocks.0: .*`unset FSDP_IGNORED_MODULES`"):
        start_accelerator(settings(feature_root), cpu=True)
