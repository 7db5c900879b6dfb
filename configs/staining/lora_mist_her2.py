# An adapter that teaches the released PixCell-1024 the look of HER2: rank 4 on the cross-attention, on the IHC images of MIST alone.
# pixcell train staining/lora_mist_her2
_base_ = ["../pan_cancer/pixart_20x_1024_pos_embed.py"]

data = dict(type="PanCancerData", patch_names_file="patch_names_train.hdf5", train_subset_keys=["mist_her2_1024"])
load_from = "pretrained_models/pixcell-1024"
ignore_keys = ()
lora = dict(rank=4)

# the paper's: 10 epochs of batches of 4; what its constant schedule leaves out, a warm-up, does no harm
max_steps = None
num_epochs = 10
train_batch_size = 4
gradient_accumulation_steps = 1
gradient_clip = 1.0
optimizer = dict(type="AdamW", lr=1e-4, weight_decay=0.01, betas=None, eps=None)
lr_schedule_args = dict(num_warmup_steps=100)
ema_rate = 0.999
mixed_precision = "bf16"
grad_checkpointing = True
save_model_steps = 1000
validation = dict(count=128, patch_names_file="patch_names_test.hdf5")
