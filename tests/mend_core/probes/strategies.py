"""Probe results made by hand, for the pure parts."""

from mend_core.probes import ProbeKind, ProbeResult


def result(item_id, kind="locality", *, passed=True, forced=None, **rest):
    """A result; the teacher-forced verdict follows the free-running one unless given."""
    fields = {
        "slice": "all",
        "edit_id": None,
        "prompt": f"prompt of {item_id}",
        "expect": ("yes",),
        "answer": "yes" if passed else "no",
        "answer_tokens": (1,) if passed else (2,),
        "passed_forced": passed if forced is None else forced,
        "token_accuracy": float(passed),
        "tokens": 1,
        "nll": 0.5,
    }
    return ProbeResult(item_id=item_id, kind=ProbeKind(kind), passed=passed, **(fields | rest))


def run(kind, verdicts, *, prefix=None, **rest):
    """One result per verdict, named kind:number."""
    name = prefix or kind
    return [
        result(f"{name}:{n:04}", kind, passed=passed, **rest) for n, passed in enumerate(verdicts)
    ]
