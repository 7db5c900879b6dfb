# An adapter of nano for the demo's simulated stain: `make demo-stain`.
_base_ = ["./finetune_256.py"]

data = dict(type="PanCancerData", train_subset_keys=["stain_dab_256"])
load_from = "nano"
freeze = ()
lora = dict(rank=16, targets=["cross_attention", "self_attention", "mlp"])
class_dropout_prob = 0.1

optimizer = dict(type="AdamW", lr=4e-3, weight_decay=0.0)
max_steps = 180  # some three and a half minutes on two cores without bfloat16
save_model_steps = 180
sample_grid = dict(guidance=1.5)
