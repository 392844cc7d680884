"""Compute every verdict again from the tables of its study.

The tables are in the store or under docs/results.

A claim holds, or does not hold, only if its p-value stays below 0.05 after Holm's adjustment. The adjustment covers all
measured and testable claims, however few of them are shown. Questions have no number and are not part of that family.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from workbench.bounded_json import read
from workbench.claims.confirmations import FILE as CONFIRMATIONS
from workbench.claims.confirmations import Agreement, agreement, confirmations, with_agreement
from workbench.claims.evidence_figures import accuracies, forest
from workbench.claims.over_networks import over_networks
from workbench.claims.registry import RegisteredClaim, all_claims, chosen
from workbench.errors import WorkbenchError
from workbench.lab.statistics.intervals import holm
from workbench.lab.statistics.verdict import Verdict
from workbench.lab.store.client import Store, as_param
from workbench.lab.studies.spec import Study
from workbench.paths import root

LEVEL = 0.05
UNCONFIRMED = Agreement(0)
INDEX = "runs.json"  # which run made each study's committed tables
MAX_VALUE_LENGTH = 40  # characters
UNDATED = {".svg": {"Date": None}}  # without a date, equal tables give an equal file
INDEX_FIELDS = ("run", "date", "data", "device", "departs")


@dataclass(frozen=True)
class Evidence:
    """The tables of one study, and the run that made them.

    Attributes:
        tables: Tables by name.
        run: Id of the run.
        date: Day on which the run ended.
        data: Data sets and numbers of images.
        device: Devices that trained.
        departs: Parameters of the run that differ from the study's file, such as "steps=120". Otherwise empty.
        source: "store", or the folder of the committed tables.
    """

    tables: dict[str, pd.DataFrame]
    run: str
    date: str
    data: str
    device: str
    departs: str
    source: str


@dataclass(frozen=True)
class Judged:
    """A claim with its evidence and its verdict after Holm's adjustment.

    Attributes:
        claim: The claim.
        evidence: Its tables. None if nothing was measured.
        verdict: Its verdict. None if nothing was measured.
        p_holm: The adjusted p-value. NaN for a question and for a claim without a p-value.
        agreement: How far all confirmations of its study agree.
    """

    claim: RegisteredClaim
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    p_holm: float = math.nan
    agreement: Agreement = UNCONFIRMED


def results_folder() -> Path:
    """Return the folder of the committed tables."""
    return root() / "docs" / "results"


def judged(claims: list[RegisteredClaim], *, where: str = "auto", store: Store | None = None) -> list[Judged]:
    """Judge the claims again from their tables.

    The tables come from the newest full run of each study in the store. Runs with the parameters of the study's file
    come first. A manual run with other parameters never counts, so an experiment by hand does not replace a result.

    Args:
        claims: Claims to judge.
        where: "store", "docs" (the committed tables), or "auto" (the store if it has a run, otherwise the committed
            tables).
        store: The store. None opens the default store.

    Returns:
        One entry per claim, in the same order.

    Raises:
        WorkbenchError: If a table cannot be read or judged.
    """
    evidence = [_find(claim, where, store) for claim in claims]
    verdicts = [
        None if e is None else _verdict(claim, e, _find_others(claim, where, store))
        for claim, e in zip(claims, evidence, strict=True)
    ]
    p_values = [_p_in_family(claim, v) for claim, v in zip(claims, verdicts, strict=True)]
    by_claim = [
        Judged(claim, e, v if v is None or claim.number is None else adjusted(v, p), p)
        for claim, e, v, p in zip(claims, evidence, verdicts, holm(p_values), strict=True)
    ]
    all_rows = confirmations(by_claim, results_folder())
    return [_with_agreement(each, all_rows[all_rows.study == each.claim.study]) for each in by_claim]


def _p_in_family(claim: RegisteredClaim, verdict: Verdict | None) -> float:
    """Return the p-value that Holm's adjustment covers. NaN: none."""
    in_family = claim.number is not None and verdict is not None and verdict.testable
    return math.nan if not in_family or verdict.effect.p is None else verdict.effect.p


def _with_agreement(each: Judged, rows: pd.DataFrame) -> Judged:
    """Return the judged claim with the agreement of its confirmations. Its table has a row if they disagree."""
    agreed, verdict = agreement(rows), each.verdict
    if verdict is not None and agreed.disagree:
        name = f"its {agreed.n} confirmations disagree: Cochran's Q, I^2 and p"
        row = {verdict.table.columns[0]: name, "q": agreed.q, "i2": agreed.i2, "p": agreed.p}
        table = pd.concat([verdict.table, pd.DataFrame([row])], ignore_index=True)
        verdict = dataclasses.replace(verdict, table=table)
    return dataclasses.replace(each, verdict=verdict, agreement=agreed)


def export(judged_claims: list[Judged], folder: Path) -> list[Path]:
    """Write the tables that came from the store, and draw all figures again.

    The figures go into the folder `figures` next to `folder`.

    Args:
        judged_claims: Results of `judged`.
        folder: Where the tables go, with an index of their runs. `judged` reads them from there.

    Returns:
        The written files.
    """
    figures = folder.parent / "figures"
    for place in (folder, figures):
        place.mkdir(parents=True, exist_ok=True)
    index_file = folder / INDEX
    index = _index(folder)
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
        written += _draw(claim.figure(evidence.tables), figures, claim.study)
    index_file.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    return [*written, index_file]


def export_all(folder: Path) -> list[Path]:
    """Write the table of all confirmations and draw the figures over all claims, from the committed tables.

    Args:
        folder: The committed tables. The figures go into the folder `figures` next to it.

    Returns:
        The written files.
    """
    everything = judged(list(all_claims()), where="docs")
    table = confirmations(everything, folder)
    file = folder / CONFIRMATIONS
    with_agreement(table).to_csv(file, index=False, float_format="%.6g")
    drawn = {"confirmations": forest(table), "accuracies": accuracies(everything)}
    return [file, *(path for name, figure in drawn.items() for path in _draw(figure, folder.parent / "figures", name))]


def _draw(figure: Figure, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=160, bbox_inches="tight", metadata=UNDATED.get(file.suffix))
    return files


def _find(claim: RegisteredClaim, where: str, store: Store | None) -> Evidence | None:
    if where != "docs":
        evidence = _in_store(claim, store or Store())
        if evidence is not None or where == "store":
            return evidence
    return _committed(claim)


def _find_others(claim: RegisteredClaim, where: str, store: Store | None) -> dict[RegisteredClaim, Evidence]:
    """Return the evidence of the studies that ask the same on other networks."""
    others = chosen(list(claim.claim.also)) if claim.claim.also else []
    evidence = {other: _find(other, where, store) for other in others}
    return {other: tables for other, tables in evidence.items() if tables is not None}


def _verdict(claim: RegisteredClaim, evidence: Evidence, others: Mapping[RegisteredClaim, Evidence]) -> Verdict:
    try:
        alone = claim.judge(evidence.tables)
        if not others:
            return alone
        tables = {each.study: e.tables["confirmed"] for each, e in {claim: evidence, **others}.items()}
        verdicts = {claim.study: alone} | {each.study: each.judge(e.tables) for each, e in others.items()}
        return over_networks(claim.claim.precondition, tables, verdicts)
    except (KeyError, AttributeError, IndexError, ValueError, WorkbenchError) as error:
        if evidence.source != "store":
            raise
        problem = f"{claim.name}: another version made the tables of run {evidence.run}, and judging failed: {error!r}."
        cure = f"Run `./run study {claim.study}` to make them again from the stored trainings."
        raise WorkbenchError(f"{problem} {cure}") from error


def _in_store(claim: RegisteredClaim, store: Store) -> Evidence | None:
    runs = store.search("studies", "full", f"tags.study = '{claim.study}' and attributes.status = 'FINISHED'")
    if not runs:
        return None
    study = Study.load(claim.study)
    candidates = [(run, departures(study, run.parameters)) for run in runs]
    candidates = [(run, departs) for run, departs in candidates if not departs or run.tags.get("by") != "hand"]
    if not candidates:
        return None
    run, departs = min(candidates, key=lambda candidate: bool(candidate[1]))  # `min` keeps the first, the newest run
    try:
        tables = {name: store.read_table(run.id, name) for name in claim.tables}
    except WorkbenchError as error:
        cure = f"Run `./run study {claim.study} --rerun all`, or use the committed tables with `--from docs`."
        raise WorkbenchError(f"{claim.name}: {error} {cure}") from error
    data, device = _data_and_device(tables)
    when = datetime.fromtimestamp(run.ended, UTC).date().isoformat()
    return Evidence(tables, run.id, when, data, device, departs, "store")


def departures(study: Study, params: Mapping[str, str]) -> str:
    """List the parameters of a run that differ from the study's file.

    A parameter that the notebook gained after the run counts as its default. A parameter that the notebook no longer
    has is listed with its value.

    Args:
        study: The study. Of its executions, the one nearest to the run counts.
        params: Parameters of the run, as text from the store.

    Returns:
        Text such as "steps=120, clip=none", in the notebook's order. Only the name of a long value is given. Empty
        without a difference.
    """
    defaults = {name: knob.default for name, knob in study.knobs().items()}
    by_execution = []
    for wanted in study.executions(quick=False):
        other = []
        for name, value in wanted.items():
            stored = params.get(name)
            if stored is None and value is not None and value != defaults[name]:
                other.append(f"{name}=none")
            elif stored is not None and name != "device" and stored != as_param(value):
                other.append(_setting_text(name, stored))
        gone = [_setting_text(name, stored) for name, stored in params.items() if name not in wanted]
        by_execution.append(other + gone)
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
        index = _index(folder).get(claim.study, {})
    except (OSError, ValueError) as error:
        cure = f"Restore it in {folder} from git."
        raise WorkbenchError(f"The committed table of {claim.study} cannot be read: {error}. {cure}") from error
    fields = {name: index.get(name, "") for name in INDEX_FIELDS}
    return Evidence(tables, **fields, source=str(folder.relative_to(root())))


def _index(folder: Path) -> dict[str, dict[str, str]]:
    """Read by study which run made its tables."""
    file = folder / INDEX
    index = read(file) if file.exists() else {}
    if not isinstance(index, dict) or not all(isinstance(fields, dict) for fields in index.values()):
        raise WorkbenchError(f"{file} must hold one object per study. Restore it from git.")
    return index


def _file(study: str, table: str) -> str:
    return f"{study}.csv" if table == "table" else f"{study}_{table}.csv"


def _data_and_device(tables: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """Collect data sets and devices from the rows. Tables of gradients or costs have neither."""

    def values_text(column: str) -> str:
        values = {value for table in tables.values() if column in table for value in table[column].dropna()}
        return ", ".join(sorted(f"{v:g}" if isinstance(v, float) else str(v) for v in values))

    size = values_text("train_size")
    return f"{values_text('data')}{f' ({size} images)' if size else ''}", values_text("device")


def adjusted(verdict: Verdict, p_holm: float) -> Verdict:
    """Return the verdict, undecided unless its adjusted p-value is below the level.

    Args:
        verdict: A verdict before the adjustment.
        p_holm: The adjusted p-value. NaN without a test, which also leaves the claim undecided.
    """
    if verdict.holds is None or p_holm < LEVEL:
        return verdict
    name = verdict.table.columns[0]
    row = pd.DataFrame([{name: "the claim, after Holm's adjustment", "p_holm": p_holm}])
    why = "without a p-value" if math.isnan(p_holm) else "after Holm's adjustment"
    headline = f"{verdict.headline.removesuffix('.')}; not decided {why}."
    table = pd.concat([verdict.table, row], ignore_index=True)
    return dataclasses.replace(verdict, holds=None, headline=headline, table=table)
