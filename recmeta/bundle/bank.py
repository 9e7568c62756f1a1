"""A bank: all experts of one night, exported, with the scale on which stacks weigh them.

    banks/<name>/<source>.onnx      boosted trees of a source, over ``dense`` as rows of that source
    banks/<name>/role-trees.onnx    the newcomer's (no context can bear this name: it has a hyphen)

Like a unit's, a bank's folder is named by its content, so that stacks that keep an older bank share one
copy of it. This module must never fit an expert, nor know who weighs them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from recmeta.artifacts import digest_of, replacing, sha256_of_file
from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.manifest import Bank
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees

_ROLE_TREES = "role-trees.onnx"


def write_bank(
    folder: Path,
    *,
    sources: Sequence[str],
    unit: str,
    trees: Mapping[str, Trees],
    role_trees: Trees | None,
    means: Sequence[float],
    scales: Sequence[float],
    columns: Sequence[str] = (),
) -> tuple[str, Bank]:
    """Put experts into the bundle that is being made in ``folder``.

    Args:
        folder: where the bundle's files are collected.
        sources: contexts with columns of their own, S names; this is the order of the experts.
        unit: name of the network that every expert runs.
        trees: of a source, over dense [n, F]; one without trees is left out, and is the network alone.
        role_trees: the newcomer's, over dense [n, F] as well.
        columns: names of those F columns, for a bank that other sites read; none: all that the bundle has.
        means: of each expert's logit, [S + 1], the newcomer's last.
        scales: likewise, above 0.

    Returns:
        The bank's name, and what the manifest says of it.

    Raises:
        InputError: means, scales, sources and trees do not fit together, or trees cannot be exported.
    """
    try:
        plain = Bank(
            sources=tuple(sources),
            columns=tuple(columns),
            unit=unit,
            means=tuple(means),
            scales=tuple(scales),
            trees={source: f"{source}.onnx" for source in trees},
            role_trees=None if role_trees is None else _ROLE_TREES,
        )
    except ValidationError as error:
        raise InputError(f"cannot write a bank: {error.errors()[0]['msg']}") from error
    experts = {plain.trees[source]: found for source, found in trees.items()}
    if role_trees is not None:
        experts[_ROLE_TREES] = role_trees
    with tempfile.TemporaryDirectory(prefix="recmeta-bank-") as temporary:
        exported = {file: Path(temporary) / file for file in sorted(experts)}
        for file, path in exported.items():
            export_trees(experts[file], path)
        digests = {file: sha256_of_file(path) for file, path in exported.items()}
        name = digest_of(plain.model_dump(mode="json"), digests)[:12]
        for file, path in exported.items():
            with replacing(folder / "banks" / name / file) as copied:
                shutil.copyfile(path, copied)
    paths = {source: f"banks/{name}/{file}" for source, file in plain.trees.items()}
    own = None if role_trees is None else f"banks/{name}/{_ROLE_TREES}"
    return name, plain.model_copy(update={"trees": paths, "role_trees": own})
