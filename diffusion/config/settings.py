"""Python config files -> checked, frozen settings; and back to a file of literals.

Files are read by mmengine's Config, so `_base_` and the flat keys of the original project work as they did with mmcv.
A config file that the user names is executed; a work dir's saved config is only ever parsed as literals. Types carry
the range of every value (diffusion/utils/values.py).
"""

from __future__ import annotations

import codecs
import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from diffusion.formats import DEFAULT_INDEX, DEFAULT_VAE, LATENT_FACTOR, SSL_PREFIX, VAE_PREFIX, WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.literals import read_assignments
from diffusion.utils.text import expand_path
from diffusion.utils.values import (
    Count,
    Distinct,
    FilePart,
    Name,
    Names,
    NaturalInt,
    NotNegative,
    Positive,
    PositiveInt,
    Range,
    Section,
    Seed,
    hints_of,
)

log = logging.getLogger(__name__)

# Keys of the original project's base files that have no meaning here: text encoders, distillation, aspect-ratio buckets.
WITHOUT_EFFECT = frozenset(
    (
        *(
            "add_pos_embed_to_cond",
            "aspect_ratio_type",
            "cfg_scale",
            "data_root",
            "debug_nan",
            "deterministic_validation",
            "ema_decay",
            "eval_batch_size",
        ),
        *(
            "eval_sampling_steps",
            "gc_step",
            "huber_c",
            "image_list_json",
            "kv_compress",
            "kv_compress_config",
            "load_mask_index",
        ),
        *(
            "load_ema",
            "local_save_vis",
            "lora_rank",
            "loss_type",
            "mask_loss_coef",
            "mask_type",
            "max_length",
            "micro_condition",
        ),
        *("multi_scale", "num_ddim_timesteps", "num_group_tokens", "pipeline_load_from", "real_prompt_ratio"),
        *("s3_work_dir", "sample_posterior", "save_image_epochs", "skip_step", "snr_loss", "t5_path"),
        *("tensorboard_mox_interval", "text_encoder", "train_sampling_steps", "valid_num"),
        *("validation_prompts", "visualize", "vis_sampler", "w_max", "w_min"),
    )
)
# Keys that say nothing of a finished run's network, codec or data.
TRAINING_ONLY = frozenset(
    (
        *("train_batch_size", "gradient_accumulation_steps", "gradient_clip", "optimizer", "auto_lr", "lr_schedule"),
        *(
            "lr_schedule_args",
            "ema_rate",
            "power_ema",
            "num_epochs",
            "max_steps",
            "num_workers",
            "seed",
            "log_interval",
        ),
        *(
            "max_bad_steps",
            "save_model_steps",
            "save_model_epochs",
            "keep_last",
            "keep_every",
            "sample_grid",
            "validation",
        ),
        *("eval_steps", "evaluation", "report_to", "timestep_sampling", "min_snr_gamma", "freeze", "ignore_keys"),
    )
)
DATA_WITHOUT_EFFECT = frozenset(
    (
        *("image_list_json", "transform", "load_vae_feat", "load_t5_feat", "load_mask_index", "max_length"),
        *("real_prompt_ratio", "aspect_ratio_type", "mask_type"),
    )
)

ENCODER = "evaluation.encoder"
PATHS = (
    *("root", "vae_pretrained", "load_from", "resume_from", "work_dir"),
    *("data.root", "data.patch_names_file", "data.features_dir", "validation.patch_names_file", ENCODER),
)
OPTIMIZERS = {  # numbers of betas, and of eps; None: one, that is no tuple
    "AdamW": (2, None),
    "Muon": (2, None),
    "CAME": (3, 2),
    "CAMEWrapper": (3, 2),  # the original project's name for it
}


@dataclass(frozen=True)
class DataConfig(Section):
    """Which patches; see configs/_base_.py for every key's meaning."""

    PREFIX = "data."

    type: Name = "PanCancerDataLowRes"
    resolution: int | None = None
    root: Name | None = None
    patch_names_file: Name = DEFAULT_INDEX
    features_dir: Name | None = None
    vae_prefix: FilePart = VAE_PREFIX
    ssl_prefix: FilePart = SSL_PREFIX
    train_subset_keys: Names | None = None
    on_error: Literal["raise", "skip"] = "raise"
    max_bad_fraction: Annotated[float, Range(least=0, most=1)] = 0.01


@dataclass(frozen=True)
class OptimizerConfig(Section):
    PREFIX = "optimizer."

    type: Name = "AdamW"
    lr: Positive = 1e-4
    weight_decay: NotNegative = 0.0
    betas: tuple[Annotated[float, Range(least=0, below=1, symbol="beta")], ...] | None = None
    eps: NotNegative | tuple[NotNegative, ...] | None = None

    def check(self) -> None:
        if self.type not in OPTIMIZERS:
            raise InputError(f"no optimizer {self.type!r}; known are AdamW, CAME, Muon")
        betas, epsilons = OPTIMIZERS[self.type]
        fits = self.betas is None or len(self.betas) == betas
        if self.eps is not None:
            fits &= (len(self.eps) if isinstance(self.eps, tuple) else None) == epsilons
        _check(
            fits,
            f"optimizer {self.type} with betas {self.betas}, eps {self.eps}: "
            f"expected {'two' if betas == 2 else 'three'} betas, {'one' if epsilons is None else 'two'} eps",
        )


@dataclass(frozen=True)
class ScheduleConfig(Section):
    PREFIX = "lr_schedule_args."

    num_warmup_steps: NaturalInt = 0


@dataclass(frozen=True)
class TimestepConfig(Section):
    """Which timesteps are trained; diffusion/timesteps.py has the samplers."""

    PREFIX = "timestep_sampling."

    type: Literal["uniform", "logit_normal", "loss_aware"] = "uniform"
    mean: Annotated[float, Range(least=-10, most=10)] = 0.0  # sigmoid(10) is the last timestep
    std: Positive = 1.0

    def check(self) -> None:
        _check(
            self.type == "logit_normal" or (self.mean, self.std) == (0.0, 1.0),
            f"timestep_sampling.mean and std are of type logit_normal, not {self.type}",
        )


@dataclass(frozen=True)
class PowerEmaConfig(Section):
    """Averages whose length grows with the run; diffusion/optim/ema.py has them."""

    PREFIX = "power_ema."

    lengths: Annotated[
        tuple[
            Annotated[float, Range(above=0, below=12**-0.5, symbol="length", why=", where all steps count alike")], ...
        ],
        Distinct(),
    ] = ()
    snapshot_steps: PositiveInt = 2000

    def check(self) -> None:
        for length in self.lengths:
            _check(
                length == round(length, 3),
                f"power_ema.lengths {length}: expected thousandths, which snapshots are named by",
            )


@dataclass(frozen=True)
class SampleGridConfig(Section):
    PREFIX = "sample_grid."

    count: Annotated[int, Range(least=0, most=1024)] = 8
    steps: PositiveInt = 20
    guidance: float = 2.0


@dataclass(frozen=True)
class ValidationConfig(Section):
    PREFIX = "validation."

    count: NaturalInt = 0
    type: Name | None = None
    patch_names_file: Name | None = None
    subset_keys: Names | None = None

    def check(self) -> None:
        held_out = self.patch_names_file is not None or self.subset_keys is not None
        _check(
            not self.count or held_out,
            "validation.count without what is held out; set validation.patch_names_file or validation.subset_keys",
        )


@dataclass(frozen=True)
class EvaluationConfig(Section):
    PREFIX = "evaluation."

    count: Annotated[int, Range(least=2)] = 64
    encoder: Name = "mobilenetv2"
    steps: PositiveInt = 20
    guidance: float = 2.0


@dataclass(frozen=True)
class Config(Section):
    """Every key the trainer reads. Raises InputError for values out of their range, and for those that contradict each other."""

    image_size: Annotated[int, Range(least=WINDOW, most=2**14)] = WINDOW
    root: Name | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: Name = "PixArt_XL_2_UNI"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model_max_length: PositiveInt = 1
    caption_channels: Count = 1536
    use_cond_pos_embed: bool = False
    pe_interpolation: Annotated[float, Range(least=1e-3, most=1e3)] = 1.0
    qk_norm: bool = False
    class_dropout_prob: Annotated[float, Range(least=0, below=1, symbol="p")] = 0.1
    vae_pretrained: Name = DEFAULT_VAE
    scale_factor: Positive | None = None
    shift_factor: float | None = None
    load_from: Name | None = None
    ignore_keys: tuple[Name, ...] = ()
    local_start: bool = False
    freeze: tuple[Name, ...] = ()
    resume_from: Name | None = None
    work_dir: Name | None = None
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "no"
    fp32_attention: bool = True
    grad_checkpointing: bool = False
    compile: bool = False
    use_fsdp: bool = False
    deterministic: bool = False
    train_batch_size: Count = 32
    gradient_accumulation_steps: Count = 1
    gradient_clip: Positive = 1.0
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    min_snr_gamma: Positive | None = None
    timestep_sampling: TimestepConfig = field(default_factory=TimestepConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    auto_lr: dict[str, Any] | None = None
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_schedule_args: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_rate: Annotated[float, Range(least=0, below=1, symbol="rate")] = 0.9999
    power_ema: PowerEmaConfig = field(default_factory=PowerEmaConfig)
    num_epochs: PositiveInt = 10
    max_steps: NaturalInt | None = None
    num_workers: Annotated[int, Range(least=0, most=1024)] = 4
    seed: Seed = 43
    log_interval: PositiveInt = 50
    max_bad_steps: PositiveInt = 10
    save_model_steps: PositiveInt = 2000
    save_model_epochs: PositiveInt | None = None
    keep_last: PositiveInt | None = 3
    keep_every: PositiveInt | None = None
    sample_grid: SampleGridConfig = field(default_factory=SampleGridConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    eval_steps: PositiveInt | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report_to: Literal["tensorboard", "none"] = "tensorboard"

    def check(self) -> None:
        _check(
            self.data.resolution in (None, self.image_size),
            f"data.resolution {self.data.resolution} contradicts image_size {self.image_size}; they must be equal",
        )
        _check(self.image_size % WINDOW == 0, f"image_size {self.image_size}: expected a multiple of {WINDOW}")
        windows = (self.image_size // WINDOW) ** 2
        _check(
            windows == self.model_max_length,
            f"model_max_length {self.model_max_length} contradicts image_size {self.image_size}: "
            f"one token per {WINDOW}-pixel window makes {windows}",
        )
        _check((self.scale_factor is None) == (self.shift_factor is None), "scale_factor and shift_factor go together")
        own = sorted(self.model_kwargs.keys() & self._model_settings.keys())
        _check(not own, f"model_kwargs has {', '.join(own)}, which the keys beside it decide; set those")
        _check(
            self.model_kwargs.get("pred_sigma", True) is not False,
            "model_kwargs.pred_sigma False: the objective trains the variance",
        )
        _check(not self.local_start or self.qk_norm, "local_start needs qk_norm = True")
        _check(
            not (self.local_start and self.load_from),
            "local_start is of a new network, load_from of weights; set local_start=False",
        )
        _check(
            self.auto_lr in (None, {"rule": "sqrt"}, {"rule": "linear"}),
            f"auto_lr {self.auto_lr}: expected dict(rule='sqrt') or dict(rule='linear')",
        )

    @property
    def input_size(self) -> int:
        """Side of the latents: 8 pixels to a cell."""
        return self.image_size // LATENT_FACTOR

    @property
    def data_root(self) -> Path:
        """Return the folder of patches/: data.root, else root, else $PIXCELL_ROOT, else the current folder."""
        return Path(self.data.root or self.root or expand_path(os.environ.get("PIXCELL_ROOT") or "."))

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build_model(config.model, ...)`."""
        return {**self._model_settings, **self.model_kwargs}

    @property
    def _model_settings(self) -> dict[str, Any]:
        """The network's arguments that keys of their own decide."""
        return {
            "input_size": self.input_size,
            "model_max_length": self.model_max_length,
            "caption_channels": self.caption_channels,
            "use_cond_pos_embed": self.use_cond_pos_embed,
            "pe_interpolation": self.pe_interpolation,
            "qk_norm": self.qk_norm,
            "class_dropout_prob": self.class_dropout_prob,
            "fp32_attention": self.fp32_attention,
        }

    @property
    def data_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build_dataset(...)`."""
        of_the_loop = ("on_error", "max_bad_fraction")
        settings = {name: value for name, value in asdict(self.data).items() if name not in of_the_loop}
        return {**settings, "root": self.data_root, "resolution": self.image_size}

    @property
    def validation_arguments(self) -> dict[str, Any]:
        """Return those of the held-out set: what `validation` does not say is as in training."""
        held_out = {
            "type": self.validation.type,
            "patch_names_file": self.validation.patch_names_file,
            "train_subset_keys": self.validation.subset_keys,
        }
        return self.data_arguments | {name: value for name, value in held_out.items() if value is not None}


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Execute a config file and check what it says; `overrides` are flat or dotted keys that win (`optimizer.lr`).

    Raises MissingError when there is no such file, InputError when it is not Python or has an unknown key or value.
    """
    from mmengine.config import Config as ConfigFile

    path = Path(path)
    if not path.is_file():
        raise MissingError(f"no config file {path}")
    if path.read_bytes().startswith(codecs.BOM_UTF8):  # which mmengine hands on to Python as if it were source
        raise InputError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    try:
        file = ConfigFile.fromfile(str(path))
    except FileNotFoundError as error:
        raise MissingError(f"{path} names a _base_ that is not there: {error}") from error
    except (Exception, SystemExit) as error:  # anything may be raised by a file that is executed
        raise InputError(f"{path} is not a Python config file ({type(error).__name__}: {error})") from error
    values = file.to_dict()
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    return parse_config(values, path)


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a flat or dotted key in nested dicts; a dict is merged with the one that is there. Raises InputError."""
    *sections, name = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise InputError(f"{key}={value!r}: {section} is {values!r}, which has no keys of its own")
    before = values.get(name)
    values[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def parse_config(values: Mapping[str, Any], source: Path, expand: bool = True) -> Config:
    """Check keys, types and ranges of plain values, and expand paths as a shell does (`expand`: False for saved ones).

    `source` is named in errors and in the one warning about keys without effect. Raises InputError.
    """
    values = dict(values)
    if isinstance(values.get("resume_from"), Mapping):  # the original's form: dict(checkpoint=..., load_ema=...)
        values["resume_from"] = values["resume_from"].get("checkpoint")
    values["auto_lr"] = values.get("auto_lr") or None  # the base file's is empty: mmengine merges a dict into no None
    data = values.get("data") or {}
    if not isinstance(data, Mapping):
        raise InputError(f"{source}: data is {data!r}: expected dict(type=..., ...)")
    idle = sorted(WITHOUT_EFFECT & values.keys()) + sorted(f"data.{key}" for key in DATA_WITHOUT_EFFECT & data.keys())
    if idle:
        log.warning("%s: these keys have no effect here: %s", source, ", ".join(idle))
    values["data"] = {key: value for key, value in data.items() if key not in DATA_WITHOUT_EFFECT}
    values = {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}
    return _build(Config, _expand_paths(values, source) if expand else values, str(source))


def _expand_paths(values: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return values with `~` and `$NAME` expanded in those that are paths. Raises InputError for unknown ones."""
    expanded = dict(values)
    for key in PATHS:
        section, _, name = key.rpartition(".")
        part = expanded.get(section) if section else expanded
        text = part.get(name) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            continue
        try:
            before, equals, path = text.rpartition("=") if key == ENCODER else ("", "", text)  # NAME=FILE
            text = before + equals + expand_path(path)
        except InputError as error:
            raise InputError(f"{source}: {key}: {error}") from None
        expanded |= {section: {**part, name: text}} if section else {name: text}
    return expanded


def dump_config(config: Config, path: Path) -> None:
    """Write a config as assignments of literals, which `read_config` (and Python) reads back; whole or not at all."""
    lines = ["# The settings of this run, written by the trainer; read back as data, never executed.\n"]
    lines += [f"{name} = {value!r}\n" for name, value in asdict(config).items()]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines))


def read_config(path: Path) -> Config:
    """Read a config that a trainer saved, as literals of which nothing is executed.

    Raises MissingError, or InputError when the file holds anything but assignments of literals.
    """
    if not path.is_file():
        raise MissingError(f"no {path.name} in {path.parent}: is that the work dir of a run?")
    values = read_assignments(path)
    if "_base_" in values:
        raise InputError(
            f"{path} goes on from {values['_base_']}: a config to train with, not one that a run has saved, which is whole"
        )
    for key in TRAINING_ONLY & values.keys():  # a run that an older version took must still be opened
        try:
            _build(Config, {key: values[key]}, str(path))
        except InputError as error:
            log.warning("%s; it counts in training alone, and is left out here", error)
            del values[key]
    return parse_config(values, path, expand=False)


def _build(kind: type, values: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """Make a dataclass from a mapping, nested ones too. Raises InputError for unknown keys and values that do not fit."""
    hints = hints_of(kind)
    known = [field.name for field in fields(kind)]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise InputError(
                f"{source}: unknown key {f'{prefix}{key}'!r}; the nearest known one is {prefix + near[0]!r}"
            )
        is_section = is_dataclass(hints[key]) and isinstance(value, Mapping)
        arguments[key] = _build(hints[key], value, source, f"{key}.") if is_section else value
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
