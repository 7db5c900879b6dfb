"""Names for an index: of the patches on the disk, or of a user's lists."""

from __future__ import annotations

import pytest

from diffusion.data.index.listing import collect_names, list_datasets
from diffusion.utils.errors import InputError, MissingError


@pytest.fixture
def patches(tmp_path):
    for name in ("set_10/a/single_64/s/0_0.png", "set_2/a/single_64/s/0_0.png", "set_2/a/single_128/s/1_0.jpeg"):
        path = tmp_path / "patches" / name
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "patches" / "metadata").mkdir()
    return tmp_path / "patches"


def test_each_data_set_with_patches_of_the_size_is_a_key(patches):
    assert list_datasets(patches) == ["set_2", "set_10"]
    found = {key: list(names) for key, names in collect_names(patches, None, 64).items()}
    assert found == {"set_2_64": ["set_2/a/single_64/s/0_0.png"], "set_10_64": ["set_10/a/single_64/s/0_0.png"]}
    assert {key: list(names) for key, names in collect_names(patches, None, 128).items()} == {
        "set_2_128": ["set_2/a/single_128/s/1_0.jpeg"]
    }


def test_a_named_set_without_such_patches_is_an_error_that_names_their_sizes(patches):
    with pytest.raises(MissingError, match="there are patches of 64 pixels, so set --size"):
        collect_names(patches, ["set_10"], 128)
    with pytest.raises(MissingError, match="no data set in"):
        list_datasets(patches / "metadata")


def test_lists_take_the_place_of_the_disk(patches, tmp_path):
    (tmp_path / "names.txt").write_text("set_2/a/single_64/s/7_7.png\n\n")
    assert {
        key: list(names) for key, names in collect_names(patches, ["set_2"], 64, [tmp_path / "names.txt"]).items()
    } == {"set_2_64": ["set_2/a/single_64/s/7_7.png"]}
    (tmp_path / "names.txt").write_text("other/a/single_64/s/7_7.png\n")
    with pytest.raises(InputError, match="names.txt"):
        collect_names(patches, ["set_2"], 64, [tmp_path / "names.txt"])
