"""Settings of records are called as options are."""

from __future__ import annotations

import pytest

from diffusion.cli.commands.table import COMMANDS, load_command
from diffusion.cli.signature import flag_name, read_parameters
from diffusion.utils.recorded import OPTIONS, describe_setting


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("guidance_strength", 2.0, "--guidance 2.0"),
        ("guidance_interval", [0.3, 5.0], "--guidance-interval 0.3 5.0"),
        ("guidance_interval", None, "--guidance-interval unset"),
        ("n_images", 5, "--count 5"),
        ("compiled", None, "--compile off"),
        ("averaged", False, "--weights raw"),
        ("averaged", None, "--weights ema"),
        ("vae_weights", "0f", "vae_weights 0f"),
    ],
)
def test_settings_are_called_as_options_are(name, value, text):
    assert describe_setting(name, value) == text


def test_every_option_is_there():
    names = [name for group in COMMANDS.values() for name in group]
    known = {flag_name(parameter.name) for name in names for parameter in read_parameters(load_command(name))}
    assert set(OPTIONS.values()) <= known
