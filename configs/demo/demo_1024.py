# Stage 3 of the demo: 1024 pixels, from the weights of demo_512.
_base_ = ["./demo_512.py"]

image_size = 1024
data = dict(type="PanCancerData", resolution=image_size)  # whole patches

model_max_length = 16  # a 4 x 4 grid of embeddings
pe_interpolation = 2.0

load_from = "data/demo/stages/demo_512/checkpoints/last_ema.ckpt"

train_batch_size = 1
optimizer = dict(lr=0.004)  # a batch half as large as stage 2's
max_steps = 400  # a quarter of an hour on two cores; after half of them tokens are not yet where they belong
save_model_steps = 200
sample_grid = dict(count=1)
