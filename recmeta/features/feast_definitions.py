"""Feast's objects from contexts.yaml: entities, one view a kind and context, one service a context.

A view has one packed field, because Feast's cost is that of each scalar, not of the bytes. There are no
on-demand views and no functions in the registry. `feature_repo/` gives the same objects to Feast's own
command line. This module must never read or write a value.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.errors import InputError
from recmeta.features.feast_layout import PROJECT
from recmeta.features.partitions import MET, View, views_of
from recmeta.features.schema import HISTORY_VIEW, ITEMS, KINDS, VALUES, view_name
from recmeta.settings import Settings

KEY_VERSION = 3
"""Feast's serialization of entity keys; the only one that 0.67 still writes."""


def registry_file(settings: Settings) -> Path:
    """Feast's registry of this workspace."""
    return settings.feast_folder / "registry.db"


def online_file(settings: Settings) -> Path:
    """The embedded online store of this workspace."""
    return settings.feast_folder / "online.db"


def repo_config(settings: Settings) -> Any:
    """Feast's configuration of this workspace: offline and online store by the settings.

    Raises:
        InputError: the URL of the PostgreSQL store names no user or no database.
    """
    from feast.repo_config import RegistryConfig, RepoConfig

    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry=RegistryConfig(path=str(registry_file(settings)), cache_ttl_seconds=0),
        online_store=_online_store(settings),
        offline_store={"type": settings.stores.offline},
        entity_key_serialization_version=KEY_VERSION,
        repo_path=settings.feast_folder,
    )


def _online_store(settings: Settings) -> dict[str, Any]:
    if settings.stores.online == "sqlite":
        return {"type": "sqlite", "path": str(online_file(settings))}
    if settings.stores.online == "redis":
        # Whether a row is newer is decided by us: Feast would refuse a corrected row of the same instant.
        return {"type": "redis", "connection_string": settings.stores.redis, "skip_dedup": True}
    url = urlsplit(settings.stores.postgres)
    options = dict(part.split("=", 1) for part in url.query.split("&") if "=" in part)
    database = url.path.lstrip("/")
    if url.scheme not in {"postgresql", "postgres"} or not database:
        raise InputError(
            "stores.postgres: expected postgresql://user:password@host:port/database, "
            f"found scheme {url.scheme!r} and database {database!r}"
        )
    return {
        "type": "postgres",
        "host": url.hostname or "127.0.0.1",
        "port": url.port or 5432,
        "database": unquote(database),
        "user": unquote(url.username or "postgres"),
        "password": unquote(url.password or ""),
        "sslmode": options.get("sslmode", "prefer"),
    }


def store_identity(settings: Settings) -> str:
    """A digest that changes with the online store: another store holds nothing of what was written here."""
    return artifacts.digest_of(_online_store(settings))


def definitions(settings: Settings, contexts: Contexts) -> list[Any]:
    """All Feast objects of the declared contexts: entities, views, services, in this order."""
    from feast import Entity, FeatureService, ValueType

    entities = {
        key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in ("user_id", "item_id")
    }
    views = {view.name: _feature_view(settings, view, entities) for view in (*views_of(contexts), MET)}
    services = [
        FeatureService(
            name=context.name,
            description=context.description,
            features=[views[name] for name in service_views(contexts, context.name)],
        )
        for context in contexts.declared()
    ]
    return [*entities.values(), *views.values(), *services]


def service_views(contexts: Contexts, context: str) -> tuple[str, ...]:
    """Names of the views that rows of a context are made of, the history first."""
    sources = contexts.feature_sources(context)
    return (HISTORY_VIEW, *(view_name(kind, source) for source in sources for kind in KINDS))


def _feature_view(settings: Settings, view: View, entities: dict[str, Any]) -> Any:
    from feast import FeatureView, Field
    from feast.types import Array, Bytes, Float32, String

    packed = {VALUES: Array(Float32), ITEMS: Array(String)}.get(view.column, Bytes)
    return FeatureView(
        name=view.name,
        entities=[entities[key] for key in view.keys],
        schema=[*(Field(name=key, dtype=String) for key in view.keys), Field(name=view.column, dtype=packed)],
        source=None if view is MET else _source(settings, view),  # what is online only has no files
        ttl=timedelta(0),  # no row expires: a counter fades by itself
    )


def _source(settings: Settings, view: View) -> Any:
    files = str(settings.features_folder / view.name / "*.parquet")
    common = {
        "name": view.name,
        "timestamp_field": "event_timestamp",
        "created_timestamp_column": "created_timestamp",
    }
    if settings.stores.offline == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        return SparkSource(path=files, file_format="parquet", **common)
    from feast import FileSource
    from feast.data_format import ParquetFormat

    return FileSource(path=files, file_format=ParquetFormat(), **common)
