"""Errors that a user can correct."""

from __future__ import annotations

from diffusion.utils.errors import InputError, MissingError


def test_a_missing_file_is_an_input_error_with_its_own_sentence():
    error = MissingError("no file x")
    assert isinstance(error, InputError) and isinstance(error, FileNotFoundError) and str(error) == "no file x"
