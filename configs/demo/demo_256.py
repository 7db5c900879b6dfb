# A network from nothing in minutes, on a laptop's CPU. The recipe's code with smaller numbers, and the choices that learn soonest.
_base_ = ["../_base_.py"]

image_size = 256
root = "data/demo"
data = dict(
    type="PanCancerDataLowRes",
    resolution=image_size,
    vae_prefix="tiny_vae",  # the embedded codec and
    ssl_prefix="mobilenetv2",  # an ImageNet embedder in place of SD3's VAE and UNI2-h
    train_subset_keys=["demo_1024"],
)

model = "PixArt_Ti_2_UNI"  # width 192
# more steps teach more than more blocks in so little time; narrow heads, to look at more of the eight neighbours
model_kwargs = dict(depth=3, num_heads=6)
caption_channels = 1280  # MobileNetV2's embeddings
pe_interpolation = 0.5
qk_norm = True  # keeps attention stable at this learning rate
local_start = True  # as low an error after half the steps; heads that look everywhere alike draw noise for long
prediction_type = "v_prediction"  # colours are right within some hundred steps, and heed the condition

vae_pretrained = "tiny"

# MobileNetV2's embeddings are positive and far from zero mean. Trained at this rate, the projection's hidden units
# all turn negative within some hundred steps and the condition is lost; as it starts, the blocks read it.
freeze = ("y_embedder.y_proj",)

mixed_precision = "auto"
train_batch_size = 8  # more steps teach more than larger batches, too
optimizer = dict(type="Muon", lr=0.014)  # coherent tissue where AdamW, after as many steps, draws loose squares
lr_schedule = "cosine"
lr_schedule_args = dict(num_warmup_steps=100)
ema_rate = 0.99  # averages the last hundred steps; 0.9999 would still hold the random start

max_steps = 1800  # ten minutes on two cores without bfloat16
num_workers = 0  # two cores: a worker would take one from the network
log_interval = 20
save_model_steps = 600
sample_grid = dict(count=8, steps=20, guidance=1.0)
evaluation = dict(guidance=1.0)
