"""Extract the two feature files of every indexed patch: VAE moments and patch embeddings.

Embeddings that pixcell import took over are left alone, and no encoder is loaded then: only latents are computed.
A patch whose two files are there and whole is passed over, so a run that was stopped, or killed, goes on where it was; under
`accelerate launch` the processes share the patches, however many they were before. A patch that cannot be read or encoded is
listed with the reason in features_wrong_<key>_<endings>.txt beside the index, and the exit code is then 1; --on_error raise stops at it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import natural_int, path_text, plain_name, positive_int, run, tool_parser
from diffusion.formats import DEFAULT_INDEX, DEFAULT_VAE, PRECISIONS, VAE_PREFIX
from diffusion.utils.hardware import count_cores, prepare_device
from diffusion.utils.launch import start_processes

if TYPE_CHECKING:
    from diffusion.extraction import Outcome

EXAMPLES = """  python tools/extract_features.py --dataset_name tcga_diagnostic --size 256
  accelerate launch tools/extract_features.py --dataset_name tcga_diagnostic --size 1024 --precision bf16 --batch_size 64
  python tools/extract_features.py --dataset_name demo --size 256 --vae tiny --encoder mobilenetv2"""


def main() -> int:
    args = parse_arguments()
    device = prepare_device(args.device)

    from tqdm import tqdm

    from diffusion.components import resolve_vae
    from diffusion.data.features.loose import features_folder
    from diffusion.data.index.patch_index import PatchIndex, index_path
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.encoders.latents import LatentCodec
    from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder
    from diffusion.extraction import (
        FeatureFiles,
        PatchDataset,
        choose_embeddings,
        choose_index_key,
        extract_features,
    )
    from diffusion.utils.hardware import torch_dtype
    from diffusion.utils.locks import file_lock

    path = index_path(args.root, args.patch_names_file)
    key, patch_size = choose_index_key(path, args.dataset_name, args.size)
    index = PatchIndex(path, [key])
    state = start_processes(device)
    device = state.device or device
    location = resolve_vae(args.vae, args.root)
    codec = LatentCodec.load(location, device, torch_dtype(args.vae_precision or args.precision))
    embedder, ssl_prefix, width = choose_embeddings(
        features_folder(args.root, args.features_dir),
        key,
        args.encoder,
        args.ssl_prefix,
        lambda: PatchEmbedder.load(
            args.encoder, device, torch_dtype(args.encoder_precision or args.precision), args.root
        ),
    )
    # features of one codec or encoder must never pass for those of another
    embedded = [name for name, folder in EMBEDDED_CODECS.items() if codec_folder(location).resolve() == folder]
    vae_prefix = args.vae_prefix or (f"{embedded[0]}_vae" if embedded else VAE_PREFIX)
    files = FeatureFiles(args.root, args.features_dir, patch_size, width, vae_prefix, ssl_prefix, embedder is None)
    if state.is_main_process:
        made_by = {
            vae_prefix: {"weights": codec.fingerprint, "window": args.size},
            ssl_prefix: {} if embedder is None else {"weights": embedder.fingerprint},
        }
        files.check_or_write_record(key, made_by)
    state.wait_for_everyone()

    windows = "whole" if patch_size == args.size else f"in windows of {args.size} pixels"
    source = f"*_{ssl_prefix}.npy as imported" if embedder is None else embedder.name
    state.print(f"{key}: {len(index)} patches of {patch_size} pixels, encoded {windows}; {codec.name}, {source}")
    patches = PatchDataset(index, files, state.process_index, state.num_processes)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
    workers = max(1, min(8, count_cores() // here - 1)) if args.workers is None else args.workers
    outcomes = extract_features(patches, codec, embedder, args.size, args.batch_size, workers)
    ours = path.with_name(f".features_{path.stem}_{key}_{vae_prefix}_{ssl_prefix}.lock")
    with closing(outcomes), file_lock(ours) if state.is_main_process else nullcontext():
        progress = tqdm(outcomes, total=len(patches), unit="patch", disable=not state.is_main_process)
        written, wrong = collect_outcomes(progress, args.on_error)
        state.wait_for_everyone()

    totals = gather_objects([(written, len(patches), wrong)])
    wrong = [each for _, _, part in totals for each in part]
    written, present = sum(part[0] for part in totals), sum(part[1] for part in totals) - len(wrong)
    state.print(f"{written} patches written, {present - written} were there, {len(wrong)} left out")
    state.print(f"in {files.folder}: *_{vae_prefix}.npy, *_{ssl_prefix}.npy")
    if state.is_main_process:
        write_errors(path.with_name(f"features_wrong_{key}_{vae_prefix}_{ssl_prefix}.txt"), wrong)
    return 1 if wrong else 0


def collect_outcomes(outcomes: Iterable[Outcome], on_error: str) -> tuple[int, list[tuple[str, str]]]:
    """Return how many patches were written, and those that could not be, each with the reason.

    Raises InputError at the first of these when on_error is "raise".
    """
    from tqdm import tqdm

    from diffusion.utils.errors import InputError

    written, wrong = 0, []
    for outcome in outcomes:
        written += outcome.written
        if outcome.error is None:
            continue
        if on_error == "raise":
            raise InputError(outcome.error)
        wrong.append((outcome.name, outcome.error))
        tqdm.write(f"left out: {outcome.error}", file=sys.stderr)
    return written, wrong


def gather_objects(values: list) -> list:
    """Return the values of all processes, in each of them."""
    from accelerate.utils import gather_object

    return gather_object(values)


def write_errors(path: Path, wrong: list[tuple[str, str]]) -> None:
    """Write which patches could not be extracted, one a line with the reason; without any, remove an earlier list."""
    from diffusion.utils.files import atomic_write

    if not wrong:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{name}\t{reason}\n" for name, reason in wrong), encoding="utf-8")
    print(f"listed: {path}")


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__ or "", EXAMPLES, draws=False)
    add = parser.add_argument
    add(
        "--dataset_name",
        required=True,
        help="data set of the index: its key <dataset_name>_<size>, else <dataset_name>_1024",
    )
    add("--size", type=positive_int, required=True, help="pixels of the windows that the VAE encodes at once")
    add("--patch_names_file", type=path_text, default=DEFAULT_INDEX, help="index in ROOT/patches/metadata")
    add(
        "--features_dir",
        type=path_text,
        help="folder below ROOT for the features, such as features; by default they go beside the images",
    )
    add(
        "--vae",
        default=DEFAULT_VAE,
        help="diffusers folder (below ROOT or here), or the embedded 'tiny'",
    )
    add("--encoder", default="uni2", help="uni2, mobilenetv2, a weights file or its folder, or name=path")
    add("--vae_prefix", type=plain_name, help="ending of the latent files [sd3_vae; of an embedded codec NAME_vae]")
    add("--ssl_prefix", type=plain_name, help="ending of the embedding files [uni for uni2, else the encoder's name]")
    add(
        "--batch_size",
        type=positive_int,
        default=16,
        help="windows per pass of a network; lower it when memory runs out [%(default)s]",
    )
    add("--precision", choices=PRECISIONS, default="fp32", help="of both networks [%(default)s]")
    add("--vae_precision", choices=PRECISIONS, help="of the VAE, where it differs")
    add("--encoder_precision", choices=PRECISIONS, help="of the encoder, where it differs")
    add(
        "--workers", type=natural_int, help="processes that decode images and test what is there [cores - 1, at most 8]"
    )
    add(
        "--on_error",
        choices=("skip", "raise"),
        default="skip",
        help="what to do with a patch that cannot be extracted: list it and go on, or stop [%(default)s]",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
