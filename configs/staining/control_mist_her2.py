# A ControlNet that reads the latents of the H&E, beside PixCell-1024 with the adapter: stained pictures keep the tissue's structure.
# It learns from pairs that lie pixel on pixel, as HER2Match's; MIST's neighbouring sections teach it the layout and no single cell.
# pixcell train staining/control_mist_her2
_base_ = ["./lora_mist_her2.py"]

data = dict(control_dataset="mist_he")
task = dict(type="control", base="pretrained_models/pixcell-1024")
load_from = None
lora = dict(rank=0, load_from="output/lora_mist_her2")
class_dropout_prob = 0.0  # the null pass of guidance has no control

train_batch_size = 1
gradient_accumulation_steps = 4
optimizer = dict(type="AdamW", lr=1e-5, weight_decay=0.01, betas=None, eps=None)
lr_schedule_args = dict(num_warmup_steps=500)
max_steps = 25_000
