"""Training: it learns, resumes to the bit after kill -9, and says what is wrong with its input."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mend_core.datasets import Edit, PromptAnswer
from mend_core.editors import load_editor
from mend_core.editors.finetune import answer_logits
from mend_core.errors import TrainingError
from mend_core.models import encode_pairs, with_delta
from mend_core.testing import FACTS, PARAPHRASES
from mend_core.training import TrainConfig, Trainer
from mend_core.training.cli import main, parser, settings
from mend_core.training.examples import ExampleCache, split
from mend_core.training.objective import choose_items, evaluate

EDITS = [
    Edit(
        id=f"{i}:{shift}",
        prompt=FACTS[i][0],
        target=FACTS[(i // 8) * 8 + (i + shift) % 8][1],
        subject=f"{i}:{shift}",
        paraphrases=(PARAPHRASES[FACTS[i][0]],),
        locality=(PromptAnswer(FACTS[(i + 8) % 16][0], FACTS[(i + 8) % 16][1]),),
    )
    for i in range(16)
    for shift in (1, 3, 5)
]
SETTINGS = {
    "matrices": ["down_proj@-2:"],
    "editor": {"rank": 8, "learning_rate": 1e-3},
    "steps": 12,
    "max_edits": 4,
    "per_step": 4,
    "c_edit": 0.5,
    "lr": 3e-3,
    "warm_up": 16,
    "validation": 8,
    "validate_every": 6,
    "checkpoint_every": 2,
}


OWN = {
    "enn": {"learning_rate": 0.1},
    "ke": {"lstm": 8, "condition": 8, "hidden": 8},
}
"""Settings of the editors that are not as MEND's."""


def config(**changes):
    values = {**SETTINGS, **changes}
    if "editor" not in changes:
        values["editor"] = OWN.get(values.get("method"), SETTINGS["editor"])
    return TrainConfig.from_dict(values)


def run(base, folder, report=lambda _event: None, **changes):
    train, validation = split(EDITS, 8, 0)
    trainer = Trainer(
        base,
        train,
        validation,
        config(**changes),
        folder,
        data_digest="d",
        report=report,
    )
    return trainer, trainer.run()


@pytest.mark.parametrize("method", ["mend", "enn", "ke"])
def test_training_lowers_the_loss_and_gives_an_editor_that_edits(tiny, tmp_path, method):
    events, still = [], []
    changes = {"method": method, "steps": 60, "validate_every": 20}
    if method == "ke":  # its sigmoids and softmaxes begin flat
        changes["lr"] = 3e-2
    trainer, editor = run(tiny("llama"), tmp_path, events.append, **changes)
    run(tiny("llama"), tmp_path / "still", still.append, **changes | {"lr": 0.0, "lr_lr": 0.0})
    # On the same draws: the last ten steps against those of a run that learns nothing.
    losses = [sum(e.values["loss"] for e in run[-10:]) for run in (events, still)]
    assert losses[0] < 0.97 * losses[1]
    assert trainer.progress.best > 0
    editor.save(tmp_path / "e.safetensors")
    delta = load_editor(tmp_path / "e.safetensors").delta(tiny("llama"), EDITS[:3])
    assert all(torch.isfinite(d).all() for d in delta.values())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == list(range(1, 61))


@pytest.mark.parametrize("method", ["mend", "malmen", "enn", "ke"])
@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_every_family_can_be_trained(tiny, tmp_path, method, family):
    editor = run(tiny(family), tmp_path, method=method, matrices=None, steps=2)[1]
    assert editor.kind == method
    assert editor.delta(tiny(family), EDITS[:2])


@pytest.mark.parametrize("method", ["mend", "enn", "ke"])
def test_a_classifier_can_be_trained(tiny, tmp_path, method):
    base = tiny("bert")
    labels = list(base.model.config.id2label.values())
    edits = [
        Edit(
            id=str(i), prompt=FACTS[i][0], target=labels[i % 2], paraphrases=(FACTS[i][0] + " it",)
        )
        for i in range(16)
    ]
    train, validation = split(edits, 3, 0)
    chosen = config(matrices=None, steps=3, method=method)
    trainer = Trainer(base, train, validation, chosen, tmp_path, data_digest="d")
    assert trainer.run().delta(base, edits[:2])


@pytest.mark.parametrize("method", ["mend", "malmen", "enn", "ke"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_what_is_trained_is_what_the_editor_does(tiny, tmp_path, method, family):
    base = tiny(family)
    trainer, editor = run(base, tmp_path, steps=3, method=method, matrices=None)
    if method == "ke":  # what it reads hardly matters to it yet
        with torch.no_grad():
            for parameter in trainer.trainable.module.parameters():
                parameter.mul_(4)
    pairs = [
        t
        for e in trainer.train.edits[:4]
        for t in ((e.prompt, e.target), (e.paraphrases[0], e.target))
    ]
    examples = [trainer.train.get(number) for number in range(4)]
    encoded = encode_pairs(base, pairs)
    with torch.no_grad():
        plain = answer_logits(base, encoded, None)
        with trainer.trainable.change([examples[:2], examples[2:]]).applied(base):
            trained = answer_logits(base, encoded, None)
        for half in range(2):
            mine = torch.tensor([4 * half <= row < 4 * half + 4 for row in encoded.answer_rows])
            delta = editor.delta(base, trainer.train.edits[2 * half : 2 * half + 2])
            with with_delta(base, {name: d.float() for name, d in delta.items()}):
                served = answer_logits(base, encoded, None)
            moved = (trained - plain)[mine].abs().max()
            assert moved > 1e-4
            assert (served - trained)[mine].abs().max() < 0.02 * moved


def test_enn_is_trained_through_its_inner_step(tiny, tmp_path):
    gradients = []
    for first_order in (False, True):
        own = {"learning_rate": 1.0, "first_order": first_order}
        trainer, _ = run(
            tiny("llama"), tmp_path / str(first_order), method="enn", editor=own, steps=1
        )
        trainer.trainable.networks.shifts[0].data.zero_()
        trainer.trainable.networks.learning_rates.data.fill_(1.0)
        groups, others, picks = trainer.draw(3)
        items = choose_items([e for g in groups for e in g], others, picks)
        change = trainer.trainable.change(groups)
        evaluate(trainer.base, trainer.matrices, change, items).edit.backward()
        gradients.append(trainer.trainable.networks.shifts[0].grad)
    exact, rough = gradients
    assert not torch.allclose(exact, rough, rtol=1e-2)


def test_step_sizes_move_at_their_own_rate(tiny, tmp_path):
    _, editor = run(tiny("llama"), tmp_path, method="enn", steps=2, lr=0.0, lr_lr=1e-2)
    assert all(bool((shift == 0).all()) for shift in editor.networks.shifts)
    assert (editor.networks.learning_rates - 0.1).abs().min() > 0


def test_released_settings_keep_the_code_schedule(tiny, tmp_path):
    trainer, _ = run(tiny("llama"), tmp_path, released=True, accumulate=10, steps=2)
    assert [s for s in range(31) if trainer._boundary(s)] == [10, 20, 30]
    assert trainer.optimiser.param_groups[1]["lr"] == trainer.config.lr
    assert trainer.trainable.networks.config.sign == 1


def test_batch_sizes_are_log_uniform_and_a_function_of_the_step(tiny, tmp_path):
    train, validation = split(EDITS, 8, 0)
    trainer = Trainer(
        tiny("llama"), train, validation, config(max_edits=16), tmp_path, data_digest="d"
    )
    sizes = [len(trainer.draw(step)[0][0]) for step in range(300)]
    assert set(sizes) >= {1, 2, 3, 4, 16}
    small = sum(n < 4 for n in sizes) / len(sizes)
    assert 0.35 < small < 0.65  # log-uniform: half of the draws lie below √17
    first, again = trainer.draw(5), trainer.draw(5)
    assert [id(e) for g in first[0] for e in g] == [id(e) for g in again[0] for e in g]


def test_examples_do_not_depend_on_what_was_asked_before(tiny):
    base = tiny("llama")
    matrices = base.matrices(["down_proj@-2:"])
    one = ExampleCache(base, matrices, EDITS, max_bytes=1)
    two = ExampleCache(base, matrices, EDITS)
    for number in (30, 3, 30, 11):
        a, b = one.get(number), two.get(number)
        for name, (u, delta) in a.rows.items():
            assert torch.equal(u, b.rows[name][0])
            assert torch.equal(delta, b.rows[name][1])
        for x, y in zip(a.items, b.items, strict=True):
            assert torch.equal(x.hidden, y.hidden)


def test_bad_training_edits_are_left_out(tiny, tmp_path):
    edits = [Edit(id="bad", prompt="x " * 4000, target="y"), *EDITS]
    cache = ExampleCache(tiny("llama"), tiny("llama").matrices(), edits)
    assert cache.get(0) is None
    assert cache.get(1) is not None
    assert cache.errors[0].edit_id == "bad"


def test_no_subject_is_on_both_sides():
    train, validation = split([*EDITS, *EDITS], 8, 3)
    assert not {e.subject for e in train} & {e.subject for e in validation}
    with pytest.raises(TrainingError, match="too few"):
        split(EDITS[:3], 8, 0)
    with pytest.raises(TrainingError, match="about one subject"):
        split([Edit(str(i), f"q{i}", "a", subject="x") for i in range(9)], 8, 0)


SCRIPT = """
import importlib.util, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mend_core.testing import tiny_base
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
tell = lambda event: print(event.step, flush=True)
cases.run(tiny_base("llama"), Path(sys.argv[2]), steps=9, report=tell, method=sys.argv[3])
"""


def same(first, second, folder):
    first.save(folder / "first.safetensors")
    second.save(folder / "second.safetensors")
    one, two = (load_file(folder / f"{n}.safetensors") for n in ("first", "second"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@pytest.mark.processes
@pytest.mark.parametrize("method", ["mend", "enn", "ke"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny, tmp_path, method):
    command = [sys.executable, "-c", SCRIPT, __file__, str(tmp_path / "broken"), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        _, whole = run(tiny("llama"), tmp_path / "whole", steps=9, method=method)
        for line in child.stdout:
            if int(line) == 5:  # one step past a checkpoint
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    trainer, resumed = run(tiny("llama"), tmp_path / "broken", steps=9, method=method)
    assert trainer.progress.step == 9
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps.count(1) == 1  # it went on, it did not start over
    assert steps[-1] == 9
    same(whole, resumed, tmp_path)


def test_an_interrupted_ridge_run_ends_the_same_too(tiny, tmp_path):
    def stop(event):
        if event.step == 5:
            raise KeyboardInterrupt

    _, whole = run(tiny("llama"), tmp_path / "whole", steps=9, method="malmen")
    with pytest.raises(KeyboardInterrupt):
        run(tiny("llama"), tmp_path / "broken", steps=9, method="malmen", report=stop)
    _, resumed = run(tiny("llama"), tmp_path / "broken", steps=9, method="malmen")
    same(whole, resumed, tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    run(tiny("llama"), tmp_path, steps=2)
    with pytest.raises(TrainingError, match="other settings"):
        run(tiny("llama"), tmp_path, steps=2, seed=9)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"broken")
    with pytest.raises(TrainingError, match="--fresh"):
        run(tiny("llama"), tmp_path, steps=2)


def test_more_time_goes_on_where_the_last_ran_out(tiny, tmp_path):
    train, validation = split(EDITS, 8, 0)
    done = []
    for minutes in (1e-9, 60.0):
        trainer = Trainer(
            tiny("llama"), train, validation, config(steps=3), tmp_path,
            data_digest="d", minutes=minutes,
        )  # fmt: skip
        trainer.run()
        done.append(trainer.progress.step)
    assert done == [1, 3]


@pytest.mark.parametrize("method", ["mend", "enn", "ke"])
def test_training_stops_early(tiny, tmp_path, method):
    trainer, _ = run(
        tiny("llama"), tmp_path, steps=40, validate_every=1, patience=2, lr=0.0, lr_lr=0.0,
        method=method,
    )  # fmt: skip
    assert trainer.progress.step == 3


@pytest.mark.parametrize("method", ["enn", "ke"])
def test_peers_are_trained_on_single_edits_unless_told_otherwise(method):
    assert TrainConfig.from_dict({"method": method}).max_edits == 1
    assert TrainConfig.from_dict({"method": method, "max_edits": 8}).max_edits == 8
    assert TrainConfig.from_dict({}).max_edits == TrainConfig().max_edits > 1


def test_a_method_on_the_command_line_brings_its_defaults_to_a_settings_file(tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"steps": 7}))
    common = ["--data", "x", "--out", "y", "--config", str(file)]
    chosen = settings(parser().parse_args([*common, "--method", "enn"]))
    assert (chosen.method, chosen.steps, chosen.max_edits) == ("enn", 7, 1)
    file.write_text(json.dumps({"steps": 7, "max_edits": 3}))
    assert settings(parser().parse_args([*common, "--method", "enn"])).max_edits == 3


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("enn", {"rank": 8}),
        ("enn", {"first_order": 1}),
        ("ke", {"lstm": 0}),
        ("ke", {"hidden": "wide"}),
        ("ke", {"max_scale": -1.0}),
        ("mend", {"sides": "none"}),
        ("malmen", {"blocks": 1.5}),
    ],
)
def test_wrong_settings_of_an_editor_are_named(tiny, tmp_path, method, own):
    with pytest.raises(TrainingError, match=next(iter(own))):
        run(tiny("llama"), tmp_path, method=method, editor=own)


@pytest.mark.parametrize(
    "values",
    [{"stepz": 1}, {"steps": 0}, {"steps": 1.5}, {"lr": -1}, {"matrices": "x"}, {"decay": 1},
     {"method": "other"}],
)  # fmt: skip
def test_wrong_settings_are_named(values):
    with pytest.raises(TrainingError, match=next(iter(values))):
        TrainConfig.from_dict(values)


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    missing = str(tmp_path / "none.json")
    assert main(["--data", missing, "--out", str(tmp_path / "e.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["--data", missing, "--out", "e", "--set", "nonsense"]) == 2
    assert "NAME=JSON" in capsys.readouterr().err
    assert main(["--data", missing, "--out", "e", "--config", missing]) == 2
    assert "cannot read the settings" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["mend", "enn", "ke"])
def test_the_command_line_writes_editor_and_card(tiny, tmp_path, capsys, monkeypatch, method):
    monkeypatch.setattr("mend_core.training.cli.load_base", lambda *_a, **_k: tiny("llama"))
    data = tmp_path / "facts.jsonl"
    with data.open("w") as lines:
        for edit in EDITS:
            record = {"id": edit.id, "prompt": edit.prompt, "target": edit.target}
            record |= {"subject": edit.subject, "paraphrases": list(edit.paraphrases)}
            lines.write(json.dumps(record) + "\n")
    file = tmp_path / "s.json"
    file.write_text(json.dumps(config(method=method, steps=2).to_dict()))
    out = tmp_path / "made" / "mine.safetensors"
    argv = ["--data", str(data), "--out", str(out), "--config", str(file), "--json"]
    out.parent.mkdir()
    assert main(argv) == 0
    card = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert card["editor"] == load_editor(out).digest
    assert card["method"] == load_editor(out).kind == method
    assert card["data"][0]["name"] == "facts.jsonl"
    assert len(card["data"][0]["sha256"]) == 64
    assert card["held_out"][0]["edits"] == 1
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    assert "| edits | ES |" in out.with_suffix(".md").read_text()
