"""Whether a search that compiles a few candidates finds what compiling all of them finds.

    python tools/compare_search.py configs/models/llama3-8b.yaml --hardware v6e-64 data.seq_len=8192 \\
        train.batch_tokens=1048576 --within mesh.pipeline=1 --within remat.policy=full,dots --compiles 6

Every legal candidate is compiled, also those that the estimates would prune, and scored as the search scores them
(maxlm/plan/search.py). Printed: all candidates in the order of the estimates, what the search would choose after its
first compiles, the best of all, and how much slower the choice is. The last line is JSON.
"""

import argparse
import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path  # noqa: E402

from rich.console import Console  # noqa: E402

from maxlm.errors import MaxlmError  # noqa: E402
from maxlm.plan.command import parse_within  # noqa: E402
from maxlm.plan.request import request  # noqa: E402
from maxlm.plan.search import Candidate, Search, compile_all, estimated, varied  # noqa: E402
from maxlm.plan.tables import search_table  # noqa: E402
from maxlm.report.progress import track  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file of a run, or of a model")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--hardware", help="default: the file's hardware.name")
    parser.add_argument("--within", action="append", default=[], metavar="KEY=V,V", help="restricts the space")
    parser.add_argument("--compiles", type=int, default=6, help="candidates that the search compiles at a time")
    options = parser.parse_intermixed_args()
    try:
        config, system = request(options.config, options.overrides, options.hardware)
        ordered, legal = estimated(config, system, parse_within(options.within), margin=float("inf"))
        kept = {candidate.key for candidate in estimated(config, system, parse_within(options.within))[0]}
        progress = track(compile_all(ordered, system), f"compiling all {legal}", total=legal)
        compiled = {candidate.key: candidate for candidate in progress}
    except MaxlmError as error:
        error.exit()
    everything = [compiled[candidate.key] for candidate in ordered]
    choice = chosen([candidate for candidate in everything if candidate.key in kept], options.compiles)
    best = min((candidate for candidate in everything if candidate.fits), key=seconds)
    Console(width=150).print(search_table(Search(everything, legal, legal - len(kept))))
    result = {"legal": legal, "pruned": legal - len(kept), "compiles": options.compiles}
    result |= {"choice": varied(choice.config), "choice_seconds": seconds(choice)}
    result |= {"best": varied(best.config), "best_seconds": seconds(best)}
    print(json.dumps(result | {"choice_over_best": seconds(choice) / seconds(best)}))


def chosen(ordered: list[Candidate], compiles: int) -> Candidate:
    """What the search takes: the best of the first batch in which something fits."""
    for start in range(0, len(ordered), compiles):
        if fitting := [candidate for candidate in ordered[start : start + compiles] if candidate.fits]:
            return min(fitting, key=seconds)
    raise SystemExit("nothing fits")


def seconds(candidate: Candidate) -> float:
    return candidate.scored.step_seconds


if __name__ == "__main__":
    main()
