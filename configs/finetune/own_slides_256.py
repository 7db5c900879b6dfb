# Fine-tuning of released 256-pixel weights on some tens of slides, on one GPU of 24 GB.
# pixcell train finetune/own_slides_256.py --load-from pretrained_models/pixcell-256
_base_ = ["../pan_cancer/pixart_20x_256.py"]

data = dict(train_subset_keys=["mine_1024"])  # of pixcell patches --dataset mine: the slides to train on
# Of --dataset mine_heldout: other slides, which nothing is trained on. Their loss rises when the network overfits.
validation = dict(count=256, subset_keys=["mine_heldout_1024"])

mixed_precision = "bf16"  # on GPUs since Ampere; fp16 before
fp32_attention = False  # bf16 does not overflow: attention in it is faster, and takes less memory
grad_checkpointing = True  # without it 0.45 GB a sample of the batch instead of 0.05, and a quarter less time

train_batch_size = 32  # 15 GB with AdamW, counted; 16 without checkpointing is 21 GB
gradient_accumulation_steps = 1
gradient_clip = 1.0  # AdamW's usual; the published 0.01 goes with CAME
optimizer = dict(type="AdamW", lr=1e-5, weight_decay=0.0, betas=None, eps=None)  # a tenth of a training from nothing
lr_schedule_args = dict(num_warmup_steps=200)  # AdamW's second moments start from nothing
ema_rate = 0.999  # averages the last thousand steps: the run is short

max_steps = 5000  # 160,000 crops: each of 10,000 patches' crops once
num_workers = 4
save_model_steps = 500  # ten times in the run
keep_last = 2  # a state has 9.7 GB
log_interval = 20
