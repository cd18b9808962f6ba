"""What a SavedModel's graph would do, found in its files before TensorFlow loads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from optkit.artifact import archive
from optkit.artifact.reading import refuse_lying_checkpoint, refuse_unsafe, unreadable
from optkit.errors import ModelError
from optkit.runtime import tensorflow
from optkit.safety import Unsafe, is_plain_operation

__all__ = ["check_saved_model", "keras_nodes"]

_INDEX, _METADATA = "saved_model.pb", "keras_metadata.pb"
_PROTOBUF_BYTES = 2**31 - 1
_TRUST = "Pass `trust=True` if you know who made the SavedModel and trust them."
_TEXT_FILE = ("InitializeTableFromTextFileV2", "InitializeTableFromTextFile")
_RESTORING = ("RestoreV2", "Restore", "RestoreSlice", "ShardedFilename")
_CONSOLE = ("", "stdout", "stderr", "log(info)", "log(warning)", "log(error)")
_AGAIN = "Get the whole folder from its source again, or save the model again."


def check_saved_model(folder: Path, *, trust: bool, named: Path) -> None:
    """Refuses a SavedModel that is damaged, claims more than it holds, or reaches out of itself.

    Args:
        folder: The folder, or a copy of it that nobody else has.
        named: The folder that the caller named, for messages.
        trust: Whether its operations may do what they like. What it claims is checked even so.

    Raises:
        ModelError: With what was found.
    """
    saved = _parsed(folder, named)
    for graph in saved.meta_graphs:
        for asset in graph.asset_file_def:
            if archive.escapes(asset.filename) or "/" in asset.filename:
                raise ModelError(
                    f"{str(named)!r} is refused: it names {asset.filename[:120]!r} as a file of "
                    f"its own, which is none. {_AGAIN}"
                )
        _refuse_claims(graph, folder, named)
    _refuse_variables(saved, folder, named)
    if not trust:
        found = [item for graph in saved.meta_graphs for item in _unsafe_operations(graph)]
        refuse_unsafe(named, tuple(dict.fromkeys(found)))


def _parsed(folder: Path, named: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / _INDEX
    if not path.is_file():
        raise ModelError(
            f"{str(named)!r} is no SavedModel: it lacks {_INDEX}. Name the folder that holds it."
        )
    if path.stat().st_size > _PROTOBUF_BYTES:
        raise unreadable(named, "it is larger than a protocol buffer can be", _AGAIN)
    try:
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise unreadable(named, f"{_INDEX} is damaged ({error})", _AGAIN) from error
    if not saved.meta_graphs:
        raise unreadable(named, f"{_INDEX} holds no graph", _AGAIN)
    return saved


def keras_nodes(folder: Path, named: Path) -> list[Any]:
    """What tf_keras says of its objects in a SavedModel; nothing where it did not write it.

    Raises:
        ModelError: If that is damaged.
    """
    from google.protobuf.message import DecodeError

    path = folder / _METADATA
    if not path.is_file():
        return []
    from tf_keras.protobuf import saved_metadata_pb2

    try:
        return list(saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes()).nodes)
    except (DecodeError, OSError) as error:
        raise unreadable(named, f"{_METADATA} is damaged ({error})", _AGAIN) from error


def _refuse_claims(graph: Any, folder: Path, named: Path) -> None:
    """Refuses constants that are larger unpacked than the folder could hold."""
    tf = tensorflow()
    stored = (folder / _INDEX).stat().st_size
    claimed = 0
    for _, nodes in _graphs(graph):
        for node in nodes:
            if node.op == "Const":
                tensor = node.attr["value"].tensor
                size = tf.as_dtype(tensor.dtype).size if tensor.dtype else 0
                claimed += math.prod(d.size for d in tensor.tensor_shape.dim) * (size or 1)
    if claimed > archive.allowed_bytes(stored):
        raise ModelError(
            f"{str(named)!r} is refused: its constants claim {claimed:,} bytes, and {_INDEX} has "
            f"{stored:,}. Such a file fills the memory when it is read. {_AGAIN}"
        )


def _refuse_variables(saved: Any, folder: Path, named: Path) -> None:
    tf = tensorflow()
    stored = sum(path.stat().st_size for path in (folder / "variables").glob("variables.data-*"))
    claimed = 0
    for graph in saved.meta_graphs:
        for node in graph.object_graph_def.nodes:
            if node.WhichOneof("kind") == "variable" and not node.variable.shape.unknown_rank:
                size = tf.as_dtype(node.variable.dtype).size if node.variable.dtype else 0
                claimed += math.prod(max(d.size, 1) for d in node.variable.shape.dim) * (size or 1)
    if claimed > archive.allowed_bytes(stored):
        raise ModelError(
            f"{str(named)!r} is refused: its variables claim {claimed:,} bytes, and the files in "
            f"'variables' have {stored:,}. {_AGAIN}"
        )
    prefix = folder / "variables" / "variables"
    if prefix.with_name("variables.index").is_file():
        refuse_lying_checkpoint(prefix, named)


def _graphs(graph: Any) -> Iterator[tuple[str, Any]]:
    """The nodes of the graph itself and of its functions, by name."""
    yield "", graph.graph_def.node
    for function in graph.graph_def.library.function:
        yield function.signature.name, function.node_def


def _unsafe_operations(graph: Any) -> Iterator[Unsafe]:
    """The operations that loading and running would run and that reach out of the graph.

    Every SavedModel holds functions that read and write checkpoints, which TensorFlow keeps for
    itself; so those count that can be reached from what is loaded and served.
    """
    from tensorflow.python.framework import op_def_registry

    functions = {f.signature.name: f for f in graph.graph_def.library.function}
    for name, nodes in _reached(graph, functions):
        place = f"function {name[:80]}" if name else "the graph"
        for node in nodes:
            if node.op in functions:
                continue
            registered = op_def_registry.get(node.op)
            if registered is None:
                yield Unsafe(
                    f"{place}, node {node.name[:80]}",
                    f"it uses the operation {node.op[:80]!r}, which this TensorFlow does not have",
                    "Import the library that brings it and pass `trust=True`.",
                )
            elif node.op in _TEXT_FILE:
                if not _reads_an_asset(graph, functions.get(name), node):
                    yield _reaching(place, node, "it reads a file that is not in the folder")
            elif node.op == "PrintV2":
                if node.attr["output_stream"].s.decode(errors="replace") not in _CONSOLE:
                    yield _reaching(place, node, "it writes a file")
            elif node.op != "Print" and not is_plain_operation(
                node.op, stateful=registered.is_stateful
            ):
                yield _reaching(place, node, f"it runs {node.op}, which reaches out of the graph")


def _reaching(place: str, node: Any, what: str) -> Unsafe:
    return Unsafe(f"{place}, node {node.name[:80]}", what, _TRUST)


def _reached(graph: Any, functions: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What loading and serving would run: nodes of the graph, and whole functions."""
    objects = graph.object_graph_def
    waiting = [name for name in objects.concrete_functions if name in functions]
    for node in objects.nodes:
        waiting += [name for name in node.function.concrete_functions if name in functions]
        waiting.append(node.bare_concrete_function.concrete_function_name)
        for saveable in node.saveable_objects.values():
            waiting += [
                objects.nodes[index].bare_concrete_function.concrete_function_name
                for index in (saveable.save_function, saveable.restore_function)
                if index < len(objects.nodes)
            ]
    if not objects.nodes:  # of TensorFlow 1: the graph itself is run, from its ends back
        served = _nodes_behind(graph, _ends(graph))
        restoring = _nodes_behind(graph, [graph.saver_def.restore_op_name])
        nodes = [*served, *(node for node in restoring if node.op not in _RESTORING)]
        yield "", nodes
        waiting += list(_called(nodes, functions))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        yield name, functions[name].node_def
        waiting += list(_called(functions[name].node_def, functions))


def _called(nodes: Iterable[Any], functions: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if node.op in functions:
            yield node.op
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            for item in value.list.func:
                yield item.name


def _ends(graph: Any) -> list[str]:
    """What the signatures and the initialization of an old graph give and run."""
    names = [
        info.name
        for signature in graph.signature_def.values()
        for info in (*signature.inputs.values(), *signature.outputs.values())
    ]
    for collection in graph.collection_def.values():
        names += collection.node_list.value
    return names


def _nodes_behind(graph: Any, names: list[str]) -> Iterator[Any]:
    """Nodes of the graph, and all that they are computed from."""
    nodes = {node.name: node for node in graph.graph_def.node}
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop().lstrip("^").partition(":")[0]
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        yield nodes[name]
        waiting += list(nodes[name].input)


def _reads_an_asset(graph: Any, function: Any, node: Any) -> bool:
    """Whether a lookup table is filled from a file that the folder itself holds."""
    if function is None:
        # Of TensorFlow 1: the name is a constant that loading replaces with the asset's.
        named = {asset.tensor_info.name.partition(":")[0] for asset in graph.asset_file_def}
        return node.input[1].partition(":")[0] in named
    arguments = [argument.name for argument in function.signature.input_arg]
    described = graph.object_graph_def.concrete_functions.get(function.signature.name)
    given = node.input[1].partition(":")[0]
    if described is None or given not in arguments:
        return False
    bound = list(described.bound_inputs)
    place = arguments.index(given) - (len(arguments) - len(bound))
    if not 0 <= place < len(bound):
        return False
    return bool(graph.object_graph_def.nodes[bound[place]].WhichOneof("kind") == "asset")
