"""The one way between YAML and plain values: files of studies, recipes, and values of `-p`.

The text comes from outside, so its size and depth are checked before it is loaded. Numbers are those of YAML 1.2, where
1e-3 is a number. Dates are texts.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import WorkbenchError, shown

MAX_CHARACTERS = 100_000
MAX_DEPTH = 32
MAX_VALUES = 10_000  # with every alias (`*name`) replaced by what it stands for
MAX_INTEGER = 2**53  # larger ones are not exact in JSON and floats
TAGS = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))}
NUMBER = r"[-+]?(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+"
FLOAT = re.compile(rf"^(?:{NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the floats of YAML 1.2, without dates, and with bounded integers."""

    def construct_yaml_int(self, node: yaml.Node) -> int:
        """Return an integer.

        Raises:
            YAMLError: If it is too large.
        """
        digits = str(node.value)
        if len(digits) <= 64:
            value = super().construct_yaml_int(node)
            if abs(value) <= MAX_INTEGER:
                return value
        raise yaml.MarkedYAMLError(None, None, f"{shown(digits, 40)} is too large for an integer", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":timestamp", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes texts that `_Loader` would read as numbers, and escapes rare line breaks."""

    def represent_str(self, text: str) -> yaml.Node:
        """Return a text. PyYAML reads a rare line break back only from double quotes."""
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def dump_yaml(value: Any) -> str:
    """Return a plain value as a YAML text that `load_yaml` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_yaml(text: str, source: str) -> Any:
    """Return the plain value of a YAML text.

    Args:
        text: The text.
        source: Where it comes from, for the error, such as "my.yaml" or "`rates`".

    Raises:
        WorkbenchError: If it is not YAML, is not plain, or is larger than any study or recipe.
    """
    try:
        _check(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1})"
        lines = str(getattr(error, "problem", None) or error).splitlines()
        problem = shown(lines[0].strip() if lines else "it cannot be read", 120, quote=False)
        raise WorkbenchError(f"{source} is not valid YAML: {problem}{where}.") from error


def read_yaml(file: Path) -> Any:
    """Return the plain value of a YAML file.

    Raises:
        WorkbenchError: If the file cannot be read, or `load_yaml` refuses its text.
    """
    try:
        if not file.is_file():
            raise WorkbenchError(f"cannot read {shown(str(file), quote=False)}: it is not a file. Check its path.")
        with open(file, encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except OSError as error:
        where = shown(str(file), quote=False)
        raise WorkbenchError(f"cannot read {where} ({error.strerror}). Check its path.") from error
    except UnicodeDecodeError as error:
        raise WorkbenchError(f"{file.name} is not valid YAML: it is not text in UTF-8 ({error.reason}).") from error
    return load_yaml(text, file.name)


def _check(text: str) -> None:
    """Check size, depth and tags of a text, without building its values.

    Raises:
        YAMLError: If it is too large or too deep, has an alias inside its own value, or a tag of another type.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {MAX_CHARACTERS:,} characters")
    sizes: dict[str, int] = {}  # values by anchor; without a size while the anchor's value is open
    open_values: list[tuple[str | None, int]] = []  # anchor, and the number of values before it
    count = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.MarkedYAMLError(
                    None, None, f"*{event.anchor} is unknown, or stands inside its own value", event.start_mark
                )
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in TAGS:
                raise yaml.MarkedYAMLError(None, None, f"the tag {event.tag} is not allowed", event.start_mark)
            if isinstance(event, yaml.ScalarEvent):
                sizes |= {event.anchor: 1} if event.anchor else {}
            else:
                open_values.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_values.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if len(open_values) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, f"lists and mappings are more than {MAX_DEPTH} levels deep", event.start_mark
            )
        if count > MAX_VALUES:
            raise yaml.MarkedYAMLError(None, None, f"it has more than {MAX_VALUES:,} values", event.start_mark)
