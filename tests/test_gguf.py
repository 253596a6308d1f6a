"""GGUF files of pruned decoders: llama.cpp computes what PyTorch computes, and what it cannot compute is refused."""

import copy
import dataclasses

import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

import hfprune
from hfprune.data.packages import resolve_model
from hfprune.deployment import OpenOptions, WriteOptions, get_target
from hfprune.deployment.gguf.checks import refusal
from hfprune.deployment.gguf.layout import ZERO_NEURONS, layout_of
from hfprune.deployment.gguf.running import LlamaCppRunner, check_tokens
from hfprune.deployment.gguf.tokenizer import vocabulary_of
from hfprune.deployment.gguf.writing import with_weights_of_file, write, write_file
from hfprune.errors import ExportError
from hfprune.planning import PruningPlan
from hfprune.structure import find_blocks
from hfprune.structure.architectures import base_model_type
from tests.support import tiny_tokenizers
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import LINES, trained, wrapped

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

TOKENIZER = wrapped(tiny_tokenizers._byte_level())
ROWS = len(TOKENIZER)
IDS = torch.randint(5, ROWS, (2, 9), generator=torch.Generator().manual_seed(1))
#: Models with no window: attention to all tokens.
NO_WINDOW = {"llama": {}, "mistral": {"sliding_window": None}, "qwen2": {}, "smollm3": {"no_rope_layers": [1, 1]}}
#: Llama 3's frequencies, for positions so few that they matter here.
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
#: Widths that can be quantised.
MULTIPLES_OF_32 = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}


def decoder(model_type="llama", **changes):
    head = changes.pop("head", "AutoModelForCausalLM")
    return tiny_model(model_type, head, **{"vocab_size": ROWS, **NO_WINDOW.get(model_type, {}), **changes})


def pruned(model, *, unit="group"):
    return hfprune.apply_plan(model, uneven_plan(model, attention_unit=unit))


def without(model, *names):
    """The model without some blocks."""
    kind = base_model_type(model.config.model_type)
    kept = {name: [] for name in names}
    plan = PruningPlan.keep(find_blocks(model), kept, model_type=kind, sequence_length=8)
    return hfprune.apply_plan(model, plan)


def options(quantization=None, tokenizer=TOKENIZER):
    return WriteOptions(quantization=quantization, tokenizer=tokenizer, batch={}, name="tiny")


def read(path):
    """The fields of a file, and the types of its tensors."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def runner_of(model, folder, **changes):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    write_file(model, folder / "model.gguf", options(**changes))
    return LlamaCppRunner(folder / "model.gguf", threads=1)


def log_probabilities(model, ids=IDS, **batch):
    with torch.no_grad():
        return model(ids, **batch).logits.float().log_softmax(-1)


def assert_equal_in_llama_cpp(model, folder):
    runner = runner_of(model, folder)
    expected = log_probabilities(model)
    logits = runner({"input_ids": IDS})
    torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=0, atol=3e-5)
    # what the server itself says of every token
    found = runner.log_probabilities(IDS[0].tolist())
    torch.testing.assert_close(found, expected[0], rtol=0, atol=3e-5)
    assert torch.equal(found.argmax(-1), expected[0].argmax(-1))
    written = model.generate(IDS[:1], max_new_tokens=8, do_sample=False, pad_token_id=1)[:, IDS.shape[1] :]
    assert runner.generate(IDS[:1], 8).tolist() == written.tolist()


@pytest.mark.parametrize(
    ("model_type", "unit"),
    [
        ("llama", "group"),
        ("llama", "query"),
        ("llama", None),
        ("mistral", "query"),
        ("qwen2", "group"),
        ("qwen2", None),
        ("smollm3", "query"),
    ],
)
def test_llama_cpp_computes_the_same(model_type, unit, tmp_path):
    dense = decoder(model_type)
    model = dense if unit is None else pruned(dense, unit=unit)
    assert_equal_in_llama_cpp(model, tmp_path)


@pytest.mark.parametrize(
    ("names", "biased"),
    [
        (["layers.0.attention"], False),
        (["layers.2.ffn"], False),
        (["layers.1.attention", "layers.1.ffn"], False),
        (["layers.0.attention", "layers.0.ffn", "layers.1.attention"], False),
        (["layers.1.attention", "layers.1.ffn"], True),
        (["layers.2.attention", "layers.0.ffn"], True),
    ],
)
def test_removed_blocks(names, biased, tmp_path):
    model = without(decoder(num_hidden_layers=3, attention_bias=biased, mlp_bias=biased), *names)
    assert_equal_in_llama_cpp(model, tmp_path)


def test_a_model_without_any_block(tmp_path):
    model = decoder()
    model = without(model, *(block.name for block in find_blocks(model)))
    assert len(layout_of(model).layers) == 1
    assert_equal_in_llama_cpp(model, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "rope"), [("llama", LLAMA_3), ("qwen2", {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e3})]
)
def test_other_frequencies(model_type, rope, tmp_path):
    model = decoder(model_type, head_dim=8, rope_parameters=rope)
    assert_equal_in_llama_cpp(pruned(model), tmp_path)
    assert "rope_freqs.weight" in read(tmp_path / "model.gguf")[1]


def test_tied_embeddings_are_written_once(tmp_path):
    model = pruned(decoder(tie_word_embeddings=True))
    assert_equal_in_llama_cpp(model, tmp_path)
    assert "output.weight" not in read(tmp_path / "model.gguf")[1]


def test_padding_is_left_out(tmp_path):
    model = pruned(decoder())
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    mask[1, -4:] = 0
    found = runner_of(model, tmp_path)({"input_ids": IDS, "attention_mask": mask})
    assert not found[mask == 0].any()
    for row in range(2):
        expected = log_probabilities(model, IDS[row : row + 1, mask[row].bool()])[0]
        torch.testing.assert_close(found[row, mask[row].bool()].log_softmax(-1), expected, rtol=0, atol=3e-5)


def test_only_the_likeliest_tokens(tmp_path):
    model = decoder()
    found = runner_of(model, tmp_path).log_probabilities(IDS[0].tolist(), most=3)
    best = log_probabilities(model)[0].topk(3)
    assert found.isfinite().sum(1).tolist() == [3] * IDS.shape[1]
    torch.testing.assert_close(found.topk(3).values, best.values, rtol=0, atol=3e-5)
    assert torch.equal(found.topk(3).indices, best.indices)


def test_a_text_that_is_too_long(tmp_path):
    runner = runner_of(decoder(), tmp_path)
    with pytest.raises(ValueError, match=r"the text has 200 tokens, and 160 are the most here"):
        runner.complete([7] * 190, 10)


class TestSizes:
    def test_by_layer(self, tmp_path):
        model = pruned(decoder(num_hidden_layers=3))
        write_file(model, tmp_path / "model.gguf", options())
        fields, tensors = read(tmp_path / "model.gguf")
        layers = model.model.layers
        assert fields["general.architecture"] == "deci"
        assert fields["deci.attention.head_count"] == [layer.self_attn.q_proj.out_features // 4 for layer in layers]
        assert fields["deci.attention.head_count_kv"] == [layer.self_attn.k_proj.out_features // 4 for layer in layers]
        assert fields["deci.feed_forward_length"] == [layer.mlp.up_proj.out_features for layer in layers]
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            assert fields[f"deci.{name}"] == 4
        assert tensors["blk.2.attn_q.weight"].shape.tolist() == [32, layers[2].self_attn.q_proj.out_features]

    def test_of_removed_blocks(self, tmp_path):
        model = without(decoder(num_hidden_layers=3), "layers.1.attention", "layers.2.ffn")
        write_file(model, tmp_path / "model.gguf", options())
        fields, tensors = read(tmp_path / "model.gguf")
        assert fields["deci.attention.head_count"] == [8, 0, 8]
        assert fields["deci.feed_forward_length"] == [40, 40, ZERO_NEURONS]
        assert "blk.1.attn_norm.weight" not in tensors
        assert not tensors["blk.2.ffn_up.weight"].data.any()

    def test_a_layer_without_blocks_is_not_written(self, tmp_path):
        model = without(decoder(num_hidden_layers=3), "layers.1.attention", "layers.1.ffn")
        write_file(model, tmp_path / "model.gguf", options())
        fields, _ = read(tmp_path / "model.gguf")
        # the two that stay are alike
        assert (fields["general.architecture"], fields["llama.block_count"]) == ("llama", 2)

    @pytest.mark.parametrize(
        ("model_type", "changes", "architecture"),
        [
            ("llama", {}, "llama"),
            ("mistral", {}, "llama"),
            ("smollm3", {}, "llama"),
            ("qwen2", {}, "qwen2"),
            ("qwen2", {"head_dim": 8}, "deci"),
            ("qwen2", {"rope_parameters": LLAMA_3}, "deci"),
        ],
    )
    def test_layers_that_are_alike_have_the_graph_of_their_type(self, model_type, changes, architecture):
        assert layout_of(decoder(model_type, **changes)).architecture == architecture


class TestQuantization:
    @pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
    def test_llama_cpp_computes_about_the_same(self, quantization, tmp_path):
        model = pruned(decoder(**MULTIPLES_OF_32))
        found = runner_of(model, tmp_path, quantization=quantization)({"input_ids": IDS}).log_softmax(-1)
        expected = log_probabilities(as_read(model, tmp_path / "model.gguf"))
        # of the weights that are in the file; llama.cpp also rounds what they are multiplied with
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()

    @pytest.mark.parametrize(("quantization", "bound"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3), ("q4_0", 0.15)])
    def test_the_weights_are_about_the_same(self, quantization, bound, tmp_path):
        model = pruned(decoder(**MULTIPLES_OF_32))
        write_file(model, tmp_path / "model.gguf", options(quantization))
        again = as_read(model, tmp_path / "model.gguf").state_dict()
        for name, tensor in model.state_dict().items():
            assert (again[name] - tensor).abs().max() <= bound * tensor.abs().max(), name

    @pytest.mark.parametrize("quantization", ["f16", "q8_0", "q4_1"])
    def test_the_weights_of_the_file_are_known(self, quantization, tmp_path):
        dense = decoder(head="AutoModelForCausalLM", tie_word_embeddings=True, **MULTIPLES_OF_32)
        model = without(pruned(dense), "layers.0.ffn")
        write_file(model, tmp_path / "model.gguf", options(quantization))
        expected = as_read(model, tmp_path / "model.gguf").state_dict()
        for name, tensor in with_weights_of_file(model, quantization).state_dict().items():
            assert torch.equal(tensor, expected[name]), name

    def test_an_export_is_compared_with_the_weights_of_the_file(self, tmp_path, monkeypatch):
        pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
        model = pruned(decoder(**MULTIPLES_OF_32))
        exported = hfprune.export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, quantize="q4_0", threads=1)
        assert exported.rounding.typical < 0.05
        assert exported.rounding.typical < max(difference.typical for difference in exported.differences)
        assert "beside PyTorch with the weights of the file" in str(exported)
        # the wide bound of 4 bits would take this file, the narrow one does not
        target = get_target("gguf")

        def others(model, quantization):
            again = with_weights_of_file(model, quantization)
            again.model.layers[0].mlp.down_proj.weight.data.zero_()
            return again

        monkeypatch.setattr(
            "hfprune.deployment.export.get_target", lambda name: dataclasses.replace(target, rounded=others)
        )
        with pytest.raises(ExportError, match="on the weights of the file outputs differ"):
            hfprune.export(model, "gguf", tmp_path / "more", tokenizer=TOKENIZER, quantize="q4_0", threads=1)
        assert not (tmp_path / "more").exists()

    def test_rows_that_are_no_multiple_stay_in_float16(self, tmp_path, caplog):
        model = without(decoder(**MULTIPLES_OF_32), "layers.1.ffn")
        odd = pruned(decoder(**MULTIPLES_OF_32))
        assert write_file(model, tmp_path / "even.gguf", options("q8_0")).wide == ()
        write(odd, tmp_path, options("q4_0"))
        _, tensors = read(tmp_path / "model.gguf")
        kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
        assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
        assert kinds["blk.0.attn_q.weight"] == "Q4_0"
        assert kinds["blk.0.attn_norm.weight"] == "F32"
        wide = [name for name, kind in kinds.items() if kind == "F16"]
        assert {name.split(".", 2)[2] for name in wide} <= {"ffn_down.weight", "attn_output.weight"}
        size = sum(tensors[name].n_bytes for name in wide)
        assert f"{len(wide)} matrices ({size / 1e6:.1f} MB of" in caplog.text
        assert 'PruningConfig(target="gguf-q4_0")' in caplog.text

    def test_a_target_of_pruning_leaves_no_such_rows(self, tmp_path):
        config = hfprune.PruningConfig(
            sparsity=0.4, target="gguf-q4_0", sequence_length=8, scorer="l2", reconstruct=False, schedule="one_shot"
        )
        model = decoder(**{**MULTIPLES_OF_32, "head_dim": 32, "intermediate_size": 256})
        small = hfprune.prune(model, [{"input_ids": IDS}], config)
        assert len({layer.mlp.up_proj.out_features for layer in small.model.layers}) == 2
        assert write_file(small, tmp_path / "model.gguf", options("q4_0")).wide == ()

    def test_the_types_of_models_in_half_precision(self, tmp_path):
        for dtype, kind in ((torch.float16, "F16"), (torch.bfloat16, "BF16")):
            write_file(decoder().to(dtype), tmp_path / "model.gguf", options())
            _, tensors = read(tmp_path / "model.gguf")
            assert tensors["blk.0.ffn_up.weight"].tensor_type.name == kind

    def test_weights_too_large_for_float16(self, tmp_path):
        model = decoder()
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
        with pytest.raises(ExportError, match=r"blk.0.ffn_up.weight has weights that float16 cannot hold.*bf16"):
            write_file(model, tmp_path / "model.gguf", options("f16"))


def as_read(model, path):
    """The model with the weights of a file."""
    from hfprune.deployment.gguf.layout import TURN_NEIGHBOURS, layout_of

    again = copy.deepcopy(model)
    layout = layout_of(again)
    assert layout.architecture in TURN_NEIGHBOURS
    tensors = read(path)[1]
    with torch.no_grad():
        for name, tensor in layout.tensors():
            stored = tensors[name]
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
            values = torch.tensor(values, dtype=torch.float32).reshape(tensor.shape)
            if ".attn_q." in name or ".attn_k." in name:
                # back to the order of transformers
                values = values.reshape(-1, layout.head_width // 2, 2, *tensor.shape[1:]).transpose(1, 2)
                layer = again.model.layers[int(name.split(".")[1])].self_attn
                tensor = (layer.q_proj if ".attn_q." in name else layer.k_proj).weight
            tensor.copy_(values.reshape(tensor.shape))
    return again


def test_export_proves_the_file(tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    model = pruned(decoder())
    exported = hfprune.export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, threads=1)
    assert exported.text.equal == exported.text.tokens
    assert all(difference.relative < 1e-5 and difference.agreement == 1 for difference in exported.differences)
    assert (tmp_path / "out" / "model.gguf").is_file()


@pytest.mark.demo
@pytest.mark.slow
def test_smollm2_writes_the_same_in_llama_cpp(tmp_path):
    try:
        folder = resolve_model("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = " ".join(LINES)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :256]
    config = hfprune.PruningConfig(
        sparsity=0.2,
        budget="params",
        scorer="activation_norm",
        schedule="one_shot",
        reconstruct=False,
        calibration_samples=1,
    )
    small = hfprune.prune(AutoModelForCausalLM.from_pretrained(folder), [{"input_ids": ids}], config)
    assert layout_of(small).architecture == "deci"
    runner = runner_of(small, tmp_path, tokenizer=tokenizer)
    check_tokens(runner, tokenizer, texts=[text])
    expected = log_probabilities(small, ids)
    found = runner({"input_ids": ids}).log_softmax(-1)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert (found - expected).abs().max() < 0.02
    # the runner writes on behind the token that ends a text
    small.generation_config.eos_token_id = None
    written = small.generate(ids[:, :32], max_new_tokens=32, do_sample=False)[:, 32:]
    assert runner.generate(ids[:, :32], 32).tolist() == written.tolist()


def test_probabilities_must_follow_from_the_hidden_states(tmp_path, monkeypatch):
    """A file of float32 rounds nothing; one whose output matrix is rounded may be off by more."""
    for folder, quantization in (("float32", None), ("rounded", "q8_0")):
        (tmp_path / folder).mkdir()
        model = decoder(**MULTIPLES_OF_32)
        runner = runner_of(model, tmp_path / folder, quantization=quantization)
        likely = runner._likely
        monkeypatch.setattr(
            runner, "_likely", lambda ids, most, likely=likely: {k: 1.01 * v for k, v in likely(ids, most).items()}
        )
        if quantization is None:
            with pytest.raises(ExportError, match="gives other probabilities than follow"):
                runner({"input_ids": IDS})
        else:
            assert runner({"input_ids": IDS}).isfinite().all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (
                lambda: decoder("qwen3"),
                r"no graph of llama.cpp with widths by layer computes 'qwen3': it takes llama, ",
            ),
            (lambda: decoder(head="AutoModel"), "LlamaModel has no language model head.*AutoModelForCausalLM"),
            (lambda: decoder(head="AutoModelForSequenceClassification"), "LlamaForSequenceClassification has no"),
            (lambda: decoder().to("meta"), r"is not in memory \(device meta\)"),
            (lambda: decoder(hidden_act="gelu"), "hidden_act='gelu'"),
            (lambda: decoder("mistral", sliding_window=64), "a sliding window of 64 tokens.*sliding_window = None"),
            (lambda: decoder(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "'dynamic'"),
            (lambda: decoder("smollm3", num_hidden_layers=4, no_rope_layers=None), r"layers \[3\] have no rotary emb"),
        ],
    )
    def test_what_the_graph_does_not_compute(self, model, message, tmp_path):
        model = model()
        assert refusal(model)
        with pytest.raises(ExportError, match=message):
            write_file(model, tmp_path / "model.gguf", options())
        assert not list(tmp_path.iterdir())

    def test_norms_of_queries(self):
        model = decoder()
        model.model.layers[1].self_attn.q_norm = torch.nn.Identity()
        assert "layer 1 normalises queries and keys" in refusal(model)

    def test_quantised_weights(self):
        model = decoder()
        projection = model.model.layers[1].mlp.up_proj
        projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
        assert "layers.1.mlp.up_proj.weight is quantised (torch.int8)" in refusal(model)

    def test_a_window_that_holds_all_tokens_is_none(self):
        assert refusal(decoder("mistral", sliding_window=160)) is None

    def test_no_tokenizer(self, tmp_path):
        with pytest.raises(ExportError, match="a GGUF file holds the tokenizer, and none was given"):
            write_file(decoder(), tmp_path / "model.gguf", options(tokenizer=None))

    def test_a_file_that_is_none(self, tmp_path):
        pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
        write_file(decoder("qwen2"), tmp_path / "model.gguf", options())
        data = (tmp_path / "model.gguf").read_bytes()
        # a tensor that the graph needs has another name
        (tmp_path / "model.gguf").write_bytes(data.replace(b"output_norm.weight", b"output_form.weight"))
        with pytest.raises(ExportError, match="llama.cpp does not load"):
            LlamaCppRunner(tmp_path / "model.gguf")


LLAMA_3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_CUT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut_by(expression, *, whole_words=False):
    """A tokenizer that cuts texts by an expression, as those of larger models."""
    steps = [
        pre_tokenizers.Split(Regex(expression), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return with_steps(*steps, whole_words=whole_words)


def with_steps(*steps, whole_words=False):
    tokenizer = tiny_tokenizers._byte_level()
    tokenizer = tiny_tokenizers._changed(tokenizer, ignore_merges=whole_words)
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
    return tokenizer


def framed(tokenizer: Tokenizer, single: str) -> Tokenizer:
    names = [name for name in ("<s>", "</s>") if name in single]
    tokens = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS = {
    "gpt-2": lambda: with_steps(BYTES),
    "smollm": lambda: with_steps(pre_tokenizers.Digits(individual_digits=True), BYTES),
    "llama-bpe": lambda: cut_by(LLAMA_3_CUT, whole_words=True),
    "smaug-bpe": lambda: cut_by(LLAMA_3_CUT),
    "qwen2": lambda: cut_by(LLAMA_3_CUT.replace(r"\p{N}{1,3}", r"\p{N}")),
    "tekken": lambda: cut_by(TEKKEN_CUT, whole_words=True),
}


class TestTokenizer:
    @pytest.mark.parametrize(
        ("name", "single"),
        [
            ("gpt-2", "$A"),
            ("gpt-2", "<s> $A </s>"),
            ("smollm", "$A"),
            ("llama-bpe", "<s> $A"),
            ("smaug-bpe", "$A"),
            ("qwen2", "$A"),
            ("tekken", "<s> $A"),
            ("tekken", "$A"),
        ],
    )
    def test_llama_cpp_makes_the_same_tokens(self, name, single, tmp_path):
        tokenizer = wrapped(framed(CUTS[name](), single))
        assert vocabulary_of(tokenizer, rows=ROWS).pre == name
        runner = runner_of(decoder(), tmp_path, tokenizer=tokenizer)
        check_tokens(runner, tokenizer, texts=LINES)

    def test_what_is_written(self, tmp_path):
        write_file(decoder(vocab_size=ROWS + 2), tmp_path / "model.gguf", options())
        fields, _ = read(tmp_path / "model.gguf")
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        assert len(tokens) == len(types) == ROWS + 2
        assert [tokens[2], types[2]] == ["<s>", 3]
        assert [tokens[ROWS - 1], types[ROWS - 1]] == ["<tool>", 4]
        assert (tokens[ROWS], types[ROWS]) == (f"[PAD{ROWS}]", 5)
        assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (2, 3)
        assert fields["tokenizer.chat_template"] == TOKENIZER.chat_template

    def test_several_chat_templates(self, tmp_path):
        tokenizer = copy.deepcopy(TOKENIZER)
        tokenizer.chat_template = {"default": "a talk", "tool_use": "a talk with tools"}
        write_file(decoder(), tmp_path / "model.gguf", options(tokenizer=tokenizer))
        fields, _ = read(tmp_path / "model.gguf")
        assert fields["tokenizer.chat_template"] == "a talk"
        assert fields["tokenizer.chat_template.tool_use"] == "a talk with tools"
        assert fields["tokenizer.chat_templates"] == ["tool_use"]

    def test_the_folder_is_opened_only_if_its_tokenizer_agrees(self, tmp_path):
        pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
        target = get_target("gguf")
        model = pruned(decoder())
        TOKENIZER.save_pretrained(tmp_path)
        target.write(model, tmp_path, options())
        runner = target.open(tmp_path, OpenOptions(threads=1))
        torch.testing.assert_close(
            runner({"input_ids": IDS}).log_softmax(-1), log_probabilities(model), rtol=0, atol=3e-5
        )
        wrapped(with_steps(pre_tokenizers.Digits(individual_digits=True), BYTES)).save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path)("in 2004").input_ids != TOKENIZER("in 2004").input_ids
        with pytest.raises(ExportError, match="llama.cpp makes other tokens than the tokenizer of .Hello world"):
            target.open(tmp_path, OpenOptions())

    @pytest.mark.parametrize(
        ("tokenizer", "message"),
        [
            (lambda: trained("word_piece"), "the tokenizer is WordPiece, and only merges"),
            (lambda: trained("unigram"), "the tokenizer is Unigram"),
            (lambda: trained("byte_fallback"), r"makes \['<s>', '▁a', '</s>', '<end>'\] of 'a'"),
            (lambda: trained("suffix"), "the tokenizer has end_of_word_suffix='</w>'"),
            (lambda: trained("prefix"), "the tokenizer has continuing_subword_prefix='##'"),
            (lambda: wrapped(with_steps(pre_tokenizers.ByteLevel())), 'no name for how.*"add_prefix_space": true'),
            (lambda: trained("whole_words_first"), "no name for how.*ignore_merges=True"),
            (lambda: trained("byte_level"), r"makes \['<s>', 'a', '</s>', '<end>'\] of 'a'"),
        ],
    )
    def test_what_llama_cpp_cannot_say(self, tokenizer, message):
        with pytest.raises(ExportError, match=message):
            vocabulary_of(tokenizer(), rows=2000)

    def test_a_tokenizer_that_changes_texts(self):
        from tokenizers import normalizers

        tokenizer = with_steps(BYTES)
        tokenizer.normalizer = normalizers.Lowercase()
        with pytest.raises(ExportError, match="the tokenizer changes texts first.*Lowercase"):
            vocabulary_of(wrapped(tokenizer), rows=ROWS)

    def test_a_token_without_an_embedding(self):
        with pytest.raises(ExportError, match=f"'<tool>' has the id {ROWS - 1}.* embeddings of {ROWS - 1} tokens"):
            vocabulary_of(TOKENIZER, rows=ROWS - 1)
