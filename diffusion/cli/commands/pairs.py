"""pixcell pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from diffusion.cli import options
from diffusion.cli.commands.index import Share
from diffusion.cli.parser import plain_name
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.data.slides.grid import WHOLE_SLIDE
from diffusion.formats import DEFAULT_INDEX

if TYPE_CHECKING:
    import numpy as np

    from diffusion.data.pairs.layout import PairLayout
    from diffusion.data.pairs.sources import TilePair
    from diffusion.data.pairs.tiles import TileSettings
    from diffusion.data.slides.records import CutSettings

DEFAULT_SHARE = 0.9
Wrong = list[tuple[str, str]]  # files, and why they made no pair


@checked
def pairs(
    source: Annotated[
        Path,
        Option(
            options.SOURCE,
            metavar="PATH",
            note=": a folder of H&E images, or with --layout slides an H&E slide; of MIST and HER2Match the folder of both stains",
        ),
    ],
    dataset: Annotated[options.Dataset, Here(note="; of the pairs <dataset>_he and <dataset>_<stain>")],
    target: Annotated[
        Path | None,
        Option(
            "the other stain: a folder of images with the names of those of --source, in the same sub-folders, or a slide [in --source, as "
            "--layout says]",
            metavar="PATH",
        ),
    ] = None,
    layout: Annotated[
        Literal["folders", "mist", "her2match", "slides"],
        Option(
            "how the source is laid out: two folders of equal names, also in sub-folders, or with train, val and test in them; MIST's "
            "TrainValAB; HER2Match's HE_20x and IHC_20x; or two slides"
        ),
    ] = "folders",
    stain: Annotated[str, Option("what the other stain is called, such as her2", plain_name)] = "ihc",
    cohort: Annotated[
        str | None,
        Option(f"{options.COHORT} [the split of the source, where it has splits, else all]", plain_name),
    ] = None,
    size: options.Size = 1024,
    mpp: Annotated[options.Mpp, Here(note="; of the patches, and of the network")] = 0.5,
    image_mpp: Annotated[
        options.ImageMpp,
        Here("slides: what the file says; images: pixel for pixel, and smaller squares are enlarged to --size"),
    ] = None,
    slide_pattern: Annotated[
        str | None,
        Option(
            "regular expression with one group, which is the slide in the name of an image without suffix, such as (.+)_[0-9]+_[0-9]+ "
            "[its sub-folder; an image in none is a slide of its own]"
        ),
    ] = None,
    registration: Annotated[
        Path | None,
        Option(
            "affine matrix of 2 x 3 or 3 x 3 numbers, .json, .csv, .txt or .npy, from pixels (x, y) of the source's finest level to the "
            "target's [fitted to --landmarks]"
        ),
    ] = None,
    landmarks: Annotated[
        tuple[Path, Path] | None,
        Option(
            "the same points in both slides, in one order, in pixels of the finest levels: .csv with columns X and Y, .pts or GeoJSON; at "
            "least 3 [none: --registration]",
            metavar=("SOURCE_FILE", "TARGET_FILE"),
        ),
    ] = None,
    tissue_threshold: options.TissueThreshold = 0.5,
    max_blur: options.MaxBlur = 0.68,
    quality: options.JpegQuality = 95,
    split: Annotated[Share, Here(f"as the folders of the source say, else {DEFAULT_SHARE:g}")] = None,
    index: options.DataIndex = DEFAULT_INDEX,
    vae: Annotated[
        str | None,
        Option(
            f"{options.CODEC} [none; with one, and --encoder, the features of both stains are extracted, too]",
            completes="folder",
        ),
    ] = None,
    encoder: Annotated[str | None, Option(f"{options.ENCODER} [none]", completes="file")] = None,
    seed: options.Seed = 0,
    workers: options.WorkersPerCore = None,
    root: options.Root = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    stride: options.Stride = None,
    area: options.Area = WHOLE_SLIDE,
) -> int:
    """Make pairs of patches from images or slides of the same tissue in two stains, for virtual staining.

    They become two data sets, <dataset>_he and <dataset>_<stain>, with the same names below them, in one order in the index, and on
    the same side of the split: patch_names_train.hdf5 and patch_names_test.hdf5, by the folders of the source (val counts as test
    where there is no test, else it goes to patch_names_val.hdf5), or by slide: the sub-folder that images lie in, a/b as a+b, or what
    --slide-pattern finds; other images are slides of their own. RGB images of --size pixels are copied as they are;
    others are resampled from --image-mpp, and cut to squares <name>_<column>_<row>. Two slides are cut as pixcell patches does; the
    second is read through the registration, and where it ends, or is glass, there is no pair. What is there is not made again, and
    pairs that were made otherwise are refused. Files without a partner, or that cannot be read, are listed with the reason in
    pairs_wrong_<dataset>_<stain>_<size>.txt beside the index, and the exit code is then 1.

    Examples:
      pixcell pairs --layout mist --source MIST/HER2 --dataset mist --stain her2
      pixcell pairs --layout her2match --source HER2Match --dataset her2match --stain her2 --vae pretrained_models/sd-3.5-vae --encoder uni2
      pixcell pairs --source tiles/he --target tiles/ki67 --dataset mine --stain ki67 --slide-pattern "(.+)_[0-9]+_[0-9]+"
      pixcell pairs --layout slides --source he.svs --target er.svs --registration he_to_er.json --dataset mine --stain er
    """
    from diffusion.data.index.patch_index import index_path
    from diffusion.data.pairs.layout import HE, PairLayout
    from diffusion.data.pairs.pair_index import check_pairs, write_pair_index
    from diffusion.data.slides.grid import Grid
    from diffusion.data.slides.records import CutSettings
    from diffusion.formats import PATCHES_DIR
    from diffusion.utils.errors import InputError
    from diffusion.utils.files import check_writable, write_faults
    from diffusion.utils.hardware import count_cores
    from diffusion.utils.text import default_root

    if stain == HE:
        raise InputError(f"--stain {HE}: this is the stain of --source; name the other one, such as ihc")
    if (vae is None) != (encoder is None):
        raise InputError(
            "--vae and --encoder belong together: features are latents of the one and embeddings of the other"
        )
    if (target is None) != (layout in ("mist", "her2match")):
        given = "no" if target is None else "a"
        raise InputError(
            f"--layout {layout} and {given} --target: mist and her2match have both stains in --source, and the others not"
        )
    if layout == "slides":
        of_images = {"slide_pattern": slide_pattern, "workers": workers}
        refuse_unused(pairs, of_images, "with --layout slides: one pair of slides, named as the source's file")
        if (registration is None) == (landmarks is None):
            raise InputError(
                "--layout slides: expected --registration FILE, or --landmarks SOURCE_FILE TARGET_FILE, and not both"
            )
    else:
        of_slides = {
            "registration": registration,
            "landmarks": landmarks,
            "tissue_threshold": tissue_threshold,
            "max_blur": max_blur,
            "stride": stride,
            "area": area,
        }
        refuse_unused(pairs, of_slides, "without --layout slides")
    if vae is None:
        refuse_unused(
            pairs, {"batch_size": batch_size, "device": device}, "without --vae and --encoder, which extract features"
        )
    root = root or default_root()
    check_writable(root / PATCHES_DIR)
    path, places = index_path(root, index), PairLayout(root, dataset, stain, size)
    check_pairs(path, places)
    wrong: Wrong = []
    if layout == "slides":
        assert target is not None
        settings = CutSettings(Grid(size, stride or size, area), mpp, image_mpp, tissue_threshold, max_blur, quality)
        matrix = find_map(source, target, registration, landmarks, settings)
        names = {"": pair_slides(source, target, matrix, cohort or "all", places, settings)}
    else:
        from diffusion.data.pairs.sources import find_pairs
        from diffusion.data.pairs.tiles import TileSettings

        found = find_pairs(layout, source, target, slide_pattern)
        if any(pair.split for pair in found.pairs):
            refuse_unused(pairs, {"split": split, "seed": seed}, "where the source has the folders train, val or test")
        wrong += found.unmatched
        tiles = TileSettings(stain, mpp, image_mpp, quality, slide_pattern)
        names, faults = pair_tiles(found.pairs, cohort, places, tiles, workers or count_cores())
        wrong += faults
    if any(names.values()):
        sides = write_pair_index(path, places, names, split or DEFAULT_SHARE, seed)
        print_sides(sides, path)
    listing = path.with_name(f"pairs_wrong_{places.dataset}_{stain}_{size}.txt")
    write_faults(listing, wrong)
    if wrong:
        print(f"listed: {listing}")
    if not any(names.values()):
        print("no pair was made, and the index is as before")
        return 1
    code = extract(places, index, root, vae, encoder, batch_size, device)
    return 1 if wrong else code


def pair_tiles(
    found: Sequence[TilePair], cohort: str | None, places: PairLayout, settings: TileSettings, workers: int
) -> tuple[dict[str, list[str]], Wrong]:
    """Make the patches of pairs of images; return the names of the H&E patches by split, and the files that made none."""
    import sys
    from contextlib import closing

    from tqdm import tqdm

    from diffusion.data.pairs.sources import check_distinct
    from diffusion.data.pairs.tiles import make_tile_pairs

    by_cohort: dict[str, list[TilePair]] = {}
    for pair in found:
        by_cohort.setdefault(cohort or pair.split or "all", []).append(pair)
    for group in by_cohort.values():
        check_distinct(group)
    names: dict[str, list[str]] = {}
    wrong: Wrong = []
    made, enlarged = 0, 0
    for each, group in by_cohort.items():
        with closing(make_tile_pairs(group, each, places, settings, workers)) as outcomes:
            for pair, outcome in tqdm(outcomes, total=len(group), unit="pair", desc=each, leave=False):
                if outcome.error is not None:
                    wrong.append((str(pair.source), outcome.error))
                    tqdm.write(f"left out: {outcome.error}", file=sys.stderr)
                names.setdefault(pair.split, []).extend(outcome.names)
                made += outcome.written > 0
                enlarged += outcome.enlarged
    there = len(found) - made - len(wrong)
    print(
        f"{', '.join(places.keys)}: {made} pairs of images made to patches, {there} were there, {len(wrong)} left out"
    )
    if enlarged:
        print(
            f"{enlarged} pairs of smaller images were enlarged to {places.size} pixels; give --image-mpp or another --size if that is not "
            "what they are"
        )
    return names, wrong


def find_map(
    source: Path,
    target: Path,
    registration: Path | None,
    landmarks: tuple[Path, Path] | None,
    settings: CutSettings,
) -> np.ndarray:
    """Return the affine map from a source slide to its target, float64 (3, 3); say how well it fits landmarks."""
    from diffusion.data.pairs.registered_slides import check_landmarks, target_mpp
    from diffusion.data.pairs.registration import fit_landmarks, read_landmarks, read_registration

    if landmarks is None:
        assert registration is not None
        return read_registration(registration)
    first, second = map(read_landmarks, landmarks)
    check_landmarks(first, landmarks[0], source)
    check_landmarks(second, landmarks[1], target)
    count = min(len(first), len(second))
    if len(first) != len(second):
        print(f"{len(first)} and {len(second)} landmarks: the first {count} of both are taken as pairs")
    matrix, distances = fit_landmarks(first[:count], second[:count])
    mean, largest = distances.mean(), distances.max()
    um = target_mpp(source, matrix, settings)
    print(
        f"affine map of {count} landmarks: residual {mean:.1f} pixels of the target ({mean * um:.1f} um) on average, at most {largest:.1f} "
        f"({largest * um:.1f} um)"
    )
    return matrix


def pair_slides(
    source: Path, target: Path, matrix: np.ndarray, cohort: str, places: PairLayout, settings: CutSettings
) -> list[str]:
    """Make the pairs of patches of two slides, say how many and why not more, and return the names of the H&E patches."""
    from functools import partial

    from tqdm import tqdm

    from diffusion.data.pairs.registered_slides import UNMATCHED, cut_slide_pair, list_pairs
    from diffusion.data.slides.reader import PIXEL_FOR_PIXEL

    show = partial(tqdm, desc=source.name, unit="square", leave=False)
    record = cut_slide_pair(source, target, matrix, cohort, places, settings, show)
    reasons = ", ".join(f"{reason} {count}" for reason, count in record.dropped.items())
    before = "; made before" if record.is_earlier else ""
    print(f"{', '.join(places.keys)}: {record.patches} pairs of {source.name} and {target.name}, {record.note}{before}")
    if reasons:
        unmatched = sum(record.dropped.get(reason, 0) for reason in UNMATCHED)
        print(f"squares without a pair: {reasons}; {unmatched} of them have tissue and no partner")
    if record.note.endswith(PIXEL_FOR_PIXEL):
        print(
            f"{source.name}: no microns per pixel in the file, so taken pixel for pixel, as {settings.mpp:g} um/px; if that is not so, "
            "delete its patches and give --image-mpp"
        )
    print(f"picture and record: {places.cohorts(cohort)[0] / f'slides_{places.size}'}")
    if not record.patches and record.dropped.get(UNMATCHED[0]):
        print(
            "does the map lead from source to target, in pixels of the finest levels, x before y? By it patches lie outside of the target"
        )
    return list_pairs(source, cohort, places, settings)


def print_sides(sides: Mapping[str, Sequence[str]], path: Path) -> None:
    """Print how many pairs and slides each side of the split has, and where they are listed."""
    from diffusion.data.index.split import slide_name
    from diffusion.data.pairs.pair_index import side_path

    filled = {side: names for side, names in sides.items() if names}
    for side, names in filled.items():
        print(f"{side}: {len(names)} pairs of {len({slide_name(name) for name in names})} slides")
    if len(filled) == 1:
        print(
            "all pairs are on one side: further slides will be divided, or pixcell index --split divides what there is"
        )
    print(f"written: {', '.join([path.name, *(side_path(path, side).name for side in filled)])} in {path.parent}")


def extract(
    places: PairLayout,
    index: str,
    root: Path,
    vae: str | None,
    encoder: str | None,
    batch_size: int | None,
    device: Literal["auto", "cpu", "cuda", "mps"],
) -> int:
    """Extract the features of both stains, or say how; return the exit code."""
    from diffusion.cli.commands.features import features
    from diffusion.utils.text import default_root

    code = 0
    for dataset in places.datasets:
        if vae is None or encoder is None:
            named = "" if index == DEFAULT_INDEX else f" --index {index}"
            named += "" if root == default_root() else f" --root {root}"
            print(f"next: pixcell features --dataset {dataset} --size {places.size}{named}")
            continue
        done = features(
            dataset=dataset,
            size=places.size,
            index=index,
            vae=vae,
            encoder=encoder,
            root=root,
            batch_size=batch_size,
            device=device,
        )
        code = max(code, done)
    return code
