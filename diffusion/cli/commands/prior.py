"""pixcell prior."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import plain_name, positive_float, positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX

if TYPE_CHECKING:
    import torch

    from diffusion.config.flow_settings import EmbeddingFlowConfig
    from diffusion.data.datasets.embeddings import EmbeddingData
    from diffusion.evaluation.prior_scores import PriorScores

SCORES_FILE = "prior.json"
SCORED_IMAGES, SCORED_TOKENS = 4000, 16_000  # drawn and held out, at most
LOOKED_UP = 200_000  # tokens of the training images among which the nearest is looked up, at most
DRAWN_AT_ONCE = 256


@checked
def prior(
    dataset: Annotated[options.Datasets, Here("all of the index")] = None,
    workdir: Annotated[options.Workdir, Here("output/prior")] = None,
    size: Annotated[
        options.Size, Here(note="; a grid of embeddings describes it: 1 at 256, 4 at 512, 16 at 1024")
    ] = 256,
    labels: Annotated[
        str | None,
        Option(
            "what embeddings can be drawn of: dataset, cohort or slide, or a CSV file with the columns name (of a data set, cohort, "
            "slide or patch) and class [no classes]",
            group=options.DATA,
        ),
    ] = None,
    index: options.DataIndex = DEFAULT_INDEX,
    held_out: Annotated[
        str | None,
        Option("index of the patches to score against, such as patch_names_test.hdf5 [no scores]", group=options.DATA),
    ] = None,
    features: options.Features = None,
    embedding_suffix: Annotated[str, Option(options.EMBEDDINGS, plain_name)] = SSL_PREFIX,
    max_steps: Annotated[int, Option("optimizer steps", positive_int, group=options.TRAINING)] = 3000,
    batch_size: Annotated[options.BatchSize, Here("256", options.TRAINING)] = 256,
    lr: Annotated[float, Option("learning rate", positive_float, group=options.TRAINING)] = 3e-4,
    hidden_size: Annotated[int, Option("width of the flow", positive_int, group=options.TRAINING)] = 1024,
    depth: Annotated[int, Option("residual blocks of the flow", positive_int, group=options.TRAINING)] = 6,
    fresh: options.Fresh = False,
    accept_changes: options.AcceptChanges = False,
    root: options.Root = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> int:
    """Train a prior: a flow from noise to the embeddings of an index, by which images are sampled without any patch.

    pixcell sample takes it with --prior, and its classes with --class. It starts from a Gaussian that is fitted to the
    embeddings. With --held-out it is scored against embeddings that it has not seen: their distribution, the classes, neighbours in a
    grid, and whether what it draws are copies of the training set. Stopped, the same command goes on, and the exit code is 75.

    Examples:
      pixcell prior --dataset tcga_diagnostic --labels cohort --index patch_names_train.hdf5 --held-out patch_names_test.hdf5
      pixcell prior --dataset mine --size 1024 --labels classes.csv --workdir output/prior_1024
      pixcell sample --workdir output/1024 --prior output/prior_1024 --class tumour --count 8
    """
    from diffusion.config.flow_settings import EmbeddingFlowConfig, FlowDataConfig, FlowNetworkConfig
    from diffusion.config.settings import OptimizerConfig, ScheduleConfig
    from diffusion.data.datasets.pan_cancer import LARGE_PATCH
    from diffusion.data.index.patch_index import find_keys, index_keys, index_path, split_key
    from diffusion.tasks.embedding_flow.task import EmbeddingFlowTask
    from diffusion.training.parallel.preemption import EXIT_CODE
    from diffusion.training.trainer import train
    from diffusion.utils.files import atomic_write_bytes
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.launch import start_processes
    from diffusion.utils.text import default_root

    place = prepare_device(device)
    state = start_processes(place)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusion").setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    root, workdir = root or default_root(), workdir or Path("output/prior")
    present = index_keys(index_path(root, index))
    keys = tuple(find_keys(present, dataset, (size, LARGE_PATCH))) if dataset is not None else None
    sizes = {split_key(key)[1] for key in (present if keys is None else keys)}
    cropped = size not in sizes and LARGE_PATCH in sizes
    config = EmbeddingFlowConfig(
        image_size=size,
        root=str(root),
        data=FlowDataConfig(
            type="PanCancerDataLowRes" if cropped else "PanCancerData",
            patch_names_file=str(index),
            features_dir=features,
            ssl_prefix=embedding_suffix,
            train_subset_keys=keys,
            labels=labels,
        ),
        embedding_flow=FlowNetworkConfig(hidden_size, depth),
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.01),
        lr_schedule="cosine",
        lr_schedule_args=ScheduleConfig(num_warmup_steps=min(100, max_steps // 10)),
        train_batch_size=batch_size or 256,
        max_steps=max_steps,
        save_model_steps=max(1, max_steps // 3),
        ema_rate=0.99,
        seed=seed,
    )
    sets = None if held_out is None else open_sets(config, held_out)  # now: a wrong name should cost no training
    finished = train(config, EmbeddingFlowTask(config), workdir, place.type == "cpu", fresh, accept_changes)
    if finished and sets is not None and state.is_main_process:
        scores = score(*sets, workdir, seed, state.device or place)
        print_scores(scores)
        atomic_write_bytes(workdir / SCORES_FILE, (json.dumps(scores.to_dict(), indent=1) + "\n").encode())
        print(f"written: {workdir / SCORES_FILE}")
    state.destroy_process_group()
    return 0 if finished else EXIT_CODE


def open_sets(config: EmbeddingFlowConfig, held_out: str) -> tuple[EmbeddingData, EmbeddingData]:
    """Open the training embeddings, and with their classes the held-out ones.

    Raises MissingError, and InputError for held-out patches that are trained on, and too few images to score.
    """
    from diffusion.data.datasets.embeddings import build_embedding_data
    from diffusion.data.index.patch_index import iterate_names
    from diffusion.evaluation.prior_scores import check_counts
    from diffusion.utils.errors import InputError

    training = build_embedding_data(**config.data_arguments)
    classes = None if training.classes is None else training.classes.names
    apart = build_embedding_data(**config.data_arguments | {"patch_names_file": held_out}, class_names=classes)
    names = {name for key in apart.index.keys for name in iterate_names(apart.index.path, key)}
    both = sum(name in names for key in training.index.keys for name in iterate_names(training.index.path, key))
    if both:
        raise InputError(
            f"--held-out {held_out}: {both} of its {len(names)} patches are in the index that is trained on, so that copies would pass; "
            "name that of the other patches with --index, such as patch_names_train.hdf5"
        )
    check_counts(len(apart), len(training))
    return training, apart


def score(
    training: EmbeddingData, held_out: EmbeddingData, workdir: Path, seed: int, device: torch.device
) -> PriorScores:
    """Draw embeddings and compare them with held-out and training ones."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from diffusion.data.crops import tokens_per_image
    from diffusion.evaluation.prior_scores import EmbeddingSet, score_prior
    from diffusion.generation.priors import Prior
    from diffusion.model.flow import load_flow
    from diffusion.utils.seeds import mix_seed

    flow = load_flow(workdir).to(device)
    tokens_each = tokens_per_image(training.resolution)
    most = min(SCORED_IMAGES, SCORED_TOKENS // tokens_each)

    def read(data: EmbeddingData, count: int) -> EmbeddingSet:
        items = data.read_evenly(count)
        labels = None if data.classes is None else np.array([item.label for item in items])
        return EmbeddingSet(torch.stack([item.tokens for item in items]), labels)

    known = read(training, LOOKED_UP // tokens_each)
    real = read(held_out, most)
    prior, drawn, labels = Prior(flow), [], []
    seeds = [mix_seed(seed, number) for number in range(min(len(real), len(known)))]
    for start in tqdm(range(0, len(seeds), DRAWN_AT_ONCE), desc="drawing", leave=False):
        tokens, own = prior.draw(seeds[start : start + DRAWN_AT_ONCE])
        drawn.append(tokens)
        labels += own
    found = EmbeddingSet(torch.cat(drawn), np.array(labels) if flow.config.classes else None)
    return score_prior(found, real, known, total=len(training))


def print_scores(scores: PriorScores) -> None:
    """Print scores as a table, and the notes."""
    from diffusion.evaluation.prior_scores import SCORE_TITLES
    from diffusion.utils.text import format_number, format_table

    rows = [(title, format_number(scores.values[name])) for name, title in SCORE_TITLES if name in scores.values]
    print(format_table(rows, "lr"))
    print("\n".join(scores.notes))
