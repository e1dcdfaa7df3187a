"""What a server under load came to: runs of policies at loads, and their table."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.errors import DdsimError
from ddsim.replay.bootstrap import ENOUGH, sure
from ddsim.replay.load_kernels import Requests, Told
from ddsim.replay.replay import _records
from ddsim.replay.served import SHUFFLES, Interval, _columns, _interval
from ddsim.replay.shown import ShownLoad, warned
from ddsim.tables import Shown, Summary
from ddsim.text import between, gained

QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Promise:
    """Limits on latency that a request is promised; None: no limit.

    Attributes
    ----------
    ttft : float, optional
        Seconds from arrival to the first token.
    tpot : float, optional
        Seconds per output token after the first.
    """

    ttft: float | None = None
    tpot: float | None = None

    def __bool__(self) -> bool:
        return self.ttft is not None or self.tpot is not None

    def __str__(self) -> str:
        limits = [f"TTFT {self.ttft:g} s"] * (self.ttft is not None) + [f"TPOT {1e3 * (self.tpot or 0):g} ms"] * (
            self.tpot is not None
        )
        return " and ".join(limits)


@dataclass(frozen=True, repr=False)
class LoadRun(Shown):
    """What one policy did at one load: SHUFFLES simulations with all prompts, then one for each repeat with resampled prompts.

    Attributes
    ----------
    requests : Requests
    told : Told
    skipped : int
        Requests that came first, to an empty server, and aren't counted.
    """

    requests: Requests
    told: Told
    skipped: int = 0

    def summary(self) -> Summary:
        """What is printed: requests and their mean latencies, in a line."""
        means = f"TTFT {self.ttft.mean():.3g} s, TPOT {1e3 * self.tpot.mean():.3g} ms, whole {self.latency.mean():.3g} s on average"
        return Summary(f"{self.latency.shape[0]} simulations of {self.latency.shape[1]:,} requests: {means}.")

    @property
    def ttft(self) -> Floats:
        """Seconds from arrival to the first token, float64 [R, N]."""
        return (self.told.first - self.requests.arrival)[:, self.skipped :]

    @property
    def tpot(self) -> Floats:
        """Seconds per output token after the first; 0 of an answer of one token."""
        after = np.maximum(self.requests.answer - 1, 1)
        return ((self.told.finish - self.told.first) / after)[:, self.skipped :]

    @property
    def latency(self) -> Floats:
        """Seconds from arrival to the last token."""
        return (self.told.finish - self.requests.arrival)[:, self.skipped :]

    @property
    def tokens_per_second(self) -> Floats:
        """Output tokens a second from the first arrival to the last answer, float64 [R]."""
        rates: Floats = self.requests.answer.sum(axis=1) / self.told.finish.max(axis=1)
        return rates

    def kept(self, promise: Promise) -> NDArray[np.bool_]:
        """Whether a request was served as promised, bool [R, N]."""
        ttft = np.inf if promise.ttft is None else promise.ttft
        tpot = np.inf if promise.tpot is None else promise.tpot
        return (self.ttft <= ttft) & (self.tpot <= tpot)


class LoadResult(ShownLoad):
    """Latencies and throughput of policies at several loads, with 95 % intervals from repeated simulations.

    Attributes
    ----------
    runs : dict, (requests a second, policy name) -> LoadRun
    highest : dict, policy name -> float64 [R]
        Requests a second that a server with it can ever serve: what it serves while its queue is never empty.
    fixed : tuple of str
        Policies with one setting whatever happens; the best of them is what others are compared with.
    promise : Promise
    extrapolated : dict, (requests a second, policy name) -> bool
        Whether a round cost what wasn't measured: more requests, more tokens or a longer context.
    prefill : str
        Where the seconds of prefill are from.
    shares : tuple of float, or None
        The loads as shares of the highest load of the best fixed setting, if that is what was asked for.
    provenance : dict

    Examples
    --------
    >>> import ddsim
    >>> logprobs = np.log(np.full((12, 2, 2), [0.6, 0.3]))
    >>> trace = ddsim.Trace.from_arrays([5, 6, 6, 7] * 3, np.full((12, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = ddsim.CostModel.from_table([1, 40], [0.010, 0.012], draft_seconds=0.001)
    >>> result = ddsim.serve_load(trace, cost, ["AR", "DDTree:2"], rate=[1.0], running=4, requests=10, bootstrap=0)
    >>> result.highest_fixed, result.unstable(1.0, "AR")
    ('DDTree(2)', False)
    """

    def __init__(
        self,
        runs: dict[tuple[float, str], LoadRun],
        highest: dict[str, Floats],
        fixed: tuple[str, ...],
        promise: Promise,
        extrapolated: dict[tuple[float, str], bool],
        prefill: str,
        shares: tuple[float, ...] | None,
        provenance: dict[str, Any],
    ) -> None:
        self.runs, self.highest, self.fixed, self.promise = runs, highest, fixed, promise
        self.extrapolated, self.prefill, self.shares, self.provenance = extrapolated, prefill, shares, provenance

    @property
    def loads(self) -> list[float]:
        """Requests a second."""
        return list(dict.fromkeys(load for load, _ in self.runs))

    @property
    def highest_fixed(self) -> str:
        """The fixed setting that serves most requests a second."""
        return max(self.fixed, key=lambda name: pooled(self.highest[name]))

    def best(self, load: float, names: tuple[str, ...] | None = None) -> str:
        """The policy that serves a load best, of those named: most requests as promised, if anything is; then the least mean latency."""

        def worth(name: str) -> tuple[float, float]:
            run = self.runs[load, name]
            kept = float(run.kept(self.promise)[:SHUFFLES].mean()) if self.promise else 0.0
            return kept, -float(run.latency[:SHUFFLES].mean())

        return max(self.highest if names is None else names, key=worth)

    def unstable(self, load: float, policy: str) -> bool:
        """Whether the queue grows without end: requests come faster than they can ever be served."""
        return load >= pooled(self.highest[policy])

    def table(self) -> pd.DataFrame:
        """One row a load and policy.

        Returns
        -------
        DataFrame
            load (requests a second), share (of the highest load of the best fixed setting), policy, fixed, highest (requests a second that it
            can ever serve; _low, _high), highest_over (relative change over that of the best fixed setting; _low, _high), unstable, requests (counted), running (requests that decode together, a round's mean),
            acceptance_length (tokens a request and round), budget_mean (nodes a request and round), tokens_per_second (_low, _high),
            ttft_mean, tpot_mean, latency_mean (seconds; _low, _high), and of each _p50, _p95 and _p99, goodput (share of requests
            served as promised; _low, _high), best_fixed, and over it latency_over and tokens_over (relative change; _low, _high), extrapolated.
        """
        return self._table.copy()

    @functools.cached_property
    def _table(self) -> pd.DataFrame:
        rows = []
        most = pooled(self.highest[self.highest_fixed])
        for load in self.loads:
            fixed = self.best(load, self.fixed)
            base = self.runs[load, fixed]
            for name in self.highest:
                run, told = self.runs[load, name], self.runs[load, name].told
                of = slice(None, SHUFFLES)
                shares, rounds = int(told.shares[of].sum()), int(told.rounds[of].sum())
                row: dict[str, Any] = {"load": load, "share": load / most, "policy": name, "fixed": name in self.fixed}
                highest = _pooled_first(self.highest[name])
                row |= _columns("highest", highest) | {"unstable": self.unstable(load, name)}
                row |= _columns("highest_over", highest / _pooled_first(self.highest[self.highest_fixed]) - 1)
                row |= {"requests": run.latency[of].size, "running": shares / max(rounds, 1)}
                row["acceptance_length"] = told.tokens[of].sum() / max(shares, 1)
                row["budget_mean"] = told.nodes[of].sum() / max(shares, 1)
                row |= _columns("tokens_per_second", _pooled_first(run.tokens_per_second))
                for what in ("ttft", "tpot", "latency"):
                    seconds = getattr(run, what)
                    row |= _columns(f"{what}_mean", _means(seconds))
                    found = np.quantile(seconds[of], [q / 100 for q in QUANTILES])
                    row |= {f"{what}_p{q}": float(value) for q, value in zip(QUANTILES, found, strict=True)}
                kept = _means(run.kept(self.promise)) if self.promise else np.full(1, np.nan)
                row |= _columns("goodput", kept)
                row["best_fixed"] = fixed
                row |= _columns("latency_over", _means(run.latency) / _means(base.latency) - 1)
                pair = _pooled_first(run.tokens_per_second), _pooled_first(base.tokens_per_second)
                row |= _columns("tokens_over", pair[0] / pair[1] - 1)
                row["extrapolated"] = self.extrapolated[load, name]
                rows.append(row)
        return pd.DataFrame(rows)

    def gain(self, policy: str, over: str, load: float) -> Interval:
        """Relative change of the mean latency from one policy to another at a load, paired: value, low, high; below 0 is sooner."""
        for name in (policy, over):
            if (load, name) not in self.runs:
                raise DdsimError(
                    f"no policy {name!r} at {load:g} requests/s; loads: {', '.join(f'{one!r}' for one in self.loads)}; policies: "
                    f"{', '.join(self.highest)}"
                )
        return _interval(_means(self.runs[load, policy].latency) / _means(self.runs[load, over].latency) - 1)

    @property
    def prompts(self) -> int:
        """Prompts of the recording; several answers to one count once."""
        return int(self.provenance.get("prompts", ENOUGH))

    @property
    def sentence(self) -> str:
        """What serves the largest load best, and by how much."""
        load = self.loads[-1]
        fixed, best = self.best(load, self.fixed), self.best(load)
        at = f"At {load:.3g} requests/s"
        if self.shares is not None:
            at += f" ({100 * self.shares[-1]:.0f} % of what the best fixed setting can serve)"
        if all(self.unstable(load, name) for name in self.highest):
            name, most = max(((n, pooled(h)) for n, h in self.highest.items()), key=lambda pair: pair[1])
            return (
                f"{at} the queue grows without end: the most that can be served is {most:.3g} requests/s, with {name}."
            )
        run = self.runs[load, best]
        text = f"{at} {best} answers in {float(run.latency[:SHUFFLES].mean()):.3g} s on average"
        if best == fixed:
            return f"{text}, and no rule does better."
        if not self.unstable(load, fixed):
            change, low, high = sure(self.gain(best, fixed, load), self.prompts)
            word, ends = ("sooner", (-high, -low)) if change <= 0 else ("later", (low, high))
            span = between(*ends, lambda end: f"{round(100 * end, 1) + 0.0:.1f}".replace("-", "−"))
            return f"{text}, {100 * abs(change):.1f} %{f' ({span} %)' * bool(span)} {word} than the best fixed setting, {fixed}."
        return f"{text}; under the best fixed setting, {fixed}, the queue grows without end."

    @property
    def details(self) -> tuple[str, ...]:
        """Highest loads, what was promised, and what the numbers rest on."""
        fixed = self.highest_fixed
        rules = [name for name in self.highest if name not in self.fixed]
        best = max(rules or [fixed], key=lambda name: pooled(self.highest[name]))
        most = pooled(self.highest[fixed])
        lines = [f"The best fixed setting, {fixed}, can serve {most:.3g} requests/s"]
        if best != fixed:
            gain = _interval(_pooled_first(self.highest[best]) / _pooled_first(self.highest[fixed]) - 1)
            change, low, high = sure(gain, self.prompts)
            lines[0] += f"; the best rule, {best}, {pooled(self.highest[best]):.3g}: {gained(change, low, high)}"
        lines[0] += "."
        if self.promise:
            load = self.loads[-1]
            kept = {name: float(self.runs[load, name].kept(self.promise)[:SHUFFLES].mean()) for name in self.highest}
            name = max(kept, key=kept.__getitem__)
            told = f"{self.promise} are kept for {100 * kept[name]:.1f} % of requests at best"
            lines.append(
                f"{told}, by {name}."
                if kept[name]
                else f"{self.promise}: no request at {load:.3g}/s is served so: goodput 0."
            )
        lines.append(f"Prefill: {self.prefill}.")
        return (*warned(self.prompts), *lines)

    def to_json(self) -> dict[str, Any]:
        """Sentence, table (times in seconds) and provenance, as JSON."""
        return {
            "kind": "ddsim-load",
            "schema_version": 1,
            "sentence": self.sentence,
            "details": list(self.details),
            "prompts": self.prompts,
            "enough_prompts": self.prompts >= ENOUGH,
            "provenance": self.provenance,
            "table": _records(self.table()),
        }


def pooled(rates: Floats) -> float:
    """One rate of the simulations that take all prompts."""
    return float(rates[:SHUFFLES].mean())


def _pooled_first(values: Floats) -> Floats:
    """The mean over the shuffles of all prompts, then every repeat's."""
    return np.append(values[:SHUFFLES].mean(), values[SHUFFLES:])


def _means(values: NDArray[Any]) -> Floats:
    """The same of values by request, [R, N]."""
    return np.append(values[:SHUFFLES].mean(), values[SHUFFLES:].mean(axis=1))
