"""What answers print: the rows and columns of their tables, which Python and the command line share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ddsim.replay.bootstrap import ENOUGH, few
from ddsim.tables import Column, Shown, Summary, Table, drawn, milliseconds, number, percent
from ddsim.text import between, listed, printable, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPLAY_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("acceptance_length", "tokens/\nround", number(2)),
    ("budget_mean", "nodes/\nround", number(1)),
    ("tokens_per_second", "tokens/s", number(1)),
    ("speedup", "speed-up", number(2)),
    ("speedup_interval", "95 %", str),
    ("hindsight_share", "share of\nhindsight", percent),
)

WORKLOAD_COLUMNS: tuple[Column, ...] = (
    ("workload", "workload", str),
    ("context", "mean\ncontext", number(0)),
    ("budget", "nodes", str),
    ("best_budget", "best", str),
    ("near_best", "within 1 %", str),
    ("best_k", "best\nK", str),
    ("tokens_per_second", "tokens/s", number(1)),
    (
        "pooled_budget_loss",
        "lost by\npooled",
        lambda loss: percent(max(loss, 0.0)),
    ),  # judged on others' prompts: may be below 0
)

SERVING_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("acceptance_length", "tokens/\nround", number(2)),
    ("budget_mean", "nodes/\nrequest", number(1)),
    ("tokens_per_second", "tokens/s", number(0)),
    ("tpot_mean", "TPOT\nms", milliseconds),
    ("tpot_p95", "p95\nms", milliseconds),
    ("speedup", "speed-up", number(2)),
    ("over", "over best\nfixed, %", str),
)

LOAD_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("highest", "most\nreq/s", number(1)),
    ("ttft_p99", "TTFT\np99 s", number(3)),
    ("tpot_mean", "TPOT\nms", milliseconds),
    ("latency_mean", "whole\ns", number(3)),
    ("latency_p99", "p99\ns", number(3)),
    ("goodput", "as pro-\nmised %", lambda share: f"{100 * share:.1f}"),
    ("latency_over", "to best\nfixed %", lambda change: signed(change, unit="")),
    ("interval", "95 %", str),
)

ENGINE_COLUMNS: tuple[Column, ...] = (
    ("requests", "batch", str),
    ("k", "K", str),
    ("ks", "95 %", str),
    ("near_best", "within\n1 %", str),
    ("tokens_per_second", "tokens/s", number(0)),
    ("interval", "95 %", str),
    ("tpot", "TPOT\nms", milliseconds),
    ("gain", "gain", percent),
    ("gains", "95 %", str),
)

COMPARED = (16, 64, 256)
"""Nodes that drafts are compared at, unless others are asked for."""

TUNED = "* tuned on the prompts that it is judged on: on others it does a little worse"

EXTRAPOLATED = "* costs extrapolated: beyond the batches, tokens or contexts that were measured"

UNSTABLE = "† more arrives than it can ever serve: its queue grows without end"


def replay_table(table: Any, title: str | None = None) -> Table:
    """Rows of `ReplayResult.table`."""
    tuned = table["tuned_on"] == "same prompts"
    rows = table.assign(
        policy=table["policy"].where(~tuned, table["policy"] + " *"),
        speedup_interval=_between(table["speedup_low"], table["speedup_high"], "{:.2f}".format),
    ).assign(
        speedup_interval=lambda rows: rows["speedup_interval"].where(rows["prompts"] >= ENOUGH, ""),
    )
    rows = rows if (rows["prompts"] >= ENOUGH).any() else rows.drop(columns="speedup_interval")
    return Table.of(rows, REPLAY_COLUMNS, title)


def _feet(table: Any) -> list[str]:
    return [TUNED] * bool((table["tuned_on"] == "same prompts").any())


class ShownReplay(Shown):
    """How a replay is shown."""

    def summary(self: Any, by: Literal["workload"] | None = None) -> Summary:
        """What is printed: a table of all, or one of each workload and one of all."""
        pooled, names = self.table(), [name for name in self.workloads if name]
        where = f" ({', '.join(names)})" if names else ""
        count = len(self.tokens)
        said = f"{len(self.outcomes)} policies replayed over {count:,} answer{'s' * (count != 1)}{where}, {self.tokens.sum():,} tokens."
        tables = []
        if by == "workload" and len(self.workloads) > 1:
            parts = self.table(by="workload").groupby("workload", sort=False)
            tables = [replay_table(part, str(name)) for name, part in parts]
        tables.append(replay_table(pooled, "all workloads" if tables else None))
        return Summary(getattr(self, "sentence", said), getattr(self, "details", ()), tables, _feet(pooled))

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw the speed-up of every policy with its interval: `ddsim.plot.policies`."""
        return drawn("policies", self.table(), of=self.provenance, ax=ax)


class ShownPlan(Shown):
    """How a plan is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: the recommendation, what it rests on, the best budget of each workload, the policies."""
        policies = self.table()
        shown = [replay_table(policies)]
        table = self.by_workload
        if len(table) > 1:
            rows = table.assign(near_best=[spans(runs) for runs in table["near_best"]])
            shown.insert(0, Table.of(rows, WORKLOAD_COLUMNS, "The best fixed budget of each workload"))
        lines = [*warned(self.result.prompts), *self.details]
        return Summary(self.sentence, [*lines, *noted(self.notes, self.result.prompts)], shown, _feet(policies))

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw the throughput of every fixed budget, and those within 1 % of the best: `ddsim.plot.fixed_budgets`."""
        table = self.table()
        plain, made = table.set_index("policy")["tokens_per_second"][self.baselines[0]], self.result.provenance
        return drawn(
            "fixed_budgets", self.curve(), flat=self.near_best, baseline=plain, policies=table, buckets=made["cost"].get("buckets"),
            title=first_sentence(self.sentence), of=made, ax=ax,
        )  # fmt: skip


class ShownComparison(Shown):
    """How a comparison of two drafts is shown."""

    def summary(self: Any, budgets: Sequence[int] = COMPARED) -> Summary:
        """What is printed: the gain, and tokens a round of both at some budgets."""
        length = number(2)
        columns: list[Column] = [
            ("workload", "workload", str), ("policy", "policy", str), ("first", printable(self.names[0], 16), length),
            ("second", printable(self.names[1], 16), length), ("gain", "gain", percent), ("low", "from", percent), ("high", "to", percent),
        ]  # fmt: skip
        rows, enough = self.table(budgets), self.prompts >= ENOUGH
        table = Table.of(
            rows,
            columns[int(rows["workload"].nunique() < 2) : None if enough else -2],
            "Tokens a round" + " (95 % interval of the gain)" * enough,
        )
        pooled = rows[rows["workload"] == rows["workload"].iloc[-1]]
        shares = [
            f"{100 * share:.0f} %{' of the positions' * (n == 0)} {'in chains' if policy == 'DFlash' else f'with {policy}'}"
            for n, (policy, share) in enumerate(zip(pooled["policy"], pooled["agree"], strict=True))
        ]
        agree = listed(shares)
        lines = [*warned(self.prompts), *self.notes, f"Both accept equally many tokens at {agree}."]
        return Summary(self.sentence, lines, [table])

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw what the second gains over the first, by nodes: `ddsim.plot.draft_gains`."""
        return drawn(
            "draft_gains",
            self.table(),
            self.names,
            title=first_sentence(self.sentence).partition(", on the same")[0],
            ax=ax,
        )


class ShownServing(Shown):
    """How full batches are shown."""

    def summary(self: Any) -> Summary:
        """What is printed: a table of each batch size."""
        table = self.table()
        half = 50 * (table["over_fixed_high"] - table["over_fixed_low"]) * (1.0 if self.prompts >= ENOUGH else 0.0)
        pairs = zip(table["over_fixed"], half, strict=True)
        rows = table.assign(
            policy=table["policy"].where(~table["extrapolated"], table["policy"] + " *"),
            over=[signed(over, unit="") + (f" ±{unsure:.1f}" if unsure > 0 else "") for over, unsure in pairs],
        )
        tables = [
            Table.of(part, SERVING_COLUMNS, "1 request at a time" if size == 1 else f"{size} requests together")
            for size, part in rows.groupby("batch", sort=False)
        ]
        batches, names = (list({key[i]: None for key in self.runs}) for i in (0, 1))
        said = f"{len(names)} policies at batch {', '.join(map(str, batches))}."
        feet = [EXTRAPOLATED] * bool(table["extrapolated"].any())
        return Summary(getattr(self, "sentence", said), getattr(self, "details", ()), tables, feet)

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw tokens a second by batch size: `ddsim.plot.serving`."""
        return drawn("serving", self.table(), of=self.provenance, ax=ax)


class ShownLoad(Shown):
    """How serving under load is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: what serves the largest load best, what that rests on, and a table of each load."""
        table = self.table()
        columns = [column for column in LOAD_COLUMNS if column[0] != "goodput" or self.promise]
        tables = [
            Table.of(
                _latencies(rows, self.prompts >= ENOUGH), columns,
                f"{load:.3g} requests/s ({100 * rows['share'].iloc[0]:.0f} % of the best fixed setting's most)",
            )
            for load, rows in table.groupby("load", sort=False)
        ]  # fmt: skip
        return Summary(self.sentence, self.details, tables, _marks(table))

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw what each policy gains over the best fixed setting, by load: `ddsim.plot.load_gains`."""
        return drawn("load_gains", self.table(), of=self.provenance, ax=ax)


def _marks(table: Any) -> list[str]:
    """What the marks in tables of loads mean."""
    return [foot for column, foot in (("unstable", UNSTABLE), ("extrapolated", EXTRAPOLATED)) if table[column].any()]


def _latencies(rows: Any, enough: bool) -> Any:
    """Rows for people: marks at names, and no latency of a queue that grows without end."""
    marks = [" †" * u + " *" * e for u, e in zip(rows["unstable"], rows["extrapolated"], strict=True)]
    ends = zip(rows["latency_over_low"], rows["latency_over_high"], strict=True)
    rows = rows.assign(
        policy=rows["policy"] + marks,
        interval=[between(a, b, lambda end: signed(end, 0, "")) if enough and a < b else "" for a, b in ends],
    )
    hidden = ["ttft_p99", "tpot_mean", "latency_mean", "latency_p99", "latency_over", "interval"]
    return rows.assign(**{name: rows[name].where(~rows["unstable"], None) for name in hidden})


class ShownMap(Shown):
    """How a map of settings is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: a table of each workload, a row a number of requests, a column a context."""
        tables = []
        for name in self.workloads:
            rows = self.table[self.table["workload"] == name]
            cells = [_map_cell(row) for row in rows.to_dict("records")]
            wide = rows.assign(cell=cells).pivot(index="requests", columns="context", values="cell").reset_index()
            columns: list[Column] = [("requests", "batch", str), *[(c, f"{c:,}", str) for c in wide.columns[1:]]]
            tables.append(Table.of(wide, columns, name))
        legend = f"Best {self.unit} / % lost one step off / % that the best rule adds, by requests and context (* extrapolated)"
        return Summary(self.sentence, [*self.details, *noted(self.notes), legend], tables)

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw the maps of all workloads: `ddsim.plot.load_maps`."""
        title = f"Best {self.unit} by workload, requests and context"
        return drawn("load_maps", self.table, self.unit, title=title, of=self.provenance, ax=ax)


def _map_cell(row: dict[Any, Any]) -> str:
    """A cell of the map in a few characters."""
    lost = f"{100 * row['lost_by_step']:.0f}" if row["lost_by_step"] >= 0 else "–"
    adds = f"/{signed(row['rule_gain'], 0, '')}" if row["rule"] else ""
    return f"{row['setting']}/{lost}{adds}" + "*" * row["extrapolated"]


class ShownContest(Shown):
    """How a contest of rules is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: which rule is worth it, and gains in full batches, under load, and of the highest load."""
        table, wide = self.table(), self.wide
        marks = table.groupby("policy")["extrapolated"].any()
        found = []
        for measure, title in (
            ("tokens/s", "Full batches: tokens/s gained, %"),
            ("mean latency", "Under load: mean latency saved, %"),
            ("requests/s", "Highest load gained, %"),
        ):
            places = list(dict.fromkeys(table["where"][table["measure"] == measure]))
            rows = wide[places].map(lambda gain: "†" if gain != gain else signed(gain / 100, unit="")).reset_index()
            rows["policy"] = [name + " *" * bool(marks[name]) for name in rows["policy"]]
            columns: list[Column] = [("policy", "policy", str), *((place, place, str) for place in places)]
            found.append(Table.of(rows, columns, title))
        over = "Gains are over the best fixed setting: of that batch, or at that load."
        return Summary(self.sentence, [*self.details, over], found, _marks(table))

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw the full batches: `ddsim.plot.serving`."""
        return drawn("serving", self.served.table(), of=self.served.provenance, ax=ax)


class ShownEnginePlan(Shown):
    """How a plan for an engine is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: K by the number of requests, and each workload's own best K where the plan's isn't it."""
        rows, enough = self.table[self.table["requests"].isin(self.shown)], self.prompts >= ENOUGH
        rows = rows.assign(
            k=[f"{k} *" if mark else str(k) for k, mark in zip(rows["k"], rows["extrapolated"], strict=True)],
            ks=[spans([pair]) for pair in zip(rows["k_low"], rows["k_high"], strict=True)],
            near_best=[spans(runs) for runs in rows["near_best"]],
            interval=_between(rows["low"], rows["high"], "{:,.0f}".format),
            gains=_between(rows["gain_low"], rows["gain_high"], lambda gain: signed(gain, 0, "")),
        )
        rows = rows if enough else rows.drop(columns=["ks", "interval", "gains"])
        title = f"At a context of {self.context:,}; gain over {self.against}"
        found = [Table.of(rows, ENGINE_COLUMNS, title + (" (* extrapolated)" if rows["extrapolated"].any() else ""))]
        of = self.by_workload
        if len(of):
            cells = [
                f"{k} ({100 * lost:.1f})" if lost >= 5e-4 else f"{k}"
                for k, lost in zip(of["k"], of["lost"], strict=True)
            ]
            wide = of.assign(cell=cells, at=of["requests"].astype(str)).pivot(
                index="workload", columns="at", values="cell"
            )
            wide = wide.assign(context=of.groupby("workload")["context"].first())
            columns: list[Column] = [("workload", "batch", str), ("context", "mean\ncontext", number(0))]
            columns += [(str(n), str(n), str) for n in self.shown]
            title = "Each workload's own best K by batch (per cent lost by the plan's)"
            found.append(Table.of(wide.reset_index(), columns, title))
        lines = [*warned(self.prompts), *self.details, *noted(self.notes, self.prompts)]
        return Summary(self.sentence, lines, found)

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw the best K by requests and context: `ddsim.plot.heat_map`."""
        grid, contexts, marks = self.grid()
        label = "best K, drafted tokens a request"
        return drawn("heat_map", grid, self.shown, contexts, label=label, extrapolated=marks, of=self.provenance, ax=ax)


class ShownArrivals(Shown):
    """How a log of arrivals is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: how many requests came how fast, and how long they are, in a line."""
        count, seconds = len(self), float(self.seconds[-1])
        said = f"{count:,} request{'s' * (count != 1)} in {seconds:,.3g} s"
        said += f", {self.rate:.3g} a second" if seconds else ""
        for what, lengths in (("prompts", self.prompt_tokens), ("answers", self.answer_tokens)):
            said += "" if lengths is None else f"; {what} of {lengths.min():,} to {lengths.max():,} tokens"
        return Summary(f"{said}.")


def first_sentence(text: str) -> str:
    """What fits a figure's title."""
    return text.partition(". ")[0].rstrip(".")


def spans(runs: Sequence[tuple[int, int]]) -> str:
    """Runs of budgets or of K for a table.

    Examples
    --------
    >>> spans([(3, 5), (7, 7)])
    '3–5, 7'
    """
    return ", ".join(f"{a}–{b}" if b > a else f"{a}" for a, b in runs)


def beside(rows: Any, names: tuple[str, str]) -> Table:
    """The table of two that are compared: what, first, second, as text."""
    first, second = (printable(name, 20) for name in names)
    return Table.of(rows, [("what", "", str), ("first", first, str), ("second", second, str)])


def noted(notes: Sequence[str], prompts: int = ENOUGH) -> list[str]:
    """What limits an answer, so named; without what `warned` says before it."""
    return [f"Note: {note}" for note in notes if note != few(prompts)]


def warned(prompts: int) -> list[str]:
    """What is said right after a sentence that rests on too few prompts."""
    return [f"Warning: {few(prompts)}"] if few(prompts) else []


def _between(low: Any, high: Any, how: Callable[[float], str]) -> list[str]:
    """Both ends of intervals; empty where there are none, or nothing to be unsure of."""
    pairs = zip(low, high, strict=True)
    return [between(a, b, how, "–") if a < b else "" for a, b in pairs]
