"""Probes, statistics and the gate decision."""
