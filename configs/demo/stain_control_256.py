# A ControlNet that reads the latents of the H&E, beside the adapted network: `make demo-stain`.
_base_ = ["./stain_lora_256.py"]

data = dict(control_dataset="stain_he")
task = dict(type="control", base="nano", copy_embedder=True)
load_from = None
lora = dict(rank=0, load_from="data/demo/stain_lora", targets=["cross_attention"])
class_dropout_prob = 0.0  # the null pass of guidance has no control

train_batch_size = 4  # twice the steps of the same time, which a ControlNet that begins as nothing needs
optimizer = dict(type="Muon", lr=0.005)
ema_rate = 0.98
max_steps = 225  # some five and a half minutes on two cores without bfloat16
save_model_steps = 225
