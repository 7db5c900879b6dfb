# nano, the network that comes with the package, asset/nano: the second of its two stages. docs/nano.md tells of it.
_base_ = ["./nano_start_256.py"]

# the same windows, and all of them turned and mirrored: eight times as many, which it does not learn by heart so soon
data = dict(train_subset_keys=["nano_256", "nano_turned_256"])

# From the first stage, which --load-from names, to finer tissue. Its narrow timesteps hardly held those above 900,
# which lay out light and dark: some uniform ones mend that.
timestep_sampling = dict(type="logit_normal", mean=-1.05, std=0.6, uniform_share=0.15)

local_start = False
optimizer = dict(lr=0.008)
max_steps = 3600
save_model_steps = 600
keep_every = 1200
