"""Convert weights between the formats they come in: official torch file, safetensors, diffusers folder; to the bit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import output_name, positive_int, run, tool_parser
from diffusion.formats import TORCH_SUFFIXES
from diffusion.utils.errors import InputError

EXAMPLES = """  python tools/convert_checkpoint.py pixcell_256.ckpt pixcell-256 --to diffusers
  python tools/convert_checkpoint.py output/256/checkpoints/last_ema.ckpt pixcell.safetensors --to safetensors
  python tools/convert_checkpoint.py output/256/checkpoints/step_00120000.ckpt raw.ckpt --to official --weights raw"""
SUFFIXES = {"official": TORCH_SUFFIXES, "safetensors": (".safetensors",), "diffusers": ()}


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, networks=False, draws=False)
    add = parser.add_argument
    add(
        "source",
        type=Path,
        help=".ckpt, .pth, .safetensors, one of its shards or their index, a diffusers folder, or a folder of checkpoints",
    )
    add("target", type=output_name, help="the file, or for diffusers the folder, to write; it must not be there")
    add("--to", choices=tuple(SUFFIXES), required=True, help="the format to write")
    add("--weights", choices=("ema", "raw"), default="ema", help="of a checkpoint that holds both: averaged or raw")
    add("--num_heads", type=positive_int, help="heads of attention, where neither file nor width tells")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    own = SUFFIXES[args.to]
    foreign = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} - set(own)
    if args.target.suffix not in own if own else args.target.suffix in foreign:
        wanted = f"a {' or '.join(own)} file" if own else "a folder"
        raise InputError(f"{args.target}: --to {args.to} writes {wanted}; name one")

    from diffusion.model.convert import load_weights, save_diffusers, save_official, save_safetensors
    from diffusion.model.matching import check_fit
    from diffusion.model.pixart import PixArt

    weights = load_weights(args.source, ema=args.weights == "ema")
    architecture = dict(weights.architecture)
    if args.num_heads is not None:
        if weights.metadata.get("num_heads", args.num_heads) != args.num_heads:
            raise InputError(
                f"{args.source} says that it has {weights.metadata['num_heads']} heads, not {args.num_heads}"
            )
        architecture["num_heads"] = args.num_heads
    if "num_heads" not in architecture:
        width = architecture["hidden_size"]
        raise InputError(f"{args.source} does not say how many heads attention has (width {width}); give --num_heads")
    model = PixArt(**architecture)
    check_fit(model.state_dict(), weights.state_dict, args.source)
    model.load_state_dict(weights.state_dict, assign=True)  # the very tensors, whatever the type of each
    save = {"official": save_official, "safetensors": save_safetensors, "diffusers": save_diffusers}[args.to]
    prediction_type = weights.prediction_type
    save(model, args.target, prediction_type)
    count = sum(tensor.numel() for tensor in weights.state_dict.values())
    print(
        f"{args.target}: {count / 1e6:.2f} M values, {architecture['depth']} blocks of width {architecture['hidden_size']}"
    )


if __name__ == "__main__":
    run(main)
