"""`mend demo`: the whole service, once, on a small real model; then everything undone."""
