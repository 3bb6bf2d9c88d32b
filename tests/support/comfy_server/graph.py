"""A small writer of API-format workflows."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """One node of a `Graph`; `node[i]` links to its output number i."""

    id: str

    def __getitem__(self, output: int) -> list:
        return [self.id, output]


@dataclass
class Graph:
    """An API-format workflow under construction; `Graph.prompt` is what POST /prompt takes."""

    prompt: dict = field(default_factory=dict)

    def node(self, class_type: str, **inputs) -> Node:
        """Add a node; an input is a value or a link such as `other[0]`. Inputs that are None are left out."""
        node_id = str(len(self.prompt) + 1)
        given = {name: value for name, value in inputs.items() if value is not None}
        self.prompt[node_id] = {"class_type": class_type, "inputs": given}
        return Node(node_id)

    def keep(self, key: str, value: list) -> Node:
        """Keep the tensors of an output for the test, as `run.kept[key]`."""
        return self.node("DNOTestKeep", key=key, value=value)
