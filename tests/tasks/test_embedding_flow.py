"""Training flows between embeddings: pairs of stains and priors, resumed to the bit, by the one trainer."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import WIDTH, equal, flow_settings, forget_processes, launch, logged, read, train, train_for

from diffusion.config.flow_settings import EmbeddingFlowConfig, FlowNetworkConfig
from diffusion.config.settings import ValidationConfig
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import index_path
from diffusion.data.index.writer import write_index
from diffusion.model.flow import load_flow
from diffusion.utils.errors import InputError, MissingError


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


PAIRED = dict(train_subset_keys=("ihc_1024",), source_dataset="he")


@pytest.fixture
def paired_root(tmp_path: Path) -> Path:
    """ROOT with twenty patches in two stains, of which the second's embeddings are the first's, turned and shifted."""
    random, root = np.random.default_rng(0), tmp_path / "root"
    turn = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
    names = [f"brca/single_1024/slide_{i % 4}/{i}_0.jpeg" for i in range(20)]
    write_index(index_path(root), {f"{stain}_1024": [f"{stain}/{name}" for name in names] for stain in ("he", "ihc")})
    for name in names:
        tokens = random.normal(size=(16, WIDTH))
        write_feature(feature_path(root / "patches", f"he/{name}", "uni"), tokens)
        write_feature(feature_path(root / "patches", f"ihc/{name}", "uni"), tokens @ turn + 1)
    return root


def test_a_prior_resumes_to_the_bit_and_opens(feature_root, tmp_path):
    config = flow_settings(feature_root, dict(labels="slide"), max_steps=5)
    train(config, tmp_path / "whole", cpu=True)
    train_for(config, tmp_path / "parts", 3)
    train(config, tmp_path / "parts", cpu=True)
    assert equal(read(tmp_path / "whole", 5), read(tmp_path / "parts", 5))
    flow = load_flow(tmp_path / "whole")
    assert flow.config.classes == ("slide_0", "slide_1", "slide_2") and flow.config.shares == pytest.approx([1 / 3] * 3)
    assert flow.config.components == WIDTH and flow.scale is not None
    embeddings = [np.load(path) for path in sorted((feature_root / "patches").rglob("*_uni.npy"))]
    mean = np.concatenate(embeddings).astype(np.float64).mean(0)
    np.testing.assert_allclose(
        flow.scale.means.mean(0).numpy(), mean, atol=1e-5
    )  # the file of averages has the scale, too


def test_grids_of_tokens_and_pairs_resume_on_two_processes(paired_root, tmp_path):
    validation = dict(count=5, subset_keys=("he_1024",))
    prior = dict(flow_data=dict(type="PanCancerData", train_subset_keys=("ihc_1024",)), image_size=1024, max_steps=4)
    pairs = dict(flow_data=PAIRED, max_steps=4)
    runs = [
        (changes, f"{name}_{part}", stop)
        for name, changes in (("prior", prior), ("pairs", pairs))
        for part, stop in (("whole", None), ("parts", 2), ("parts", None))
    ]
    launch(paired_root, tmp_path, [({**changes, "validation": validation}, *rest) for changes, *rest in runs])
    for name in ("prior", "pairs"):
        assert equal(read(tmp_path / f"{name}_whole", 4), read(tmp_path / f"{name}_parts", 4))
    assert load_flow(tmp_path / "prior_whole").config.tokens == 16


def test_a_flow_learns_a_map_between_stains(paired_root, tmp_path):
    validation = ValidationConfig(count=8, subset_keys=("ihc_1024",))
    sizes = dict(embedding_flow=FlowNetworkConfig(hidden_size=64, depth=2), train_batch_size=16)
    config = flow_settings(paired_root, PAIRED, max_steps=150, save_model_steps=150, ema_rate=0.9, **sizes)
    config = EmbeddingFlowConfig(**{**vars(config), "validation": validation, "report_to": ("tensorboard",)})
    train(config, tmp_path / "run", cpu=True)
    loss, cosine, before = (
        logged(tmp_path / "run", f"validation/{name}") for name in ("loss", "cosine", "cosine_source")
    )
    assert loss[150] < 0.1 * loss[0] and cosine[150] > 0.7 > 2 * before[0]
    assert before[0] == before[150] == pytest.approx(cosine[0])  # an untrained flow moves nothing
    flow = load_flow(tmp_path / "run")
    path = next((paired_root / "patches/he").rglob("*_uni.npy"))
    target = torch.from_numpy(np.load(Path(str(path).replace("/he/", "/ihc/")))).float()
    translated = flow.translate(torch.from_numpy(np.load(path)).float(), 20)
    assert torch.cosine_similarity(translated, target).mean() > 0.7


def test_a_flow_goes_on_from_another(paired_root, tmp_path):
    train(flow_settings(paired_root, PAIRED), tmp_path / "first", cpu=True)
    forget_processes()
    first = str(tmp_path / "first/checkpoints/last_ema.ckpt")
    train(flow_settings(paired_root, PAIRED, load_from=first, max_steps=0), tmp_path / "second", cpu=True)
    weights, again = (load_flow(tmp_path / name).state_dict() for name in ("first", "second"))
    assert equal(dict(weights), dict(again))
    forget_processes()
    with pytest.raises(InputError, match="is a flow with from_noise False, and the data are of True"):
        train(flow_settings(paired_root, load_from=first), tmp_path / "third", cpu=True)


def test_faults_of_the_data_are_named(paired_root, tmp_path):
    with pytest.raises(MissingError, match="no features at .*other/brca"):
        train(flow_settings(paired_root, {**PAIRED, "source_dataset": "other"}), tmp_path / "a", cpu=True)
    forget_processes()
    path = next((paired_root / "patches/he").rglob("*_uni.npy"))
    write_feature(path, np.zeros((16, WIDTH + 1)))
    with pytest.raises(InputError, match=r"the tokens of he/.* are \(1, 9\), and those of ihc/.* \(1, 8\)"):
        train(flow_settings(paired_root, PAIRED, max_steps=100), tmp_path / "b", cpu=True)
    forget_processes()
    table = tmp_path / "classes.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "class"), ("slide_1", "tumour"), ("he", "rest"), ("slide_1", "stroma")])
    with pytest.raises(InputError, match="name slide_1 is of tumour and of stroma"):
        train(flow_settings(paired_root, dict(labels=str(table))), tmp_path / "c", cpu=True)
    with pytest.raises(InputError, match="labels are of a prior"):
        flow_settings(paired_root, {**PAIRED, "labels": "slide"})


def test_a_table_gives_classes(paired_root, tmp_path):
    """The nearest line counts: a patch's, its slide's, then its data set's; without one it is left out."""
    table = tmp_path / "classes.csv"
    rows = [("slide_1", "tumour"), ("he", "rest"), ("ihc/brca/single_1024/slide_1/1_0.jpeg", "stroma")]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "class"), *rows])
    train(flow_settings(paired_root, dict(labels=str(table)), max_steps=0), tmp_path / "run", cpu=True)
    config = load_flow(tmp_path / "run").config
    # of he 5 patches of slide_1 and 15 others; of ihc 4 of slide_1 and the one that has a line of its own
    assert config.classes == ("rest", "stroma", "tumour") and config.shares == pytest.approx((15 / 25, 1 / 25, 9 / 25))


def test_packed_sets_hold_what_flows_and_controlnets_read(paired_root, tmp_path):
    """Embeddings, and latents of partners, are found in sets that were packed with more parts than are asked for."""
    import shutil

    from diffusion.cli.commands.pack import pack
    from diffusion.data.batch import PatchItem
    from diffusion.data.datasets.embeddings import EmbeddingData
    from diffusion.data.datasets.pan_cancer import PanCancerDataLowRes
    from diffusion.data.sampler import Draw

    random = np.random.default_rng(1)
    for path in sorted((paired_root / "patches").rglob("*_uni.npy")):
        write_feature(path.with_name(path.name.replace("_uni", "_sd3_vae")), np.abs(random.normal(size=(32, 128, 128))))
    arguments = dict(root=paired_root, resolution=512, train_subset_keys=["ihc_1024"], control_dataset="he")
    plain = PanCancerDataLowRes(**arguments)
    item = plain[Draw(6, 3)]  # crop 2, the left one below, of the second patch
    assert isinstance(item, PatchItem) and item.control is not None
    partner = np.load(paired_root / "patches" / item.name.replace("ihc/", "he/").replace(".jpeg", "_sd3_vae.npy"))
    np.testing.assert_array_equal(item.control.numpy(), partner[:16, 64:, :64].astype(np.float32))
    flow = EmbeddingData(paired_root, 512, train_subset_keys=["ihc_1024"], patch_size=1024, source_dataset="he")
    expected = flow[6]
    for dataset in ("he", "ihc"):
        pack(dataset=f"{dataset}_1024", root=paired_root)
    for path in (paired_root / "patches").rglob("*.npy"):
        path.unlink()
    shutil.rmtree(paired_root / "features", ignore_errors=True)
    packed = PanCancerDataLowRes(**arguments)[Draw(6, 3)]
    assert torch.equal(packed.control, item.control) and torch.equal(packed.latent, item.latent)
    found = EmbeddingData(paired_root, 512, train_subset_keys=["ihc_1024"], patch_size=1024, source_dataset="he")[6]
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.source, expected.source)
    assert not torch.equal(found.source, found.tokens)


def test_a_trained_prior_draws_the_class_that_is_asked_for(paired_root, tmp_path, capsys):
    """The command, from the index to the scores: two data sets whose embeddings differ by one in each value."""
    import json

    from diffusion.cli.commands.prior import prior
    from diffusion.generation.priors import open_prior

    metadata, names = paired_root / "patches/metadata", listed(paired_root)
    write_index(metadata / "train.hdf5", {key: each[:15] for key, each in names.items()})
    write_index(metadata / "test.hdf5", {key: each[15:] for key, each in names.items()})
    arguments = dict(
        labels="dataset",
        index="train.hdf5",
        workdir=tmp_path / "prior",
        held_out="test.hdf5",
        batch_size=32,
        lr=3e-3,
        hidden_size=64,
        depth=2,
    )
    assert prior(root=paired_root, max_steps=400, device="cpu", **arguments) == 0
    printed = capsys.readouterr().out
    assert "Fréchet distance, drawn to held-out" in printed
    scores = json.loads((tmp_path / "prior/prior.json").read_text())
    assert scores["values"]["accuracy"] > 0.85 * scores["values"]["accuracy_real"] > 0.7
    assert scores["counts"]["training"] == 480
    drawn = {
        name: open_prior(tmp_path / "prior", (name,), 1, WIDTH).draw(range(100))[0].mean().item()
        for name in ("he", "ihc")
    }
    assert drawn["ihc"] - drawn["he"] == pytest.approx(1, abs=0.4)
    forget_processes()
    with pytest.raises(MissingError, match="no index at"):
        prior(
            root=paired_root, device="cpu", **{**arguments, "held_out": "nowhere.hdf5", "workdir": tmp_path / "other"}
        )
    forget_processes()
    with pytest.raises(
        InputError, match="--held-out test.hdf5: 10 of its 10 patches are in the index that is trained on"
    ):
        prior(
            root=paired_root,
            device="cpu",
            **{**arguments, "index": "patch_names_all.hdf5", "workdir": tmp_path / "other"},
        )
    assert not (tmp_path / "other").exists(), "what is wrong costs no training"


def listed(root: Path) -> dict[str, list[str]]:
    """The names of an index by key."""
    from diffusion.data.index.patch_index import index_keys, iterate_names

    path = index_path(root)
    return {key: list(iterate_names(path, key)) for key in index_keys(path)}


def test_a_damaged_file_is_passed_over_where_that_is_asked_for(paired_root, tmp_path):
    path = sorted((paired_root / "patches/he").rglob("*_uni.npy"))[0]
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="is not a whole .npy file"):
        train(flow_settings(paired_root), tmp_path / "a", cpu=True)
    forget_processes()
    train(flow_settings(paired_root, dict(on_error="skip", max_bad_fraction=0.5)), tmp_path / "b", cpu=True)
    assert load_flow(tmp_path / "b").config.components == WIDTH


def test_configs_of_stains_train_as_long_as_the_paper():
    from diffusion.config.files import find_config, load_config
    from diffusion.tasks.registry import CONFIGS
    from diffusion.training.plan import plan_run

    steps = {
        name: plan_run(load_config(find_config(f"staining/{name}_mist_her2"), {}, CONFIGS), 4642, 1).total_steps
        for name in ("flow", "lora", "control")
    }
    assert steps["flow"] == pytest.approx(500 * 4642 / 32, rel=0.01) and steps["lora"] == pytest.approx(
        11_600, rel=0.01
    )
    assert steps["control"] == 25_000


def test_held_out_pairs_have_partners_of_their_own(paired_root, tmp_path):
    """Held-out patches may have the names of training patches in another data set, and partners in a third."""
    import shutil

    for stain in ("he", "ihc"):
        shutil.copytree(paired_root / f"patches/{stain}", paired_root / f"patches/{stain}_test")
    for path in (paired_root / "patches/he_test").rglob("*_uni.npy"):
        write_feature(path, np.load(Path(str(path).replace("/he_test/", "/ihc/"))))  # here both stains are equal
    names = listed(paired_root)["ihc_1024"]
    write_index(
        index_path(paired_root),
        {"ihc_test_1024": [name.replace("ihc/", "ihc_test/") for name in names]},
        index_path(paired_root),
    )
    cosines = []
    for partner in (None, "he_test"):
        validation = ValidationConfig(count=8, subset_keys=("ihc_test_1024",), partner_dataset=partner)
        config = flow_settings(paired_root, PAIRED, max_steps=0, validation=validation, report_to=("tensorboard",))
        train(config, tmp_path / str(partner), cpu=True)
        forget_processes()
        cosines.append(logged(tmp_path / str(partner), "validation/cosine_source")[0])
    assert cosines[0] < 0.9 and cosines[1] == pytest.approx(1)
