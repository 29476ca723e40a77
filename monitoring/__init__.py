"""Metrics: one exporter that reads the ledger at scrape time, rules and dashboards."""
