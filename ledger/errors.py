"""Every error the ledger raises.

Each message says what happened, to which thing, and what to do next.

    LedgerError
    ├── DatabaseDown              Postgres does not answer
    │   ├── EmbeddedFailed        our own Postgres could not be started
    │   └── PostgresTooOld        the server is older than the ledger works on
    ├── SchemaError
    │   ├── SchemaMissing         no migration has run
    │   ├── SchemaOlder           the database is behind the code
    │   └── SchemaNewer           the database is ahead of the code
    ├── RequestInvalid            bad input; carries line and field
    │   └── RequestsInvalid       several of them (a file); carries the list
    ├── NotFound
    │   ├── NoSuchModel, NoSuchEditor, NoSuchEdit, NoSuchVersion, NoSuchAlias, NoSuchJob,
    │   └── NoSuchBatch
    ├── Conflict                  the thing is in the wrong state for this
    │   ├── AlreadyExists
    │   ├── KeyReused             an idempotency key came again with other content
    │   ├── WrongState            e.g. cancel of a live edit
    │   ├── StaleFence            the lease was lost: nothing was changed
    │   ├── AliasMoved            an alias is not where the caller saw it
    │   ├── StaleParent           the candidate moved while a version was being built
    │   ├── BatchChanged          an edit left the batch (cancelled) before the commit
    │   ├── Unproven              promotion of a version whose gate did not pass
    │   ├── VersionCollected      the version's files are gone
    │   └── AliasProtected        the alias needs a second person
    └── AuditBroken               the trail does not verify
"""

from __future__ import annotations

from collections.abc import Sequence


class LedgerError(Exception):
    """Root of the tree."""


class DatabaseDown(LedgerError):
    """Postgres does not answer."""


class EmbeddedFailed(DatabaseDown):
    """Our own Postgres could not be started."""


class PostgresTooOld(DatabaseDown):
    """The server is older than the ledger works on."""


class SchemaError(LedgerError):
    """The schema is not the one this code needs."""


class SchemaMissing(SchemaError):
    """No migration has run on this database."""


class SchemaOlder(SchemaError):
    """The database is behind the code."""


class SchemaNewer(SchemaError):
    """The database is ahead of the code."""


class RequestInvalid(LedgerError):
    """A request breaks a rule.

    Attributes:
        line: 1-based line of the file it came from, or None.
        field: Name of the field at fault, or None where the whole record is.
        problem: What is wrong and what was expected.
    """

    def __init__(self, problem: str, *, field: str | None = None, line: int | None = None) -> None:
        where = "" if line is None else f"line {line}: "
        what = "" if field is None else f"field {field!r}: "
        super().__init__(f"{where}{what}{problem}")
        self.problem = problem
        self.field = field
        self.line = line


class RequestsInvalid(RequestInvalid):
    """Records of a file break rules; nothing of the file was accepted.

    Attributes:
        problems: One per bad record, in file order.
    """

    def __init__(self, problems: Sequence[RequestInvalid]) -> None:
        shown = "; ".join(str(p) for p in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""  # noqa: PLR2004 - how many fit one message
        super().__init__(f"{shown}{more}")
        self.problems = tuple(problems)


class NotFound(LedgerError):
    """There is no such thing."""


class NoSuchModel(NotFound):
    """No model of this name or id."""


class NoSuchEditor(NotFound):
    """No editor of this digest or id."""


class NoSuchEdit(NotFound):
    """No edit of this id."""


class NoSuchVersion(NotFound):
    """No version of this number or name."""


class NoSuchAlias(NotFound):
    """No alias of this name."""


class NoSuchJob(NotFound):
    """No job of this id."""


class NoSuchBatch(NotFound):
    """No batch of this id."""


class Conflict(LedgerError):
    """The thing is in the wrong state for this."""


class AlreadyExists(Conflict):
    """The name is taken."""


class KeyReused(Conflict):
    """An idempotency key came again with other content."""


class WrongState(Conflict):
    """The move is not allowed from the present state."""


class StaleFence(Conflict):
    """The lease was lost to someone else or ran out; nothing was changed."""


class AliasMoved(Conflict):
    """An alias is not where the caller saw it any more; look again and decide again."""


class StaleParent(Conflict):
    """The version to build on is no longer the one that was planned; plan again."""


class BatchChanged(Conflict):
    """An edit left the batch before the commit; plan again."""


class Unproven(Conflict):
    """The version's gate has not passed and nobody overrode it."""


class VersionCollected(Conflict):
    """The version's files were collected."""


class AliasProtected(Conflict):
    """A protected alias moves only with a second person's approval and a reason."""


class AuditBroken(LedgerError):
    """The trail does not verify."""
