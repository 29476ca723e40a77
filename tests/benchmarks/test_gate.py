"""What a policy lets through, by simulation: the ends of the table, where luck does not matter."""

from __future__ import annotations

import json

import pytest

from benchmarks import gate
from benchmarks.__main__ import main
from mend_core.probes import load_policy


@pytest.mark.parametrize("edits", gate.EDITS)
def test_an_unbroken_version_passes_and_a_badly_broken_one_never_does(edits):
    default = load_policy("default")
    assert gate.characteristic(default, edits, 0.0, draws=4, seed=1).failed == 0
    assert gate.characteristic(default, edits, 0.3, draws=4, seed=1).failed == 1


def test_one_seed_gives_one_table(monkeypatch, capsys):
    monkeypatch.setattr(gate, "EDITS", (1,))
    monkeypatch.setattr(gate, "HARMLESS", (0.01,))
    monkeypatch.setattr(gate, "HARMFUL", (0.2,))
    said = []
    for _ in range(2):
        assert gate.main(["--draws", "3", "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert [line["breaks"] for line in said[0]["lines"]] == [0.01, 0.2]


def test_a_policy_that_is_none_is_refused_in_one_line(capsys):
    assert main(["gate", "--policy", "no-such.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no-such.yaml: cannot be read" in said


def test_no_draws_are_no_table(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gate", "--draws", "0"])
    assert ended.value.code == 2
    assert "--draws" in capsys.readouterr().err
