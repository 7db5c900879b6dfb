# The same at 512 pixels, beside a network of yours of that size.
_base_ = ["./nuclei_256.py"]

image_size = 512
pe_interpolation = 1.0
model_max_length = 4
use_cond_pos_embed = True
task = dict(base="output/512")
train_batch_size = 2
gradient_accumulation_steps = 2
grad_checkpointing = True
