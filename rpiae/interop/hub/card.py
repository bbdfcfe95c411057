"""The model card of a tokenizer or generator: what is known of it, in the hub's format."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from rpiae.core.config.parts import EncoderConfig, PartConfig
from rpiae.core.model.saved import GENERATOR, TOKENIZER
from rpiae.core.registry.entries import OWN, Preset
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.names import printable
from rpiae.evaluation.protocol import CONDITIONS

LIBRARY = "rpiae"

#: Licences by the hub's names of them; what is not here is ``other``.
_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-NC-4.0": "cc-by-nc-4.0"}

_TASKS = {TOKENIZER: "image-to-image", GENERATOR: "unconditional-image-generation"}

#: Of an evaluation's protocol: where samples, real images and those that are learned from have facts.
_SECTIONS = ("samples", "real", "training")

#: What the end of a run's training has measured, on its own held-out images.
_SUMMARISED = ("psnr", "ssim", "drift", "psnr_mean_colour", "psnr_pca")


@frozen(kw_only=True)
class Described:
    """What a card is written from; nothing in it holds a path of this machine.

    Attributes:
        kind: ``tokenizer`` or ``generator``.
        repository: ``user/name``.
        parts: their configs, by role.
        parameters: how many each has, by role.
        sources: the distributions that bring them.
        facts: further sentences on the model.
        run: the run's ``config.toml``; empty where there is none.
        summary: its ``summary.json``; empty where there is none.
        evaluations: of these weights, oldest first.
        label_names: of a generator's classes.
    """

    kind: str
    repository: str
    parts: Mapping[str, PartConfig]
    parameters: Mapping[str, int]
    sources: Sequence[str] = ()
    facts: Sequence[str] = ()
    run: Mapping[str, Any] = field(factory=dict)
    summary: Mapping[str, Any] = field(factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    label_names: Sequence[str] = ()


def model_card(described: Described) -> str:
    """The text of ``README.md``, with its metadata on top."""
    from huggingface_hub import ModelCard, ModelCardData

    name = described.repository.rpartition("/")[2]
    results = _results(described)
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=_TASKS[described.kind],
        tags=[LIBRARY, described.kind, "latent-diffusion", "representation-pivoted-autoencoder"],
        base_model=_bases(described) or None,
        datasets=_datasets(described) or None,
        model_name=name if results else None,
        eval_results=results or None,
        **_licence(described),
    )
    template = importlib.resources.files("rpiae.interop.hub") / "templates" / "card.md"
    card = ModelCard.from_template(
        data,
        template_str=template.read_text("utf-8"),
        title=code(name),
        summary=_summary(described),
        packages=" ".join([LIBRARY, *(each for each in described.sources if each != OWN)]),
        code=_example(described),
        parts=_parts(described),
        facts=[*described.facts, *_labels(described)],
        training=_training(described),
        stages=_stages(_table(described.run, "recipe")),
        measurements=_measurements(described),
        licences=_licences(described),
    )
    return str(card).rstrip() + "\n"


def code(value: Any) -> str:
    """A value from outside within a line or a cell, where nothing in it is markup."""
    text = printable(str(value)).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _summary(described: Described) -> str:
    version = importlib.metadata.version(LIBRARY)
    if described.kind == GENERATOR:
        return (
            "A generator of latents, with the tokenizer that decodes them to images, of "
            f"[rpiae](https://pypi.org/project/rpiae) {version}."
        )
    return (
        "A representation-pivoted autoencoder ([arXiv 2603.19206](https://arxiv.org/abs/2603.19206)): images "
        "to latents for diffusion models, and back, by "
        f"[rpiae](https://pypi.org/project/rpiae) {version}."
    )


def _example(described: Described) -> str:
    if described.kind == GENERATOR:
        classes = "[0, 1, 2]" if _classes(described) else "[None] * 3"
        return (
            f'import rpiae\n\ng = rpiae.load_generator("{described.repository}")\n'
            f"images = g.sample({classes}, seed=0)  # (3, 3, height, width), in [0, 1]"
        )
    return (
        f'import rpiae\n\nmodel = rpiae.load("{described.repository}")\n'
        "latents = model.encode(images).mode()  # images: (b, 3, height, width), in [0, 1]\n"
        "images = model.decode(latents)"
    )


def _classes(described: Described) -> int:
    return int(getattr(described.parts.get(GENERATOR), "num_classes", None) or 0)


def _parts(described: Described) -> list[dict[str, str]]:
    rows = []
    for role, part in described.parts.items():
        what = code(part.label)
        if part.preset and part.preset != part.name:
            what += f", {part.name}"
        if repository := _repository(part):
            revision = getattr(part, "revision", "") or "main"
            what += f", from [{repository}](https://huggingface.co/{repository}) at {code(revision[:12])}"
        rows.append(
            {"role": role, "what": what, "parameters": f"{described.parameters.get(role, 0):,}"}
        )
    return rows


def _labels(described: Described) -> list[str]:
    names = list(map(code, described.label_names[:20]))
    more = len(described.label_names) - len(names)
    return [f"classes: {', '.join(names)}{f' and {more} more' if more else ''}"] if names else []


def _training(described: Described) -> list[str]:
    run = described.run
    if not run:
        return []
    recipe, data = _table(run, "recipe"), _table(run, "data")
    label = recipe.get("preset") or recipe.get("name", "")
    lines = [f"recipe {code(label)}: {printable(str(recipe.get('summary', '')))}".rstrip(": ")]
    if data:
        size = data.get("image_size")
        images = described.summary.get("num_images")
        named = ":".join(str(each) for each in (data.get("name", ""), data.get("path", "")) if each)
        crops = f", crops of {size} pixels" if size else ""
        count = f", {images:,} images" if isinstance(images, int) else ""
        lines.append(f"data {code(named)}{count}{crops}")
    if run.get("latents"):
        lines.append(f"latents {code(run['latents'])}")
    if run.get("init"):
        lines.append(f"begun from {code(run['init'])}")
    lines.append(f"seed {run.get('seed', 0)}, in {code(run.get('precision', 'fp32'))}")
    return lines


def _stages(recipe: Mapping[str, Any]) -> list[dict[str, str]]:
    return [_stage(stage, recipe) for stage in recipe.get("stages", [])]


def _stage(stage: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, str]:
    optimiser = _table(stage, "optimiser")
    epochs, cap = stage.get("epochs"), recipe.get("max_steps")
    length = f"{epochs:g} epochs" if epochs is not None else f"{stage.get('steps', 0):,} steps"
    length += f", at most {cap:,} steps" if cap else ""
    first, last = (optimiser.get(name, 0) for name in ("learning_rate", "final_learning_rate"))
    terms = [
        f"{code(_label(_table(term, 'loss')))} × {term.get('weight', 1):g}"
        + (" (adaptive)" if term.get("adaptive") else "")
        for term in stage.get("terms", [])
    ]
    return {
        "name": code(stage.get("name", "")),
        "trains": ", ".join(map(code, stage.get("train", []))),
        "length": length,
        "batch": str(recipe.get("batch_size") or stage.get("batch_size", "")),
        "rate": f"{first:g} to {last:g}, {optimiser.get('shape', '')}",
        "losses": ", ".join(terms),
    }


def _label(part: Mapping[str, Any]) -> str:
    return str(part.get("preset") or part.get("name", ""))


def _measurements(described: Described) -> list[dict[str, Any]]:
    """Headings and rows, one table per evaluation, newest first, and what the run itself measured."""
    found = []
    for record in reversed(described.evaluations):
        protocol = record["protocol"]
        software = ", ".join(f"{k} {v}" for k, v in protocol.get("software", {}).items())
        conditions = [_told(name, each) for name, each in _conditions(protocol).items()]
        facts = protocol.get("metrics", {})
        found.append(
            {
                "heading": ", ".join(conditions) + (f" ({software})." if software else "."),
                "rows": [
                    {
                        "name": code(name), "value": f"{value:.5g}",
                        "protocol": ", ".join(_flat(_table(facts, name), but=_SECTIONS)),
                    }
                    for name, value in record["metrics"].items()
                ],
            }
        )  # fmt: skip
    summarised = {n: v for n in _SUMMARISED if _is_number(v := described.summary.get(n))}
    if summarised:
        rows = [
            {"name": code(n), "value": f"{v:.5g}", "protocol": ""} for n, v in summarised.items()
        ]
        heading = "At the end of its training, on what the run held out, in fp32."
        found.append({"heading": heading, "rows": rows})
    return found


def _conditions(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What all numbers of an evaluation depend on, of images or of samples and the real ones."""
    found = {name: protocol[name] for name in ("location", *CONDITIONS) if name in protocol}
    for section in _SECTIONS:
        facts = _table(protocol, section)
        found |= {f"{section}.{n}": v for n, v in facts.items() if not isinstance(v, Mapping)}
    return {name: value for name, value in found.items() if value not in ("", None, [], ())}


def _flat(facts: Mapping[str, Any], prefix: str = "", *, but: Sequence[str] = ()) -> list[str]:
    """Nested facts as ``name `value```; of a part's config, what the part is called."""
    lines = []
    for name, value in facts.items():
        if name in but:
            continue
        if isinstance(value, Mapping) and "name" in value:
            lines.append(_told(f"{prefix}{name}", _label(value)))
        elif isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        elif value not in ("", None, [], ()):
            lines.append(_told(f"{prefix}{name}", value))
    return lines


def _told(name: str, value: Any) -> str:
    text = value[:16] if isinstance(value, str) and name.endswith("sha256") else value
    return f"{printable(name)} {code(text)}"


def _results(described: Described) -> list[Any]:
    """Of the newest evaluation, for the hub's own tables."""
    from huggingface_hub import EvalResult

    if not described.evaluations:
        return []
    record = described.evaluations[-1]
    protocol = record["protocol"]
    of = _table(protocol, "real") or protocol
    location = printable(str(of.get("location", "images")))
    kind = _table(of, "data").get("name", "images")
    conditions = _conditions(protocol)
    return [
        EvalResult(
            task_type=_TASKS[described.kind], dataset_type=printable(str(kind)), dataset_name=location,
            metric_type=printable(name), metric_name=printable(name), metric_value=value,
            metric_args={**conditions, **protocol.get("metrics", {}).get(name, {})},
        )
        for name, value in record["metrics"].items() if math.isfinite(value)
    ]  # fmt: skip


def _bases(described: Described) -> list[str]:
    init = str(described.run.get("init", "")).partition("@")[0]
    begun = [init] if init.count("/") == 1 else []
    return [*begun, *filter(None, map(_repository, described.parts.values()))]


def _datasets(described: Described) -> list[str]:
    data = _table(described.run, "data")
    path = str(data.get("path", ""))
    return [path] if data.get("name") == "hf" and path.count("/") == 1 else []


def _repository(part: PartConfig) -> str:
    return part.repository() if isinstance(part, EncoderConfig) else ""


def _preset(part: PartConfig) -> Preset | None:
    found = [each for each in registry(part.family).presets() if each.name == part.preset]
    return found[0] if found else None


def _licence(described: Described) -> dict[str, Any]:
    """The hub's fields for the licence of the pivot's weights, which these are made of."""
    encoder = described.parts.get("encoder")
    preset = _preset(encoder) if isinstance(encoder, EncoderConfig) and encoder.pretrained else None
    if preset is None or not preset.licence or ":" in preset.licence:
        return {}
    if preset.licence in _LICENCES:
        return {"license": _LICENCES[preset.licence]}
    return {"license": "other", "license_name": preset.licence.lower().replace(" ", "-")}


def _licences(described: Described) -> list[str]:
    lines = []
    for role, part in described.parts.items():
        if not getattr(part, "pretrained", False):
            continue
        preset = _preset(part)
        licence = preset.licence if preset and preset.licence else "not known here"
        paper = f" ({preset.paper})" if preset and preset.paper else ""
        lines.append(f"{role}: begun from the weights of {code(part.label)}{paper}: {licence}")
    lines.append("rpiae, which reads these files: Apache-2.0")
    return lines


def _table(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def parameters(names: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Numbers of values by role, of tensors with their role before their name."""
    found: dict[str, int] = {}
    for name, count in names:
        role = name.partition(".")[0]
        found[role] = found.get(role, 0) + count
    return found
