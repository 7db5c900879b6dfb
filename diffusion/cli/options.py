"""The options of all commands: each has one name, one type and one help text, and this is its home.

An alias is named after its parameter: `batch_size: BatchSize` is `--batch-size`. A command gives the default; where that is
None, the help ends with what holds, in [brackets]: that may differ between commands, as may a note, and the text before may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli.parser import (
    finite_float,
    fraction,
    jpeg_quality,
    natural_int,
    noise_interval,
    output_file,
    output_folder,
    path_text,
    plain_name,
    positive_float,
    positive_int,
    seed_int,
    step_spacing,
)
from diffusion.cli.signature import Here, Option
from diffusion.formats import ALL_METRICS, DEFAULT_SOLVER, DEFAULT_STEPS, MARKERS, PRECISIONS, SIZE_POLICIES, SOLVERS

SAMPLING, CONDITIONS, CONTROL, SCORING, TRAINING, DATA, MACHINE = (
    "sampling",
    "conditions",
    "control",
    "scoring",
    "training",
    "data",
    "machine",
)
ENCODER_NAMES = (
    "uni2, mobilenetv2, inception, a weights file or its folder, NAME=FILE, timm/NAME=FILE, torchvision/NAME=FILE"
)
DATASET = "data set: the first folder of its patches; its keys in the index are <dataset>_<size>"
A_KEY = ", and such a key is understood, too"
INDEX = "index of patches, in ROOT/patches/metadata"
FEATURES = "folder of the features below ROOT, such as features or packed"
LATENTS = "ending of the latent files"
EMBEDDINGS = "ending of the embedding files"
CODEC = "diffusers folder or embedded name of the codec"
IMAGES = "images instead of indexed patches"
SOURCE = "where the images come from"
ENCODER = "embedder of images: uni2, mobilenetv2, a weights file or its folder, or NAME=FILE"

# ---- places and the machine
Root = Annotated[
    Path | None,
    Option(
        "folder of patches/, features/ and pretrained_models/ [$PIXCELL_ROOT, else the current folder]",
        completes="folder",
    ),
]
RootOfRun = Annotated[Root, Here("the run's, else $PIXCELL_ROOT, else the current folder")]
Workdir = Annotated[
    Path | None,
    Option(
        "work dir of a training run, or, where nothing is trained, released weights [$PIXCELL_WORKDIR, else the newest run in ./output]",
    ),
]
NANO_NOTE = "; or nano, the small network that comes with pixcell"
OUT = "where to write"
OutFolder = Annotated[Path, Option(OUT, output_folder, metavar="FOLDER")]
OutFile = Annotated[Path, Option(OUT, output_file, metavar="FILE")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Option("where the networks run; auto takes cuda, then mps, then cpu", group=MACHINE),
]
Gpu = Annotated[
    int | None,
    Option("which GPU, of several [the first, or what accelerate gives each process]", natural_int, group=MACHINE),
]
Precision = Annotated[str, Option("of the networks; fp16 needs a GPU", choices=PRECISIONS, group=MACHINE)]
Compile = Annotated[
    bool,
    Option("compile the network: some 15 s, and a C++ compiler, for faster images on a GPU", group=MACHINE),
]
BatchSize = Annotated[
    int | None,
    Option(
        "samples, images or windows in one pass of a network, in each process; nothing but training depends on it",
        positive_int,
        group=MACHINE,
    ),
]
BUSY = "as many as keep the device busy"
WORKERS = "processes, or threads, that read at once"
NO_WORKERS = "; 0: none beside this process"
Workers = Annotated[int, Option(WORKERS, natural_int, group=MACHINE, note=NO_WORKERS)]
WorkersPerCore = Annotated[int | None, Option(f"{WORKERS} [one per core]", positive_int, group=MACHINE)]
Seed = Annotated[int, Option("of everything random", seed_int)]

# ---- the run and the solver
_CHECKPOINT = Option("weights; a relative path is below the work dir", group=SAMPLING)
Checkpoint = Annotated[Path, _CHECKPOINT]
SeveralCheckpoints = Annotated[Sequence[Path], _CHECKPOINT]
Weights = Annotated[Literal["ema", "raw"], Option("of a checkpoint that holds both: averaged or raw", group=SAMPLING)]
Count = Annotated[int | None, Option("how many", positive_int)]
_STEPS = "steps of the solver"
Steps = Annotated[
    int | None, Option(f"{_STEPS} [{DEFAULT_STEPS}, or the usual ones of a student]", positive_int, group=SAMPLING)
]
SeveralSteps = Annotated[
    Sequence[int], Option(f"{_STEPS} [{DEFAULT_STEPS}, or all of a student]", positive_int, group=SAMPLING)
]
_STRENGTH = "null + w * (conditional - null); 1 is none and runs no null pass"
Guidance = Annotated[
    float | None,
    Option(
        f"{_STRENGTH} [the run's sample_grid.guidance, 2 by default; a student has its own]",
        finite_float,
        metavar="W",
        group=SAMPLING,
    ),
]
SeveralGuidances = Annotated[Sequence[float], Option(_STRENGTH, finite_float, metavar="W", group=SAMPLING)]
_INTERVAL = "noise levels, std of noise over std of signal, between which to guide; no null pass elsewhere"
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    Option(f"{_INTERVAL} [0.01 to 157]", finite_float, metavar=("LO", "HI"), group=SAMPLING),
]
SeveralIntervals = Annotated[
    Sequence[tuple[float, float] | None],
    Option(f"{_INTERVAL} [all]", noise_interval, metavar="LO:HI", group=SAMPLING, note=", or all"),
]
ControlNet = Annotated[
    Path | None,
    Option(
        "a ControlNet to steer the network by: a run that trained one, a checkpoint of it, or a released folder [the run's, if it "
        "has one]",
        group=CONTROL,
    ),
]
Control = Annotated[
    Sequence[Path],
    Option("masks, or images, to control by: files and folders of them [those of the index, if the run has any]",
           metavar="PATH", group=CONTROL),
]  # fmt: skip
Lora = Annotated[
    Sequence[str],
    Option(
        "adapters to sample with, each with how much it counts: a run that trained one, a file, or a folder of peft or diffusers",
        metavar="FILE[:SCALE]",
        group=SAMPLING,
    ),
]
Flow = Annotated[
    Path | None,
    Option(
        "a flow from H&E's embeddings to the other stain's: a run of the task embedding_flow, or a released .pth [none]",
        group=SAMPLING,
    ),
]
Strength = Annotated[
    float | None,
    Option(
        "share of the solver's steps that are taken, from the picture with noise on: 1 keeps nothing of it",
        fraction,
        group=SAMPLING,
    ),
]
WindowStride = Annotated[
    int | None,
    Option(
        "cells of the latents, 8 pixels each, from one window to the next [half the network's, 64 at 1024 pixels]",
        positive_int,
        group=SAMPLING,
    ),
]
Prior = Annotated[
    Path | None,
    Option(
        "a prior that draws embeddings, instead of tissue that conditions: a run of pixcell prior [none]",
        group=CONDITIONS,
    ),
]
Classes = Annotated[
    Sequence[str],
    Option(
        "classes of the prior to draw from [all, as often as in its training set]", metavar="NAME", group=CONDITIONS
    ),
]
_CONTROL_SCALE = Option("how much the control counts; 0: not at all", finite_float, metavar="S", group=CONTROL)
ControlScale = Annotated[float, _CONTROL_SCALE]
SeveralControlScales = Annotated[Sequence[float], _CONTROL_SCALE]
ControlInterval = Annotated[
    tuple[float, float] | None,
    Option(
        "noise levels, std of noise over std of signal, between which to control [0.01 to 157]",
        finite_float,
        metavar=("LO", "HI"),
        group=CONTROL,
    ),
]
ControlInNull = Annotated[
    bool, Option("control guidance's null pass, too, which released ControlNets were not trained for", group=CONTROL)
]
_SOLVER = Option(f"the solver [{DEFAULT_SOLVER}, or that of a student]", choices=SOLVERS, group=SAMPLING)
Solver = Annotated[str | None, _SOLVER]
SeveralSolvers = Annotated[Sequence[str], _SOLVER]
_AUTOGUIDANCE = Option(
    "a weaker network that guides instead of the null condition: an older checkpoint of the run, or another run [none]",
    metavar="CHECKPOINT",
    group=SAMPLING,
)
Autoguidance = Annotated[Path | None, _AUTOGUIDANCE]
SeveralAutoguidances = Annotated[Sequence[str], _AUTOGUIDANCE]
_BLOCK_CACHE = Option(
    "steps that predict from earlier ones what the blocks add: balanced, every second; fast, two of three; or a schedule.json",
    metavar="NAME",
    group=SAMPLING,
)
BlockCache = Annotated[str, _BLOCK_CACHE]
SeveralBlockCaches = Annotated[Sequence[str], _BLOCK_CACHE]
_SPACING = Option(
    "where the steps lie: uniform in time, karras or karras:RHO by noise level, power:P, log-snr, or timesteps such as 999,750,500,250 "
    "[uniform, or that of a student]",
    step_spacing,
    group=SAMPLING,
)
Spacing = Annotated[str | None, _SPACING]
SeveralSpacings = Annotated[Sequence[str], _SPACING]
Vae = Annotated[str | None, Option(f"{CODEC} [the run's]", group=SAMPLING, completes="folder")]
Encoder = Annotated[
    str | None,
    Option(f"{ENCODER} [the one that the run's features came from]", group=CONDITIONS, completes="file"),
]

# ---- what conditions
Images = Annotated[
    Sequence[Path], Option(IMAGES, metavar="FILE", group=CONDITIONS, note=": files that condition, embedded now")
]
_TOKENS = "embeddings that condition, as .npy"
Tokens = Annotated[
    Sequence[Path],
    Option(
        _TOKENS,
        metavar="FILE",
        group=CONDITIONS,
        note="; each (L, D), or several as (n, L, D); L is (side / 256) squared",
    ),
]
TokenGrid = Annotated[
    Path | None,
    Option(_TOKENS, metavar="FILE", group=CONDITIONS, note="; one file, (height / 256, width / 256, D)"),
]
DataRoot = Annotated[
    Path | None,
    Option("folder of patches/ and features/ [--root if given, else the run's]", group=CONDITIONS, completes="folder"),
]
Index = Annotated[
    str | None,
    Option(f"{INDEX} [the run's, else patch_names_all.hdf5]", path_text, group=CONDITIONS),
]
Features = Annotated[
    str | None,
    Option(
        f"{FEATURES} [the run's, else beside the images]",
        path_text,
        group=CONDITIONS,
    ),
]
Datasets = Annotated[
    Sequence[str] | None,
    Option(f"{DATASET} [the keys that the run was trained on, or all]", metavar="NAME", group=CONDITIONS, note=A_KEY),
]
_FORMAT = "of the images"
ImageFormat = Annotated[
    Literal["png", "jpeg"], Option(_FORMAT, group=SAMPLING, note="; png is lossless, never score jpeg")
]
LargeFormat = Annotated[
    Literal["auto", "png", "tiff"],
    Option(_FORMAT, group=SAMPLING, note="; both are lossless; auto: png up to 8192 pixels a side, then tiff"),
]

# ---- data sets
Dataset = Annotated[str, Option(DATASET, plain_name, metavar="NAME")]
Size = Annotated[int, Option("pixels a side", positive_int)]
IndexedDataset = Annotated[Dataset, Here(note=A_KEY)]
NewDatasets = Annotated[Sequence[str] | None, Option(f"{DATASET} [all]", metavar="NAME")]
AnyDatasets = Annotated[NewDatasets, Here(note=A_KEY)]
DataIndex = Annotated[str, Option(INDEX, path_text, metavar="FILE")]
DataFeatures = Annotated[
    str | None,
    Option(f"{FEATURES} [beside the images, else features, else packed]", path_text, metavar="FOLDER"),
]
LatentSuffix = Annotated[str, Option(LATENTS, plain_name)]
EmbeddingSuffix = Annotated[str, Option(EMBEDDINGS, plain_name)]
MaskSuffix = Annotated[
    str | None, Option("ending of the masks, where there are some, such as mask [none are read]", plain_name)
]
ControlSuffix = Annotated[
    str | None,
    Option(
        "ending of the latents of control images, where there are some, such as mask_sd3_vae [none are read]",
        plain_name,
    ),
]
OnError = Annotated[
    Literal["raise", "skip"],
    Option("at a patch that cannot be read or written: stop, or leave it out, name it, and go on"),
]

COHORT = "folder below the data set, such as an organ"
Cohort = Annotated[str, Option(COHORT, plain_name)]
JpegQuality = Annotated[int, Option("JPEG quality, without colour subsampling", jpeg_quality)]
Stride = Annotated[
    int | None,
    Option("pixels from one patch to the next; less than --size makes them overlap [--size]", positive_int),
]
Area = Annotated[
    tuple[float, float, float, float],
    Option(
        "part of each slide to take, as fractions of its width and height; patches lie wholly inside [0 0 1 1]",
        metavar=("X0", "Y0", "X1", "Y1"),
    ),
]
TissueThreshold = Annotated[float, Option("part of a patch that must be tissue", fraction)]
MaxBlur = Annotated[
    float,
    Option("blur above which a patch counts as out of focus, by Crete-Roffet's measure; 1 keeps all", fraction),
]

# ---- scores
Real = Annotated[
    Path | None,
    Option("folder of real images to score against; where nothing is sampled, also a file of their features"),
]
Encoders = Annotated[
    Sequence[str],
    Option(f"{ENCODER_NAMES} [mobilenetv2]", metavar="ENCODER", group=SCORING, completes="file"),
]
OnSize = Annotated[
    str,
    Option(
        "images that are not 256 x 256: refuse them, resize the square in their middle, or score their windows of 256",
        choices=SIZE_POLICIES,
        group=SCORING,
    ),
]
Strict = Annotated[
    bool, Option("refuse images that cannot be read, instead of leaving them out and naming them", group=SCORING)
]
Cache = Annotated[
    Path | None,
    Option(
        "folder that keeps features, which runs may share [OUT/features]", output_folder, metavar="DIR", group=SCORING
    ),
]
Metrics = Annotated[
    Sequence[str],
    Option(
        "fd_infinity: FD extrapolated to infinitely many images; prdc: precision, recall, density, coverage; "
        "similarity: of pairs; neighbours: the nearest training images; cells: nuclei, stains and masks; stain: virtual "
        "immunohistochemistry against real images of the same names [all that applies, without stain]",
        choices=ALL_METRICS,
        group=SCORING,
    ),
]
Bootstrap = Annotated[
    int, Option("replicates for the interval of a distance; 0: no interval", natural_int, group=SCORING)
]

RealNuclei = Annotated[
    Path | None,
    Option(
        "folder of label images or outlines of the nuclei in the real images, under the same names [found by their stain]",
        metavar="DIR",
        group=SCORING,
    ),
]
SyntheticNuclei = Annotated[
    Path | None,
    Option("the same of the synthetic images [found by their stain]", metavar="DIR", group=SCORING),
]
SampleMasks = Annotated[
    Path | None,
    Option(
        "folder of the masks that samples were made for, under the same names [the folder control beside the samples, if there is one]",
        metavar="DIR",
        group=SCORING,
    ),
]
Marker = Annotated[
    str | None,
    Option(
        "the marker of immunohistochemistry by whose thresholds the metric stain calls images, from their share of positive nuclei: "
        "er: positive from 0.1, low from 0.01; pr: positive above 0.01; ki67: positive above 0.3, inconclusive from 0.05; else "
        "negative [no calls]",
        choices=MARKERS,
        group=SCORING,
    ),
]
Registered = Annotated[
    bool,
    Option(
        "pairs show the same section, pixel for pixel, such as one that was stained again: the metric stain takes PSNR and SSIM, too, "
        "which mean nothing for neighbouring sections",
        group=SCORING,
    ),
]

# ---- what is done
DryRun = Annotated[bool, Option("prepare everything, and say what would be done")]

# ---- training
Fresh = Annotated[bool, Option("start a new run: an error when the work dir has one", group=TRAINING)]
AcceptChanges = Annotated[
    bool, Option("go on with another batch size, seed or data than the run was begun with", group=TRAINING)
]
LoadFrom = Annotated[
    str | None,
    Option(
        "start a new run from these weights: .ckpt, .pth, .safetensors or a diffusers folder",
        metavar="X",
        group=TRAINING,
        completes="file",
    ),
]

# ---- slides
MPP = "microns per pixel, of which 0.5 is 20x"
Mpp = Annotated[float, Option(MPP, positive_float)]
CellMpp = Annotated[float, Option(MPP, positive_float, group=SCORING)]
ConditionMpp = Annotated[
    float | None,
    Option(
        "microns per pixel of the files named, whatever they say themselves [taken pixel for pixel, as 0.5, which is 20x]",
        positive_float,
        group=CONDITIONS,
    ),
]
Part = Annotated[
    tuple[int, int, int, int] | None,
    Option(
        "part of the one slide or image: its left top corner in pixels of the finest level, and its size in pixels of the result "
        "[all of it]",
        natural_int,
        metavar=("X", "Y", "WIDTH", "HEIGHT"),
    ),
]
ImageMpp = Annotated[
    float | None,
    Option(
        "microns per pixel of the files named, whatever they say themselves [what each says; plain images are taken pixel "
        "for pixel, slides that do not say refused]",
        positive_float,
    ),
]
