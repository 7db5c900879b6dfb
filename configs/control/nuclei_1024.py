# The same at 1024 pixels, beside the released PixCell-1024.
_base_ = ["./nuclei_256.py"]

image_size = 1024
data = dict(type="PanCancerData")
pe_interpolation = 2.0
model_max_length = 16
use_cond_pos_embed = True
task = dict(base="pretrained_models/pixcell-1024")
train_batch_size = 1
gradient_accumulation_steps = 4
grad_checkpointing = True
