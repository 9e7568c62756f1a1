"""One typed settings object: paths, stores, seeds, and every number that decides something.

Values come, in this order, from arguments, from the environment (``RECMETA_TRAINING__SEED=7``),
from ``recmeta.toml`` in the workspace, and from the defaults below. Each number that decides
something says where it comes from.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from recmeta.contexts import Duration
from recmeta.errors import InputError


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EventSettings(_Group):
    """What is taken from a log, and what is refused."""

    quarantine_share: float = Field(
        default=0.01, ge=0, le=1, description="ingest fails when more than this share of rows is refused"
    )
    lateness: Duration = Field(
        default=timedelta(days=7),
        description="rows that were known longer than this before the last finished day are refused: "
        "each late day costs the recomputation of every day since",
    )


class FeatureSettings(_Group):
    """Counters fade by half over each of these; a day, a week and four weeks cover the usual rhythms."""

    half_lives: tuple[Duration, ...] = (timedelta(days=1), timedelta(days=7), timedelta(days=28))
    history_length: int = Field(default=20, ge=1, le=200)


class StoreSettings(_Group):
    """Where Feast keeps features. The defaults are embedded: no service is needed."""

    offline: Literal["duckdb", "spark", "ray"] = "duckdb"
    online: Literal["sqlite", "redis", "postgres"] = "sqlite"
    redis: str = Field(default="127.0.0.1:6379,db=0", description="host:port,db=n")
    postgres: str = Field(
        default="postgresql://127.0.0.1:5432/recmeta", description="URL of the online store's database"
    )
    point_in_time: Literal["polars", "feast"] = Field(
        default="polars", description="who joins features to training rows; both give the same values"
    )


class SplitSettings(_Group):
    """Later data validates, the latest data tests; rows whose label was open at a border are purged."""

    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.2, gt=0, lt=0.5)


class TrainingSettings(_Group):
    """How the shared model is meta-trained, and how adapters are fitted to it."""

    seed: int = 0
    threads: int = Field(
        default=1,
        ge=1,
        description="fixed, because it changes the last bit of a sum; one, because two that wait for each "
        "other on busy cores were measured five times slower",
    )
    accelerator: Literal["cpu", "gpu"] = Field(
        default="cpu",
        exclude_if=lambda chosen: chosen == "cpu",  # nights on the CPU keep their names
        description="where the shared model and adapters are learnt: gpu is one CUDA device, and pays for "
        "large models and many contexts only (benchmarks/gpu.md); results depend on it in their last digits",
    )
    meta_learner: str = Field(
        default="joint", description="how weights are learnt over tasks: a name in recmeta.meta.registry"
    )
    backbone: str = Field(
        default="mlp",
        description="what stands between inputs and head: a name in recmeta.models.backbones.registry",
    )
    outer: str = Field(
        default="per_task",
        description="how the losses of contexts become one step: a name in recmeta.meta.outer.registry; any "
        "but this one, the plain mean over tasks, puts every context into every meta-batch",
    )
    fast: Literal["adapter", "head", "dense"] = Field(
        default="adapter",
        description="what the inner loop moves; all dense weights cost about twice the adapter, and were no "
        "better in our study",
    )
    embedding_size: int = Field(default=16, ge=1)
    hidden: tuple[int, ...] = (128, 64)
    adapter_rank: int = Field(default=4, ge=1)
    tasks: int = Field(default=8, ge=1, description="tasks a meta-batch")
    support: int = Field(default=64, ge=1)
    query: int = Field(default=64, ge=1)
    rows_per_task: int = Field(
        default=128,
        ge=1,
        description="rows of a task without inner steps: no support, larger batches",
    )
    narrow_to: Literal["nothing", "categories"] = Field(
        default="nothing",
        description="draw each task from a random half of its context's item categories; our study found "
        "tasks made of item clusters or unions of labels harmful",
    )
    inner_steps: int = Field(default=3, ge=0, description="three steps of a tenth worked in our study")
    inner_rate: float = Field(default=0.1, gt=0)
    step_weights: tuple[float, ...] = Field(
        default=(),
        description="share of the loss after each inner step; none: the last alone, as MAML was published",
    )
    second_order: bool = Field(
        default=True, description="for learners that can do without; first order was worse in our study"
    )
    proximal: float = Field(
        default=1.0,
        gt=0,
        description="pull back to where a task started, in implicit MAML; within the range that its authors "
        "(Rajeswaran et al. 2019) use, as we remember it",
    )
    conjugate_steps: int = Field(
        default=5, ge=1, description="of implicit MAML's conjugate gradient; its authors' number"
    )
    learner_rate: float = Field(
        default=1e-3,
        gt=0,
        description="of what a meta-learner or an outer aggregation learns of its own; Adam's usual rate",
    )
    rate: float = Field(default=2e-3, gt=0)
    table_rate: float = Field(
        default=2e-4,
        gt=0,
        description="of embedding tables (sparse Adam); ten times faster they only memorise",
    )
    weight_decay: float = Field(default=1e-2, ge=0, description="of dense layers, decoupled (AdamW)")
    table_decay: float = Field(default=1e-4, ge=0, description="L2 on the vectors that a batch looks up")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of hidden units left out in training")
    average: float = Field(
        default=0.98, ge=0, lt=1, description="decay of the running mean of weights that is judged and kept"
    )
    unknown_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of ids hidden in training: unknown is ordinary",
    )
    newcomer_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of tasks in which a context pretends to be new, with a thinned log of its own; 0, "
        "because a quarter cost known contexts 1 % of their log-loss (Deskdrop, validation rows, two seeds): "
        "a network of its own reads newcomers, see transfer",
    )
    propensity_clip: float | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda clip: clip is None,  # nights that do without keep their names
        description="rows weigh 1 / propensity, at most this, and 1 on the mean of their context: learn what "
        "would happen if all were shown alike; off, because it helped nowhere on the simulator's feed, not "
        "even on days on which it shows all alike (two seeds)",
    )
    max_steps: int = Field(default=1500, ge=1)
    warm_steps: int = Field(default=150, ge=1, description="steps of a night that starts from the last one's")
    check_every: int = Field(default=50, ge=1, description="steps between two looks at later data")
    patience: int = Field(default=6, ge=1, description="looks without gain before training stops")
    adapter_fit: Literal["proximal", "domain_regularization", "meta_learner"] = Field(
        default="proximal",
        description="fitted by Adam with a pull to the shared model; the same with other contexts as helpers "
        "(MAMDR); or by the meta-learner's own adaptation",
    )
    adapt_steps: int = Field(default=100, ge=1)
    adapt_rate: float = Field(default=1e-2, gt=0)
    adapt_proximal: float = Field(default=30.0, ge=0, description="L2 to the zero adapter, divided by rows")
    adapt_chunk: int = Field(default=64, ge=1, description="contexts in one batched program, one mapped task")


class TransferSettings(_Group):
    """What other contexts know of a surface that is new, and the evidence about it."""

    enabled: bool = Field(
        default=True,
        description="without it a night is shorter, and `recmeta onboard` has nothing to stand on",
    )
    newcomer_share: float = Field(
        default=0.5, ge=0, le=1, description="of the network that reads newcomers; as in training"
    )
    steps: int = Field(default=400, ge=1, description="of that network, and of those that miss a family")
    rows: int = Field(
        default=40_000,
        ge=100,
        description="of a context, at the most, evenly over time, from which the bank learns",
    )
    shots: tuple[int, ...] = Field(
        default=(5, 10, 30, 100, 300), description="positives that a held-out context is given"
    )
    draws: int = Field(
        default=3, ge=1, description="of those positives; more narrow intervals, and a night grows longer"
    )
    fine_tune_draws: int = Field(
        default=1, ge=1, description="of those, for the fine-tuned rival: it takes most of the time"
    )
    negatives_per_positive: int = Field(default=8, ge=1, description="that a held-out context is given too")
    precisions: tuple[float, ...] = Field(
        default=(10.0, 30.0, 100.0),
        description="of the stack's prior, among which the evidence chooses: how many rows it weighs, about",
    )
    newcomer_weights: tuple[float, ...] = Field(
        default=(0.0, 0.2, 0.4), description="of the newcomer's expert before any data, likewise"
    )
    most_harm: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of draws in which a rung may fall below zero-shot by more than gate.tolerance "
        "without counting against it",
    )
    residual_rounds: int = Field(default=100, ge=1, description="of the boosted rung, over the stack")
    residual_rate: float = Field(default=0.03, gt=0)
    residual_leaves: int = Field(default=7, ge=2)
    refit_growth: float = Field(
        default=0.1,
        ge=0,
        description="evidence and network of an earlier night are taken along until rows grew by this share",
    )

    @model_validator(mode="after")
    def _ascending(self) -> TransferSettings:
        if list(self.shots) != sorted(set(self.shots)) or min(self.shots, default=1) < 1:
            raise ValueError(f"shots: expected ascending numbers from 1, found {list(self.shots)}")
        return self


class TreeSettings(_Group):
    """The LightGBM challenger."""

    rounds: int = Field(default=300, ge=1)
    leaves: int = Field(default=15, ge=2)
    rate: float = Field(default=0.05, gt=0)
    min_rows: int = Field(default=30, ge=1, description="rows a leaf at the least")
    refit_growth: float = Field(
        default=0.02,
        ge=0,
        description="trees of an earlier night are taken along until the training rows have grown by this "
        "share: one more day of a year is 0.3 % and changes them by less than noise; 0 fits them every night",
    )
    patience: int = Field(default=30, ge=1)


class RetrievalSettings(_Group):
    """The towers that say which items of a large catalogue are worth scoring; see docs/serving.md.

    Sizes, not seconds, bound what fitting takes, so that a night has the same bytes on any machine.
    """

    enabled: bool = Field(default=True, description="without it the latest items are scored, as many as fit")
    least_items: int = Field(
        default=2000,
        ge=1,
        description="towers are fitted where more items than this are alive at the night's end: below, "
        "serving.most_candidates leaves nothing to choose",
    )
    alive_within: Duration = Field(
        default=timedelta(days=14),
        description="which items that are, and what the towers are fitted on: as serving.alive_within",
    )
    vector_size: int = Field(default=64, ge=1, le=1024, description="numbers of an item's vector")
    hidden: int = Field(default=128, ge=1, description="units of each tower's hidden layer")
    snapshots: int = Field(
        default=4, ge=1, description="instants, a day apart, as of which users are crossed with items"
    )
    most_users: int = Field(
        default=4000, ge=20, description="who acted lately, at the most, of each snapshot; evenly drawn"
    )
    most_sources: int = Field(
        default=32, ge=1, description="contexts whose counters of items are read; those with the most rows"
    )
    rounds: int = Field(
        default=3,
        ge=1,
        description="after the first, half of the items are those that the towers so far think best",
    )
    lists: int = Field(default=64, ge=1, description="of each round: users of one context, all asked alike")
    users_per_list: int = Field(default=48, ge=1)
    items_per_list: int = Field(default=512, ge=2)
    steps: int = Field(default=400, ge=1, description="of each round")
    lists_per_step: int = Field(default=4, ge=1)
    rate: float = Field(default=3e-3, gt=0, description="of Adam, falling to zero over all steps")
    weight_decay: float = Field(default=1e-2, ge=0, description="decoupled, as in training")
    centred: float = Field(
        default=0.1, ge=0, description="weight of the square error of logits beside that of their order"
    )
    unknown_share: float = Field(
        default=0.2, ge=0, lt=1, description="share of contexts, users and items hidden, as in training"
    )
    proposed: int = Field(
        default=2000,
        ge=5,
        description="items among which what serves best is looked for, when towers are judged and lists "
        "drawn; as serving.most_candidates",
    )
    latest_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="of the candidates, the most recently touched even so: lists that prefer what is fresh "
        "find it there; a quarter cost the best 100 of 2,000 less than half a percent",
    )
    gated: bool = Field(
        default=True,
        description="without, towers choose on every surface, whatever later engagements say: for those who "
        "know that their log is of what was the latest",
    )
    judged_within: Duration = Field(
        default=timedelta(days=7),
        description="of the night's end: later engagements of these days say where retrieval serves; fewer "
        "where the test rows span fewer",
    )
    judged_users: int = Field(default=200, ge=2, description="of each context, at the most, likewise")


class GateSettings(_Group):
    """What a challenger must show on later, unseen data before it serves."""

    resamples: int = Field(default=1000, ge=100, description="bootstrap resamples, by user")
    confidence: float = Field(default=0.9, gt=0.5, lt=1, description="one-sided, of every comparison")
    min_positives: int = Field(default=30, ge=1, description="below this a test has no power to decide")
    min_users: int = Field(default=10, ge=2, description="with fewer the bootstrap draws the same few again")
    tolerance: float = Field(
        default=0.005,
        ge=0,
        description="differences of AUC, and of shares of later engagements, below this are noise",
    )
    parity: float = Field(default=1e-4, gt=0, description="largest logit difference, torch to ONNX Runtime")


class ContextExploration(_Group):
    """How a context's lists may differ from its ranking. Without a budget they never do."""

    strategy: Literal["epsilon_greedy", "plackett_luce"] = Field(
        default="epsilon_greedy",
        description="now and then any of the best; or a draw by scores with noise, the Thompson-style one",
    )
    epsilon: float = Field(default=0.1, gt=0, le=1, description="how often a slot holds any of the pool")
    temperature: float = Field(default=0.5, gt=0, description="of plackett_luce, in log odds")
    pool: int = Field(default=50, ge=1, description="of how many of the best items a slot may hold any")
    budget: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a day's slots, in each process, that may hold anything but the best",
    )


Key = Annotated[SecretStr, Field(min_length=16)]
"""A key shorter than this can be guessed at the rate that a server answers."""


class ServingSettings(_Group):
    """What a recommender considers, and what the server accepts."""

    alive_within: Duration = Field(
        default=timedelta(days=14),
        description="an item that nobody touched for longer is not recommended; and where the whole log is "
        "older, answers are given as of its end",
    )
    most_candidates: int = Field(
        default=2000,
        ge=1,
        description="scored for one answer; where more are alive, those that the bundle's towers think "
        "best, or the most recently touched where it has none",
    )
    retrieval: Literal["exact", "ann", "off"] = Field(
        default="exact",
        description="how the towers of a bundle choose among more items: by all inner products, by an "
        "approximate index (the extra `ann`), or not at all",
    )
    most_items: int = Field(default=1000, ge=1, description="given to rank, or asked of recommend, at once")
    largest_body: int = Field(
        default=1 << 20, ge=1024, description="bytes; 1000 ids of 256 bytes fit four times over"
    )
    refresh_seconds: float = Field(
        default=2.0, gt=0, description="how soon a running server sees a newly promoted bundle"
    )
    items_seconds: float = Field(
        default=30.0,
        gt=0,
        description="how soon a server sees what other processes recorded of items; its own at once",
    )
    store_timeout: float = Field(
        default=0.05,
        gt=0,
        description="seconds that Redis may take for a user; then the answer goes out without: a whole "
        "answer takes one or two thousandths",
    )
    store_rest: float = Field(
        default=1.0, ge=0, description="seconds for which a store that failed is not asked again"
    )
    adapters_in_memory: int = Field(
        default=4096, ge=1, description="some 30 kB each; others are loaded when asked for, in a millisecond"
    )
    item_columns_megabytes: int = Field(
        default=256,
        ge=0,
        description="of items' columns, and as many of what networks make of them, kept for contexts that "
        "are asked for often",
    )
    keys: bool = Field(
        default=True,
        description="without them whoever reaches the address may do all; `recmeta serve --no-keys` says so",
    )
    read_key: Key | None = Field(
        default=None, description="for calls that change nothing; none: the one in keys.json"
    )
    admin_key: Key | None = Field(default=None, description="for every call; none: the one in keys.json")
    shadow: str | None = Field(
        default=None, description="version of a bundle that scores the same traffic, for comparison alone"
    )
    shadow_share: float = Field(
        default=0.1, ge=0, le=1, description="of the answers, which the shadow scores: it takes as long"
    )
    requests_per_second: float | None = Field(
        default=None, gt=0, description="of one client with one key, in each worker; none: no limit"
    )
    most_events: int = Field(default=1000, ge=1, description="live interactions sent at once")
    event_clock_ahead: Duration = Field(
        default=timedelta(minutes=5),
        description="an event from further in the future is refused: clocks of servers agree within seconds",
    )
    keep_event_ids: Duration = Field(
        default=timedelta(days=30), description="how long an event sent again is known to be a repetition"
    )
    largest_upload: int = Field(
        default=20_000_000,
        ge=1024,
        description="bytes of a file to onboard from: some 200,000 rows of CSV",
    )
    traces: bool = Field(default=False, description="spans for OpenTelemetry; needs the extra `traces`")
    request_log: Path | None = Field(
        default=None, description="file for one JSON line a request; `-`: standard error; none: no lines"
    )
    log_salt: SecretStr | None = Field(
        default=None,
        description="of users in that log; with one of your own, a user looks alike in every process",
    )
    exploration: dict[str, ContextExploration] = Field(
        default_factory=dict, description="by context; one that is not named is never explored"
    )


class Settings(BaseSettings):
    """All settings of one workspace."""

    model_config = SettingsConfigDict(
        env_prefix="RECMETA_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    workspace: Path
    events: EventSettings = EventSettings()
    features: FeatureSettings = FeatureSettings()
    stores: StoreSettings = StoreSettings()
    split: SplitSettings = SplitSettings()
    training: TrainingSettings = TrainingSettings()
    transfer: TransferSettings = TransferSettings()
    trees: TreeSettings = TreeSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    gate: GateSettings = GateSettings()
    serving: ServingSettings = ServingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the workspace's recmeta.toml."""
        workspace = init_settings.init_kwargs["workspace"]  # type: ignore[attr-defined]
        toml = TomlConfigSettingsSource(settings_cls, Path(workspace) / "recmeta.toml")
        return init_settings, env_settings, toml

    @property
    def contexts_file(self) -> Path:
        """The declared contexts."""
        return self.workspace / "contexts.yaml"

    @property
    def events_folder(self) -> Path:
        """Canonical interactions, a folder for each day on which they became known."""
        return self.workspace / "events"

    @property
    def items_file(self) -> Path:
        """Item attributes: item_id, categories."""
        return self.workspace / "items.parquet"

    @property
    def quarantine_folder(self) -> Path:
        """Refused rows with the rule that refused them."""
        return self.workspace / "quarantine"

    @property
    def shadow_folder(self) -> Path:
        """What a challenger made of the champion's traffic: a folder a challenger, a file a process."""
        return self.workspace / "shadow"

    @property
    def ledger_folder(self) -> Path:
        """Finished intervals of each stage."""
        return self.workspace / "ledger"

    @property
    def labels_folder(self) -> Path:
        """Labelled rows, a folder for each day."""
        return self.workspace / "labels"

    @property
    def rows_folder(self) -> Path:
        """Training rows: one folder a context, one file a month."""
        return self.workspace / "rows"

    @property
    def features_folder(self) -> Path:
        """Feature rows: one folder a view, one file a month; below carry/, what each month starts from."""
        return self.workspace / "features"

    @property
    def feast_folder(self) -> Path:
        """Feast's registry and its embedded online store."""
        return self.workspace / "feast"

    @property
    def served_folder(self) -> Path:
        """Lists that were served, with propensities: a folder a day, whole files."""
        return self.workspace / "served"

    @property
    def runs_folder(self) -> Path:
        """What each night made on its way to a bundle."""
        return self.workspace / "runs"

    @property
    def serving_folder(self) -> Path:
        """What the workers of a server share: ids of recorded events, onboardings under way."""
        return self.workspace / "serving"

    @property
    def bundles_folder(self) -> Path:
        """Published bundles and the pointer to the champion."""
        return self.workspace / "bundles"


def load_settings(workspace: Path | str, **overrides: Any) -> Settings:
    """Return the settings of ``workspace``.

    Raises:
        InputError: recmeta.toml, the environment or an override holds a name or value that is not known.
    """
    try:
        return Settings(workspace=Path(workspace).resolve(), **overrides)
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']} (found {_shown(fault)})"
            for fault in error.errors()
        )
        raise InputError(f"settings of {workspace}: {details}") from error


def _shown(fault: ErrorDetails) -> str:
    secret = fault["loc"] and str(fault["loc"][-1]) in {"read_key", "admin_key", "log_salt"}
    return "one that is not shown" if secret else repr(fault["input"])
