"""Prompts, rows and truncation of LV-Eval and InfiniteBench."""

import hashlib

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.infinitebench.prompts import PROMPTS as INFINITEBENCH_PROMPTS
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.suite import BadRowError, LongContextExample
from pipeline.evaluation.long_context.truncation import MiddleTruncation
from pipeline.evaluation.lveval.prompts import PROMPTS as LVEVAL_PROMPTS
from pipeline.evaluation.lveval.tasks import LVEVAL

ONE_PASSAGE, IN_CHINESE = "dea26bcf80f439ac", "5017b8321e45769f"
OFFICIAL = {  # sha256, first 16 digits, of the official templates
    "hotpotwikiqa_mixup": "c8b75e076f014e87",
    "loogle_SD_mixup": ONE_PASSAGE,
    "loogle_CR_mixup": ONE_PASSAGE,
    "loogle_MIR_mixup": ONE_PASSAGE,
    "multifieldqa_en_mixup": ONE_PASSAGE,
    "multifieldqa_zh_mixup": "7427f4ffbc307206",
    "factrecall_en": "95b795444370c103",
    "factrecall_zh": "d71ee6028140eeb4",
    "cmrc_mixup": IN_CHINESE,
    "lic_mixup": "a546c25719e3ac10",
    "dureader_mixup": IN_CHINESE,
    "passkey": "32a0f730f8746b1a",
    "number_string": "f519b51c90c40022",
    "kv_retrieval": "afa97419dd69cd74",
    "longbook_sum_eng": "897e95259c5b906a",
    "longbook_choice_eng": "fddf5d8b4293a275",
    "longbook_qa_eng": "6f24f4abaf415845",
    "longbook_qa_chn": "121d4332c1cc5ee0",
    "math_find": "df2334891e94023e",
    "math_calc": "ebf0b348e08e938f",
    "code_run": "8cfbec4288592e77",
    "code_debug": "e485a37d7c9c193f",
    "longdialogue_qa_eng": "0483f9f01c709be7",
}
LVEVAL_ROW = {"context": "a {book}", "input": "Who?", "answers": ["Ann", "Bob"], "answer_keywords": "Ann"}
TASK = {task.name: task for task in (*LVEVAL.tasks, *INFINITEBENCH.tasks)}


def read(task, row):
    return TASK[task].read_row(f"{task}/1", task, row)


def test_templates_are_the_official_text():
    templates = LVEVAL_PROMPTS | INFINITEBENCH_PROMPTS
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in templates.items()} == OFFICIAL


def test_lveval_has_eleven_sets_at_five_lengths():
    assert len(LVEVAL.tasks) == 55 and len({task.file for task in LVEVAL.tasks}) == 55 and len(LVEVAL.files) == 11
    of = {metric: {t.archive for t in LVEVAL.tasks if t.metric == metric} for metric in ("keyword_f1", "f1", "rouge_l")}
    assert len(of["keyword_f1"]) == 8 and of["rouge_l"] == {"dureader_mixup.zip"}
    assert of["f1"] == {"factrecall_en.zip", "factrecall_zh.zip"}
    assert {t.archive for t in LVEVAL.tasks if t.max_new_tokens == 16} == of["f1"]
    chinese = {t.archive for t in LVEVAL.tasks if "问题" in read(t.name, LVEVAL_ROW).prompt}
    scores = {t.archive: t.score("可以的", LongContextExample("", "", "", ("可以的",))) for t in LVEVAL.tasks}
    # the blacklisted answer fails in a Chinese gate; English words have no such blacklist and no keywords here
    assert {archive for archive, score in scores.items() if score == 0} == chinese - {"factrecall_zh.zip"}
    said, true = "是贝多芬", LongContextExample("", "", "", ("贝多芬",))  # two words to jieba, one between spaces
    assert {t.archive for t in LVEVAL.tasks if t.score(said, true) > 0} == chinese


def test_lveval_row():
    example = read("factrecall_en_16k", LVEVAL_ROW)
    assert example.prompt == (
        "Please answer the following questions based on the given article.\n\nArticle: a {book}\n\n"
        "Please answer the following questions based on the above article.\n\nQuestion: Who?\nAnswer:"
    )
    assert (example.id, example.references, example.keywords) == ("factrecall_en_16k/1", ("Ann", "Bob"), "Ann")
    assert read("cmrc_mixup_16k", LVEVAL_ROW | {"answer_keywords": None}).keywords is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "'context' must be a string, found NoneType"),
        ({"input": 3}, "'input' must be a string, found int"),
        ({"answers": []}, "'answers' must be a list of strings, found \\[\\]"),
        ({"answers": "Ann"}, "'answers' must be a list"),
        ({"answers": [1]}, "'answers' must be a list"),
        ({"answer_keywords": ["Ann"]}, "'answer_keywords' must be a string, found list"),
    ],
)
def test_bad_lveval_rows(change, message):
    with pytest.raises(BadRowError, match=message):
        read("factrecall_en_16k", LVEVAL_ROW | change)


OPTIONS = ["w", "x", "y", "z"]
ROWS = {  # task: row, how its prompt begins, how it ends, references
    "math_find": (
        {"input": "You answer. The second largest number of the list is:", "context": "[1, 2]", "answer": [1]},
        *("What is the second largest number in the following list?\n\n[1, 2]\n\nYou answer. The", "list is:", (1,)),
    ),
    "code_run": (
        {"input": "Please give me the value of func_7(-3).", "context": "def", "answer": 4},
        "There is a function called func_7 in the following Python code.\n\ndef\n\n",
        *("compute the exact value of func_7(-3). The value of func_7(-3) is", (4,)),
    ),
    "longbook_choice_eng": (
        {"input": "Who?", "context": "book", "answer": "y", "options": OPTIONS},
        *("Read the book and answer the question.\n\nbook\n\nQuestion: Who?\nA. w\nB. x\n", "answer is", ("y", "C")),
    ),
    "code_debug": (
        {"input": "Which?", "context": "code", "answer": ["x", "B"], "options": OPTIONS},
        *("Following is a Python", "code\n\nOptions:\nA. w\nB. x\nC. y\nD. z\n\nThe correct option is:", ("x", "B")),
    ),
    "math_calc": ({"input": "", "context": "1 + 2", "answer": [[1, 3]]}, "Let us", "1 + 2\nValues:", (1, 3)),
    "passkey": ({"input": "Which key?", "context": "{a}", "answer": ["71432"]}, "There", "The pass key is", ("71432",)),
}


@pytest.mark.parametrize("task", ROWS)
def test_infinitebench_rows(task):
    row, beginning, ending, references = ROWS[task]
    example = read(task, row)
    assert example.prompt.startswith(beginning) and example.prompt.endswith(ending)
    assert example.references == references


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("math_find", {"input": "Find it."}, "'input' must name a number such as"),
        ("code_run", {"input": "Run it."}, "'input' must name a call such as func_1\\(2\\), found 'Run it.'"),
        ("longbook_choice_eng", {"options": OPTIONS[:3]}, "'options' must be four strings"),
        ("longbook_choice_eng", {"answer": "v"}, "'answer' must be one of the options, found v"),
        ("code_debug", {"answer": ["x", "E"]}, "'answer' must be one of the options"),
        ("passkey", {"answer": []}, "'answer' must be a text"),
        ("passkey", {"answer": None}, "'answer' must be a text"),
        ("math_calc", {"answer": [[1, [2]]]}, "'answer' must be a text"),
        ("passkey", {"context": None}, "'context' must be a string"),
    ],
)
def test_bad_infinitebench_rows(task, change, message):
    with pytest.raises(BadRowError, match=message):
        read(task, ROWS[task][0] | change)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, after a <s> that decoding leaves out."""
    vocabulary = {"<s>": 0} | {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}
    bytes_alone = Tokenizer(BPE(vocabulary, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, bos_token="<s>")


def test_the_middle_is_cut_and_counted(tokenizer):
    truncation = MiddleTruncation(LVEVAL, tokenizer, 9)
    prompts = {"a": ["01234567", "012345678", "0123456789abcdef"], "b": ["short"]}
    cut = [truncation.fit(LongContextExample("", task, text, ())) for task in prompts for text in prompts[task]]
    # nine tokens fit, <s> among them; of more, four are kept at either end
    assert cut == ["01234567", "0125678", "012cdef", "short"]
    assert truncation.prompts == {"a": 3, "b": 1} and truncation.truncated == {"a": 2}


def test_each_suite_decodes_the_halves_as_its_own_code(tokenizer):
    example = LongContextExample("", "a", "0é" + "12345678" + "éé", ())
    apart, joined = (MiddleTruncation(suite, tokenizer, 6) for suite in (LVEVAL, INFINITEBENCH))
    # six tokens: <s>, "0" and the first byte of a letter; the last byte of a letter and a whole one
    assert apart.fit(example) == "0\N{REPLACEMENT CHARACTER}" + "\N{REPLACEMENT CHARACTER}é"
    assert joined.fit(example) == "0éé"
