"""What may change when a run goes on: what is free, what is recorded as an event, and what is refused."""

from typing import Any

from maxlm.config import Config, DoremiConfig
from maxlm.data.store import redact
from maxlm.errors import ConfigError

# Keys that do not change what is computed.
FREE = (
    "mesh", "pipeline", "parallel", "remat", "kernels", "compiler", "hardware", "optimizer.offload", "logging", "eval",
    "checkpoint", "processes", "runs_dir", "loss.split", "loss.chunk", "loss.block", "train.accumulate", "data.workers",
    "data.cache", "data.prefetch", "data.verify", "data.validation", "data.dynamic.reference", "faults.max_skips",
    "faults.max_rewinds", "init.from",
)  # fmt: skip

# Keys that change what is computed from now on; the change becomes an event of the run.
RECORDED = (
    "data.mixture", "data.seq_len", "data.exhausted", "train.batch_tokens", "train.total_tokens", "schedule",
    "precision.compute", "loss.z_loss",
    "optimizer.lr", "optimizer.b1", "optimizer.b2", "optimizer.eps", "optimizer.momentum", "optimizer.weight_decay",
    "optimizer.clip_norm", "optimizer.ema", "faults.deviations", "data.dynamic.step_size", "data.dynamic.smoothing",
    "data.dynamic.floor", "data.dynamic.warmup_steps",
)  # fmt: skip

# Of those, the keys that lay out anew what is read.
LAID_OUT = ("data.mixture", "data.seq_len", "data.exhausted", "data.sources", "train.batch_tokens")

Changes = dict[str, tuple[Any, Any]]  # dotted key -> (old, new)


def recorded_changes(old: Config, new: Config) -> Changes:
    """Changes that are to be recorded; raises `ConfigError` listing those that a run cannot take.

    A source may be added. The path of one is free: its manifest is compared instead (see `check_manifests`). So is that
    of a reference (`reference.check_same`).
    """
    changes = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    changes = {key: change for key, change in changes.items() if not _is_path(key) and not _under(key, FREE)}
    taken = {key for key, change in changes.items() if _under(key, RECORDED) or _is_source(key, change, new)}
    refused = {key: change for key, change in changes.items() if key not in taken}
    if refused:
        listed = "; ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in sorted(shown(refused).items()))
        raise ConfigError(
            f"{new.run_dir} holds a run with another configuration, and these keys cannot change in it: {listed}; "
            "set them back, or begin another run"
        )
    return changes


def shown(value: Any) -> Any:
    """Values as they may be told and written down: signed URLs without their signatures."""
    if isinstance(value, dict):
        return {key: shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shown, value))
    return redact(value) if isinstance(value, str) else value


def change_data(changes: Changes) -> bool:
    """Whether changes ask for other data from now on."""
    return any(_under(key, LAID_OUT) for key in changes)


def check_manifests(old: dict[str, str], new: dict[str, str], config: Config) -> None:
    """Training sources must hold the same tokens as before, by the hashes of their manifests."""
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            path = redact(config.data.sources[name].path)
            raise ConfigError(
                f"data.sources.{name}: {path} was prepared anew since {config.run_dir} began (manifest "
                f"{old[name][:12]}, now {new[name][:12]}); restore the data, or begin another run"
            )


def check_indexes(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]], config: Config) -> None:
    """Documents must be packed as before, by the hashes of the packing indexes per source and length."""
    for name, lengths in old.items():
        for seq_len, found in lengths.items():
            if (now := new.get(name, {}).get(seq_len, found)) != found:
                raise ConfigError(
                    f"data.sources.{name}: its documents were packed otherwise when {config.run_dir} began (index "
                    f"{found[:12]} for {seq_len} tokens, now {now[:12]}); go on with the program that began it"
                )


def differences(old: Any, new: Any, key: str = "") -> Changes:
    """Values that differ between two nested dictionaries, by dotted key."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: Changes = {}
        for part in sorted(old.keys() | new.keys()):
            found |= differences(old.get(part), new.get(part), f"{key}.{part}" if key else part)
        return found
    return {} if old == new else {key: (old, new)}


def _under(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(parent + ".") for parent in parents)


def _is_path(key: str) -> bool:
    return key.startswith("data.sources.") and key.endswith(".path")


def _is_source(key: str, change: tuple[Any, Any], new: Config) -> bool:
    """Whether a change says how often a source may be read, or adds one: not to those among which a proxy run finds
    weights, where it would come late."""
    parts = key.split(".")
    if parts[:2] != ["data", "sources"]:
        return False
    added = len(parts) == 3 and change[0] is None
    return (added and not isinstance(new.data.dynamic, DoremiConfig)) or parts[3:] == ["max_epochs"]
