# A ControlNet of nuclei masks beside the demo's fine-tuned network, once `make demo` has made it:
#   pixcell masks --root data/demo --dataset demo --size 1024
#   pixcell train demo/control_256.py --workdir data/demo/controlnet
_base_ = ["./finetune_256.py"]

data = dict(mask_prefix="mask")
task = dict(type="control", base="data/demo/finetuned")
load_from = None
class_dropout_prob = 0.0

# projections that begin at zero learn fast at a rate that coherent blocks bear
optimizer = dict(lr=0.005)
ema_rate = 0.99
max_steps = 1200
save_model_steps = 400
