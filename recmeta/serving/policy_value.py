"""What a context's served lists earned, and what the ranking would have earned had nothing been tried.

The served log is joined with the events that were ingested since: an item was engaged with where its user
engaged with it in the context within the context's outcome window, by the rule of labels. This module must
never choose what is shown, and must never decide what serves.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from recmeta.contexts import Context, Contexts, ExposureNegatives, parse_duration
from recmeta.errors import InputError, NotFoundError
from recmeta.evaluation.off_policy import CLIP, PolicyValue, evaluate, fit_direct_model
from recmeta.events.schema import known_timestamp
from recmeta.events.store import scan_events
from recmeta.serving.served_log import scan_served
from recmeta.settings import Settings

DAY = timedelta(days=1)
"""Within which an engagement counts where the context declares no window of its own."""

_FOLDS = 5


def value_of_served(
    settings: Settings,
    contexts: Contexts,
    context: str,
    champion: str | None,
    *,
    within: timedelta | str | None = None,
    clip: float = CLIP,
) -> dict[str, Any]:
    """Estimate what one served list is worth in a context: engagements within the window, by request.

    Policies are ``logged`` (what was served), ``greedy`` (each request's bundle, with nothing tried) and
    ``champion`` (the same on requests that this bundle answered; None where there are none). Propensities
    are given the items above, so that whole lists weigh (`off_policy`, slate); the direct model is fitted to
    scores and positions.

    Args:
        settings: of the workspace, whose served log and events are read.
        contexts: as declared.
        context: the surface.
        champion: the bundle that serves now.
        within: how long after serving an engagement counts, a duration or a text such as '30m'; None: the
            context's outcome window, or a day.
        clip: of clipped_ips.

    Raises:
        NotFoundError: the context is not declared, nothing was served in it, or its outcomes are still open.
        InputError: ``within`` is no duration, or ``clip`` is not above 0.
    """
    given = parse_duration(within)
    if given is not None and not (isinstance(given, timedelta) and given > timedelta(0)):
        raise InputError(f"within: expected a duration such as 30m or 1d, found {within!r}")
    if context not in contexts.names:
        raise NotFoundError(f"unknown context {context!r}; declared are {', '.join(contexts.names)}")
    declared = contexts[context]
    window = given or declared.outcome_window or DAY
    shown = scan_served(settings.served_folder).filter(pl.col("context") == context)
    rows = shown.sort("as_of", "request_id", "position").collect()
    if rows.is_empty():
        raise NotFoundError(
            f"nothing was served in {context} yet: {settings.served_folder} holds no list of it"
        )
    known_until = scan_events(settings).select(known_timestamp().max()).collect().item()
    closed = rows.filter(pl.col("as_of") + window <= pl.lit(known_until, dtype=pl.Datetime("us", "UTC")))
    if closed.is_empty():
        told = "no event was ingested" if known_until is None else f"events are known until {known_until}"
        raise NotFoundError(
            f"the outcomes of all {rows['request_id'].n_unique():,} lists of {context} are open: {told}; "
            "ingest what happened since"
        )
    judged = with_engagement(settings, declared, closed, window)
    of_champion = judged.filter(pl.col("bundle").eq_missing(pl.lit(champion, dtype=pl.String)))
    policies = {"greedy": _greedy(judged, clip).as_json(), "champion": None}
    if not of_champion.is_empty():
        policies["champion"] = _greedy(of_champion, clip).as_json()
    first, last = judged["as_of"].min(), judged["as_of"].max()
    assert isinstance(first, datetime) and isinstance(last, datetime)  # noqa: S101  (there are rows)
    return {
        "context": context,
        "within_seconds": window.total_seconds(),
        "from": first.isoformat(),
        "to": last.isoformat(),
        "requests": judged["request_id"].n_unique(),
        "open_requests": rows["request_id"].n_unique() - judged["request_id"].n_unique(),
        "slots": judged.height,
        "tried": int((~judged["greedy"]).sum()),
        "engaged": int(judged["engaged"].sum()),
        "bundles": judged["bundle"].unique().sort().to_list(),
        "champion": champion,
        "policies": policies,
    }


def with_engagement(
    settings: Settings, context: Context, rows: pl.DataFrame, window: timedelta
) -> pl.DataFrame:
    """Add ``engaged`` to rows of the served log: whether their user engaged with the item in time.

    As in labels: from the list's instant on, until before the window's end, and where the context follows
    another one's exposure at its end, too. One engagement counts for every list that it answers.
    """
    outcomes = (
        scan_events(settings, rows["as_of"].min())  # type: ignore[arg-type]
        .filter(pl.col("context") == context.name, pl.col("label") == 1)
        .select("user_id", "item_id", outcome="event_timestamp")
    )
    delay = pl.col("outcome") - pl.col("as_of")
    exposed = isinstance(context.negatives.source, ExposureNegatives)
    numbered = rows.with_row_index("shown")
    engaged = (
        numbered.lazy()
        .select("shown", "user_id", "item_id", "as_of")
        .join(outcomes, on=["user_id", "item_id"])
        .filter(delay >= timedelta(0), delay <= window if exposed else delay < window)
        .select(pl.col("shown").unique())
        .collect()
        .to_series()
    )
    return numbered.with_columns(engaged=pl.col("shown").is_in(engaged.implode())).drop("shown")


def _greedy(rows: pl.DataFrame, clip: float) -> PolicyValue:
    reward = rows["engaged"].to_numpy().astype(np.float64)
    user = rows["user_id"].to_numpy()
    model: dict[str, Any] = {}
    if rows["user_id"].n_unique() >= _FOLDS:
        features = rows.select("score", "position").to_numpy().astype(np.float64)
        best = rows.select("best_score", "position").to_numpy().astype(np.float64)[:, None, :]
        predicted, baseline = fit_direct_model(
            features, reward, best, np.ones((len(rows), 1)), user=user, folds=_FOLDS
        )
        model = {"predicted": predicted, "baseline": baseline}
    return evaluate(
        reward,
        rows["propensity"].to_numpy(),
        rows["greedy"].to_numpy().astype(np.float64),
        request=rows["request_id"].to_numpy(),
        position=rows["position"].to_numpy(),
        user=user,
        weighting="slate",
        clip=clip,
        **model,
    )
