"""Run the demo with changes, and publish its record and card here: `publish.py NAME --sparsity 0.69`."""

import shutil
import sys
from pathlib import Path

from hfprune import PruningPlan, PruningRecord
from hfprune.publishing.card import draw_card
from hfprune.publishing.charts import draw_pictures
from hfprune.tasks import TextArguments, parse, text_classification
from hfprune.workflow import run

HERE = Path(__file__).parent
SCRIPT = "run_text_classification.py"
CONFIG = "scripts/configs/demo.yaml"


def main() -> None:
    """Run, copy plan and record, draw the card and its pictures."""
    name, *changes = sys.argv[1:]
    arguments = [CONFIG, *changes, "--output_dir", f"runs/cards/{name}"]
    sys.argv = [SCRIPT, *arguments]  # which the record quotes
    outcome = run(text_classification, parse(TextArguments, __doc__, arguments), script=SCRIPT)
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
