"""What `validate` prints: predicted beside measured, of ddsim's decoder and of serving engines."""

from __future__ import annotations

from typing import Any

from ddsim.cli.app import _plot
from ddsim.cli.console import Column, Out, number

VALIDATION = "ddsim-validation", 1  # kind and newest schema of ddsim_reference.validate, which takes torch to import


VALIDATION_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("tau_predicted", "tau\npred.", number(2)),
    ("tau_measured", "tau\nmeas.", number(2)),
    ("ms", "ms a\nround", number(2)),
    ("speed_predicted", "tokens/s\npredicted", number(1)),
    ("speed_measured", "tokens/s\nmeasured", number(1)),
    ("error", "error", lambda value: f"{100 * value:+.1f} %"),
    ("speedup", "speed-up\nmeasured", number(2)),
)

ENGINE_VALIDATION = "ddsim-engine-validation", 1  # kind and newest schema of ddsim_reference.engines.compare

ENGINE_COLUMNS: tuple[Column, ...] = (
    ("batch", "batch", str),
    ("k", "K", str),
    ("tau", "tokens\na round", str),
    ("ms", "ms\na step", str),
    ("speed", "tokens/s", str),
    ("error", "error", lambda value: f"{100 * value:+.1f} %"),
    ("tpot", "TPOT\nms", str),
)


def show_validation(show: Out, document: dict[str, Any], plot: str | None) -> float:
    """Print and draw predicted beside measured; the largest error of tokens a second."""
    import pandas as pd

    table = pd.DataFrame(
        {
            "workload": row["workload"],
            "policy": row["policy"],
            "group": row["policy"],
            "tau_predicted": row["predicted"]["acceptance_length"],
            "tau_measured": row["measured"]["acceptance_length"],
            "ms": row["measured"]["ms_per_round"],
            "speed_predicted": row["predicted"]["tokens_per_second"],
            "speed_measured": row["measured"]["tokens_per_second"],
            "error": row["tokens_per_second_error"],
            "speedup": row["measured"]["speedup"],
        }
        for row in document["rows"]
    )
    pooled, parts = table[table["workload"] == "all"], table[table["workload"] != "all"]
    show.table(pooled, VALIDATION_COLUMNS, f"{document['label']}, {document['provenance']['device']}")
    if len(parts):
        far = max(parts.to_dict("records"), key=lambda row: abs(row["error"]))
        show.say(f"By workload the worst error is {100 * far['error']:+.1f} % ({far['policy']}, {far['workload']}).")
    baseline = document.get("baseline", "AR")
    found = [counts for name, counts in document["agreement"].items() if name != baseline]
    answers, texts, rounds = (sum(c[k] for c in found) for k in ("answers", "same_text", "of_these_same_rounds"))
    show.say(
        f"Of {answers} answers with a draft, {texts} have the autoregressive text; of these {rounds} have the replayed rounds."
    )
    if plot is not None:
        from ddsim.view.checks import predicted_measured

        points = table.rename(columns={"speed_predicted": "predicted", "speed_measured": "measured"})
        _plot(show, plot, lambda ax: predicted_measured(points, ax=ax))
    return float(table["error"].abs().max())


def show_engine_validation(show: Out, document: dict[str, Any], plot: str | None) -> float:
    """Print and draw predicted beside measured; the largest error of tokens a second."""
    import pandas as pd

    shown = (
        ("tau", "tokens_per_round", "{:.2f}"), ("ms", "ms_per_step", "{:.2f}"), ("speed", "tokens_per_second", "{:,.0f}"),
        ("tpot", "tpot_ms", "{:.2f}"),
    )  # fmt: skip
    table = pd.DataFrame(
        {
            "batch": str(row["batch"]),
            "k": row["k"],
            "error": row["tokens_per_second_error"],
            **{
                short: " / ".join(form.format(row[side][name]) for side in ("predicted", "measured"))
                for short, name, form in shown
            },
        }
        for row in document["rows"]
    )
    show.table(
        table, ENGINE_COLUMNS, f"{document['label']}, {document['provenance'].get('device', '')}: predicted / measured"
    )
    errors = document["tokens_per_second_error"]
    show.say(f"Tokens/s are off by {100 * errors['mean']:.1f} % on average and {100 * errors['worst']:.1f} % at worst.")
    right, asked = (sum(one[name] for one in document["order"]) for name in ("right", "pairs"))
    show.say(f"Of {asked} pairs of K more than 2 % apart {right} are in the predicted order.")
    best = ", ".join(f"{one['ratio']:.3f} at {one['batch']}" for one in document["schedule_over_best"])
    show.say(f"The exported schedule over the best K, by batch: {best}.")
    if plot is not None:
        from ddsim.view.checks import predicted_measured

        speeds = {
            side: [row[side]["tokens_per_second"] for row in document["rows"]] for side in ("predicted", "measured")
        }
        points = pd.DataFrame({"group": [f"batch {row['batch']}" for row in document["rows"]], **speeds})
        _plot(show, plot, lambda ax: predicted_measured(points, ax=ax))
    return float(table["error"].abs().max())
