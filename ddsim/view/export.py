"""Traces, tables and budgets in forms that spreadsheets and serving engines read: CSV, Parquet, JSON,
JSONL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from ddsim.errors import DdsimError
from ddsim.files.atomic import write as _write
from ddsim.files.documents import write_document
from ddsim.trace.trace import Trace

FORMATS = (".csv", ".parquet", ".json", ".jsonl")


def check_format(path: str | Path, option: str = "") -> None:
    """Refuse an ending that names no format of a table, in a line that begins with the option."""
    if Path(path).suffix not in FORMATS:
        raise DdsimError(f"{option}{path}: can't tell the format; end the name in one of {', '.join(FORMATS)}")


def export_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table in the format that the file's ending names, whole or not at all.

    Parameters
    ----------
    table : pandas.DataFrame
        For instance ``ReplayResult.table()``.
    path : str or Path
        Ends in .csv, .parquet, .json (a list of objects) or .jsonl (an object a line).

    Raises
    ------
    DdsimError
        Another ending, or the file can't be written.
    """
    target = Path(path)
    check_format(path)

    def write(file: Any) -> None:
        if target.suffix == ".parquet":
            table.to_parquet(file, index=False)
        elif target.suffix == ".csv":
            file.write(table.to_csv(index=False).encode())
        else:
            file.write(table.to_json(orient="records", lines=target.suffix == ".jsonl", double_precision=15).encode())

    _write(target, write)


def sequence_table(trace: Trace) -> pd.DataFrame:
    """A row a sequence: workload, prompt_id, temperature, prompt_tokens, tokens."""
    return pd.DataFrame(
        {
            "workload": [info.workload for info in trace.sequences],
            "prompt_id": [info.prompt_id for info in trace.sequences],
            "temperature": [info.temperature for info in trace.sequences],
            "prompt_tokens": [info.prompt_tokens for info in trace.sequences],
            "tokens": [info.length for info in trace.sequences],
        }
    )


def export_candidates(trace: Trace, path: str | Path, *, limit: int | None = None) -> None:
    """Write a trace as one long table (.csv or .parquet): a row a candidate, streamed block by block.

    Columns: sequence, position, context, token, depth, rank (from 0), token_id, logprob.

    Parameters
    ----------
    limit : int, optional
        At most so many rows.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".parquet"):
        raise DdsimError(f"{path}: candidates are written as .csv or .parquet")

    def write(file: Any) -> None:
        import pyarrow as pa

        left, writer = limit, None
        for block in trace.blocks(1024):
            listed = block.proposal.candidates()
            p = listed.pop("position")
            part = pd.DataFrame(
                {
                    "sequence": block.sequence[p],
                    "position": (p - block.starts[block.sequence[p] - block.first_sequence]).astype(np.int32),
                    "context": block.context[p],
                    "token": block.tokens[p],
                }
                | listed
            )
            if left is not None:
                part = part.iloc[:left]
                left -= len(part)
            if target.suffix == ".csv":
                file.write(part.to_csv(index=False, header=writer is None).encode())
                writer = file
            else:
                rows = pa.Table.from_pandas(part, preserve_index=False)
                writer = writer or pq.ParquetWriter(file, rows.schema, compression="zstd")
                writer.write_table(rows)
            if left == 0:
                break
        if target.suffix == ".parquet" and writer is not None:
            writer.close()

    _write(target, write)


def export_budgets(
    path: str | Path,
    contexts: ArrayLike,
    batches: ArrayLike,
    budgets: ArrayLike,
    *,
    extrapolated: ArrayLike | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a lookup table (context, batch) -> nodes per request as JSON for a serving engine.

    An engine takes the first context and batch that are not below its own, or the last.

    Parameters
    ----------
    contexts : int [C], ascending
    batches : int [B], ascending
    budgets : int [C, B]
        Nodes, the root not counted; verification sends one token more.
    extrapolated : bool [C, B], optional
        Which budgets rest on costs outside what was measured; written beside them.

    Raises
    ------
    DdsimError
        Shapes don't match, or values are negative or not ascending.
    """
    c, b, n = (np.asarray(v) for v in (contexts, batches, budgets))
    if c.ndim != 1 or b.ndim != 1 or n.shape != (len(c), len(b)) or n.size == 0:
        raise DdsimError(f"{path}: {c.size} contexts and {b.size} batches need as many budgets, got shape {n.shape}")
    for name, values in (("contexts", c), ("batches", b)):
        if values.dtype.kind not in "iu" or values[0] < 0 or np.any(np.diff(values) <= 0):
            raise DdsimError(f"{path}: {name} must be ascending whole numbers")
    if n.dtype.kind not in "iu" or n.min() < 0:
        raise DdsimError(f"{path}: budgets must be whole numbers, 0 or more")
    marks = None if extrapolated is None else np.asarray(extrapolated)
    if marks is not None and (marks.shape != n.shape or marks.dtype != bool):
        raise DdsimError(f"{path}: extrapolated must be true or false for each of the {n.size} budgets")
    document = {
        "schema_version": 1,
        "kind": "ddsim-budgets",
        "contexts": c.tolist(),
        "batches": b.tolist(),
        "budgets": n.tolist(),
        **({} if marks is None else {"extrapolated": marks.tolist()}),
        "provenance": provenance or {},
    }
    write_document(path, document)
