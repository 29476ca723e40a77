"""The science: models, editors, factors, training, probes and datasets. No database, no HTTP."""
