"""Prune a text classifier and recover its accuracy: from a pretrained encoder to a checkpoint with its card.

Fine-tunes the dense model if asked, scores, plans and cuts, trains the smaller model against the dense one, measures
both, saves. Everything in one YAML or JSON file, or as arguments:

    python scripts/run_text_classification.py scripts/configs/demo.yaml

    accelerate launch scripts/run_text_classification.py \
        --model_name_or_path google-bert/bert-base-uncased --dataset nyu-mll/glue --dataset_config sst2 \
        --text_column sentence --dense_epochs 3 --sparsity 0.5 --output_dir runs/bert-sst2

    python scripts/run_text_classification.py --model_name_or_path me/finetuned --train_file train.csv \
        --test_file test.csv --sparsity 0.6 --num_train_epochs 3 --learning_rate 5e-5 --output_dir runs/mine

The folder `output_dir/model` holds the result; a run that was cut goes on with --resume_from_checkpoint CHECKPOINT.
"""

import copy
import json
import logging
import sys
import time
from dataclasses import asdict, fields, make_dataclass
from pathlib import Path

from transformers import HfArgumentParser, set_seed

import hfprune
from hfprune.config import PruningConfig
from hfprune.measure import checkpoint_bytes, measure_latencies
from hfprune.pipeline import batches_for, check
from hfprune.record import public_name
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.report import command_line, comparison_table, headline, recovery_settings
from hfprune.tasks import DataArguments, ModelArguments, TextClassification, clear_earlier_run

logger = logging.getLogger("run_text_classification")
#: PruningConfig without its seed: --seed of the training arguments is for both.
PruningArguments = make_dataclass(
    "PruningArguments", [(f.name, f.type, f) for f in fields(PruningConfig) if f.name != "seed"]
)


def parse() -> tuple[RecoveryArguments, ModelArguments, DataArguments, PruningConfig]:
    """The arguments, from the command line or from the one file that is named there."""
    parser = HfArgumentParser((RecoveryArguments, ModelArguments, DataArguments, PruningArguments), description=__doc__)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml", ".json")):
        read = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        args, model_args, data_args, pruning_args = read(sys.argv[1])
    else:
        args, model_args, data_args, pruning_args = parser.parse_args_into_dataclasses()
    return args, model_args, data_args, PruningConfig(**asdict(pruning_args), seed=args.seed)


def main() -> None:
    """Run it."""
    began = time.perf_counter()
    args, model_args, data_args, config = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_seed(args.seed)
    output, resuming, main_process = Path(args.output_dir), bool(args.resume_from_checkpoint), args.process_index == 0
    if not resuming and main_process:
        clear_earlier_run(output, allowed=model_args.overwrite)

    # Whatever can be found wrong is found before anything is trained.
    task = TextClassification.load(model_args, data_args, seed=args.seed)
    dense = task.model(fine_tuned=output / "dense", trust_remote_code=model_args.trust_remote_code)
    check(dense, config)
    batches = batches_for(dense, task.data["train"], config, collator=task.collator)

    dense_args = copy.deepcopy(args)
    dense_args.output_dir, dense_args.push_to_hub = str(output / "dense_training"), False
    dense_args.num_train_epochs, dense_args.learning_rate = model_args.dense_epochs, model_args.dense_learning_rate
    dense_args.freeze_embeddings = False
    dense_trainer = task.trainer(dense, dense_args)
    if model_args.dense_epochs > 0 and not (output / "dense").is_dir():
        logger.info("Fine-tuning the dense model")
        dense_trainer.train()
        dense_trainer.save_model(str(output / "dense"))
    metrics = {"dense": task.test(dense_trainer)}

    if resuming and (output / "pruned").is_dir():
        pruned = hfprune.load(output / "pruned")
    else:
        pruned = hfprune.prune(dense, batches, config)
        if main_process:
            hfprune.save(pruned, output / "pruned", tokenizer=task.tokenizer, overwrite=True)
    print(pruned.pruning_plan)
    trainer = task.trainer(pruned, args, teacher=dense)
    metrics["pruned"] = metrics["recovered"] = task.test(trainer)
    trained = None
    if args.num_train_epochs > 0:
        logger.info("Recovering")
        trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        metrics["recovered"] = task.test(trainer)
    if not main_process:
        return

    for model in (dense, pruned):  # out of the mixed precision of training
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    shape = {"batch_size": data_args.latency_batch_size, "sequence_length": data_args.latency_length}
    slow, fast = measure_latencies([dense.to(pruned.device), pruned], **shape)
    pruned.pruning_record = pruned.pruning_record.with_(
        base_model=public_name(model_args.model_name_or_path),
        metrics=metrics,
        latencies={"dense": asdict(slow), "pruned": asdict(fast)},
        datasets=[data_args.dataset] if data_args.dataset else [],
        recovery=recovery_settings(args, trained),
        command=command_line("python scripts/run_text_classification.py"),
    )
    folder = hfprune.save(pruned, output / "model", tokenizer=task.tokenizer, overwrite=True)
    results = {**headline(pruned.pruning_record, pruned.pruning_plan), "seconds": time.perf_counter() - began}
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    dense_folder = output / "dense" if (output / "dense").is_dir() else task.source
    sizes = {"dense": checkpoint_bytes(dense_folder), "pruned": checkpoint_bytes(folder)}
    print(comparison_table(pruned.pruning_record, sizes))
    print(f"\nLoad it: hfprune.load({str(output / 'model')!r}). Results: {output / 'results.json'}")


if __name__ == "__main__":
    main()
