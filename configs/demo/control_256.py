# A ControlNet of nuclei masks beside the demo's fine-tuned network: `make demo-control`, once `make demo` has made that.
_base_ = ["./finetune_256.py"]

data = dict(type="PanCancerData", train_subset_keys=["nuclei_256"], mask_prefix="mask")
task = dict(type="control", base="data/demo/finetuned")
load_from = None
class_dropout_prob = 0.0

optimizer = dict(lr=0.005)
ema_rate = 0.98
max_steps = 240
save_model_steps = 120
