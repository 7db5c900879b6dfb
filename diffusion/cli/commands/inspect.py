"""pixcell inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import natural_int, output_file
from diffusion.cli.signature import Option, checked
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX, VAE_PREFIX

if TYPE_CHECKING:
    from diffusion.data.index.survey import KeySurvey


@checked
def inspect(
    dataset: options.AnyDatasets = None,
    index: options.DataIndex = DEFAULT_INDEX,
    features: options.DataFeatures = None,
    latent_suffix: options.LatentSuffix = VAE_PREFIX,
    embedding_suffix: options.EmbeddingSuffix = SSL_PREFIX,
    sample: Annotated[int, Option("patches of a key whose files are looked for; 0: all", natural_int)] = 10_000,
    pictures: Annotated[int, Option("patches on the sheet; 0: no sheet", natural_int)] = 48,
    out: Annotated[
        Path | None, Option(f"{options.OUT} [contact_sheet.png beside the index]", output_file, metavar="FILE")
    ] = None,
    seed: options.Seed = 0,
    root: options.Root = None,
    mask_suffix: options.MaskSuffix = None,
    control_suffix: options.ControlSuffix = None,
) -> None:
    """Show what an index holds: patches, slides, features, and a sheet of pictures.

    They are counted by data set and cohort. Files are looked for, not read: pixcell verify reads them. On a large index a random
    sample of each key is looked for. The sheet is a PNG.

    Examples:
      pixcell inspect
      pixcell inspect --root data/demo --latent-suffix tiny_vae --embedding-suffix mobilenetv2 --out sheet.png
    """
    import random

    from diffusion.data.features.parts import part_prefixes
    from diffusion.data.index.patch_index import PatchIndex, find_keys, index_keys, index_path
    from diffusion.data.index.survey import render_patch_sheet, survey_key
    from diffusion.utils.files import atomic_write
    from diffusion.utils.text import default_root, format_table

    root = root or default_root()
    path = index_path(root, index)
    prefixes, draw = part_prefixes(latent_suffix, embedding_suffix, mask_suffix, control_suffix), random.Random(seed)
    rows = [("key", "cohort", "patches", "slides")]
    lines, shown = [], []
    present = index_keys(path)
    for key in find_keys(present, dataset) if dataset else present:
        found = survey_key(root, PatchIndex(path, [key]), features, prefixes, sample, draw)
        rows += [(key, cohort, f"{each.patches:,}", f"{each.slides:,}") for cohort, each in found.cohorts.items()]
        lines.append(f"{key}: {describe_coverage(found)}")
        shown += found.draw_names(pictures, draw)
    print(format_table(rows, "llr"))
    print("\n".join(lines))
    if not pictures:
        return
    chosen = sorted(draw.sample(shown, min(pictures, len(shown))))
    sheet, wrong = render_patch_sheet(root, chosen, columns=min(8, len(chosen)))
    target = out or path.with_name("contact_sheet.png")
    with atomic_write(target) as temporary:
        sheet.save(temporary, "PNG")
    print(f"pictures: {target}" + (f"; {len(wrong)} cannot be read, such as {wrong[0]}" if wrong else ""))


def describe_coverage(survey: KeySurvey) -> str:
    """Say how many patches of a key have their files."""
    from diffusion.data.features.parts import PARTS

    found = survey.coverage
    parts = {"images": found.images} | {PARTS[part].label: count for part, count in found.parts.items()}
    of = f"all {found.patches:,}" if found.patches == len(survey.index) else f"{found.patches:,} drawn at random"
    return ", ".join(f"{100 * n / found.patches:.4g} % {what}" for what, n in parts.items()) + f" (of {of})"
