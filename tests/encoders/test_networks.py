"""UNI2-h, the Inception of the FID, and any network of timm and torchvision by name."""

import pytest
import torch

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import (
    EMBEDDERS,
    build_inception,
    build_uni2h,
)
from diffusion.utils.errors import InputError


def test_uni2h_architecture():
    with torch.device("meta"):
        model = build_uni2h()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(model.blocks) == 24 and model.num_features == EMBEDDERS["uni2"].width == 1536
    assert shapes["reg_token"] == (1, 8, 1536)
    assert shapes["pos_embed"] == (1, 256, 1536)
    assert shapes["blocks.23.mlp.fc1.weight"] == (8192, 1536) and shapes["blocks.23.mlp.fc2.weight"] == (1536, 4096)
    assert not any(name.startswith("head") for name in shapes)
    assert sum(parameter.numel() for parameter in model.parameters()) == 681_394_176


@pytest.mark.slow
def test_uni2h_embeds(windows):
    embedder = PatchEmbedder(build_uni2h().eval(), "uni2", 1536)
    assert embedder.embed(windows[:1]).shape == (1, 1536)


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/vit_tiny_patch16_224", "torchvision/resnet18"])
def test_library_networks_embed_as_their_library_without_classifier(tmp_path, windows, name):
    """Any network by name, its weights with the classifier, seen as its library says: whole windows, its own size."""
    import timm
    import torchvision

    torch.manual_seed(0)
    library, _, network = name.partition("/")
    if library == "timm":
        classifier_model = timm.create_model(network, pretrained=False).eval()
        head = classifier_model.get_classifier()
    else:
        classifier_model = torchvision.models.get_model(network, weights=None).eval()
        head = classifier_model.fc
    path = tmp_path / "weights.pth"
    torch.save(classifier_model.state_dict(), path)
    embedder = PatchEmbedder.load(f"{name}={path}")
    assert embedder.name == network and embedder.fingerprint
    features = embedder.embed(windows)
    assert features.shape == (2, embedder.width)
    with torch.no_grad():
        torch.testing.assert_close(head(features), classifier_model(embedder.transform(windows)), rtol=1e-4, atol=1e-5)


def test_arguments_after_a_question_mark_reach_timm(tmp_path, windows):
    """A pathology encoder is often a known network with layer scale, registers or another image size."""
    import timm

    torch.manual_seed(0)
    arguments = dict(init_values=1e-5, img_size=112, reg_tokens=2, global_pool="avg")
    classifier_model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).eval()
    torch.save(classifier_model.state_dict(), tmp_path / "w.pth")
    name = "timm/vit_tiny_patch16_224?init_values=1e-5&img_size=112&reg_tokens=2&global_pool=avg"
    embedder = PatchEmbedder.load(f"{name}={tmp_path / 'w.pth'}")
    assert embedder.view.size == 112 and embedder.name == "vit_tiny_patch16_224"
    with torch.no_grad():
        expected = classifier_model(embedder.transform(windows))
    torch.testing.assert_close(embedder.embed(windows), expected, rtol=1e-4, atol=1e-5)
    for wrong, message in (("?depht=3", "timm cannot make vit_tiny"), ("?depth", "expected NAME=VALUE")):
        with pytest.raises(InputError, match=message):
            PatchEmbedder.load(f"timm/vit_tiny_patch16_224{wrong}={tmp_path / 'w.pth'}")


def test_a_library_network_has_the_view_of_its_library(tmp_path):
    import timm

    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict(), path)
    view = PatchEmbedder.load(f"timm/vit_tiny_patch16_224={path}").view
    assert (view.size, view.interpolation, view.mean) == (224, "bicubic", (0.5, 0.5, 0.5))


def test_inception_gives_the_features_of_torch_fidelity(tmp_path, windows):
    """The same numbers as torch-fidelity's own extractor gives, from weights that are read as data."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = tmp_path / "weights-inception-2015-12-05-random.pth"
    torch.save(build_inception().state_dict(), path)
    embedder = PatchEmbedder.load(tmp_path)
    assert embedder.name == "inception" and embedder.width == 2048
    own = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.testing.assert_close(embedder.embed(windows), own(windows)[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*embedder.embed(windows))
