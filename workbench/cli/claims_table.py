"""The claims' verdicts: printed, as a data frame, and as Markdown."""

import math

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench.claims.judging import Judged
from workbench.lab.statistics.intervals import Interval, points
from workbench.lab.statistics.pairs import pairs
from workbench.lab.statistics.verdict import Verdict, as_text

COLUMNS = ("", "claim", "answer", "effect [95 %]", "n", "p (Holm)", "precondition", "confirmations", "study")
COLOURS = {"Holds": "green", "Does not hold": "red"}


def show_claims(judged_claims: list[Judged], console: Console, details: bool = False) -> None:
    """Print one row per claim, then the headlines of the verdicts.

    Args:
        judged_claims: The claims, measured or not.
        console: Where to print.
        details: Also print the table of each verdict.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in COLUMNS:
        table.add_column(heading, justify="right" if heading in ("n", "p (Holm)") else "left")
    for judged in judged_claims:
        if judged.verdict is None:
            todo = f"not measured here: ./run study {judged.claim.study}"
            table.add_row(_number(judged), judged.claim.sentence, f"[dim]{todo}[/dim]")
            continue
        verdict, evidence = judged.verdict, judged.evidence
        table.add_row(
            _number(judged),
            judged.claim.sentence,
            f"[{COLOURS.get(verdict.answer, 'default')}]{verdict.answer}[/]",
            escape(verdict.effect.text),
            str(verdict.effect.value.n),
            _p(judged.p_holm),
            escape(_precondition(verdict)),
            str(judged.agreement),
            f"{judged.claim.study}, {evidence.run[:8] or '?'} ({evidence.source})",
        )
    console.print(table)
    for judged in judged_claims:
        if judged.verdict is not None:
            name = f"[bold]{', '.join(filter(None, (_number(judged), judged.claim.study)))}[/bold]"
            stated = judged.verdict.testable and not judged.verdict.depends_on_line
            answer = "" if stated else f"{judged.verdict.answer}. "
            console.print(f"\n{name}: {answer}{escape(judged.verdict.headline)}", highlight=False)
            notes = [f"effect: {judged.verdict.effect.name}"]
            notes.append(f"meaningful if {judged.claim.claim.precondition}: {_precondition(judged.verdict)}")
            for note in notes if judged.verdict.precondition else notes[:1]:
                console.print(f"    {note}", style="dim", markup=False, highlight=False)
            if judged.evidence.departs:
                note = (
                    f"    The run departs from the parameters of {judged.claim.study}.yaml: {judged.evidence.departs}"
                )
                console.print(note, style="yellow", markup=False, highlight=False)
            if details:
                console.print(_rich_table(as_text(judged.verdict.table)))


def _rich_table(cells: pd.DataFrame) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in cells:
        table.add_column(escape(name))
    for row in cells.itertuples(index=False):
        table.add_row(*map(escape, row))
    return table


def show_pairs(judged_claims: list[Judged], console: Console) -> None:
    """Print one row per pair of arms, for each claim whose last table has arms with several seeds."""
    for judged in judged_claims:
        pair_rows = pairs(judged.evidence.tables[judged.claim.tables[-1]]) if judged.evidence else pd.DataFrame()
        if pair_rows.empty:
            console.print(f"\n{judged.claim.study}: its tables have no arms to set side by side.", highlight=False)
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("a", "b", "a minus b [95 %]", "n", "p, not adjusted"):
            table.add_column(heading, justify="right" if heading[0] in "np" else "left")
        for row in pair_rows.itertuples():
            difference = points(Interval(row.difference, row.low, row.high, row.n))
            table.add_row(escape(row.a), escape(row.b), escape(difference), str(row.n), f"{row.p:.2g}")
        console.print(f"\n[bold]{judged.claim.study}[/bold]", table, sep="\n")


def as_table(judged_claims: list[Judged]) -> pd.DataFrame:
    """One row per measured claim.

    Columns: claim, study, answer, holds, effect, low, high, n, p, p_holm, precondition, measured, met, confirmations,
    q_p (of their agreement), data, device, run, date, departs, headline.
    """
    rows = []
    for judged in judged_claims:
        if judged.verdict is None:
            continue
        verdict, effect, evidence = judged.verdict, judged.verdict.effect, judged.evidence
        rows.append(
            {"claim": judged.claim.number, "study": judged.claim.study, "answer": verdict.answer,
             "holds": verdict.holds,
             "effect": effect.value.mean, "low": effect.value.low, "high": effect.value.high, "n": effect.value.n,
             "p": effect.p, "p_holm": judged.p_holm, "precondition": judged.claim.claim.precondition,
             "measured": verdict.precondition.measured if verdict.precondition else "", "met": verdict.testable,
             "confirmations": judged.agreement.n, "q_p": judged.agreement.p, "data": evidence.data,
             "device": evidence.device,
             "run": evidence.run, "date": evidence.date, "departs": evidence.departs, "headline": verdict.headline}
        )  # fmt: skip
    return pd.DataFrame(rows)


def as_markdown(judged_claims: list[Judged]) -> str:
    """The README's table: one row per claim, measured or not, with a link to its figure."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for judged in judged_claims:
        head = f"| {judged.claim.number} | {judged.claim.sentence}"
        if judged.verdict is None:
            lines.append(f"{head} | not measured | | | | | | `{judged.claim.study}` |")
            continue
        verdict, effect, evidence = judged.verdict, judged.verdict.effect, judged.evidence
        departs = f"not as in the study's file: {evidence.departs}" if evidence.departs else ""
        studies = [f"[{name}](docs/figures/{name}.png)" for name in (judged.claim.study, *judged.claim.claim.also)]
        condition = f"{judged.claim.claim.precondition}: {_precondition(verdict)}"
        lines.append(
            f"{head} | **{verdict.answer}** | {effect.text} {effect.name} | {effect.value.n} | {_p(judged.p_holm)} | "
            f"{condition} | {judged.agreement} | {', '.join(filter(None, (*studies, departs)))} |"
        )
    return "\n".join(lines)


def _precondition(verdict: Verdict) -> str:
    """Whether the precondition is met, and what was measured."""
    if verdict.precondition is None:
        return ""
    return f"{'met' if verdict.precondition.met else 'not met'}, {verdict.precondition.measured}"


def _number(judged: Judged) -> str:
    return "" if judged.claim.number is None else str(judged.claim.number)


def _p(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else f"{p:.2g}"
