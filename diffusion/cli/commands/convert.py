"""pixcell convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import output_name, positive_int
from diffusion.cli.signature import Here, Option, checked


@checked
def convert(
    source: Annotated[
        Path,
        Option(
            ".ckpt, .pth, .safetensors, one of its shards or their index, a diffusers folder, or a folder of checkpoints",
            positional=True,
        ),
    ],
    target: Annotated[
        Path,
        Option("the file, or for diffusers the folder, to write; it must not be there", output_name, positional=True),
    ],
    to: Annotated[
        Literal["official", "safetensors", "diffusers", "controlnet", "lora", "flow"],
        Option(
            "the format to write; controlnet and lora: what a run has trained beside a network, as a folder; flow: a flow between "
            "embeddings, as safetensors"
        ),
    ],
    weights: Annotated[options.Weights, Here(group="")] = "ema",
    num_heads: Annotated[
        int | None, Option("heads of attention, where neither file nor width tells", positive_int)
    ] = None,
) -> None:
    """Convert weights between the formats that they come in, to the bit.

    These are the official torch file, safetensors, and the folder of diffusers. A ControlNet's folder is as released; an adapter's has
    the files of diffusers and of peft.

    Examples:
      pixcell convert pixcell_256.ckpt pixcell-256 --to diffusers
      pixcell convert output/256/checkpoints/last_ema.ckpt pixcell.safetensors --to safetensors
      pixcell convert output/256/checkpoints/step_00120000.ckpt raw.ckpt --to official --weights raw
      pixcell convert output/adapter stain_lora --to lora
      pixcell convert mist_er_mlp.pth mist_er.safetensors --to flow
    """
    from diffusion.model.reformat import ADDITIONS, check_target, convert_addition, convert_weights

    check_target(target, to)
    if to in ADDITIONS:
        print(f"{target}: {convert_addition(source, target, to, ema=weights == 'ema')}")
        return
    count, architecture = convert_weights(source, target, to, ema=weights == "ema", num_heads=num_heads)
    print(
        f"{target}: {count / 1e6:.2f} M values, {architecture['depth']} blocks of width {architecture['hidden_size']}"
    )
