"""An executed notebook as one HTML page: question, verdict and figure first, code folded.

The page loads nothing from elsewhere. A notebook that failed or has no verdict shows this in the verdict's place. No
other file imports nbconvert.
"""

import copy
import html
from datetime import datetime
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
body { background: #fff; padding: 0 1.5rem 4rem; }
main { max-width: 1100px; margin: 0 auto; }
body .jp-Notebook-cell { padding: 2px 0; }
body .jp-RenderedHTMLCommon { font-size: 15px; line-height: 1.5; }
.ran { color: #666; font-size: 13px; margin-top: -0.4em; }
.celltag_verdict .jp-OutputArea, .failed { border-left: 4px solid #0072b2; background: #f3f7fa; padding: 0.7em 1em; }
.failed { border-color: #d55e00; background: #fdf3ec; overflow-wrap: anywhere; }
.celltag_figure img { max-width: 100%; }
.jp-OutputArea-output img { max-width: 100%; height: auto; }
body .jp-RenderedText pre { word-break: normal; overflow-wrap: break-word; }
details.code { margin: 0.3em 0; }
details.code > summary { color: #888; font: 12px sans-serif; cursor: pointer; }
details.code .jp-InputArea-editor { padding: 0.4em 0.6em; }
details.code pre { white-space: pre-wrap; }
</style>
{%- endblock -%}
{%- block input_group -%}
{%- if cell.source.strip() -%}
<details class="code"{{ ' open' if cell.metadata.get('open') }}>
<summary>{{ cell.metadata.get('summary', 'code') }}</summary>
{{ super() }}
</details>
{%- endif -%}
{%- endblock -%}
"""
PARAMETERS = {"parameters": "parameters and their defaults", "injected-parameters": "parameters of this run"}
PAPERMILL_ERROR_TAG = "papermill-error-cell-tag"  # papermill's notes of a failure, which `_failure` replaces


def page(notebook: NotebookNode, title: str = "report") -> str:
    """Return a notebook as a self-contained HTML page, with figures and without scripts."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="lab",
        template_file="report.html.j2",
        extra_loaders=[DictLoader({"report.html.j2": TEMPLATE})],
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(arranged(notebook), {"metadata": {"name": title}})
    return body


def arranged(notebook: NotebookNode) -> NotebookNode:
    """Return a copy with verdict and figure below the first cell, and a label for each fold."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    cells = [cell for cell in notebook.cells if PAPERMILL_ERROR_TAG not in cell.metadata.get("tags", [])]
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in code:
        tag = next((tag for tag in cell.metadata.get("tags", []) if tag in PARAMETERS), None)
        cell.metadata["summary"] = PARAMETERS.get(tag, "code")
        cell.outputs = [o for o in cell.outputs if not _is_widget(o)]
    top = [*_executed(notebook), *_failure(code)]
    verdict = next((cell for cell in code if "session.verdict(" in cell.source), None)
    if verdict is not None and verdict.outputs and not _errors(verdict):
        top.append(_moved(verdict, "verdict"))
    elif verdict is not None and not any(map(_errors, code)):
        top.append(_box("No verdict: the notebook was stopped before its verdict."))
    figure = _headline(code, Path(notebook.metadata.get("papermill", {}).get("input_path") or "").stem)
    if figure is not None and not any(map(_errors, code)):
        top.append(_moved(figure, "figure"))
    first = 1 if cells and cells[0].cell_type == "markdown" else 0
    notebook.cells = [*cells[:first], *top, *cells[first:]]
    return notebook


def _headline(code: list[NotebookNode], name: str) -> NotebookNode | None:
    """Return the last cell with the figure of the notebook's name, else the last with a figure."""
    drawn = [cell for cell in code if any("image/png" in o.get("data", {}) for o in cell.outputs)]
    named = [cell for cell in drawn if f'"{name}")' in cell.source]
    return (named or drawn or [None])[-1]


def _moved(cell: NotebookNode, tag: str) -> NotebookNode:
    """Move the figures or the verdict of a cell to a new cell, and return the new cell."""
    taken = [o for o in cell.outputs if {"image/png", "text/markdown"} & set(o.get("data", {}))]
    cell.outputs = [o for o in cell.outputs if o not in taken]
    return new_code_cell("", outputs=taken, metadata={"tags": [tag]})


def _failure(code: list[NotebookNode]) -> list[NotebookNode]:
    """Return a box that names the error, and unfold the cell that raised it."""
    for cell in code:
        for error in _errors(cell):
            cell.metadata["open"] = True
            message = html.escape(f"{error.ename}: {error.evalue}")
            return [_box(f'Failed: {message} (<a href="#cell-id={cell.id}">the cell</a>)')]
    return []


def _errors(cell: NotebookNode) -> list[NotebookNode]:
    return [o for o in cell.outputs if o.output_type == "error"]


def _is_widget(output: NotebookNode) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _box(text: str) -> NotebookNode:
    return new_markdown_cell(f'<div class="failed">{text}</div>')


def _executed(notebook: NotebookNode) -> list[NotebookNode]:
    """Return a line with the start time and duration, if they are known."""
    times = notebook.metadata.get("papermill", {})
    if not times.get("start_time"):
        return []
    started = datetime.fromisoformat(times["start_time"])
    took = f", {times['duration']:.0f} s" if times.get("duration") else ""
    return [new_markdown_cell(f'<p class="ran">Executed {started:%Y-%m-%d %H:%M} UTC{took}</p>')]
