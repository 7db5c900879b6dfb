# What a lab does: fine-tune a network that is there. `make demo` fine-tunes nano on the demo's tissue, in a few minutes.
_base_ = ["./nano_256.py"]

root = "data/demo"
data = dict(type="PanCancerDataLowRes", train_subset_keys=["demo_1024"])

load_from = "nano"
local_start = False  # nano's heads have learned where to look

optimizer = dict(lr=0.003)
ema_rate = 0.99
max_steps = 240  # some five minutes on two cores without bfloat16
save_model_steps = 240
sample_grid = dict(guidance=1.5)  # tissue closer to what its embedding says, at no cost to its variety
validation = dict(count=0, subset_keys=None)
