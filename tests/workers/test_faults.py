import errno
import os

import pytest

from workers import faults


def test_no_fault_is_armed_by_default(monkeypatch):
    monkeypatch.delenv("MEND_FAULT", raising=False)
    for name in faults.POINTS:
        faults.point(name)


def test_unknown_points_and_actions_are_refused_with_the_known_ones():
    with pytest.raises(faults.FaultSpecInvalid, match="after-claim"):
        faults.parse("after-lunch:kill")
    with pytest.raises(faults.FaultSpecInvalid, match="enospc"):
        faults.parse("after-claim:explode")


def test_several_points_can_be_armed():
    assert faults.parse("after-claim:kill, before-commit:raise") == {
        "after-claim": "kill",
        "before-commit": "raise",
    }


def test_a_fault_fires_once_where_a_marker_is_given(monkeypatch, tmp_path):
    marker = tmp_path / "fired"
    monkeypatch.setenv("MEND_FAULT", "before-commit:enospc")
    monkeypatch.setenv("MEND_FAULT_ONCE", str(marker))
    faults.point("after-commit")
    with pytest.raises(OSError, match="No space left") as raised:
        faults.point("before-commit")
    assert raised.value.errno == errno.ENOSPC
    assert faults.marker_text(marker).startswith("before-commit")
    faults.point("before-commit")


def test_rename_points_sit_around_the_publishing_rename(monkeypatch, tmp_path):

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setenv("MEND_FAULT", "before-rename:raise")
    faults.install()
    folder = tmp_path / "versions"
    folder.mkdir()
    (tmp_path / "a").write_text("a")
    (tmp_path / "a").replace(tmp_path / "b")
    with pytest.raises(RuntimeError, match="before-rename"):
        (tmp_path / "b").rename(folder / "b")
    assert (tmp_path / "b").exists()
    monkeypatch.setenv("MEND_FAULT", "after-rename:raise")
    with pytest.raises(RuntimeError, match="after-rename"):
        (tmp_path / "b").rename(folder / "b")
    assert (folder / "b").exists()
