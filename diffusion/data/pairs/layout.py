"""Where pairs of patches lie: two data sets, `<dataset>_he` and `<dataset>_<stain>`, with the same names below them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusion.data.features.partner import partner_name
from diffusion.formats import PATCHES_DIR

HE = "he"  # ends the name of the data set of the haematoxylin and eosin stain


@dataclass(frozen=True)
class PairLayout:
    """The two data sets of one set of pairs. size: pixels a side of the patches."""

    root: Path
    dataset: str
    stain: str
    size: int

    @property
    def datasets(self) -> tuple[str, str]:
        """Return the names of both data sets, the H&E first."""
        return f"{self.dataset}_{HE}", f"{self.dataset}_{self.stain}"

    @property
    def keys(self) -> tuple[str, str]:
        """Return the keys of both in an index."""
        first, second = self.datasets
        return f"{first}_{self.size}", f"{second}_{self.size}"

    def cohorts(self, cohort: str) -> tuple[Path, Path]:
        """Return the folders of a cohort in both data sets."""
        first, second = (self.root / PATCHES_DIR / dataset / cohort for dataset in self.datasets)
        return first, second

    def name(self, cohort: str, slide: str, file: str) -> str:
        """Return the name of an H&E patch, a path below ROOT/patches."""
        return f"{self.datasets[0]}/{cohort}/single_{self.size}/{slide}/{file}"

    def partner(self, name: str) -> str:
        """Return the name of the partner of an H&E patch."""
        return partner_name(name, self.datasets[1])

    def files(self, name: str) -> tuple[Path, Path]:
        """Return the files of a pair by the name of its H&E patch."""
        patches = self.root / PATCHES_DIR
        return patches / name, patches / self.partner(name)
