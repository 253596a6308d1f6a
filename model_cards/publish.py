"""Run a script with changes, and publish its record and card here: `publish.py minilm-l6-trec-3x --sparsity 0.69`.

The name says which: those of smollm2 prune a language model, the others are the demo.
"""

import shutil
import sys
from pathlib import Path

from hfprune import PruningPlan, PruningRecord
from hfprune.jobs.run import run
from hfprune.jobs.tasks import get_task, parse
from hfprune.publishing.card import draw_card
from hfprune.publishing.charts import draw_pictures

HERE = Path(__file__).parent
#: By how the name begins: the script, its settings, and the name of its task.
RUNS = {
    "minilm": ("run_text_classification.py", "scripts/configs/demo.yaml", "text_classification"),
    "smollm2": ("run_language_modeling.py", "scripts/configs/smollm2.yaml", "causal_language_modelling"),
}


def main() -> None:
    """Run, copy plan and record, draw the card and its pictures."""
    name, *changes = sys.argv[1:]
    script, config, task_name = RUNS[name.partition("-")[0]]
    task = get_task(task_name)
    arguments = [config, *changes, "--output_dir", f"runs/cards/{name}"]
    # the record quotes the command line
    sys.argv = [script, *arguments]
    outcome = run(task.load, parse(task.arguments, __doc__, arguments), program=f"python scripts/{script}")
    print(outcome)
    for file, target in (("pruning_record.json", f"{name}.json"), ("pruning_plan.json", f"{name}.plan.json")):
        shutil.copy(outcome.folder / file, HERE / target)
    record = PruningRecord.from_json((HERE / f"{name}.json").read_text(encoding="utf-8"))
    plan = PruningPlan.from_json((HERE / f"{name}.plan.json").read_text(encoding="utf-8"))
    portable = not (outcome.folder / "modeling_pruned.py").exists()
    card = draw_card(record, plan, portable=portable, location=name, pictures=f"{name}/")
    (HERE / f"{name}.md").write_text(card, encoding="utf-8")
    (HERE / name).mkdir(exist_ok=True)
    draw_pictures(record, plan, HERE / name)


if __name__ == "__main__":
    main()
