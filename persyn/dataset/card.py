"""Card: the README of a dataset: how it was made, by whom, and the terms that bind its users."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

import polars as pl

from persyn.dataset.mix import is_mix
from persyn.files import markdown_table, markdown_text
from persyn.generation import Teacher

HUB_LICENSES = {"apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gemma", "mit", "odc-by"}
"""The hub's identifiers of some licences; a card names no other."""
TERMS = {
    "allowed": "may train other models",
    "conditional": "may train other models on a condition",
    "forbidden": "must not train other models, by the terms; they were taken all the same",
    "unknown": "may or may not train other models: the terms were not looked up",
}
MIX_TERMS = {training: text.replace("other models", "models") for training, text in TERMS.items()}
"""Of data sets, whoever wrote them."""
ORIGINS = ["source", "license", "teacher", "teacher_license", "training"]
COLUMNS = (
    "`prompt` and `completion` are lists of messages (role, content). A completion that was cut has the "
    "`finish_reason` length. Every row names its `teacher`, the `license` of its prompt, the `teacher_license`, and "
    "whether its outputs may serve for `training` other models."
)


def count_origins(prompts: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """How many rows are of the same origin: source (null: a mix), license, teacher, teacher_license, training, rows.

    Args:
        prompts: prompt_id and source.
        rows: prompt_id, license, teacher, teacher_license and training of each response.
    """
    sources = prompts.select("prompt_id", "source")
    return sum_origins([rows.join(sources, on="prompt_id", how="left", validate="m:1").with_columns(rows=1)])


def sum_origins(counted: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The tables of count_origins of parts of a dataset as one."""
    tables = [table.select(*ORIGINS, pl.col("rows").cast(pl.Int64)) for table in counted]
    return pl.concat(tables).group_by(ORIGINS).agg(pl.col("rows").sum()).sort(ORIGINS)


def build_card(
    strategy: str,
    origins: pl.DataFrame,
    counts: Mapping[str, Any],
    teachers: Mapping[str, Teacher],
    cleaning: Mapping[str, Any],
    sections: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """The data card: the README of a Hugging Face dataset, in markdown below YAML front matter.

    It says how the data was made, by whom, and the terms that bind its users. It holds no text of any row; text from
    params.yaml and from sources is escaped.

    Args:
        origins: count_origins of DATASET.
        counts: as build_dataset returns them.
        teachers: by name, those in the dataset at least.
        cleaning: the counts of build_prompts.
        sections: heading -> markdown, placed after the conditions; None describes the columns of DATASET.
        config: the entry of `configs` in the front matter, by which `datasets` loads the files beside the card. Its
            `features`, if any, go to `dataset_info`: the types of columns that the files do not say.
    """
    made = [
        f"- Strategy {markdown_text(strategy)} chose who answers a prompt; teachers that wrote what is here: "
        f"{origins.filter(~is_mix())['teacher'].n_unique()}.",
        *cleaning_lines(cleaning),
        f"- Responses: {counts['rows']} written, {counts['kept']} kept; dropped: {reasons(counts['dropped'])}.",
        *_required(counts),
    ]
    opening = "Synthetic data for supervised fine-tuning: every response was written by a language model."
    sections = sections or {"Columns": COLUMNS}
    if mixes := counts.get("mix"):
        opening = (
            "Data for supervised fine-tuning: responses of language models, and rows of existing data sets (mixes)."
        )
        sections = {"Mixes": _mixes(mixes)} | dict(sections)
    return compose_card(strategy, opening, made, origins, teachers, sections, config)


def compose_card(
    name: str,
    opening: str,
    made: Sequence[str],
    origins: pl.DataFrame,
    teachers: Mapping[str, Teacher],
    sections: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> str:
    """A card of any rows that teachers wrote.

    Args:
        name: whose data it is; `opening` says in a sentence what it is, the lines of `made` how it was made.
        origins: count_origins of the responses.
        teachers, sections, config: as build_card takes them.
    """
    rows = origins.filter(~is_mix())
    sources = rows.group_by("source", "license").agg(pl.col("rows").sum()).sort("source", "license").rows()
    parts = [
        f"# PerSyn: {markdown_text(name)}",
        f"{opening} Made by PerSyn, after [arXiv 2510.10925](https://arxiv.org/abs/2510.10925).",
        "## How it was made",
        *made,
        "## Teachers",
        _teachers_table(rows, teachers),
        "## Prompts",
        markdown_table(["source", "licence", "rows"], [(shown(source), *rest) for source, *rest in sources]),
        "## Conditions",
        "Who uses this data is bound by all of these. They are as recorded by who made the data, and no legal advice.",
        "\n".join(_conditions(rows, teachers)),
    ]
    for heading, text in sections.items():
        parts += [f"## {heading}", text]
    return _front_matter(name, origins, config) + "\n\n".join(parts) + "\n"


def cleaning_lines(cleaning: Mapping[str, Any]) -> list[str]:
    """What became of the prompts, by the counts of build_prompts."""
    dropped = cleaning["dropped"]
    return [
        f"- Prompts: {cleaning['read']} read, {cleaning['kept']} kept; dropped: {reasons(dropped)}.",
        f"- Decontamination: {dropped.get('contaminated', 0)} of the prompts read repeated an item of an "
        "evaluation set named in `prompts.decontaminate`, "
        f"{dropped.get('nearly contaminated', 0)} nearly repeated one; they were dropped.",
    ]


def _front_matter(strategy: str, origins: pl.DataFrame, config: Mapping[str, Any] | None) -> str:
    from huggingface_hub import DatasetCardData

    licenses = {name.lower() for column in ("license", "teacher_license") for name in origins[column].unique()}
    free = set(origins["training"]) <= {"allowed"}  # otherwise the licence alone would promise more than the conditions
    one = next(iter(licenses)) if len(licenses) == 1 and licenses <= HUB_LICENSES and free else None
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    size = next((name for bound, name in bounds.items() if origins["rows"].sum() < bound), "n>1M")
    license_ = {"license": one} if one else {"license": "other", "license_name": "see-conditions"}
    entry = dict(config or {})
    features = entry.pop("features", None)
    data = DatasetCardData(
        pretty_name=f"PerSyn: {strategy}",
        size_categories=[size],
        task_categories=["text-generation"],
        tags=["synthetic", "distillation", "persyn"],
        configs=[entry] if entry else None,
        dataset_info={"features": features} if features else None,
        **license_,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def reasons(dropped: Mapping[str, int]) -> str:
    """Reasons and their counts in a line."""
    return ", ".join(f"{markdown_text(reason)} {count}" for reason, count in sorted(dropped.items())) or "none"


def _required(counts: Mapping[str, Any]) -> list[str]:
    """The line about the required quality; none if there is no such thing."""
    if not (found := counts.get("require")):
        return []
    least = ", ".join(f"{domain} {value:g}" for domain, value in found["least"].items())
    text = (
        f"- Required quality, {least}: of {found['prompts']} prompts, {found['at_once']} had it at once, "
        f"{found['retried']} from a teacher asked later, {found['dropped']} are left out."
    )
    unretried = f" {found['unretried']} of these were not asked as often as allowed: the budget was spent."
    return [text + (unretried if found["unretried"] else "")]


def _mixes(mixes: Mapping[str, Mapping[str, Any]]) -> str:
    """The data sets whose rows were joined, and the terms that bind who uses them."""
    table, conditions = [], []
    for label, one in mixes.items():
        dropped = ", ".join(f"{reason} {count}" for reason, count in one["dropped"].items()) or "none"
        table.append((shown(label), shown(one["origin"]), one["license"], one["read"], one["kept"], dropped))
        rest = f": {markdown_text(one['terms'])}" if one["terms"] else ""
        named = f"{markdown_text(shown(label))} (licence {markdown_text(one['license'])})"
        conditions.append(f"- Rows of {named} {MIX_TERMS[one['training']]}{rest}.")
    text = (
        "Rows of existing data sets, taken as they are; their `teacher` is mix: and the name here. No teacher of this "
        "project wrote them and nothing scored them. Who wrote them is for the data set to say. The tables and shares "
        "above are without them, and these conditions bind too."
    )
    heads = ["data set", "from", "licence", "rows read", "rows", "dropped"]
    return "\n\n".join([text, markdown_table(heads, table), "\n".join(conditions)])


def _teachers_table(origins: pl.DataFrame, teachers: Mapping[str, Teacher]) -> str:
    rows = []
    for name, count in origins.group_by("teacher").agg(pl.col("rows").sum()).sort("teacher").rows():
        one = teachers[name]
        share = f"{count / origins['rows'].sum():.1%}"
        rows.append((name, shown(one.model), one.revision, one.license, one.training, count, share))
    return markdown_table(["teacher", "model", "revision", "licence", "training on its outputs", "rows", "share"], rows)


def _conditions(origins: pl.DataFrame, teachers: Mapping[str, Teacher]) -> list[str]:
    """A line for each licence of prompts, and one for all teachers with the same terms."""
    lines = [f"- Prompts under {markdown_text(name)}." for name in sorted(origins["license"].unique())]
    same: dict[tuple[str, str, str | None], list[str]] = {}
    for name in sorted(origins["teacher"].unique()):
        teacher = teachers[name]
        same.setdefault((teacher.license, teacher.training, teacher.terms), []).append(name)
    for (license_, training, terms), names in same.items():
        rest = f": {markdown_text(terms)}" if terms else ""
        by = f"{', '.join(map(markdown_text, names))} (licence {markdown_text(license_)})"
        lines.append(f"- Responses of {by} {TERMS[training]}{rest}.")
    return lines


def shown(name: str) -> str:
    """The name of a model or a source; of a local path, only its last part."""
    windows = PureWindowsPath(name)  # handles drives and both kinds of slash
    machine = name.startswith(("~", "/", "file:")) or windows.is_absolute() or ".." in windows.parts
    return windows.name if machine else name
