"""The base file: generated from the settings, which document every key."""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields

import pytest

from diffusion.config.base import BASE_FILE, base_file, documented_keys
from diffusion.config.files import load_config
from diffusion.config.settings import Config, OptimizerConfig, TrainingConfig
from diffusion.utils.values import Section


@dataclass(frozen=True)
class Undocumented(Section):
    # a heading
    first: int = 1
    """The first."""
    second: int = 2


def test_the_base_file_is_what_the_settings_generate():
    assert BASE_FILE.read_text() == base_file(), "run: python -m diffusion.config.base"


def test_the_base_file_states_the_defaults():
    assert load_config(BASE_FILE) == Config()


def test_the_base_file_has_every_key_once():
    names = [node.targets[0].id for node in ast.parse(base_file()).body]
    assert sorted(names) == sorted(field.name for field in fields(Config))


def test_keys_have_their_documentation_in_order():
    assert [key.name for key in documented_keys(OptimizerConfig)] == ["type", "lr", "weight_decay", "betas", "eps"]
    assert documented_keys(OptimizerConfig)[1].doc == "Learning rate after the warm-up; auto_lr may scale it."
    headings = [key.heading for key in documented_keys(TrainingConfig) if key.heading]
    assert headings == ["start and work dir", "optimization", "speed and memory", "monitoring and saving"]


def test_a_key_without_documentation_is_an_error():
    with pytest.raises(ValueError, match=r"Undocumented\.second has no documentation"):
        documented_keys(Undocumented)
