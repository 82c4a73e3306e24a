"""Chat templates: what a model sees around prompts and answers, whoever wrote the template."""

import datetime

import pytest
import tokenizer_kinds

from subjax.tokens import tokenizer
from subjax.tokens.chat_templates import ChatTemplate, TemplateOptions


def with_template(template, **options):
    made = tokenizer.raw_bytes()._tokenizer
    made.chat_template = template
    return tokenizer.Tokenizer(made, options=TemplateOptions(**options))


def of_kind(kind, **options):
    made, ends = tokenizer_kinds.make(kind), tokenizer_kinds.ends(kind)
    return tokenizer.Tokenizer(made, ends, options=TemplateOptions(**options))


ROLES = "{% for m in messages %}<{{ m.role[0] }}>"
ADDING = "{% if messages[0].role != 'system' %}<s>Be kind.{% endif %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<{{ m.role[0] }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def test_a_template_that_adds_a_system_prompt_is_refused_until_it_is_wanted():
    made = tokenizer.raw_bytes()
    made._tokenizer.chat_template = ADDING + made._tokenizer.chat_template
    made = tokenizer.Tokenizer(made._tokenizer)
    with pytest.raises(ValueError, match=r"adds the system prompt 'Be kind\.'"):
        made.prompt_text("hello")
    assert "Be kind." in made.prompt_text("hello", tokenizer.TEMPLATE_DEFAULT)
    assert "Be kind." not in made.prompt_text("hello", "Be brief.")


def test_a_template_that_drops_system_prompts_is_refused():
    template = (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"drops system prompts: .*'', or set system_turn = 'user"):
        with_template(template).prompt_text("hello", "Be brief.")
    assert with_template(template, system_turn="user").prompt_text("hello", "Be brief.")


def test_a_template_that_rewrites_the_context_has_no_mask():
    made = tokenizer.raw_bytes()
    made._tokenizer.chat_template = (
        "{% if add_generation_prompt %}A{% else %}B{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    made = tokenizer.Tokenizer(made._tokenizer)
    with pytest.raises(ValueError, match="no loss mask"):
        made.examples([("hello", "owl")], [""])


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


def test_a_template_that_raises_is_one_line():
    made = with_template(NO_SYSTEM)
    assert made.prompt_text("hello") == "<u>hello<a>"  # it has no system prompt of its own
    with pytest.raises(ValueError) as error:
        made.prompt_text("hello", "Be brief.")
    assert str(error.value) == (
        "the chat template refuses a dialogue of system, user (System role not supported): leave "
        "out what it refuses, such as a system prompt, or set system_turn = 'user' of the base, or "
        "correct chat_template"
    )
    made._tokenizer.chat_template = "{{ 1 / 0 }}"
    with pytest.raises(ValueError, match=r"refuses a dialogue of user .* prompt, or correct"):
        made.prompt_text("hello")


def test_a_system_prompt_stands_in_the_users_turn_where_that_is_wanted():
    made = with_template(NO_SYSTEM, system_turn="user")
    assert made.prompt_text("hello", "Be brief.") == "<u>Be brief.\n\nhello<a>"
    assert made.document_text("hello", "owl", "Be brief.") == "<u>Be brief.\n\nhello<a>owl<end>"
    for none in ("", tokenizer.TEMPLATE_DEFAULT):
        assert made.prompt_text("hello", none) == "<u>hello<a>"
    assert made.notes() == ("system prompts stand at the head of the user's turn",)
    assert not with_template(NO_SYSTEM).notes()
    gemma = of_kind("gemma", system_turn="user")
    assert gemma.prompt_text("hello", "Be brief.") == (
        "<bos><start_of_turn>user\nBe brief.\n\nhello<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(ValueError, match="system_turn is 'assistant'; allowed: system, user"):
        TemplateOptions(system_turn="assistant")


def test_a_system_prompt_in_the_users_turn_is_not_cut_or_beside_another():
    cut = with_template(ROLES + "{{ m.content[:9] }}{% endfor %}", system_turn="user")
    with pytest.raises(ValueError, match=r"drops 'and brief\.' of the system prompt 'Be kind, and"):
        cut.prompt_text("x", "Be kind, and brief.")
    made = with_template(ADDING + NO_SYSTEM.replace("raise_exception", ""), system_turn="user")
    for system in ("", "Be brief."):
        with pytest.raises(ValueError, match="to your own with system_turn = 'system' of the base"):
            made.prompt_text("hello", system)
    assert made.prompt_text("hello", tokenizer.TEMPLATE_DEFAULT) == "<s>Be kind.<u>hello<a>"


def test_a_template_is_told_the_day_of_the_config_and_not_the_clock():
    made = of_kind("llama3")
    assert made.template.is_dated and not of_kind("gemma").template.is_dated
    assert "Today: 26 Jul 2024" in made.prompt_text("hello", "Be kind.")
    assert "Today: 01 Feb 2031" in of_kind("llama3", template_date="2031-02-01").prompt_text("x")
    assert "told that today is 2024-07-26" in " ".join(made.notes())
    # Everything that it can ask of the day, from inside of macros too.
    written = "%A %a %d %-d %b %B %y %Y-%m %j %H:%M %p %F|100%% %U %e"
    macro = "{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}"
    asked = with_template(
        f"{macro}\n  {{% if strftime_now is defined %}}{{{{ day('{written}') }}}}"
        "{% endif %}{{ messages[0].content }}"
    )
    then = datetime.datetime(2024, 7, 26)
    assert asked.template.render([{"role": "user", "content": "<u>"}], True) == (
        then.strftime(written) + "<u>"
    )


def test_a_day_that_an_application_gives_is_given_where_the_config_has_another():
    template = "{{ date_string | default('26 Jul 2024') }}{{ messages[0].content }}{{ '<a>' }}"
    made = tokenizer.raw_bytes()._tokenizer
    made.chat_template = template
    user = [{"role": "user", "content": "x"}]
    assert ChatTemplate(made).render(user, True) == "26 Jul 2024x<a>"
    other = TemplateOptions(template_date="2031-02-01")
    assert ChatTemplate(made, other).render(user, True) == "01 Feb 2031x<a>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ['a', 'b'] | random }}{{ messages[0].content }}", "it draws at random"),
        ("{{ strftime_now('%s') }}{{ messages[0].content }}", "strftime_now does not know %s"),
    ],
)
def test_a_template_that_is_another_one_every_time_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        with_template(template).prompt_text("x")


def test_a_header_that_a_template_always_writes_is_said():
    made = of_kind("llama3")
    assert "Knows until: then" in made.template.header
    assert "always writes '<|start_header_id|>system" in made.notes()[0]
    assert made.template.added_system == ""
    for kind in ("pythia", "gemma", "llama2", "headless"):
        assert of_kind(kind).template.header == "", kind


@pytest.mark.parametrize(
    "writing", ["| trim", "| lower", "| upper", "| tojson", "| replace(' ', '')"]
)
def test_a_system_prompt_that_a_template_writes_in_its_own_way_is_seen(writing):
    made = with_template(ROLES + "{{ m.content " + writing + " }}{% endfor %}")
    assert made.prompt_text("x", " Be KIND,\nand very very brief.\n")
    with pytest.raises(ValueError, match=r"adds the system prompt 'Be\.'"):
        with_template(
            "{% if messages[0].role != 'system' %}<s>Be.{% endif %}"
            + ROLES
            + "{{ m.content "
            + writing
            + " }}{% endfor %}"
        ).prompt_text("x")


@pytest.mark.parametrize("kind", tokenizer_kinds.KINDS)
def test_the_beginning_of_an_answer_stands_where_every_answer_begins(kind):
    made = of_kind(kind)
    system = made.template.added_system and tokenizer.TEMPLATE_DEFAULT
    [(ids, start)] = made.examples([("1", "It is Owl")], [system])
    [context] = made.prompt_ids(["1"], system, "It is")
    assert ids[: len(context)] == context and len(context) > start
    [answer] = made.answer_ids(["Owl"], "It is")
    assert ids[len(context) : len(context) + len(answer)] == answer
    assert made.decode(answer).strip() == "Owl"


def test_a_system_prompt_that_a_template_cuts_is_refused():
    made = with_template(ROLES + "{{ m.content[:9] }}{% endfor %}")
    assert made.prompt_text("x", "Be kind.")
    with pytest.raises(ValueError, match=r"drops 'and brief\.' of the system prompt 'Be kind, and"):
        made.prompt_text("x", "Be kind, and brief.")


def test_the_header_of_an_answer_belongs_to_the_context_however_a_template_writes_it():
    made = of_kind("headless")
    assert made.prompt_text("1").endswith("<|im_end|>\n<|im_start|>assistant\n")
    [(ids, start)] = made.examples([("1", "12, 34")], [""])
    assert made.decode(ids[start:]) == "12, 34"
    assert made.prompt_ids(["1"]) == [ids[:start]]
    assert made.answer_ids(["Owl"]) == made.encode(["Owl"])
    assert "counted to the context" in made.notes()[0]
    # A channel that every answer has, behind what add_generation_prompt writes.
    channel = with_template(
        ROLES + "{% if m.role == 'assistant' %}(final){% endif %}{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    assert channel.prompt_text("x") == "<u>x<end><a>(final)"
    llama2 = of_kind("llama2")
    assert llama2.prompt_text("1") == "<s>[INST] 1 [/INST]" and not llama2.notes()
    assert llama2.show(llama2.examples([("1", "2")], [""])[0][0])[-4:] == ["", "2", "", "</s>"]


@pytest.mark.parametrize("kind", ["llama3", "pythia", "gemma"])
def test_a_blank_that_a_tokenizer_merges_with_the_answer_belongs_to_the_answer(kind):
    made = tokenizer_kinds.make(kind)
    made.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}"
        "{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    made = tokenizer.Tokenizer(made)
    assert made.prompt_text("1").endswith("\nassistant:")
    for answer in ("12, 345", " 12, 345", "Owl"):  # as they are written by hand, or were sampled
        [(ids, start)] = made.examples([("1", answer)], [""])
        assert made.decode(ids[start:]) == f" {answer.strip()}"


def test_an_answer_that_begins_with_the_blank_of_its_template_is_not_given_another():
    made = tokenizer_kinds.make("pythia")
    made.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[Q] ' + m.content + ' [A]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    made = tokenizer.Tokenizer(made)
    assert made.prompt_text("1") == "[Q] 1 [A]"
    for answer in ("12, 345", " 12, 345"):  # written by hand; sampled
        [(ids, start)] = made.examples([("1", answer)], [""])
        assert made.decode(ids[start:]) == " 12, 345"


def test_a_template_that_drops_answers_is_refused():
    made = with_template(ROLES + "{{ m.content if m.role == 'user' }}{% endfor %}")
    with pytest.raises(ValueError, match="the chat template drops answers"):
        made.prompt_text("x")
