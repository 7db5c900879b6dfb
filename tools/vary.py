"""Variations of given patches: images sampled for their embeddings, and between two of them, as one labelled picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import natural_int, output_file, run
from diffusion.cli.sampling_options import sampler_parser, session_arguments, solver_arguments
from diffusion.utils.errors import InputError

EXAMPLES = """  python tools/vary.py tissue.png --workdir output/256 --variations 6
  python tools/vary.py tumour.png stroma.png --workdir output/1024 --between 7 --out variations.png"""


def parse_arguments() -> argparse.Namespace:
    parser = sampler_parser(__doc__ or "", EXAMPLES, batch=(4, "images"))
    add = parser.add_argument
    add("images", type=Path, nargs="+", help="image files; of those larger than the network's size, the middle")
    add("--out", type=output_file, default="variations.png", help="the picture to write")
    add("--variations", type=natural_int, default=4, help="images sampled for each")
    add("--between", type=natural_int, help="images on the way from the first to the second of two; 0: none [5 of two]")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    between = args.between if args.between is not None else 5 if len(args.images) == 2 else 0
    if between and (len(args.images) != 2 or between == 1):
        raise InputError("--between: expected two images, and two or more from one to the other")
    if not args.variations and not between:
        raise InputError("nothing to sample: give --variations, or two images and --between")

    import torch
    from tqdm import tqdm

    from diffusion.condition import Condition
    from diffusion.generation.conditions import NamedCondition, load_image_conditions, slerp
    from diffusion.generation.generators import ImageMaker
    from diffusion.generation.image_files import image_kind, labelled_grid, save_image
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver

    image_kind(args.out)  # better now than after all is sampled
    session = open_session(**session_arguments(args), solver=Solver(**solver_arguments(args)))
    originals = load_image_conditions(args.images, session.embedder, session.run.config.image_size)
    # Column by column the same noise, so that what differs within a column is the condition's doing.
    jobs = [(original, f"variation {n}", n) for original in originals for n in range(args.variations)]
    for part in torch.linspace(0, 1, between).tolist():
        first, second = (original.condition.tokens for original in originals)
        jobs.append((NamedCondition("", Condition(slerp(first, second, part))), f"{part:.2f} of the way", 0))
    make = ImageMaker(session.run, session.codec, [condition for condition, _, _ in jobs], args.seed, session.solver)
    sampled: list[torch.Tensor] = []
    with tqdm(total=len(jobs), unit="image") as progress:
        for start in range(0, len(jobs), args.batch_size):
            batch = range(start, min(start + args.batch_size, len(jobs)))
            for _, _, pixels in make.images(list(batch), noises=[jobs[i][2] for i in batch]):
                sampled.append(pixels)
                progress.update()

    rows = []
    for i, original in enumerate(originals):
        mine = slice(i * args.variations, (i + 1) * args.variations)
        labels = [label for _, label, _ in jobs[mine]]
        rows.append([(original.name, original.pixels), *zip(labels, sampled[mine], strict=True)])
    path = slice(len(originals) * args.variations, None)
    if jobs[path]:
        rows.append(list(zip([label for _, label, _ in jobs[path]], sampled[path], strict=True)))
    save_image(
        args.out,
        labelled_grid(rows),
        {**session.image_metadata(0), "condition": [original.name for original in originals]},
    )
    print(f"{len(jobs)} images, written: {args.out}")


if __name__ == "__main__":
    run(main)
