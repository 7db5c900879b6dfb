"""pixcell features."""

from __future__ import annotations

from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import natural_int, path_text, plain_name
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import DEFAULT_INDEX, DEFAULT_VAE, PRECISIONS


@checked
def features(
    dataset: Annotated[
        options.Dataset, Here(note=f"{options.A_KEY}; of one without patches of --size, those of 1024 pixels are taken")
    ],
    size: Annotated[options.Size, Here(note=" of the windows that the codec encodes at once")],
    index: options.DataIndex = DEFAULT_INDEX,
    features: Annotated[
        str | None, Option(f"{options.FEATURES} [beside the images]", path_text, metavar="FOLDER")
    ] = None,
    vae: Annotated[str, Option(options.CODEC, completes="folder")] = DEFAULT_VAE,
    encoder: Annotated[str, Option(options.ENCODER, completes="file")] = "uni2",
    latent_suffix: Annotated[
        str | None, Option(f"{options.LATENTS} [sd3_vae; of an embedded codec NAME_vae]", plain_name)
    ] = None,
    embedding_suffix: Annotated[
        str | None, Option(f"{options.EMBEDDINGS} [uni for uni2, else the encoder's name]", plain_name)
    ] = None,
    on_error: options.OnError = "skip",
    root: options.Root = None,
    batch_size: options.BatchSize = 16,
    precision: options.Precision = "fp32",
    vae_precision: Annotated[
        str | None, Option("of the codec, where it differs", choices=PRECISIONS, group=options.MACHINE)
    ] = None,
    encoder_precision: Annotated[
        str | None, Option("of the encoder, where it differs", choices=PRECISIONS, group=options.MACHINE)
    ] = None,
    workers: Annotated[
        int | None,
        Option(
            f"{options.WORKERS} [cores - 1, at most 8]", natural_int, group=options.MACHINE, note=options.NO_WORKERS
        ),
    ] = None,
    device: options.Device = "auto",
) -> int:
    """Extract latents and embeddings of every indexed patch.

    They are two files a patch. Patches of --size pixels are encoded whole; of a data set that has none in the index, those of 1024
    pixels are, in windows of --size. Embeddings that pixcell import took over are left alone, and no encoder is loaded then. A
    patch whose two files are there and whole is passed over, so a run that was stopped, or killed, goes on where it was; under
    `accelerate launch` the processes share the patches, however many they were before. A patch that cannot be read or encoded is
    listed with the reason in features_wrong_<key>_<endings>.txt beside the index, and the exit code is then 1; --on-error raise
    stops at it.

    Examples:
      pixcell features --dataset tcga_diagnostic --size 256
      accelerate launch -m pixcell features --dataset tcga_diagnostic --size 1024 --precision bf16 --batch-size 64
      pixcell features --dataset demo --size 256 --vae tiny --encoder mobilenetv2
    """
    import os
    from contextlib import closing, nullcontext

    from diffusion.utils.hardware import count_cores, prepare_device, torch_dtype
    from diffusion.utils.launch import start_processes
    from diffusion.utils.text import default_root

    torch_device = prepare_device(device)

    from tqdm import tqdm

    from diffusion.components import resolve_vae
    from diffusion.data.features.loose import features_folder
    from diffusion.data.index.patch_index import PatchIndex, index_path
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.encoders.latents import LatentCodec
    from diffusion.extraction import (
        FeatureFiles,
        PatchDataset,
        choose_embeddings,
        choose_index_key,
        collect_outcomes,
        default_latent_suffix,
        extract_features,
    )
    from diffusion.utils.files import write_faults
    from diffusion.utils.locks import file_lock

    root = root or default_root()
    path = index_path(root, index)
    key, patch_size = choose_index_key(path, dataset, size)
    patch_index = PatchIndex(path, [key])
    state = start_processes(torch_device)
    torch_device = state.device or torch_device
    location = resolve_vae(vae, root)
    codec = LatentCodec.load(location, torch_device, torch_dtype(vae_precision or precision))
    embedder, embeddings, width = choose_embeddings(
        features_folder(root, features),
        key,
        encoder,
        embedding_suffix,
        lambda: PatchEmbedder.load(encoder, torch_device, torch_dtype(encoder_precision or precision), root),
    )
    latents = latent_suffix or default_latent_suffix(location)
    files = FeatureFiles(root, features, patch_size, width, latents, embeddings, embedder is None)
    if state.is_main_process:
        made_by = {
            latents: {"weights": codec.fingerprint, "window": size},
            embeddings: {} if embedder is None else {"weights": embedder.fingerprint},
        }
        files.check_or_write_record(key, made_by)
    state.wait_for_everyone()

    windows = "whole" if patch_size == size else f"in windows of {size} pixels"
    source = f"*_{embeddings}.npy as imported" if embedder is None else embedder.name
    state.print(f"{key}: {len(patch_index)} patches of {patch_size} pixels, encoded {windows}; {codec.name}, {source}")
    patches = PatchDataset(patch_index, files, state.process_index, state.num_processes)
    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
        workers = max(1, min(8, count_cores() // here - 1))
    outcomes = extract_features(patches, codec, embedder, size, batch_size or 16, workers)
    ours = path.with_name(f".features_{path.stem}_{key}_{latents}_{embeddings}.lock")
    with closing(outcomes), file_lock(ours) if state.is_main_process else nullcontext():
        progress = tqdm(outcomes, total=len(patches), unit="patch", disable=not state.is_main_process)
        written, wrong = collect_outcomes(progress, stop=on_error == "raise")
        state.wait_for_everyone()

    from accelerate.utils import gather_object

    totals = gather_object([(written, len(patches), wrong)])  # of all processes
    wrong = [each for _, _, part in totals for each in part]
    written, present = sum(part[0] for part in totals), sum(part[1] for part in totals) - len(wrong)
    state.print(f"{written} patches written, {present - written} were there, {len(wrong)} left out")
    state.print(f"in {files.folder}: *_{latents}.npy, *_{embeddings}.npy")
    if state.is_main_process:
        listing = path.with_name(f"features_wrong_{key}_{latents}_{embeddings}.txt")
        write_faults(listing, wrong)
        if wrong:
            print(f"listed: {listing}")
    return 1 if wrong else 0
