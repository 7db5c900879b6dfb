# Stage 3 of the demo: 1024 pixels, from the weights of demo_512.
_base_ = ["./demo_512.py"]

image_size = 1024
data = dict(type="PanCancerData", resolution=image_size)  # whole patches

model_max_length = 16  # a 4 x 4 grid of embeddings
pe_interpolation = 2.0

load_from = "data/demo/stages/demo_512/checkpoints/last_ema.ckpt"

train_batch_size = 1
max_steps = 200  # four minutes on two cores
save_model_steps = 100
sample_grid = dict(count=1)
