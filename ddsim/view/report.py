"""The report: one HTML file with the recommendation, why, and where the numbers come from; it needs no network and no other file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes

import ddsim
from ddsim.cost.model import CostModel, ExtrapolationWarning, fit_cost
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.files.atomic import write_text
from ddsim.policy.contract import Policy, is_rule
from ddsim.replay.bootstrap import ENOUGH
from ddsim.replay.compare import Comparison, compare
from ddsim.replay.plan import Plan, planned
from ddsim.replay.plan_text import said_runs
from ddsim.replay.replay import _Replayer
from ddsim.text import between, listed, printable
from ddsim.trace.cache import positions_of
from ddsim.trace.calibrate import fit_calibration
from ddsim.trace.calibration import Calibration, CrossCalibration
from ddsim.trace.reliability import Reliability, reliability
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace, check_trace
from ddsim.view.budgets import budget_distribution, draft_gains, fixed_budgets, policies
from ddsim.view.checks import acceptance_by_budget, reliability_by_depth, reliability_by_probability
from ddsim.view.costs import cost_curve, token_spans
from ddsim.view.page import HEIGHT, Columns, Figure, Section, Table, inline_figure, records, sortable_table
from ddsim.view.style import FEWEST
from ddsim.view.trees import DraftedRound, drafted_round, tree

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress

LARGEST_TREE = 64  # nodes of the tree that is drawn


LARGEST_PAIR = 24  # nodes of each of two trees that are drawn side by side


def report(
    trace: Trace,
    cost: Profile | CostModel,
    out: str | os.PathLike[str] | None = None,
    *,
    policies: Sequence[Policy | str] | Policy | str | None = None,
    beside: Trace | None = None,
    kind: str = "auto",
    calibration: Calibration | CrossCalibration | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> str:
    """Say in one self-contained HTML page what budget to choose and why.

    Parameters
    ----------
    trace : Trace
    cost : Profile or CostModel
        With a profile the page shows its points and residuals.
    out : path, optional
        Where to write the page.
    policies : list of Policy or of names, or one, optional
        Rules to choose from, as in `ddsim.plan`.
    beside : Trace, optional
        Another draft's recording of the same texts. The page says what one gains over the other and draws both trees of one round.
    kind : str
        Of the cost model fitted to a profile (see `ddsim.fit_cost`).
    calibration : Calibration or CrossCalibration, optional
        Policies are replayed with it too.
    bootstrap, seed : int
        As in `ddsim.replay.replay`.
    progress : callable, optional
        Called with (steps done, steps in all).

    Returns
    -------
    str
        The page.

    Raises
    ------
    DdsimError
        A trace without a round, costs that can't be fitted, or a file that can't be written.

    Examples
    --------
    >>> from ddsim.cost.profile import Profile, VerifySample
    >>> logprobs = np.log(np.full((9, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.arange(9) % 3, np.full((9, 2, 2), [1, 2]), logprobs, max_budget=6)
    >>> page = report(trace, CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001))
    >>> page.startswith("<!doctype html>"), "https://" in page
    (True, False)
    """
    steps = 5

    def done(count: int) -> None:
        if progress is not None:
            progress(count, steps)

    check_trace("report", trace)
    profile = cost if isinstance(cost, Profile) else None
    model = fit_cost(cost, kind) if isinstance(cost, Profile) else cost
    done(1)
    with warnings.catch_warnings(record=True) as caught, model.one_warning():
        warnings.simplefilter("always")
        replayed = _Replayer(trace, model, calibration, None)
        plan = planned(replayed, policies, bootstrap=bootstrap, seed=seed)
        done(2)
        sections = {
            "recommendation": _recommendation(plan, model.buckets),
            "policies": _policies(replayed, plan),
        }
        if beside is not None:
            against = compare(beside, trace, bootstrap=bootstrap, seed=seed)
            sections["drafts"] = _drafts(replayed, beside, against)
        done(3)
        sections["cost"] = _cost(model, profile)
        sections["acceptance"] = _acceptance(replayed, seed)
        done(4)
    notes = list(plan.notes)
    for w in caught:  # what was extrapolated belongs on the page; anything else to whoever called
        if issubclass(w.category, ExtrapolationWarning):
            notes.append(f"{str(w.message)[:1].upper()}{str(w.message)[1:]}.")
        else:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title="How big should the draft tree be?",
            subject=_subject(trace, model),
            answer=plan.sentence,
            details=plan.details,
            notes=list(dict.fromkeys(notes)),
            cards=_cards(plan),
            policies=_said_of_policies(plan),
            sections=sections,
            explanation=model.explain(),
            provenance=_provenance(trace, model, plan),
            version=ddsim.__version__,
        )
    )
    if out is not None:
        write_text(out, page)
    done(5)
    return page


def _cards(plan: Plan) -> list[tuple[str, str, str]]:
    """(what, number, interval or remark) of the recommended policy."""
    row = plan.judged()
    cards = [
        ("Throughput", f"{row['tokens_per_second']:,.0f} tokens/s", _between(row, "tokens_per_second", "{:,.0f}".format)),
        ("Speed-up over autoregression", f"{row['speedup']:.2f}×", _between(row, "speedup", "{:.2f}".format)),
        ("Acceptance length", f"{row['acceptance_length']:.2f}", "tokens a round"),
        ("As good", f"{said_runs(plan.near_best)} nodes", f"fixed budgets within 1 % of the best, {plan.best_budget}"),
        ("Of what hindsight could do", f"{100 * row['hindsight_share']:.0f} %", _between(row, "hindsight_share", _whole_percent)),
    ]  # fmt: skip
    return cards


def _recommendation(plan: Plan, buckets: Sequence[int] | None) -> Section:
    curve, table = plan.curve(), plan.table()
    alone = float(_row(plan, plan.baselines[0])["tokens_per_second"])
    best = float(curve["tokens_per_second"].max())
    items: Section = [
        inline_figure(
            "budgets",
            "Throughput of fixed budgets",
            lambda ax: fixed_budgets(
                curve, flat=plan.near_best, baseline=alone, policies=table, buckets=buckets, about="", ax=ax
            ),
            f"From {curve['tokens_per_second'].iloc[0]:,.0f} tokens/s without nodes it rises to {best:,.0f} at "
            f"{plan.best_budget} nodes and is {curve['tokens_per_second'].iloc[-1]:,.0f} at {curve['budget'].iloc[-1]}; "
            f"within 1 % of the best: {said_runs(plan.near_best)} nodes. Autoregression: {alone:,.0f} tokens/s.",
        )
    ]
    ranked = records(table.sort_values("tokens_per_second", ascending=False))
    said = "; ".join(f"{row['policy']} {row['tokens_per_second']:,.0f}" for row in ranked)
    items.append(
        inline_figure(
            "policies",
            "Policies beside hindsight",
            lambda ax: policies(table, ax=ax),
            f"Tokens per second with 95 % intervals: {said}. Hindsight knows the text in advance; no budget policy can pass it.",
            height=0.9 + 0.29 * len(table),
        )
    )
    if len(plan.by_workload) > 1:
        items.append(
            sortable_table(
                "Each workload by itself",
                plan.by_workload.assign(near_best=plan.by_workload["near_best"].map(said_runs)),
                {
                    "workload": ("workload", str),
                    "best_budget": ("best fixed budget", "{:.0f}".format),
                    "near_best": ("within 1 %", str),
                    "tokens_per_second": ("tokens/s at its best", "{:,.0f}".format),
                    "pooled_budget_loss": ("lost with the pooled best", _percent),
                    "choice_gain": ("recommended over its own best", _percent),
                },
            )
        )
    return items


def _said_of_policies(plan: Plan) -> list[tuple[str, str]]:
    """Name of each policy, and the first line of what its class says of itself."""
    plain = {name: outcome.asked for name, outcome in plan.result.outcomes.items() if not outcome.calibrated}
    said = {name: (type(policy).__doc__ or "").strip().partition("\n")[0] for name, policy in plain.items()}
    return [(name, line.replace("`", "")) for name, line in said.items() if line]


def _policies(replayed: _Replayer, plan: Plan) -> Section:
    outcomes = plan.result.outcomes
    # What the chosen rule picks is of interest as it is chosen, on calibrated marginals where that is better.
    rules = [n for n, o in outcomes.items() if is_rule(o.asked) and (not o.calibrated or n == plan.choice)]
    budgets = {}
    for name in dict.fromkeys([*rules, plan.choice]):
        rounds = replayed.rounds(outcomes[name])
        if name in rules:
            budgets[name] = rounds["budget"].to_numpy()
        if name == plan.choice:
            of_choice = rounds
    items: Section = [
        inline_figure(
            "distribution",
            "Budgets that adaptive rules pick",
            lambda ax: budget_distribution(dict(budgets), buckets=replayed.cost.buckets, ax=ax),
            "; ".join(
                f"{n}: half of the rounds at most {np.median(b):.0f} nodes, on average {b.mean():.0f}"
                for n, b in budgets.items()
            )
            + ".",
        )
    ]
    columns: Columns = {
        "policy": ("policy", str),
        "tokens_per_second": ("tokens/s", "{:,.0f}".format),
        "tokens_per_second_low": ("95 % from", "{:,.0f}".format),
        "tokens_per_second_high": ("to", "{:,.0f}".format),
        "speedup": ("speed-up", "{:.2f}×".format),
        "acceptance_length": ("tokens a round", "{:.2f}".format),
        "budget_mean": ("nodes a round", "{:.1f}".format),
        "hindsight_share": ("of hindsight", _whole_percent),
        "rounds": ("rounds", "{:,.0f}".format),
        "tuned_on": ("tuned on", str),
    }
    items.append(sortable_table("All prompts", plan.table(), columns))
    workload: Columns = {"workload": ("workload", str)}
    if len(replayed.trace.workloads) > 1:
        items.append(sortable_table("By workload", plan.table("workload"), workload | columns))
    drawn = _round(replayed, of_choice)
    if drawn is not None:
        items.append(drawn)
    return items


def _round(replayed: _Replayer, rounds: pd.DataFrame) -> Figure | None:
    """The tree of a typical round of the recommended policy, small enough to be read."""
    rounds = rounds[rounds["budget"] > 0]
    if not len(rounds):
        return None
    # As much accepted as on average, where the tree went further than the chain would have, if there is such a round.
    positions = replayed.positions
    at = positions.starts[rounds["sequence"].to_numpy()] + rounds["position"].to_numpy()
    accepted = rounds["accepted"].to_numpy()
    helped = accepted > positions.chain[at]
    pick = records(rounds.iloc[[int((np.abs(accepted - accepted.mean()) + 1000 * ~helped).argmin())]])[0]
    budget = min(int(pick["budget"]), LARGEST_TREE)
    drafted = drafted_round(replayed.trace, int(pick["position"]), budget, int(pick["sequence"]))
    path = " ".join(repr(t)[1:-1] for t in [drafted.texts[i] for i in drafted.accepted])
    where = f"{pick['workload']} {pick['prompt_id']}, position {pick['position']}".strip()
    less = "" if budget == int(pick["budget"]) else f" (its best {budget} of {int(pick['budget'])} nodes)"
    return inline_figure(
        "tree",
        "One round, drawn",
        lambda ax: tree(drafted, ax=ax),
        f"{where}{less}: {len(drafted.accepted) - 1} of {budget} drafted tokens are accepted along the lit path: {path}. "
        "Darker boxes are likelier; the best continuation stands beside its parent, others below.",
        width=9.0,
        height=max(1.2, 0.6 + 0.16 * _branches(drafted)),
        wide=True,
    )


def _drafts(replayed: _Replayer, beside: Trace, against: Comparison) -> Section:
    """What the draft gains over another of the same texts, and both trees of one round."""
    columns: Columns = {
        "workload": ("workload", str),
        "policy": ("policy", str),
        "first": (against.names[0], "{:.2f}".format),
        "second": (against.names[1], "{:.2f}".format),
        "gain": ("gain", _percent),
        "low": ("95 % from", _percent),
        "high": ("to", _percent),
    }
    items: Section = [
        inline_figure(
            "drafts",
            f"What {against.names[1]} gain over {against.names[0]}",
            lambda ax: draft_gains(against.table(), against.names, ax=ax),
            " ".join([against.sentence, *against.notes]),
            height=HEIGHT + 0.7,
        ),
        sortable_table("Tokens a round on the same texts", against.table((16, 64, 256)), columns),
    ]
    pair = _telling_round(replayed.positions, positions_of(beside), against)
    if pair is not None:
        position, budget, numbers = pair
        both = zip(("drafts-first", "drafts-second"), against.names, (beside, replayed.trace), numbers, strict=True)
        for name, draft, recording, number in both:
            drafted = drafted_round(recording, position, budget, number)
            info = recording.sequences[number]
            path = " ".join(repr(t)[1:-1] for t in [drafted.texts[i] for i in drafted.accepted])
            where = f"{info.workload} {info.prompt_id}, position {position}".strip()
            items.append(
                inline_figure(
                    name,
                    f"One round, drafted from {draft}",
                    _drawing(drafted),
                    f"{where}: {len(drafted.accepted) - 1} of {budget} drafted tokens are accepted: {path}.",
                    width=9.0,
                    height=max(1.2, 0.6 + 0.16 * _branches(drafted)),
                    wide=True,
                )
            )
    return items


def _telling_round(here: Positions, beside: Positions, against: Comparison) -> tuple[int, int, tuple[int, int]] | None:
    """Position, budget and the sequences' numbers (beside, here) of a round in which trees of one size come to different ends.

    Of the rounds in which the draft's tree is accepted further than the other's, one that is accepted as far as trees are on average.
    """
    budget = min(LARGEST_PAIR, here.max_budget, beside.max_budget)
    if budget < 1:
        return None
    reached, other = ((np.asarray(table.ranks[:]) <= budget).sum(axis=1) for table in (here, beside))
    best, found = np.inf, None
    mean = float(reached.mean())
    for theirs, ours in against.pairs:
        first, length = here.starts[ours], here.tokens[ours]
        own, its = reached[first:][:length], other[beside.starts[theirs] :][:length]
        away = np.where(own > its, np.abs(own - mean) + 0.3 * np.abs(own - its - 2), np.inf)
        if len(away) and away.min() < best:
            best, found = float(away.min()), (int(away.argmin()), budget, (theirs, ours))
    return found


def _drawing(drafted: DraftedRound) -> Callable[[Axes], Any]:
    return lambda ax: tree(drafted, ax=ax)


def _branches(drafted: DraftedRound) -> int:
    """Leaves of the tree: rows that its drawing takes."""
    return len(set(range(1, len(drafted.tree))) - set(drafted.tree.parents.tolist())) + 1


def _cost(model: CostModel, profile: Profile | None) -> Section:
    batches = [] if profile is None else sorted({s.batch for s in profile.verify})
    batch = 1 if profile is None or 1 in batches else batches[0]
    spans = token_spans(model, batch)
    context = model.default_context if model.default_context in spans else next(iter(spans))
    first, last = spans[context]
    low, high = (1e3 * float(model.verify_seconds(t, context, batch)) for t in (first, last))
    draft = 1e3 * float(model.draft_seconds(batch, context=context))
    said = (
        f"Verification takes {low:.2f} ms at {first:g} and {high:.2f} ms at {last:g} tokens in one pass at context "
        f"{context:,}; drafting and host work add {draft:.2f} ms a round."
    )
    items: Section = [
        inline_figure("cost", "What verification costs", lambda ax: cost_curve(model, profile, batch=batch, about="", ax=ax), said, height=HEIGHT + 0.7)
    ]  # fmt: skip
    kinds = pd.DataFrame(
        [
            {"kind": name, "median": r.median, "worst": r.worst, "score": r.score, "points": r.points}
            for name, r in model.report.kinds.items()
        ]
    )
    if len(kinds):
        columns: Columns = {
            "kind": ("kind", str),
            "score": ("mean error, held out", _percent),
            "median": ("median", _percent),
            "worst": ("worst", _percent),
            "points": ("predictions", "{:,.0f}".format),
        }
        items.append(sortable_table("How well each kind of fit predicts what it hasn't seen", kinds, columns))
    return items


def _acceptance(replayed: _Replayer, seed: int) -> Section:
    trace, positions, calibration = replayed.trace, replayed.positions, replayed.calibration
    try:
        before = reliability(trace, positions=positions)
    except DdsimError:  # every text is shorter than the horizon
        return []
    after = None if calibration is None else reliability(trace, calibration, positions=replayed.better)
    last = before.by_budget.iloc[-1]
    items: Section = [
        inline_figure(
            "acceptance",
            "Acceptance length over budgets",
            lambda ax: acceptance_by_budget(before, after, ax=ax),
            f"Trees of {last['budget']:.0f} nodes commit {last['realised']:.2f} tokens a round; the marginals promised "
            f"{last['predicted']:.2f}, {_off(last['ratio'])}.",
        ),
        inline_figure(
            "probability",
            "Are the marginals to be believed?",
            lambda ax: reliability_by_probability(before, after, ax=ax),
            _said_of_nodes(before),
        ),
        inline_figure(
            "depth",
            "The best candidate of each depth",
            lambda ax: reliability_by_depth(before, after, ax=ax),
            _said_of_depths(before),
        ),
    ]
    columns: Columns = {
        "budget": ("budget", "{:.0f}".format),
        "realised": ("realised tokens a round", "{:.3f}".format),
        "predicted_before": ("predicted as recorded", "{:.3f}".format),
        "predicted_after": ("predicted after calibration", "{:.3f}".format),
        "count": ("positions", "{:,.0f}".format),
    }
    try:
        _, judged = fit_calibration(trace, seed=seed, positions=positions)
        items.append(
            sortable_table("What a calibration fitted on half of the prompts does on the others", judged, columns)
        )
    except DdsimError:  # one prompt only, or a half whose texts are shorter than the horizon
        pass
    return items


def _said_of_nodes(r: Reliability) -> str:
    rows = r.by_probability
    rows = rows[rows["count"] >= FEWEST]
    parts = [
        f"{100 * p:.2g} % said, {100 * q:.2g} % accepted"
        for p, q in zip(rows["predicted"], rows["realised"], strict=True)
    ]
    return f"Nodes by path probability: {'; '.join(parts[::-1][:6])}."


def _said_of_depths(r: Reliability) -> str:
    rows = r.by_depth
    rows = rows[rows["count"] >= FEWEST]
    if not len(rows):
        return "Too few positions to say."
    ends = [rows.iloc[0], rows.iloc[-1]]
    return (
        "; ".join(
            f"at depth {e['depth']:.0f} {100 * e['predicted']:.0f} % said, {100 * e['realised']:.0f} % true"
            for e in ends
        ).capitalize()
        + "."
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ddsim"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup is what we made
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.tests["figure"] = lambda item: isinstance(item, Figure)
    environment.tests["narrow"] = lambda item: item.narrow if isinstance(item, Table) else not item.wide
    return environment


def _subject(trace: Trace, model: CostModel) -> str:
    """Which models, texts and device the page is about, on a line."""
    recording = trace.meta["provenance"]
    parts = [f"{key} {recording[key]}" for key in ("target", "drafter") if recording.get(key)]
    parts.append(f"{listed(trace.workloads)} ({len(trace):,} positions of {len(trace.sequences):,} texts)")
    costs = [str(model.provenance[key]) for key in ("target", "device") if model.provenance.get(key)]
    if costs:
        parts.append(f"costs of {' on '.join(costs)}")
    return "; ".join(parts)


def _provenance(trace: Trace, model: CostModel, plan: Plan) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (what, value), nested entries flattened."""
    given = plan.result.provenance
    groups = [
        (
            "Trace",
            {
                "folders": ", ".join(folder.name for folder in trace._folders),
                "fingerprint": trace.fingerprint,
                "positions": len(trace),
                "texts": len(trace.sequences),
                "workloads": listed(trace.workloads),
                "temperatures": listed([f"{t:g}" for t in trace.temperatures]),
                "exact up to budget": trace.max_budget,
            },
        ),
        ("Recording", trace.meta["provenance"]),
        ("Costs", {"kind": model.kind, "fitted on": str(model.range)} | model.provenance),
        ("Calibration", given.get("calibration") or {}),
        ("Replay", {"ddsim": ddsim.__version__, "bootstrap resamples": given.get("bootstrap"), "seed": given.get("seed")}),
    ]  # fmt: skip
    return [(name, list(_flat(values))) for name, values in groups if values]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            rows.append(
                (
                    f"{prefix}{key}".replace("_", " "),
                    value if isinstance(value, str) else json.dumps(value, default=str),
                )
            )
    return rows


def _row(plan: Plan, name: str) -> dict[str, Any]:
    """A policy's row of the table of policies."""
    return next(dict(row) for row in records(plan.table()) if row["policy"] == name)


def _between(row: dict[str, Any], key: str, how: Callable[[float], str]) -> str:
    low, high, prompts = row[f"{key}_low"], row[f"{key}_high"], int(row["prompts"])
    if prompts < ENOUGH:
        return "one prompt only: no interval" if prompts == 1 else f"{prompts} prompts, too few for an interval"
    return f"95 % interval {between(low, high, how)}"


def _off(ratio: float) -> str:
    return f"{abs(100 * (ratio - 1)):.0f} % {'more' if ratio > 1 else 'less'}"


def _percent(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f} %".replace("-", "−")


def _whole_percent(value: float) -> str:
    return f"{100 * value:.0f} %"
