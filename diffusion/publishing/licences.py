"""The licences of what a network is made with, and which licence its own weights may have: none that asks for less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion.utils.errors import InputError

# What a licence asks of those who use a work, and how much that weighs where the strictest of several is named.
DEMANDS = {
    "attribution": 1,
    "share alike": 2,
    "a use policy": 4,
    "commercial use limited": 4,
    "no commercial use": 16,
    "no derivatives": 16,
    "terms that are not known here": 0,
}
STRONGER = {"no commercial use": {"commercial use limited"}}  # a demand -> weaker ones that it includes


@dataclass(frozen=True)
class Licence:
    """A licence: its identifier (the hub's, where that has one), its name and page, and what it demands, of DEMANDS."""

    identifier: str
    name: str
    page: str
    demands: frozenset[str]
    on_hub: bool = True  # whether the hub takes the identifier for a card's `license`

    @property
    def weight(self) -> int:
        """How strict it is, to name the strictest of several."""
        return sum(DEMANDS[demand] for demand in self.demands)

    @property
    def is_free(self) -> bool:
        """Whether it lets anyone pass the work on who names its author."""
        return self.demands <= {"attribution"}

    @property
    def is_known(self) -> bool:
        """Whether its demands are known here."""
        return "terms that are not known here" not in self.demands

    def lacks(self, other: Licence) -> list[str]:
        """Return what another licence demands and this one does not."""
        own = self.demands.union(*(STRONGER.get(demand, ()) for demand in self.demands))
        return sorted(other.demands - own)


def _licence(identifier: str, name: str, page: str, *demands: str, on_hub: bool = True) -> Licence:
    return Licence(identifier, name, page, frozenset(demands), on_hub)


CC = "https://creativecommons.org/licenses"
LICENCES = {
    licence.identifier: licence
    for licence in (
        _licence("cc0-1.0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        _licence("mit", "MIT", "https://opensource.org/license/mit", "attribution"),
        _licence("bsd-3-clause", "BSD 3-Clause", "https://opensource.org/license/bsd-3-clause", "attribution"),
        _licence("apache-2.0", "Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0", "attribution"),
        _licence("cc-by-4.0", "CC BY 4.0", f"{CC}/by/4.0/", "attribution"),
        _licence("cc-by-sa-4.0", "CC BY-SA 4.0", f"{CC}/by-sa/4.0/", "attribution", "share alike"),
        _licence("cc-by-nd-4.0", "CC BY-ND 4.0", f"{CC}/by-nd/4.0/", "attribution", "no derivatives"),
        _licence("cc-by-nc-4.0", "CC BY-NC 4.0", f"{CC}/by-nc/4.0/", "attribution", "no commercial use"),
        _licence(
            "cc-by-nc-sa-4.0",
            "CC BY-NC-SA 4.0",
            f"{CC}/by-nc-sa/4.0/",
            *("attribution", "no commercial use", "share alike"),
        ),
        _licence(
            "cc-by-nc-nd-4.0",
            "CC BY-NC-ND 4.0",
            f"{CC}/by-nc-nd/4.0/",
            *("attribution", "no commercial use", "no derivatives"),
        ),
        _licence(
            "stabilityai-ai-community",
            "Stability AI Community Licence",
            "https://huggingface.co/stabilityai/stable-diffusion-3.5-large/blob/main/LICENSE.md",
            *("attribution", "commercial use limited", "a use policy"),
            on_hub=False,
        ),
    )
}


def unknown_licence(page: str = "") -> Licence:
    """Return the licence of something whose terms are not known here, but may stand on a page."""
    return _licence(
        "unknown", "see its page" if page else "not known", page, "terms that are not known here", on_hub=False
    )


@dataclass(frozen=True)
class Part:
    """Something that a network is made with: what it is to the network, what it is called, and its licence."""

    role: str
    name: str
    licence: Licence


def check_licence(identifier: str, parts: Sequence[Part]) -> None:
    """Check the licence that a user gives weights. Raises InputError for one that is not known, or freer than a part's."""
    if identifier == "other":  # the parts' own terms, which the card names
        return
    if identifier not in LICENCES:
        raise InputError(f"--license {identifier}: expected other, or one of {', '.join(LICENCES)}")
    given = LICENCES[identifier]
    for part in parts:
        lacking = given.lacks(part.licence)
        if lacking:
            raise InputError(
                f"--license {identifier} is freer than the terms of the {part.role}, {part.name} ({part.licence.name}: "
                f"{', '.join(lacking)}); leave it out, and the card names the terms of all parts"
            )


def strictest_licence(parts: Sequence[Part]) -> Licence | None:
    """Return the strictest of the licences that are known; None where none is."""
    known = [part.licence for part in parts if part.licence.is_known]
    return max(known, key=lambda licence: licence.weight, default=None)
