"""Sample 256-pixel images from a trained run, conditioned on random patches of its index, beside those patches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli import finite_float, pick_device, positive_int, run, start_processes, tool_parser
from diffusion.errors import InputError

SIZE = 256
ALGORITHMS = ("dpm-solver", "ddim", "iddpm", "sa-solver")
EXAMPLES = """  python tools/sample_256.py --workdir output/256 --checkpoint checkpoints/last_ema.ckpt --out_dir samples_256 \\
      --n_images 5000 --sampling_steps 20 --guidance_strength 2 --sampling_algo dpm-solver
  accelerate launch tools/sample_256.py --workdir output/256 --n_images 50000"""


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, root_of_run=True)
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="work dir of the training run")
    add(
        "--checkpoint",
        type=Path,
        default="checkpoints/last_ema.ckpt",
        help="weights; a relative path is below the work dir",
    )
    add("--out_dir", type=Path, default="samples_256", help="gets real/ and syn/ with the same file names")
    add("--n_images", type=positive_int, default=5000, help="how many")
    add("--batch_size", type=positive_int, default=16, help="images per pass; an image does not depend on it")
    add("--sampling_steps", type=positive_int, default=20, help="steps of the solver")
    add(
        "--guidance_strength",
        type=finite_float,
        default=2.0,
        help="null + w * (conditional - null); 1 is none and runs no null pass",
    )
    add("--sampling_algo", choices=ALGORITHMS, default="dpm-solver", help="the solver")
    add("--data_root", type=Path, help="folder of patches/ and features/ [--root if given, else the run's]")
    add("--patch_names_file", help="index of the patches that condition [the run's]")
    add("--features_dir", help="folder of their features below the root, such as patches or packed [the run's]")
    add("--subset_keys", nargs="+", help="keys of that index [the run's]")
    add("--vae", help="diffusers folder or embedded name that decodes [the run's]")
    add("--format", choices=("png", "jpeg"), default="png", help="png is lossless; never score jpeg")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = pick_device(args.device)

    import dataclasses

    from tqdm import tqdm

    from diffusion.engine.generate import Folder, ImageMaker, open_conditions
    from diffusion.workdir import load_codec, open_run

    state = start_processes(device)
    trained = open_run(args.workdir, args.checkpoint, state.device)
    config = trained.config
    if config.image_size != SIZE:
        raise InputError(f"{args.workdir} was trained at {config.image_size} pixels: this tool samples {SIZE}")
    if args.vae:  # its own scale goes with it
        config = dataclasses.replace(config, vae_pretrained=args.vae, scale_factor=None, shift_factor=None)
    root = args.data_root or args.root or config.data_root
    arguments = {**config.data_arguments, "root": root}
    for name in ("patch_names_file", "features_dir"):
        arguments[name] = getattr(args, name) or arguments[name]
    conditions = open_conditions(arguments, args.subset_keys)
    codec = load_codec(config, state.device, args.root or config.data_root)
    make = ImageMaker(
        trained, codec, conditions, args.seed, args.sampling_steps, args.guidance_strength, args.sampling_algo
    )

    folder = Folder(args.out_dir, args.format)
    settings = {
        name: getattr(args, name) for name in ("seed", "sampling_steps", "guidance_strength", "sampling_algo", "format")
    }
    settings |= {
        "checkpoint": str(trained.checkpoint.resolve()),
        "checkpoint_time": trained.checkpoint.stat().st_mtime_ns,
    }
    settings |= {"index": str(conditions.index.path.resolve()), "keys": conditions.index.keys, "vae": codec.name}
    todo = folder.missing(args.n_images)
    if state.is_main_process:
        folder.claim(settings)
    state.print(
        f"{args.n_images - len(todo)} of {args.n_images} images are there; sampling {len(todo)} on {state.device}"
    )
    state.wait_for_everyone()  # every process has looked before one of them writes
    mine = todo[state.process_index :: state.num_processes]
    with tqdm(total=len(mine), unit="image", disable=not state.is_main_process) as progress:
        for first in range(0, len(mine), args.batch_size):
            for i, item, pixels in make.images(mine[first : first + args.batch_size]):
                folder.write(i, item, pixels)
                progress.update()
    state.wait_for_everyone()
    state.print(f"{args.n_images} images in {args.out_dir}/real and {args.out_dir}/syn")


if __name__ == "__main__":
    run(main)
