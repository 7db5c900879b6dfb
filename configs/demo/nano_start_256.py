# The first stage of nano, the network that comes with the package: docs/nano.md tells of it, nano_256.py is the second.
_base_ = ["./demo_256.py"]

root = "data/nano"
data = dict(type="PanCancerData", train_subset_keys=["nano_256"])  # whole patches

model_kwargs = dict(depth=6, hidden_size=256, num_heads=8)  # 7.3 M parameters: half precision takes 15 MB

# Edges form where noise and signal are equally strong. Timesteps near there teach sharp tissue sooner than uniform ones.
timestep_sampling = dict(type="logit_normal", mean=-1.05, std=0.7)

optimizer = dict(lr=0.012)
ema_rate = 0.999
max_steps = 5600  # of these windows; after twice as many it knows them by heart, and draws others blurred
save_model_steps = 700
validation = dict(count=64, subset_keys=["nano_heldout_256"])
