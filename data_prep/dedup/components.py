"""Connected components: clusters of documents from pairs of them that share something.

Up to `PAIRS_HERE` pairs are connected in this process, in 1.8 GB at most. More are connected by queries, by the
large-star and small-star operations of Kiveris and others, "Connected components in MapReduce and beyond" (SoCC 2014):
each makes new pairs of the former ones, never more of them, until every cluster is a star around its least node. The
pairs lie on disk and are read by ranges of the nodes, so that memory is that of one query (engine/queries.py; 1.0 GB
measured with 16 million pairs), or of the largest cluster. A chain of 200,000 documents takes 29 steps. An interrupted
run goes on with the last step.

Both ways give the same groups. Nodes are places times an odd number, which spreads them evenly over 64 bits.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.dedup.tables import GROUP_ROWS, load, save
from data_prep.engine import queries
from data_prep.manifest import Folder, Record, writing

VERSION = 1
PAIRS_HERE = 2**24
SPREAD = 0x9E3779B97F4A7C15
GATHER = pow(SPREAD, -1, 2**64)
STATE = "state.json"


def connect(folder: Folder, key: str, files: Sequence[Path], here: int = PAIRS_HERE) -> Record:
    """Groups of the places that pairs (uint64 [pairs, 2] in each file) connect.

    `values` has documents and the names of `groups`: files of rows (place, group), uint64 [documents, 2], by place.
    """
    sizes = [len(load(path)) for path in files]
    if sum(sizes) <= here:
        pairs = [np.asarray(load(path)) for path in files]
        found = [_connected(np.concatenate([np.zeros((0, 2), np.uint64), *pairs]) * np.uint64(SPREAD))]
    else:
        found = _stars(folder.file(key, STATE).parent, files, sum(sizes))
    names, documents = [], 0
    for number, nodes in enumerate(found):
        groups = np.stack([nodes[:, 0] * np.uint64(GATHER), nodes[:, 1]], axis=1)
        names.append(f"groups-{number:05d}.npy")
        save(folder.file(key, names[-1]), groups[np.argsort(groups[:, 0])])
        documents += len(groups)
    # The state first: a step that is whole by its state has all its files.
    folder.file(key, STATE).unlink(missing_ok=True)
    for left in folder.file(key, STATE).parent.glob("step-*"):
        left.unlink()
    return folder.commit(key, names, {"groups": names, "documents": documents})


def _connected(pairs: np.ndarray) -> np.ndarray:
    """Rows (node, least node of its component) of pairs of nodes, all uint64 [., 2]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2).astype(np.int32)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), (len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    # Nodes ascend, so the first of a component is its least.
    _, first = np.unique(component, return_index=True)
    return np.stack([nodes, nodes[first[component]] if len(nodes) else nodes], axis=1)


def _stars(directory: Path, files: Sequence[Path], pairs: int) -> Iterator[np.ndarray]:
    """`_connected` of pairs on disk: the rows of one range of nodes after the other."""
    ranges = list(queries.ranges(2 * pairs))
    state = _state(directory)
    if state is None:
        for number, path in enumerate(files):
            nodes = np.asarray(load(path)) * np.uint64(SPREAD)
            _write(directory, 0, number, np.sort(nodes, axis=1)[:, ::-1])
        state = _save_state(directory, {"step": 0, "files": len(files), "quiet": 0})
    while state["quiet"] < 2:
        former, state = state, _step(directory, state, ranges)
        _save_state(directory, state)
        for path in (*_paths(directory, former, "down"), *_paths(directory, former, "up")):
            path.unlink()
    tables = [_table(_paths(directory, state, way)) for way in ("down", "up")]
    for low, high in ranges:
        leaves, roots = (queries.collect(table.between(low, high)) for table in tables)
        root = np.unique(roots["node"].to_numpy())
        leaf, first = np.unique(leaves["node"].to_numpy(), return_index=True)
        stars = np.stack([leaf, leaves["other"].to_numpy()[first]], axis=1)
        yield np.concatenate([np.stack([root, root], axis=1), stars])


def _step(directory: Path, state: dict, ranges: Sequence[tuple[int, int]]) -> dict:
    """One operation on all pairs; `quiet` counts the last ones that changed nothing: after both of them all is done."""
    step, changes = state["step"] + 1, 0
    large = step % 2 == 1
    ways = ("down", "up") if large else ("down",)
    table = _table([path for way in ways for path in _paths(directory, state, way)])
    for number, (low, high) in enumerate(ranges):
        found = queries.collect(queries.with_least(table.between(low, high), "node", "other"))
        columns = (found[name].to_numpy() for name in ("node", "other", "least"))
        pairs, changed = (_large_star if large else _small_star)(*columns)
        _write(directory, step, number, pairs)
        changes += changed
    return {"step": step, "files": len(ranges), "quiet": 0 if changes else state["quiet"] + 1}


def _table(paths: Sequence[Path]) -> queries.Sorted:
    return queries.Sorted(paths, ("node", "other"), "node")


def _large_star(node: np.ndarray, other: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, int]:
    """Every larger neighbour of a node is tied to the least of the node and its neighbours."""
    larger = other > node
    target = np.minimum(node, least)[larger]
    return np.stack([other[larger], target], axis=1), int((target != node[larger]).sum())


def _small_star(node: np.ndarray, other: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, int]:
    """A node, whose neighbours here are smaller, and they are tied to the least of them."""
    moved = other != least
    pairs = np.concatenate([np.stack([other[moved], least[moved]], axis=1), np.stack([node, least], axis=1)])
    return pairs, int(moved.sum())


def _write(directory: Path, step: int, number: int, pairs: np.ndarray) -> None:
    """Write pairs (larger, smaller) once each, sorted by the larger node and by the smaller one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    larger, smaller = pairs[:, 0], pairs[:, 1]
    for way, node, other in (("down", larger, smaller), ("up", smaller, larger)):
        order = np.lexsort((other, node))
        node, other = node[order], other[order]
        new = np.ones(len(node), bool)
        new[1:] = (node[1:] != node[:-1]) | (other[1:] != other[:-1])
        table = pa.table({"node": node[new], "other": other[new]})
        with writing(directory / f"step-{step}-{number:05d}-{way}.parquet") as temporary:
            pq.write_table(table, temporary, compression="none", use_dictionary=False, row_group_size=GROUP_ROWS)


def _paths(directory: Path, state: dict, way: str) -> list[Path]:
    return [directory / f"step-{state['step']}-{number:05d}-{way}.parquet" for number in range(state["files"])]


def _state(directory: Path) -> dict | None:
    """The last step that is whole."""
    path = directory / STATE
    return json.loads(path.read_bytes()) if path.is_file() else None


def _save_state(directory: Path, state: dict) -> dict:
    with writing(directory / STATE) as temporary:
        temporary.write_text(json.dumps(state))
    return state
