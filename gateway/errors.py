"""Errors of the front door.

GatewayError
├── UserError            what was asked cannot be done as asked (exit code 2)
│   └── NotRunning       no service to talk to
└── ServiceFailed        the service or a job failed (exit code 1)
"""

from __future__ import annotations


class GatewayError(Exception):
    """Root of the tree; `exit_code` is what the process ends with."""

    exit_code = 1


class UserError(GatewayError):
    """What was asked cannot be done as asked; the message says what to do instead."""

    exit_code = 2


class NotRunning(UserError):
    """There is no running service to talk to."""


class ServiceFailed(GatewayError):
    """The service, or a job it ran, failed; asking again may help."""
