"""What `validate` prints: predicted beside measured, of ddsim's decoder and of serving engines."""

from __future__ import annotations

from typing import Any

from ddsim.cli.app import _plot
from ddsim.cli.console import Column, Out, number
from ddsim.text import signed

VALIDATION = "ddsim-validation", 1  # kind and newest schema of ddsim_reference.validate, which takes torch to import


def _signed(value: float) -> str:
    return signed(value, unit="")


VALIDATION_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("tau_predicted", "tau\npred.", number(2)),
    ("tau_measured", "tau\nmeas.", number(2)),
    ("ms", "ms a\nround", number(2)),
    ("speed_predicted", "tok/s\npred.", number(0)),
    ("interval", "95 %\ninterval", str),
    ("speed_measured", "tok/s\nmeas.", str),
    ("error", "error\n%", _signed),
    ("costs", "costs\n%", _signed),
    ("rounds", "rounds\n%", _signed),
    ("texts", "texts\n%", _signed),
)

ENGINE_VALIDATION = "ddsim-engine-validation", 1  # kind and newest schema of ddsim_reference.engines.compare

ENGINE_COLUMNS: tuple[Column, ...] = (
    ("batch", "batch", str),
    ("k", "K", str),
    ("tau", "tokens\na round", str),
    ("ms", "ms\na step", str),
    ("speed", "tokens/s", str),
    ("error", "error", signed),
    ("tpot", "TPOT\nms", str),
)


def show_validation(show: Out, document: dict[str, Any], plot: str | None) -> float:
    """Print and draw predicted beside measured; the largest error of tokens a second."""
    import pandas as pd

    rows = document["rows"]
    errors = {(row["workload"], row["policy"]): row["tokens_per_second_error"] for row in rows}
    cells = {key: error for key, error in errors.items() if key[0] != "all"} or errors
    workload, policy = max(cells, key=lambda key: abs(cells[key]))
    mean = sum(map(abs, cells.values())) / len(cells)
    said = f"Of {len(cells)} predictions, a policy and workload each, tokens/s are {100 * mean:.1f} % off on average"
    said += f" and {signed(cells[workload, policy])} at worst ({policy}, {workload})"
    inside = document.get("inside")
    if inside is not None:
        said += "; {inside} of {cells} measured values lie in the predicted interval".format(
            **inside["tokens_per_second"]
        )
    show.say(said + ".")
    made = document["provenance"]
    about = f"{document['label']}, {made['device']}"
    if made.get("temperature"):
        about += f", temperature {made['temperature']:g}"
    show.table(_pooled(rows), VALIDATION_COLUMNS, about)
    if inside is not None and any(row["inside"]["tokens_per_second"] is False for row in rows):
        show.say("* outside of the predicted interval, which covers prompts and costs.")
    workloads = list(dict.fromkeys(row["workload"] for row in rows if row["workload"] != "all"))[:6]
    table = pd.DataFrame(
        {"policy": name, **{w: errors.get((w, name)) for w in workloads}}
        for name in dict.fromkeys(p for _, p in errors)
    )
    if workloads:
        columns: list[Column] = [("policy", "policy", str), *((w, w[:12], _signed) for w in workloads)]
        show.table(table, columns, "Error of tokens/s by workload, %")
    baseline = document.get("baseline", "AR")
    found = [counts for name, counts in document["agreement"].items() if name != baseline]
    answers, texts, same = (sum(c[k] for c in found) for k in ("answers", "same_text", "of_these_same_rounds"))
    show.say(
        f"Of {answers} answers with a draft, {texts} have the autoregressive text; of these {same} have the replayed rounds."
    )
    if document.get("first_token"):
        all_prompts = document["first_token"][0]
        beside = f"{1e3 * all_prompts['predicted']:,.1f} ms" + (", extrapolated" if all_prompts["extrapolated"] else "")
        show.say(
            f"The first token takes {1e3 * all_prompts['measured']:,.1f} ms (predicted: {beside}), the mean over {all_prompts['prompts']} "
            f"prompts of {all_prompts['prompt_tokens']:,.0f} tokens on average."
        )
    if document.get("other_dice"):
        _show_other_dice(show, document["other_dice"])
    if plot is not None:
        from ddsim.view.checks import validation

        _plot(show, plot, lambda ax: validation(document, ax=ax), 12)
    return max(map(abs, errors.values()))


def _pooled(rows: list[dict[str, Any]]) -> Any:
    """Rows over all workloads as `VALIDATION_COLUMNS` take them; files of before lack some."""
    import pandas as pd

    found = []
    for row in rows:
        if row["workload"] != "all":
            continue
        said, came = row["predicted"], row["measured"]
        shown = {
            "policy": row["policy"],
            "tau_predicted": said["acceptance_length"],
            "tau_measured": came["acceptance_length"],
            "speed_predicted": said["tokens_per_second"],
            "speed_measured": f"{came['tokens_per_second']:,.0f}",
            "error": row["tokens_per_second_error"],
        }
        if "inside" in row:
            low, high = said["tokens_per_second_low"], said["tokens_per_second_high"]
            shown["interval"] = "–" if low is None else f"{low:,.0f}–{high:,.0f}"
            shown["speed_measured"] += "*" if row["inside"]["tokens_per_second"] is False else " "
            shown |= row["contributions"]
        else:
            shown["ms"] = came["ms_per_round"]
        found.append(shown)
    return pd.DataFrame(found)


def _show_other_dice(show: Out, document: dict[str, Any]) -> None:
    """Texts that other dice made, beside what the recorded texts predict."""
    speed, length = (document["inside"][key] for key in ("tokens_per_second", "acceptance_length"))
    likely = [found["p"] for found in document["lengths"].values()]
    show.table(_pooled(document["rows"]), VALIDATION_COLUMNS, "With other dice: other texts of the same prompts")
    show.say(
        f"With other dice {length['inside']} of {length['cells']} measured tokens a round and {speed['inside']} of {speed['cells']} tokens/s "
        f"lie in the predicted interval; {sum(p < 0.05 for p in likely)} of {len(likely)} policies have rounds of another distribution "
        "(p below 0.05)."
    )


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
    turns = [(row["predicted"]["tokens_per_second"], row["turns"]) for row in document["rows"] if row.get("turns")]
    if any(len(speeds) > 1 for _, speeds in turns):
        fastest = [abs(speed / max(speeds) - 1) for speed, speeds in turns]
        spread = max(max(speeds) / min(speeds) - 1 for _, speeds in turns)
        show.say(
            f"Turns of the same calls differ by up to {100 * spread:.1f} %; off the fastest they are {100 * sum(fastest) / len(turns):.1f} % "
            f"on average and {100 * max(fastest):.1f} % at worst."
        )
    right, asked = (sum(one[name] for one in document["order"]) for name in ("right", "pairs"))
    show.say(f"Of {asked} pairs of K more than 2 % apart {right} are in the predicted order.")
    best = ", ".join(f"{one['ratio']:.3f} at {one['batch']}" for one in document["schedule_over_best"])
    show.say(f"The exported schedule over the best K, by batch: {best}.")
    plain = [(row["batch"], row["measured"]["tokens_per_second"]) for row in document.get("without_drafter") or ()]
    if plain:
        words = ", ".join(f"{speed:,.0f} at {batch}" for batch, speed in plain)
        show.say(f"An engine without a drafter decodes tokens/s, by batch: {words}.")
    for note in document.get("notes", ()):
        show.say(f"Note: {note}")
    if plot is not None:
        from ddsim.view.checks import predicted_measured

        speeds = {
            side: [row[side]["tokens_per_second"] for row in document["rows"]] for side in ("predicted", "measured")
        }
        points = pd.DataFrame({"group": [f"batch {row['batch']}" for row in document["rows"]], **speeds})
        from ddsim.view.titles import about

        made = document["provenance"]
        line = about({"target": document["label"], **made})
        _plot(show, plot, lambda ax: predicted_measured(points, about=line, ax=ax), 12)
    return float(table["error"].abs().max())
