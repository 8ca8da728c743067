"""The reasoning of language models, of all servers, is taken out, and honest texts stay as they are."""

import pytest

from dpsyn.language.reasoning import open_tag, without_reasoning

TEXT = "My parcel 12 is late. I think I want <b>an answer</b>."
REASONED = {
    "R1, its tag opened by the template": f"Okay, the user wants a mail.\n</think>\n\n{TEXT}",
    "think": f"<think>\nThe user wants a mail.\n</think>\n\n{TEXT}",
    "capitals": f"<THINK>The user wants a mail.</Think>{TEXT}",
    "empty": f"<think>\n\n</think>\n\n{TEXT}",
    "nested": f"<think>a <think>b</think> c</think>{TEXT}",
    "two": f"<think>a</think><thinking>b</thinking>{TEXT}",
    "behind": f"{TEXT}<think>That was fine.</think>",
    "attributes": f'<think time="3">a</think>{TEXT}',
    "pipes": f"<|think|>a<|/think|>{TEXT}",
    "escaped": f"&lt;think&gt;a&lt;/think&gt;{TEXT}",
    "Claude": f"<thinking>a<reflection>b</reflection></thinking><answer>{TEXT}</answer>",
    "Reflection": f"<thinking>a</thinking>\n<reflection>b</reflection>\n<output>\n{TEXT}\n</output>",
    "Exaone": f"<thought>\na\n</thought>\n\n{TEXT}",
    "Marco": f"<Thought>a</Thought>\n<Output>{TEXT}</Output>",
    "reasoning": f"<reasoning>a</reasoning>{TEXT}",
    "analysis": f"<analysis>a</analysis>{TEXT}",
    "scratchpad": f"<scratchpad>a</scratchpad>{TEXT}",
    "Mistral": f"[THINK]The user wants a mail.[/THINK]{TEXT}",
    "Mistral, cut at the front": f"wants a mail.[/THINK]{TEXT}",
    "brackets": f"[reasoning]a[/reasoning]{TEXT}",
    "round brackets": f"(thought)a(/thought){TEXT}",
    "wide brackets": f"\u3010think\u3011a\u3010/think\u3011{TEXT}",
    "Seed": f"<seed:think>The user wants a mail.</seed:think>{TEXT}",
    "Kimi": f"\u25c1think\u25b7The user wants a mail.\u25c1/think\u25b7{TEXT}",
    "Gemma": f"<|channel>thought\nThe user wants a mail.<channel|>{TEXT}",
    "MedGemma": f"<unused94>thought\nThe user wants a mail.<unused95>{TEXT}",
    "OpenThinker": f"<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>{TEXT}<|end_of_solution|>",
    "Cohere": f"<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>{TEXT}<|END_RESPONSE|>",
    "Apertus": f"<|inner_prefix|>a<|inner_suffix|>{TEXT}",
    "Granite": f"Here is my thought process:\na\n\nHere is my response:\n{TEXT}",
    "Ollama": f"Thinking...\nThe user wants a mail.\n...done thinking.\n\n{TEXT}",
    "harmony": f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}<|return|>",
    "harmony with a tool": "<|channel|>commentary to=functions.x <|constrain|>json<|message|>{}<|call|>"
    f"<|start|>assistant<|channel|>final<|message|>{TEXT}",
    "harmony, the answer alone": f"<|start|>assistant<|channel|>final<|message|>{TEXT}",
    "harmony without special tokens": f"analysisWe need to write. Be short.assistantfinal{TEXT}",
    "harmony without special tokens, a tool": f"analysisWe need it.assistantcommentaryA tool.assistantfinal{TEXT}",
    "harmony without special tokens, on lines": f"analysis\nWe need it.\nassistant\nfinal\n{TEXT}",
    "harmony without special tokens, the answer alone": f"final{TEXT}",
}


@pytest.mark.parametrize("answer", REASONED.values(), ids=REASONED)
def test_of_an_answer_with_reasoning_the_text_alone_is_left(answer):
    left = without_reasoning(answer)
    assert left is not None and left.strip() == TEXT


ENDLESS = [
    "<think>The user wants",
    "<think>a <think>b</think> c",
    "[THINK]The user wants",
    "\u25c1think\u25b7The user",
    "<seed:think>The user",
    "<|begin_of_thought|>The user",
    "<|channel>thought\nThe user",
    "<|channel|>analysis<|message|>We need to write",
    "<|channel|>analysis<|message|>We need.<|end|>",
    "<|channel|>commentary<|message|>I will call a tool.<|end|>",
    "analysisWe need to write a mail.",
    "thought\nThe user wants a mail.",
    "Thinking...\nThe user wants",
    "Here is my thought process: the user",
    "Okay, the user wants a mail. I should keep to the word count.",
    "Alright, so the user is asking for a mail.",
    "The user wants me to write a mail.",
]


@pytest.mark.parametrize("answer", ENDLESS)
def test_where_no_end_of_the_reasoning_can_be_told_an_answer_is_of_no_use(answer):
    assert without_reasoning(answer) is None


HONEST = [
    TEXT,
    "I thought about it, and my reasoning is sound. On reflection: no.",
    "Analysis of the paper: it is good.",
    "Analysis\nThe paper is good.",
    "Thought it was good\nbut no.",
    "My final analysis is [analysis] here, (thought) and {planning}.",
    "1 < think > 2, and <p>this</p> is <i>not</i> it.",
    "The user wants to see more colours. The user study is small.",
    "Well, the users were nice. Okay, the food was cold.",
    "The assistant final exam was hard, the assistant finally came.",
    "final exams are hard",
    "So the user manual has errors.",
    "The answer: <answer> is a tag.",
    "Thinking... that it was late, I went.",
]


@pytest.mark.parametrize("text", HONEST)
def test_an_honest_text_stays_as_it_is(text):
    assert without_reasoning(text) == text


def test_a_prompt_that_begins_the_reasoning_is_known_by_its_end():
    assert open_tag("<|im_start|>assistant\n<think>\n") == "<think>"
    assert open_tag("<s>[INST]x[/INST][THINK]") == "[THINK]"
    assert open_tag("<|im_start|>assistant\n<think>\n\n</think>\n\n") == open_tag("<think> is a tag.") == ""
