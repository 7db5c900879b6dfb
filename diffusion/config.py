"""Python config files -> checked, frozen settings; and back to a file of literals.

Files are read by mmengine's Config, so `_base_` and the flat keys of the original project work as they did with mmcv.
A config file that the user names is executed; a work dir's saved config is only ever parsed as literals.
"""

from __future__ import annotations

import ast
import difflib
import logging
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside

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
DATA_WITHOUT_EFFECT = frozenset(
    (
        *("image_list_json", "transform", "load_vae_feat", "load_t5_feat", "load_mask_index", "max_length"),
        *("real_prompt_ratio", "aspect_ratio_type", "mask_type"),
    )
)


@dataclass(frozen=True)
class DataConfig:
    """Which patches; see configs/_base_.py for every key's meaning."""

    type: str = "PanCancerDataLowRes"
    resolution: int | None = None
    root: str | None = None
    patch_names_file: str = "patch_names_all.hdf5"
    features_dir: str | None = None
    vae_prefix: str = "sd3_vae"
    ssl_prefix: str = "uni"
    train_subset_keys: tuple[str, ...] | None = None
    on_error: str = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        _one_of("data.on_error", self.on_error, ("raise", "skip"))
        _check(0 <= self.max_bad_fraction <= 1, f"data.max_bad_fraction {self.max_bad_fraction}: expected 0 to 1")


@dataclass(frozen=True)
class OptimizerConfig:
    type: str = "AdamW"
    lr: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, ...] | None = None
    eps: float | tuple[float, ...] | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    num_warmup_steps: int = 0


@dataclass(frozen=True)
class TimestepConfig:
    """Which timesteps are trained; diffusion/timesteps.py has the samplers."""

    type: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _one_of("timestep_sampling.type", self.type, ("uniform", "logit_normal", "loss_aware"))
        _check(self.std > 0, f"timestep_sampling.std {self.std}: expected more than 0")
        _check(
            self.type == "logit_normal" or (self.mean, self.std) == (0.0, 1.0),
            f"timestep_sampling.mean and std are of type logit_normal, not {self.type}",
        )


@dataclass(frozen=True)
class PowerEmaConfig:
    """Averages whose length grows with the run; diffusion/engine/ema.py has them."""

    lengths: tuple[float, ...] = ()
    snapshot_steps: int = 2000

    def __post_init__(self):
        for length in self.lengths:
            _check(
                0 < length < 12**-0.5,
                f"power_ema.lengths {length:g}: expected 0 < length < 0.289, where all steps count alike",
            )
            _check(
                length == round(length, 3),
                f"power_ema.lengths {length}: expected thousandths, which snapshots are named by",
            )
        _check(len(set(self.lengths)) == len(self.lengths), f"power_ema.lengths {self.lengths}: one is there twice")
        _check(self.snapshot_steps >= 1, f"power_ema.snapshot_steps {self.snapshot_steps}: expected at least 1")


@dataclass(frozen=True)
class SampleGridConfig:
    count: int = 8
    steps: int = 20
    guidance: float = 2.0

    def __post_init__(self):
        _check(self.count >= 0, f"sample_grid.count {self.count}: expected at least 0")


@dataclass(frozen=True)
class ValidationConfig:
    count: int = 0
    type: str | None = None
    patch_names_file: str | None = None
    subset_keys: tuple[str, ...] | None = None

    def __post_init__(self):
        _check(self.count >= 0, f"validation.count {self.count}: expected at least 0")
        held_out = self.patch_names_file is not None or self.subset_keys is not None
        _check(
            not self.count or held_out,
            "validation.count without what is held out; set validation.patch_names_file or validation.subset_keys",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    count: int = 64
    encoder: str = "mobilenetv2"
    steps: int = 20
    guidance: float = 2.0

    def __post_init__(self):
        _check(self.count >= 2, f"evaluation.count {self.count}: expected at least 2")
        _check(self.steps >= 1, f"evaluation.steps {self.steps}: expected at least 1")
        _check(math.isfinite(self.guidance), f"evaluation.guidance {self.guidance}: expected a number")


@dataclass(frozen=True)
class Config:
    """Every key the trainer reads. Raises InputError for values that contradict each other."""

    image_size: int = 256
    root: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: str = "PixArt_XL_2_UNI"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model_max_length: int = 1
    caption_channels: int = 1536
    use_cond_pos_embed: bool = False
    pe_interpolation: float = 1.0
    qk_norm: bool = False
    class_dropout_prob: float = 0.1
    vae_pretrained: str = "pretrained_models/sd-3.5-vae"
    scale_factor: float | None = None
    shift_factor: float | None = None
    load_from: str | None = None
    ignore_keys: tuple[str, ...] = ()
    local_start: bool = False
    freeze: tuple[str, ...] = ()
    resume_from: str | None = None
    work_dir: str | None = None
    mixed_precision: str = "no"
    fp32_attention: bool = True
    grad_checkpointing: bool = False
    compile: bool = False
    use_fsdp: bool = False
    deterministic: bool = False
    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    gradient_clip: float = 1.0
    prediction_type: str = "epsilon"
    min_snr_gamma: float | None = None
    timestep_sampling: TimestepConfig = field(default_factory=TimestepConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    auto_lr: dict[str, str] | None = None
    lr_schedule: str = "constant"
    lr_schedule_args: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_rate: float = 0.9999
    power_ema: PowerEmaConfig = field(default_factory=PowerEmaConfig)
    num_epochs: int = 10
    max_steps: int | None = None
    num_workers: int = 4
    seed: int = 43
    log_interval: int = 50
    max_bad_steps: int = 10
    save_model_steps: int = 2000
    save_model_epochs: int | None = None
    keep_last: int | None = 3
    keep_every: int | None = None
    sample_grid: SampleGridConfig = field(default_factory=SampleGridConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    eval_steps: int | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report_to: str = "tensorboard"

    def __post_init__(self):
        _check(
            self.data.resolution in (None, self.image_size),
            f"data.resolution {self.data.resolution} contradicts image_size {self.image_size}; they must be equal",
        )
        windows = (self.image_size // 256) ** 2
        _check(
            self.image_size % 256 == 0 and windows == self.model_max_length,
            f"model_max_length {self.model_max_length} contradicts image_size {self.image_size}: "
            f"one token per 256-pixel window makes {windows}",
        )
        _check((self.scale_factor is None) == (self.shift_factor is None), "scale_factor and shift_factor go together")
        _one_of("mixed_precision", self.mixed_precision, ("auto", "no", "fp16", "bf16"))
        _one_of("prediction_type", self.prediction_type, ("epsilon", "v_prediction"))
        _one_of("lr_schedule", self.lr_schedule, ("constant", "cosine"))
        _one_of("report_to", self.report_to, ("tensorboard", "none"))
        for name in (
            "train_batch_size",
            "gradient_accumulation_steps",
            "num_epochs",
            "log_interval",
            "save_model_steps",
            "max_bad_steps",
        ):
            _check(getattr(self, name) >= 1, f"{name} {getattr(self, name)}: expected at least 1")
        _check(self.num_workers >= 0, f"num_workers {self.num_workers}: expected at least 0")
        _check(self.max_steps is None or self.max_steps >= 0, f"max_steps {self.max_steps}: expected at least 0")
        for name in ("gradient_clip", "pe_interpolation"):
            _check(getattr(self, name) > 0, f"{name} {getattr(self, name)}: expected more than 0")
        _check(self.optimizer.lr > 0, f"optimizer.lr {self.optimizer.lr}: expected more than 0")
        for name in ("save_model_epochs", "keep_last", "keep_every", "eval_steps"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"{name} {value}: expected at least 1, or None")
        own = sorted(self.model_kwargs.keys() & self._model_settings.keys())
        _check(not own, f"model_kwargs has {', '.join(own)}, which the keys beside it decide; set those")
        _check(
            self.model_kwargs.get("pred_sigma", True),
            "model_kwargs.pred_sigma False: the objective trains the variance",
        )
        _check(0 <= self.class_dropout_prob < 1, f"class_dropout_prob {self.class_dropout_prob}: expected 0 <= p < 1")
        _check(not self.local_start or self.qk_norm, "local_start needs qk_norm = True")
        _check(
            not (self.local_start and self.load_from),
            "local_start is of a new network, load_from of weights; set local_start=False",
        )
        gamma = self.min_snr_gamma
        _check(gamma is None or gamma > 0, f"min_snr_gamma {gamma}: expected more than 0, or None")
        _check(0 <= self.ema_rate < 1, f"ema_rate {self.ema_rate}: expected 0 <= rate < 1")

    @property
    def input_size(self) -> int:
        """Side of the latents: 8 pixels to a cell."""
        return self.image_size // 8

    @property
    def data_root(self) -> Path:
        """The folder of patches/: data.root, else root, else $PIXCELL_ROOT, else the current folder."""
        return Path(self.data.root or self.root or os.environ.get("PIXCELL_ROOT") or ".")

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
        """Those of the held-out set: what `validation` does not say is as in training."""
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
    try:
        file = ConfigFile.fromfile(str(path))
        file.merge_from_dict(dict(overrides or {}))
    except FileNotFoundError as error:
        raise MissingError(f"{path} names a _base_ that is not there: {error}") from error
    except Exception as error:  # anything may be raised by a file that is executed
        raise InputError(f"{path} is not a Python config file ({type(error).__name__}: {error})") from error
    return parse_config(file.to_dict(), path)


def parse_config(values: Mapping[str, Any], source: Path) -> Config:
    """Check keys and types of plain values. `source` is named in errors and in the one warning about keys without effect."""
    values = dict(values)
    if isinstance(values.get("resume_from"), Mapping):  # the original's form: dict(checkpoint=..., load_ema=...)
        values["resume_from"] = values["resume_from"].get("checkpoint")
    data = values.get("data") or {}
    if not isinstance(data, Mapping):
        raise InputError(f"{source}: data is {data!r}: expected dict(type=..., ...)")
    idle = sorted(WITHOUT_EFFECT & values.keys()) + sorted(f"data.{key}" for key in DATA_WITHOUT_EFFECT & data.keys())
    if idle:
        log.warning("%s: these keys have no effect here: %s", source, ", ".join(idle))
    values["data"] = {key: value for key, value in data.items() if key not in DATA_WITHOUT_EFFECT}
    return _build(Config, {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}, str(source))


def dump_config(config: Config, path: Path) -> None:
    """Write a config as assignments of literals, which `read_config` (and Python) reads back; aside, then renamed."""
    lines = ["# The settings of this run, written by the trainer; read back as data, never executed.\n"]
    lines += [f"{name} = {value!r}\n" for name, value in asdict(config).items()]
    with written_aside(path) as temporary:
        temporary.write_text("".join(lines))


def read_config(path: Path) -> Config:
    """A config that the trainer saved, parsed as literals and never executed.

    Raises MissingError, or InputError when the file holds anything but assignments of literals.
    """
    if not path.is_file():
        raise MissingError(f"no {path.name} in {path.parent}: is that the work dir of a run?")
    values = {}
    try:
        for statement in ast.parse(path.read_text()).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                raise ValueError(f"line {statement.lineno} is not `name = literal`")
            values[statement.targets[0].id] = ast.literal_eval(statement.value)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"{path} is not a saved config ({error}); a saved config holds literals only") from error
    return parse_config(values, path)


def _build(kind: type, values: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """A dataclass from a mapping, nested ones too; unknown keys and wrong types raise InputError."""
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, [f.name for f in fields(kind)], n=1, cutoff=0)
            raise InputError(f"{source}: unknown key {prefix + key!r}; the nearest known one is {prefix + near[0]!r}")
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            arguments[key] = _build(hints[key], value, source, f"{key}.")
        else:
            arguments[key] = _convert(value, hints[key], f"{source}: {prefix}{key}")
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` has it: lists become tuples, whole numbers floats; anything else must fit already."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is tuple and isinstance(value, str) and typing.get_args(option)[0] is str:
            return (value,)  # one name, as a command line gives it
        if kind is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(part, typing.get_args(option)[0], where) for part in value)
        if kind is dict and isinstance(value, Mapping):
            return dict(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    raise InputError(f"{where} is {value!r}: expected {hint if len(options) > 1 else getattr(hint, '__name__', hint)}")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    _check(value in known, f"{name} {value!r}: expected one of {', '.join(known)}")
