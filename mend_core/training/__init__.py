"""Meta-training of editors."""
