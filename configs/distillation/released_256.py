# A student of the released PixCell-256: four steps, and no null pass, instead of twenty guided ones. docs/fast.md tells of it.
# pixcell train distillation/released_256 --root data
_base_ = ["../finetune/own_slides_256.py"]

# the guidance of the best FID at 256
task = dict(type="distillation", teacher="pretrained_models/pixcell-256", guidance=2.0)

train_batch_size = 16  # paths; each trains seven jumps, so 112 samples a step
optimizer = dict(lr=2e-5)
lr_schedule = "cosine"
ema_rate = 0.995
max_steps = 4000  # 64,000 paths
