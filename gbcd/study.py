"""What to run: a study, written as TOML or given by command-line flags, checked before any work starts.

There is one model of a study. What it leaves open (`auto`, an empty list of wrong answers) is settled when it is
planned, and `plan.json` holds the study so settled. It is strict: a key that is not known is refused, with the nearest
known one, and no value is converted.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from gbcd.errors import BadInput, listed, near

#: Prompts that are drawn for each task where a study does not say.
PROMPTS_PER_TASK = 2000

Names = Annotated[tuple[str, ...], Strict(False)]
"""TOML has lists where this is a tuple."""


AskedDevice = Literal["auto", "cpu", "cuda"]


class Compute(BaseModel):
    """How a study is computed; the table `[compute]` of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    workers: int = Field(default=2, ge=0)
    """Ray actors, each with a copy of the model; 0 computes in this process, without Ray. Never changes a row."""
    device: AskedDevice = "auto"
    """`auto`: a GPU where this machine has one, or the cluster that is joined can offer one; settled in the plan."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Type of weights and activations."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Prompts per forward pass; settled in the plan. A worker that runs out of memory halves the batch."""
    shard_size: PositiveInt | Literal["auto"] = "auto"
    """Prompts per shard, which is computed and committed at once; in whole batches. `auto`: about a minute of work, and
    at least four shards for every worker; settled in the plan."""
    threads: int = Field(default=1, gt=0, le=1024)
    """Processor threads of each worker; fixed, because the last bits of a sum depend on it."""
    gpus_per_worker: float = Field(default=1.0, gt=0, le=1)
    """GPUs that each worker holds, where it computes on one: 0.5 puts two workers on a GPU."""

    @property
    def gpu_share(self) -> float:
        """How much of a GPU the model has."""
        return self.gpus_per_worker if self.workers else 1.0


class Study(BaseModel):
    """What to run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    model: str = "reference"
    """`reference` (shipped), a name on the model hub such as `gpt2`, a local directory, or a GGUF file."""
    tasks: Names = ()
    """Names of tasks; `gbcd list tasks` prints them."""
    prompts: str | None = None
    """Instead of tasks: a file with prompts of one's own, all of which are run; one JSON object a line, with `prompt`
    and `answer`."""
    prompts_per_task: PositiveInt | None = None
    """How many prompts are drawn for each task; 2,000 where nothing is given."""
    wrong_answers: Names = ()
    """Definitions of the wrong answer; `gbcd list wrong-answers` prints them. Where none is given: `margin` where every
    prompt has a wrong answer of its own, else `inverse_logits`; settled in the plan."""
    definitions: Names = ()
    """Python files that define tasks or wrong answers of one's own; imported before anything else."""
    seed: int = 0
    """Fixes which prompts are drawn and in which order they are computed."""
    calibration_prompts: PositiveInt = 512
    """Prompts per task over which the mean activations are taken that centred norms subtract."""
    centering: Literal["template", "position", "auto"] = "auto"
    """What those means are over: prompts of the same template at the same position, or all prompts of the task there;
    `auto`: by template where nearly every prompt then has a mean, settled in the plan."""
    reference: Literal["auto", "counterfactual", "partner"] = "auto"
    """What each prompt's activations are compared with: its own `counterfactual`, a `partner` (another prompt of its
    task, template and length), or `auto`: the counterfactual where there is one of equal length, else a partner."""
    rules: Literal["plain", "relp", "gim", "combined"] = "plain"
    """Rules of the backward pass: `plain` gradients, `relp` (arXiv 2508.21258), `gim` (arXiv 2505.17630), or
    `combined`, those of both."""
    ig_steps: PositiveInt = 1
    """At how many points between the embeddings of the reference and those of the prompt the gradient of attributions
    against it is taken and averaged (integrated gradients, arXiv 2403.17806); 1: on the prompt alone."""
    statistics: Names = ()
    """Which statistics are computed and stored, where not all of them; `grad_norm` always is. The others are null."""
    edges: bool = False
    """Whether edges between nodes are scored too."""
    neurons: Names = ()
    """MLPs whose neurons are scored too: `["m18", "m20"]`."""
    only_solved: bool = False
    """Whether prompts that the model does not solve are left out when the study is planned: those whose answer is not
    above the wrong answer, in the prompt and in its twin."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether a beginning-of-text token precedes each prompt; `auto`: as the tokenizer has it."""
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence-embedding model of the wrong answer `semantic`: a directory, or a name on the model hub."""
    out: str = Field(min_length=1)
    """Folder for the results, or `s3://bucket/prefix` or `gs://bucket/prefix`."""
    compute: Compute = Compute()
    """How it is computed."""

    @field_validator("tasks", "wrong_answers", "definitions", "statistics", "neurons")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"named twice: {', '.join(repeated)}")
        return names

    @field_validator("model", "prompts", "embedding_model", "out")
    @classmethod
    def _home(cls, path: str | None) -> str | None:
        return str(Path(path).expanduser()) if path and path.startswith("~") else path

    @model_validator(mode="after")
    def _one_source(self) -> Study:
        if problem := _source_problem(dict(self)):
            raise ValueError(problem)
        return self


def read_study(path: str | Path, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study file; `overrides` (fields as in the file, `compute` nested) win over what it says.

    Raises:
        BadInput: the file is missing, is no TOML, or says something that a study cannot mean.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"study {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"study {str(path)!r} is not UTF-8: {error.reason}, at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"study {str(path)!r} is not valid TOML: {error}") from error
    return make_study(_merged(raw, overrides or {}), str(path))


def make_study(fields: dict[str, Any], source: str = "command line") -> Study:
    """Build a study from plain values.

    Raises:
        BadInput: lists every field that is unknown, missing or wrong, with what would do.
    """
    try:
        return Study.model_validate(fields)
    except ValidationError as error:
        problems = [_explained(dict(problem)) for problem in error.errors()]
        validated = any(not problem["loc"] for problem in error.errors())
        if not validated and (source_problem := _source_problem(fields)):
            problems.insert(0, source_problem)
        raise BadInput(f"study ({source}):\n{listed(problems)}") from error


def check_names(kind: str, asked: tuple[str, ...], known: list[str], remedy: str) -> None:
    """Refuse names that are not known, offering the nearest.

    Raises:
        BadInput: at least one of `asked` is not in `known`.
    """
    problems = [f"unknown {kind} {name!r}{near(name, known)}" for name in asked if name not in known]
    if problems:
        raise BadInput(f"{listed(problems)}\nKnown: {', '.join(known)}. {remedy}")


def _source_problem(fields: dict[str, Any]) -> str | None:
    tasks, prompts = fields.get("tasks"), fields.get("prompts")
    if prompts is None and not tasks:
        return (
            'tasks is missing: name at least one, for example tasks = ["ioi"] (--task ioi), or give a prompt file, '
            'prompts = "FILE.jsonl" (--prompts FILE.jsonl)'
        )
    if prompts is not None and tasks:
        return "tasks and prompts exclude each other: draw from tasks, or run a prompt file"
    if prompts is not None and fields.get("prompts_per_task") is not None:
        return "prompts_per_task is for tasks; a prompt file is run whole"
    return None


def _merged(raw: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    replaced = ("tasks", "prompts_per_task") if "prompts" in overrides else ("prompts",) if "tasks" in overrides else ()
    merged = {**{key: value for key, value in raw.items() if key not in replaced}, **overrides}
    if isinstance(raw.get("compute"), dict) and "compute" in overrides:
        merged["compute"] = {**raw["compute"], **overrides["compute"]}
    return merged


def _explained(problem: dict[str, Any]) -> str:
    where = ".".join(str(step) for step in problem["loc"] if step not in ("int", "literal['auto']", "constrained-int"))
    key = where.rsplit(".", 1)[-1]
    if problem["type"] == "extra_forbidden":
        known = [*Compute.model_fields] if where.startswith("compute.") else [*Study.model_fields]
        return f"unknown key {where!r}{near(key, known)} (known: {', '.join(known)})"
    if not where:
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f'{where} is missing: say where results go, for example out = "results/ioi" (--out results/ioi)'
    return f"{where} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
