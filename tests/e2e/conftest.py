"""A tiny model, an editor for it and a pack of edits, for whole runs of the service."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

POLICY = """
name: own-prompts
hard: {update_norm: null, own_prompt: true}
success: null
generality: null
parent: null
drift: null
"""
"""Every edit's own prompt must be answered; nothing else is asked of a random model."""

TINY = Path(__file__).parents[1] / "workers" / "tiny.py"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Options of `mend demo` that make it run on a model of a few thousand weights."""
    spec = importlib.util.spec_from_file_location("e2e_tiny", TINY)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    root = tmp_path_factory.mktemp("tiny")
    source = made.make_model(root / "model")
    made.make_editor(source, root / "editor.safetensors")
    (root / "policy.yaml").write_text(POLICY)
    pack = root / "pack.jsonl"
    with pack.open("w") as stream:
        for edit in made.facts(6):
            record = {
                "prompt": edit.prompt,
                "target": edit.target,
                "subject": edit.subject,
                "paraphrases": list(edit.paraphrases),
                "locality": [asked.prompt for asked in edit.locality],
                "idempotency_key": f"tiny-{edit.id}",
                "source": "e2e",
            }
            stream.write(json.dumps(record) + "\n")
    return [
        "--source", str(source),
        "--editor", str(root / "editor.safetensors"),
        "--pack", str(pack),
        "--policy", str(root / "policy.yaml"),
    ]  # fmt: skip
