"""Settings of the task `embedding_flow`, which trains flows between embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from diffusion.config.settings import (
    IndexedDataConfig,
    OptimizerConfig,
    TrainingConfig,
    ValidationConfig,
    check_that,
)
from diffusion.formats import WINDOW
from diffusion.utils.values import Count, FilePart, Name, Range, Section


@dataclass(frozen=True)
class FlowDataConfig(IndexedDataConfig):
    """Which embeddings a flow leads to, and which it starts from."""

    source_dataset: FilePart | None = None
    """Data set whose embeddings of the same patches the flow starts from: mine_he of pairs of stains. None: noise, a prior."""
    labels: Name | None = None
    """Classes that a prior can be asked for: dataset, cohort or slide, or a CSV file with the columns name (of a data set,
    cohort, slide or patch) and class. None: none."""

    def check(self) -> None:
        check_that(
            self.labels is None or self.source_dataset is None,
            "data.labels are of a prior: a flow that starts from the embeddings of data.source_dataset has no classes",
        )


@dataclass(frozen=True)
class FlowNetworkConfig(Section):
    """The network of a flow; the defaults are those of the released one."""

    PREFIX = "embedding_flow."

    hidden_size: Count = 1024
    """Width of the residual stream, of what is within its blocks, and of the embedding of time."""
    depth: Annotated[int, Range(least=1, most=1024)] = 6
    """Residual blocks."""
    components: Count | None = None
    """Principal components of the embeddings that a prior works in. None: all that vary."""


@dataclass(frozen=True)
class EmbeddingFlowConfig(TrainingConfig):
    """The keys of the task `embedding_flow`: those of the trainer, and data, network and validation of a flow.

    Raises InputError for values that are out of their range, and for those that contradict each other.
    """

    task: Name = "embedding_flow"
    """Always "embedding_flow"."""
    image_size: Annotated[int, Range(least=WINDOW, most=2**14)] = WINDOW
    """Pixels a side of the image that a grid of tokens describes: 256 has 1 token, 512 has 4, 1024 has 16."""
    root: Name | None = None
    """Folder of patches/ and features/. None: $PIXCELL_ROOT, else the current folder."""
    data: FlowDataConfig = field(default_factory=FlowDataConfig)
    """Which embeddings."""
    embedding_flow: FlowNetworkConfig = field(default_factory=FlowNetworkConfig)
    """The network; `task = dict(type="embedding_flow", depth=...)` sets it, too."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The loss on samples that are held out, at every save, and how near translated embeddings are to the true ones."""

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4, weight_decay=0.01))
    ema_rate: float = 0.999
    num_workers: int = 0

    def check(self) -> None:
        super().check()
        self.data.check_size(self.image_size)

    @property
    def data_root(self) -> Path:
        """Return the folder of patches/: data.root, else root, else $PIXCELL_ROOT, else the current folder."""
        return self.data.folder(self.root)

    @property
    def data_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build_embedding_data(...)`."""
        return self.data.arguments(self.root, self.image_size)

    @property
    def validation_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build_embedding_data(...)` for the held-out set."""
        return self.data_arguments | self.validation.overrides("source_dataset")
