"""The README.md of weights on the hub: what they are, how they were made, how good they are, and on which terms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.config.settings import Config
from diffusion.encoders.vae_files import EMBEDDED_CODECS
from diffusion.evaluation.metrics.quantities import QUANTITIES
from diffusion.model.student import Student
from diffusion.publishing.licences import LICENCES, Part, strictest_licence
from diffusion.utils.errors import InputError
from diffusion.utils.text import format_number, read_json

TAGS = ("pathology", "histopathology", "diffusion", "pixcell")


@dataclass(frozen=True)
class CardContent:
    """What a card tells. licence: the one that a user gives, or None; has_codec: whether the folder has the codec, too.

    has_settings: whether the config is that of a run, and not what weights alone imply.
    report: what a report's scores.json holds; data: what the network was trained on, in words.
    """

    name: str
    config: Config
    parameters: int
    parts: Sequence[Part]
    has_codec: bool
    has_settings: bool = True
    licence: str | None = None
    report: Mapping[str, Any] | None = None
    data: str | None = None
    student: Student | None = None


def read_scores(report: Path) -> dict[str, Any]:
    """Return what `pixcell evaluate` has written into a report's scores.json. Raises MissingError, InputError."""
    file = report / "scores.json"
    record = read_json(file, "scores of a report", "make one by pixcell evaluate")
    encoders = record.get("encoders")
    try:
        for scores in encoders.values():  # pyright: ignore[reportOptionalMemberAccess]  # what it raises is caught
            for value in scores["values"].values():
                _format_score(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{file} has no scores of encoders; name the folder of a report, by pixcell evaluate"
        ) from None
    return record


def write_card(content: CardContent) -> str:
    """Return the text of a model card."""
    sections = [
        _front_matter(content),
        f"# {content.name}",
        _introduction(content),
        "## Use\n\n" + _usage(content),
        "## Scores\n\n" + ("\n\n".join(_scores(content.report)) if content.report else "None are given."),
        "## Data\n\n" + (content.data or "Not described."),
        "## Training\n\n"
        + (_table(("setting", "value"), _settings(content.config)) if content.has_settings else "Not described."),
        "## Terms\n\n" + _terms(content),
        "## Limits\n\nImages are synthetic. They show what the training data show, with its biases, and are not for diagnosis.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(content: CardContent) -> str:
    fields: dict[str, Any] = {"library_name": "diffusers", "tags": list(TAGS), **_licence_fields(content)}
    bases = [part.name for part in content.parts if part.role == "base weights" and part.licence.page]
    if bases:
        fields["base_model"] = bases
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---"])


def _licence_fields(content: CardContent) -> dict[str, str]:
    """Return the licence as the hub's cards name it: `other`, with the strictest terms, where none is given."""
    given = LICENCES.get(content.licence or "")
    if given is not None and given.on_hub:
        return {"license": given.identifier}
    named = given or strictest_licence(content.parts)
    if named is None:
        return {"license": "other", "license_name": "terms-of-the-parts"}
    return {"license": "other", "license_name": named.identifier, "license_link": named.page}


def _introduction(content: CardContent) -> str:
    config = content.config
    encoder = next(part.name for part in content.parts if part.role == "encoder")
    tokens = "one embedding" if config.model_max_length == 1 else f"{config.model_max_length} embeddings"
    return (
        f"A latent diffusion transformer of {content.parameters / 1e6:.1f} M parameters for histopathology, by PixCell "
        f"(arXiv 2506.05127). It samples images of {config.image_size} x {config.image_size} pixels for {tokens} of {encoder}, "
        "one for each 256 x 256 pixels of tissue." + _student_words(content.student)
    )


def _student_words(student: Student | None) -> str:
    if student is None:
        return ""
    steps, interval = ", ".join(map(str, student.steps)), student.guidance_interval
    where = "" if interval is None else " between the noise levels {:g} and {:g}".format(*interval)
    return (
        f" It is a student, distilled for {steps} steps, of which {student.usual_steps} are usual, with guidance "
        f"{student.guidance:g} in every prediction{where}."
    )


def _usage(content: CardContent) -> str:
    codec, config = next(part.name for part in content.parts if part.role == "codec"), content.config
    embedded = config.vae_pretrained if config.vae_pretrained in EMBEDDED_CODECS else None
    vae = "" if content.has_codec else f', vae="{embedded or "FOLDER"}"'
    vae_option = "" if content.has_codec or embedded else " --vae FOLDER"
    guidance = "" if content.student else f", guidance_scale={config.sample_grid.guidance:g}"
    lines = [
        "```python",
        "from pixcell import PixCellPipeline",
        "",
        f"pipeline = PixCellPipeline.from_pretrained({json.dumps(content.name)}{vae})",
        f"images = pipeline(embeddings{guidance}).images  "
        f"# embeddings: (B, {config.model_max_length}, {config.caption_channels})",
        "```",
        "",
        "On a command line, for images of tissue, which are embedded:",
        "",
        "```",
        f"pixcell sample --workdir {content.name}{vae_option} --images tissue.png --count 4",
        "```",
    ]
    if not content.has_codec and not embedded:
        lines += ["", f"The codec is not part of this folder: FOLDER is that of the {codec}, on its own terms."]
    return "\n".join(lines)


def _scores(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paragraphs of the scores: a table with a column for each encoder, and the report's notes."""
    encoders = report["encoders"]
    names = [name for name in QUANTITIES if any(name in scores["values"] for scores in encoders.values())]
    rows = []
    for name in names:
        arrow = {True: " (more is better)", False: " (less is better)", None: ""}[QUANTITIES[name].more_is_better]
        values = (scores["values"].get(name) for scores in encoders.values())
        rows.append((f"{QUANTITIES[name].title}{arrow}", *("" if v is None else _format_score(v) for v in values)))
    yield _table(("score", *encoders), rows)
    counts = next(iter(encoders.values())).get("counts") if encoders else None
    if counts:
        yield "Images: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "."
    notes = [str(note) for note in report.get("notes") or () if note]
    if notes:
        yield "\n".join(f"- {note}" for note in notes)


def _format_score(value: Mapping[str, Any]) -> str:
    text = format_number(float(value["value"]))
    if value.get("low") is None:
        return text
    return f"{text} ({format_number(float(value['low']))} to {format_number(float(value['high']))})"


def _settings(config: Config) -> list[tuple[str, str]]:
    length = f"{config.max_steps} steps" if config.max_steps is not None else f"{config.num_epochs} epochs"
    warm_up = config.lr_schedule_args.num_warmup_steps
    rows = [
        ("network", f"{config.model}, patch {config.model_kwargs.get('patch_size', 2)}"),
        ("prediction", config.prediction_type),
        ("length", length),
        (
            "samples per process and step",
            f"{config.train_batch_size} x {config.gradient_accumulation_steps} accumulated",
        ),
        ("optimizer", f"{config.optimizer.type}, learning rate {config.optimizer.lr:g}, {config.lr_schedule}"),
        ("warm-up", f"{warm_up} steps"),
        ("weight decay", f"{config.optimizer.weight_decay:g}"),
        ("gradient clip", f"{config.gradient_clip:g}"),
        ("average of weights", f"{config.ema_rate:g}"),
        ("null condition", f"{100 * config.class_dropout_prob:g} % of samples"),
        ("precision", config.mixed_precision),
        ("seed", str(config.seed)),
    ]
    return [*rows, ("all settings", "`config.py`, as data")]


def _terms(content: CardContent) -> str:
    """Return the terms of every part, and what holds for these weights."""
    rows = []
    for part in content.parts:
        demands = ", ".join(sorted(part.licence.demands)) or "none"
        name = f"[{part.licence.name}]({part.licence.page})" if part.licence.page else part.licence.name
        rows.append((part.role, part.name, name, demands))
    given = LICENCES.get(content.licence or "")
    rule = f"These weights are under {given.name}. " if given else ""
    return (
        _table(("part", "name", "licence", "it demands"), rows)
        + f"\n\n{rule}Whoever uses these weights keeps to the terms of every part; where two differ, the stricter one holds. "
        "Terms that are not known here are to be read where the part comes from."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
