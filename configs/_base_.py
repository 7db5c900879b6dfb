# Every key the trainer reads, with the value it has when a config does not set it.
# Made from diffusion/config/settings.py, which has every key's type and range, by `python -m diffusion.config.base`.
# Paths may begin with ~ and have $NAME in them, as in a shell.

image_size = 256  # Pixels a side of a training image; the latents have image_size / 8 cells a side.
root = None  # Folder of patches/, features/ and pretrained_models/. None: $PIXCELL_ROOT, else the current folder.

# --- data ---
# Which patches, and where their features are.
data = dict(
    # PanCancerDataLowRes: crops of 1024-pixel patches. PanCancerData: whole patches of image_size.
    type="PanCancerDataLowRes",
    resolution=None,  # None: image_size; any other value is refused.
    root=None,  # None: root.
    patch_names_file="patch_names_all.hdf5",  # The index, in root/patches/metadata.
    features_dir=None,  # None: beside the images, else root/features, else root/packed.
    ssl_prefix="uni",  # Ending of the embedding files: <column>_<row>_uni.npy.
    train_subset_keys=None,  # Keys of the index to train on, each once. None: all of the size that `type` reads.
    # At an item that cannot be read: raise, or skip: leave it out of its batch, count it and name it.
    on_error="raise",
    max_bad_fraction=0.01,  # Of all items read; more skipped ones stop the run.
    vae_prefix="sd3_vae",  # Ending of the latent files: <column>_<row>_sd3_vae.npy.
    # Ending of masks to control by: <column>_<row>_mask.png, or .npy with several channels. None: none are read.
    mask_prefix=None,
    # Values of masks: 0 and 255; numbers of objects; numbers of classes, from 1 on; or maps of any values.
    mask_kind="binary",
    maps=("nuclei",),  # What each map of a mask shows: its classes, or its channels.
    # Ending of the latents of images to control by, instead of masks: <column>_<row>_control.npy. None: none are read.
    control_prefix=None,
    # Data set whose latents of the same patches control, instead of files beside the patches: mine_he of pairs of
    # stains.
    control_dataset=None,
)

# --- network ---
model = "PixArt_XL_2_UNI"  # A preset of diffusion/model/pixart_config.py.
# Arguments of PixArt that differ from the preset (depth, hidden_size, num_heads, patch_size ...).
model_kwargs = dict()
model_max_length = 1  # Condition tokens: one per 256-pixel window.
caption_channels = 1536  # Width of the embeddings: 1536 for UNI2-h.
use_cond_pos_embed = False  # Positions for the condition tokens, from 512 pixels on.
pe_interpolation = 1.0  # Scale of the position grid; image_size / 512 keeps one scale over all stages.
qk_norm = False  # LayerNorm on queries and keys.
class_dropout_prob = 0.1  # Share of samples that train the null condition.
# Initialise the heads of a new network to attend to one neighbour each; for small networks at 256, needs qk_norm.
local_start = False
fp32_attention = True  # Attention outside autocast: fp16 overflows there in deep networks.
grad_checkpointing = False  # Recompute blocks in the backward pass: less memory, a third more time.
# Train a low-rank adapter of the network in load_from instead of the network.
lora = dict(
    rank=0,  # Rank of the adapter, such as 4; 0: none, the network itself is trained.
    alpha=None,  # The adapter counts alpha / rank. None: the rank, so once.
    # Maps to adapt: cross_attention, self_attention, mlp, or single ones, such as attn2.to_q.
    targets=("cross_attention",),
    # A run or file of an adapter to begin with: trained on if there is a rank, else added to the weights for good; with
    # task control, to those of the network that is steered.
    load_from=None,
)

# --- latents ---
vae_pretrained = "pretrained_models/sd-3.5-vae"  # A diffusers folder below root, or "tiny"; decodes the sample grids.
scale_factor = None  # Network latents = (z - shift_factor) * scale_factor. None: from vae_pretrained's config.json.
shift_factor = None  # Goes together with scale_factor.

# --- loss ---
prediction_type = "epsilon"  # epsilon: noise, as published. v_prediction: velocity, for networks of your own.
min_snr_gamma = None  # 5.0: easy steps, of an SNR above 5, weigh less (Min-SNR, Hang et al. 2023). None: no weights.
# Which timesteps are trained.
timestep_sampling = dict(
    # uniform; logit_normal: middle steps more often (SD3); loss_aware: by the loss, weighted back (Improved DDPM).
    type="uniform",
    mean=0.0,  # Of logit_normal: of the logit of t / 1000; noise and signal are equal at -1.05.
    std=1.0,  # Of logit_normal.
    # Of logit_normal: share of samples with a uniform timestep, for the ends that a narrow one leaves untrained.
    uniform_share=0.0,
)

# --- evaluation ---
# Pictures in TensorBoard at every save.
sample_grid = dict(
    count=8,  # Pictures; 0: none.
    steps=20,  # Steps of the solver.
    # Guidance strength; 1 is none. Commands that sample the run take it, too, unless they are given another.
    guidance=2.0,
)
# The loss on samples that are held out, at every save, at the same noise and timesteps in every run.
validation = dict(
    count=0,  # Samples; 0: no validation.
    type=None,  # None: that of data.
    patch_names_file=None,  # None: that of data; such as patch_names_test.hdf5.
    subset_keys=None,  # None: those of data.
    # Data set of these samples' partners, where it is not that of data.control_dataset or, of a flow,
    # data.source_dataset.
    partner_dataset=None,
)
# Scores every eval_steps, on the tissue of the set that validation names, else of data.
evaluation = dict(
    count=64,  # Samples: few are enough to compare steps, not to compare with papers.
    encoder="mobilenetv2",  # In whose features to score, as pixcell evaluate takes it.
    steps=20,  # Steps of the solver.
    guidance=2.0,  # Guidance strength; 1 is none.
)

# --- start and work dir ---
# What is trained: "denoising" (the diffusion transformer), "control" (a ControlNet beside one), "distillation" (a
# student of few steps), "embedding_flow" (a flow between embeddings) or "codec" (a small latent codec), both with
# settings of their own. Those can stand beside it: dict(type="control", base=...).
task = dict(type="denoising")
load_from = None  # Weights to start from: of a stage before, released ones, or "nano", which comes with the package.
# Weights of load_from to leave out. What follows from the stage (positions, null condition) is initialised in any case.
ignore_keys = ()
freeze = ()  # Parts of the network that are not trained, such as "y_embedder" or "blocks.0.attn".
# A checkpoint, as a file or a folder. None, or "auto": the newest valid one in work_dir, if there is any.
resume_from = None
work_dir = None  # Where checkpoints, curves and samples go. None: output/<name of the config file>.

# --- optimization ---
# The optimizer and its parameters.
optimizer = dict(
    type="AdamW",  # AdamW or Muon, which take two betas and one eps; CAME, which takes three betas and two eps.
    lr=0.0001,  # Learning rate after the warm-up; auto_lr may scale it.
    weight_decay=0.0,  # Decoupled weight decay.
    betas=None,  # None: the optimizer's own. Else a tuple, each 0 <= beta < 1.
    eps=None,  # None: the optimizer's own. Else a number, or a tuple of several.
)
# dict(rule="sqrt" or "linear"): the learning rate grows with the global batch over 256. Empty, or None: it does not.
auto_lr = dict()
lr_schedule = "constant"  # After the warm-up: constant, or cosine, to zero at the last step.
# Arguments of the schedule.
lr_schedule_args = dict(
    num_warmup_steps=0,  # Optimizer steps of linear warm-up, whatever the number of processes.
)
train_batch_size = 32  # Samples per process and step.
gradient_accumulation_steps = 1  # Batches whose gradients are summed for one optimizer step.
gradient_clip = 1.0  # Largest gradient norm, finite; a large one clips nothing.
# Steps in a row that are skipped because loss or gradient is NaN or infinite; after so many the run stops.
max_bad_steps = 10
num_epochs = 10  # Length of the run where max_steps is None.
max_steps = None  # Length of the run in optimizer steps. None: num_epochs.
ema_rate = 0.9999  # Decay of the averaged weights.
# Further averages (EDM2, Karras et al. 2024), from which pixcell average makes one of any length.
power_ema = dict(
    # Spread of each average over the steps, as a share of the run so far; the paper's pair is (0.05, 0.10). Each keeps
    # a copy of the network.
    lengths=(),
    # Optimizer steps between snapshots, each of the size of last_ema.ckpt; 20 to 60 in a run are plenty.
    snapshot_steps=2000,
)
seed = 43  # Of weights, data order and noise: 0 to 2**63 - 1.

# --- speed and memory ---
mixed_precision = "no"  # no, bf16, fp16 (a GPU), or auto: what the processor has in hardware.
compile = False  # torch.compile of the blocks: minutes at the start, faster steps on a GPU.
# FSDP2: every process keeps a part of weights, gradients and optimizer state. accelerate's config can ask for it, too.
use_fsdp = False
deterministic = False  # On a GPU, only kernels that add up in one order: the same bits every time, somewhat slower.
num_workers = 4  # Loader processes per training process.

# --- monitoring and saving ---
log_interval = 50  # Optimizer steps between lines of the log.
save_model_steps = 2000  # Optimizer steps between checkpoints and sample grids.
save_model_epochs = None  # Epochs between further checkpoints. None: none.
keep_last = 3  # Newest checkpoints to keep. None: all.
keep_every = None  # Optimizer steps: checkpoints at multiples of it are kept, too.
# Optimizer steps between scorings of samples, at the same conditions and noise every time. None: no scoring.
eval_steps = None
report_to = ("tensorboard",)  # Where curves and pictures go: any of tensorboard, wandb, mlflow and trackio, or none.
