from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hfprune.data import load_text_dataset, tokenize
from hfprune.data.labels import align_labels

name = "me/finetuned"  # your fine-tuned model: a folder, or a name on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
dense = AutoModelForSequenceClassification.from_pretrained(name)

texts = load_text_dataset(files={"train": "train.csv"})  # columns "text" and "label"; or the name of a data set
data = tokenize(align_labels(texts, dense.config), tokenizer)
train, validation, test = data["train"], data["validation"], data["test"]
collator = DataCollatorWithPadding(tokenizer)
