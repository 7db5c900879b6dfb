"""Train PixCell: accelerate launch train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --work-dir OUT"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import DEVICES, Parser, positive_float, positive_int, run, seed_int
from diffusion.config.files import load_config, parse_override
from diffusion.config.settings import TrainingConfig
from diffusion.training.parallel.preemption import CODE_FILE, EXIT_CODE
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import start_processes

EXAMPLES = """  accelerate launch train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --work-dir output/256
  accelerate launch train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --work-dir output/256 --time-limit 470
  python train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --dry-run
  python train_scripts/train_pixcell.py configs/demo/demo_256.py --device cpu --set max_steps=10 optimizer.lr=1e-4"""


LONGEST_WAIT = timedelta(minutes=30)  # of a process for another: a lost machine is noticed after so long


def parse_arguments() -> argparse.Namespace:
    parser = Parser("Train a diffusion transformer on the latents and embeddings of indexed patches.", EXAMPLES)
    parser.add_argument("config", type=Path, help="a Python config file; configs/_base_.py explains every key")
    parser.add_argument("--work-dir", help="where checkpoints, curves and samples go [output/<name of the config>]")
    parser.add_argument(
        "--root", help="folder of patches/ and features/ [the config's, else $PIXCELL_ROOT, else the current folder]"
    )
    parser.add_argument(
        "--resume-from",
        metavar="X",
        help="go on from a checkpoint file, or the newest whole one of a folder [auto: of the work dir, if it has a run]",
    )
    parser.add_argument("--fresh", action="store_true", help="start a new run: an error when the work dir has one")
    parser.add_argument(
        "--accept-changes",
        "--accept_changes",
        action="store_true",
        help="go on with another global batch, seed or data set than the run was begun with",
    )
    parser.add_argument(
        "--time_limit",
        "--time-limit",
        type=positive_float,
        metavar="MINUTES",
        help=f"save, stop and exit with code {EXIT_CODE} after so long; the same command goes on",
    )
    parser.add_argument(
        "--load-from",
        metavar="X",
        help="start a new run from these weights: .ckpt, .pth, .safetensors or a diffusers folder",
    )
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="samples per process and step")
    parser.add_argument(
        "--report_to", "--report-to", choices=("tensorboard", "none"), help="where curves and pictures go"
    )
    parser.add_argument("--seed", type=seed_int, help="of weights, data order and noise")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: what accelerate finds")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any other keys of the config, such as max_steps=10 optimizer.lr=1e-4",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config, data and weights, say what the run would be, write nothing",
    )
    return parser.parse_args()


def read_settings(args: argparse.Namespace, kinds: Mapping[str, type[TrainingConfig]]) -> TrainingConfig:
    """Return the settings of the config file, with those of the command line on top."""
    options = {
        "work_dir": args.work_dir,
        "root": args.root,
        "data.root": args.root,
        "resume_from": args.resume_from,
        "load_from": args.load_from,
        "train_batch_size": args.batch_size,
        "report_to": args.report_to,
        "seed": args.seed,
    }
    overrides = {key: value for key, value in options.items() if value is not None}
    return load_config(args.config, overrides | dict(parse_override(text) for text in args.set), kinds)


def main() -> int:
    args = parse_arguments()
    device = prepare_device(args.device)
    state = start_processes(device, LONGEST_WAIT)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusion").setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    with state.main_process_first():  # yapf, of mmengine, writes a cache when first imported
        from diffusion.tasks.registry import CONFIGS, build_task

        config = read_settings(args, CONFIGS)
    work_dir = Path(config.work_dir or Path("output") / args.config.stem)

    from tqdm.contrib.logging import logging_redirect_tqdm

    from diffusion.training.trainer import dry_run, train

    cpu = device.type == "cpu"
    if args.dry_run:
        state.print(
            dry_run(config, build_task(config), work_dir, state.num_processes, cpu, args.fresh, args.accept_changes)
        )
        state.print(f"would write to {work_dir}; nothing was written")
        state.destroy_process_group()
        return 0
    with logging_redirect_tqdm():
        finished = train(config, build_task(config), work_dir, cpu, args.fresh, args.accept_changes, args.time_limit)
    state.destroy_process_group()
    code = 0 if finished else EXIT_CODE
    if CODE_FILE in os.environ:
        atomic_write_bytes(Path(os.environ[CODE_FILE]), f"{code}\n".encode())
    return code


if __name__ == "__main__":
    run(main)
