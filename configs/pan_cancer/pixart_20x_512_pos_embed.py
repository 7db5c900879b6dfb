# Stage 2 of the published recipe (arXiv 2506.05127): 512 pixels, from the weights of stage 1.
# 60,000 steps at a global batch of 1536: 24 GPUs x 64.
_base_ = ["./pixart_20x_256.py"]

image_size = 512
data = dict(type="PanCancerDataLowRes", resolution=image_size)  # 4 crops of every 1024 patch

model_max_length = 4  # a 2 x 2 grid of UNI2-h embeddings
use_cond_pos_embed = True  # which says where in the picture each belongs
pe_interpolation = 1.0  # 32 tokens a side span positions 0..32

load_from = "output/pixart_20x_256/checkpoints/last_ema.ckpt"

train_batch_size = 64
gradient_accumulation_steps = 1
max_steps = 60_000
num_workers = 10  # half the samples a step of stage 1
