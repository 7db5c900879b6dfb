# Stage 2 of the demo: 512 pixels, from the weights of demo_256. Four times the tokens, so a quarter of the images a step.
_base_ = ["./demo_256.py"]

image_size = 512
data = dict(resolution=image_size)

model_max_length = 4  # a 2 x 2 grid of embeddings
use_cond_pos_embed = True
pe_interpolation = 1.0

load_from = "data/demo/stages/demo_256/checkpoints/last_ema.ckpt"
local_start = False  # the heads of stage 1 have learned where to look

train_batch_size = 2
optimizer = dict(lr=0.005)  # the weights are good already; a third of stage 1's
max_steps = 400  # four minutes on two cores
save_model_steps = 200
sample_grid = dict(count=4)
