"""What recordings, calibrations and reliability print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddsim.tables import Column, Shown, Summary, Table, drawn, number, public
from ddsim.text import listed, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {"rows": "marginals", "lattice": "lattices", "trees": "drafted trees", "chains": "chains"}
"""What a recording holds, in words."""

WORKLOADS: tuple[Column, ...] = (
    ("workload", "workload", str),
    ("prompts", "prompts", str),
    ("answers", "answers", str),
    ("temperature", "temperature", str),
    ("positions", "positions", "{:,}".format),
    ("mean", "tokens an\nanswer", number(0)),
)


class ShownTrace(Shown):
    """How a trace is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: what was recorded of what, and a row of each workload."""
        told = self.meta.get("provenance", {})
        said = f"Trace of {KINDS.get(self.kind, self.kind)}: {_counted(len(self.sequences), 'answer')}, {_counted(len(self), 'position')}; "
        said += f"drafts of {_counted(self.horizon, 'token')}, exact to {_counted(self.max_budget, 'node')}."
        models = [
            f"{word} {told[key]}" for word, key in (("Target", "target"), ("drafter", "drafter")) if told.get(key)
        ]
        rows = []
        for name in self.workloads:
            of = [info for info in self.sequences if info.workload == name]
            heats = sorted({info.temperature for info in of})
            positions = sum(info.length for info in of)
            rows.append(
                {
                    "workload": name or "–", "prompts": len({info.prompt_id for info in of}), "answers": len(of),
                    "temperature": ", ".join(f"{heat:g}" for heat in heats), "positions": positions, "mean": positions / len(of),
                }
            )  # fmt: skip
        return Summary(said, [f"{', '.join(models)}."] if models else [], [Table.of(rows, WORKLOADS)])

    def plot(self: Any, position: int = 0, budget: int = 32, *, sequence: int = 0, ax: Axes | None = None) -> Axes:
        """Draw the tree of a round and the path that is accepted, read from the recording: `ddsim.plot.tree`.

        Parameters
        ----------
        position : int
            Of the root in its sequence.
        budget : int
            Nodes without the root; at most what the recording answers.
        sequence : int
            Number of the sequence in the trace.
        ax : Axes, optional
        """
        plot = public("plot")
        axes: Axes = plot.tree(plot.drafted_round(self, position, min(budget, self.max_budget), sequence), ax=ax)
        return axes


class ShownPositions(Shown):
    """How the table of rounds is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: its size, in a line."""
        (count, most), horizon = self.gains.shape, self.ranks.shape[1]
        answers = _counted(len(self.starts) - 1, "answer")
        return Summary(
            f"Gains and ranks of the true path at {_counted(count, 'position')} of {answers}: trees of up to {_counted(most, 'node')}, "
            f"drafts of {_counted(horizon, 'token')}."
        )


class ShownCalibration(Shown):
    """How a calibration is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: what it corrects and what it was fitted on, in a line."""
        what = {
            "isotonic": "maps a node's path probability to how often such nodes are accepted",
            "temperature": "gives each depth's marginals a temperature",
            "path": "corrects marginals by the token before",
        }.get(self.kind, "corrects a drafter's probabilities")
        parts, told = len(getattr(self, "parts", ())), self.provenance
        said = f"Calibration '{self.kind}': {what}"
        said += f"; {parts} fits, so that each prompt has one made without it" if parts else ""
        workloads = [name for name in told.get("workloads", ()) if name]
        if workloads:
            share = told.get("train_share", 1.0)
            said += f"; fitted on {listed(workloads)}" + (f", {100 * share:.0f} % of the prompts" if share < 1 else "")
        return Summary(f"{said}.")


TRUE = 0.01
"""Relative error of what a drafter promises up to which it counts as right."""

HEADLINE = 64
"""Nodes that a sentence speaks of, if they were judged."""


def calibration_sentence(report: Any) -> str:
    """Whether the drafter promises too much or too little, and what is left of that after calibration.

    Parameters
    ----------
    report : DataFrame
        Of `ddsim.fit_calibration`: budget, realised, predicted_before and predicted_after, on prompts that the fit hasn't seen.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"budget": [64], "realised": [4.0], "predicted_before": [3.0], "predicted_after": [3.9]})
    >>> calibration_sentence(frame)
    'The drafter is underconfident: for trees of 64 nodes it promises 3.00 tokens a round, 4.00 are committed (−25.0 %); calibrated it promises 3.90 (−2.5 %).'
    """
    rows = report.to_dict("records")
    row = next((row for row in rows if row["budget"] == HEADLINE), rows[-1])
    before, after = (row[f"predicted_{when}"] / row["realised"] - 1 for when in ("before", "after"))
    what = "right on average" if abs(before) <= TRUE else "overconfident" if before > 0 else "underconfident"
    nodes = f"{row['budget']:.0f} node{'s' * (row['budget'] != 1)}"
    return (
        f"The drafter is {what}: for trees of {nodes} it promises {row['predicted_before']:.2f} tokens a round, {row['realised']:.2f} are "
        f"committed ({signed(before)}); calibrated it promises {row['predicted_after']:.2f} ({signed(after)})."
    )


class ShownWriter(Shown):
    """How a writer is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: where it writes and how much there is, in a line."""
        return Summary(f"Writer of a trace in {self.path}: {_counted(len(self.done), 'answer')} so far.")


class ShownReliability(Shown):
    """How reliability is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: predicted beside realised tokens a round by budget, and how often the best candidate is right by depth."""
        last = self.by_budget.to_dict("records")[-1]
        said = f"Trees of {_counted(int(last['budget']), 'node')}: the drafter's probabilities say {last['predicted']:.2f} tokens a round, "
        said += f"the texts {last['realised']:.2f}: {signed(last['ratio'] - 1)}."
        lengths: list[Column] = [
            ("budget", "nodes", str), ("predicted", "predicted", number(2)), ("realised", "realised", number(2)),
            ("ratio", "ratio", number(3)), ("count", "positions", "{:,}".format),
        ]  # fmt: skip
        share = number(3)
        shares: list[Column] = [
            ("depth", "depth", str), ("branch", "token before", str), ("predicted", "stated", share), ("realised", "realised", share),
            ("low", "from", share), ("high", "to", share), ("count", "rows", "{:,}".format),
        ]  # fmt: skip
        return Summary(
            said,
            tables=[
                Table.of(self.by_budget, lengths, "Tokens a round"),
                Table.of(self.by_depth, shares, "How often the best candidate is right, by depth (95 % interval)"),
                Table.of(self.by_branch, shares, "The same at depth 2, by the token before"),
            ],
        )

    def plot(self: Any, after: Any = None, *, ax: Axes | None = None) -> Axes:
        """Draw stated against realised probability of nodes: `ddsim.plot.reliability_by_probability`.

        Parameters
        ----------
        after : Reliability, optional
            The same with a calibration.
        ax : Axes, optional
        """
        return drawn("reliability_by_probability", self, after, ax=ax)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
