"""Which columns a trainer reads, and whether they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from datasets import Dataset

from rfflow.config.spec import DatasetSpec, TrainerSpec
from rfflow.config.targets import import_object
from rfflow.errors import ConfigError, nearest
from rfflow.worker.data.joining import Source

# The columns that each trainer of TRL can train on. A trainer that is not here checks its columns itself.
FORMS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "SFTTrainer": (("prompt", "completion"), ("text",), ("messages",), ("conversations",), ("input_ids",)),
    "DPOTrainer": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "RewardTrainer": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "KTOTrainer": (("prompt", "completion", "label"), ("prompt", "chosen", "rejected")),
    "GRPOTrainer": (("prompt",),),
    "RLOOTrainer": (("prompt",),),
}


def check_columns(dataset: Dataset, trainer: TrainerSpec | None = None, source: str = "The data set") -> None:
    """Check that a trainer finds columns to train on.

    Raises:
        ConfigError: if it does not; it says which columns are there and which the trainer reads.
    """
    if trainer is not None and not _reads_known_columns(trainer):
        return
    forms = forms_of(trainer)
    present = dataset.column_names
    if any(set(present).issuperset(form) for form in forms):
        return
    raise ConfigError(
        f"{source} has the columns {', '.join(present)}. {trainer.target if trainer else 'A trainer'} reads "
        f"{', or '.join(' + '.join(form) for form in forms)}. Rename them "
        "(dataset.columns={question: prompt, answer: completion}) or give a dataset.formatting_func."
    )


def _reads_known_columns(trainer: TrainerSpec) -> bool:
    prepared = (trainer.args.get("dataset_kwargs") or {}).get("skip_prepare_dataset")
    return _class_name(trainer) in FORMS and not prepared and "formatting_func" not in trainer.kwargs


def forms_of(trainer: TrainerSpec | None) -> list[tuple[str, ...]]:
    """Return the sets of columns that a trainer can train on; those of any, where it is not known."""
    text = (trainer.args.get("dataset_text_field") if trainer else None) or "text"
    known = FORMS.get(_class_name(trainer)) if trainer else None
    forms = known or [form for forms in FORMS.values() for form in forms]
    return list(dict.fromkeys(tuple(text if column == "text" else column for column in form) for form in forms))


def _class_name(trainer: TrainerSpec) -> str:
    """Return the trainer's name, and for one made from TRL's that reads its rows as TRL does, the name of TRL's."""
    name = trainer.target.rpartition(".")[2]
    if name in FORMS:
        return name
    found = import_object(trainer.target, "trainer._target_")
    for cls in getattr(found, "__mro__", ()):
        if cls.__name__ in FORMS:
            return str(cls.__name__)
        if "_prepare_dataset" in vars(cls):
            break
    return name


def text_columns(trainer: TrainerSpec | None) -> list[str]:
    """Return the columns that a trainer reads as text or conversations; none where only the trainer knows."""
    if trainer is not None and not _reads_known_columns(trainer):
        return []
    columns = dict.fromkeys(column for form in forms_of(trainer) for column in form)
    return [column for column in columns if column not in ("label", "input_ids")]


def select_columns(source: Source, spec: DatasetSpec) -> Source:
    if not spec.columns:
        return source
    present = source.rows.column_names
    for column in spec.columns:
        if column not in present:
            raise ConfigError(
                f"dataset.columns: there is no column {column!r} in {source.name}.{nearest(column, present)} "
                f"Columns there: {', '.join(present)}."
            )
    wanted = list(spec.columns.values())
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"dataset.columns gives two columns the same name: {', '.join(wanted)}.")
    return replace(source, rows=source.rows.select_columns(list(spec.columns)).rename_columns(dict(spec.columns)))
