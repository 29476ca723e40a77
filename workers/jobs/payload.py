"""Reading a job's payload, with errors for the person who sent it."""

from __future__ import annotations

from typing import Any, TypeVar

from ledger import models as model_rows
from ledger import versions as version_rows
from ledger.records import Job, Model, SetMember, Version
from workers.building import weights_of
from workers.context import Context
from workers.jobs import JobInvalid
from workers.runtime import WarmModel, Weights

T = TypeVar("T")


def field(job: Job, name: str, kind: type[T], default: T | None = None) -> T:
    """A field of the payload.

    Raises:
        JobInvalid: Missing without a default, or of another type.
    """
    value: Any = job.payload.get(name)
    if value is None:
        if default is None:
            raise JobInvalid(f"{job.kind}: field {name!r} is missing from the job's payload")
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise JobInvalid(
            f"{job.kind}: field {name!r} must be {kind.__name__}, got {type(value).__name__}"
        )
    return value


def model_of(context: Context, job: Job) -> Model:
    """The model a job is about.

    Raises:
        JobInvalid: The job names none.
        NoSuchModel: There is none of this name.
    """
    which = job.model_id if job.model_id is not None else job.payload.get("model")
    if which is None:
        raise JobInvalid(f"{job.kind}: the job names no model")
    return context.transact(lambda conn: model_rows.get(conn, which))


def find_version(context: Context, model: Model, which: object) -> tuple[Version, list[SetMember]]:
    """A version by number, alias, "previous" or digest prefix, with its set.

    Raises:
        NoSuchVersion: There is none.
    """

    def look(conn: Any) -> tuple[Version, list[SetMember]]:
        version = version_rows.find(conn, model.id, str(which))
        return version, list(version_rows.live_set(conn, version.id))

    return context.transact(look)


def weights_by_name(
    context: Context, model: Model, which: object
) -> tuple[WarmModel, Version, Weights]:
    """A version, the loaded model it stands on, and its exact weights."""
    version, members = find_version(context, model, which)
    warm = context.warm(version)
    return warm, version, weights_of(warm, version, members)
