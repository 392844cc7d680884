"""Ready-made views of the MLflow page, kept as experiment tags.

A view that a person saves or shares is the experiment tag `mlflow.sharedViewState.<key>`. Its value is an envelope
{name, createdAt, updatedAt, state}, with which it is listed under "Views"; `state` is a JSON text of the search
(searchFilter, orderByKey, orderByAsc) and the look of the page (selectedColumns, groupBy, ...).
`#/experiments/<id>/runs?viewStateShareKey=<key>` opens it, and `workflowType=machine_learning` there takes the page
out of its GenAI mode. Columns are metrics.`x`, params.`x`, tags.`x`. Read off the page of MLflow 3.17.2, and looked
at in a browser.
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
        [*_metric("failed_at_step", "train_loss"), *_tag("outcome", "cause"), *_WHO],
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
    "replays": "One run is one replay: the last steps of a training again, and a fork with other settings.",
}
SAYS = {
    "verdicts": "what was asked, and what came out",
    "leaderboard": "complete trainings, the highest validation accuracy first",
    "batch-size": "from small batches to large",
    "search": "trials of searches over threshold and rate",
    "failures": "what failed by the failure rule, and why",
    "seeds": "grouped by configuration: means over seeds",
    "replayed": "whether each was as recorded, and where its gradients went",
    "accuracy": "top-1 and top-5 beside the published ones",
}


def experiment_tags(experiment: str) -> dict[str, str]:
    """The tags a new experiment is made with: its kind, a description, and the views."""
    tags = {"mlflow.experimentKind": "custom_model_development"}  # else the page asks
    return tags | {"mlflow.note.content": ABOUT[_kind(experiment)]} | _shared(VIEWS[_kind(experiment)])


def _kind(experiment: str) -> str:
    return experiment.removesuffix("-quick")


def description(experiment: str, experiment_id: str) -> str:
    """What the experiment's page says on top (Markdown): what a run is and a link to each view, in the one line that
    is seen before it is unfolded; below, what each view shows."""
    kind = _kind(experiment)
    quick = " Quick runs: demonstrations, never evidence." if experiment != kind else ""
    links = " · ".join(f"[{key}]({page('', experiment_id, key)})" for key in VIEWS[kind])
    says = "\n".join(f"- {key}: {SAYS[key]}" for key in VIEWS[kind])
    return f"{ABOUT[kind]}{quick} Views: {links}\n\n{says}"


def configuration(arm: str, name: str, config_id: str) -> str:
    """What a group of seeds is called: the arm, what its trainings share of their name, and its config_id."""
    shared = name.rpartition(" ")[0].partition(" ")[2]  # between the model and the seed
    return f"{arm} {shared} {config_id}"


def _shared(views: dict[str, dict]) -> dict[str, str]:
    return {f"mlflow.sharedViewState.{key}": _envelope(key, view) for key, view in views.items()}


def _envelope(name: str, view: dict) -> str:
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(view)})


def page(address: str, experiment_id: str, view: str | None = None) -> str:
    """The address of an experiment's table of runs, in a view."""
    shared = f"&viewStateShareKey={view}" if view else ""
    return f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{shared}"
