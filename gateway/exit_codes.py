"""What the processes of the front door end with."""

FAILED = 1
"""The service or a job failed, or not all that was asked for came about."""

NOT_POSSIBLE = 2
"""What was asked cannot be done as asked; one line on standard error says why."""

INTERRUPTED = 130
"""Ended by Ctrl-C."""

UNFORESEEN = 70
"""A bug (EX_SOFTWARE); the message says how to see the traceback."""
