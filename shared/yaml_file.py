"""Plain values from a YAML file: no tags that make objects, no key twice, and no anchors that swell.

PyYAML's safe loader keeps the last of two equal keys without a word, and a few hundred bytes of anchors within anchors
("billion laughs") become gigabytes in whatever walks or prints them.
"""

from pathlib import Path
from typing import Any

import yaml

from shared.errors import BitlawError

MOST_VALUES = 1_000_000  # with every anchor written out
MOST_DEPTH = 100


class _Loader(yaml.SafeLoader):
    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _weigh(node, {}, [])
        return self.construct_document(node)

    # Both are called for each deeper level, long before Python's own limit; the scanner is slow far below it.
    def fetch_flow_collection_start(self, token: Any) -> None:
        self._limit(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        self._limit(len(self.indents))
        return super().add_indent(column)

    def _limit(self, depth: int) -> None:
        if depth >= MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested over {MOST_DEPTH} deep", problem_mark=self.get_mark())


def _weigh(node: yaml.Node, known: dict[int, int], above: list[int]) -> int:
    """Values in and below a node, those of an anchor wherever it is used; keys are compared on the way."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise _fault("an anchor holds itself", node)
    above.append(id(node))
    size = 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise _fault(f"key '{key.value}' stands twice; keep one", key)
            keys.add(str(key.value))
            size += _weigh(key, known, above) + _weigh(value, known, above)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_weigh(item, known, above) for item in node.value)
    if size > MOST_VALUES:
        raise _fault(f"over {MOST_VALUES:,} values when its anchors are written out", node)
    above.pop()
    known[id(node)] = size
    return size


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def read_yaml(path: Path) -> Any:
    """Raises BitlawError when the file cannot be read or is no YAML, has a key twice, or nests or swells too far."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise BitlawError(f"{path}: is not valid YAML for us (nested too deep)") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # Besides its own, PyYAML raises whatever a date, a number or a tagged value that is none makes Python raise.
        raise BitlawError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
