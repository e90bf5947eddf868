"""LV-Eval's prompts and numbers of new tokens, letter for letter as in its config.py (infinigence/LVEval, MIT)."""


def _english(where: str) -> str:
    ask = (
        f"Questions and answers are only relevant to {where}. "
        "Only give me the answer and do not output any other explanation and evidence."
    )
    return (
        "Please answer the following question based on the given passages. " + ask + "\n\nArticle: {context}\n\n"
        "Please answer the following question based on the above passages. " + ask + "\n\nQuestion: {input}\nAnswer:"
    )


def _chinese(now: str) -> str:
    return (
        "请根据下面给定的文章回答问题，问题和答案只与其中一篇文章有关。\n\n文章：{context}\n\n"
        f"{now}基于上述文章回答下面的问题，问题和答案只与其中一篇文章有关。"
        "\n\n问题：{input}\n回答："
    )


_LOOGLE = _english("one passage")
_ANSWER_ALONE = "只需要直接给出问题的答案，不要输出其他任何解释和证据。"

PROMPTS = {
    "hotpotwikiqa_mixup": _english("some passages").replace(
        "Please answer the following question based on the given", "Answer the question based on the given"
    ),
    "loogle_SD_mixup": _LOOGLE,
    "loogle_CR_mixup": _LOOGLE,
    "loogle_MIR_mixup": _LOOGLE,
    "multifieldqa_en_mixup": _LOOGLE,
    "multifieldqa_zh_mixup": (
        f"请阅读以下文章并用中文回答问题，问题和答案只与其中一篇文章有关。{_ANSWER_ALONE}\n\n文章：{{context}}\n\n"
        f"请基于上面的文章回答下面的问题，问题和答案只与其中一篇文章有关。{_ANSWER_ALONE}\n\n"
        "问题：{input}\n回答："
    ),
    "factrecall_en": (
        "Please answer the following questions based on the given article.\n\nArticle: {context}\n\n"
        "Please answer the following questions based on the above article.\n\nQuestion: {input}\nAnswer:"
    ),
    "factrecall_zh": (
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n现在请基于上述文章回答下面的问题。\n\n问题：{input}\n回答："
    ),
    "cmrc_mixup": _chinese("现在请"),
    "lic_mixup": _chinese("请现在"),
    "dureader_mixup": _chinese("现在请"),
}
MAX_NEW_TOKENS = {name: 16 if name.startswith("factrecall") else 64 for name in PROMPTS}
