"""Training as a person meets it: what is shown, where it may write, resumes, several processes."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mend_core.datasets import Edit, PromptAnswer
from mend_core.editors import load_editor
from mend_core.errors import TrainingError
from mend_core.testing import FACTS, PARAPHRASES, save_base, tiny_base
from mend_core.training import TrainConfig, Trainer
from mend_core.training.checkpoint import METRICS
from mend_core.training.cli import clock, main
from mend_core.training.examples import split
from mend_core.training.objective import choose_items, descend, in_parts

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
    for shift in (1, 3)
]
SETTINGS = {
    "matrices": ["down_proj@-2:"],
    "editor": {"rank": 4, "learning_rate": 1e-3},
    "steps": 6,
    "max_edits": 4,
    "per_step": 4,
    "warm_up": 8,
    "validation": 4,
    "validate_every": 2,
    "checkpoint_every": 2,
}


def rounding_of_losses(base):
    """How far two ways of computing one loss may differ, however small the loss is.

    A loss is a mean of log-probabilities or, for locality, of differences of them. Each of those is
    of the size of log(vocabulary) and is known to one rounding of that; a difference is no better.
    """
    return torch.finfo(torch.float32).eps * math.log(base.model.config.vocab_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder and a data file, as a user has them."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("given")
    save_base(tiny_base("llama"), place / "model")
    with (place / "facts.jsonl").open("w") as lines:
        for edit in EDITS:
            record = {"id": edit.id, "prompt": edit.prompt, "target": edit.target}
            record |= {"subject": edit.subject, "paraphrases": list(edit.paraphrases)}
            lines.write(json.dumps(record) + "\n")
    (place / "settings.json").write_text(json.dumps(SETTINGS))
    return place


def command(folder, out, *more):
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "facts.jsonl")),
        *("--config", str(folder / "settings.json"), "--out", str(out), *more),
    ]


def trainer_of(base, place, *, edits=EDITS, report=lambda _event: None, minutes=None, **changes):
    train, validation = split(edits, 4, 0)
    config = TrainConfig.from_dict({**SETTINGS, **changes})
    return Trainer(
        base, train, validation, config, place, data_digest="d", report=report, minutes=minutes
    )


def test_the_newest_held_out_scores_and_the_time_left_are_always_at_hand(tiny, tmp_path):
    events = []
    trainer_of(tiny("llama"), tmp_path, report=events.append).run()
    assert [bool(e.held_out) for e in events] == [False, True, True, True, True, True]
    assert {"val1_es", "val1_gs", "val1_ls", "val1_hm", "val"} <= events[2].held_out.keys()
    assert events[-1].left == 0
    assert all(a.left > 0 for a in events[:-1])


def test_time_left_is_no_more_than_what_is_allowed(tiny, tmp_path):
    events = []

    def stop(event):
        events.append(event)
        if len(events) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tiny("llama"), tmp_path, report=stop, minutes=1, steps=10_000_000).run()
    assert 0 < events[-1].left <= 60
    assert clock(3725.4) == "1:02:05"


def test_the_command_shows_held_out_scores_and_time_left(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "e.safetensors")) == 0
    shown = capsys.readouterr().err
    assert "left" in shown
    assert "held out, 1 at once: ES" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--threads", "0"], "less than 1"),
        (["--limit", "-3"], "less than 1"),
        (["--minutes", "-1"], "no time to train"),
        (["--minutes", "nan"], "no time to train"),
        (["--set", "lr=Infinity"], "'lr' cannot be inf"),
        (["--set", "validation=8.0"], "'validation' cannot be 8.0"),
        (["--rank", "0"], "'rank' cannot be 0"),
        (["--matrices", "nothing"], "matches no editable matrix"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, tmp_path, capsys, more, words):
    try:
        code = main(command(folder, tmp_path / "e.safetensors", *more))
    except SystemExit as left:  # argparse's own
        code = left.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_training(folder, tmp_path, capsys):
    (tmp_path / "made.safetensors").mkdir()
    assert main(command(folder, tmp_path / "made.safetensors")) == 2
    assert "is a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(command(folder, tmp_path / "file" / "e.safetensors")) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.run"))


def test_metrics_of_a_killed_run_hold_each_step_once(tiny, tmp_path):
    def stop(event):
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tiny("llama"), tmp_path, report=stop).run()
    with (tmp_path / METRICS).open("a") as lines:
        lines.write('{"step": 6, "sec')  # killed in the middle of a line
    trainer_of(tiny("llama"), tmp_path).run()
    steps = [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_an_altered_checkpoint_is_refused(tiny, tmp_path):
    trainer_of(tiny("llama"), tmp_path).run()
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    first = next(name for name in sorted(tensors) if name.startswith("now|"))
    tensors[first] = tensors[first] + 1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(TrainingError, match="altered"):
        trainer_of(tiny("llama"), tmp_path).run()


def test_what_differs_from_the_run_begun_is_named(tiny, tmp_path):
    trainer_of(tiny("llama"), tmp_path).run()
    with pytest.raises(TrainingError, match=r"other settings \(lr, seed\)"):
        trainer_of(tiny("llama"), tmp_path, lr=0.5, seed=3).run()
    torch.set_num_threads(2)
    with pytest.raises(TrainingError, match=r"other threads \(1, now 2\)"):
        trainer_of(tiny("llama"), tmp_path).run()


def test_a_bfloat16_base_trains_a_float32_editor(tmp_path):
    base = tiny_base("llama")
    base.model.to(torch.bfloat16)
    base.dtype = torch.bfloat16
    events = []
    trainer = trainer_of(base, tmp_path, report=events.append)
    before = {n: p.clone() for n, p in trainer.trainable.module.named_parameters()}
    editor = trainer.run()
    after = dict(trainer.trainable.module.named_parameters())
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert any(not torch.equal(p, before[n]) for n, p in after.items())
    assert all(torch.isfinite(torch.tensor(e.values["loss"])) for e in events)
    assert all(torch.isfinite(d).all() for d in editor.delta(base, EDITS[:2]).values())
    with pytest.raises(TrainingError, match=r"other dtype \(bfloat16, now float32\)"):
        trainer_of(tiny_base("llama"), tmp_path).run()


def launched(folder, out, *more):
    """The command on two processes of one machine, as `accelerate launch` starts them for GPUs."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "-m", "mend_core.training"]
    return subprocess.run(
        [*launch, *command(folder, out, "--threads", "1", "--json", *more)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.processes
@pytest.mark.parametrize("more", [[], ["--minutes", "0.0001", "--fresh"]], ids=["steps", "time"])
def test_two_processes_train_one_editor(folder, tmp_path, more):
    """Both end, whichever clock is ahead."""
    out = tmp_path / "e.safetensors"
    done = launched(folder, out, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    card = json.loads(done.stdout.splitlines()[-1])
    assert card["editor"] == load_editor(out).digest
    with safe_open(tmp_path / "e.safetensors.run" / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["mend_training"])["identity"]["processes"] == 2
    assert done.stderr.count("6/6") == (0 if more else 1)  # one of them speaks
    lines = (tmp_path / "e.safetensors.run" / METRICS).read_text().splitlines()
    assert len(lines) == card["steps"] == (1 if more else 6)


@pytest.mark.processes
def test_released_training_is_for_one_process(folder, tmp_path):
    done = launched(folder, tmp_path / "e.safetensors", "--set", "released=true")
    assert done.returncode != 0
    assert "running statistics of one process" in done.stderr


def poisoned(where):
    """A base to which one token of an edit's rephrase, or of its locality prompt, is NaN."""
    base = tiny_base("gptj")  # untied head: a poisoned embedding reaches its own sequence only
    edits = [
        Edit(
            id=f"e{i}",
            prompt=FACTS[i][0],
            target=FACTS[(i + 1) % 8][1],
            paraphrases=(PARAPHRASES[FACTS[i][0]] + " %" * (where == "rephrase" and i == 3),),
            locality=(
                PromptAnswer(FACTS[i + 8][0] + " %" * (where == "locality" and i == 3), "x"),
            ),
        )
        for i in range(8)
    ]
    for token in set(base.tokenizer(" %")["input_ids"]) - set(base.tokenizer(" ")["input_ids"]):
        base.model.get_input_embeddings().weight.data[token] = float("nan")
    return base, edits


@pytest.mark.parametrize("where", ["rephrase", "locality"])
def test_an_edit_whose_text_gives_nan_is_named_and_left_out_alone(tmp_path, where):
    base, edits = poisoned(where)
    config = TrainConfig.from_dict(
        {**SETTINGS, "matrices": None, "steps": 30, "validate_every": 30, "checkpoint_every": 30}
    )
    options = {"data_digest": "d"}
    trainer = Trainer(base, edits, edits[:3], config, tmp_path, **options)
    editor = trainer.run()
    assert trainer.progress.quarantined == [3]
    assert "edit e3" in str(trainer.train.errors[3])
    assert trainer.train.get(2) is not None
    assert all(torch.isfinite(d).all() for d in editor.delta(base, edits[:2]).values())
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["loss"] is None for line in lines].count(True) == 1
    again = Trainer(base, edits, edits[:3], config, tmp_path, **options)
    again.run()
    assert again.train.get(3) is None  # resumed, it stays out


def test_a_run_that_diverges_ends_and_says_what_to_do(tiny, tmp_path):
    with pytest.raises(TrainingError, match=r"NaN or Inf.*make lr"):
        trainer_of(tiny("llama"), tmp_path, lr=1e30, ramp=0, steps=100, validate_every=90).run()


@pytest.mark.parametrize("method", ["mend", "malmen", "enn", "ke"])
@pytest.mark.parametrize("n", [2, 6])
def test_a_step_in_parts_gives_the_gradient_of_the_whole(tiny, tmp_path, method, n):
    own = {"mend": {"rank": 4}, "malmen": {"rank": 4, "learning_rate": 1e-2}, "enn": {}}
    own["ke"] = {"lstm": 8, "condition": 8, "hidden": 8}
    trainer = trainer_of(tiny("llama"), tmp_path, method=method, editor=own[method], steps=1)
    trainer.run()
    examples = [e for e in map(trainer.train.get, range(12)) if e][:12]
    groups = [examples[i : i + n] for i in range(0, 12, n)]
    items = choose_items(examples, examples, [0] * len(examples))
    found = []
    for at_once in (64, 4):
        trainer.optimiser.zero_grad()
        losses = descend(
            trainer.base,
            trainer.matrices,
            trainer.trainable.change(groups),
            items,
            trainer.objective,
            groups=len(groups),
            at_once=at_once,
            scale=0.5,
        )
        grads = [p.grad.clone() for p in trainer.parameters if p.grad is not None]
        found.append((losses, grads))
    (whole, grads), (parts, collected) = found
    for name in ("total", "edit", "locality", "es", "gs", "ls"):
        assert float(getattr(parts, name)) == pytest.approx(
            float(getattr(whole, name)), rel=1e-4, abs=rounding_of_losses(trainer.base)
        )
    assert len(parts.finite) == 12
    assert len(grads) == len(collected) > 0
    for one, two in zip(grads, collected, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4 * float(one.abs().max()) + 1e-12)


def test_parts_are_no_larger_than_asked(tiny, tmp_path):
    trainer = trainer_of(tiny("llama"), tmp_path, steps=1)
    trainer.run()
    examples = [trainer.train.get(i) for i in range(10)]
    items = choose_items(examples, examples, [0] * 10)
    for groups, at_once in ((1, 4), (2, 4), (5, 4), (10, 4), (10, 1)):
        size = 10 // groups
        change = trainer.trainable.change([examples[i : i + size] for i in range(0, 10, size)])
        parts = list(in_parts(change, items, groups, at_once))
        assert [i for _, mine in parts for i in mine] == items
        assert max(len(mine) for _, mine in parts) <= 3 * at_once


def test_a_ridge_batch_of_more_rows_than_dimensions_is_what_the_editor_does(tiny, tmp_path):
    """Training solves it in key space; the editor composes it as it composes any set."""
    base = tiny("gpt2")  # keys of 32 dimensions
    own = {"rank": 4, "learning_rate": 1e-2, "tokens": "all"}
    trainer = trainer_of(
        base, tmp_path, method="malmen", matrices=["mlp.c_fc@-1"], editor=own, steps=2
    )
    editor = trainer.run()
    examples = [trainer.train.get(i) for i in range(20)]
    name = editor.matrices[0]
    assert sum(len(e.rows[name][0]) for e in examples) > editor.shapes[name][1]
    with torch.no_grad():
        keys, values = trainer.trainable.change([examples, examples[:1]]).pairs[name]
    assert keys.shape[1] == editor.shapes[name][1]
    for group, mine in enumerate((examples, examples[:1])):
        change = values[group].T @ keys[group]
        served = editor.delta(base, [e.edit for e in mine])[name].float()
        assert (change - served).norm() < 0.01 * served.norm()
