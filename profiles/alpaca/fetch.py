#!/usr/bin/env python3
"""Fetch the public files of this profile into data/raw/alpaca, from AlpacaEval's repository at a pinned commit.

`./fetch.py` takes them from GitHub, `./fetch.py --from FOLDER` from a copy of the git repository. A row of what is
written, prompts.jsonl and <teacher>.jsonl:

    {"instruction": "Name two colours.", "dataset": "koala"}
    {"instruction": "Name two colours.", "output": "Red, blue.", "preference": 0.25}

`preference` is the probability, by the log-probabilities of GPT-4 turbo, that it prefers this output to that of
gpt4_1106_preview, whose own is 0.5 by construction.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = "https://github.com/tatsu-lab/alpaca_eval"
COMMIT = "cd543a149df89434d8a54582c0151c0b945c3d20"
REFERENCE = "gpt4_1106_preview"
"""The teacher whose outputs the others are compared with; all 805 prompts are taken from its file."""
TEACHERS = (
    *(f"FuseChat-{name}-Instruct" for name in ("Gemma-2-9B", "Llama-3.1-8B", "Llama-3.2-1B", "Llama-3.2-3B")),
    "FuseChat-Qwen-2.5-7B-Instruct",
    "Mixtral-8x7B-Instruct-v0.1_concise",
    "OpenHermes-2.5-Mistral-7B",
    "Qwen-14B-Chat",
    "alpaca-7b",
    "claude-2.1",
    "claude-instant-1.2",
    "gemma-2b-it",
    "gemma-7b-it",
    "gpt-3.5-turbo-1106",
    REFERENCE,
    "openbuddy-llama2-70b-v10.1",
    "phi-2-sft",
    "vicuna-13b-v1.5",
    "vicuna-7b-v1.5",
)
Row = dict[str, Any]


def join(outputs: list[Row], annotations: list[Row]) -> tuple[list[Row], Counter[str]]:
    """A teacher's outputs with the preference for each, in the order of its outputs.

    Returns:
        Rows {instruction, output, preference}, and the counts of outputs that are left out, by reason, of annotations
        without an output, and of `empty` outputs, which are kept.
    """
    judged: dict[str, list[Row]] = {}
    for row in annotations:
        judged.setdefault(row["instruction"], []).append(row)
    rows: dict[str, Row] = {}
    counts = Counter[str]()
    for row in outputs:
        instruction, output = row["instruction"], row["output"]
        found = judged.get(instruction, [])
        of_output = [one["preference"] for one in found if one["output_2"] == output]
        if instruction in rows:
            counts["a second output"] += 1
        elif not found:
            counts["not judged"] += 1
        elif not of_output:
            counts["another output was judged"] += 1
        elif len(found) > 1:
            counts["judged more than once"] += 1
        elif of_output[0] is None:
            counts["no preference"] += 1
        else:
            # From 1 (the reference) to 2 (this output), with ten digits.
            preference = round(of_output[0] - 1, 10)
            rows[instruction] = {"instruction": instruction, "output": output, "preference": preference}
            counts["empty"] += not output.strip()
    counts["judged without an output"] = len(judged.keys() - {row["instruction"] for row in outputs})
    return list(rows.values()), +counts


def write(rows: list[Row], file: Path) -> None:
    """One json object per line, as UTF-8."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def git(*words: str) -> str:
    done = subprocess.run(("git", *words), capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"fetch.py: git {' '.join(words)} failed: {' '.join(done.stderr.decode().split())[-300:]}")
    return done.stdout.decode("utf-8")


def fetch(repository: str, out: Path) -> None:
    """Write prompts.jsonl and one file a teacher to `out`, and print what was joined and what was not."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        # Only the names; `git show` then takes each file as it is needed.
        git("clone", "--quiet", "--bare", "--filter=blob:none", repository, copy)

        def read(path: str) -> list[Row]:
            rows: list[Row] = json.loads(git("--git-dir", copy, "show", f"{COMMIT}:{path}"))
            return rows

        prompts = {row["instruction"]: row["dataset"] for row in read(f"results/{REFERENCE}/model_outputs.json")}
        write([{"instruction": text, "dataset": name} for text, name in prompts.items()], out / "prompts.jsonl")
        print(f"prompts: {len(prompts)}")  # noqa: T201
        for teacher in TEACHERS:
            folder = f"results/{teacher}"
            outputs = read(f"{folder}/model_outputs.json")
            rows, counts = join(outputs, read(f"{folder}/weighted_alpaca_eval_gpt4_turbo/annotations.json"))
            counts["prompts without a row"] = len(prompts.keys() - {row["instruction"] for row in rows})
            counts["rows of no prompt"] = len({row["instruction"] for row in rows} - prompts.keys())
            write(rows, out / f"{teacher}.jsonl")
            told = [f"{len(rows)} rows", *(f"{number} {why}" for why, number in (+counts).items())]
            print(f"{teacher}: {', '.join(told)}")  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = "the git repository: an address or a folder"
    parser.add_argument("--from", dest="repository", default=REPOSITORY, help=source)
    fetch(parser.parse_args().repository, Path(__file__).resolve().parent / "data/raw/alpaca")
