"""Every error mend_core raises on bad input.

Each message says what happened, to which thing, and what to do next.

    MendError
    ├── ModelError
    │   ├── ModelNotFound         no such folder, hub id or shipped model
    │   ├── ModelBroken           files missing, truncated or unreadable
    │   ├── ModelUnsupported      an architecture with no family
    │   ├── ModelMismatch         not the digest that was expected
    │   └── NoSuchMatrix          a pattern that matches no editable matrix
    ├── EditorError
    │   ├── EditorNotFound        no such file
    │   ├── EditorCorrupt         unreadable, truncated, or its digest differs
    │   └── EditorMismatch        made for another base or other shapes
    ├── EditError                 one edit is at fault; carries edit_id
    │   ├── PromptEmpty
    │   ├── PromptTooLong
    │   ├── TargetUnreachable     the target tokenises to nothing
    │   └── NonFinite             NaN or Inf in a loss, gradient or factor
    ├── BatchError                the batch is at fault, not one edit of it
    │   └── EmptyBatch
    ├── StoreError
    │   ├── StoreMissing          a file that should be there is not
    │   ├── StoreCorrupt          a file that is not what its digest says
    │   └── StoreFull             no room left on the device
    ├── ProbeError
    │   ├── SuiteInvalid
    │   └── PolicyInvalid
    ├── DataError                 a bad record in a data file; carries path, line and field
    └── TrainingError             training cannot start or go on
"""

from __future__ import annotations


class MendError(Exception):
    """Root of the tree."""


class ModelError(MendError):
    """A base model cannot be used."""


class ModelNotFound(ModelError):
    """No such folder, hub id or shipped model."""


class ModelBroken(ModelError):
    """Files of the model are missing, truncated or unreadable."""


class ModelUnsupported(ModelError):
    """The architecture belongs to no family we can edit."""


class ModelMismatch(ModelError):
    """The weights are not the ones expected."""


class NoSuchMatrix(ModelError):
    """A pattern matches no editable matrix."""


class EditorError(MendError):
    """An editor cannot be used."""


class EditorNotFound(EditorError):
    """No editor file at this path."""


class EditorCorrupt(EditorError):
    """The editor file is unreadable or not what its digest says."""


class EditorMismatch(EditorError):
    """The editor was made for another base or for other shapes."""


class EditError(MendError):
    """One edit is at fault; the others of its batch are not.

    Attributes:
        edit_id: The edit at fault.
    """

    def __init__(self, edit_id: str, message: str) -> None:
        super().__init__(f"edit {edit_id}: {message}")
        self.edit_id = edit_id


class PromptEmpty(EditError):
    """The prompt has no tokens."""


class PromptTooLong(EditError):
    """Prompt and target do not fit the model's context."""


class TargetUnreachable(EditError):
    """The target tokenises to nothing."""


class NonFinite(EditError):
    """A loss, gradient or factor holds NaN or Inf."""


class BatchError(MendError):
    """A batch cannot be used."""


class EmptyBatch(BatchError):
    """There is nothing in the batch."""


class StoreError(MendError):
    """A stored file cannot be used."""


class StoreMissing(StoreError):
    """A file that should be there is not."""


class StoreCorrupt(StoreError):
    """A file is not what its digest says."""


class StoreFull(StoreError):
    """No room left on the device."""


class ProbeError(MendError):
    """A probe suite or a policy cannot be used."""


class SuiteInvalid(ProbeError):
    """The suite breaks a rule of its format."""


class PolicyInvalid(ProbeError):
    """The policy breaks a rule of its format or asks for the impossible."""


class DataError(MendError):
    """A record of a data file is malformed.

    Attributes:
        path: The file.
        line: Line number (1-based), or None where the format has no lines.
        field: Name of the field at fault, or None.
    """

    def __init__(self, path: str, line: int | None, field: str | None, message: str) -> None:
        where = path if line is None else f"{path}, line {line}"
        what = f"{where}: {message}" if field is None else f"{where}, field {field!r}: {message}"
        super().__init__(what)
        self.path = path
        self.line = line
        self.field = field


class TrainingError(MendError):
    """Training cannot start or go on."""
