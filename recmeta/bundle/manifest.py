"""The manifest of a bundle: what it holds, what each context serves and why, every file's checksum.

There is no wall clock, machine or path in it: two nights over the same inputs write the same bytes, and
so have the same version. This module knows the declaration only; it must never open an ONNX graph.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from recmeta.artifacts import to_json
from recmeta.bundle.graph import GRAPH, ITEMS_GRAPH
from recmeta.contexts import Contexts, Duration
from recmeta.errors import ContextError, IntegrityError
from recmeta.models.calibration import Calibration

MANIFEST_NAME = "manifest.json"
ITEM_TOWER, USER_TOWER = "towers/item.onnx", "towers/user.onnx"
VERSION = re.compile(r"^\d{8}-[0-9a-f]{12}$")

Serves = Literal["shared", "adapter", "trees", "blend", "stack", "popularity", "nothing"]
Part = Literal["network", "trees", "popularity"]
Rung = Literal["zero_shot", "stack", "boosted"]

_NEEDS_NETWORK = {"shared", "adapter", "blend"}
_NEEDS_TREES = {"trees", "blend"}
_PARTS: dict[str, set[Part]] = {
    "shared": {"network"},
    "adapter": {"network"},
    "trees": {"trees"},
    "blend": {"network", "trees"},
    "stack": set(),
    "popularity": {"popularity"},
    "nothing": set(),
}


def check_file_path(path: str) -> str:
    """Return ``path`` where it names a file inside a bundle's folder, in the one way to write it.

    Raises:
        ValueError: it is absolute, leaves the folder, or could be written more shortly.
    """
    parts = PurePosixPath(path).parts
    plain = parts and str(PurePosixPath(path)) == path and not path.startswith("/") and ".." not in parts
    if not plain or "\\" in path or "\0" in path or path == MANIFEST_NAME:
        raise ValueError(f"expected the relative path of a file inside the bundle, found {path!r}")
    return path


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("expected a time with a zone, found one without")
    return value.astimezone(UTC)


FilePath = Annotated[str, AfterValidator(check_file_path)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Instant = Annotated[datetime, AfterValidator(_utc)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    """What a file's bytes have to be."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Features(_Entry):
    """The columns of ``dense``, in order, and what is needed to compute them."""

    names: tuple[str, ...] = Field(min_length=1)
    digest: str = Field(min_length=1)
    half_lives: tuple[Duration, ...] = Field(min_length=1)
    history_length: int = Field(ge=1)
    popularity: str = Field(description="the column that popularity ranks by")

    @model_validator(mode="after")
    def _popularity_is_a_column(self) -> Features:
        if self.popularity not in self.names:
            raise ValueError(f"popularity names {self.popularity!r}, which is no column")
        return self

    @property
    def popularity_index(self) -> int:
        """Where `popularity` stands in a row of ``dense``."""
        return self.names.index(self.popularity)


class Unit(_Entry):
    """One exported network, ``units/<name>/``: its graph, its vocabularies, its order of contexts."""

    contexts: tuple[str, ...] = Field(min_length=1, description="names in order of index, which starts at 1")
    users: int = Field(ge=0)
    items: int = Field(ge=0)
    categories: int = Field(ge=0)

    def context_index(self, name: str) -> int:
        """The index of a context in the graph's input ``context``; 0 (unknown) where it has none."""
        return self.contexts.index(name) + 1 if name in self.contexts else 0


class Bank(_Entry):
    """All experts of one night, and the scale on which a stack weighs them.

    Its columns are in the order (*sources, newcomer): a source's expert sees a row as one of that
    source, the newcomer's sees it as one of a context that nobody knows. An expert is the mean of the
    logits of its trees and of the network, and the network's alone where it has no trees.

    A bank that came from another site reads `columns` by name, and each row as it stands; its sources are
    that site's contexts.
    """

    sources: tuple[str, ...] = Field(
        min_length=1, description="contexts with columns of their own; those of another site where it came so"
    )
    columns: tuple[str, ...] = Field(
        default=(),
        description="what every expert reads, by name; one that rows do not have is zero. None: all columns",
        exclude_if=lambda columns: not columns,
    )
    unit: str = Field(description="the network of all experts, a name in `units`")
    means: tuple[Number, ...] = Field(description="of each expert's logit, the newcomer's last")
    scales: tuple[Annotated[Number, Field(gt=0)], ...] = Field(description="likewise; a logit is divided by")
    trees: dict[str, FilePath] = Field(
        default_factory=dict, description="of a source; where one is absent, its expert is the network alone"
    )
    role_trees: FilePath | None = Field(default=None, description="the newcomer's")

    def scaled(self, experts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Experts' logits [n, width] on the scale on which a stack weighs them."""
        found: npt.NDArray[np.float64] = (experts - np.array(self.means)) / np.array(self.scales)
        return found

    @model_validator(mode="after")
    def _columns_agree(self) -> Bank:
        for kind, names in (("sources", self.sources), ("columns", self.columns)):
            if len(set(names)) != len(names):
                raise ValueError(f"{kind}: expected each once, found {', '.join(names)}")
        for name, numbers in (("means", self.means), ("scales", self.scales)):
            if len(numbers) != self.width:
                raise ValueError(
                    f"{name}: expected {self.width} numbers (of {len(self.sources)} sources and the "
                    f"newcomer), found {len(numbers)}"
                )
        surplus = sorted(set(self.trees) - set(self.sources))
        if surplus:
            raise ValueError(f"trees: {', '.join(surplus)} is no source")
        return self

    @property
    def width(self) -> int:
        """How many experts there are: the sources and the newcomer."""
        return len(self.sources) + 1

    def wanted_files(self) -> frozenset[str]:
        """Its trees; the files of its network are the unit's."""
        return frozenset((*self.trees.values(), *([] if self.role_trees is None else [self.role_trees])))


class Stack(_Entry):
    """How a context weighs the experts of a bank.

    ``intercept + sum(weight * (expert - mean) / scale)``, and, on the rung 'boosted', the logit of the
    context's own residual trees as it is.
    """

    bank: str
    weights: tuple[Number, ...] = Field(description="of the bank's experts, in its order")
    intercept: Number
    rung: Rung
    positives: int = Field(ge=0, description="of the context, from which the weights were learnt")
    rows: int = Field(ge=0)


class ContextEntry(_Entry):
    """What one context serves."""

    serves: Serves
    reason: str
    unit: str | None = Field(default=None, description="a name in `units`; its files are in units/<name>/")
    adapter: FilePath | None = None
    trees: FilePath | None = Field(
        default=None, description="over ``dense``; of a boosted stack: what the stack leaves unexplained"
    )
    stack: Stack | None = None
    calibration: dict[Part, Calibration] = Field(
        default_factory=dict,
        description="of the network (with its adapter, where it has one), trees, popularity",
    )
    tree_weight: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="of a blend: the share of the trees' calibrated logit; the rest is the network's",
    )
    kept_from: str | None = Field(
        default=None,
        description="the version whose files still serve this context; none: they are this one's",
    )
    metrics: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_what_it_serves(self) -> ContextEntry:
        stacked = self.serves == "stack"
        boosted = stacked and self.stack is not None and self.stack.rung == "boosted"
        needed = {
            "unit": self.serves in _NEEDS_NETWORK and self.unit is None,
            "adapter": self.serves == "adapter" and self.adapter is None,
            "trees": (boosted or self.serves in _NEEDS_TREES) and self.trees is None,
            "stack": stacked and self.stack is None,
        }
        missing = [name for name, lacks in needed.items() if lacks]
        missing += [f"calibration of {part}" for part in sorted(_PARTS[self.serves] - set(self.calibration))]
        if missing:
            raise ValueError(f"serves {self.serves}, which needs {', '.join(missing)}")
        for part, fitted in self.calibration.items():
            if not (math.isfinite(fitted.slope) and math.isfinite(fitted.intercept) and fitted.slope > 0):
                raise ValueError(
                    f"calibration of {part}: expected a slope above 0 and an intercept, found {fitted}"
                )
        return self


class Towers(_Entry):
    """What chooses the items of a large catalogue that are worth scoring: ``towers/item.onnx`` and user.onnx.

    An item's vector is of the counters of `sources`; ids and contexts are numbered as the unit numbers them.
    """

    unit: str = Field(description="a name in `units`, whose ids and contexts these are")
    sources: tuple[str, ...] = Field(min_length=1, description="contexts whose counters of items are read")
    vector_size: int = Field(ge=1)
    contexts: tuple[str, ...] = Field(
        description="those whose candidates they choose; others' are the latest"
    )
    newcomers: bool = Field(description="whether they choose for contexts that came later, too")
    latest_share: Annotated[Number, Field(ge=0, le=1)] = Field(
        description="of the candidates, the most recently touched in any case"
    )
    metrics: dict[str, Any] = Field(default_factory=dict)

    def choose_for(self, context: str, known: Collection[str]) -> bool:
        """Whether they choose a context's candidates; ``known`` are those that there were when fitted."""
        return context in self.contexts or (self.newcomers and context not in known)

    def wanted_files(self) -> frozenset[str]:
        """The two graphs."""
        return frozenset((ITEM_TOWER, USER_TOWER))


class Manifest(_Entry):
    """All of a bundle that is not in its files, and the checksum of each of those."""

    format_version: Literal[1] = 1
    until: Instant = Field(description="the end of the night's data, a midnight, UTC")
    parent: Annotated[str, Field(pattern=VERSION.pattern)] | None = Field(
        default=None, description="the champion that this bundle had to beat"
    )
    seed: int
    settings_digest: str
    features: Features
    declarations: Contexts = Field(description="contexts.yaml as it was")
    units: dict[str, Unit]
    trained: str | None = Field(
        default=None, description="the unit that was trained for this bundle; a later night starts from it"
    )
    banks: dict[str, Bank] = Field(default_factory=dict)
    bank: str | None = Field(default=None, description="the bank that was fitted for this bundle")
    transfer: FilePath | None = Field(
        default=None, description="the night's evidence on what new contexts gain from the others"
    )
    towers: Towers | None = Field(
        default=None,
        description="none: the most recently touched items are scored",
        exclude_if=lambda towers: towers is None,  # bundles of before keep their bytes
    )
    contexts: dict[str, ContextEntry]
    files: dict[FilePath, FileEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _references_hold(self) -> Manifest:
        if set(self.contexts) != set(self.declarations.names):
            raise ValueError(
                f"contexts: expected those declared, {', '.join(self.declarations.names)}; "
                f"found {', '.join(sorted(self.contexts)) or 'none'}"
            )
        if self.trained is not None and self.trained not in self.units:
            raise ValueError(f"trained: unit {self.trained!r} is not among the units")
        if self.bank is not None and self.bank not in self.banks:
            raise ValueError(f"bank: {self.bank!r} is not among the banks")
        for name, bank in self.banks.items():
            self._bank_holds(name, bank)
        if self.towers is not None:
            self._towers_hold(self.towers)
        for name, entry in self.contexts.items():
            if entry.unit is not None and entry.unit not in self.units:
                raise ValueError(f"context {name!r}: unit {entry.unit!r} is not among the units")
            if entry.stack is not None:
                self._stack_holds(name, entry.stack)
        return self

    def _bank_holds(self, name: str, bank: Bank) -> None:
        if bank.unit not in self.units:
            raise ValueError(f"bank {name!r}: unit {bank.unit!r} is not among the units")
        without_columns = sorted(set(bank.sources) - set(self.declarations.named))
        if without_columns and not bank.columns:
            raise ValueError(
                f"bank {name!r}: expected sources that are declared and have columns of their own, "
                f"found {', '.join(without_columns)}"
            )
        unknown = sorted(set(bank.sources) - set(self.units[bank.unit].contexts))
        if unknown:
            raise ValueError(f"bank {name!r}: unit {bank.unit!r} knows no context {', '.join(unknown)}")

    def _towers_hold(self, towers: Towers) -> None:
        if towers.unit not in self.units:
            raise ValueError(f"towers: unit {towers.unit!r} is not among the units")
        unknown = sorted({*towers.sources, *towers.contexts} - set(self.declarations.names))
        if unknown:
            raise ValueError(f"towers: expected contexts that are declared, found {', '.join(unknown)}")

    def _stack_holds(self, context: str, stack: Stack) -> None:
        if stack.bank not in self.banks:
            raise ValueError(f"context {context!r}: bank {stack.bank!r} is not among the banks")
        wanted = self.banks[stack.bank].width
        if len(stack.weights) != wanted:
            raise ValueError(
                f"context {context!r}: expected {wanted} weights, one of each expert of bank "
                f"{stack.bank!r}, found {len(stack.weights)}"
            )

    def wanted_files(self) -> frozenset[str]:
        """Files that the entries name, and that `files` must hold."""
        named = {f"units/{unit}/{graph}" for unit in self.units for graph in (GRAPH, ITEMS_GRAPH)}
        for entry in self.contexts.values():
            named |= {path for path in (entry.adapter, entry.trees) if path is not None}
        for bank in self.banks.values():
            named |= bank.wanted_files()
        if self.transfer is not None:
            named.add(self.transfer)
        if self.towers is not None:
            named |= self.towers.wanted_files()
        return frozenset(named)

    def to_bytes(self) -> bytes:
        """The one way in which this manifest is written: equal manifests, equal bytes."""
        return to_json(self.model_dump(mode="json")).encode()

    @property
    def checksum(self) -> str:
        """SHA-256 of `to_bytes`: the bundle's, because every file's checksum is in it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def version(self) -> str:
        """The bundle's name: the night's end and the start of its checksum."""
        return f"{self.until:%Y%m%d}-{self.checksum[:12]}"

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> Manifest:
        """Read what `to_bytes` wrote.

        Raises:
            IntegrityError: the bytes are no manifest of this format, or are written in another way.
        """
        try:
            manifest = cls.model_validate_json(content)
        except ContextError as error:
            raise IntegrityError(f"{where}: no manifest of format 1: declarations: {error}") from error
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"]) or "file"
            raise IntegrityError(f"{where}: no manifest of format 1: {place}: {fault['msg']}") from error
        if manifest.to_bytes() != content:
            raise IntegrityError(f"{where}: its bytes are not those that this version of recmeta writes")
        return manifest
