"""Ready-made views of the MLflow page, stored as experiment tags.

MLflow stores a saved or shared view as the experiment tag `mlflow.sharedViewState.<key>`. The value is a JSON object
with name, createdAt, updatedAt and state. The page lists it under "Views". `state` is a JSON text of the search
(searchFilter, orderByKey, orderByAsc) and the layout of the page (selectedColumns, groupBy, ...). Columns are named
metrics.`x`, params.`x` and tags.`x`.

`#/experiments/<id>/runs?viewStateShareKey=<key>` opens a view. `workflowType=machine_learning` in this address turns
off the page's GenAI mode. This format was read from the page of MLflow 3.17.2 and checked in a browser.
"""

import json


def _metric(*names: str) -> list[str]:
    return [f"metrics.`{n}`" for n in names]


def _param(*names: str) -> list[str]:
    return [f"params.`{n}`" for n in names]


def _tag(*names: str) -> list[str]:
    return [f"tags.`{n}`" for n in names]


def _view(
    order_by: str, columns: list[str], *, search: str = "", ascending: bool = False, group_by: str | None = None
) -> dict:
    group = (
        {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": group_by}]}
        if group_by
        else None
    )
    return {
        "searchFilter": search,
        "orderByKey": order_by,
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "groupBy": group,
    }


_WHO = [*_tag("arm"), *_param("batch_size", "lr", "clip", "seed")]

TRAININGS = {
    "leaderboard": _view(
        "metrics.`val_acc`",
        [*_metric("val_acc", "test_acc", "train_loss"), *_WHO, *_tag("role"), *_metric("images_per_second")],
        search="tags.outcome = 'complete'",
    ),
    "batch-size": _view(
        "params.`batch_size`",
        [*_param("batch_size"), *_metric("val_acc", "failed"), *_WHO[:1], *_param("lr", "clip", "seed")],
        ascending=True,
    ),
    "search": _view(
        "metrics.`val_acc`",
        [*_metric("val_acc", "clipped_share"), *_param("lr", "clip", "lr_x_clip"), *_tag("outcome")],
        search="tags.role = 'search'",
    ),
    "failures": _view(
        "metrics.`failed_at_step`",
        [*_metric("failed_at_step", "val_loss"), *_tag("outcome", "cause"), *_WHO],
        search="metrics.failed = 1",
        ascending=True,
    ),
    "seeds": _view(
        "metrics.`val_acc`", [*_metric("val_acc", "failed", "train_loss"), *_WHO[:-1]], group_by="configuration"
    ),
}
STUDIES = {
    "verdicts": _view(
        "attributes.start_time",
        [*_metric("holds", "effect", "effect_low", "effect_high", "effect_n"), *_tag("verdict", "effect")],
    )
}


EVALUATIONS = {
    "accuracy": _view(
        "metrics.`top1`",
        [
            *_param("model", "weights", "data", "image_size", "style"),
            *_metric("top1", "top1_low", "top1_high", "top5", "published_top1", "images_per_second"),
            *_tag("outcome", "device"),
        ],
    )
}
CHECKS = {
    "verdicts": _view(
        "attributes.start_time",
        [
            *_tag("outcome"),
            *_param("model", "data", "image_size", "precision"),
            *_metric("sound", "faults", "blocks", "largest_deviation", "largest_dead", "last_var"),
        ],
    )
}


REPLAYS = {
    "replayed": _view(
        "attributes.start_time",
        [
            *_tag("outcome", "replay_of"),
            *_param("model", "data", "seed", "back", "fork_clip", "fork_lr"),
            *_metric("as_recorded", "loss", "largest_ratio", "fork_loss", "fork_largest_ratio"),
            *_tag("device"),
        ],
    )
}

VIEWS = {
    "studies": STUDIES,
    "trainings": TRAININGS,
    "evaluations": EVALUATIONS,
    "checks": CHECKS,
    "replays": REPLAYS,
}
ABOUT = {
    "studies": "One run is one execution of a notebook: its verdict, figures, table and report.",
    "trainings": "One run is one training.",
    "evaluations": "One run is one network with weights over one set of images.",
    "checks": "One run is one pre-flight: what a network does to signals before its first step.",
    "replays": "One run is one replay: it repeats the last steps of a training, and may fork with other settings.",
}
SHOWS = {
    "verdicts": "questions and verdicts",
    "leaderboard": "complete trainings, the highest validation accuracy first",
    "batch-size": "trainings from small to large batches",
    "search": "trials of searches over clipping threshold and learning rate",
    "failures": "trainings that diverged or collapsed, with the cause",
    "seeds": "means over seeds, grouped by configuration",
    "replayed": "whether each replay matched the recorded training, and the size of its gradients",
    "accuracy": "measured top-1 and top-5 next to the published top-1",
}


def experiment_tags(experiment: str) -> dict[str, str]:
    """Return the tags of a new experiment: its kind, a description, and the views."""
    tags = {"mlflow.experimentKind": "custom_model_development"}  # without it the page asks the user
    return tags | {"mlflow.note.content": ABOUT[_kind(experiment)]} | _shared(VIEWS[_kind(experiment)])


def _kind(experiment: str) -> str:
    return experiment.removesuffix("-quick")


def description(experiment: str, experiment_id: str) -> str:
    """Describe an experiment for the top of its page (Markdown).

    The first line says what a run is and links each view, because the folded page shows only this line. The rest says
    what each view shows.
    """
    kind = _kind(experiment)
    quick = " Quick runs: demonstrations, never evidence." if experiment != kind else ""
    links = " · ".join(f"[{key}]({page('', experiment_id, key)})" for key in VIEWS[kind])
    shows = "\n".join(f"- {key}: {SHOWS[key]}" for key in VIEWS[kind])
    return f"{ABOUT[kind]}{quick} Views: {links}\n\n{shows}"


def configuration(arm: str, name: str, config_id: str) -> str:
    """Name a group of seeds: the arm, what the names of its trainings share, and the config_id."""
    shared = name.rpartition(" ")[0].partition(" ")[2]  # between the model and the seed
    return f"{arm} {shared} {config_id}"


def _shared(views: dict[str, dict]) -> dict[str, str]:
    return {f"mlflow.sharedViewState.{key}": _envelope(key, view) for key, view in views.items()}


def _envelope(name: str, view: dict) -> str:
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(view)})


def page(address: str, experiment_id: str, view: str | None = None) -> str:
    """Return the address of an experiment's table of runs, with a view if there is one."""
    shared = f"&viewStateShareKey={view}" if view else ""
    return f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{shared}"
