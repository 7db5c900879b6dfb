# Stage 1 of the published recipe (arXiv 2506.05127): 256 pixels from scratch.
# 120,000 steps at a global batch of 4096: 16 GPUs x 128 x 2.
_base_ = ["../_base_.py"]

image_size = 256
data = dict(type="PanCancerDataLowRes", resolution=image_size)  # 16 crops of every 1024 patch: 480 million samples

model = "PixArt_XL_2_UNI"  # 608 M parameters
model_max_length = 1  # one UNI2-h embedding: the crop is one 256-pixel window
pe_interpolation = 0.5  # 16 tokens a side span positions 0..32, as in the later stages

vae_pretrained = "pretrained_models/sd-3.5-vae"
scale_factor = 1.5305  # of SD3's VAE: unit variance
shift_factor = 0.0609

mixed_precision = "fp16"
fp32_attention = True  # fp16 attention scores overflow at this depth
grad_checkpointing = True  # as released, for 128 images a GPU

train_batch_size = 128
gradient_accumulation_steps = 2  # 16 GPUs x 128 x 2 = 4096, the paper's batch
gradient_clip = 0.01  # CAME's updates are normalized, so that this bounds outliers only
# as released: CAME, whose factored moments take less memory than AdamW's. The paper's text says AdamW, weight decay 0.03
optimizer = dict(type="CAME", lr=2e-5, weight_decay=0.0, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16))
lr_schedule_args = dict(num_warmup_steps=1000)  # under a hundredth of the run
class_dropout_prob = 0.1  # what guidance needs
ema_rate = 0.9999  # averages the last ten thousand steps

max_steps = 120_000  # of the paper, about one epoch of 480 million crops
num_epochs = 10  # of the released config; max_steps comes first
num_workers = 16  # 128 samples a step and GPU, each a file of its own
seed = 24  # of the released config
log_interval = 20  # of the released config
save_model_steps = 2000  # sixty times in the run
sample_grid = dict(count=8, steps=20, guidance=2.0)  # the guidance of the best FID at 256
