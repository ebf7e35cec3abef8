"""What an output folder holds: the same plan is continued, another is refused."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from itrd_nlp.arguments import ITRDArguments, RunArguments
from itrd_nlp.errors import UserError

TRAIN_DATA_FIELDS = ("dataset", "train_file", "max_train_samples", "max_length", "doc_stride")
PLACES = ("output_dir", "teacher_dir", "overwrite")  # where a run writes, not what it does


def plan_of(run_args: RunArguments, training_args: ITRDArguments) -> dict[str, Any]:
    """Every argument that differs from its default, and the seed, as JSON values."""
    chosen = {**_changed(run_args), **_changed(training_args), "seed": training_args.seed}
    return {key: value for key, value in chosen.items() if key not in PLACES}


def claim(output: Path, plan: dict[str, Any], overwrite: bool, training_args: ITRDArguments) -> None:
    """Take the output folder for ``plan``, on the first rank; models of another plan are removed only on ``overwrite``.

    Raises:
        UserError: the folder holds models of another plan.
    """
    path = output / "plan.json"
    with training_args.main_process_first(desc="claiming the output folder"):
        if training_args.process_index:
            return
        models = [output / role for role in ("baseline", "student") if (output / role).is_dir()]
        if overwrite:
            for model in models:
                shutil.rmtree(model)
        elif models and path.is_file():
            old = json.loads(path.read_text())
            changed = sorted(key for key in {*old, *plan} if old.get(key) != plan.get(key))
            if changed:
                raise UserError(
                    f"{output} holds another run, which differs in {', '.join(changed)}: choose another --output_dir "
                    "or add --overwrite true"
                )
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan, indent=1, sort_keys=True))


def training_data_digest(run_args: RunArguments) -> str:
    """Digest of what a teacher learns from: the training file's content, not its name."""
    values = {key: getattr(run_args, key) for key in TRAIN_DATA_FIELDS}
    if values["train_file"]:
        values["train_file"] = hashlib.sha256(Path(values["train_file"]).read_bytes()).hexdigest()
    return digest(values)


def digest(values: Any) -> str:
    """Twelve hexadecimal digits that name JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _changed(arguments: Any) -> dict[str, Any]:
    kind = type(arguments)
    defaults = kind(output_dir="") if kind is ITRDArguments else kind()
    pairs = {f.name: (getattr(arguments, f.name), getattr(defaults, f.name)) for f in dataclasses.fields(kind)}
    return json.loads(json.dumps({key: new for key, (new, old) in pairs.items() if new != old}, default=str))
