"""Every verdict again, from the tables that its study left: in the store, or committed under docs/results.

A claim holds, or does not, only where its p-value stays below 0.05 after Holm's adjustment over all claims that were
measured, however few are shown. A question of our own, which has no number, stands outside that family.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from workbench.claims.registry import RegisteredClaim
from workbench.errors import WorkbenchError
from workbench.lab.statistics.intervals import holm
from workbench.lab.statistics.verdict import Verdict
from workbench.lab.store.client import Store, as_param
from workbench.lab.studies.spec import Study
from workbench.paths import root

LEVEL = 0.05
INDEX = "runs.json"  # of the committed tables: which run each study's are of
MAX_VALUE_LENGTH = 40  # characters of a value
UNDATED = {".svg": {"Date": None}}  # equal tables give an equal file
INDEX_FIELDS = ("run", "date", "data", "device", "departs")  # of a run, in that index


@dataclass(frozen=True)
class Evidence:
    """The tables of one study, and the run that they are of."""

    tables: dict[str, pd.DataFrame]
    run: str
    date: str
    data: str
    device: str
    departs: str  # parameters of the run that are not those of the study's file: "steps=120"; else empty
    source: str  # store, or the folder of the committed tables


@dataclass(frozen=True)
class Judged:
    """A claim with its evidence and its verdict after Holm's adjustment; both None where nothing was measured."""

    claim: RegisteredClaim
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    p_holm: float = math.nan


def results_folder() -> Path:
    """Where the committed tables lie."""
    return root() / "docs" / "results"


def judged(claims: list[RegisteredClaim], *, where: str = "auto", store: Store | None = None) -> list[Judged]:
    """The claims, judged again from the newest full run of their studies in the store, or ("docs", or where the store
    has none) from the committed tables.

    Runs with the parameters of the study's file go before others, and of those by hand no other counts: a look with
    other settings must not replace what was measured as written down.

    Raises: WorkbenchError for a committed table that cannot be read.
    """
    evidence = [_find(claim, where, store) for claim in claims]
    verdicts = [None if e is None else _verdict(claim, e) for claim, e in zip(claims, evidence, strict=True)]
    p_values = [
        math.nan if v is None or v.effect.p is None or claim.number is None else v.effect.p
        for claim, v in zip(claims, verdicts, strict=True)
    ]
    return [
        Judged(claim, e, v if v is None or claim.number is None else adjusted(v, p), p)
        for claim, e, v, p in zip(claims, evidence, verdicts, holm(p_values), strict=True)
    ]


def export(judged_claims: list[Judged], folder: Path) -> list[Path]:
    """Writes the tables that came from the store, and which run they are of, as `judged` reads them again; and the
    figures of all, of committed tables drawn again, into the folder `figures` beside."""
    figures = folder.parent / "figures"
    for place in (folder, figures):
        place.mkdir(parents=True, exist_ok=True)
    index_file = folder / INDEX
    index = json.loads(index_file.read_text()) if index_file.exists() else {}
    written = []
    for judged_claim in judged_claims:
        claim, evidence = judged_claim.claim, judged_claim.evidence
        if evidence is None:
            continue
        if evidence.source == "store":
            for name in claim.tables:
                file = folder / _file(claim.study, name)
                evidence.tables[name].to_csv(file, index=False, float_format="%.6g")
                written.append(file)
            index[claim.study] = {name: getattr(evidence, name) for name in INDEX_FIELDS}
        figure = claim.figure(evidence.tables)
        for drawing in (figures / f"{claim.study}.{suffix}" for suffix in ("png", "svg")):
            figure.savefig(drawing, dpi=160, bbox_inches="tight", metadata=UNDATED.get(drawing.suffix))
            written.append(drawing)
    index_file.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    return [*written, index_file]


def _find(claim: RegisteredClaim, where: str, store: Store | None) -> Evidence | None:
    if where != "docs":
        evidence = _in_store(claim, store or Store())
        if evidence is not None or where == "store":
            return evidence
    return _committed(claim)


def _verdict(claim: RegisteredClaim, evidence: Evidence) -> Verdict:
    try:
        return claim.judge(evidence.tables)
    except (KeyError, AttributeError, IndexError, ValueError) as error:
        if evidence.source != "store":
            raise
        what = (
            f"{claim.name}: the tables of run {evidence.run} cannot be judged ({error!r}): another version made them."
        )
        cure = f"`./run study {claim.study}` makes them again from the stored trainings."
        raise WorkbenchError(f"{what} {cure}") from error


def _in_store(claim: RegisteredClaim, store: Store) -> Evidence | None:
    runs = store.search("studies", "full", f"tags.study = '{claim.study}' and attributes.status = 'FINISHED'")
    if not runs:
        return None
    study = Study.load(claim.study)
    candidates = [(run, departures(study, run.parameters)) for run in runs]
    candidates = [(run, departs) for run, departs in candidates if not departs or run.tags.get("by") != "hand"]
    if not candidates:
        return None
    run, departs = min(candidates, key=lambda one: bool(one[1]))  # of equals the first, which is the newest
    try:
        tables = {name: store.read_table(run.id, name) for name in claim.tables}
    except WorkbenchError as error:
        cure = f"`./run study {claim.study} --rerun all` makes them again, `--from docs` takes those that are committed"
        raise WorkbenchError(f"{claim.name}: {error} {cure}.") from error
    data, device = _data_and_device(tables)
    when = datetime.fromtimestamp(run.ended, UTC).date().isoformat()
    return Evidence(tables, run.id, when, data, device, departs, "store")


def departures(study: Study, params: Mapping[str, str]) -> str:
    """Where a run's parameters, as the store has them, are not those of the study's file: "steps=120, clip=none" in
    the notebook's order, long values left out, beside the nearest of its executions; empty where they are. A parameter
    that the notebook has got since counts as its default; one that it has no more is told as it was."""
    defaults = {name: knob.default for name, knob in study.knobs().items()}
    by_execution = []
    for wanted in study.executions(quick=False):
        other = []
        for name, value in wanted.items():
            was = params.get(name)
            if was is None and value is not None and value != defaults[name]:
                other.append(f"{name}=none")
            elif was is not None and name != "device" and was != as_param(value):
                other.append(_setting_text(name, was))
        by_execution.append(other + [_setting_text(name, was) for name, was in params.items() if name not in wanted])
    return ", ".join(min(by_execution, key=len))


def _setting_text(name: str, value: str) -> str:
    return f"{name}={value}" if len(value) <= MAX_VALUE_LENGTH else name


def _committed(claim: RegisteredClaim) -> Evidence | None:
    folder = results_folder()
    files = {name: folder / _file(claim.study, name) for name in claim.tables}
    if not all(file.exists() for file in files.values()):
        return None
    try:
        tables = {name: pd.read_csv(file) for name, file in files.items()}
        index = json.loads((folder / INDEX).read_text()).get(claim.study, {}) if (folder / INDEX).exists() else {}
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"the committed table of {claim.study} cannot be read ({error}).") from error
    fields = {name: index.get(name, "") for name in INDEX_FIELDS}
    return Evidence(tables, **fields, source=str(folder.relative_to(root())))


def _file(study: str, table: str) -> str:
    return f"{study}.csv" if table == "table" else f"{study}_{table}.csv"


def _data_and_device(tables: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """What the rows say of themselves; tables of gradients or of costs say nothing."""

    def words(column: str) -> str:
        values = {value for table in tables.values() if column in table for value in table[column].dropna()}
        return ", ".join(sorted(f"{v:g}" if isinstance(v, float) else str(v) for v in values))

    size = words("train_size")
    return f"{words('data')}{f' ({size} images)' if size else ''}", words("device")


def adjusted(verdict: Verdict, p_holm: float) -> Verdict:
    """Return the verdict, undecided where Holm's adjustment takes its p-value above the level, or where it has none."""
    if verdict.holds is None or p_holm < LEVEL:
        return verdict
    name = verdict.table.columns[0]
    row = pd.DataFrame([{name: "the claim, after Holm's adjustment", "p_holm": p_holm}])
    why = "without a p-value" if math.isnan(p_holm) else "after Holm's adjustment"
    headline = f"{verdict.headline.removesuffix('.')}; not decided {why}."
    table = pd.concat([verdict.table, row], ignore_index=True)
    return dataclasses.replace(verdict, holds=None, headline=headline, table=table)
