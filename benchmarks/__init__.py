"""What the numbers in the README come from."""

NAMES = ("editors", "editing", "queue", "versions")
"""The benchmarks that can be run."""
