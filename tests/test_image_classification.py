"""Image classification: folders and tables of pictures, what the model sees of them, and the whole story."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig

import hfprune
from hfprune.data.pictures import open_picture, random_crop
from hfprune.errors import MissingDependencyError
from hfprune.jobs.tasks import ImageArguments, ModelArguments, image_classification
from hfprune.publishing.verification import verify
from hfprune.scoring import calibration_batches
from tests.support.processes import run_python
from tests.support.runs import picture_home, picture_settings, run_here, settings, write
from tests.support.tiny import SIZES
from tests.support.tiny_data import tiny_pictures

SCRIPT = Path(__file__).parent.parent / "scripts" / "run_image_classification.py"
#: Types of models, with where their sizes stand in the config; those like ViT are tried where time is no matter.
MODEL_TYPES = [("siglip", "vision_config"), ("clip", "vision_config")]
MODEL_TYPES += [pytest.param(name, None, marks=pytest.mark.slow) for name in ("deit", "beit", "dinov2")]


@pytest.fixture
def home(tmp_path):
    return picture_home(tmp_path)


def load(home, *, dense_epochs=0, seed=0, **changes):
    named = ModelArguments(model_name_or_path=str(home / "dense"), dense_epochs=dense_epochs)
    if "dataset" not in changes:
        changes.setdefault("train_file", str(home / "pictures"))
    return image_classification(named, ImageArguments(**changes), seed=seed)


def names_of(rows, column="image"):
    """What lies in which class: the last part of every file's name, with the label of the row."""
    return sorted((Path(row[column]["path"]).name, row["labels"]) for row in rows)


def move(home, split, rows):
    """Put the first pictures of every class into the folder of a split."""
    for folder in sorted((home / "pictures").iterdir()):
        target = home / "splits" / split / folder.name
        target.mkdir(parents=True)
        for path in sorted(folder.iterdir())[:rows]:
            path.rename(target / path.name)


def test_sub_folders_are_classes_with_the_numbers_of_the_model(home):
    task = load(home)
    assert task.data.num_rows == {"train": 48, "validation": 6, "test": 6}
    assert task.data["train"].column_names == ["image", "labels"]
    numbers = {"blue": 0, "green": 1, "red": 2}
    for row in task.data["train"]:
        assert row["labels"] == numbers[Path(row["image"]["path"]).parent.name]
    assert (task.labels, task.metrics, next(iter(task.sample_metrics))) == ({}, ["accuracy"], "accuracy")
    assert load(home, dense_epochs=1).labels["id2label"] == {0: "blue", 1: "green", 2: "red"}
    ordered = load(home, dense_epochs=1, label_map="red=0,green=1,blue=2")
    assert ordered.labels["id2label"] == {0: "red", 1: "green", 2: "blue"}
    # a number of the data means nothing to a model with names
    (home / "pictures" / "red").rename(home / "pictures" / "crimson")
    with pytest.raises(ValueError, match="the model knows the classes blue, green, red, the data has blue, crimson"):
        load(home)
    mapped = load(home, label_map="crimson=red,green=green,blue=blue")
    assert set(mapped.data["train"]["labels"]) == {0, 1, 2}


def test_a_folder_with_folders_of_splits(home):
    tiny_pictures(home / "pictures", 60)
    for split, rows in (("train", 10), ("val", 4), ("test", 6)):
        move(home, split, rows)
    (home / "splits" / "train" / ".cache").mkdir()
    (home / "splits" / "train" / "red" / "._x.png").write_bytes(b"of macOS")
    (home / "splits" / "train" / "red" / "notes.txt").write_text("no picture")
    (home / "splits" / "test" / "yellow").mkdir()
    task = load(home, dataset=str(home / "splits"))
    assert task.data.num_rows == {"train": 30, "validation": 12, "test": 18}
    files = {"train": "train", "validation": "val", "test": "test"}
    named = {f"{split}_file": str(home / "splits" / folder) for split, folder in files.items()}
    again = load(home, **named)
    for split in files:
        assert names_of(again.data[split]) == names_of(task.data[split])
    (home / "splits" / "val").rename(home / "splits" / "training")
    with pytest.raises(ValueError, match="two folders in .* hold the same split: test, train, training"):
        load(home, dataset=str(home / "splits"))


def test_a_table_with_names_of_files(home):
    paths = sorted((home / "pictures").rglob("*.png"))
    table = home / "table.csv"
    rows = [f"{path.relative_to(home)},{path.parent.name}" for path in paths]
    table.write_text("file,kind\n" + "\n".join(rows) + "\n")
    columns = {"image_column": "file", "label_column": "kind"}
    task = load(home, train_file=str(table), **columns)
    every = [row for rows in task.data.values() for row in rows]
    assert names_of(every, "file") == names_of([row for rows in load(home).data.values() for row in rows])
    again = load(home, dataset=str(table), **columns)
    assert names_of(again.data["test"], "file") == names_of(task.data["test"], "file")
    table.write_text("file,kind\n" + "\n".join([*rows, "pictures/red/missing.png,red"]) + "\n")
    with pytest.raises(ValueError, match="1 of 61 files of the train split do not exist, the first is .*missing.png"):
        load(home, train_file=str(table), **columns)
    table.write_text("file,kind\n" + "\n".join([*rows, ",red"]) + "\n")
    with pytest.raises(ValueError, match="1 of 61 rows of the train split have no 'file', the first is row 60"):
        load(home, train_file=str(table), **columns)
    with pytest.raises(ValueError, match="has no column 'image'; its columns are file, kind"):
        load(home, train_file=str(table))
    numbers = "\n".join(f"pictures/red/{path.name},{row / 4}" for row, path in enumerate(paths) if "red" in str(path))
    table.write_text(f"file,kind\n{numbers}\n")
    task = load(home, train_file=str(table), dense_epochs=1, **columns)
    assert (task.labels["problem_type"], task.metrics) == ("regression", ["pearson"])
    assert task.collator([task.data["test"][0]])["labels"].dtype == torch.float32


def test_data_sets_that_hold_their_pictures(home):
    paths = sorted((home / "pictures").rglob("*.png"))
    names = ["red", "green", "blue"]
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": [names.index(path.parent.name) for path in paths],
        "note": ["not read"] * len(paths),
    }
    features = Features(image=ImageFeature(), label=ClassLabel(names=names), note=Value("string"))
    (home / "stored").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(home / "stored" / "train.parquet")
    for source in ({"dataset": str(home / "stored")}, {"train_file": str(home / "stored" / "train.parquet")}):
        task = load(home, **source)
        row = task.data["test"][0]
        pixels = task.collator([row])["pixel_values"]
        place = rows["image"].index(row["image"])
        assert row["labels"] == {"blue": 0, "green": 1, "red": 2}[paths[place].parent.name]
        with Image.open(paths[place]) as opened:
            assert torch.equal(pixels, task.processor(opened, return_tensors="pt")["pixel_values"])
    broken = Dataset.from_dict({"image": [[1, 2]] * 20, "label": [0] * 20})
    broken.to_parquet(home / "stored" / "train.parquet")
    with pytest.raises(ValueError, match="the column 'image' of the train split holds List.*; expected names of files"):
        load(home, train_file=str(home / "stored" / "train.parquet"))


def test_what_is_refused(home, monkeypatch):
    with pytest.raises(ValueError, match=r"has no sub-folder with a picture in it: expected .*; it holds 0\.png"):
        load(home, train_file=str(home / "pictures" / "red"))
    with pytest.raises(ValueError, match="smallest_crop must be above 0 and at most 1, got 1.5"):
        load(home, smallest_crop=1.5)
    with pytest.raises(ValueError, match="the metric 'bleu' does not fit a classification"):
        load(home, metrics=["bleu"])
    (home / "pictures" / "red" / "0.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"is no picture that can be opened: .*0\.png.* Mend the file, or take it out"):
        load(home)
    whole = (home / "pictures" / "red" / "3.png").read_bytes()
    (home / "pictures" / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    task = load(home)
    cut = {"path": str(home / "pictures" / "red" / "0.png"), "bytes": None}
    with pytest.raises(ValueError, match=r"the picture '.*0\.png' cannot be opened: .*truncated"):
        task.collator([{"image": cut, "labels": 0}])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfprune\[vision\]'"):
        load(home)


def test_channels_and_the_way_a_camera_was_held(home):
    grey = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    grey.save(home / "held.png", exif=exif)
    stored = {"path": str(home / "held.png"), "bytes": None}
    opened = open_picture(stored, "RGB")
    assert (opened.size, opened.mode) == ((10, 20), "RGB")
    turned = np.rot90(np.asarray(grey), -1)
    assert np.array_equal(np.asarray(opened)[:, :, 1], turned)
    AutoConfig.for_model("vit", **{**SIZES["vit"], "num_channels": 2}).save_pretrained(home / "dense")
    with pytest.raises(ValueError, match="the model takes pictures of 2 channels; files are read for those of 1"):
        load(home, label_map="red=0,green=1,blue=1")


def test_pictures_of_the_train_split_are_changed_and_no_others(home):
    task = load(home, random_flip=True)
    rows = list(task.data["train"])
    torch.manual_seed(0)
    changed = task.collator(rows)["pixel_values"]
    as_they_are = task.calibration_collator(rows)["pixel_values"]
    flipped = (changed == as_they_are.flip(-1)).flatten(1).all(1)
    same = (changed == as_they_are).flatten(1).all(1)
    assert torch.equal(flipped, ~same)
    assert 12 < flipped.sum() < 36  # of 48
    assert set(task.collator(rows)) == {"pixel_values", "labels"}
    rows = list(task.data["validation"])
    assert torch.equal(task.collator(rows)["pixel_values"], task.calibration_collator(rows)["pixel_values"])
    assert "changes" not in load(home).data["train"].column_names


def test_random_parts_have_the_area_that_was_asked_for():
    picture = ImageOps.colorize(Image.effect_noise((60, 40), 50), "black", "white")
    shares = []
    for _ in range(300):
        part = random_crop(picture, 0.25)
        width, height = part.size
        shares.append(width * height / 2400)
        assert 0.7 < width / height < 1.55  # 4 : 3, cut to the picture
    assert 0.2 < min(shares) < 0.3
    assert 0.45 < np.mean(shares) < 0.65
    assert random_crop(Image.new("L", (1, 1)), 0.1).size == (1, 1)


def test_calibration_is_the_same_every_time(home):
    task = load(home, random_flip=True, smallest_crop=0.5)
    model = task.model(fine_tuned=home / "none")
    options = {"samples": 16, "batch_size": 8, "collator": task.calibration_collator}
    first = calibration_batches(task.data["train"], model, **options)
    again = calibration_batches(task.data["train"], model, **options)
    assert [set(batch) for batch in first] == [{"pixel_values", "labels"}] * 2
    for batch, other in zip(first, again, strict=True):
        assert torch.equal(batch["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize(("model_type", "part"), MODEL_TYPES)
def test_models_of_many_types(model_type, part, tmp_path):
    home = picture_home(tmp_path)
    sizes = SIZES["vit"] if part is None else {part: SIZES["vit"]}
    config = AutoConfig.for_model(model_type, **sizes, num_labels=3)
    config.architectures = ["DeiTForImageClassification"] if model_type == "deit" else None
    config.id2label = {0: "blue", 1: "green", 2: "red"}
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(home / "dense")
    changes = picture_settings(home, num_train_epochs=0, sparsity=0.3)
    outcome = run_here(image_classification, ImageArguments, home, **changes)
    assert 0.3 <= outcome.results["mac_sparsity"] < 0.4
    assert verify(outcome.folder) == []


def test_from_scratch_to_a_pipeline_without_hfprune(home, client):
    """A folder with a config and no weights is trained, pruned, trained again, and answers like any other model."""
    (home / "dense" / "model.safetensors").unlink()
    (home / "dense" / "config.json").unlink()
    ViTConfig(**SIZES["vit"]).save_pretrained(home / "dense")
    tiny_pictures(home / "test", 30)
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load(home, dense_epochs=0, label_map="red=0,green=1,blue=1").model(fine_tuned=home / "none")
    outcome = run_here(
        image_classification,
        ImageArguments,
        home,
        **picture_settings(home, test_file=str(home / "test")),
        dense_epochs=8,
        dense_learning_rate=0.01,
        num_train_epochs=3,
        learning_rate=0.005,
        save_strategy="no",
        random_flip=True,
        scorer="fisher",
        metrics=["accuracy", "f1"],
    )
    assert outcome.results["dense_accuracy"] > 0.9
    assert outcome.results["recovered_accuracy"] > 0.9
    assert verify(outcome.folder) == []
    model = hfprune.load(outcome.folder)
    assert type(model).__name__ == "PrunedViTForImageClassification"
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert set(model.pruning_record.metrics["recovered"]) == {"accuracy", "f1"}
    assert "pipeline_tag: image-classification" in (outcome.folder / "README.md").read_text()
    code = f"""
from transformers import pipeline
answers = pipeline("image-classification", model={str(outcome.folder)!r}, trust_remote_code=True)
say(answers=answers({[str(path) for path in sorted((home / "test").rglob("*.png"))]!r}))
"""
    answers = client(code, with_hfprune=False)["answers"]
    right = 0
    for path, answer in zip(sorted((home / "test").rglob("*.png")), answers, strict=True):
        right += answer[0]["label"] == path.parent.name
    assert right / 30 == pytest.approx(outcome.results["recovered_accuracy"])


def test_metrics_of_single_samples(home):
    task = load(home)
    trainer = task.trainer(
        task.model(fine_tuned=home / "none"),
        hfprune.RecoveryArguments(
            str(home / "out"), use_cpu=True, report_to="none", disable_tqdm=True, dataloader_pin_memory=False
        ),
    )
    prediction = trainer.predict(task.data["train"])
    right = task.sample_metrics["accuracy"](prediction, task.data["train"])
    assert np.mean(right) == pytest.approx(prediction.metrics["test_accuracy"])
    assert len(right) == 48


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(home, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "cache"))
    values = settings(home, **picture_settings(home), num_train_epochs=1, random_flip=True, dense_epochs=1)
    run_python(SCRIPT, write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    assert record.recovery["steps"] == 3  # 48 rows, 2 processes of 8
    assert verify(home / "out" / "model") == []
    assert "recovered_accuracy" in json.loads((home / "out" / "results.json").read_text())
