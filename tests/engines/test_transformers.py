"""What the transformers engine records, reads and refuses, held against the framework's own answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from scripted import tiny_artefact  # noqa: E402
from tiny_models import (  # noqa: E402
    ARCHITECTURES,
    LAYERS,
    QUESTION,
    SHORT,
    WIDTH,
    blocks_and_norm,
    byte_tokenizer,
    one_thread,  # noqa: F401 - a fixture
    record,
    sentencepiece_tokenizer,
    tiny_model,
    wrap,
)

from guard.engines import hub_tokenizer  # noqa: E402
from guard.engines import passes as forward_passes  # noqa: E402
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM  # noqa: E402
from guard.engines.transformers import TransformersEngine  # noqa: E402
from guard.errors import (  # noqa: E402
    ChatTemplateError,
    InputError,
    PromptTooLongError,
    ScorerMismatchError,
    UnsupportedArchitectureError,
)
from guard.records import Limits, Prompt  # noqa: E402
from guard.scoring.scorer import Scorer  # noqa: E402

pytestmark = pytest.mark.torch

#: Largest difference allowed between two computations of one activation, in units of the row's RMS:
#: a pass over one token and a pass over all tokens add up in different orders.
TOLERANCE = 2e-4


def assert_close(actual: Any, expected: Any) -> None:
    """Equal within `TOLERANCE` of each row's RMS."""
    actual, expected = np.asarray(actual), np.asarray(expected.detach())
    scale = np.sqrt(np.mean(expected.astype(np.float64) ** 2, axis=-1, keepdims=True))
    assert (np.abs(actual - expected) <= TOLERANCE * scale).all()


# -- capture -----------------------------------------------------------------------------------


@contextmanager
def inputs_of(modules: list[Any], *, outputs: bool = False) -> Iterator[list[Any]]:
    """What goes into (or comes out of) modules in a forward pass, in order, one tensor each."""
    seen: list[Any] = []

    def see(_: Any, inputs: Any, output: Any) -> None:
        value = output if outputs else inputs
        seen.append(value[0] if isinstance(value, tuple) else value)

    handles = [part.register_forward_hook(see) for part in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


#: model type -> the module of a block whose input is the residual stream before the MLP.
BEFORE_MLP = {
    "gpt2": "ln_2",
    "gemma2": "pre_feedforward_layernorm",
    "gemma3_text": "pre_feedforward_layernorm",
    "opt": "final_layer_norm",
}


def whole_pass(model: Any, ids: list[int]) -> tuple[list[Any], list[Any], Any]:
    """One forward pass over everything: hidden states, residual streams before each MLP, logits."""
    blocks, _ = blocks_and_norm(model)
    kind = model.config.model_type
    parallel = kind == "gpt_neox"  # adds attention and MLP at once
    parts = [
        block.attention if parallel else getattr(block, BEFORE_MLP.get(kind, "post_attention_layernorm"))
        for block in blocks
    ]
    with torch.no_grad(), inputs_of(parts, outputs=parallel) as seen:
        output = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    hidden = [states[0] for states in output.hidden_states]
    seen = [part.reshape(len(ids), -1) for part in seen]
    before = [state + part for state, part in zip(hidden, seen, strict=False)] if parallel else seen
    return hidden, before, output.logits[0]


STRUCTURES = [kind for kind in ARCHITECTURES if kind != "openai-gpt"]  # post-norm: tested below


@pytest.mark.parametrize("kind", STRUCTURES)
def test_mlp_outputs_are_what_the_framework_adds_to_the_residual_stream(kind: str) -> None:
    model = tiny_model(kind)
    engine = wrap(model)
    answer, rows = record(engine)
    prompt = engine.encode(QUESTION)
    hidden, before, _ = whole_pass(model, prompt + list(answer.token_ids[:-1]))
    blocks, norm = blocks_and_norm(model)
    passes = slice(len(prompt) - 1, None)
    assert rows.shape == (len(answer.token_ids), LAYERS, WIDTH)
    for layer, block in enumerate(blocks):
        added = torch.from_numpy(rows[:, layer])
        if kind in ("gemma2", "gemma3_text"):
            added = block.post_feedforward_layernorm(added)
        stream = before[layer][passes] + added
        after = hidden[layer + 1][passes]
        # The last hidden state of the framework is after the final norm.
        assert_close(norm(stream).detach() if layer == LAYERS - 1 else stream.detach(), after)
        # The MLP's part is large enough for the comparison to notice its absence.
        assert (after - before[layer][passes]).norm() > 10 * TOLERANCE * after.norm()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_block_outputs_are_the_frameworks_hidden_states(kind: str) -> None:
    model = tiny_model(kind)
    engine = wrap(model, capture_point="block")
    answer, rows = record(engine)
    prompt = engine.encode(QUESTION)
    with torch.no_grad():
        ids = torch.tensor([prompt + list(answer.token_ids[:-1])])
        hidden = model(ids, output_hidden_states=True).hidden_states
    _, norm = blocks_and_norm(model)
    for layer in range(LAYERS):
        own = torch.from_numpy(rows[:, layer])
        own = norm(own).detach() if layer == LAYERS - 1 else own
        assert_close(own, hidden[layer + 1][0, len(prompt) - 1 :])


def test_mlp_outputs_of_an_architecture_without_a_cache() -> None:
    """OpenAI's first GPT reads everything again for every token, and normalises after each addition."""
    model = tiny_model("openai-gpt")
    engine = wrap(model)
    answer, rows = record(engine)
    prompt = engine.encode(QUESTION)
    blocks, _ = blocks_and_norm(model)
    with torch.no_grad(), inputs_of([block.mlp for block in blocks]) as seen:
        output = model(torch.tensor([prompt + list(answer.token_ids[:-1])]), output_hidden_states=True)
    for layer, block in enumerate(blocks):
        added = torch.from_numpy(rows[:, layer])
        stream = block.ln_2(seen[layer][0, len(prompt) - 1 :] + added)
        assert_close(stream.detach(), output.hidden_states[layer + 1][0, len(prompt) - 1 :])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_answers_and_signals_are_the_frameworks(kind: str) -> None:
    model = tiny_model(kind)
    engine = wrap(model)
    answer = engine.generate(QUESTION, limits=Limits(max_tokens=40))
    prompt = engine.encode(QUESTION)
    ids = torch.tensor([prompt])
    theirs = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=len(answer.token_ids),
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert list(answer.token_ids) == theirs.sequences[0, len(prompt) :].tolist()
    logprobs = torch.log_softmax(torch.stack(theirs.logits)[:, 0].double(), -1)
    top = logprobs.topk(2).values
    np.testing.assert_allclose(answer.logprobs, top[:, 0], atol=1e-4)
    np.testing.assert_allclose(answer.margins, top[:, 0] - top[:, 1], atol=1e-4)
    np.testing.assert_allclose(answer.entropies, -(logprobs.exp() * logprobs).sum(-1), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "openai-gpt"])
def test_a_prompt_read_in_pieces_gives_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = wrap(tiny_model(kind), deterministic=True)
    answer, rows = record(engine)
    monkeypatch.setattr(forward_passes, "PREFILL_TOKENS", 5)
    pieces, piece_rows = record(engine)
    assert pieces.token_ids == answer.token_ids
    np.testing.assert_allclose(pieces.logprobs, answer.logprobs, atol=1e-4)
    assert_close(piece_rows, torch.from_numpy(rows))


def test_half_precision_is_recorded_as_float32() -> None:
    model = tiny_model("qwen2").to(torch.bfloat16)
    engine = wrap(model)
    _, rows = record(engine)
    assert engine.model.quantization == "bfloat16"
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


def test_a_model_inside_wrappers_is_found() -> None:
    class Adapter(torch.nn.Module):
        """Nests a model as PEFT does."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.base_model = torch.nn.Module()
            self.base_model.model = model
            self.config = model.config

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.base_model.model, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.base_model.model(*args, **kwargs)

    model = tiny_model("llama")
    plain, rows = record(wrap(model))
    nested, nested_rows = record(wrap(Adapter(model)))
    assert nested.token_ids == plain.token_ids
    np.testing.assert_array_equal(nested_rows, rows)


# -- text and tokens ---------------------------------------------------------------------------


def test_a_chat_prompt_is_the_models_template_and_nothing_twice() -> None:
    tokenizer = byte_tokenizer()
    engine = wrap(tiny_model("llama"), tokenizer)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION.question}]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert engine.encode(QUESTION) == theirs
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    assert "look_up" in tokenizer.decode(engine.encode(Prompt.chat("hm", tools=tools)))


def test_a_raw_prompt_gets_the_usual_special_tokens_and_a_piece_of_answer_none() -> None:
    tokenizer = sentencepiece_tokenizer()
    engine = wrap(tiny_model("llama"), tokenizer)
    assert engine.encode(Prompt.raw("Hello world")) == tokenizer("Hello world")["input_ids"]
    assert engine.encode(Prompt.raw("Hello"))[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in engine.encode_text("Hello")


def test_chat_template_errors() -> None:
    engine = wrap(tiny_model("llama"), byte_tokenizer(chat_template=None))
    with pytest.raises(ChatTemplateError, match=r"has no chat template. Pass Prompt.raw"):
        engine.generate(QUESTION)
    assert engine.generate(Prompt.raw("Hello"), limits=SHORT).completion_tokens == 24
    engine = wrap(tiny_model("llama"))
    with pytest.raises(ChatTemplateError, match=r"does not know the role 'poet'"):
        engine.generate(Prompt.chat([{"role": "poet", "content": "Ah"}]))
    broken = wrap(tiny_model("llama"), byte_tokenizer(chat_template="{% for %}"))
    with pytest.raises(ChatTemplateError, match="syntax error"):
        broken.encode(QUESTION)


def test_prompts_that_cannot_be_put() -> None:
    engine = wrap(tiny_model("llama"))
    with pytest.raises(PromptTooLongError, match="the context holds 512"):
        engine.generate(Prompt.raw("word " * 600))
    with pytest.raises(InputError, match="empty"):
        engine.generate(Prompt.raw(""))
    with pytest.raises(InputError, match="cannot be tokenized"):
        engine.generate(Prompt.raw("\ud800"))
    small = wrap(tiny_model("llama", vocab_size=100))
    with pytest.raises(InputError, match="the model knows 100 tokens"):
        small.generate(Prompt.raw("The quick brown fox"))


TOKENIZERS: dict[str, Callable[[], Any]] = {"bytes": byte_tokenizer, "sentencepiece": sentencepiece_tokenizer}


def sorted_pieces(tokenizer: Any) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_pieces_of_text_add_up_to_the_tokenizers_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]()
    texts = st.text("ab é€😀.\n", max_size=12).map(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    # A run of sentencepiece's byte tokens that is not UTF-8 takes back characters that were complete.
    odd = [token for token, piece in enumerate(sorted_pieces(tokenizer)) if not piece.startswith("<0x")]
    anything = st.lists(st.sampled_from(odd), max_size=12)
    tokens = data.draw(st.tuples(texts, anything, texts).map(lambda parts: [*parts[0], *parts[1], *parts[2]]))
    detokenizer = hub_tokenizer._Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) + detokenizer.flush() == whole


def test_decoding_a_long_answer_looks_at_its_end_only() -> None:
    tokenizer = byte_tokenizer()
    detokenizer = hub_tokenizer._Detokenizer(tokenizer)
    tokens = tokenizer("The quick brown fox jumps over the lazy dog. " * 20)["input_ids"]
    assert len(tokens) > 100
    for token in tokens:
        detokenizer.push(token)
        assert len(detokenizer._window) <= 2


# -- what is refused ---------------------------------------------------------------------------


def test_architectures_that_are_not_understood_are_refused_when_wrapped() -> None:
    tokenizer = byte_tokenizer()
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(UnsupportedArchitectureError, match="'t5' is an encoder-decoder"):
        TransformersEngine.wrap(t5, tokenizer)
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
    )
    with pytest.raises(UnsupportedArchitectureError, match=r"backbone\.layers\.\{n\}"):
        TransformersEngine.wrap(mamba, tokenizer)
    with pytest.raises(UnsupportedArchitectureError, match=r"layers\.\{n\}\.mlp"):
        TransformersEngine.wrap(tiny_model("llama").model, tokenizer)
    classifier = transformers.LlamaForSequenceClassification(tiny_model("llama").config)
    with pytest.raises(UnsupportedArchitectureError, match="no language modelling head"):
        TransformersEngine.wrap(classifier, tokenizer)


def test_wrapping_something_else() -> None:
    with pytest.raises(InputError, match=r"A str is not a Hugging Face model. .*load with a path"):
        TransformersEngine.wrap("gpt2", byte_tokenizer())
    with pytest.raises(InputError, match="A str is not a Hugging Face tokenizer"):
        TransformersEngine.wrap(tiny_model("llama"), "gpt2")
    with pytest.raises(InputError, match=r"no capture point 'mpl'. Did you mean 'mlp'"):
        wrap(tiny_model("llama"), capture_point="mpl")  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_one_clear_error(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from guard.errors import MissingExtraError\n"
        "try:\n    import guard.engines.transformers\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"{package} is not installed. Run: pip install 'ilis-guard[transformers]'."


@pytest.mark.parametrize("prompt_tokens", [12, 19, 20, 21, 26])
@pytest.mark.parametrize("prefill", [5, 512])
def test_longrope_answers_as_generate_does_before_at_and_past_its_switch(
    prompt_tokens: int, prefill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past it the factors change: generate() throws its cache away there, and reads a long prompt at once."""
    monkeypatch.setattr(forward_passes, "PREFILL_TOKENS", prefill)
    model = tiny_model("phi3")
    size = model.config.vocab_size
    engine = wrap(model)
    ids = [3 + (place * 7919) % (size - 3) for place in range(prompt_tokens)]
    monkeypatch.setattr(engine, "encode", lambda prompt: ids)
    monkeypatch.setattr(engine._tokens, "ends", frozenset())
    answer = engine.generate(Prompt.raw("x"), limits=Limits(max_tokens=20))
    asked = torch.tensor([ids])
    theirs = model.generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert [*answer.token_ids] == theirs[0, prompt_tokens:].tolist()


def test_the_date_that_a_chat_template_writes_is_kept_and_a_scorer_is_bound_to_it() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}"
    model = tiny_model("llama")
    then = TransformersEngine.wrap(model, byte_tokenizer(chat_template=dated), template_date="2026-11-25")
    later = TransformersEngine.wrap(model, byte_tokenizer(chat_template=dated), template_date="2027-01-02")
    assert then.encode(Prompt.chat("hi")) == then.encode(Prompt.raw("25 Nov 2026 hi"))
    assert (then.model.template_date, later.model.template_date) == ("2026-11-25", "2027-01-02")
    assert TransformersEngine.wrap(model, byte_tokenizer(), template_date="2026-11-25").model.template_date is None
    today = TransformersEngine.wrap(model, byte_tokenizer(chat_template=dated))
    assert today.encode(Prompt.chat("hi")) == today.encode(Prompt.chat("hi"))
    scorer = Scorer(tiny_artefact(then.model))
    assert scorer.for_model(then.model, "mlp") is scorer
    with pytest.raises(ScorerMismatchError, match="template_date: fitted on 2026-11-25, got 2027-01-02"):
        scorer.for_model(later.model, "mlp")
    assert scorer.artefact.binding.engine_options == {"template_date": "2026-11-25"}


def test_a_scorer_of_a_template_without_a_date_does_not_speak_of_one() -> None:
    binding = tiny_artefact(wrap(tiny_model("llama")).model).binding
    assert "template_date" not in binding.model_dump()
    assert binding.engine_options == {}


def test_guards_own_system_message_is_asked_of_a_model_that_takes_none() -> None:
    gemma = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    )
    engine = wrap(tiny_model("llama"), byte_tokenizer(chat_template=gemma))
    own = engine.encode(Prompt.chat("Why?", system=SHORT_ANSWER_SYSTEM))
    assert own == engine.encode(Prompt.raw(f"user: {SHORT_ANSWER_SYSTEM}\n\nWhy?"))
    with pytest.raises(ChatTemplateError, match=r"takes no system message.*--system ''"):
        engine.encode(Prompt.chat("Why?", system="You are a pirate."))
