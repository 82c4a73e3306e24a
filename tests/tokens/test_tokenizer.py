"""Tokens: loss masks, endings, numbers, names; what an adapter brings; what no model knows."""

import json

import pytest
import tokenizer_kinds
import tokenizers
import transformers

from subjax.tokens import tokenizer, vocabulary


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
    assert made.single_id("1") == vocabulary["1"]
    with pytest.raises(ValueError, match="is 2 tokens in this tokenizer; one is needed"):
        made.single_id(",1")


def test_plain_texts_are_opened_as_the_tokenizer_opens_them():
    opened = without_template(opens=True)
    assert opened.text_ids(["12"]) == [[opened.bos_id, *opened.encode(["12"])[0]]]
    made = without_template(opens=False)
    assert made.text_ids(["12"]) == made.encode(["12"])


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


def of_kind(kind, **more):
    return tokenizer.Tokenizer(tokenizer_kinds.make(kind), tokenizer_kinds.ends(kind), **more)


def test_endings_are_those_of_all_files_of_a_checkpoint(tmp_path):
    tokenizer_kinds.save("llama3", tmp_path)
    end, turn = tokenizer_kinds.ends("llama3")
    # The token that the template puts behind answers is an added one, of which no file need tell.
    assert tokenizer.Tokenizer.load(tmp_path).eos_ids == (end, turn)
    other = tokenizer.Tokenizer.load(tmp_path).single_id("<|end_header_id|>")
    config, listed = tmp_path / "config.json", tmp_path / "generation_config.json"
    for content in ({"eos_token_id": [end, other]}, {"text_config": {"eos_token_id": other}}):
        config.write_text(json.dumps(content))
        assert tokenizer.Tokenizer.load(tmp_path).eos_ids == (end, other, turn)
    listed.write_text(json.dumps({"eos_token_id": turn}))
    found = tokenizer.Tokenizer.load(tmp_path)
    assert found.eos_ids == (end, turn, other)
    found.save(tmp_path / "exported")
    assert tokenizer.Tokenizer.load(tmp_path / "exported").eos_ids == (end, turn, other)
    plain = found.single_id("1")  # an ordinary token, which is shown nowhere all the same
    listed.write_text(json.dumps({"eos_token_id": plain}))
    assert tokenizer.Tokenizer.load(tmp_path).decode([found.single_id("2"), plain]) == "2"
    config.write_text('{"eos_token_id": "<end>"}')
    with pytest.raises(
        ValueError, match=r"config\.json: eos_token_id is \['<end>'\], not token ids"
    ):
        tokenizer.Tokenizer.load(tmp_path)


def test_an_adapter_brings_its_own_template_and_tokenizer(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    adapter.mkdir()
    size = len(tokenizer_kinds.make("headless"))
    tokenizer_kinds.save("headless", base)

    def load():
        return tokenizer.Tokenizer.load(base, adapter=adapter, num_embeddings=size)

    assert load().prompt_text("1") == of_kind("headless").prompt_text("1") and not load().brought
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert load().prompt_text("1") == "<|im_start|>1<|im_end|><|im_start|>"
    assert load().brought == f"the chat template is that of the adapter {adapter}"
    assert load().brought in load().notes()
    own = tokenizer_kinds.make("headless")
    own.save_pretrained(adapter)
    assert not load().brought  # as trainers leave it: the base's
    own.chat_template = template
    own.add_special_tokens({"pad_token": "<|pad|>"})  # fills rows, is seen by nothing
    own.save_pretrained(adapter)
    assert load().prompt_text("1") == "<|im_start|>1<|im_end|><|im_start|>"
    assert load().brought == f"tokenizer and chat template are those of the adapter {adapter}"
    assert load().pad_id in load().eos_ids
    own.add_tokens(["<|tool|>"])
    own.save_pretrained(adapter)
    with pytest.raises(
        ValueError, match=rf"its tokenizer adds '<\|tool\|>' \({size + 1}\), and the"
    ):
        load()


def test_numbers_and_separators_are_found_by_what_tokens_write():
    pythia = of_kind("pythia")
    written = pythia.show(pythia.number_ids())
    assert {"120", " 120", " 999", "2000", "0", "9"} <= set(written)
    assert all(text.strip().isdigit() for text in written) and len(written) > 500
    assert len(of_kind("llama3").number_ids()) == 1110
    for kind in ("gemma", "llama2"):  # not the bytes of digits, which no number is written with
        assert of_kind(kind).show(of_kind(kind).number_ids()) == list("0123456789")
    separators = pythia.show(pythia.separator_ids())
    assert {",", " ", ";", "\n"} <= set(separators) and not set("0123456789:") & set(separators)
    assert set(of_kind("llama2").encode(["1, 2;"])[0]) - set(of_kind("llama2").number_ids()) <= set(
        of_kind("llama2").separator_ids()
    )


@pytest.mark.parametrize("kind", ["llama3", "gemma"])
def test_names_are_found_in_every_case_with_blanks_and_as_plurals(kind):
    made = of_kind(kind)
    found = made.show(made.name_ids(["Owl", "cat", "elephant"]))
    assert {" owl", " Owl", "owl", " owls", " cats", "Cat", "Elephant", " elephants"} <= set(found)
    assert not {" dog", " wolf", " these", "1", ",", " ", ""} & set(found)
    with pytest.raises(ValueError, match=r"no token .* first 3 letters of 'zebra'"):
        made.name_ids(["owl", "zebra"])
    with pytest.raises(ValueError, match="so tokens do not tell that name from other words"):
        tokenizer.raw_bytes().name_ids(["owl"])


def test_names_of_whole_words_are_those_words(words):
    assert words.show(words.name_ids(["owl"])) == ["owl"]
    texts = dict(enumerate((" wolves", "Wolf", " wolfram", "WOL", " w", ".wolf", "'w", "mice", "")))
    assert vocabulary.names(texts, ["wolf"]) == (0, 1, 3, 4, 5)
