"""The comparison of editors, end to end on a tiny model."""

import json

import pytest
import torch

from benchmarks import editors
from mend_core.editors import EnnEditor, KeConfig, KeEditor, MendConfig, MendEditor
from mend_core.testing import FACTS, tiny_base


@pytest.fixture(scope="module")
def base():
    torch.set_num_threads(1)
    return tiny_base("llama")


@pytest.fixture
def files(tmp_path, base, monkeypatch):
    monkeypatch.setattr(editors, "load_base", lambda *_a, **_k: base)
    data = tmp_path / "facts.jsonl"
    with data.open("w") as file:
        for i, (prompt, _) in enumerate(FACTS):
            record = {"id": str(i), "prompt": prompt, "target": FACTS[(i + 1) % 8][1]}
            record |= {"paraphrases": [prompt + " now"], "locality": [f"{prompt} not"]}
            record |= {"portability": [{"prompt": f"{prompt} now and", "answer": FACTS[i][1]}]}
            file.write(json.dumps(record) + "\n")
    texts = tmp_path / "texts.txt"
    texts.write_text(" ".join(p for p, _ in FACTS))
    editor = MendEditor.create(base, MendConfig(rank=4))
    editor.calibrate(base, list(editors.read_edits(data))[:8])
    editor.save(tmp_path / "mine.safetensors")
    return tmp_path


def run(files, capsys, *more):
    options = ["--data", str(files / "facts.jsonl"), "--editors", str(files / "mine.safetensors")]
    code = editors.main([*options, "--sizes", "1,2", "--batches", "1", "--steps", "2", *more])
    return code, capsys.readouterr()


def test_every_method_in_one_table_and_the_same_for_a_seed(files, capsys):
    more = ["--train", str(files / "facts.jsonl"), "--texts", str(files / "texts.txt"), "--json"]
    code, first = run(files, capsys, *more, "--plot", str(files / "plot.png"))
    assert code == 0
    report = json.loads(first.out)
    lines = report["lines"]
    methods = {"mend", "ultra", "finetune", "finetune_kl"}
    assert {(x["method"], x["edits"]) for x in lines} == {(m, n) for m in methods for n in (1, 2)}
    for line in lines:
        assert line["failed"] is None
        assert len(line["forced"]) == len(line["exact"]) == len(line["free"]) == 4
        assert line["perplexity_ratio"] > 0
        assert line["kl"] >= 0
        assert len(line["portability"]) == 3
        assert all(0 <= share <= 1 for share in line["portability"])
        assert line["seconds_per_edit"] > 0
    assert (files / "plot.png").stat().st_size > 1000
    _, second = run(files, capsys, *more, "--methods", "mend")
    same = ("forced", "exact", "free", "perplexity_ratio")
    first_mend = [line for line in lines if line["method"] == "mend"]
    for a, b in zip(first_mend, json.loads(second.out)["lines"], strict=True):
        assert [a[k] for k in same] == [b[k] for k in same]


def test_lines_of_an_earlier_run_stand_in_the_same_table(files, capsys):
    options = ["--texts", str(files / "texts.txt"), "--json"]
    _, first = run(files, capsys, *options, "--methods", "mend")
    report = files / "mend.json"
    report.write_text(first.out)
    code, both = run(files, capsys, *options, "--methods", "ultra", "--beside", str(report))
    assert code == 0
    lines = json.loads(both.out)["lines"]
    assert [x["method"] for x in lines] == ["mend", "ultra", "mend", "ultra"]
    assert [x for x in lines if x["method"] == "mend"] == json.loads(first.out)["lines"]
    code, refused = run(
        files, capsys, *options, "--methods", "ultra", "--seed", "1", "--beside", str(report)
    )
    assert code == editors.USER_ERROR
    assert "its seed is 0, not 1" in refused.err
    report.write_text("[]")
    code, refused = run(files, capsys, *options, "--methods", "ultra", "--beside", str(report))
    assert code == editors.USER_ERROR
    assert "cannot be read as a report" in refused.err


def test_the_table_is_for_people(files, capsys):
    code, shown = run(files, capsys, "--methods", "mend")
    assert code == 0
    assert "mend" in shown.out
    for head in ("ppl", "KL", "portabi"):
        assert head in shown.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sizes", "x"], "expected numbers"),
        (["--sizes", "0"], "at least 1"),
        (["--sizes", "1000"], "fewer than 1000"),
        (["--methods", "magic"], "no editor for magic"),
        (["--texts", "none.txt"], "cannot be read"),
        (["--editors", "none.safetensors"], "no editor file"),
        (["--plot", "plot.none"], "ends in .png"),
        (["--plot", "/proc/none/plot.png"], "cannot be written"),
        (["--probed", "0"], "less than 1"),
        (["--steps", "0"], "less than 1"),
        (["--lr", "nan"], "no number above 0"),
    ],
)
def test_mistakes_are_told_in_a_line(files, capsys, more, words):
    try:
        code, shown = run(files, capsys, *more)
    except SystemExit as left:  # argparse's own
        code, shown = left.code, capsys.readouterr()
    assert code == 2
    assert words in shown.err


def test_bad_records_and_edits_are_told_and_do_not_fail_a_table(files, capsys):
    with (files / "facts.jsonl").open("a") as file:
        file.write(json.dumps({"id": "none", "prompt": "What"}) + "\n")
        file.write(json.dumps({"id": "long", "prompt": "x " * 4000, "target": "y"}) + "\n")
    code, shown = run(
        files, capsys, "--methods", "mend", "--json", "--sizes", "16", "--probed", "9"
    )
    assert code == 0, shown.err
    assert "skipped: " in shown.err
    assert "left out: edit long" in shown.err
    assert json.loads(shown.out)["lines"][0]["failed"] is None
    code, shown = run(files, capsys, "--methods", "mend", "--sizes", "17")
    assert code == 2
    assert "16 usable edits, fewer than 17" in shown.err


def test_a_mean_of_scores_not_all_measured_is_none(files, capsys):
    """As in the gate: a harmonic mean without locality would flatter."""
    data = files / "bare.jsonl"
    data.write_text(
        "".join(
            json.dumps({"id": str(i), "prompt": p, "target": a}) + "\n"
            for i, (p, a) in enumerate(FACTS)
        )
    )
    code, shown = run(files, capsys, "--data", str(data), "--methods", "mend", "--json")
    assert code == 0
    line = json.loads(shown.out)["lines"][0]
    assert line["forced"][1:] == [None, None, None]


def test_peers_are_compared_by_their_files(files, base, capsys):
    EnnEditor.create(base).save(files / "first.safetensors")
    KeEditor.create(base, KeConfig(lstm=8, condition=8, hidden=8)).save(
        files / "second.safetensors"
    )
    both = [str(files / f"{name}.safetensors") for name in ("first", "second")]
    code, said = run(files, capsys, "--editors", *both, "--methods", "enn,ke", "--json")
    assert code == 0
    lines = json.loads(said.out)["lines"]
    assert [(x["method"], x["edits"]) for x in lines] == [
        ("enn", 1),
        ("ke", 1),
        ("enn", 2),
        ("ke", 2),
    ]
    assert all(x["failed"] is None and x["editor_mb"] > 0 for x in lines)
