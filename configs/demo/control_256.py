# A ControlNet of nuclei masks beside the demo's fine-tuned network: `make demo-control`, once `make demo` has made that.
_base_ = ["./finetune_256.py"]

data = dict(type="PanCancerData", train_subset_keys=["nuclei_256"], mask_prefix="mask")
task = dict(type="control", base="data/demo/finetuned")
load_from = None
class_dropout_prob = 0.0  # the null pass of guidance has no control

optimizer = dict(lr=0.005)  # more than fine-tuning's: projections that begin at zero have far to go
ema_rate = 0.98  # averages the last fifty steps of a short run
max_steps = 240  # some eight minutes on two cores without bfloat16
save_model_steps = 120
