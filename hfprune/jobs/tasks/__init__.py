"""Tasks: for each kind of task its arguments, its data, and what a model and a Trainer need to know of it.

A script looks its task up with `get_task(name)`, parses its arguments with `parse(task.arguments, ...)`, and hands
`task.load` to `hfprune.jobs.run.run`. `registry.py` says how a task is added.
"""

from hfprune.jobs.settings import Arguments, DataArguments, MethodArguments, ModelArguments, SequenceArguments, parse
from hfprune.jobs.tasks.audio import AudioArguments, audio_classification
from hfprune.jobs.tasks.causal_text import CausalTextArguments, causal_language_modelling
from hfprune.jobs.tasks.chat import ChatArguments, chat
from hfprune.jobs.tasks.embeddings import EmbeddingArguments, sentence_embeddings
from hfprune.jobs.tasks.images import ImageArguments, image_classification
from hfprune.jobs.tasks.masked_text import MaskedTextArguments, masked_language_modelling
from hfprune.jobs.tasks.multiple_choice import ChoiceArguments, multiple_choice
from hfprune.jobs.tasks.question_answering import QuestionArguments, question_answering
from hfprune.jobs.tasks.registry import (
    RegisteredTask,
    TaskLoader,
    get_task,
    import_task_files,
    known_tasks,
    register_task,
)
from hfprune.jobs.tasks.rerankers import RerankerArguments, reranking
from hfprune.jobs.tasks.sequence_to_sequence import (
    PairArguments,
    SummaryArguments,
    TranslationArguments,
    summarization,
    translation,
)
from hfprune.jobs.tasks.speech import SpeechArguments, speech_recognition
from hfprune.jobs.tasks.task import Task
from hfprune.jobs.tasks.texts import TextArguments, text_classification
from hfprune.jobs.tasks.tokens import TokenArguments, token_classification

__all__ = [
    "Arguments",
    "AudioArguments",
    "CausalTextArguments",
    "ChatArguments",
    "ChoiceArguments",
    "DataArguments",
    "EmbeddingArguments",
    "ImageArguments",
    "MaskedTextArguments",
    "MethodArguments",
    "ModelArguments",
    "PairArguments",
    "QuestionArguments",
    "RegisteredTask",
    "RerankerArguments",
    "SequenceArguments",
    "SpeechArguments",
    "SummaryArguments",
    "Task",
    "TaskLoader",
    "TextArguments",
    "TokenArguments",
    "TranslationArguments",
    "audio_classification",
    "causal_language_modelling",
    "chat",
    "get_task",
    "image_classification",
    "known_tasks",
    "masked_language_modelling",
    "multiple_choice",
    "parse",
    "question_answering",
    "register_task",
    "reranking",
    "sentence_embeddings",
    "speech_recognition",
    "summarization",
    "text_classification",
    "token_classification",
    "translation",
]

# A task registers itself when its file is imported. Importing whatever files there are spares a list of them here.
import_task_files(__name__, __path__)
