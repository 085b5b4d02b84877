"""The report as a page: tables, pictures, and in plain words where rfflow is slower."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, table
from benchmarks.report_parts import JOBLIB, PARTS

Record = dict[str, Any]

BEGINNING = """# Measured: rfflow and what people do today

`make bench` writes this page; [what is compared, and how to measure parts of it](../README.md#the-report). All sides
take turns and are given the same rows, arguments and seeds, one thread each, no network, and empty caches. Each is the
whole command, imports included. *Careful* is a script that trains all runs in one process, with rfflow's settings of
the allocator, and keeps activations. *As it comes* leaves to TRL whether activations are recomputed, which it does by
default; all else is as for the others, `bf16=false` among it, since in bf16 a CPU takes ten times as long. Medians
stand first; n is how often everything was measured.
"""
WHY: Mapping[str, str] = {
    "wall": "Every run pays for checkpoints at each boundary, which TRL is not asked to write, and the whole for "
    "Hydra, TensorBoard, the table and the timeline; a model of no size has little training for that to vanish in.",
    "processor time": "The same, and the thread that writes checkpoints while the next run trains.",
    "memory": "Every run keeps its adapter and optimizer until its end; TRL alone frees them between runs.",
    "first step": "All runs are composed and built, and their data checked, before the first one's first step.",
}


def write_page(out: Path) -> tuple[Path, list[str]]:
    """Write ``README.md``, ``report.json`` and the pictures; return the page, and which pairs had different bits."""
    records = list(_read(out))
    page, told, differ, slower = out / "README.md", [], [], []
    text = [BEGINNING]
    machines = {json.dumps(record["machine"], sort_keys=True): record["machine"] for record in records}
    for about in machines.values():
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        text.append(
            f"Measured on {about['date']}: {about['cores']} cores ({about['processor']}), Python {about['python']}, "
            f"{versions}."
        )
    for record in records:
        part = PARTS[record["part"]]
        figures = [figure for figure in part.figures(record["rounds"], record["runs"]) if figure.values]
        told.append(
            {**{key: record[key] for key in ("part", "model", "runs", "steps")}, "figures": list(map(asdict, figures))}
        )
        pairs, different = _bits(record)
        differ += [f"{record['part']} ({record['model']}): {name}" for name in different]
        slower += [(record, figure) for figure in figures if _is_slower(figure)]
        text += ["", f"## {part.title} ({_label(record)})", ""]
        picture = _picture(out, record, figures)
        if picture is not None:
            text += [f"![{part.title}]({picture.name})", ""]
        text.append(table(figures))
        if (
            record["part"] == "sides"
            and record["model"] == "tiny"
            and not any(JOBLIB in one for one in record["rounds"])
        ):
            text += ["", "Hydra's joblib launcher was not installed (`benchmarks/requirements.txt`): it has no row."]
        if pairs:
            text += ["", f"Adapters compared to the last bit: {pairs} pairs, {len(different)} different."]
    for file in sorted((out / "parts").glob("gpu-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        figures = [Figure(**{**each, "values": tuple(each["values"])}) for each in found["figures"]]
        told.append(found)
        differ += [f"gpu ({found['model']}): {name}" for name in found["different"]]
        slower += [(found, figure) for figure in figures if _is_slower(figure)]
        text += [
            "",
            f"## On one GPU ({found['device']}; {found['model']}, {found['runs']} runs of {found['steps']} steps)",
        ]
        text += ["", table(figures), "", f"Different adapters: {', '.join(found['different']) or 'none'}."]
    text += ["", *(_where_slower(slower) if told else ["Nothing has been measured yet."])]
    out.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(text) + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return page, differ


def _read(out: Path) -> Iterator[Record]:
    for name, part in PARTS.items():
        for model in part.models:
            file = out / "parts" / f"{name}-{model}.json"
            if file.exists() and (record := json.loads(file.read_text(encoding="utf-8")))["rounds"]:
                yield record


def _label(record: Record) -> str:
    if record["part"] in ("sides", "pair", "gpu"):
        return f"{record['model']}, {record['runs']} runs of {record['steps']} steps"
    return str(record["model"])


def _bits(record: Record) -> tuple[int, list[str]]:
    """Return how many pairs of sides were compared, and which were different."""
    found = [
        (name, side["equal"]) for one in record["rounds"] for name, side in one.items() if side.get("equal") is not None
    ]
    return len(found), sorted({name for name, equal in found if not equal})


def _is_slower(figure: Figure) -> bool:
    return not figure.unit and " / " in figure.name and figure.median > 1


def _where_slower(slower: Sequence[tuple[Record, Figure]]) -> list[str]:
    lines = ["## Where rfflow takes more", ""]
    if not slower:
        return [*lines, "Nowhere, among the ratios above."]
    for record, figure in slower:
        lines.append(f"- {_label(record)}: {figure.name}: {figure.median:.3g}")
    kinds = [kind for kind in WHY if any(kind in figure.name for _, figure in slower)]
    return [
        *lines,
        *(line for kind in dict.fromkeys([*kinds, "memory"]) for line in ("", f"*Why, {kind}:* {WHY[kind]}")),
    ]


def _picture(out: Path, record: Record, figures: Sequence[Figure]) -> Path | None:
    """Draw what is more quickly seen than read."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    file = out / f"{record['part']}-{record['model']}.png"
    if record["part"].startswith("growth"):
        shown = record["rounds"][0]["rfflow"]
        drawn, axes = pyplot.subplots(1, 4, figsize=(13, 2.6), layout="constrained")
        for axis, (name, scale) in zip(axes, (("memory", 1e6), ("threads", 1), ("files", 1)), strict=False):
            axis.plot([sample[name] / scale for sample in shown["samples"]])
            axis.set_title(f"{name}, MB" if name == "memory" else name)
            axis.set_ylim(bottom=0)
        axes[3].plot([1000 * gap for gap in shown["gaps"]])
        axes[3].set_title("between two chunks, ms")
        axes[3].set_ylim(bottom=0)
    elif record["part"] in ("sides", "scale", "trainers"):
        bars = [each for each in figures if each.unit == "s" and each.name.endswith("wall")]
        if record["part"] == "sides":
            bars = [
                each for each in figures if each.unit == "s" and (each.name.endswith("wall") or "decision" in each.name)
            ]
        height = 0.35 * len(bars) + 0.8
        drawn, axis = pyplot.subplots(figsize=(9, height), layout="constrained")
        medians = [each.median for each in bars]
        low = [each.median - min(each.values) for each in bars]
        high = [max(each.values) - each.median for each in bars]
        colours = ["#1f77b4" if "rfflow" in each.name else "#999999" for each in bars]
        axis.barh([each.name for each in bars], medians, xerr=[low, high], color=colours)
        axis.invert_yaxis()
        axis.set_xlabel("seconds")
    else:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, dpi=90)
    pyplot.close(drawn)
    return file
