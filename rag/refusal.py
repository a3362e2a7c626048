"""Sentences in which the LLM says that it has no answer, and the service's own, in English and Korean. Pure."""

from __future__ import annotations

import re

from rag.quotes import strip_markers

# What is answered where the documents hold no answer, by rag.language.language_of the question; others get "latin".
ABSTENTION = {
    "latin": "The documents hold no answer to this question.",
    "ko": "문서에서 이 질문의 답을 찾지 못했습니다.",
}

_PASSAGES = r"(?:provided |given )?(?:passages?|documents?|texts?|context|information|sources?)"
_STATED = r"(?:mentioned|stated|specified|said|given|provided|found|contained|available|known)"
_KOREAN_TOPIC = r"(?:(?:이|그|해당|관련|질문에?|이에|대한|대해서?는?|관한|(?:답|답변|정보|내용|언급)[이가은는]?) )*"
_KOREAN_MISSING = (
    r"(?:없|부족|충분하지 않|(?:찾을|알|확인할|답할) 수 ?없|(?:나와|적혀|들어|(?:언급|포함|명시)되어) ?있지 않"
    r"|(?:나오|다루|(?:언급|포함|명시)[되하]|(?:말|설명|제공)하)지 않)[가-힣]{0,5}\W*$"
)
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{_PASSAGES} (?:do(?:es)?|did)(?: not|n['’]t) (?:say|state|mention|contain|provide|include|specify|answer"
        r"|give|hold|describe|discuss|address|explain|indicate|tell|cover|have)\b",
        rf"\b{_PASSAGES} (?:(?:contain|provide|give)s? no|ha(?:s|ve) no) (?:answer|information|mention)\b",
        rf"\b{_PASSAGES} (?:is|are)(?: not|n['’]t) (?:enough|sufficient|available)\b",
        rf"\bnot (?:{_STATED} )?(?:in|by|from) (?:the |these |this |any )?{_PASSAGES}\b",
        r"^(?:(?:i['’]m|i am) sorry,? |sorry,? |unfortunately,? |but |so )*"
        r"(?:(?:i|we) (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t|am (?:not able|unable) to)\b"
        r"[^.]*\b(?:know|answer|find|tell|say|determine|provide|have)\b"
        r"|unable to (?:answer|find|determine)\b"
        r"|(?:there (?:is|was) |there['’]s )?(?:no|not enough|insufficient) (?:information|mention|answer|evidence)\b"
        rf"|(?:it|this|that|the (?:answer|information)) (?:is|was)(?: not|n['’]t) {_STATED}\b)",
        r"(?:문서|본문|자료|지문|글|구절|내용|정보|문맥)들?(?:에|에는|에서|에서는|만으로는) "
        rf"{_KOREAN_TOPIC}{_KOREAN_MISSING}",
        r"(?:문서|본문|자료|지문|글|구절|내용|정보|문맥)들?(?:에|에는|에서|에서는) (?:\S+ ){1,5}"
        r"(?:(?:언급|명시|기재|설명)(?:되어 있지|돼 있지|되지|하지)|나와 ?있지|나오지|적혀 ?있지) 않[가-힣]{0,5}\W*$",
        rf"(?:정보|내용|근거|답)[가는이은] (?:\S+ ){{0,2}}{_KOREAN_MISSING}",
        r"^(?:\S+ ){0,3}(?:알|찾을|답할|답변할|답변드릴|확인할) 수[가는]? ?없[가-힣]{0,5}\W*$",
        r"(?:모르겠[가-힣]*|모릅니다)\W*$",
    )
)


def is_refusal(sentence: str) -> bool:
    """Whether the LLM says that it does not know or that the passages do not say: no claim, so nothing to support."""
    text = strip_markers(sentence)
    return any(refusal.search(text) for refusal in _REFUSALS)
