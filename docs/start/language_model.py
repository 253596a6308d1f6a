from transformers import AutoModelForCausalLM, AutoTokenizer

from hfprune.data.corpus import load_documents, pack

name = "me/chat"  # your language model: a folder, or a name on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
dense = AutoModelForCausalLM.from_pretrained(name)

documents = load_documents(files={"train": "text.txt", "test": "other.txt"})  # plain text; or a data set of the Hub
windows = pack(documents, tokenizer, max_length=128, whole=True)  # the text in pieces of 128 tokens
