# Every key the trainer reads, with the value it has when a config does not set it. tests/config/test_config.py holds them equal.
# diffusion/config/settings.py has every key's type and range. Paths may begin with ~ and have $NAME in them, as in a shell.

image_size = 256  # pixels of a training image; the latents have image_size / 8 cells a side
root = None  # folder of patches/, features/ and pretrained_models/; None: $PIXCELL_ROOT, else the current folder

# data
data = dict(
    type="PanCancerDataLowRes",  # crops of 1024 patches; PanCancerData: whole patches of image_size
    resolution=None,  # None: image_size; any other value is refused
    root=None,  # None: root
    patch_names_file="patch_names_all.hdf5",  # in root/patches/metadata
    features_dir=None,  # None: beside the images, else root/features, else root/packed
    vae_prefix="sd3_vae",  # <column>_<row>_sd3_vae.npy
    ssl_prefix="uni",  # <column>_<row>_uni.npy
    train_subset_keys=None,  # index keys to train on, each once; None: all of the size that `type` reads
    on_error="raise",  # at an item that cannot be read; "skip": leave it out of its batch, count it and name it
    max_bad_fraction=0.01,  # of all items read; more skipped ones stop the run
)

# network
model = "PixArt_XL_2_UNI"  # a preset of diffusion/model/pixart.py
model_kwargs = dict()  # arguments of PixArt that differ from the preset (depth, hidden_size, num_heads, patch_size ...)
model_max_length = 1  # condition tokens: one per 256-pixel window
caption_channels = 1536  # width of the embeddings: 1536 for UNI2-h
use_cond_pos_embed = False  # positions for the condition tokens, from 512 pixels on
pe_interpolation = 1.0  # scale of the position grid; image_size / 512 keeps one scale over all stages
qk_norm = False  # LayerNorm on queries and keys
class_dropout_prob = 0.1  # share of samples that train the null condition
prediction_type = "epsilon"  # noise, as published, or "v_prediction": velocity, for networks of your own

# latents
vae_pretrained = "pretrained_models/sd-3.5-vae"  # diffusers folder below root, or "tiny"; decodes the sample grids
scale_factor = None  # network latents = (z - shift_factor) * scale_factor; None: from vae_pretrained's config.json
shift_factor = None

# where to start and where to write
load_from = None  # weights to start from (a stage before, or released ones)
ignore_keys = ()  # weights of load_from not to take over; what follows from the stage (positions, null condition) is made anew anyway
local_start = False  # a new network's heads start as looks at one neighbour each; for small ones at 256, needs qk_norm
freeze = ()  # parts of the network that are not trained, such as "y_embedder" or "blocks.0.attn"
resume_from = (
    None  # a checkpoint: a file or a folder; None or "auto": the newest whole one in work_dir, if there is any
)
work_dir = None  # None: output/<name of the config file>

# optimization
mixed_precision = "no"  # no, bf16, fp16 (a GPU), or auto: what the processor has in hardware
fp32_attention = True  # attention outside autocast: fp16 overflows there in deep networks
grad_checkpointing = False  # recompute blocks in the backward pass: less memory, a third more time
compile = False  # torch.compile of the blocks: minutes at the start, faster steps on a GPU
deterministic = False  # on a GPU, only kernels that add up in one order: the same bits every time, somewhat slower
use_fsdp = False  # FSDP2: every process keeps a part of weights, gradients, optimizer state; or by accelerate's config
train_batch_size = 32  # per process
gradient_accumulation_steps = 1
gradient_clip = 1.0  # largest gradient norm, finite; a large one clips nothing
max_bad_steps = 10  # in a row with a loss or gradient that is no number: skipped until then, then the run stops
min_snr_gamma = None  # 5.0: easy steps, of an SNR above 5, weigh less (Min-SNR, Hang et al. 2023); None: no weights
timestep_sampling = dict(
    type="uniform",  # or logit_normal: middle steps more often (SD3); loss_aware: by the loss, weighted back (Improved DDPM)
    mean=0.0,  # of logit_normal: of the logit of t / 1000; noise and signal are equal at -1.05
    std=1.0,
)
optimizer = dict(
    type="AdamW",  # or CAME, or Muon
    lr=1e-4,
    weight_decay=0.0,
    betas=None,  # None: the optimizer's own; AdamW and Muon take two, CAME three, each 0 <= beta < 1
    eps=None,  # None: the optimizer's own; AdamW and Muon take one, CAME two
)
auto_lr = dict()  # dict(rule="sqrt" or "linear"): lr grows with the global batch over 256; empty, or None: it does not
lr_schedule = "constant"  # after the warm-up; or "cosine", to zero at the last step
lr_schedule_args = dict(num_warmup_steps=0)  # in optimizer steps, whatever the number of processes
ema_rate = 0.9999  # decay of the averaged weights
power_ema = dict(  # further averages (EDM2, Karras et al. 2024), from which tools/posthoc_ema.py makes one of any length
    lengths=(),  # spread of each over the steps, as a share of the run so far; the paper's pair: (0.05, 0.10). A copy of the network each
    snapshot_steps=2000,  # optimizer steps between their snapshots, each of the size of last_ema.ckpt; 20 to 60 in a run are plenty
)
num_epochs = 10
max_steps = None  # optimizer steps; None: num_epochs long
num_workers = 4  # loader processes per training process
seed = 43  # of weights, data order and noise: 0 to 2**63 - 1

# watching and saving
log_interval = 50  # optimizer steps between lines of the log
save_model_steps = 2000  # optimizer steps between checkpoints and sample grids
save_model_epochs = None  # epochs between further checkpoints; None: none
keep_last = 3  # newest checkpoints to keep; None: all
keep_every = None  # optimizer steps: checkpoints at multiples of it are kept, too
sample_grid = dict(count=8, steps=20, guidance=2.0)  # pictures in TensorBoard at every save; count 0: none
validation = dict(  # loss on samples held out, at every save, at the same noise and timesteps in every run
    count=0,  # how many; 0: no validation
    type=None,  # None: of data
    patch_names_file=None,  # None: of data; such as patch_names_test.hdf5
    subset_keys=None,  # None: of data
)
eval_steps = (
    None  # optimizer steps between scorings of samples, at the same conditions and noise every time; None: none
)
evaluation = dict(  # on the tissue of the set that validation names, else of data
    count=64,  # samples: few are enough to compare steps, not to compare with papers
    encoder="mobilenetv2",  # in whose features, as tools/evaluate.py takes it
    steps=20,
    guidance=2.0,
)
report_to = "tensorboard"  # or none
