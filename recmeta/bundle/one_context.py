"""A bundle that differs from its parent in one context: how a surface comes, without touching another.

Every file and entry of the others stays byte for byte, so that their scores cannot change. This module
must never know how the one context was learnt, or whether it deserves to serve.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from recmeta.artifacts import replacing
from recmeta.bundle.manifest import ContextEntry, Manifest
from recmeta.bundle.store import Bundle
from recmeta.contexts import Contexts
from recmeta.errors import InputError
from recmeta.features.assembly import FeatureSpace


def with_context(
    parent: Bundle,
    folder: Path,
    name: str,
    declarations: Contexts,
    entry: ContextEntry,
    trees: Path | None,
) -> Manifest:
    """Collect in ``folder`` the files of ``parent`` with one context added or changed.

    What only the context's former entry named is left behind; units, banks and everything else stay.

    Args:
        parent: the bundle that serves.
        folder: where the new bundle's files are collected.
        name: the one context.
        declarations: all contexts; those beside ``name`` as the parent has them.
        entry: what ``name`` serves from now on.
        trees: the exported graph that ``entry.trees`` names; None where the entry names none, or one
            that the parent holds.

    Returns:
        The new manifest, with the parent's version as its parent and the parent's night as its night;
        `BundleStore.publish` adds the checksums.

    Raises:
        InputError: another context's declaration differs, or its dense rows would (the layout changes);
            the entry refers to what the parent does not hold; trees without a name for them, or with one
            that another context uses.
    """
    manifest = parent.manifest
    _check_others(manifest, name, declarations)
    try:
        made = Manifest.model_validate(
            {
                **manifest.model_dump(),
                "parent": parent.version,
                "declarations": declarations.model_dump(),
                "contexts": {**manifest.model_dump()["contexts"], name: entry.model_dump()},
                "files": {},
            }
        )
    except ValidationError as error:
        raise InputError(
            f"context {name!r} does not fit {parent.version}: {error.errors()[0]['msg']}"
        ) from error
    if trees is not None and entry.trees is None:
        raise InputError(f"context {name!r}: found trees, and an entry that names no file for them")
    own = set() if trees is None or entry.trees is None else {entry.trees}
    others = manifest.model_copy(
        update={"contexts": {other: kept for other, kept in manifest.contexts.items() if other != name}}
    )
    taken = own & others.wanted_files()
    if taken:
        raise InputError(f"context {name!r}: {', '.join(taken)} is a file of the rest of {parent.version}")
    missing = sorted(made.wanted_files() - set(manifest.files) - own)
    if missing:
        raise InputError(f"context {name!r}: bundle {parent.version} holds no file {', '.join(missing)}")
    left_behind = manifest.wanted_files() - made.wanted_files()
    for path in sorted(set(manifest.files) - left_behind - own):
        with replacing(folder / path) as temporary:
            shutil.copyfile(parent.file(path), temporary)
    if trees is not None and entry.trees is not None:
        with replacing(folder / entry.trees) as temporary:
            shutil.copyfile(trees, temporary)
    return made


def _check_others(manifest: Manifest, name: str, declarations: Contexts) -> None:
    """Refuse declarations with which another context would be declared, or see its rows, otherwise."""
    before = {kept.name: kept for kept in manifest.declarations.declared() if kept.name != name}
    after = {kept.name: kept for kept in declarations.declared() if kept.name != name}
    differing = sorted(
        other for other in before.keys() | after.keys() if before.get(other) != after.get(other)
    )
    if differing:
        raise InputError(f"expected only {name!r} to be declared otherwise, found {', '.join(differing)} too")
    features = manifest.features
    space = FeatureSpace(declarations, features.half_lives, features.history_length)
    if space.digest != features.digest:
        raise InputError(
            f"context {name!r}: its declaration changes the columns that every context reads; "
            "declare it with `columns: roles`, or let a night learn it"
        )
