"""Run a GGUF file in llama.cpp, by the package xllamacpp, which carries its server."""

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfprune.deployment.gguf.writing import FILE
from hfprune.deployment.targets import OpenOptions
from hfprune.errors import ExportError

#: The most tokens of a text here, if the model was made for as many. The cache is allocated for them.
CONTEXT = 2048
#: A text with what tokenizers treat differently: digits, spaces, contractions, capitals, code, and other scripts.
SPECIMEN = (
    "Hello world! It's 7 o'clock, they'LL say 1234567 times 3.14159.\n\n  def f(x):\n\treturn x**2 != None  # TODO\r\n"
    "CamelCase in 2004 snake_case ÀÉÎ naïve “quotes” — наука 東京タワー 한국어 مرحبا 🦙🚀   trailing   "
)
#: What makes one token certain to follow. Its text is complete, so that the server answers with the probabilities.
_CERTAIN = 1e4
#: Of how many tokens the probabilities behind a text are compared, and how far they may be off, relative to the
#: largest: where the output matrix is float32, and where it is not.
_LIKELY = 20
_EXACT = 1e-3
_ROUNDED = 0.05
#: Seconds that an answer may take.
_PATIENCE = 600


class LlamaCppRunner:
    """A GGUF file that is open in llama.cpp.

    Keys and values stay in float32 and attention is computed exactly, unlike by default in llama.cpp, so that what is
    compared is the file.

    Args:
        path: The file.
        threads: How many threads compute; None for as many as llama.cpp likes.
        fast: As llama.cpp runs a file by default: keys and values in float16, approximate attention. Texts are then
            written, and not looked at token by token.

    Raises:
        ExportError: llama.cpp does not load the file.

    Attributes:
        vocabulary: How many tokens the model has.
        context: The most tokens of a text here.
    """

    def __init__(self, path: Path, *, threads: int | None = None, fast: bool = False) -> None:
        import gguf
        import xllamacpp

        reader = gguf.GGUFReader(path)
        tokens = reader.fields["tokenizer.ggml.tokens"].contents()
        architecture = reader.fields["general.architecture"].contents()
        self.vocabulary = len(tokens)
        self.context = min(CONTEXT, reader.fields[f"{architecture}.context_length"].contents())
        letters = [number for number, token in enumerate(tokens) if token in set(string.ascii_letters)]
        self._letter = letters[0]
        self._output, is_exact = _output_matrix(reader)
        # llama.cpp rounds hidden states before it multiplies them with rounded weights
        self._admitted = _EXACT if is_exact else _ROUNDED
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = self.context
        # one text after the other, and none kept but the last
        parameters.n_parallel = 1
        parameters.cache_ram_mib = 0
        parameters.n_gpu_layers = 0
        parameters.fit_params = False
        parameters.verbosity = 0
        if threads is not None:
            parameters.cpuparams.n_threads = threads
            parameters.cpuparams_batch.n_threads = threads
        if not fast:
            # the server gives the hidden states of all tokens
            parameters.embedding = True
            parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
            parameters.n_batch = parameters.n_ubatch = self.context
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"llama.cpp does not load {path}: {error}") from error
        # a server that is closed before its first answer waits for itself for ever
        self.tokenize("")

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits of every token of a batch.

        The server gives the last hidden states of all tokens, and the likeliest tokens behind a text. So the product
        with the output matrix of the file is computed here, and compared with what the server says behind each text.

        Args:
            batch: `input_ids` and, where there is padding, `attention_mask`, each `(samples, tokens)`.

        Returns:
            `(samples, tokens, vocabulary)`, float32, 0 where there is padding.

        Raises:
            ExportError: The server's probabilities do not follow from its hidden states.
        """
        ids = batch["input_ids"]
        mask = batch.get("attention_mask")
        is_token = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        outputs = torch.zeros(*ids.shape, self.vocabulary, dtype=torch.float, device="cpu")
        for row in range(len(ids)):
            text = ids[row][is_token[row]].tolist()
            logits = self.hidden_states(text) @ self._output.T
            self._check_last(text, logits[-1])
            outputs[row, is_token[row].cpu()] = logits
        return outputs

    def hidden_states(self, ids: Sequence[int]) -> Tensor:
        """The last hidden states of a text, behind the last norm.

        Args:
            ids: The text.

        Returns:
            `(tokens, hidden)`.

        Raises:
            ValueError: The text is longer than the context.
        """
        self._check_length(len(ids))
        answer = self._ask("/embedding", {"content": list(ids), "embd_normalize": -1})
        return _numbers(answer[0]["embedding"])

    def _check_last(self, ids: Sequence[int], logits: Tensor) -> None:
        """Compare logits behind a text with the likeliest tokens there, as the server has them."""
        found = self._likely(ids, _LIKELY)
        expected = logits.log_softmax(-1)
        difference = (_numbers(found.values()) - expected[list(found)]).abs().max()
        if not difference <= self._admitted * expected.abs().max():
            raise ExportError(
                f"llama.cpp gives other probabilities than follow from its hidden states: they differ by "
                f"{difference:.2g} of {expected.abs().max():.2g}."
            )

    def _likely(self, ids: Sequence[int], most: int) -> dict[int, float]:
        """The likeliest tokens behind a text, with the logarithms of their probabilities."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": most,
            "logit_bias": [[self._letter, _CERTAIN]],
        }
        answer = self._ask("/completion", body)
        likely = answer["completion_probabilities"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in likely}

    def log_probabilities(self, ids: Sequence[int], *, most: int | None = None) -> Tensor:
        """The logarithms of the probabilities of the next token, for every token of a text.

        Args:
            ids: The text.
            most: Only those of so many likeliest tokens, which takes less time; -inf for the others. None for all.

        Returns:
            `(tokens, vocabulary)`.

        Raises:
            ValueError: The text is longer than the context.
        """
        self._check_length(len(ids) + 1)
        outputs = torch.full((len(ids), self.vocabulary), -torch.inf, dtype=torch.float, device="cpu")
        # the server keeps what it computed for the text before, so each request computes one token
        for place in range(len(ids)):
            likely = self._likely(ids[: place + 1], most or self.vocabulary)
            outputs[place, list(likely)] = _numbers(likely.values())
        return outputs

    def generate(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """Write a text greedily, also behind a token that ends it.

        Args:
            input_ids: `(1, tokens)`, the beginning.
            new_tokens: How many tokens to write.

        Returns:
            `(1, new_tokens)`, without the beginning.

        Raises:
            ValueError: The text is longer than the context.
        """
        ids = input_ids[0].tolist()
        self._check_length(len(ids) + new_tokens)
        written: list[int] = []
        while len(written) < new_tokens:
            written += self._likely([*ids, *written], 1)
        return torch.tensor([written], dtype=torch.long, device="cpu")

    def complete(self, ids: Sequence[int], new_tokens: int) -> dict[str, Any]:
        """Write a text greedily, as the server does in one request; the text does not end before.

        Args:
            ids: The beginning.
            new_tokens: How many tokens to write.

        Returns:
            The answer of the server: `tokens`, `content`, and in `timings` milliseconds and tokens a second.

        Raises:
            ValueError: The text is longer than the context.
        """
        self._check_length(len(ids) + new_tokens)
        body = {
            "prompt": list(ids),
            "n_predict": new_tokens,
            "temperature": 0,
            "return_tokens": True,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer: dict[str, Any] = self._ask("/completion", body)
        return answer

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, as llama.cpp makes them.

        Args:
            text: The text.

        Returns:
            Their ids, with those that frame a text.
        """
        answer = self._ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return list(answer["tokens"])

    def _check_length(self, tokens: int) -> None:
        """Refuse a text that does not fit."""
        if tokens > self.context:
            raise ValueError(f"the text has {tokens} tokens, and {self.context} are the most here. Take a shorter one.")

    def _ask(self, route: str, body: Mapping[str, Any]) -> Any:
        """Send a request to the server, which listens on this machine only."""
        address = urlsplit(self._server.listening_address)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=_PATIENCE)
        try:
            connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ExportError(f"llama.cpp answers with an error to {route}: {answer}.")
        return answer


def _numbers(values: Iterable[Any]) -> Tensor:
    """Numbers of an answer, nested or not, as a tensor."""
    return torch.tensor(list(values), dtype=torch.float, device="cpu")


def _output_matrix(reader: Any) -> tuple[Tensor, bool]:
    """The matrix that makes logits of hidden states, `(vocabulary, hidden)`, and whether it is stored as float32.

    It is that of the embeddings, if there is none.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = tensors.get("output.weight", tensors["token_embd.weight"])
    matrix = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
    return matrix, stored.tensor_type == GGMLQuantizationType.F32


def open_runner(folder: Path, options: OpenOptions) -> LlamaCppRunner:
    """Open `model.gguf` of a folder in llama.cpp.

    Args:
        folder: The folder; if it holds the tokenizer too, both must make the same tokens of a text.
        options: The number of threads.

    Returns:
        The model, to be run.

    Raises:
        ExportError: llama.cpp does not load the file, or makes other tokens of a text.
    """
    runner = LlamaCppRunner(folder / FILE, threads=options.threads)
    file = folder / "tokenizer.json"
    if file.is_file():
        # the file itself: an Auto class may take a tokenizer of the model's type, with other rules
        check_tokens(runner, PreTrainedTokenizerFast(tokenizer_file=str(file)))
    return runner


def check_tokens(runner: LlamaCppRunner, tokenizer: PreTrainedTokenizerBase, *, texts: Sequence[str] = ()) -> None:
    """Compare the tokens that llama.cpp makes of texts with those of a tokenizer.

    Args:
        runner: A file that is open.
        tokenizer: The tokenizer of the model.
        texts: Texts to compare, beside a specimen with words, numbers, code, other scripts and added tokens.

    Raises:
        ExportError: They differ; the message has the first text where they do.
    """
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for text in (SPECIMEN, " and ".join(added[:16]), *texts):
        # a specimen may be longer than what a tiny model was made for
        expected = tokenizer(text, verbose=False).input_ids
        found = runner.tokenize(text)
        if found != expected:
            raise ExportError(
                f"llama.cpp makes other tokens than the tokenizer of {text!r}: {found}, expected {expected}. Take "
                "another target, or the converter of llama.cpp."
            )
