"""How each verb's answer is laid out as tables for a person. It must never compute or decide anything.

The JSON of a verb holds everything; a table holds what a person needs to see first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from recmeta.terminal import table

if TYPE_CHECKING:
    from recmeta.events.store import IngestReport
    from recmeta.serving.answers import Answer

RIVALS = {
    "shared": "shared",
    "trees": "trees",
    "bias_only": "bias",
    "popularity": "popular",
    "incumbent": "before",
}
"""What a reader wants to compare with, and how its column is called."""


def ingest_table(report: IngestReport) -> RenderableType:
    """How many rows were taken, and how many were refused by which rule."""
    rows = [
        ("rows read", f"{report.rows:,}"),
        ("accepted", f"{report.accepted:,}"),
        ("known already", f"{report.duplicates:,}"),
        ("of no context, left out", f"{report.ignored:,}"),
    ]
    rows.append(("refused", f"{sum(report.refused.values()):,}"))
    rows += [(f"  {rule}", f"{count:,}") for rule, count in sorted(report.refused.items()) if count]
    shown: list[RenderableType] = [table(f"Ingested {report.origin}", ("", "rows"), rows, numeric=("rows",))]
    if report.quarantine:
        shown.append(Text(f"Refused rows, each with its rule, are in {report.quarantine}"))
    return Group(*shown)


def night_tables(night: Mapping[str, Any]) -> list[RenderableType]:
    """What serves each context after the night and why, and how long each stage took."""
    shown: list[RenderableType] = [contexts_table(night.get("contexts", {}))]
    seconds = night.get("seconds")
    if seconds:
        shown.append(Text("Seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())))
    shown.append(Text(verdict(night), style="bold"))
    if night.get("page"):
        shown.append(Text(f"The whole night on one page: {night['page']}"))
    return shown


def verdict(night: Mapping[str, Any]) -> str:
    """One sentence: what the night ended with."""
    if night["promoted"]:
        return f"Promoted {night['version']}: it serves now."
    champion = night.get("champion")
    serving = "Nothing serves yet." if champion is None else f"{champion} goes on serving."
    return f"Not promoted: {night['reason']}. {serving}"


def contexts_table(contexts: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """One line a context: what serves it, beside what it had to beat; then the gates' reasons."""
    rivals = [
        rival
        for rival in RIVALS
        if any(_auc(found.get("candidates") or {}, rival) for found in contexts.values())
    ]
    rows = []
    for name, context in contexts.items():
        serves, metrics = str(context.get("serves", "nothing")), context.get("candidates") or {}
        rows.append(
            (
                name,
                serves,
                _interval(_auc(metrics, serves)),
                *(_value(_auc(metrics, rival)) for rival in rivals),
            )
        )
    figures = table(
        "What serves each context: AUC [95 % interval] on later, unseen data",
        ("context", "serves", "its AUC", *(RIVALS[rival] for rival in rivals)),
        rows,
        numeric=("its AUC", *RIVALS.values()),
    )
    reasons = Table.grid(padding=(0, 1, 0, 0))
    for name, context in contexts.items():
        reasons.add_row(Text(f"  {name}:", style="bold"), Text(str(context.get("reason", ""))))
    return Group(figures, Text("Why:", style="bold"), reasons)


def stage_table(name: str, report: Mapping[str, Any]) -> RenderableType:
    """A stage's report, one line an entry."""
    return table(f"Stage {name}", ("", "value"), [(key, _short(value)) for key, value in report.items()])


def onboard_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """What serves a new surface and what to expect of it; below it what a person should know."""
    expected, forecast, own = report["expected_auc"], report["forecast"] or {}, report["own_rows"] or {}
    rows = [
        ("serves", str(report["rung"])),
        ("learnt from", f"{report['positives']:,} engagements in {report['rows']:,} rows"),
        ("known to the log", _known(report)),
        (
            "strength of the prior",
            f"{report['precision']:g} rows; the newcomer's part {report['newcomer']:.0%}",
        ),
        ("proven on", ", ".join(report["proven_on"]) or "no context could be held out yet"),
        ("AUC of held-out contexts so far", "-" if expected is None else f"{expected:.3f}"),
    ]
    if own.get("auc") is not None:
        rows.append(("AUC on its own rows, left out", _interval({"value": own["auc"], **own})))
    if forecast.get("needed") is not None:
        rows.append(
            (
                "nearly as good as it gets from",
                f"{forecast['needed']:,} engagements [{forecast['low']:,}-{forecast['high']:,}], "
                f"{forecast['more']:,} more",
            )
        )
    shown: list[RenderableType] = [table(f"New surface {report['context']}", ("", "value"), rows)]
    shown += [Text(f"Note: {warning}") for warning in report["warnings"]]
    if report["seconds"]:
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["seconds"].items())
        shown.append(Text(f"Seconds: {spent}"))
    serving = f"{report['champion']} serves {report['context']} now."
    if report["champion"] != report["version"]:
        published = f"{report['version']} is published (plan {report['plan']})"
        serving = f"{report['champion']} goes on serving; {published}."
    shown += [Text(str(report["reason"])), Text(serving, style="bold")]
    return shown


def _known(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{report[f'known_{kind}']} of {report[kind]} {kind}" for kind in ("users", "items"))


def recommendation_tables(answer: Answer) -> list[RenderableType]:
    """Rank, item, category, score and reason; below it what the reader must know about the answer."""
    rows = [
        (str(item.rank), item.item_id, ", ".join(item.categories), f"{item.score:.4f}", item.reason)
        for item in answer.items
    ]
    shown: list[RenderableType] = [
        table(
            f"{answer.context} for {answer.user_id}",
            ("rank", "item", "category", "score", "reason"),
            rows,
            numeric=("rank", "score"),
        )
    ]
    shown.append(
        Text(
            f"{answer.reason} (bundle {answer.bundle}, {answer.serves}, "
            f"as of {answer.as_of:%Y-%m-%d %H:%M} UTC)"
        )
    )
    shown += [Text(f"Note: {note}") for note in answer.notes]
    return shown


def score_table(told: Mapping[str, Any]) -> RenderableType:
    """What `score_file` told: rows by context, and what scored them."""
    title = (
        f"{told['path']}: {told['rows']:,} rows in {told['seconds']:.1f} s "
        f"(bundle {told['bundle']}, as of {told['as_of'][:16].replace('T', ' ')} UTC)"
    )
    rows = [(name, f"{count:,}") for name, count in told["contexts"].items()]
    return table(title, ("context", "rows"), rows, numeric=("rows",))


def bundles_table(listed: Mapping[str, Any]) -> RenderableType:
    """What `bundles_as_json` gave, one line a bundle."""
    rows = [
        (
            "champion" if bundle["champion"] else "",
            bundle["version"],
            max(bundle["promoted"])[:16].replace("T", " ") if bundle["promoted"] else "never",
            bundle["problem"]
            or ", ".join(f"{context}: {serves}" for context, serves in bundle["serves"].items()),
        )
        for bundle in listed["bundles"]
    ]
    if not rows:
        return Text("No bundle was published yet; `recmeta nightly` makes one.")
    return table("Bundles, the newest night first", ("", "version", "promoted (UTC)", "serves"), rows)


METHODS = {
    "ours": "ours",
    "zero_shot": "zero-shot",
    "joint_fine_tune": "fine-tune",
    "lightgbm": "LightGBM",
    "logistic": "logistic",
    "popularity": "popular",
}
"""Methods of an onboarding curve, and how their columns are called."""

WAYS = {
    "joint": "joint",
    "joint_fine_tune": "+ tune",
    "meta_learned": "meta",
    "network_alone": "alone",
    "lightgbm_alone": "trees",
    "lightgbm_pooled": "pooled",
    "stack": "stack",
}
"""Ways of learning in the verdict, likewise."""


def curve_tables(evidence: Mapping[str, Any], context: str | None) -> list[RenderableType]:
    """One onboarding curve a context that was held out, and what a surface that is new would get."""
    shown: list[RenderableType] = []
    for name, found in evidence.get("contexts", {}).items():
        if context is not None and name != context:
            continue
        curve = found["curve"]
        counts = sorted(curve.get("zero_shot", {}), key=in_order_of_positives)
        rows = [
            (
                count if count != "all" else f"all ({found['positives']:,})",
                *(_point(curve.get(method, {}).get(count), wide=method == "ours") for method in METHODS),
                found.get("rungs", {}).get(count, "-").replace("_", "-"),
            )
            for count in counts
        ]
        shown.append(
            table(
                f"{name}, as if it were new: AUC by positives it was given",
                ("positives", *METHODS.values(), "rung"),
                rows,
                numeric=("positives", *METHODS.values()),
            )
        )
        at = found.get("break_even")
        shown.append(
            Text(
                f"A model from scratch is as good from {at:,} positives on."
                if at is not None
                else "No model from scratch became as good, with all that there is."
            )
        )
    for kind, policy in (evidence.get("policies") or {}).items():
        steps = ", ".join(
            f"{step['rung'].replace('_', '-')} from {step['from_positives']}" for step in policy
        )
        told = {"met": "were met", "sampled": "are drawn"}[kind]
        shown.append(Text(f"New surfaces whose negatives {told}: {steps} positives.", style="bold"))
    return shown or [Text("No context could be held out: too few contexts, or too few later positives.")]


def in_order_of_positives(count: str) -> float:
    """Sort numbers of positives as they stand in JSON: '0', '10', '100', and 'all' last."""
    return float("inf") if count == "all" else float(count)


def audit_tables(evidence: Mapping[str, Any]) -> list[RenderableType]:
    """The transfer matrix, negative cells in words, remedies, and label families to declare."""
    matrix = evidence.get("audit") or {}
    targets = sorted({target for row in matrix.values() for target in row})
    shown: list[RenderableType] = []
    if matrix:
        rows = [(source, *(_effect(row.get(target)) for target in targets)) for source, row in matrix.items()]
        shown.append(
            table(
                "What a context (row) does to another's AUC (column); * where the 95 % interval excludes 0",
                ("source", *targets),
                rows,
                numeric=targets,
            )
        )
    shown += [Text(f"{line}.") for line in (*evidence.get("negative", ()), *evidence.get("untried", ()))]
    for target, remedy in (evidence.get("remedies") or {}).items():
        told = "helped" if remedy["helped"] else "did not surely help"
        shown.append(
            Text(
                f"{target} without {' and '.join(remedy['left_out'])}: AUC {remedy['auc_before']:.3f} to "
                f"{remedy['auc_after']:.3f} (gain {remedy['low']:+.3f} to {remedy['high']:+.3f}): {told}."
            )
        )
    for pair in evidence.get("related") or ():
        shown.append(
            Text(
                f"Labels of {pair['a']} and {pair['b']} go together (correlation {pair['correlation']:.2f})"
                + ("; declare one family for both." if pair["correlation"] >= 0.5 else ".")
            )
        )
    return shown or [Text("Nothing was audited: it takes two contexts with data.")]


def verdict_tables(evidence: Mapping[str, Any]) -> list[RenderableType]:
    """Ways of learning side by side, the best marked, and a sentence for each context."""
    found = evidence.get("verdict") or {}
    if not found:
        return [Text("No context has later rows of both labels to judge by.")]
    rows = [
        (
            name,
            *(("* " if way == context["best"] else "") + _point(context["methods"].get(way)) for way in WAYS),
        )
        for name, context in found.items()
    ]
    return [
        table(
            "AUC on later, unseen data, every way at one budget; * the best",
            ("context", *WAYS.values()),
            rows,
            numeric=tuple(WAYS.values()),
        ),
        *(Text(f"{name}: {context['line']}") for name, context in found.items()),
    ]


def _point(found: Mapping[str, Any] | None, *, wide: bool = False) -> str:
    if not found or found.get("auc") is None:
        return "-"
    if wide and found.get("low") is not None:
        return _interval({"value": found["auc"], "low": found["low"], "high": found["high"]})
    return f"{found['auc']:.3f}"


def _effect(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['value']:+.3f}{'' if cell['verdict'] == 'neutral' else '*'}"


def _auc(metrics: Mapping[str, Any], candidate: str) -> Mapping[str, float | None]:
    found = metrics.get(candidate, {}).get("auc")
    return found if isinstance(found, Mapping) else {}


def _value(estimate: Mapping[str, float | None]) -> str:
    value = estimate.get("value")
    return "-" if value is None else f"{value:.3f}"


def _interval(estimate: Mapping[str, float | None]) -> str:
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return _value(estimate)
    bounds = "-".join(f"{bound:.3f}".removeprefix("0") for bound in (low, high))
    return f"{_value(estimate)} [{bounds}]"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_short(inner) for inner in value)
    return str(value)


def off_policy_tables(found: Mapping[str, Any]) -> list[RenderableType]:
    """What a served list was worth, what it would be worth greedily, and what the log cannot tell."""
    rows, notes = [], []
    for policy, told in found["policies"].items():
        if told is None:
            champion = found["champion"]
            notes.append(
                "nothing was promoted, so that there is no champion's value"
                if champion is None
                else f"the champion, {champion}, has answered none of these requests"
            )
            continue
        for name, value in told["estimates"].items():
            if name != "logged":
                rows.append((policy, name, _worth(value), _worth(told["gains"][name], "+")))
            elif policy == "greedy":
                rows.append(("as served", "mean", _worth(value), ""))
        notes += [f"{policy}: {warning}" for warning in told["warnings"]]
    title = f"Engagements a served list in {found['context']} [95 % interval]"
    share = found["tried"] / found["slots"]
    return [
        table(title, ("policy", "estimator", "value", "gain"), rows, numeric=("value", "gain")),
        Text(
            f"{found['requests']:,} lists, {found['engaged']:,} engagements, {share:.1%} of the slots tried "
            f"another item than the best; {found['open_requests']:,} are left out: their outcome is open. "
            "A gain is over what the same requests were served."
        ),
        *(Text(f"Note: {note}") for note in notes),
    ]


def _worth(value: Mapping[str, float | None], sign: str = "") -> str:
    if value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:{sign}.4f}"
    return f"{value['value']:{sign}.4f} [{value['low']:{sign}.4f}, {value['high']:{sign}.4f}]"
