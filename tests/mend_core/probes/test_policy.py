"""Policies: shipped, validated, honest about what they would take."""

import pytest

from mend_core.errors import PolicyInvalid
from mend_core.probes import Policy, load_policy, parse_policy
from mend_core.probes.policy import SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_policies_are_valid_and_say_what_they_demand(name):
    policy = load_policy(name)
    assert policy.name == name
    assert len(policy.says) > 80
    assert all(need["n"] <= 100 for need in policy.needs())
    assert Policy.model_validate(policy.to_dict()) == policy


def test_the_demo_policy_says_it_proves_nothing():
    assert "not proven safe" in load_policy("demo").says


def test_the_digest_is_of_the_content_not_of_the_file():
    one = parse_policy("name: a\nalpha: 0.05\n")
    two = parse_policy("# a comment\nalpha: 5.0e-2\nname: 'a'\n")
    assert one.digest == two.digest
    assert one.digest.startswith("sha256:")
    assert parse_policy("name: a\nalpha: 0.04\n").digest != one.digest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [", "line 1: not YAML"),
        ("- a", "expected keys and values, got list"),
        ("", "expected keys and values, got NoneType"),
        ("alpha: 0.05", "name: Field required"),
        ("name: a\nalhpa: 1", "alhpa: unknown key"),
        ("name: a\nalpha: 0", "alpha: .*greater than 0"),
        ("name: a\nparent: {margin: 0}", "parent.margin: .*greater than 0"),
        ("name: a\nparent: {margin: 0.1, slices: {x: 2}}", "slices.x: a margin must lie"),
        ("name: a\nsuccess: {target: 1.0}", "success.target: .*less than 1"),
        ("name: a\nsuccess: {target: .nan}", "success.target: .*finite"),
        ("name: a\nhard: {update_norm: -1}", "hard.update_norm"),
        ("name: a\ndrift: {margin: 0.1, spend: monthly}", "drift.spend"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_broken_policies_are_refused_in_a_sentence(text, says):
    with pytest.raises(PolicyInvalid, match=f"(?s)mine.*{says}"):
        parse_policy(text, name="mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("success: {target: 0.9999}", r"success asks for at least 0.9999 .* takes 27,05\d items"),
        ("parent: {margin: 0.0001}", r"parent asks for a loss below 0.0001 .* takes 27,05\d items"),
        (
            "drift: {margin: 0.5, slices: {geo: 0.00001}}",
            r"drift.slices.geo .* takes 270,55\d items",
        ),
        (
            "items_limit: 10",
            "success asks for at least 0.8 .* takes 11 items, and items_limit is 10",
        ),
        ("parent: {margin: 1.0e-12}", "no finite number of items"),
    ],
)
def test_impossible_thresholds_say_which_n_would_be_needed(text, says):
    with pytest.raises(PolicyInvalid, match=says):
        parse_policy(f"name: a\n{text}\n")


def test_a_policy_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PolicyInvalid, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff")
    with pytest.raises(PolicyInvalid, match="not UTF-8"):
        load_policy(tmp_path / "bad.yaml")
    (tmp_path / "good.yaml").write_text("name: mine\n")
    assert load_policy(tmp_path / "good.yaml").name == "mine"


def test_alpha_can_be_spent_over_all_versions():
    policy = parse_policy("name: a\ndrift: {margin: 0.1, spend: basel}")
    assert policy.drift_alpha(1) < policy.alpha
    assert policy.drift_alpha(10) < policy.drift_alpha(9)
    assert load_policy("default").drift_alpha(10) == policy.alpha
