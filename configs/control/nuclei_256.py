# A ControlNet of nuclei masks beside the released PixCell-256: as released, the control is the latents of a mask, white on black.
# `pixcell masks --dataset NAME --size 1024 --vae sd-3.5-vae` makes both. docs/controlnet.md tells of it.
_base_ = ["../_base_.py"]

image_size = 256
data = dict(control_prefix="mask_sd3_vae")
pe_interpolation = 0.5
# 27 of 28 blocks, copied from the network's, which the published training code forgot; the patch embedding learns, too
task = dict(type="control", base="pretrained_models/pixcell-256")

class_dropout_prob = 0.0  # the null pass of guidance has no control

# the paper's: 25,000 steps of 4 on 10,000 patches
train_batch_size = 4
optimizer = dict(type="AdamW", lr=1e-5, weight_decay=0.01)
lr_schedule = "cosine"
lr_schedule_args = dict(num_warmup_steps=500)
max_steps = 25_000
mixed_precision = "bf16"
