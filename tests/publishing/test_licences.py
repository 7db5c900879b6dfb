"""No licence of weights is freer than those of what they are made with."""

from __future__ import annotations

import pytest

from diffusion.publishing.licences import LICENCES, Part, check_licence, strictest_licence, unknown_licence
from diffusion.utils.errors import InputError

TINY = Part("codec", "tiny", LICENCES["apache-2.0"])
SD3 = Part("codec", "SD3.5", LICENCES["stabilityai-ai-community"])
UNI2 = Part("encoder", "UNI2-h", LICENCES["cc-by-nc-nd-4.0"])
MOBILE = Part("encoder", "MobileNetV2", LICENCES["mit"])
PIXCELL = Part("base weights", "PixCell-256", unknown_licence("https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("parts", "identifier"),
    [
        ((TINY, MOBILE), "mit"),
        ((TINY, MOBILE), "cc-by-nc-nd-4.0"),
        ((TINY, UNI2), "cc-by-nc-nd-4.0"),
        ((SD3, MOBILE), "stabilityai-ai-community"),
        *(((parts), "other") for parts in ((TINY, MOBILE), (SD3, UNI2), (PIXCELL, TINY, MOBILE))),
    ],
)
def test_a_licence_that_asks_for_as_much_is_accepted(parts, identifier):
    check_licence(identifier, parts)


@pytest.mark.parametrize(
    ("parts", "identifier", "message"),
    [
        ((TINY, MOBILE), "cc0-1.0", "codec, tiny .Apache 2.0: attribution"),
        ((TINY, UNI2), "apache-2.0", "encoder, UNI2-h .CC BY-NC-ND 4.0: no commercial use, no derivatives"),
        ((TINY, UNI2), "cc-by-nc-4.0", "UNI2-h .*: no derivatives"),
        ((TINY, UNI2), "stabilityai-ai-community", "UNI2-h"),
        ((SD3, MOBILE), "cc-by-nc-nd-4.0", "SD3.5 .*: a use policy"),  # two sets of terms, of which none has the other
        ((PIXCELL, TINY, MOBILE), "cc-by-nc-nd-4.0", "PixCell-256 .see its page: terms that are not known here"),
        ((TINY, MOBILE), "gpl-3.0", "expected other, or one of cc0-1.0, mit"),
    ],
)
def test_a_freer_one_is_refused(parts, identifier, message):
    with pytest.raises(InputError, match=f"--license {identifier}.*{message}"):
        check_licence(identifier, parts)


def test_the_strictest_is_that_of_the_known_ones():
    assert strictest_licence((PIXCELL, SD3, UNI2)) is LICENCES["cc-by-nc-nd-4.0"]
    assert strictest_licence((TINY, SD3, MOBILE)) is LICENCES["stabilityai-ai-community"]
    assert strictest_licence((PIXCELL,)) is None
