"""The table of all scores: what each is called, and where it is shown. Command lines read it, so it imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple

DENSITY = "optical density, synthetic less real:"
PRDC_NEIGHBOURS = 5  # of precision, recall, density and coverage, as Naeem et al. 2020


class Quantity(NamedTuple):
    """The title and meaning of a score, and where it is shown.

    more_is_better: None for one that is only compared with others. metric: which of `formats.ALL_METRICS` computes it.
    shown: whether it has a card on top of a report, and a panel in the plots of a sweep. comparable: whether points of a
    sweep and the untrained network are scored by it, too. curve: what its curve over a training run is called; empty for one
    that is not taken while a run trains.
    """

    title: str
    more_is_better: bool | None
    about: str
    metric: str
    shown: bool = False
    comparable: bool = True
    curve: str = ""


QUANTITIES = {  # in the order of reports
    "fd": Quantity(
        "Fréchet distance",
        False,
        "between Gaussians fitted to the features; the FID, if they are Inception's",
        metric="fd",
        shown=True,
        curve="Fréchet distance of samples",
    ),
    "fd_infinity": Quantity(
        "Fréchet distance, extrapolated",
        False,
        "to infinitely many images, which takes its bias away",
        metric="fd_infinity",
        comparable=False,
    ),
    "kid": Quantity(
        "Kernel distance × 1000",
        False,
        "unbiased squared MMD with a cubic kernel; the KID, if features are Inception's",
        metric="kid",
        shown=True,
        curve="kernel distance of samples × 1000",
    ),
    "precision": Quantity(
        "Precision",
        True,
        f"share of synthetic images within reach of a real one: up to its {PRDC_NEIGHBOURS}th neighbour",
        metric="prdc",
        shown=True,
    ),
    "recall": Quantity(
        "Recall", True, "share of real images within reach of a synthetic one", metric="prdc", shown=True
    ),
    "density": Quantity(
        "Density",
        True,
        f"number of real images within whose reach a synthetic one is, over {PRDC_NEIGHBOURS}",
        metric="prdc",
    ),
    "coverage": Quantity("Coverage", True, "share of real images with a synthetic one within reach", metric="prdc"),
    "similarity": Quantity(
        "Similarity of pairs",
        True,
        "mean cosine of a real image and the one sampled for it",
        metric="similarity",
        shown=True,
        curve="similarity of pairs",
    ),
    "random_similarity": Quantity(
        "Similarity of random pairs",
        None,
        "the same of images that do not belong together, to compare with",
        metric="similarity",
    ),
    "above_random": Quantity(
        "Pairs above random",
        True,
        "how often a pair is more similar than a random one; 0.5 is chance",
        metric="similarity",
        shown=True,
        curve="pairs above random",
    ),
    "feature_distance": Quantity(
        "Feature distance of pairs",
        False,
        "Euclidean, where two random real images are 1 apart",
        metric="similarity",
    ),
    "nearest_training": Quantity(
        "Nearest training image",
        None,
        "mean cosine of a synthetic image and the training image most like it",
        metric="neighbours",
        comparable=False,
    ),
    "nearest_training_of_real": Quantity(
        "The same of real images",
        None,
        "to compare with: samples that lie nearer may be copies",
        metric="neighbours",
        comparable=False,
    ),
    "nuclei_number": Quantity(
        "Nuclei, beside real ones", None, "their number over that in real images; 1 is as many", metric="cells"
    ),
    "nuclei_area": Quantity(
        "Area of nuclei, beside real ones", None, "the mean over that of real ones", metric="cells"
    ),
    "nuclei_correlation": Quantity(
        "Correlation of nuclei in pairs",
        True,
        "of their numbers in a real image and in the one sampled for it (Pearson)",
        metric="cells",
        shown=True,
    ),
    "haematoxylin_of_nuclei_difference": Quantity(
        "Haematoxylin of nuclei", None, f"{DENSITY} each nucleus's mean", metric="cells"
    ),
    "eosin_of_nuclei_difference": Quantity("Eosin of nuclei", None, "the same", metric="cells"),
    "haematoxylin_of_stroma_difference": Quantity(
        "Haematoxylin beside nuclei", None, f"{DENSITY} stained tissue beside nuclei", metric="cells"
    ),
    "eosin_of_stroma_difference": Quantity("Eosin beside nuclei", None, "the same", metric="cells"),
    "haematoxylin_angle": Quantity(
        "Hue of haematoxylin",
        False,
        "degrees between the mean stain vectors of synthetic and real images (Macenko)",
        metric="cells",
    ),
    "eosin_angle": Quantity("Hue of eosin", False, "the same", metric="cells"),
    "mask_dice": Quantity(
        "Dice with masks",
        True,
        "overlap of the nuclei found in a sample and the mask that it was made for",
        metric="cells",
        shown=True,
    ),
    "mask_dice_of_others": Quantity(
        "Dice with other images' masks", None, "to compare with: what is alike by chance", metric="cells"
    ),
    "mask_dice_above_others": Quantity("Dice above that", True, "the difference, image by image", metric="cells"),
    "mask_dice_of_real": Quantity(
        "Dice of real images", None, "to compare with: nuclei found in the tissue of the masks", metric="cells"
    ),
    "mask_found": Quantity("Objects of masks found", True, "share of which at least half is covered", metric="cells"),
    "mask_aji": Quantity(
        "Aggregated Jaccard index", True, "of the objects of masks (Kumar et al. 2017)", metric="cells"
    ),
    "mask_pq": Quantity("Panoptic quality", True, "of the objects of masks (Kirillov et al. 2019)", metric="cells"),
    "stain_nuclei_real": Quantity(
        "Positive nuclei, real", None, "mean share of nuclei that DAB stains", metric="stain", comparable=False
    ),
    "stain_nuclei_synthetic": Quantity(
        "Positive nuclei, synthetic", None, "the same of synthetic images", metric="stain", comparable=False
    ),
    "stain_nuclei_correlation": Quantity(
        "Correlation of positive nuclei",
        True,
        "of their share in a real and in its synthetic image (Pearson)",
        metric="stain",
        shown=True,
        comparable=False,
    ),
    "stain_area_correlation": Quantity(
        "Correlation of positive area",
        True,
        "of its size in a real and in its synthetic image (Pearson)",
        metric="stain",
        comparable=False,
    ),
    "stain_dice": Quantity(
        "Dice of positive area",
        True,
        "overlap of where DAB stains a real and its synthetic image",
        metric="stain",
        shown=True,
        comparable=False,
    ),
    "stain_dice_of_others": Quantity(
        "Dice with other real images",
        None,
        "to compare with: what is alike by chance",
        metric="stain",
        comparable=False,
    ),
    "stain_dice_above_others": Quantity(
        "Dice above that", True, "the difference, image by image", metric="stain", comparable=False
    ),
    "stain_call_accuracy": Quantity(
        "Accuracy of calls",
        True,
        "share of synthetic images that are called as the real ones",
        metric="stain",
        shown=True,
        comparable=False,
    ),
    "stain_call_kappa": Quantity(
        "Kappa of calls", True, "agreement above chance (Cohen); 0 is chance", metric="stain", comparable=False
    ),
    "stain_call_weighted_kappa": Quantity(
        "Weighted kappa of calls",
        True,
        "the same with linear weights: two classes apart is twice as wrong as one",
        metric="stain",
        shown=True,
        comparable=False,
    ),
    "stain_call_macro_f1": Quantity(
        "Macro F1 of calls", True, "mean over the classes that occur", metric="stain", comparable=False
    ),
    "stain_call_weighted_f1": Quantity(
        "Weighted F1 of calls", True, "mean over classes by their real numbers", metric="stain", comparable=False
    ),
    "stain_call_mcc": Quantity(
        "Matthews' correlation of calls", True, "of all classes; 0 is chance", metric="stain", comparable=False
    ),
    "stain_psnr": Quantity(
        "PSNR of pairs",
        True,
        "dB, pixel by pixel; of registered images of one section alone",
        metric="stain",
        comparable=False,
    ),
    "stain_ssim": Quantity("SSIM of pairs", True, "structural similarity, likewise", metric="stain", comparable=False),
}
SHOWN = tuple(name for name, each in QUANTITIES.items() if each.shown)
COMPARED_METRICS = tuple(dict.fromkeys(each.metric for each in QUANTITIES.values() if each.comparable))
BEST_BY = tuple(  # by which the best point of a sweep can be chosen
    name for name, each in QUANTITIES.items() if each.comparable and each.more_is_better is not None
)
CURVES = {name: each.curve for name, each in QUANTITIES.items() if each.curve}
CURVE_METRICS = tuple(dict.fromkeys(QUANTITIES[name].metric for name in CURVES))
