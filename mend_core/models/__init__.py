"""Bases: loading, editable matrices, prefix activations."""
