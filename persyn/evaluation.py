"""Evaluation: a student -> lm-eval's scores and its response to every item."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from persyn.chat import student_tokenizer
from persyn.errors import InputError, did_you_mean
from persyn.files import cache_folder, read_json, write_json
from persyn.models import default_precision, load_tokenizer, locate_model, model_identity
from persyn.schemas import SAMPLES, read_table, write_table
from persyn.settings import Commit, Misfit, Name, Seed, Settings, Thinking, VLLMKnobs
from persyn.verifiers import prepare_ifeval

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
WEIGHTS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
"""The files of a model beside its tokenizer's."""
CODE = ("chat", "evaluation.py", "evaluation_model.py", "messages.py", "thinking.py", "verifiers")
"""The rooms whose code decides what a student is asked and how its responses are scored."""
Scores = dict[str, dict[str, dict[str, Any]]]
"""task -> metric -> {value, stderr, n, cut}: n items, cut of their responses reached the token limit before their end
(null: nothing was generated)."""


class Finished(Settings):
    """A finished model, which is evaluated as the students are, but not trained."""

    model: Annotated[str, Field(min_length=1)]
    """`packaged:<name>`, a local folder or a hub id."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    thinking: Thinking = "none"
    """none: it is asked for its answer alone, as its chat template writes one without a thought. keep: it thinks
    first, and is scored on what follows its thought."""


class EvaluationSettings(Settings):
    """The section `evaluation`: lm-eval's tasks, and how they are run."""

    later: ClassVar = frozenset({"beside"})

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of lm-eval tasks, or of those in tasks/."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Response tokens at most; null takes each task's own."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Items a task; null takes all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples shown; null takes each task's own."""
    seed: Seed = 0
    """Of few-shot examples, and of whatever else a task draws."""
    beside: dict[Name, Finished] = Field(default_factory=dict)
    """Name -> a finished model that is evaluated on the same tasks and compared with `persyn`, beside the strategies
    and the student before any tuning (`untuned`)."""


class EvaluationSpeed(VLLMKnobs):
    """How fast students are evaluated: by which engine, and its knobs. What it is asked and what counts is the same.
    `batch_size` and `launch` are of transformers, `dtype` of both, the others of vllm.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates. Both read the same tokens; greedy responses differ only where two tokens are as likely but for
    rounding."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Precision of the student's weights; null is bfloat16 on a GPU, float32 on a CPU. It changes responses slightly,
    as another machine does: compare students of one precision. A CPU with AMX or AVX-512 BF16 is faster in bfloat16."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Items at once."""
    launch: str | None = None
    """A config file of accelerate, such as configs/accelerate/ddp.yaml, whose processes share the items."""

    @model_validator(mode="after")
    def _known_to_the_engine(self) -> Self:
        of_vllm = set(VLLMKnobs.model_fields)
        foreign = of_vllm if self.engine == "transformers" else {"batch_size", "launch"}
        for name in sorted(foreign & self.model_fields_set):
            if getattr(self, name) is not None:
                other = "vllm" if name in of_vllm else "transformers"
                raise Misfit(name, f"is a knob of the engine {other}, but engine is {self.engine}; leave it out")
        return self


def evaluate_student(
    folder: str | Path,
    task_folder: str | Path,
    settings: EvaluationSettings,
    speed: EvaluationSpeed,
    thinking: Thinking = "none",
) -> tuple[Scores, pl.DataFrame]:
    """Run lm-eval tasks on a trained student, rendered by the chat template it was trained with.

    Args:
        folder: the student.
        task_folder: yaml task files that lm-eval finds beside its own.
        speed: the engine and its knobs. Of the processes of its `launch` only the main one returns; the others end.
        thinking: keep if the student was trained to think: a response is then scored on what follows its thought.

    Returns:
        Scores, and SAMPLES, whose responses are as the student wrote them.

    Raises:
        InputError: a task is unknown, its code or the student cannot be loaded, or a prompt does not fit the context.
    """
    prepare_ifeval()
    from lm_eval import simple_evaluate

    with (
        closing(_load_student(str(folder), settings, speed, thinking)) as model,
        tempfile.TemporaryDirectory() as scratch,
        _task_code(task_folder),
    ):
        manager = _task_manager(Path(task_folder), settings.tasks, Path(scratch))
        if not model.tokenizer.chat_template:
            raise InputError(f"{folder}: the student's tokenizer has no chat template; run `dvc repro student` again")
        results = simple_evaluate(
            model=model,
            tasks=settings.tasks,
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            gen_kwargs={"max_gen_toks": settings.max_tokens} if settings.max_tokens else None,
            apply_chat_template=True,
            log_samples=True,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
            bootstrap_iters=1000,
        )
    _leave_to_main(results)
    samples = _samples(results)
    return _scores(results, _count_cut(samples, settings)), samples


def evaluate_once(
    folder: str | Path,
    task_folder: str | Path,
    settings: EvaluationSettings,
    speed: EvaluationSpeed,
    thinking: Thinking,
    elsewhere: Callable[[], None] | None = None,
) -> tuple[Scores, pl.DataFrame]:
    """As evaluate_student, unless PerSyn's cache folder holds what the same model gave on the same tasks before.

    The same are: the model's files, the task files and the local files that they name, the settings (but for `beside`),
    the precision, and the code that asks and scores (CODE, lm-eval, transformers).

    Args:
        elsewhere: evaluates in processes of its own, which keep the result in the cache folder.
    """
    decides = {
        "model": model_identity(str(folder), None).rpartition("@")[2],
        "tasks": _digest_tasks(Path(task_folder)),
        "settings": {name: value for name, value in settings.model_dump().items() if name != "beside"},
        "thinking": thinking,
        "precision": speed.dtype or default_precision(),
        "code": _digest({str(file.relative_to(HERE)): file for room in CODE for file in _files(HERE / room)}),
        "versions": [version(package) for package in ("lm_eval", "transformers")],
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    scores, samples = (cache_folder() / "evaluations" / key / name for name in ("scores.json", "samples.parquet"))
    if scores.is_file():
        logger.info(
            "%s was evaluated before on these tasks; its responses are taken from %s", Path(folder).name, scores.parent
        )
        if int(os.environ.get("RANK", "0")):  # of several processes only the main one goes on
            raise SystemExit(0)
    elif elsewhere:
        elsewhere()
    else:
        found, responses = evaluate_student(folder, task_folder, settings, speed, thinking)
        try:
            write_table(responses, samples, SAMPLES)
            write_json(found, scores)
        except OSError as error:
            raise InputError(
                f"{scores.parent} cannot be written: {error.strerror}; free some space or point PERSYN_CACHE elsewhere"
            ) from error
    return read_json(scores), read_table(samples, SAMPLES)


@contextmanager
def as_student(name: str, finished: Finished, date: str) -> Iterator[Path]:
    """A folder, called `name`, like that of a trained student: the model's own weights, and the tokenizer that training
    would save with them, so that it is asked as trained students are.

    Args:
        date: what the chat template writes as today's date.

    Raises:
        InputError: the model cannot be found, has no safetensors or a chat template that cannot be used, or what is
            done with the folder fails; it names the model.
    """
    try:
        tokenizer = student_tokenizer(load_tokenizer(finished.model, finished.revision), finished.thinking, date)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            tokenizer.save_pretrained(folder)
            for file in _weights(finished):
                (folder / file.name).symlink_to(file.resolve())
            yield folder
    except InputError as error:
        lines = [f"{name} ({finished.model}): {line}" for line in error.args]
        raise InputError(*lines) from error


def _weights(finished: Finished) -> list[Path]:
    """The files of WEIGHTS; those of a hub model are downloaded if they are not here yet."""
    where = locate_model(finished.model, finished.revision)
    folder = Path(where["pretrained_model_name_or_path"])
    if "revision" in where:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(folder), revision=where["revision"], allow_patterns=list(WEIGHTS)))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"it cannot be downloaded; check its name and the network: {reason}") from error
    files = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    if not any(file.suffix == ".safetensors" for file in files):
        raise InputError(f"there are no *.safetensors in {folder}; save the whole model again with safetensors")
    return files


def _digest_tasks(folder: Path) -> str:
    """The content of the task files, and of the local files that they name."""
    files = {str(file.relative_to(folder)): file for file in _files(folder)}
    for file in list(files.values()):
        for named in re.findall(r"[^\s'\"\[\]{},]+", file.read_text(errors="replace")):
            if "/" in named and len(named) < 4096 and Path(named).is_file():
                files[f"named {named}"] = Path(named)
    return _digest(files)


def _files(path: Path) -> list[Path]:
    """A file, or the files below a folder, without what Python keeps beside them."""
    below = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in below if file.is_file() and "__pycache__" not in file.parts]


def _digest(files: dict[str, Path]) -> str:
    contents = [f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for name, file in sorted(files.items())]
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def _load_student(folder: str, settings: EvaluationSettings, speed: EvaluationSpeed, thinking: Thinking) -> Any:
    """The student in its engine, as an lm-eval model."""
    import torch

    from persyn.evaluation_model import EvaluatedStudent, load_in_vllm

    on_gpu = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > (settings.limit or processes):
        raise InputError(
            f"speed.evaluation.launch starts {processes} processes, but evaluation.limit leaves {settings.limit} items "
            f"a task; start no more processes than items"
        )
    if speed.engine == "transformers" and processes == 1 and torch.cuda.device_count() > 1:
        logger.warning("%d GPUs are visible, evaluation uses one: see speed.evaluation", torch.cuda.device_count())
    try:
        if speed.engine == "vllm":
            return load_in_vllm(folder, speed, thinking, settings.seed, speed.dtype)
        return EvaluatedStudent(
            thinking=thinking,
            pretrained=folder,
            device="cuda" if on_gpu else "cpu",
            dtype=speed.dtype or default_precision(),
            batch_size=speed.batch_size,
        )
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the student in {folder} cannot be loaded ({reason}); run `dvc repro student`") from error


def _leave_to_main(results: Any) -> None:
    """End every process but the main one, which has all results."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if results is None:
        raise SystemExit(0)


@contextmanager
def _task_code(task_folder: str | Path) -> Iterator[None]:
    """Say in one line that the code that a task file names cannot be loaded, and why."""
    try:
        yield
    except (ImportError, SyntaxError, AttributeError, IsADirectoryError) as error:
        if isinstance(error, AttributeError) and "from YAML" not in str(error):
            raise
        raise InputError(f"a task of {task_folder} cannot be loaded: {' '.join(str(error).split())}") from error


def check_tasks(task_folder: str | Path, tasks: Sequence[str]) -> None:
    """Refuse names of tasks that neither `task_folder` nor lm-eval knows: in seconds, before anything is paid for. A
    params.yaml that stands alone, without such a folder, is not checked, which is said.

    Raises:
        InputError: there are some.
    """
    if not Path(task_folder).is_dir():
        logger.warning("evaluation.tasks are not checked: there is no folder %s", task_folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _task_manager(Path(task_folder), tasks, Path(scratch))


def _task_manager(task_folder: Path, tasks: Sequence[str], scratch: Path) -> Any:
    """lm-eval's tasks and ours. An `include` is looked up beside its file, so ours are copied beside lm-eval's own."""
    import lm_eval.tasks

    for shipped in Path(lm_eval.tasks.__file__).parent.iterdir():
        if shipped.is_dir():
            (scratch / shipped.name).symlink_to(shipped)
    shutil.copytree(task_folder, scratch / "persyn")
    manager = lm_eval.tasks.TaskManager(include_path=str(scratch / "persyn"), include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):  # only now: listing lm-eval's own tasks takes seconds
        manager = lm_eval.tasks.TaskManager(include_path=str(scratch / "persyn"))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        near = did_you_mean(unknown[0], manager.all_tasks) if unknown else ""
        raise InputError(
            f"evaluation.tasks: {unknown or 'empty'}; `lm-eval ls tasks` and {task_folder} list them{near}"
        )
    return manager


def _count_cut(samples: pl.DataFrame, settings: EvaluationSettings) -> dict[str, int | None]:
    """Task -> how many of its items have a response that was cut, which is said; None if nothing was generated."""
    limit = f"evaluation.max_tokens ({settings.max_tokens})" if settings.max_tokens else "the task's token limit"
    found: dict[str, int | None] = {}
    for (task,), rows in samples.group_by("task", maintain_order=True):
        known = rows.unique("sample_id")["cut"].drop_nulls()
        found[str(task)] = int(known.sum()) if len(known) else None
        if known.any():
            logger.warning("%s: %d of %d responses reached %s and were cut", task, known.sum(), len(known), limit)
    return found


def _scores(results: Any, cut: dict[str, int | None]) -> Scores:
    """lm-eval's keys are `metric,filter` for a value and `metric_stderr,filter` for its error; groups are included."""
    scores: Scores = {}
    items = {task: int(counted["effective"]) for task, counted in results["n-samples"].items()}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            if kept and not metric.endswith("_stderr"):
                stderr = values.get(f"{metric}_stderr,{kept}")
                scores.setdefault(task, {})[_name(metric, kept)] = {
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "n": _total(results, task, items),
                    "cut": _total(results, task, cut),
                }
    return scores


def _total(results: Any, task: str, counts: Mapping[str, int | None]) -> int | None:
    """A count of a task; of a group, that of all its tasks; None if no task has it."""
    if task in counts:
        return counts[task]
    found = [_total(results, child, counts) for child in results["group_subtasks"][task]]
    return sum(count for count in found if count is not None) if any(count is not None for count in found) else None


def _samples(results: Any) -> pl.DataFrame:
    """SAMPLES; an item that occurs twice in a data set gets a number."""
    rows = []
    for task, samples in results["samples"].items():
        seen: Counter[tuple[str, str]] = Counter()
        for sample in samples:
            item = sample["doc_hash"][:16]
            seen[item, sample["filter"]] += 1
            times = seen[item, sample["filter"]]
            sample_id = item if times == 1 else f"{item}-{times}"
            for metric in sample["metrics"]:
                name = _name(metric, sample["filter"])
                rows.append((task, sample_id, name, _mean(sample[metric]), _response(sample), _is_cut(sample)))
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


def _name(metric: str, kept: str) -> str:
    """A task with several filters (ways to read a response) has each metric once for every filter."""
    return metric if kept == "none" else f"{metric},{kept}"


def _response(sample: Any) -> str:
    """The response before any filter; of a multiple-choice item, the likeliest choice."""
    responses = [first for first, *_ in sample["resps"]]
    if isinstance(responses[0], str):
        return str(getattr(responses[0], "whole", responses[0]))
    likeliest = max(range(len(responses)), key=lambda choice: responses[choice][0])
    return str(sample["arguments"][likeliest][1]).strip()


def _is_cut(sample: Any) -> bool | None:
    """Whether a response to the item was cut; None if nothing was generated."""
    found = [response.cut for responses in sample["resps"] for response in responses if hasattr(response, "cut")]
    return any(found) if found else None


def _mean(value: Any) -> float:
    """A metric of one item; IFEval's instruction-level metrics have a truth value for each instruction."""
    return float(sum(value) / len(value)) if isinstance(value, list) else float(value)
