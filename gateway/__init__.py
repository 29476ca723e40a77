"""The front door: command line, HTTP API, process supervision. Never imports torch."""
