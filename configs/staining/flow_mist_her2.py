# A flow from the embeddings of H&E to those of HER2, on the pairs of MIST: docs/staining.md tells of it.
# pixcell train staining/flow_mist_her2
image_size = 1024
data = dict(
    type="PanCancerData",
    patch_names_file="patch_names_train.hdf5",
    train_subset_keys=["mist_her2_1024"],
    source_dataset="mist_he",
)
task = dict(type="embedding_flow")  # the released network: 24.2 M parameters

# the paper's 500 epochs of the 4642 pairs in batches of 512 windows, 32 patches
num_epochs = 500
train_batch_size = 32
optimizer = dict(type="AdamW", lr=1e-4, weight_decay=0.01)
ema_rate = 0.999
num_workers = 4
save_model_steps = 5000
validation = dict(count=256, patch_names_file="patch_names_test.hdf5")
