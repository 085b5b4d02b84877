"""Where an experiment and its runs keep their files; the names are public."""

from __future__ import annotations

from pathlib import Path


class RunPaths:
    """Where one run keeps its files."""

    def __init__(self, root: Path):
        # A run may have a working directory of its own (hydra.job.chdir) and writes from there.
        self.root = root.absolute()
        self.log = self.root / "run.log"
        self.metrics = self.root / "metrics.jsonl"
        self.generations = self.root / "generations.jsonl"
        self.items = self.root / "items.jsonl"
        """Of an evaluation: every answer, as it came."""
        self.checkpoints = self.root / "checkpoints"
        self.final = self.checkpoints / "final"
        """The trained adapter (or model), as ``save_pretrained`` writes it."""
        self.weights = self.checkpoints / "last.safetensors"
        """The trained weights at the last boundary; clones that start warm begin from them."""
        self.base = self.checkpoints / "base.json"
        """Which weights the adapter in ``final`` was trained on, so that it is never put on others."""
        self.start = self.checkpoints / "start.safetensors"
        """Of a clone that started warm: the weights it began with, whatever becomes of its parent."""


class ExperimentPaths:
    """Where an experiment keeps its files; the names are public."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.runs_table = self.root / "runs.csv"
        self.timeline = self.root / "timeline.json"
        self.timeline_picture = self.root / "timeline.png"
        self.tensorboard = self.root / "tb"
        self.control = self.root / "control"
        self.ops = self.root / "ops.jsonl"
        self.state = self.root / "experiment.json"
        self.arguments = self.root / "arguments.json"
        self._relative: dict[Path, str] = {}
        self.differences = self.root / "differences.csv"

    def run(self, number: int) -> RunPaths:
        """Return the paths of a run that lies where it lies by default."""
        return RunPaths(self.root / "runs" / str(number))

    def curves(self, number: int) -> Path:
        """Return the directory of a run's curves, whose name says more than the number if the logger made it.

        Where there is none yet, it is the one that has the number for its name.
        """
        there = sorted(self.tensorboard.glob(f"{number} *"))
        return next((path for path in there if path.is_dir()), self.tensorboard / str(number))

    def relative(self, paths: RunPaths) -> str:
        """Return a run's directory as it stands in files: relative where it lies inside, so that all may be moved."""
        if paths.root not in self._relative:  # asked for of every run, at every boundary
            root = self.root.absolute()
            inside = paths.root.is_relative_to(root)
            self._relative[paths.root] = str(paths.root.relative_to(root) if inside else paths.root)
        return self._relative[paths.root]

    def found(self, number: int | str, directory: str | None) -> RunPaths:
        """Return the paths of a run whose directory stands in a file; a version before this one has left it out."""
        return RunPaths(self.root / directory) if directory else self.run(int(number))
