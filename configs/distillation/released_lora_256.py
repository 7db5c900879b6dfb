# The same student as an adapter: 33 MB in fp32 beside the released weights, instead of a network. Sampled with --lora.
_base_ = ["./released_256.py"]

lora = dict(rank=8, targets=("cross_attention", "self_attention", "mlp"))
optimizer = dict(lr=1e-4)
