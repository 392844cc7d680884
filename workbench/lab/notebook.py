"""Notebooks as programs: executed by papermill, in a process of its own. No other file knows papermill.

python -m workbench.lab.notebook IN.ipynb OUT.ipynb '{"trials": 4}'      executes, and writes OUT.ipynb and OUT.html
"""

import json
import signal
import sys
from pathlib import Path


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Runs a notebook in a kernel of its own, from the notebook's folder; `target` and its .html are written whatever
    happens."""
    import papermill

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            cwd=source.parent,
            progress_bar=False,
            log_output=False,
            request_save_on_cell_execute=True,
        )
    finally:
        if target.exists():
            target.with_suffix(".html").write_text(to_html(target))


def to_html(notebook: Path) -> str:
    """The executed notebook as one page that needs nothing from outside: figures embedded, no MathJax, no scripts
    from elsewhere."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="lab", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    for script in (
        "mathjax_url",
        "require_js_url",
        "jquery_url",
        "mermaid_js_url",
        "mermaid_layout_elk_js_url",
        "jupyter_widgets_base_url",
        "widget_renderer_url",
    ):
        setattr(exporter, script, "")
    body, _ = exporter.from_filename(str(notebook))
    return body


def main(source: str, target: str, parameters: str) -> int:
    from papermill.exceptions import PapermillExecutionError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that papermill ends its kernel
    try:
        execute(Path(source), Path(target), json.loads(parameters))
    except PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}".replace("\n", "; "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
