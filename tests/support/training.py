"""Tiny trainings: arguments that make them quick, a pruned model with its teacher, a trainer on a tiny data set."""

from transformers import DataCollatorWithPadding

import hfprune
from hfprune import RecoveryArguments, RecoveryTrainer
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer


def arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    return RecoveryArguments(output_dir=str(folder), **{**defaults, **options})


def pruned_pair(model_type="bert", head="AutoModelForSequenceClassification", **changes):
    dense = tiny_model(model_type, head, **changes)
    return hfprune.apply_plan(dense, uneven_plan(dense)), dense


def trainer_of(model, teacher, args, data=None, **options):
    data = tiny_tokenized() if data is None else data
    return RecoveryTrainer(
        model,
        args,
        teacher=teacher,
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        processing_class=tiny_tokenizer(),
        **options,
    )
