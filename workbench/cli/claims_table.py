"""The claims' verdicts as a table to read, and as one to keep."""

import math

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench.claims.judging import Judged
from workbench.lab.statistics.intervals import Interval, points
from workbench.lab.statistics.pairs import pairs
from workbench.lab.statistics.verdict import as_text

ANSWERS = {True: "[green]holds[/green]", False: "[red]does not hold[/red]", None: "not decided"}


def show_claims(judged_claims: list[Judged], console: Console, details: bool = False) -> None:
    """Print a row per claim and below them the headlines, with the table of each verdict where `details` is set."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "claim", "verdict", "effect [95 %]", "n", "p", "p (Holm)", "data", "device", "run"):
        table.add_column(heading, justify="right" if heading in ("n", "p", "p (Holm)") else "left")
    for one in judged_claims:
        if one.verdict is None:
            todo = f"not measured here: ./run study {one.claim.study}"
            table.add_row(_number(one), one.claim.sentence, f"[dim]{todo}[/dim]")
            continue
        verdict, evidence = one.verdict, one.evidence
        table.add_row(
            _number(one),
            one.claim.sentence,
            ANSWERS[verdict.holds],
            escape(verdict.effect.text),
            str(verdict.effect.value.n),
            _p(verdict.effect.p),
            _p(one.p_holm),
            escape(evidence.data),
            escape(evidence.device),
            f"{evidence.run[:8] or '?'} ({evidence.source})",
        )
    console.print(table)
    for one in judged_claims:
        if one.verdict is not None:
            name = f"[bold]{', '.join(filter(None, (_number(one), one.claim.study)))}[/bold]"
            console.print(f"\n{name}: {escape(one.verdict.headline)}", highlight=False)
            console.print(f"    effect: {one.verdict.effect.name}", style="dim", markup=False, highlight=False)
            if one.evidence.departs:
                note = f"    of a run whose parameters are not those of {one.claim.study}.yaml: {one.evidence.departs}"
                console.print(note, style="yellow", markup=False, highlight=False)
            if details:
                console.print(_rich_table(as_text(one.verdict.table)))


def _rich_table(cells: pd.DataFrame) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in cells:
        table.add_column(escape(name))
    for row in cells.itertuples(index=False):
        table.add_row(*map(escape, row))
    return table


def show_pairs(judged_claims: list[Judged], console: Console) -> None:
    """A row a pair of arms, of each claim whose last table has arms that seeds trained."""
    for one in judged_claims:
        pair_rows = pairs(one.evidence.tables[one.claim.tables[-1]]) if one.evidence else pd.DataFrame()
        if pair_rows.empty:
            console.print(f"\n{one.claim.study}: its tables have no arms to set side by side.", highlight=False)
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("a", "b", "a minus b [95 %]", "n", "p, not adjusted"):
            table.add_column(heading, justify="right" if heading[0] in "np" else "left")
        for row in pair_rows.itertuples():
            difference = points(Interval(row.difference, row.low, row.high, row.n))
            table.add_row(escape(row.a), escape(row.b), escape(difference), str(row.n), f"{row.p:.2g}")
        console.print(f"\n[bold]{one.claim.study}[/bold]", table, sep="\n")


def as_table(judged_claims: list[Judged]) -> pd.DataFrame:
    """One row a claim that was measured: claim, study, holds, effect with bounds, n, p, p_holm, data, device,
    run, date, departs, headline."""
    rows = []
    for one in judged_claims:
        if one.verdict is None:
            continue
        verdict, effect, evidence = one.verdict, one.verdict.effect, one.evidence
        rows.append(
            {"claim": one.claim.number, "study": one.claim.study, "holds": verdict.holds, "effect": effect.value.mean,
             "low": effect.value.low, "high": effect.value.high, "n": effect.value.n, "p": effect.p,
             "p_holm": one.p_holm, "data": evidence.data, "device": evidence.device, "run": evidence.run,
             "date": evidence.date, "departs": evidence.departs, "headline": verdict.headline}
        )  # fmt: skip
    return pd.DataFrame(rows)


def as_markdown(judged_claims: list[Judged]) -> str:
    """The table of the README: a row a claim, those that nobody has measured among them; each links its figure."""
    lines = [
        "| | claim | verdict | effect [95 %] | n | p (Holm) | data, device | study's figure, run |",
        "|---" * 8 + "|",
    ]
    words = {True: "**holds**", False: "**does not hold**", None: "not decided"}
    for one in judged_claims:
        head = f"| {one.claim.number} | {one.claim.sentence}"
        if one.verdict is None:
            lines.append(f"{head} | not measured | | | | | `{one.claim.study}` |")
            continue
        verdict, effect, evidence = one.verdict, one.verdict.effect, one.evidence
        departs = f"not as in the study's file: {evidence.departs}" if evidence.departs else ""
        where = ", ".join(filter(None, (evidence.data, evidence.device, departs)))
        figure = f"[{one.claim.study}](docs/figures/{one.claim.study}.png)"
        lines.append(
            f"{head} | {words[verdict.holds]} | {effect.text} {effect.name} | {effect.value.n} | "
            f"{_p(one.p_holm)} | {where} | {figure}, {evidence.run[:8]} |"
        )
    return "\n".join(lines)


def _number(one: Judged) -> str:
    return "" if one.claim.number is None else str(one.claim.number)


def _p(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else f"{p:.2g}"
