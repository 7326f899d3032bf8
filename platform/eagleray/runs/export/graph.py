"""A trained network as Python code that needs torch alone.

`torch.export` records the operators that a network computes, whatever library its layers come from. Written line by
line they are code that anyone can read, that runs on any device and in any precision, and that later versions of torch
run too: its operators (`torch.ops.aten`) keep their meaning, while archives of `torch.export` and TorchScript depend on
the version that wrote them. Copies of the layers' own sources would need the libraries that these come from.
"""

import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import Graph, Node

from eagleray.contracts.errors import ConfigError


@dataclass(frozen=True)
class NetworkCode:
    """The code of a network, and what it needs beside the weights."""

    text: str  # defines network(w, images); w: name -> weight
    constants: Mapping[str, Tensor]  # name -> values that are no part of the state_dict


def network_code(network: nn.Module, images: Tensor) -> NetworkCode:
    """Write a network in eval mode as code, for any number of images.

    Args:
        network: float [N, C, S, S] -> [N, dim].
        images: an example of at least two.

    Raises:
        ConfigError: it computes something that cannot be written so.
    """
    program = traced(network, images)
    names = _weights(program)
    lines = "\n".join(f"    {line}" for line in _lines(program.graph, names))
    held = {name: program.constants[name] for name in names.values() if name in program.constants}
    constants = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    return NetworkCode(
        f'def network(w, images):\n    """Compute the features of prepared images."""\n{lines}\n', constants
    )


def traced(network: nn.Module, images: Tensor) -> ExportedProgram:
    """Record the operators of a network, for any number of images.

    Raises:
        ConfigError: the network does not allow it.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of caches that layers keep; what is written is compared with the network
            program = export(network, (images,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # torch.export has dozens of errors
        why = str(error).strip().partition("\n")[0]
        raise ConfigError(f"this network cannot be exported: torch.export cannot record it ({why})") from error
    if changed := list(program.graph_signature.buffers_to_mutate.values()):
        raise ConfigError(f"this network cannot be exported: it changes {changed[0]} when it encodes images")
    return program


def _weights(program: ExportedProgram) -> dict[str, str]:
    """Return the weights' names: of the graph -> of the state_dict."""
    of = program.graph_signature
    return {**of.inputs_to_parameters, **of.inputs_to_buffers, **of.inputs_to_lifted_tensor_constants}


def _lines(graph: Graph, weights: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each operator.

    A value is deleted after its last use: the activations of all layers would not fit into memory.
    """
    names: dict[Node, str] = {}
    last = {used: node for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = f'w["{weights[node.name]}"]' if node.name in weights else "images"
        elif node.op == "output":
            yield f"return {_text(node.args[0][0], names)}"
        elif node.op == "call_function":
            names[node] = node.name
            given = [_text(each, names) for each in node.args]
            given += [f"{key}={_text(value, names)}" for key, value in node.kwargs.items()]
            done = [names[each] for each, user in last.items() if user is node and each.op == "call_function"]
            freed = f"; del {', '.join(done)}" if done else ""
            yield f"{node.name} = {_function(node)}({', '.join(given)}){freed}"
        else:
            raise ConfigError(f"this network cannot be exported: it computes {node.op} {node.target}")


def _function(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return f"torch.ops.{node.target}"
    name = getattr(node.target, "__name__", "")
    if getattr(operator, name, None) is node.target:
        return f"operator.{name}"
    if name.startswith("sym_") and getattr(torch, name, None) is node.target:
        return f"torch.{name}"
    raise ConfigError(f"this network cannot be exported: it computes {node.target}, which is no operator of torch")


def _text(value: object, names: Mapping[Node, str]) -> str:
    """Write an argument as code.

    A device becomes that of the images.
    """
    if isinstance(value, Node):
        return names[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(each, names) for each in value)}]"
    if isinstance(value, torch.device):
        return "images.device"
    if isinstance(value, float) and not abs(value) < float("inf"):
        return f"float('{value}')"
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.layout | torch.memory_format):
        return repr(value)
    raise ConfigError(f"this network cannot be exported: {value!r} cannot be written as code")
