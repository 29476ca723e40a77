"""What the numbers in the README come from."""

NAMES = ("asking", "editing", "editors", "gate", "queue", "versions")
"""The benchmarks that can be run."""
