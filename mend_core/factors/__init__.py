"""Factors: extracted at the base, kept on a grid, summed exactly, composed into versions."""

from mend_core.factors.accumulators import Accumulators
from mend_core.factors.compose import Composition, compose, needs_rows
from mend_core.factors.export import ExportReport, export_merged, export_peft
from mend_core.factors.extract import Extraction, StackedRows, extract
from mend_core.factors.grid import Grid, MatrixGrid
from mend_core.factors.materialise import materialise, platform_tag, weights_digest
from mend_core.factors.provenance import Provenance
from mend_core.factors.rows import Delta, FactorRows, GridRows, Int16Rows, Rows
from mend_core.factors.store import FactorStore
from mend_core.factors.version import VersionFiles, VersionStore, version_digest

__all__ = [
    "Accumulators",
    "Composition",
    "Delta",
    "ExportReport",
    "Extraction",
    "FactorRows",
    "FactorStore",
    "Grid",
    "GridRows",
    "Int16Rows",
    "MatrixGrid",
    "Provenance",
    "Rows",
    "StackedRows",
    "VersionFiles",
    "VersionStore",
    "compose",
    "export_merged",
    "export_peft",
    "extract",
    "materialise",
    "needs_rows",
    "platform_tag",
    "version_digest",
    "weights_digest",
]
