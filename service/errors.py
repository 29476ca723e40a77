"""Errors of what a person asks for.

ServiceError
├── UserError            what was asked cannot be done as asked
│   └── NotRunning       no service to talk to
└── ServiceFailed        the service or a job failed; asking again may help
"""

from __future__ import annotations


class ServiceError(Exception):
    """Root of the tree."""


class UserError(ServiceError):
    """What was asked cannot be done as asked; the message says what to do instead."""


class NotRunning(UserError):
    """There is no running service to talk to."""


class ServiceFailed(ServiceError):
    """The service, or a job it ran, failed; asking again may help."""
