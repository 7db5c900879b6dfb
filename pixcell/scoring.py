"""Scores of synthetic images against real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import torch
from accelerate import PartialState

from diffusion.data.nuclei.segmentation import segment_nuclei
from diffusion.encoders.embedder_files import check_encoders
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.measure import (
    REAL,
    SYNTHETIC,
    TRAINING,
    CellOptions,
    ScoringOptions,
    StainOptions,
    describe_sets,
    plan_cells,
    plan_stain,
)
from diffusion.evaluation.metrics.cell_scores import score_cells
from diffusion.evaluation.metrics.scores import REPLICATES, Scores
from diffusion.evaluation.metrics.scores import score as score_features
from diffusion.evaluation.metrics.stain_scores import score_stain
from diffusion.evaluation.sets.cells import (
    CELLS,
    CellMeasurement,
    CellTable,
    NucleiSource,
    measure_window,
)
from diffusion.evaluation.sets.embedding import embed_set
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.evaluation.sets.measuring import measure_set
from diffusion.evaluation.sets.stain import STAIN, StainMeasurement, StainTable
from diffusion.formats import ALL_METRICS, MARKERS, METRICS, NETWORK_MPP, SIZE_POLICIES, WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import read_launch, start_processes
from diffusion.utils.text import default_root
from diffusion.utils.values import check_whole
from diffusion.utils.windows import cut_windows
from pixcell.pictures import ImageLike, Images, as_list, label_of, measure, to_pil

WINDOWS_PER_PASS = 64  # of the embedder
Source: TypeAlias = "ImageSet | Iterable[ImageLike]"


def score(
    real: str | Path | Images,
    synthetic: str | Path | Images,
    *,
    training: str | Path | Images | None = None,
    encoder: str = "mobilenetv2",
    metrics: str | Sequence[str] = METRICS,
    on_size: str = "windows",
    seed: int = 0,
    bootstrap: int = REPLICATES,
    root: str | Path | None = None,
    device: str | torch.device = "auto",
    mpp: float = NETWORK_MPP,
    masks: str | Path | None = None,
    marker: str | None = None,
    registered: bool = False,
) -> Scores:
    """Score synthetic images against real ones, as `pixcell evaluate` does it.

    real, synthetic: folders of images, or images as `OpenRun.sample` takes and yields them, which are cut into windows of 256
    pixels. A synthetic image belongs to the real one of the same name below its folder, or of the same number. training:
    images among which each one's nearest is looked up. encoder: as --encoders. metrics: fd, fd_infinity, kid, prdc,
    similarity, neighbours, cells, all that applies; or stain, of virtual immunohistochemistry. on_size: of folders, what to do with
    images that are not 256 x 256: refuse, resize, windows. bootstrap: replicates for the intervals of distances. mpp: microns per
    pixel of the images, by which nuclei are found. masks: folder of those that samples in a folder were made for, under the same
    names. marker, registered: of the metric stain, as the options of these names. Returns values with their 95 % intervals by name,
    and notes. In one process; several share the work of `accelerate launch -m pixcell evaluate`.
    Raises MissingError, InputError.

    Examples:
        >>> scores = score("real", "synthetic", metrics=["fd", "similarity"], bootstrap=0)
        >>> sorted(scores.values)[:2]
        ['above_random', 'fd']
        >>> scores.values["fd"].value > 0
        True
    """
    chosen = _check_metrics(metrics, training is not None)
    if on_size not in SIZE_POLICIES:
        raise InputError(f"on_size {on_size!r}: expected {', '.join(SIZE_POLICIES)}")
    seed, bootstrap = check_whole(seed, "seed", least=0), check_whole(bootstrap, "bootstrap", least=0)
    place = prepare_device(device)
    launch = read_launch(place.type == "cpu")
    if launch is not None and launch.processes > 1:
        raise InputError(
            f"this is one of {launch}: score in one process, or by `accelerate launch -m pixcell evaluate`"
        )
    home = Path(root) if root is not None else default_root()
    check_encoders([encoder], home)
    if masks is not None and not all(isinstance(images, (str, Path)) for images in (real, synthetic)):
        raise InputError("masks belong to images of the same names: expected real and synthetic images in folders")
    if not mpp > 0:
        raise InputError(f"mpp {mpp!r}: expected the microns per pixel of the images")
    if masks is not None and CELLS not in chosen:
        raise InputError("masks are of the metric cells, which is not among metrics")
    _check_stain(chosen, real, synthetic, marker, registered)
    given = {REAL: real, SYNTHETIC: synthetic, TRAINING: training}
    sources = {kind: _open(images, on_size) for kind, images in given.items() if images is not None}
    plans = _plan_cells(sources, chosen, mpp, masks, seed)
    options = ScoringOptions(seed=seed, cells=CellOptions(mpp), stain=StainOptions(marker, registered))
    stain_plans = plan_stain(sets_of_images(sources), options) if STAIN in chosen else {}
    embedder, state = PatchEmbedder.load(encoder, place, root=home), start_processes(place)
    embedded = {kind: _embed(source, embedder, state, plans.get(kind)) for kind, source in sources.items()}
    features = {kind: found for kind, (found, _) in embedded.items()}
    sums = place if place.type == "cuda" else torch.device("cpu")  # float64, which MPS has not
    sets = (features[REAL], features[SYNTHETIC], chosen, features.get(TRAINING))
    scores = score_features(*sets, seed=seed, replicates=bootstrap, device=sums)
    tables = [embedded[kind][1] for kind in (REAL, SYNTHETIC)]
    if tables[0] is not None and tables[1] is not None:
        of_cells = score_cells(CellTable.of(tables[0]), CellTable.of(tables[1]), mpp, seed)
        scores.values |= of_cells.values
        scores.notes += of_cells.notes
    if stain_plans:
        stains = _measure_stain(sources, stain_plans, state)
        of_stain = score_stain(stains[REAL], stains[SYNTHETIC], marker, seed)
        scores.values |= of_stain.values
        scores.notes += of_stain.notes
    known = {kind: source if isinstance(source, ImageSet) else features[kind] for kind, source in sources.items()}
    scores.notes += describe_sets(known, features)
    return scores


def _check_metrics(metrics: str | Sequence[str], trained: bool) -> tuple[str, ...]:
    """Return the metrics to compute; a text is one. trained: whether there are training images. Raises InputError."""
    chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [metric for metric in chosen if metric not in ALL_METRICS]
    if unknown or not chosen:
        raise InputError(
            f"metrics {', '.join(map(str, unknown)) or 'of no name'}: expected some of {', '.join(ALL_METRICS)}"
        )
    if "neighbours" in chosen and chosen != METRICS and not trained:
        raise InputError("metrics neighbours: among which images? Give those of training as training=")
    return chosen


def _check_stain(
    metrics: Sequence[str],
    real: str | Path | Images,
    synthetic: str | Path | Images,
    marker: str | None,
    registered: bool,
) -> None:
    """Raise InputError for options of a stain that is not scored, an unknown marker, and images that are in no folder."""
    if STAIN not in metrics and (marker is not None or registered):
        raise InputError("marker and registered are of the metric stain, which is not among metrics")
    if marker is not None and marker not in MARKERS:
        raise InputError(f"marker {marker!r}: expected one of {', '.join(MARKERS)}")
    if STAIN in metrics and not all(isinstance(images, (str, Path)) for images in (real, synthetic)):
        raise InputError(
            "the metric stain compares files of the same names: expected real and synthetic images in folders"
        )


def _measure_stain(
    sources: Mapping[str, Source], plans: Mapping[str, StainMeasurement], state: PartialState
) -> dict[str, StainTable]:
    """Return the stain of real and of synthetic images in folders, by kind."""
    images = sets_of_images(sources)
    with TemporaryDirectory() as cache:
        return {
            kind: StainTable.of(measure_set(images[kind], plan, Path(cache), state)) for kind, plan in plans.items()
        }


def sets_of_images(sources: Mapping[str, Source]) -> dict[str, ImageSet]:
    """Return those sources that are folders of images, by kind."""
    return {kind: source for kind, source in sources.items() if isinstance(source, ImageSet)}


def _open(images: str | Path | Images, on_size: str) -> Source:
    """Return what is to be scored, checked as far as that takes no pixels of files. Raises MissingError, InputError."""
    if isinstance(images, (str, Path)):
        return ImageSet.open(Path(images), on_size)
    if isinstance(images, Iterator):  # such as samples, which are not to be in memory together
        return images
    listed = as_list(images)
    found = sum(_count_windows(image, label_of(image, number)) for number, image in enumerate(listed))
    if found < 2:
        raise InputError("got one window of 256 pixels to score: expected at least 2 on each side")
    return listed


def _count_windows(image: ImageLike, name: str) -> int:
    width, height = measure(image, name)
    if min(width, height) < WINDOW:
        raise InputError(f"{name} has {width} x {height} pixels: expected {WINDOW} x {WINDOW} or more")
    return (width // WINDOW) * (height // WINDOW)


def _plan_cells(
    sources: Mapping[str, Source], metrics: Sequence[str], mpp: float, masks: str | Path | None, seed: int
) -> Mapping[str, CellMeasurement]:
    """Return how the nuclei of real and synthetic images are measured, by kind; empty where they are not."""
    sets = {kind: source for kind, source in sources.items() if isinstance(source, ImageSet) and kind != TRAINING}
    resized = any(images.fit == "resize" for images in sets.values())
    if CELLS not in metrics or (resized and metrics == METRICS):  # all that applies
        return {}
    if len(sets) == 2:
        cells = CellOptions(mpp, masks=None if masks is None else Path(masks))
        return plan_cells(sets, ScoringOptions(seed=seed, cells=cells))
    return dict.fromkeys((REAL, SYNTHETIC), CellMeasurement(NucleiSource(mpp)))


def _embed(
    source: Source, embedder: PatchEmbedder, state: PartialState, cells: CellMeasurement | None
) -> tuple[Features, Features | None]:
    """Return the features of a source, and its nuclei, where it is said how these are measured."""
    if not isinstance(source, ImageSet):
        measured: list[np.ndarray] = []

        def measure_nuclei(window: torch.Tensor) -> None:
            pixels = window.permute(1, 2, 0).numpy()
            if cells is not None:
                measured.append(measure_window(pixels, segment_nuclei(pixels, cells.nuclei.mpp), cells.nuclei.mpp))

        features = embed_windows(source, embedder, measure_nuclei)
        if not measured:
            return features, None
        values = np.stack(measured).astype(np.float32)
        return features, Features(features.rows, values.shape[1], [lambda: values], [len(values)], CELLS)
    with TemporaryDirectory() as cache:
        found = _in_memory(embed_set(source, embedder, Path(cache), state))
        return found, None if cells is None else _in_memory(measure_set(source, cells, Path(cache), state))


def _in_memory(features: Features) -> Features:
    """Return features whose parts no longer need their files."""
    arrays = [load() for load in features.parts]
    return dataclasses.replace(features, parts=[lambda array=array: array for array in arrays])


def embed_windows(
    images: Iterable[ImageLike],
    embedder: PatchEmbedder,
    on_window: Callable[[torch.Tensor], None] = lambda window: None,
) -> Features:
    """Embed the windows of images, which are read one by one. Raises InputError for one without a window, and for none.

    on_window: gets each window, uint8 (3, 256, 256), in order.
    """
    rows: list[Row] = []

    def read() -> Iterator[torch.Tensor]:
        for number, image in enumerate(images):
            name = label_of(image, number)
            _count_windows(image, name)  # of a stream, this is the first time that the image is seen
            pixels = torch.from_numpy(np.array(to_pil(image, name))).permute(2, 0, 1)[None]
            for i, window in enumerate(cut_windows(pixels, WINDOW)):
                rows.append(Row(str(number), i))
                on_window(window)
                yield window

    windows, values = read(), []
    while batch := list(islice(windows, WINDOWS_PER_PASS)):
        values.append(embedder.embed(torch.stack(batch)).cpu().numpy())
    if not values:
        raise InputError("no images: expected at least two to score")
    array = np.concatenate(values)
    return Features(rows, array.shape[1], [lambda: array], [len(array)], embedder.name)
