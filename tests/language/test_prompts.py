"""Prompts: what a language model is asked row by row, and what is kept of its answers."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dpsyn.compose import config_folder
from dpsyn.errors import UserError
from dpsyn.language.cleaning import Request
from dpsyn.language.prompts import KEY, Prompts, read

FOLDER = config_folder() / "prompts"
FILE = {
    "generate": {"system": "You write.", "user": "A {kind} by {persona} on {keyword}, {word_count} words."},
    "vary": {"user": "Fill in, {style}, {word_count} words: {masked_sample} End."},
    "words": {
        "style": [f"style {n}" for n in range(20)],
        "persona": [f"persona {n}" for n in range(20)],
        "keyword": {"bar": ["beer", "wine"], "shop | 5": ["shoes"], "other": ["service"]},
    },
}
PARAPHRASE = {"generate": {"user": "A text."}, "vary": {"user": "Say it anew: {sample}!"}}
BAR = {"kind": "bar", "stars": "5"}


def prompts(**changes):
    settings = {"file": FILE, "description": None, "typical_words": 60, "generate_tokens": 128, "word_std": 20}
    settings |= {
        "min_words": 25,
        "tokens_per_word": 1.2,
        "max_tokens": 200,
        "max_parent_words": None,
        "tokenizer": None,
    }
    return Prompts(**{**settings, "keep_lines": False, **changes})


def seeds(n, start=0):
    return np.random.SeedSequence(start).generate_state(n, np.uint64)


def user(request):
    return next(message["content"] for message in request.messages if message["role"] == "user")


def words(n, start=0):
    return " ".join(f"w{i}" for i in range(start, start + n))


def test_a_fresh_row_is_asked_for_with_its_label_and_words_of_its_own():
    asked = prompts().generate([BAR] * 200, seeds(200))
    assert [message["role"] for message in asked[0].messages] == ["system", "user"]
    found = [re.fullmatch(r"A bar by (persona \d+) on (beer|wine), (\d+) words.", user(one)).groups() for one in asked]
    personas, keywords, counts = zip(*found, strict=True)
    assert len(set(personas)) == 20 and len(set(keywords)) == 2 and len(set(counts)) > 30
    assert all(one.max_tokens == 128 for one in asked)
    assert len(set(zip(personas, keywords, strict=True))) > 30  # the lists are drawn apart from each other


def test_a_row_depends_on_its_own_seed_label_and_parent_alone():
    texts, labels = [words(40, i) for i in range(8)], [BAR, {"kind": "shop", "stars": "5"}] * 4
    together = prompts().vary(texts, labels, 0.5, seeds(8)), prompts().generate(labels, seeds(8))
    for i in range(8):
        one = [texts[i]], [labels[i]], seeds(8)[i : i + 1]
        assert prompts().vary(one[0], one[1], 0.5, one[2]) == [together[0][i]]
        assert prompts().generate(one[1], one[2]) == [together[1][i]]


def test_words_depend_on_the_label_by_its_whole_name_then_a_value_then_other():
    for label, expected in (
        ({"kind": "shop", "stars": "5"}, {"shoes"}),
        ({"kind": "shop", "stars": "4"}, {"service"}),
        ({"kind": "bar", "stars": "1"}, {"beer", "wine"}),
    ):
        asked = prompts().generate([label] * 30, seeds(30))
        assert {re.search(r"on (\w+),", user(one)).group(1) for one in asked} == expected
    bars = {**FILE, "words": {**FILE["words"], "keyword": {"bar": ["beer"]}}}
    with pytest.raises(UserError, match=r"words\.keyword=bar: expected a list for the label spa \| 1"):
        prompts(file=bars).generate([{"kind": "spa", "stars": "1"}], seeds(1))


@given(st.text(alphabet=st.one_of(st.sampled_from("{}_\"'\\%$<|> \n"), st.characters())))
def test_a_text_stands_in_its_prompt_as_it_is_whatever_is_in_it(text):
    api = prompts(file=PARAPHRASE)
    assert user(api.vary([text], [{}], 0.5, seeds(1))[0]) == f"Say it anew: {text}!"
    nested = prompts(file={**PARAPHRASE, "vary": {"user": "{{{sample}}} {description}"}}, description="{sample}")
    assert user(nested.vary([text], [{}], 0.5, seeds(1))[0]) == f"{{{text}}} {{sample}}"


@given(st.text(), st.floats(0, 1))
def test_blanks_stand_where_words_stood(text, degree):
    masked = user(prompts().vary([text], [BAR], degree, seeds(1))[0])
    masked = re.fullmatch(r"Fill in, style \d+, \d+ words: (.*) End\.", masked, re.DOTALL).group(1)
    assert len(masked.split()) == len(text.split())
    assert all(new in ("_", old) for old, new in zip(text.split(), masked.split(), strict=True))
    assert re.sub(r"\S+", "", masked) == re.sub(r"\S+", "", text)


def test_the_degree_is_the_share_of_blanks():
    for degree in (0, 0.3, 0.6, 1):
        asked = prompts().vary([words(1000)] * 10, [BAR] * 10, degree, seeds(10))
        shares = [user(one).count(" _") / 1000 for one in asked]
        assert abs(np.mean(shares) - degree) < 0.02
        assert len({user(one) for one in asked}) == 10


def test_the_length_asked_for_is_near_that_of_the_parent_and_limits_the_answer():
    asked = prompts().vary([words(80)] * 500, [BAR] * 500, 0.5, seeds(500))
    counts = np.array([int(re.search(r"(\d+) words", user(one)).group(1)) for one in asked])
    assert abs(counts.mean() - 80) < 3 and 14 < counts.std() < 20  # a normal number truncated at twice its deviation
    assert counts.min() >= 40 and counts.max() <= 120
    assert [one.max_tokens for one in asked] == [int(np.ceil(count * 1.2)) for count in counts.tolist()]
    short = prompts().vary(["one two"] * 50, [BAR] * 50, 0.5, seeds(50))
    assert min(int(re.search(r"(\d+) words", user(one)).group(1)) for one in short) == 25
    assert prompts().vary([words(900)], [BAR], 0.5, seeds(1))[0].max_tokens == 200


def test_a_fresh_text_is_never_asked_to_be_longer_than_it_may_be():
    for typical in (None, 60, 500):
        asked = prompts(typical_words=typical).generate([BAR] * 100, seeds(100))
        counts = [int(re.search(r"(\d+) words", user(one)).group(1)) for one in asked]
        assert max(counts) * 1.35 <= 128


def test_a_parent_that_is_too_long_loses_its_middle_and_says_so(caplog):
    api = prompts(file=PARAPHRASE, max_parent_words=5)
    asked = api.vary([words(9), words(5)], [{}, {}], 0.5, seeds(2))
    assert [user(one) for one in asked] == [
        "Say it anew: w0 w1 w2 ... w7 w8!",
        "Say it anew: w0 w1 w2 w3 w4!",
    ]
    assert "of 1 of 2 parents the middle is left out (api.prompts.max_parent_words=5)" in caplog.text


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory):
    pieces = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "##s": 3, "a": 4, "!": 5}, unk_token="[UNK]")
    )
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.normalizer = tokenizers.normalizers.Lowercase()
    folder = tmp_path_factory.mktemp("pieces")
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def byte_pieces(tmp_path_factory):
    pieces = tokenizers.ByteLevelBPETokenizer()
    pieces.train_from_iterator(["some few words"], vocab_size=270, show_progress=False)
    folder = tmp_path_factory.mktemp("bytes")
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer).save_pretrained(folder)
    return str(folder)


def masked(tokenizer, text, degree, seed=0):
    asked = prompts(tokenizer=tokenizer).vary([text], [BAR], degree, seeds(1, seed))
    return re.search(r"words: (.*) End\.", user(asked[0]), re.DOTALL).group(1)


def test_tokens_of_a_tokenizer_are_blanked_one_by_one(word_pieces, byte_pieces):
    assert masked(word_pieces, "Playing a  xyz play!", 1) == "__ _  _ __"
    assert masked(word_pieces, "Playing a  xyz play!", 0) == "Playing a  xyz play!"
    seen = {masked(word_pieces, "Playing", 0.5, seed) for seed in range(40)}
    assert seen == {"Playing", "_ing", "Play_", "__"}
    assert masked(byte_pieces, "\u00e9 \U0001f600", 1) == "_ _"  # of several bytes each
    assert masked(byte_pieces, "\u00e9 \U0001f600", 0) == "\u00e9 \U0001f600"


def test_a_tokenizer_that_cannot_be_had_is_refused_in_one_line(tmp_path):
    for place in ("no/such/folder/at all", "a b"):
        with pytest.raises(UserError, match=r"^api\.prompts\.tokenizer="):
            prompts(tokenizer=place).check()
    for place in ("nobody/nothing", str(tmp_path)):
        prompts(tokenizer=place).check()
        with pytest.raises(UserError, match=r"^api\.prompts\.tokenizer=.*transformers can load") as error:
            masked(place, "a", 0.5)
        assert "\n" not in str(error.value)


KEPT = [
    ("Nice place.", "Nice place."),
    ('  "Nice {place}."  ', "Nice {place}."),
    ("\u201cNice place.\u201d", "Nice place."),
    ('"Nice place, but', "Nice place, but"),  # cut off
    ('"Nice" is not the word, "awful" is', '"Nice" is not the word, "awful" is'),
    ('She said "wow"', 'She said "wow"'),
    ("Nice.\n\nReally   nice.\r\nYes.", "Nice. Really nice. Yes."),
    ("Nice place. (45 words)", "Nice place."),
    ("Nice place.\n\n[Word count: 45]", "Nice place."),
    ("Nice place.\n**Word count:** 45 words", "Nice place."),
    ("It took 45 words (in 3 minutes) to say so.", "It took 45 words (in 3 minutes) to say so."),
    ('Sure! Here is a review of a bar:\n\n"Nice place."', "Nice place."),
    ("Here\u2019s the restored text:\nNice place.", "Nice place."),
    ("Certainly, I can do that:\n\nNice place.", "Nice place."),
    ("Here's the deal: nice place.", "Here's the deal: nice place."),
    ("Sure, it is loud. But nice.", "Sure, it is loud. But nice."),
    ("Of course we came back.", "Of course we came back."),
    ("Review: Nice place.", "Nice place."),
    ("**Rewritten review:** Nice place.", "Nice place."),
    ("Review of the place: nice.", "Review of the place: nice."),
    ("Text me: nice place.", "Text me: nice place."),
    ("Nice place.\n\nLet me know if you would like another one!", "Nice place."),
    ("Nice place. Let me know if they move.", "Nice place. Let me know if they move."),
    ("<think>What do they want?</think>\n\nNice place.", "Nice place."),
    ("<|im_start|>assistant\nNice place.<|im_end|>\n<|im_start|>user\nMore", "Nice place."),
    ("Nice place.</s> [INST] more", "Nice place."),
    ("```text\nNice place.\n```", "Nice place."),
    ("Nice\x00 pl\ud800ace\ufeff.", "Nice place."),
    ("Nice place \ufffd", "Nice place"),  # cut off within a character
    ("caf\u00e9 \U0001f600 \u6f22\u5b57", "caf\u00e9 \U0001f600 \u6f22\u5b57"),
    ("I'm sorry but I can't help but love it.", "I'm sorry but I can't help but love it."),
    ("Unfortunately I can't recommend it.", "Unfortunately I can't recommend it."),
    ("As an AI researcher, I like the idea.", "As an AI researcher, I like the idea."),
    ("I cannot say enough good things.", "I cannot say enough good things."),
    ("Sorry, I can't write a long review now.", None),
    ("set my_name = _x and call snake_case", "set my_name = _x and call snake_case"),
    (words(30) + " _ " + words(3), words(30) + " " + words(3)),
    ("_ " + words(30), words(30)),
    (words(30) + " _.", words(30) + "."),
    (None, None),
    ("", None),
    (' "" ', None),
    ("...", None),
    ("_ _ _ _", None),
    ("The _ was _ and _ were kind.", None),
    ("I'm sorry, but I can't assist with that request.", None),
    ("I\u2019m really sorry, but I cannot fulfill this.", None),
    ("I cannot provide a review.", None),
    ("# Review\n\nNice **place**, *really*.", "Nice place, really."),
    ("## A nice place\n\nWe came at ***eight***.", "A nice place We came at eight."),
    ("**Rewritten email**\n\nNice place.", "Nice place."),
    ("- Nice place.\n- Really.\n* Yes.", "Nice place. Really. Yes."),
    ("1. Nice place.\n2. Really.\n3. Yes.", "Nice place. Really. Yes."),
    ("1. Nice place, and we will come back soon.", "Nice place, and we will come back soon."),
    ("\u2022 Nice place, and we will come back soon.", "Nice place, and we will come back soon."),
    ("Here are three versions:\n\n1. Nice place.\n2. Good place.\n3. Fine place.", "Nice place."),
    ("Dear shop,\n- it is late\n- it is wet\nYours, A", "Dear shop, it is late it is wet Yours, A"),
    ("> Nice place.\n> Really.", "Nice place. Really."),
    ("Sure! Here is the mail:\n\n```text\nNice place.\n```\n\nLet me know if you need more.", "Nice place."),
    ("```\nNice place, cut", "Nice place, cut"),
    ("Sure, here is a mail to a shop:\n\nNice place.", "Nice place."),
    ('Got it! Here you go:\n\n"Nice place."', "Nice place."),
    ("Of course! Here's your complaint:\n---\nNice place.\n---", "Nice place."),
    ("\u2018Nice place.\u2019", "Nice place."),
    ("'Nice place.'", "Nice place."),
    ("'Tis a nice place", "'Tis a nice place"),
    ("2 * 3 * 4 is 24, and 5*6*7 is 210.", "2 * 3 * 4 is 24, and 5*6*7 is 210."),
    ("They said f**k and s**t.", "They said f**k and s**t."),
    ("We gave it ***** of 5.", "We gave it ***** of 5."),
    ("Room #12 and C# and a_b_c.", "Room #12 and C# and a_b_c."),
    ("Here is my question: is it late?", "Here is my question: is it late?"),
    ("Here is the story: we came at eight.", "Here is the story: we came at eight."),
    ("Okay, so it was late.", "Okay, so it was late."),
    ("Great, here is the thing: it was late.", "it was late."),
    ("Note: closed on Mondays.", "Note: closed on Mondays."),
    ("It has 3 parts: 1. the door 2. the bar.", "It has 3 parts: 1. the door 2. the bar."),
    ("2024. What a year.", "2024. What a year."),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Nice place.", "Nice place."),
    ("Okay, they want a review.</think>\n\nReview: Nice place.", "Nice place."),
    ("analysisWe need a review.assistantfinalNice place.", "Nice place."),
    ("analysisWe need a review.", None),
    ("Sorry, I am unable to help.", None),
    ("As an AI language model, I do not eat.", None),
    ("<think>It goes on and on", None),
    ("<|im_end|>", None),
]


@pytest.mark.parametrize(("answer", "expected"), KEPT)
def test_of_an_answer_the_text_alone_is_kept(answer, expected):
    assert prompts().cleaned(answer) == expected


def test_the_prompt_s_own_words_are_none_of_the_answer():
    request = prompts(file=ECHOED).vary(["We came at eight and it was loud."], [BAR], 0.0, seeds(1))[0]
    asked = request.messages[-1]["content"]
    answers = {
        f"{asked} We left at nine.": "We left at nine.",
        f"{asked}\n\nWe left at nine.": "We left at nine.",
        "Fill in the blanks of this text. We left at nine.": "We left at nine.",
        "FILL IN THE BLANKS OF THIS TEXT.\nWe left at nine.": "We left at nine.",
        "We left at nine. Answer with the text and nothing else.": "We left at nine.",
        "You are one who writes as others do.\nFill in the blanks of this text. We left at nine.": "We left at nine.",
        "We came at eight and it was loud.": "We came at eight and it was loud.",  # the parent's own
        "We came at eight and it was loud. So we left.": "We came at eight and it was loud. So we left.",
        "We will fill in the blanks of this text.": "We will fill in the blanks of this text.",
        asked: None,
        "Fill in the blanks of this text.": None,
    }
    for answer, expected in answers.items():
        assert prompts(file=ECHOED).cleaned(answer, request) == expected, answer


ECHOED = {
    "generate": {"user": "Write about a {kind}."},
    "vary": {
        "system": "You are one who writes as others do.",
        "user": "Fill in the blanks of this text. {masked_sample} Answer with the text and nothing else.",
    },
}


def test_an_answer_that_was_cut_off_ends_with_a_sentence_and_its_reasoning_counts_for_none():
    assert prompts().cleaned("One. Two! Thr", cut=True) == "One. Two!"
    assert prompts().cleaned("<think>One. Two.</think>Thr", cut=True) == "Thr"
    assert prompts().cleaned("<think>One. Two. Thr", cut=True) is None


def test_lines_are_kept_where_asked():
    assert prompts(keep_lines=True).cleaned("One  two.\n\n\n\nThree.\n- four \n") == "One two.\n\nThree.\n- four"


@given(st.text(alphabet=st.one_of(st.sampled_from('_"{}()<|>[/INST]: \n1w'), st.characters(exclude_categories=()))))
def test_what_is_kept_can_be_written_and_is_no_blank(answer):
    for keep_lines in (False, True):
        text = prompts(keep_lines=keep_lines).cleaned(answer)
        if text is not None:
            text.encode()
            assert re.search(r"\w", text) and text == text.strip() and "\0" not in text
            assert keep_lines or "\n" not in text


NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LABELS = {
    "yelp": [{"category": "Bars", "stars": "1"}, {"category": "Hotels & Travel", "stars": "5"}],
    "openreview": [{"area": "Theory", "recommendation": "8: accept, good paper"}],
    "pubmed": [{}],
    "general": [{}, {}],
    "mails_small": [{"topic": "refund", "mood": "cross"}, {"topic": "account", "mood": "glad"}],
    "yelp_small": [{"category": "Bars", "stars": "1"}, {"category": "Hotels & Travel", "stars": "5"}],
    "pubmed_small": [{}],
    "iclr_small": [{"recommendation": "8: accept, good paper"}, {"recommendation": "1: strong reject"}],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_file_asks_for_its_labels(name):
    description = "letters to an editor" if name == "general" else None
    api = prompts(file=read(name, FOLDER), description=description)
    api.check()
    labels = LABELS[name.removesuffix("_gpt2")] * 20
    fresh = api.generate(labels, seeds(len(labels)))
    varied = api.vary([words(30)] * len(labels), labels, 0.5, seeds(len(labels)))
    for label, *asked in zip(labels, fresh, varied, strict=True):
        for one in asked:
            assert name.endswith("_small") or all(value in user(one) for value in label.values())
            assert not re.search(r"[{}]", "".join(message["content"] for message in one.messages))
            assert user(one) == user(one).strip()
    for asked in (fresh, varied):
        assert len({tuple(message["content"] for message in one.messages) for one in asked}) > 10
    if name.endswith("_small") and len(labels[0]):  # what is asked is another for another label
        kinds = [{user(one) for one in fresh[at::2]} for at in range(2)]
        assert not kinds[0] & kinds[1]
    for what, asked in (("generate", fresh), ("vary", varied)):
        told, answer = api.lengths(labels, what)
        got = np.mean([sum(len(message["content"]) for message in one.messages) for one in asked]) / 4
        assert answer <= 128 and (what == "vary" or abs(told - got) < 0.2 * got + 10)
    used = {
        match
        for what in ("generate", "vary")
        for text in api.file[what].values()
        for match in re.findall(r"{(\w+)}", text)
    }
    assert set(api.file["words"]) <= used


BEGUN = {**PARAPHRASE, "vary": {"user": "Go on.", "assistant": '"{sample_start}'}}


def test_a_variation_goes_on_from_the_first_words_of_its_parent_as_many_as_the_degree_leaves():
    api = prompts(file=BEGUN, word_std=0, tokens_per_word=2)
    assert api.begins_answers and not prompts().begins_answers
    for degree, low, high in ((0.5, 0.0, 1.0), (0.2, 0.6, 1.0), (0.9, 0.0, 0.2), (1, 0.0, 0.0)):
        asked = api.vary([words(100)] * 400, [{}] * 400, degree, seeds(400))
        kept = [one.messages[-1]["content"].removeprefix('"') for one in asked]
        assert all(words(100).startswith(start) for start in kept)
        counts = np.array([len(start.split()) for start in kept])
        assert counts.min() >= max(1, 100 * low - 1) and counts.max() <= max(1, 100 * high)
        assert abs(counts.mean() - 100 * (1 - degree)) < 4
        assert [one.max_tokens for one in asked] == [min(200, 2 * max(8, 100 - count)) for count in counts]
    assert api.vary([""], [{}], 0.5, seeds(1))[0].messages[-1]["content"] == '"'


def test_what_an_answer_was_begun_with_is_kept_and_what_goes_round_in_circles_is_not():
    (request,) = prompts(file=BEGUN).vary([words(40)], [{}], 0.3, seeds(1))
    begun = request.messages[-1]["content"]
    rest = words(40).removeprefix(begun.removeprefix('"'))
    assert prompts().cleaned(begun + rest, request) == words(40)
    asked = Request((*request.messages[:-1], {"role": "assistant", "content": '"It'}), 99)
    assert prompts().cleaned("It was very, very good. " * 8, asked) is None
    assert prompts().cleaned("Bad food, bad music, bad service.", asked) == "Bad food, bad music, bad service."
    assert prompts().cleaned('"I liked it. Not bad, three stars,', asked) == "I liked it."
    assert prompts().cleaned('"It was not good,', asked) is None  # she says
    again = "It was fine. I am not sure why they left it. I had soup, and I am not sure why they left it there."
    assert prompts().cleaned(again, asked) is None
    assert prompts().cleaned(again.replace("why they left it there", "about it"), asked) is not None


def test_a_small_model_that_says_that_it_is_a_program_has_given_no_answer():
    asked = Request(
        ({"role": "user", "content": "What does a customer write?"}, {"role": "assistant", "content": '"'}), 99
    )
    for text in (
        "Where is it? I'm a chatbot designed to help.",
        "Wait. I\u2019m your friendly AI.",
        "As an AI, I cannot eat.",
    ):
        assert prompts().cleaned(text, asked) is None
        assert prompts().cleaned(f"A tale. {text}", None) is not None  # of a model that was given no beginning
    for text in ("I am an assistant manager here.", "I'm a regular. Your chatbot hung up on me."):
        assert prompts().cleaned(text, asked) == text


def test_a_list_of_words_may_be_by_some_of_the_values_of_a_label():
    words = {"place": {"bar | 5": ["best"], "5": ["five"], "bar": ["bar"], "other": ["else"]}}
    file = {**FILE, "words": {**FILE.get("words", {}), **words}}
    file["generate"] = {"user": "{place} {a} {b} {c}"}

    def asked(a, b, c):
        return user(prompts(file=file).generate([{"a": a, "b": b, "c": c}], seeds(1))[0]).split()[0]

    assert asked("bar", "x", "5") == asked("5", "x", "bar") == "best"
    assert (asked("bar", "x", "4"), asked("x", "y", "5"), asked("x", "y", "z")) == ("bar", "five", "else")
    assert asked("bar | 5", "x", "y") == "best"  # a value may hold the sign that joins others


def test_lengths_are_of_what_is_declared():
    one, answer = prompts(typical_words=50).lengths([BAR, BAR], "vary")
    two, longer = prompts(typical_words=100).lengths([BAR], "vary")
    assert 60 < answer < 75 and longer == 2 * answer
    assert abs((two - one) - answer) < 1
    assert prompts(typical_words=500).lengths([BAR], "generate")[1] == 128
    assert prompts(typical_words=500, max_parent_words=50).lengths([BAR], "vary")[0] < two
    with pytest.raises(UserError, match="persona"):
        prompts(file={**FILE, "words": {}}).lengths([BAR], "generate")


def test_a_description_is_asked_for_where_the_file_has_a_place_for_it():
    general = read("general", FOLDER)
    with pytest.raises(UserError, match=r"^api\.prompts\.description=null: expected one sentence"):
        prompts(file=general).check()
    with pytest.raises(UserError, match=r"^api\.prompts\.description=letters: expected null"):
        prompts(description="letters").check()
    api = prompts(file=general, description="letters to an editor")
    assert "letters to an editor" in user(api.generate([{}], seeds(1))[0])


def test_a_file_is_found_by_name_in_the_first_folder_that_has_it_or_by_path(tmp_path):
    own = tmp_path / "yelp.yaml"
    own.write_text(yaml.safe_dump({**PARAPHRASE, "words": {"w": {5: ["a"]}}}))
    found = read("yelp", tmp_path, FOLDER)
    assert found == {**PARAPHRASE, "words": {"w": {"5": ["a"]}}} == read(str(own), FOLDER)
    assert read("pubmed", tmp_path, FOLDER) == read("pubmed", FOLDER)


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path):
    def refused(text, expected):
        path = tmp_path / "own.yaml"
        path.write_bytes(text)
        with pytest.raises(UserError, match=expected) as error:
            read(str(path), FOLDER)
        assert "\n" not in str(error.value) and str(error.value).startswith(KEY)

    with pytest.raises(UserError, match=r"yelp_small, or the path of a yaml file that is there\. Did you mean yelp\?"):
        read("yellp", FOLDER)
    with pytest.raises(UserError, match="the path of a yaml file that is there"):
        read("no/such.yaml", FOLDER)
    refused(b"a: [", r"can be read as yaml, every key once \(line 1\)")
    refused(b"words: {}\nwords: {}", r"every key once \(line 2\)")
    refused(b"\xff\xfe\x00", "expected")
    refused(b"", "the content of a prompt file")
    refused(b"just text", "just text: expected the content")
    user_of = b"generate: {user: a}\nvary: {user: '{sample}'}\n"
    refused(user_of + b"word: {}", "Did you mean words")
    refused(b"generate: {user: a}", r"file\.vary=null: expected user")
    refused(b"generate: {usr: a}\nvary: {user: '{sample}'}", "Did you mean user")
    refused(b"generate: {user: ''}\nvary: {user: '{sample}'}", r"generate\.user=: expected a template")
    refused(b"generate: {user: a}\nvary: {user: same}", r"\{sample\} \(paraphrase\), \{masked_sample\}")
    refused(b"generate: {user: 'a } b'}\nvary: {user: '{sample}'}", "Write {{ and }} for braces")
    refused(user_of + b"words: {style: []}", r"words\.style=\[\]: expected a list of words")
    refused(user_of + b"words: {style: {Bars: nice}}", r"words\.style\.Bars=nice: expected a list")
    refused(user_of + b"words: {sample: [a]}", "another name")
    refused(user_of + b"words: [a]", "lists of words by name")


def test_a_name_that_nothing_fills_in_is_named_with_what_there_is():
    wrong = {**FILE, "generate": {"user": "{persna} {kind}"}}
    with pytest.raises(UserError, match=r"generate\.user=\{persna\}.*\{kind\}.*Did you mean \{persona\}\?"):
        prompts(file=wrong).generate([BAR], seeds(1))
    with pytest.raises(UserError, match=r"\{sample\}"):
        prompts(file={**FILE, "generate": {"user": "{sample}"}}).generate([BAR], seeds(1))
    with pytest.raises(UserError, match=r"words=style: expected names that are no columns"):
        prompts().generate([{**BAR, "style": "x"}], seeds(1))


def test_rows_of_none_ask_for_nothing():
    assert prompts().generate([], seeds(0)) == prompts().vary([], [], 0.5, seeds(0)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("generate_tokens", value) for value in (0, 1.5, None, True)],
        *[("typical_words", 0), ("max_parent_words", 0), ("min_words", 0), ("max_tokens", "many")],
        *[("word_std", value) for value in (-1, None, float("nan"), float("inf"))],
        *[("tokens_per_word", 0), ("keep_lines", "no"), ("description", 3), ("tokenizer", 3)],
    ],
)
def test_settings_that_mean_nothing_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^api\.prompts\.{key}="):
        prompts(**{key: value})


def test_a_degree_is_a_probability():
    prompts().check_degree(0)
    for degree in (-0.1, 1.1, True, None, {"blank": 0.5}, "0.5", float("nan")):
        with pytest.raises(UserError, match=r"^schedule\.degree="):
            prompts().check_degree(degree)


def test_a_name_that_was_not_read_is_refused():
    with pytest.raises(UserError, match="yelp: expected the content of a prompt file"):
        prompts(file="yelp").check()


def test_they_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(prompts())) == prompts()


def test_no_prompt_file_is_longer_than_its_lines_may_be():
    for name in NAMES:
        assert all(len(line) <= 120 for line in Path(FOLDER, f"{name}.yaml").read_text().splitlines())


CHORUS = "We will, we will rock you. " * 6


def test_only_what_goes_on_from_a_beginning_is_judged_as_a_quotation():
    own = prompts()
    asked = Request(({"role": "user", "content": "What does she say?"},), 99)
    begun = Request((*asked.messages, {"role": "assistant", "content": '"I have been'}), 99)
    letter = "Dear Dr. Jones, I am writing about the kettle, which leaks, Best regards,"
    assert own.cleaned(letter, asked) == letter and own.cleaned(CHORUS, asked) == CHORUS.strip()
    assert own.cleaned(f'"I have been {CHORUS}', begun) is None
    assert own.cleaned('"I have been', begun) is None  # nothing was added
    assert own.cleaned("I have been here twice. It was good, she says,", begun) == "I have been here twice."
