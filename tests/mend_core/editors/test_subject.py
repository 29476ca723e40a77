"""Values optimised at the subject's token."""

import json
from dataclasses import replace

import pytest
import torch

from mend_core.datasets import Edit, PromptAnswer
from mend_core.editors import SubjectConfig, SubjectEditor, load_editor
from mend_core.editors.files import Header
from mend_core.editors.finetune import edit_loss
from mend_core.editors.lookahead import answer_scores
from mend_core.editors.ridge import prompt_keys
from mend_core.editors.salient import leverage
from mend_core.editors.shipped import shipped_editor, shipped_editors
from mend_core.editors.wordings import Wordings
from mend_core.errors import EditError, EditorMismatch
from mend_core.factors import FactorRows
from mend_core.factors.extract import subject_position
from mend_core.models import encode_edits, with_delta
from mend_core.testing import FACTS

EDITS = [
    Edit(
        id=str(i),
        prompt=FACTS[i][0],
        target=FACTS[(i + 1) % 8][1],
        subject=FACTS[i][0].split()[-2],
        locality=(PromptAnswer(FACTS[i + 8][0], FACTS[i + 8][1]),),
    )
    for i in range(4)
]
CONFIG = SubjectConfig(prefixes=("", "Well. "), steps=10, protect=1.0)


@pytest.fixture(scope="module")
def editor(knowing_llama):
    return SubjectEditor.create(knowing_llama, CONFIG, edits=EDITS, matrices=["down_proj@0:3"])


def nll(base, delta, edits=EDITS):
    encoded, _, _ = encode_edits(base, edits)
    with torch.no_grad(), with_delta(base, {n: d.float() for n, d in delta.items()}):
        return edit_loss(base, encoded, None)[0].item()


def test_it_edits_and_comes_back_from_its_file(knowing_llama, editor, tmp_path):
    delta = editor.delta(knowing_llama, EDITS)
    assert nll(knowing_llama, delta) < 0.6 * nll(knowing_llama, {})
    assert answer_scores(knowing_llama, EDITS, delta).ls > 0.7
    digest = editor.save(tmp_path / "e.safetensors")
    again = load_editor(tmp_path / "e.safetensors")
    assert again.digest == digest
    for name, change in again.delta(knowing_llama, EDITS).items():
        assert torch.equal(change, delta[name])


def test_a_file_from_before_the_strength_composes_as_it_did(editor):
    header, tensors = editor.state()
    old = {**header, "subject": dict(header["subject"])}
    for name in ("strength", "share", "lr_end", "delivered", "growth"):
        del old["subject"][name]
    del old["wordings"]
    again = SubjectEditor.from_state(editor.base_digest, editor.shapes, old, tensors)
    assert again.composition.strength == 1.0
    assert again.config.share == again.config.delivered == 1.0
    assert again.config.lr_end == CONFIG.lr
    assert again.state()[0] == old
    assert (
        Header.of("subject", again.base_digest, again.shapes, old, tensors).digest == again.digest
    )


def test_every_shipped_editor_has_the_digest_of_its_card():
    for name in shipped_editors():
        card = json.loads(shipped_editor(name).with_suffix(".json").read_text())
        assert load_editor(shipped_editor(name)).digest == card["editor"], name


def test_an_edit_without_a_subject_is_put_where_its_prompt_stands_out(knowing_llama, editor):
    edit = EDITS[1]
    untold = [
        replace(edit, subject=None),
        replace(edit, id="not in it", subject="Zz"),
        replace(edit, id="spaced", prompt=f"{edit.prompt}  ", subject=None),
    ]
    matrices = editor.matrices_of(knowing_llama)
    text_keys = prompt_keys(knowing_llama, [edit.prompt], matrices)
    middle = matrices[len(matrices) // 2].name
    place = int(leverage(text_keys[middle], editor.composition.root_of(middle)).argmax())
    made = editor.factor(knowing_llama, untold)
    first = matrices[0].name
    for factor in made:
        assert isinstance(factor, FactorRows)
        assert torch.allclose(factor.rows[first].u[0], text_keys[first][place], atol=1e-4)


def test_the_subject_that_will_be_used_is_told(knowing_llama, editor):
    edit = EDITS[1]
    assert editor.subject_of(knowing_llama, edit) == edit.subject
    guessed = editor.subject_of(knowing_llama, replace(edit, subject=None))
    assert guessed
    assert guessed in edit.prompt
    too_long = replace(edit, prompt="so " * 10 * knowing_llama.max_length, subject=None)
    assert editor.subject_of(knowing_llama, too_long) is None


def test_other_wordings_are_asked_and_answered(knowing_llama):
    learned = [
        replace(e, paraphrases=(f"{e.subject}? It is said to be",)) for e in EDITS for _ in range(3)
    ]
    wordings = Wordings.learn(learned)
    told = SubjectEditor.create(
        knowing_llama, CONFIG, edits=EDITS, matrices=["down_proj@0:3"], wordings=wordings
    )
    untold = SubjectEditor.create(knowing_llama, CONFIG, edits=EDITS, matrices=["down_proj@0:3"])
    put_otherwise = [replace(e, prompt=wordings.of(e, 1)[0]) for e in EDITS]
    assert all(asked.prompt != e.prompt for asked, e in zip(put_otherwise, EDITS, strict=True))
    heard, unheard = (
        nll(knowing_llama, e.delta(knowing_llama, EDITS), put_otherwise) for e in (told, untold)
    )
    assert heard < unheard


def test_a_wording_too_long_for_the_model_leaves_the_prompt(knowing_llama):
    longest = knowing_llama.max_length
    wordings = Wordings.learn(
        [replace(e, paraphrases=(f"{'so ' * longest}{e.subject} is",)) for e in EDITS * 3]
    )
    editor = SubjectEditor.create(
        knowing_llama, CONFIG, edits=EDITS, matrices=["down_proj@0:3"], wordings=wordings
    )
    assert wordings.of(EDITS[0], 1)
    assert not any(isinstance(f, EditError) for f in editor.factor(knowing_llama, EDITS))


def test_an_edit_does_not_depend_on_its_company(knowing_llama, editor):
    alone = editor.factor(knowing_llama, EDITS[2:3])[0]
    among = editor.factor(knowing_llama, EDITS)[2]
    for name, rows in alone.rows.items():
        assert len(rows) == 1
        assert torch.allclose(rows.u, among.rows[name].u, atol=1e-4)
        assert torch.allclose(rows.v, among.rows[name].v, atol=2e-2)


def test_keys_are_read_where_a_fit_leaves_the_blocks_below(knowing_llama):
    """The first matrix sees the base; the second what a half of the first one's value makes."""
    config = replace(CONFIG, delivered=0.5)
    made = SubjectEditor.create(knowing_llama, config, edits=EDITS, matrices=["down_proj@0:2"])
    below, above = made.matrices_of(knowing_llama)
    (factor,) = made.factor(knowing_llama, EDITS[:1])
    encoded, _, _ = encode_edits(knowing_llama, EDITS[:1])
    place = subject_position(knowing_llama, EDITS[0])
    seen = []

    def half(_module, _args, out):
        out = out.clone()
        out[:, place] += 0.5 * factor.rows[below.name].v
        return out

    hooks = [
        below.module.register_forward_hook(half),
        above.module.register_forward_pre_hook(lambda _module, args: seen.append(args[0])),
    ]
    with torch.no_grad():
        knowing_llama.model(input_ids=encoded.input_ids)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(seen[0][:, place], factor.rows[above.name].u, atol=1e-4)


def test_a_bad_edit_is_returned_in_its_place(knowing_llama, editor):
    bad = Edit(id="bad", prompt="x " * 4000, target="y")
    made = editor.factor(knowing_llama, [bad, EDITS[0]])
    assert isinstance(made[0], EditError)
    assert made[1].edit_id == "0"


def test_only_causal_models(tiny):
    with pytest.raises(EditorMismatch, match="left-to-right"):
        SubjectEditor.create(tiny("t5"))
