"""Settings of a run: frozen dataclasses whose fields are checked, each documented in the string below it.

Types carry the range of every value (diffusion/utils/values.py). configs/_base_.py is generated from these classes by
diffusion/config/base.py; a comment on a line of its own becomes a heading there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from diffusion.formats import DEFAULT_INDEX, DEFAULT_VAE, LATENT_FACTOR, SSL_PREFIX, VAE_PREFIX, WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.text import default_root
from diffusion.utils.values import (
    Count,
    Distinct,
    FilePart,
    MaskKind,
    Name,
    Names,
    NaturalInt,
    NotNegative,
    Positive,
    PositiveInt,
    Range,
    Section,
    Seed,
)


class Numbers(NamedTuple):
    """How many betas and eps an optimizer takes."""

    betas: int
    eps: int


OPTIMIZERS = {  # each with a branch in diffusion/optim/build.py
    "AdamW": Numbers(betas=2, eps=1),
    "CAME": Numbers(betas=3, eps=2),
    "Muon": Numbers(betas=2, eps=1),
    "CAMEWrapper": Numbers(betas=3, eps=2),  # the original project's name of CAME
}
WORDS = ("no", "one", "two", "three")

Reports = Annotated[tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "none"], ...], Distinct()]


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer and its parameters; diffusion/optim/build.py makes it."""

    PREFIX = "optimizer."

    type: Name = "AdamW"
    """AdamW or Muon, which take two betas and one eps; CAME, which takes three betas and two eps."""
    lr: Positive = 1e-4
    """Learning rate after the warm-up; auto_lr may scale it."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Range(least=0, below=1, symbol="beta")], ...] | None = None
    """None: the optimizer's own. Else a tuple, each 0 <= beta < 1."""
    eps: NotNegative | tuple[NotNegative, ...] | None = None
    """None: the optimizer's own. Else a number, or a tuple of several."""

    def check(self) -> None:
        if self.type not in OPTIMIZERS:
            raise InputError(f"no optimizer {self.type!r}; known are {', '.join(OPTIMIZERS)}")
        wanted = OPTIMIZERS[self.type]
        fits = self.betas is None or len(self.betas) == wanted.betas
        if isinstance(self.eps, tuple):
            fits &= len(self.eps) == wanted.eps > 1  # one is no tuple
        elif self.eps is not None:
            fits &= wanted.eps == 1
        check_that(
            fits,
            f"optimizer {self.type} with betas {self.betas}, eps {self.eps}: "
            f"expected {WORDS[wanted.betas]} betas, {WORDS[wanted.eps]} eps",
        )


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """Arguments of the learning-rate schedule."""

    PREFIX = "lr_schedule_args."

    num_warmup_steps: NaturalInt = 0
    """Optimizer steps of linear warm-up, whatever the number of processes."""


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
    """Spread of each average over the steps, as a share of the run so far; the paper's pair is (0.05, 0.10). Each keeps
    a copy of the network."""
    snapshot_steps: PositiveInt = 2000
    """Optimizer steps between snapshots, each of the size of last_ema.ckpt; 20 to 60 in a run are plenty."""

    def check(self) -> None:
        for length in self.lengths:
            check_that(
                length == round(length, 3),
                f"power_ema.lengths {length}: expected thousandths, which snapshots are named by",
            )


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The keys that the trainer reads, whatever it trains. Raises InputError for values that are out of their range."""

    # start and work dir
    task: Name = "denoising"
    """What is trained: "denoising" (the diffusion transformer), "control" (a ControlNet beside one), "distillation" (a student of
    few steps), "embedding_flow" (a flow between embeddings) or "codec" (a small latent codec), both with settings of their own.
    Those can stand beside it: dict(type="control", base=...)."""
    load_from: Name | None = None
    """Weights to start from: of a stage before, released ones, or "nano", which comes with the package."""
    ignore_keys: tuple[Name, ...] = ()
    """Weights of load_from to leave out. What follows from the stage (positions, null condition) is initialised in any
    case."""
    freeze: tuple[Name, ...] = ()
    """Parts of the network that are not trained, such as "y_embedder" or "blocks.0.attn"."""
    resume_from: Name | None = None
    """A checkpoint, as a file or a folder. None, or "auto": the newest valid one in work_dir, if there is any."""
    work_dir: Name | None = None
    """Where checkpoints, curves and samples go. None: output/<name of the config file>."""

    # optimization
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its parameters."""
    auto_lr: dict[str, Any] | None = None
    """dict(rule="sqrt" or "linear"): the learning rate grows with the global batch over 256. Empty, or None: it does not."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or cosine, to zero at the last step."""
    lr_schedule_args: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Arguments of the schedule."""
    train_batch_size: Count = 32
    """Samples per process and step."""
    gradient_accumulation_steps: Count = 1
    """Batches whose gradients are summed for one optimizer step."""
    gradient_clip: Positive = 1.0
    """Largest gradient norm, finite; a large one clips nothing."""
    max_bad_steps: PositiveInt = 10
    """Steps in a row that are skipped because loss or gradient is NaN or infinite; after so many the run stops."""
    num_epochs: PositiveInt = 10
    """Length of the run where max_steps is None."""
    max_steps: NaturalInt | None = None
    """Length of the run in optimizer steps. None: num_epochs."""
    ema_rate: Annotated[float, Range(least=0, below=1, symbol="rate")] = 0.9999
    """Decay of the averaged weights."""
    power_ema: PowerEmaConfig = field(default_factory=PowerEmaConfig)
    """Further averages (EDM2, Karras et al. 2024), from which pixcell average makes one of any length."""
    seed: Seed = 43
    """Of weights, data order and noise: 0 to 2**63 - 1."""

    # speed and memory
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "no"
    """no, bf16, fp16 (a GPU), or auto: what the processor has in hardware."""
    compile: bool = False
    """torch.compile of the blocks: minutes at the start, faster steps on a GPU."""
    use_fsdp: bool = False
    """FSDP2: every process keeps a part of weights, gradients and optimizer state. accelerate's config can ask for it, too."""
    deterministic: bool = False
    """On a GPU, only kernels that add up in one order: the same bits every time, somewhat slower."""
    num_workers: Annotated[int, Range(least=0, most=1024)] = 4
    """Loader processes per training process."""

    # monitoring and saving
    log_interval: PositiveInt = 50
    """Optimizer steps between lines of the log."""
    save_model_steps: PositiveInt = 2000
    """Optimizer steps between checkpoints and sample grids."""
    save_model_epochs: PositiveInt | None = None
    """Epochs between further checkpoints. None: none."""
    keep_last: PositiveInt | None = 3
    """Newest checkpoints to keep. None: all."""
    keep_every: PositiveInt | None = None
    """Optimizer steps: checkpoints at multiples of it are kept, too."""
    eval_steps: PositiveInt | None = None
    """Optimizer steps between scorings of samples, at the same conditions and noise every time. None: no scoring."""
    report_to: Reports = ("tensorboard",)
    """Where curves and pictures go: any of tensorboard, wandb, mlflow and trackio, or none."""

    def check(self) -> None:
        check_that(
            self.auto_lr in (None, {"rule": "sqrt"}, {"rule": "linear"}),
            f"auto_lr {self.auto_lr}: expected dict(rule='sqrt') or dict(rule='linear')",
        )
        check_that(
            "none" not in self.report_to or len(self.report_to) == 1,
            f"report_to {', '.join(self.report_to)}: none stands alone; leave it out",
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers that curves and pictures go to."""
        return tuple(name for name in self.report_to if name != "none")


@dataclass(frozen=True)
class IndexedDataConfig(Section):
    """Which patches of an index, and where their embeddings are."""

    PREFIX = "data."

    type: Name = "PanCancerDataLowRes"
    """PanCancerDataLowRes: crops of 1024-pixel patches. PanCancerData: whole patches of image_size."""
    resolution: int | None = None
    """None: image_size; any other value is refused."""
    root: Name | None = None
    """None: root."""
    patch_names_file: Name = DEFAULT_INDEX
    """The index, in root/patches/metadata."""
    features_dir: Name | None = None
    """None: beside the images, else root/features, else root/packed."""
    ssl_prefix: FilePart = SSL_PREFIX
    """Ending of the embedding files: <column>_<row>_uni.npy."""
    train_subset_keys: Names | None = None
    """Keys of the index to train on, each once. None: all of the size that `type` reads."""
    on_error: Literal["raise", "skip"] = "raise"
    """At an item that cannot be read: raise, or skip: leave it out of its batch, count it and name it."""
    max_bad_fraction: Annotated[float, Range(least=0, most=1)] = 0.01
    """Of all items read; more skipped ones stop the run."""

    def check_size(self, image_size: int) -> None:
        """Raise InputError for images of another size than the run's, or of no whole windows."""
        check_that(
            self.resolution in (None, image_size),
            f"data.resolution {self.resolution} contradicts image_size {image_size}; they must be equal",
        )
        check_that(image_size % WINDOW == 0, f"image_size {image_size}: expected a multiple of {WINDOW}")

    def folder(self, root: str | None) -> Path:
        """Return the folder of patches/: this section's root, else that of the run, else $PIXCELL_ROOT, else the current folder."""
        named = self.root or root
        return Path(named) if named else default_root()

    def arguments(self, root: str | None, image_size: int) -> dict[str, Any]:
        """Return the keyword arguments of a data set of images of `image_size` pixels."""
        trainer_keys = ("on_error", "max_bad_fraction")
        settings = {name: value for name, value in asdict(self).items() if name not in trainer_keys}
        return {**settings, "root": self.folder(root), "resolution": image_size}


@dataclass(frozen=True)
class DataConfig(IndexedDataConfig):
    """Which patches, and where their features are."""

    vae_prefix: FilePart = VAE_PREFIX
    """Ending of the latent files: <column>_<row>_sd3_vae.npy."""
    mask_prefix: FilePart | None = None
    """Ending of masks to control by: <column>_<row>_mask.png, or .npy with several channels. None: none are read."""
    mask_kind: MaskKind = "binary"
    """Values of masks: 0 and 255; numbers of objects; numbers of classes, from 1 on; or maps of any values."""
    maps: Names = ("nuclei",)
    """What each map of a mask shows: its classes, or its channels."""
    control_prefix: FilePart | None = None
    """Ending of the latents of images to control by, instead of masks: <column>_<row>_control.npy. None: none are read."""
    control_dataset: FilePart | None = None
    """Data set whose latents of the same patches control, instead of files beside the patches: mine_he of pairs of stains."""

    def check(self) -> None:
        given = [
            name for name in ("mask_prefix", "control_prefix", "control_dataset") if getattr(self, name) is not None
        ]
        check_that(len(given) < 2, f"data.{' and data.'.join(given)}: a network is controlled by one of them")
        check_that(
            len(self.maps) == 1 or self.mask_kind in ("types", "channels"),
            f"data.maps {', '.join(self.maps)}: a mask of kind {self.mask_kind} has one",
        )

    @property
    def reads_control(self) -> bool:
        """Tell whether patches have something that a network is controlled by."""
        return any(each is not None for each in (self.mask_prefix, self.control_prefix, self.control_dataset))

    @property
    def control_maps(self) -> tuple[str, ...]:
        """Return the maps that a network is controlled by; none where it is by latents, or not at all."""
        return self.maps if self.mask_prefix is not None else ()


@dataclass(frozen=True)
class TimestepConfig(Section):
    """Which timesteps are trained; diffusion/timesteps.py has the samplers."""

    PREFIX = "timestep_sampling."

    type: Literal["uniform", "logit_normal", "loss_aware"] = "uniform"
    """uniform; logit_normal: middle steps more often (SD3); loss_aware: by the loss, weighted back (Improved DDPM)."""
    mean: Annotated[float, Range(least=-10, most=10)] = 0.0  # sigmoid(10) is the last timestep
    """Of logit_normal: of the logit of t / 1000; noise and signal are equal at -1.05."""
    std: Positive = 1.0
    """Of logit_normal."""
    uniform_share: Annotated[float, Range(least=0, below=1)] = 0.0
    """Of logit_normal: share of samples with a uniform timestep, for the ends that a narrow one leaves untrained."""

    def check(self) -> None:
        check_that(
            self.type == "logit_normal" or (self.mean, self.std, self.uniform_share) == (0.0, 1.0, 0.0),
            f"timestep_sampling.mean, std and uniform_share are of type logit_normal, not {self.type}",
        )


@dataclass(frozen=True)
class SampleGridConfig(Section):
    """Sample grids: pictures in TensorBoard at every save."""

    PREFIX = "sample_grid."

    count: Annotated[int, Range(least=0, most=1024)] = 8
    """Pictures; 0: none."""
    steps: PositiveInt = 20
    """Steps of the solver."""
    guidance: float = 2.0
    """Guidance strength; 1 is none. Commands that sample the run take it, too, unless they are given another."""


@dataclass(frozen=True)
class ValidationConfig(Section):
    """The loss on samples that are held out, at every save."""

    PREFIX = "validation."

    count: NaturalInt = 0
    """Samples; 0: no validation."""
    type: Name | None = None
    """None: that of data."""
    patch_names_file: Name | None = None
    """None: that of data; such as patch_names_test.hdf5."""
    subset_keys: Names | None = None
    """None: those of data."""
    partner_dataset: FilePart | None = None
    """Data set of these samples' partners, where it is not that of data.control_dataset or, of a flow, data.source_dataset."""

    def check(self) -> None:
        is_held_out = self.patch_names_file is not None or self.subset_keys is not None
        check_that(
            not self.count or is_held_out,
            "validation.count without what is held out; set validation.patch_names_file or validation.subset_keys",
        )

    def overrides(self, partner: str) -> dict[str, Any]:
        """Return the arguments of a data set that differ from those in training; partner: that of the partners' data set."""
        given = {
            "type": self.type,
            "patch_names_file": self.patch_names_file,
            "train_subset_keys": self.subset_keys,
            partner: self.partner_dataset,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Scores of samples, every eval_steps."""

    PREFIX = "evaluation."

    count: Annotated[int, Range(least=2)] = 64
    """Samples: few are enough to compare steps, not to compare with papers."""
    encoder: Name = "mobilenetv2"
    """In whose features to score, as pixcell evaluate takes it."""
    steps: PositiveInt = 20
    """Steps of the solver."""
    guidance: float = 2.0
    """Guidance strength; 1 is none."""


@dataclass(frozen=True)
class LoraConfig(Section):
    """A low-rank adapter (Hu et al. 2021) of the network in load_from, which is trained instead of the network."""

    PREFIX = "lora."

    rank: NaturalInt = 0
    """Rank of the adapter, such as 4; 0: none, the network itself is trained."""
    alpha: Positive | None = None
    """The adapter counts alpha / rank. None: the rank, so once."""
    targets: Names = ("cross_attention",)
    """Maps to adapt: cross_attention, self_attention, mlp, or single ones, such as attn2.to_q."""
    load_from: Name | None = None
    """A run or file of an adapter to begin with: trained on if there is a rank, else added to the weights for good; with task
    control, to those of the network that is steered."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """The keys of denoising: those of the trainer, and data, network, latents, loss and evaluation.

    Raises InputError for values that are out of their range, and for those that contradict each other.
    """

    HAS_CONTROL = False  # whether the task reads what controls a network

    image_size: Annotated[int, Range(least=WINDOW, most=2**14)] = WINDOW
    """Pixels a side of a training image; the latents have image_size / 8 cells a side."""
    root: Name | None = None
    """Folder of patches/, features/ and pretrained_models/. None: $PIXCELL_ROOT, else the current folder."""

    # data
    data: DataConfig = field(default_factory=DataConfig)
    """Which patches, and where their features are."""

    # network
    model: Name = "PixArt_XL_2_UNI"
    """A preset of diffusion/model/pixart_config.py."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of PixArt that differ from the preset (depth, hidden_size, num_heads, patch_size ...)."""
    model_max_length: PositiveInt = 1
    """Condition tokens: one per 256-pixel window."""
    caption_channels: Count = 1536
    """Width of the embeddings: 1536 for UNI2-h."""
    use_cond_pos_embed: bool = False
    """Positions for the condition tokens, from 512 pixels on."""
    pe_interpolation: Annotated[float, Range(least=1e-3, most=1e3)] = 1.0
    """Scale of the position grid; image_size / 512 keeps one scale over all stages."""
    qk_norm: bool = False
    """LayerNorm on queries and keys."""
    class_dropout_prob: Annotated[float, Range(least=0, below=1, symbol="p")] = 0.1
    """Share of samples that train the null condition."""
    local_start: bool = False
    """Initialise the heads of a new network to attend to one neighbour each; for small networks at 256, needs qk_norm."""
    fp32_attention: bool = True
    """Attention outside autocast: fp16 overflows there in deep networks."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, a third more time."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Train a low-rank adapter of the network in load_from instead of the network."""

    # latents
    vae_pretrained: Name = DEFAULT_VAE
    """A diffusers folder below root, or "tiny"; decodes the sample grids."""
    scale_factor: Positive | None = None
    """Network latents = (z - shift_factor) * scale_factor. None: from vae_pretrained's config.json."""
    shift_factor: float | None = None
    """Goes together with scale_factor."""

    # loss
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """epsilon: noise, as published. v_prediction: velocity, for networks of your own."""
    min_snr_gamma: Positive | None = None
    """5.0: easy steps, of an SNR above 5, weigh less (Min-SNR, Hang et al. 2023). None: no weights."""
    timestep_sampling: TimestepConfig = field(default_factory=TimestepConfig)
    """Which timesteps are trained."""

    # evaluation
    sample_grid: SampleGridConfig = field(default_factory=SampleGridConfig)
    """Pictures in TensorBoard at every save."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The loss on samples that are held out, at every save, at the same noise and timesteps in every run."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scores every eval_steps, on the tissue of the set that validation names, else of data."""

    def check(self) -> None:
        self.data.check_size(self.image_size)
        windows = (self.image_size // WINDOW) ** 2
        check_that(
            windows == self.model_max_length,
            f"model_max_length {self.model_max_length} contradicts image_size {self.image_size}: "
            f"one token per {WINDOW}-pixel window makes {windows}",
        )
        check_that(
            (self.scale_factor is None) == (self.shift_factor is None), "scale_factor and shift_factor go together"
        )
        own = sorted(self.model_kwargs.keys() & self._model_settings.keys())
        check_that(not own, f"model_kwargs has {', '.join(own)}, which the keys beside it decide; set those")
        check_that(
            self.model_kwargs.get("pred_sigma", True) is not False,
            "model_kwargs.pred_sigma False: the objective trains the variance",
        )
        check_that(
            self.HAS_CONTROL or not self.data.reads_control,
            "data.mask_prefix, control_prefix and control_dataset are of the task control, and this one trains a network without",
        )
        check_that(
            self.HAS_CONTROL or self.lora.load_from is None or self.load_from is not None,
            "lora.load_from is an adapter; name the network that it is of with load_from",
        )
        check_that(
            not (self.lora.rank and (self.freeze or self.local_start)),
            "lora trains an adapter beside a network that stays; leave out freeze and local_start",
        )
        check_that(not self.local_start or self.qk_norm, "local_start needs qk_norm = True")
        check_that(
            not (self.local_start and self.load_from),
            "local_start is of a new network, load_from of weights; set local_start=False",
        )
        super().check()

    @property
    def adapted(self) -> str | None:
        """Return the weights of the network that an adapter is trained beside."""
        return self.load_from

    @property
    def input_size(self) -> int:
        """Cells a side of the latents."""
        return self.image_size // LATENT_FACTOR

    @property
    def data_root(self) -> Path:
        """Return the folder of patches/: data.root, else root, else $PIXCELL_ROOT, else the current folder."""
        return self.data.folder(self.root)

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
        return self.data.arguments(self.root, self.image_size)

    @property
    def validation_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build_dataset(...)` for the held-out set: what `validation` does not set is as in training."""
        return self.data_arguments | self.validation.overrides("control_dataset")


@dataclass(frozen=True)
class ControlNetSection(Section):
    """Which network a ControlNet steers, and how many of its blocks it has."""

    PREFIX = "control."

    base: Name | None = None
    """Weights of the network to steer, which are not changed: a run's, released ones, or "nano"."""
    blocks: PositiveInt | None = None
    """Blocks of the ControlNet, copied from the first ones of the network. None: all but the last, as released."""
    copy_embedder: bool = False
    """Embed the latents that control as the network embeds its own, from the first step on. False: from zero, as released."""


@dataclass(frozen=True)
class ControlConfig(Config):
    """The keys of the task `control`: those of denoising, which describe the network that is steered, and the ControlNet's.

    Raises InputError as Config does.
    """

    HAS_CONTROL = True

    task: Name = "control"
    """Always "control"."""
    control: ControlNetSection = field(default_factory=ControlNetSection)
    """Which network is steered; `task = dict(type="control", base=...)` sets it, too."""
    class_dropout_prob: Annotated[float, Range(least=0, below=1, symbol="p")] = 0.0
    """Share of samples with the null condition. As released none: the null pass of guidance has no control."""

    def check(self) -> None:
        super().check()
        check_that(
            not (self.control.copy_embedder and self.data.control_maps),
            "control.copy_embedder is of latents: masks have no embedding in the network",
        )

    def check_controlled(self) -> None:
        """Raise InputError without a network to steer, or anything to steer it by; keys are also read one by one, without these."""
        check_that(
            not self.lora.rank,
            "lora.rank with task control: a ControlNet is trained whole; an adapter of the network beside it goes with lora.load_from",
        )
        check_that(self.control.base is not None, "control.base None: expected the weights of the network to steer")
        check_that(
            self.data.reads_control,
            "nothing to control by: set data.mask_prefix, such as mask, data.control_prefix or data.control_dataset",
        )


def check_that(holds: bool, message: str) -> None:
    """Raise InputError with a message unless a condition holds."""
    if not holds:
        raise InputError(message)
