# A student of nano that samples in one to eight steps what its teacher samples in twenty guided ones: docs/fast.md tells of it.
_base_ = ["./finetune_256.py"]

task = dict(
    type="distillation",
    teacher="nano",
    guidance=1.5,
    guidance_interval=(0.3, 5.0),
    teacher_steps=8,
)
load_from = None  # the student begins as its teacher

freeze = ()
train_batch_size = 4  # paths, of which each trains seven jumps
optimizer = dict(lr=0.005)
lr_schedule_args = dict(num_warmup_steps=10)
ema_rate = 0.98  # averages the last fifty steps
max_steps = 230
save_model_steps = 230
log_interval = 10
