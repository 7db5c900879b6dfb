# A flow between the embeddings of the demo's H&E and its simulated stain: `make demo-stain`.
root = "data/demo"
image_size = 256
data = dict(
    type="PanCancerData", ssl_prefix="mobilenetv2", train_subset_keys=["stain_dab_256"], source_dataset="stain_he"
)
task = dict(type="embedding_flow", hidden_size=512, depth=6)

train_batch_size = 64
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.01)
lr_schedule = "cosine"
lr_schedule_args = dict(num_warmup_steps=50)
ema_rate = 0.99
max_steps = 300  # three quarters of a minute on two cores
save_model_steps = 150
log_interval = 50
validation = dict(count=20, subset_keys=["stain_heldout_dab_256"], partner_dataset="stain_heldout_he")
report_to = ("tensorboard",)
