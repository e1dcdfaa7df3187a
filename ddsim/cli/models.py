"""Commands with a model: record, decode, profile, validate, convert, train-drafter."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ddsim.cli.app import (
    REFERENCE,
    JsonOption,
    PlotOption,
    SeedOption,
    _check_plot,
    _check_typed,
    _complete,
    _Failed,
    _one_of,
    _open,
    _plot,
    app,
    example,
)
from ddsim.cli.console import Out, working
from ddsim.cli.console import progress as _progress
from ddsim.cli.engines import DrivenOption, KOption
from ddsim.cli.options import (
    DTYPES,
    WIDTHS,
    BucketsOption,
    ByOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    FastOption,
    HeadOption,
    LimitOption,
    OptionalDtypeOption,
    PromptsOption,
    TargetOption,
    TokensOption,
    WidenOption,
    buckets_of,
    reference,
)
from ddsim.cli.validations import ENGINE_VALIDATION, VALIDATION, show_engine_validation, show_validation
from ddsim.cli.waiting import seconds_left
from ddsim.errors import DdsimError
from ddsim.files.atomic import STDOUT
from ddsim.policy import names
from ddsim.text import printable


@app.command(
    cls=ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim record --target smollm2-135m --drafter reference/drafter --prompts humaneval -o traces/mine",
        "ddsim record --target smollm2-135m --drafter reference/drafter --answers yesterday.jsonl -o traces/yesterday",
        "ddsim record --target smollm2-135m --drafter reference/drafter --prompts openai/gsm8k:main:test --limit 64 -o traces/gsm8k",
    ),
)
def record(
    target: TargetOption,
    drafter: DrafterOption,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the trace.")],
    prompts: PromptsOption = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Prompts or conversations with their answers, or vLLM's output (JSONL, Parquet, a folder, or org/name:split of a data "
            "set on the hub; repeatable), in place of --prompts: nothing is generated.",
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(min=0, help="0 for greedy answers, otherwise samples; of --answers, what they were written at."),
    ] = 0.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=2, help="Longest answer, in tokens (default: 128; --answers are whole)."),
    ] = None,
    max_budget: Annotated[int, typer.Option(min=1, help="Largest budget that the trace answers exactly.")] = 512,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    limit: LimitOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers written side by side.")] = 32,
    seed: SeedOption = 0,
    head: HeadOption = True,
    lattice_width: Annotated[
        int,
        typer.Option("--lattice-width", min=1, max=64, help="Candidates a depth of lattices; the decoder drafts 16."),
    ] = 16,
    block_size: Annotated[
        int | None,
        typer.Option(
            "--block-size", min=2, help="Slots of a drafted block (default: the drafter's): K + 1 of a static K."
        ),
    ] = None,
    skip_long: Annotated[
        bool, typer.Option("--skip-long", help="Leave out texts too long for the target, and say how many.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Record a dense trace: the target's answers, or given ones, and what the drafter proposes at every position.

    A run that was stopped continues where it was when it is started again with the same options. Started by torchrun, each process
    records its share on a GPU of its own: torchrun --nproc-per-node 2 -m ddsim record ... --device cuda.
    """
    show = Out(json, folders=[out])
    _one_of("--dtype", dtype, DTYPES)
    if bool(prompts) == bool(answers):
        raise DdsimError(
            "record: say what to record with --prompts NAME (a workload, all, a file, or a data set) or --answers FILE"
        )
    show.reads(target, drafter, *filter(os.path.isfile, prompts or answers or ()))
    module = reference("record")
    first = reference("model.device").ranks()[0] == 0  # of the processes that torchrun starts, one speaks
    with _progress("Recording") if first else nullcontext() as progress:
        path = module.record(
            target=target, drafter=drafter, prompts=prompts or (), answers=answers or (), out=out,
            temperature=temperature, max_new_tokens=max_new_tokens, max_budget=max_budget, device=device, dtype=dtype, seed=seed, limit=limit,
            batch=batch, head=head, lattice_width=lattice_width, block_size=block_size,
            skip_long=skip_long, progress=progress,
        )  # fmt: skip
    if not first:
        return
    trace = _open(Out(), [path])
    told = f"{path}: {len(trace.sequences)} sequences, {len(trace):,} positions, exact to budget {trace.max_budget}"
    show.say(told, wrap=False)
    show.json(
        {
            "out": path, "sequences": len(trace.sequences), "positions": len(trace), "workloads": trace.workloads,
            "horizon": trace.horizon, "max_budget": trace.max_budget, "fingerprint": trace.fingerprint,
        }
    )  # fmt: skip


@app.command(
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim decode 'Write a haiku about trees.' --target smollm2-135m --drafter reference/drafter --policy DDTree:31",
        "ddsim decode --prompts humaneval --limit 2 --target smollm2-135m --drafter reference/drafter "
        "--policy LongRun --profile h100.json",
        "ddsim decode Hello --target smollm2-135m --drafter reference/drafter --policy RoundRatio --profile mine.csv",
    ),
)
def decode(
    target: TargetOption,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Messages to answer.")] = None,
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="DFlash drafter; not needed by --policy AR.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(names.RUN)}, or your own: {names.OWN}.",
            autocompletion=_complete(*names.RUN),
        ),
    ] = "DDTree:63",
    prompts: PromptsOption = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="FILE",
            help="Profile, cost model or CSV (as fit reads), for policies that weigh costs.",
        ),
    ] = None,
    calibration: Annotated[str | None, typer.Option(metavar="FILE", help="Saved by ddsim calibrate.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 for greedy answers, otherwise samples.")] = 0.0,
    max_new_tokens: TokensOption = 128,
    device: DeviceOption = "cpu",
    dtype: OptionalDtypeOption = None,
    limit: LimitOption = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Requests decoded together.")] = 1,
    head: HeadOption = True,
    fast: FastOption = False,
    buckets: BucketsOption = None,
    mark: Annotated[
        bool, typer.Option(help="Mark what the drafter proposed: green, or [in brackets] without colours.")
    ] = True,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Answer prompts with the reference decoder; the text streams, drafted tokens that were accepted are marked.

    Standard output gets the texts, with an empty line between two; which prompt it is, and what it took, go to standard error.
    """
    show = Out(json)
    _one_of("--dtype", dtype, DTYPES)
    from ddsim.policy.parse import policy_of

    rule = policy_of(policy, joint=batch > 1)
    _check_typed([rule], None)
    if rule.hindsight or rule.needs_trace:
        raise DdsimError(f"--policy {rule.name}: is known after a text only, so it works in replay, not in decoding")
    pieces = reference("decode").decode_prompts(
        target=target, drafter=drafter, prompts=prompts or (), text=text or (), policy=rule, profile=profile,
        calibration=calibration, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, device=device,
        dtype=dtype, limit=limit, batch=batch, head=head, fast=fast, **buckets_of(buckets),
    )  # fmt: skip
    texts: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    answers: list[dict[str, Any]] = []
    for piece in pieces:
        key = piece.prompt.workload, piece.prompt.id
        held = texts.setdefault(key, [])
        if batch == 1 and not held:
            _show_prompt(show, piece.prompt.id, first=not answers)
        held += piece.parts
        if batch == 1:
            show.stream(piece.parts, mark)
        if piece.answer is None:
            continue
        done = piece.answer
        if batch > 1:
            _show_prompt(show, piece.prompt.id, first=not answers)
            show.stream(held, mark)
        seconds, rounds = done.seconds.get("decode", 0.0), len(done.rounds)
        rate = f", {(len(done.tokens) - 1) / seconds:,.1f} tokens/s" if seconds > 0 else ""
        length = f", {(len(done.tokens) - 1) / rounds:.2f} tokens a round" if rounds else ""
        first = (
            f", first token after {1e3 * done.seconds['ttft']:,.1f} ms (prompt {1e3 * done.seconds['prefill']:,.1f} ms)"
        )
        show.say()
        show.aside(f"{len(done.tokens)} tokens in {rounds} rounds{length}{rate}{first}", style="dim")
        answers.append(
            {
                "workload": key[0], "prompt_id": key[1], "text": "".join(t for t, _ in held), "tokens": done.tokens,
                "rounds": [dataclasses.asdict(r) for r in done.rounds], "seconds": done.seconds,
            }
        )  # fmt: skip
    show.json({"policy": policy, "temperature": temperature, "answers": answers})


def _show_prompt(show: Out, name: str, first: bool) -> None:
    if not first:
        show.say()
    show.aside(name, style="bold")


@app.command(
    cls=ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim profile --target smollm2-135m --drafter reference/drafter -o mine.json",
        "ddsim profile --target qwen3-8b --random-weights -b 1 -b 8 -o 8b.json",
        "ddsim profile --target smollm2-135m --drafter reference/drafter --widen qwen3-8b -o wide.json",
        "ddsim profile --engine vllm --target pair/target --drafter pair/drafter -o vllm.json",
    ),
)
def profile(
    target: TargetOption,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The profile (JSON).")],
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="DFlash drafter: checkpoint folder or hub name.")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="The target is a shape: smollm2-135m, qwen3-4b, qwen3-8b; needs no files."
        ),
    ] = False,
    widen: WidenOption = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the largest pass, all requests together.")] = 1024,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Committed tokens (repeatable; default: 64 to 32,768, as positions and memory allow)."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", "-b", min=1, help="Requests side by side (repeatable; default: 1).")
    ] = None,
    buckets: BucketsOption = None,
    prefill: Annotated[
        bool, typer.Option("--prefill/--no-prefill", help="Measure prompts, up to 8,192 tokens.")
    ] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Sweeps over all points.")] = 8,
    engine: DrivenOption = None,
    k: KOption = None,
    eager: Annotated[
        bool,
        typer.Option("--eager", help="The published kind of loop: transformers' layers, a dense mask, a Python heap."),
    ] = False,
    device: DeviceOption = "cuda",
    dtype: DtypeOption = "bfloat16",
    seed: SeedOption = 0,
    head: HeadOption = True,
    fast: FastOption = False,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what verification, drafting and prompts cost on this device. A run that was stopped continues.

    With --engine, whole steps of a serving engine at every batch, K and context (default: 1 to 64 requests; 128 to 8,192 tokens).
    --repeats sweeps take about half a minute each for an 8B target; starting the engine takes two minutes.
    """
    show = Out(json, [out, plot])
    if out == STDOUT:
        raise DdsimError("profile --out -: name a file; an interrupted run goes on there")
    _one_of("--dtype", dtype, DTYPES)
    _check_plot(plot)
    show.reads(target, drafter)
    given: dict[str, Any] = {"contexts": context} if context else {}
    if engine is None and k:
        raise DdsimError("profile: --k is for --engine")
    if eager and (random_weights or drafter is None or (batch or [1]) != [1] or fast or engine is not None or buckets):
        raise DdsimError(
            "profile --eager: needs --target and --drafter with weights, and no --batch, --fast, --buckets or --engine"
        )
    if engine is not None and (random_weights or widen or buckets or drafter is None):
        raise DdsimError(
            "profile --engine: needs --target and --drafter, folders that the engine loads, and no --widen or --buckets"
        )
    _one_of("--widen", widen, WIDTHS)
    module = reference("profile" if engine is None else "engines")
    with _progress("Measuring") as progress:
        common = {"target": target, "drafter": drafter, "out": out, "repeats": repeats, "dtype": dtype, "seed": seed}
        if engine is not None:
            given |= {name: value for name, value in (("batches", batch), ("ks", k)) if value}
            path = module.profile_engine(engine=engine, progress=progress, **common, **given)
        else:
            path = module.measure_profile(
                random_weights=random_weights, widen=widen, max_tokens=max_tokens, batches=batch or (1,), device=device, head=head,
                fast=fast, eager=eager, prefill=prefill, progress=progress, **buckets_of(buckets), **common, **given,
            )  # fmt: skip
    show.saved(path)
    from ddsim.cost.profile import read_profile

    if engine is not None and (note := module.host_bound(read_profile(path).provenance)):
        show.say(f"Note: {note}")
    if plot is not None:
        from ddsim.cost.model import fit_cost
        from ddsim.view.costs import cost_curve

        measured = read_profile(path)
        with _progress("Fitting the cost model"):
            cost = fit_cost(measured, seed=seed)
        _plot(show, plot, lambda ax: cost_curve(cost, measured, batch=min(batch or (1,)), ax=ax), 14)
    show.json({"out": path, "plot": plot})


@app.command(
    cls=ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim validate --target smollm2-135m --drafter reference/drafter --widen qwen3-8b -o check.json",
        "ddsim validate --engine vllm --target pair/target --drafter pair/drafter -o held.json",
        "ddsim validate --target smollm2-135m --drafter reference/drafter --profile mine.csv -o check.json",
        "ddsim validate --show traces/validation/qwen3-8b-cost-h100.json.gz",
    ),
)
def validate(
    target: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Checkpoint folder, hub name, .gguf file, or smollm2-135m.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="DFlash drafter: checkpoint folder or hub name.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="The comparison (JSON).")] = None,
    saved: Annotated[
        Path | None, typer.Option("--show", metavar="FILE", help="Print a saved comparison; needs no model.")
    ] = None,
    widen: WidenOption = None,
    prompts: PromptsOption = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help=f"{', '.join((*names.RUN, *names.TRACE))}, or your own: {names.OWN} (repeatable); AR must be among them.",
            autocompletion=_complete(*names.RUN, *names.TRACE),
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many prompts of each workload.")] = 4,
    max_new_tokens: TokensOption = 96,
    temperature: Annotated[
        float,
        typer.Option(min=0, help="0 for greedy answers; samples are compared with the same dice and with others."),
    ] = 0.0,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="FILE",
            help="Profile, cost model or CSV (as fit reads); default: profiled first, in the same process.",
        ),
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Committed tokens to profile (repeatable; default: 128 to 1,024).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Sweeps of the profile.")] = 5,
    max_budget: Annotated[int, typer.Option(min=1, help="Largest budget.")] = 512,
    eager_budget: Annotated[
        int | None, typer.Option(min=1, help="Also run the published kind of loop with trees of so many nodes.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 if tokens/s are further off than this (0.05 is 5 %).")
    ] = None,
    engine: DrivenOption = None,
    k: KOption = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", "-b", min=1, help="Prompts a call (repeatable; default: 1, 8, 32). (--engine)"),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Decode in an engine without a drafter too. (--engine)")
    ] = False,
    device: DeviceOption = "cuda",
    dtype: DtypeOption = "bfloat16",
    seed: SeedOption = 0,
    head: HeadOption = True,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Decode for real what replay predicts, and compare throughput and accepted lengths.

    With --engine, a serving engine decodes with every K and with the exported schedule; its costs are measured before and after. A run
    that was stopped continues.
    """
    show = Out(json, [out, plot])
    _check_plot(plot)
    show.reads(target, drafter, profile, *filter(os.path.isfile, prompts or ()))
    if saved is not None:
        show.reads(saved.expanduser())
        from ddsim.files.documents import read_document

        if target is not None or drafter is not None or out is not None:
            raise DdsimError("validate --show: prints what was measured; leave out --target, --drafter and --out")
        result = read_document(saved.expanduser(), dict([VALIDATION, ENGINE_VALIDATION]))
    else:
        if target is None or drafter is None or out is None or out == STDOUT:
            raise DdsimError("validate: needs --target, --drafter and -o FILE (or --show FILE alone)")
        _one_of("--dtype", dtype, DTYPES)
        _one_of("--widen", widen, WIDTHS)
        if engine is None and (k or batch or plain):
            raise DdsimError("validate: --k, --batch and --plain are for --engine")
        if engine is not None and (widen or policy or eager_budget or temperature or profile):
            raise DdsimError(
                "validate --engine: takes no --widen, --policy, --eager-budget, --temperature or --profile; "
                "ddsim convert writes widened pairs"
            )
        with working("Validating") as say:
            common: dict[str, Any] = {
                "target": target, "drafter": drafter, "out": out, "prompts": prompts or ("all",), "limit": limit,
                "max_new_tokens": max_new_tokens, "repeats": repeats, "tolerance": tolerance, "device": device, "dtype": dtype,
                "seed": seed, "progress": say, **({"contexts": context} if context else {}),
            }  # fmt: skip
            if engine is not None:
                common |= {name: value for name, value in (("batches", batch), ("ks", k)) if value}
                result = reference("engines").validate_engine(engine=engine, plain=plain, **common)
            else:
                result = reference("validate").validate(
                    widen=widen, largest=max_budget, eager_budget=eager_budget, head=head, temperature=temperature,
                    profile=profile, **common,
                    **({"policies": policy} if policy else {}),
                )  # fmt: skip
    try:
        worst = (show_engine_validation if result["kind"] == ENGINE_VALIDATION[0] else show_validation)(
            show, result, plot
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if saved is None:
            raise
        raise DdsimError(f"{saved}: something is missing or damaged ({error}); run ddsim validate again") from None
    if out is not None:
        show.saved(out)
    show.json(result | {"plot": plot})
    held = tolerance if tolerance is not None else result.get("tolerance")
    if held is not None and worst > held:
        raise _Failed(f"tokens/s are up to {100 * worst:.1f} % off, above the tolerance of {100 * held:g} %")


@app.command(
    cls=ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim convert --target smollm2-135m -o smollm2",
        "ddsim convert --target smollm2-135m --drafter reference/drafter --widen qwen3-8b --device cuda -o pair",
    ),
)
def convert(
    target: TargetOption,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="FOLDER", help="New folder; with a drafter it holds target/ and drafter/."),
    ],
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="Its drafter, to be written beside it.")
    ] = None,
    widen: WidenOption = None,
    prompts: PromptsOption = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="NAME", help="float32 or bfloat16, of the files.", autocompletion=_complete(*DTYPES)
        ),
    ] = "bfloat16",
    device: DeviceOption = "cpu",
    head: Annotated[bool, typer.Option("--head/--no-head", help="Write the drafter's head too, if it has one.")] = True,
    tokenizer: Annotated[bool, typer.Option("--tokenizer/--no-tokenizer", help="Write the target's tokenizer.")] = True,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Write a target, and its drafter, as Hugging Face folders that serving engines load.

    With --widen the pair says what it says at the cost of a larger one; --prompts (default: all) show what its states look like.
    """
    show = Out(json, folders=[out])
    _one_of("--dtype", dtype, DTYPES)
    _one_of("--widen", widen, WIDTHS)
    if prompts and widen is None:
        raise DdsimError("convert: --prompts are for --widen")
    show.reads(target, drafter, *filter(os.path.isfile, prompts or ()))
    module = reference("convert")
    with working("Converting") as say:
        written = module.convert(
            target=target, out=out, drafter=drafter, widen=widen, prompts=prompts or ("all",), dtype=dtype, device=device,
            head=head, tokenizer=tokenizer, seed=seed, progress=say,
        )  # fmt: skip
    for path in filter(None, (written["target"], written["drafter"])):
        show.say(f"Wrote {path}", wrap=False)
    if tokenizer and not written["tokenizer"]:
        show.say("No tokenizer was found beside the target, so none was written.")
    show.json(written)


@app.command(
    "train-drafter",
    cls=ByOption,
    rich_help_panel=REFERENCE,
    epilog=example("ddsim train-drafter --target smollm2-135m --mask-token 16 -o drafter --work drafter-work"),
)
def train_drafter(
    target: TargetOption,
    mask_token: Annotated[int, typer.Option(min=0, help="An unused special token of the target.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the drafter.")],
    work: Annotated[str, typer.Option(metavar="FOLDER", help="Keeps text and state; a further run continues there.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What the target is asked, in place of built-in instructions: a file, a folder or a data set, as record takes (repeatable).",
        ),
    ] = None,
    data_seconds: Annotated[float, typer.Option(min=0, help="Time for writing text.")] = 170.0,
    train_seconds: Annotated[float, typer.Option(min=0, help="Time for training.")] = 680.0,
    stop_after: Annotated[float | None, typer.Option(min=0, help="Stop after so many seconds; continue later.")] = None,
    start: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="Go on from this drafter, not from the target's layers.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Largest learning rate of matrices.")] = 3e-3,
    head: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="Train a head that knows the token before: static, gated or gated_low_rank."),
    ] = None,
    head_width: Annotated[int | None, typer.Option(min=1, help="Inner width of the head.")] = None,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Leave the drafter given by --start as it is; train its head alone.")
    ] = False,
    block_size: Annotated[int, typer.Option(min=2, help="Horizon + 1.")] = 16,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the drafter.")] = 5,
    device: DeviceOption = "cuda",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a DFlash drafter for a target on text that the target writes itself (needs a GPU)."""
    show = Out(json, folders=[out, work])
    show.reads(target, start)
    module = reference("training.run")
    began, most = time.monotonic(), min(data_seconds + train_seconds, math.inf if stop_after is None else stop_after)

    def tell(line: str) -> None:
        if not json:
            left = seconds_left(max(began + most - time.monotonic(), 0))
            print(printable(f"{line}; at most {left}"), file=sys.stderr)

    path = module.train_drafter(
        target=target, out=out, work=work, data_seconds=data_seconds, train_seconds=train_seconds, stop_after=stop_after,
        start=start, rate=rate, head=head, head_width=head_width, head_only=head_only, prompts=prompts or (), mask_token_id=mask_token,
        block_size=block_size, layers=layers, device=device, seed=seed,
        progress=tell,
    )  # fmt: skip
    if reference("training.processes").Processes().rank > 0:
        return  # under torchrun the first process speaks for all
    show.say(f"Stopped; run it again to continue (state in {work})" if path is None else f"Wrote {path}", wrap=False)
    show.json({"out": path, "work": work, "finished": path is not None})
