"""`medseg train`: a recipe and data to weights."""

from dataclasses import asdict
from pathlib import Path

from medseg_app.output import duration_text, print_json, print_line, print_table, tell
from medseg_app.progress import ProgressView
from medseg_pipelines.events import Reporter


def run(
    model: str,
    *,
    data: Path,
    out: Path,
    patients: Path | None = None,
    start: Path | None = None,
    teacher: str | None = None,
    resume: bool,
    device: str,
    workers: int,
    minutes: float | None,
    json: bool,
    quiet: bool,
) -> int:
    """Train; returns the exit code. A cancelled run keeps its last step, `--resume` goes on from there."""
    from medseg_pipelines.training import train  # torch costs seconds: a wrong option must not pay them

    with ProgressView(quiet=quiet) as view:
        report = Reporter(view)
        report.start("training")
        done = train(
            model,
            data,
            out,
            patients=patients,
            start=start,
            teacher=teacher,
            resume=resume,
            device=device,
            workers=workers,
            seconds=None if minutes is None else minutes * 60,
            progress=lambda step, total, loss: report.advance(step, total),
        )
        report.finish()
    if json:
        print_json({**asdict(done), "weights": str(done.weights)})
    else:
        tell(f"trained for {duration_text(report.seconds['training'])}")
        print_line(f"step {done.steps}, loss {done.loss:.4f}")
        rows = [(s.label, str(len(s.dices)), f"{s.mean:.3f}", f"{s.trivial:.3f}") for s in done.scores]
        if rows:
            first = done.scores[0]
            print_table(("label", f"held-back {first.counted}", "Dice", first.against), rows)
        print_line(f"weights   {done.weights}")
    return 0
