"""Extract the two feature files of every indexed patch: VAE moments and patch embeddings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli import pick_device, positive_int, run, start_processes, tool_parser

EXAMPLES = """  python tools/extract_features.py --dataset_name tcga_diagnostic --size 256
  accelerate launch tools/extract_features.py --dataset_name tcga_diagnostic --size 1024
  python tools/extract_features.py --dataset_name demo --size 256 --vae tiny --encoder mobilenetv2"""


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--dataset_name",
        required=True,
        help="data set of the index: its key <dataset_name>_<size>, else <dataset_name>_1024",
    )
    add("--size", type=positive_int, required=True, help="pixels of the windows that the VAE encodes at once")
    add("--patch_names_file", default="patch_names_all.hdf5", help="index in ROOT/patches/metadata")
    add(
        "--features_dir",
        help="folder below ROOT for the features, such as features; by default they go beside the images",
    )
    add(
        "--vae",
        default="pretrained_models/sd-3.5-vae",
        help="diffusers folder (below ROOT or here), or the embedded 'tiny'",
    )
    add("--encoder", default="uni2", help="uni2, mobilenetv2, a weights file or its folder, or name=path")
    add("--vae_prefix", help="ending of the latent files [sd3_vae; of an embedded codec NAME_vae]")
    add("--ssl_prefix", help="ending of the embedding files [uni for uni2, else the encoder's name]")
    add(
        "--batch_size",
        type=positive_int,
        help="windows per pass of a network; lower it when memory runs out [16; on a CPU 4]",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = pick_device(args.device)

    from tqdm import tqdm

    from diffusion.data.features import SSL_PREFIX, VAE_PREFIX, features_folder
    from diffusion.data.index import PatchIndex, index_path
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.encoders.latents import EMBEDDED_CODECS, LatentCodec, codec_folder
    from diffusion.engine.extract import FeatureFiles, choose_key, embed_patch, encode_patch, share
    from diffusion.workdir import vae_location

    path = index_path(args.root, args.patch_names_file)
    key, patch_size = choose_key(path, args.dataset_name, args.size)
    index = PatchIndex(path, [key])
    state = start_processes(device)
    # on a CPU, with the embedded networks and windows of 256 pixels, larger activations go back to the system after every
    # layer, which took half the time
    batch_size = args.batch_size or (4 if state.device.type == "cpu" else 16)
    location = vae_location(args.vae, args.root)
    codec = LatentCodec.load(location, state.device)
    embedder = PatchEmbedder.load(args.encoder, state.device, root=args.root)
    # features of one codec or encoder must never pass for those of another
    embedded = [name for name, folder in EMBEDDED_CODECS.items() if codec_folder(location).resolve() == folder]
    vae_prefix = args.vae_prefix or (f"{embedded[0]}_vae" if embedded else VAE_PREFIX)
    ssl_prefix = args.ssl_prefix or (SSL_PREFIX if embedder.name == "uni2" else embedder.name)
    files = FeatureFiles(args.root, args.features_dir, patch_size, embedder.width, vae_prefix, ssl_prefix)

    windows = "whole" if patch_size == args.size else f"in windows of {args.size} pixels"
    state.print(f"{key}: {len(index)} patches of {patch_size} pixels, encoded {windows}; {codec.name}, {embedder.name}")
    written, mine = 0, share(index, state.process_index, state.num_processes)
    for name in tqdm(mine.names, total=mine.count, unit="patch", disable=not state.is_main_process):
        if files.done(name):
            continue
        pixels = files.pixels(name)
        moments = encode_patch(pixels, codec, args.size, batch_size)
        files.write(name, moments, embed_patch(pixels, embedder, batch_size))
        written += 1
    state.wait_for_everyone()
    of_this_process = " (of this process)" if state.num_processes > 1 else ""
    state.print(f"{written} patches written, {mine.count - written} were there{of_this_process}")
    state.print(f"in {features_folder(args.root, args.features_dir)}: *_{vae_prefix}.npy, *_{ssl_prefix}.npy")


if __name__ == "__main__":
    run(main)
