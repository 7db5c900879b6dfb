# Stage 3 of the published recipe (arXiv 2506.05127): 1024 pixels, from the weights of stage 2.
# 80,000 steps at a global batch of 384: 32 GPUs x 12.
_base_ = ["./pixart_20x_512_pos_embed.py"]

image_size = 1024
data = dict(type="PanCancerData", resolution=image_size)  # whole patches

model_max_length = 16  # a 4 x 4 grid of UNI2-h embeddings
pe_interpolation = 2.0  # 64 tokens a side span positions 0..32

load_from = "output/pixart_20x_512_pos_embed/checkpoints/last_ema.ckpt"

train_batch_size = 12
max_steps = 80_000
sample_grid = dict(guidance=1.2)  # of the best FID at 1024 (7.92; 10.83 at 2)
