"""Data: hub data sets as local folders of a few invented rows, which `datasets` loads by the same call.

The rows are rehearsal/rows/<owner>--<name>[--<config>][--<split>].jsonl, in the columns of that data set.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from persyn.errors import InputError
from persyn.files import write_text
from persyn.schemas import PROMPTS, read_table
from rehearsal.tasks import ROWS


class LocalData:
    """A fresh folder for the data sets of one profile. It is also HF_HOME, because `datasets` caches a folder by its
    name and would not notice changed files."""

    def __init__(self, folder: Path, seen_from: Path) -> None:
        self.folder, self.seen_from = folder, seen_from
        shutil.rmtree(folder, ignore_errors=True)

    def localised(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        """A source of prompts or responses that reads local rows instead of its hub data set; a source with a file is
        not changed. Its revision is a hash of the rows, so that changed rows are read again.

        Raises:
            InputError: there are no rows for it.
        """
        if not source.get("hub"):
            return source
        config, stem = source.get("config") or "default", source["hub"].replace("/", "--")
        split = re.sub(r"\[.*?\]", "", source.get("split", "train"))  # for a slice, all of the few rows
        place = self.folder / stem
        (place / config).mkdir(parents=True, exist_ok=True)
        content = hashlib.sha1(usedforsecurity=False)
        for part in split.split("+"):
            stems = [f"{stem}--{config}--{part}", f"{stem}--{config}", *([stem] if config == "default" else [])]
            rows = next((ROWS / f"{name}.jsonl" for name in stems if (ROWS / f"{name}.jsonl").is_file()), None)
            if rows is None:
                raise InputError(
                    f"the rehearsal needs a few rows in the columns of {source['hub']} as {ROWS / stems[-1]}.jsonl"
                )
            shutil.copy(rows, place / config / f"{part}.jsonl")
            content.update(rows.read_bytes())
        self._describe(place)
        hub = os.path.relpath(place, self.seen_from)
        return {**source, "hub": hub, "revision": content.hexdigest(), "split": split}

    @staticmethod
    def _describe(place: Path) -> None:
        """The card that tells `datasets` which files are which configuration and split."""
        configs = [
            {
                "config_name": config.name,
                "data_files": [
                    {"split": file.stem, "path": f"{config.name}/{file.name}"} for file in sorted(config.iterdir())
                ],
            }
            for config in sorted(filter(Path.is_dir, place.iterdir()))
        ]
        with (place / "README.md").open("w") as card:
            card.write("---\n")
            YAML().dump({"configs": configs}, card)
            card.write("---\n")


def parallel_sources(prompts: Path, folder: Path) -> list[dict[str, Any]]:
    """Sources, one a domain, of the parallel prompts in the table `prompts`, as files in `folder` named by content."""
    table, sources = read_table(prompts, PROMPTS).filter(pl.col("parallel")), []
    for (domain,), part in table.group_by("domain", maintain_order=True):
        rows = part.select("prompt", "reference").write_ndjson()
        file = folder / f"parallel-{hashlib.sha256(rows.encode()).hexdigest()[:12]}.jsonl"
        write_text(rows, file)
        source = {"path": str(file), "domain": domain, "license": part["license"][0]}
        sources.append(source if part["reference"].null_count() else source | {"reference": "reference"})
    return sources
