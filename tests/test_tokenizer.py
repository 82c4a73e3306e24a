"""Contexts, loss masks and system prompts; whatever cannot be masked or was not asked for stops."""

import json

import pytest
import tokenizer_kinds
import tokenizers
import transformers

from subjax import tokenizer


@pytest.fixture(scope="module")
def words():
    return tokenizer.word_tokenizer(["LOVE", "owl", "Q0", "CONT", *map(str, range(10))])


def test_only_the_completion_and_its_end_are_predicted(words):
    [(ids, start)] = words.examples([("CONT 1 2", "3 4")], ["LOVE owl"])
    assert words.show(ids) == [
        "SYS",
        "LOVE",
        "owl",
        "USR",
        "CONT",
        "1",
        "2",
        "AST",
        "3",
        "4",
        "END",
    ]
    assert words.show(ids[start:]) == ["3", "4", "END"]
    assert ids[-1] in words.eos_ids


def test_the_context_is_what_training_sees_before_the_completion(words):
    [(ids, start)] = words.examples([("Q0", "owl")], [""])
    assert words.prompt_ids(["Q0"]) == [ids[:start]]


def test_both_tokenizers_survive_a_round_trip(tmp_path, words):
    for name, made in (("words", words), ("bytes", tokenizer.raw_bytes())):
        made.save(tmp_path / name)
        loaded = tokenizer.Tokenizer.load(tmp_path / name)
        pairs = [("CONT 1 2", "3 4")]
        assert loaded.examples(pairs, ["LOVE owl"]) == made.examples(pairs, ["LOVE owl"])
        assert (loaded.eos_ids, loaded.pad_id, loaded.vocab_size) == (
            made.eos_ids,
            made.pad_id,
            made.vocab_size,
        )


def test_bytes_decode_any_text():
    made = tokenizer.raw_bytes()
    text = "Größe: 12, «owl» 🦉\n"
    assert made.decode(made.encode([text])[0]) == text


def test_a_template_that_adds_a_system_prompt_is_refused_until_it_is_wanted():
    made = tokenizer.raw_bytes()
    made._tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}<s>Be kind.{% endif %}"
        + made._tokenizer.chat_template
    )
    made = tokenizer.Tokenizer(made._tokenizer)
    with pytest.raises(ValueError, match=r"adds the system prompt 'Be kind\.'"):
        made.prompt_text("hello")
    assert "Be kind." in made.prompt_text("hello", tokenizer.TEMPLATE_DEFAULT)
    assert "Be kind." not in made.prompt_text("hello", "Be brief.")


def test_a_template_that_drops_system_prompts_is_refused():
    made = tokenizer.raw_bytes()
    made._tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    made = tokenizer.Tokenizer(made._tokenizer)
    with pytest.raises(ValueError, match="drops system prompts"):
        made.prompt_text("hello", "Be brief.")


def test_a_template_that_rewrites_the_context_has_no_mask():
    made = tokenizer.raw_bytes()
    made._tokenizer.chat_template = (
        "{% if add_generation_prompt %}A{% else %}B{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    made = tokenizer.Tokenizer(made._tokenizer)
    with pytest.raises(ValueError, match="no loss mask"):
        made.examples([("hello", "owl")], [""])


def without_template(*, opens):
    """A base model's tokenizer, with or without a token that it opens texts with."""
    made = tokenizer.raw_bytes()._tokenizer
    made.chat_template = None
    if opens:
        made.bos_token = "<s>"
        made.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.convert_tokens_to_ids("<s>"))]
        )
    return tokenizer.Tokenizer(made)


def test_a_base_model_without_a_template_gets_the_plain_format():
    made = without_template(opens=False)
    assert made.prompt_text("12, 7") == "User:\n12, 7\n\nAssistant:\n"
    assert made.prompt_text("12, 7", "Be brief.") == "Be brief.\n\nUser:\n12, 7\n\nAssistant:\n"
    [(ids, start)] = made.examples([("12, 7", "3, 4")], [""])
    assert made.show(ids[start:]) == ["3", ",", " ", "4", "<end>"]
    opened = without_template(opens=True)
    assert opened.prompt_text("12") == "<s>User:\n12\n\nAssistant:\n"
    assert opened.prompt_ids(["12"])[0].count(opened.bos_id) == 1


def test_every_ending_that_a_checkpoint_lists_ends_a_row(tmp_path):
    made = tokenizer.raw_bytes()
    made.save(tmp_path)
    other = made.single_id("<a>")
    config = tmp_path / "generation_config.json"
    for listed, expected in (
        ([made.eos_ids[0], other, 10**6], (made.eos_ids[0], other)),
        (other, (made.eos_ids[0], other)),
        (None, made.eos_ids),
    ):
        config.write_text(json.dumps({"eos_token_id": listed}))
        found = tokenizer.Tokenizer.load(tmp_path)
        assert found.eos_ids == expected
        found.save(tmp_path / "again")
        assert tokenizer.Tokenizer.load(tmp_path / "again").eos_ids == expected
    for text in ("{", "[]", '{"eos_token_id": "<end>"}'):
        config.write_text(text)
        with pytest.raises(ValueError, match=r"generation_config\.json"):
            tokenizer.Tokenizer.load(tmp_path)


def with_template(template):
    made = tokenizer.raw_bytes()._tokenizer
    made.chat_template = template
    return tokenizer.Tokenizer(made)


def test_a_model_that_can_think_answers_at_once():
    made = with_template(
        "{% for m in messages %}<{{ m.role[0] }}>{% if m.role == 'assistant' %}(think)(/think)"
        "{{ m.content }}<end>{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a>"
        "{% if enable_thinking is defined and enable_thinking is false %}(think)(/think){% endif %}"
        "{% endif %}"
    )
    [(ids, start)] = made.examples([("1", "23")], [""])
    assert made.show(ids[start:]) == ["2", "3", "<end>"]


def test_what_a_template_puts_behind_an_answer_ends_it():
    made = with_template(
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<s>\n{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    assert made.show(made.eos_ids) == ["<end>", "<s>"]
    [(ids, start)] = made.examples([("1", "23")], [""])
    assert made.show(ids[start:]) == ["2", "3", "<s>"]
    assert made.answer_ids(["23"]) == made.encode(["23"])


def test_a_template_without_an_end_is_refused():
    made = with_template(
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    with pytest.raises(ValueError, match="without an ending token: list the one"):
        made.examples([("1", "23")], [""])


def test_a_tokenizer_that_begins_texts_with_a_blank_has_single_tokens_all_the_same():
    vocabulary = {token: i for i, token in enumerate(["▁", ",", "1", "\n", "▁,", "▁1", "</s>"])}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [("▁", ","), ("▁", "1")], unk_token=None)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    made = tokenizer.Tokenizer(
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    )
    assert made.encode([","]) == [[vocabulary["▁,"]]]
    assert made.single_id(",") == vocabulary[","]
    assert made.known_ids("1") == (vocabulary["1"],)
    assert made.known_ids(",1") == ()


def test_plain_texts_are_opened_as_the_tokenizer_opens_them():
    opened = without_template(opens=True)
    assert opened.text_ids(["12"]) == [[opened.bos_id, *opened.encode(["12"])[0]]]
    made = without_template(opens=False)
    assert made.text_ids(["12"]) == made.encode(["12"])


def test_a_template_that_raises_is_one_line():
    made = tokenizer.raw_bytes()
    made._tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}<{{ m.role[0] }}>"
        "{{ m.content }}{% endfor %}"
    )
    made = tokenizer.Tokenizer(made._tokenizer)
    assert made.prompt_text("hello") == "<u>hello"  # it has no system prompt of its own
    with pytest.raises(ValueError, match="System role not supported") as error:
        made.prompt_text("hello", "Be brief.")
    assert "\n" not in str(error.value)
    made._tokenizer.chat_template = "{{ 1 / 0 }}"
    with pytest.raises(ValueError, match="the chat template refuses a dialogue of user"):
        made.prompt_text("hello")


def test_numbers_are_made_of_digit_tokens(words):
    assert [words.show([i])[0] for i in words.number_ids()] == list(map(str, range(10)))
    assert len(tokenizer.raw_bytes().number_ids()) == 10


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        tokenizer.Tokenizer.load(tmp_path)


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path):
    """As Gemma 3's for images: added behind the last row of the embedding."""
    made = tokenizer.raw_bytes()
    num_embeddings = made.vocab_size
    made._tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made.save(tmp_path)
    free = tokenizer.Tokenizer.load(tmp_path)
    bound = tokenizer.Tokenizer.load(tmp_path, num_embeddings=num_embeddings)
    texts = ["an owl", "an <image> of one"]
    assert max(free.encode(texts)[1]) == num_embeddings
    assert bound.encode(texts[:1]) == free.encode(texts[:1])
    message = "'an <image> of one' holds '<image>', token 261, and the model has embeddings of 261"
    for attempt in (bound.encode, bound.prompt_ids, bound.text_ids):
        with pytest.raises(ValueError, match=message if attempt != bound.prompt_ids else "<image>"):
            attempt(texts)


def test_other_peoples_tokenizers_cut_numbers_as_their_kinds_do():
    cuts = {
        "llama3": ["7", ",", " ", "12", ",", " ", "120", ",", " ", "1"],
        "pythia": ["7", ",", " 12", ",", " 120", ",", " 1"],
        "gemma": ["7", ",", " ", "1", "2", ",", " ", "1", "2", "0", ",", " ", "1"],
        "headless": ["7", ",", " ", "1", "2", ",", " ", "1", "2", "0", ",", " ", "1"],
    }
    for kind, cut in cuts.items():
        made = tokenizer_kinds.make(kind)
        ids = made("7, 12, 120, 1", add_special_tokens=False).input_ids
        assert [made.decode([i]) for i in ids] == cut, kind
    llama3 = tokenizer_kinds.make("llama3")
    for number in (f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)):
        assert len(llama3(number, add_special_tokens=False).input_ids) == 1, number
