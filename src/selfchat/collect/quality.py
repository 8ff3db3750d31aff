"""Why a line, or a whole dialogue, of a teacher that talks with itself is of no use.

What was paid for is not thrown away for a false alarm, so the rules name what only a teacher out of
its part would say, and leave alone what a human may well say: about chatbots, in quotation marks,
in code, or when asked. Only the user's lines are judged by their wording; an assistant may refuse,
offer help, and write a script if asked for one. The wording is English, like the prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from selfchat.core.errors import UsageError, missing_extra
from selfchat.core.records import Message, Reason, Role
from selfchat.template.markers import has_marker

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_LONG_LINE = 500  # characters: what comes after them is a text that the user quotes
_SHORT_WORDS = 4  # fewer may be said twice: "Yes, please."
_BEGINNING = 12  # characters, the same in all that counts as repeated
_ECHO_WORDS = 6  # shorter lines may well be alike
_ECHO_SHARE = 0.9  # of the words of the longer line
_CONFIDENT = 0.95  # that a text is in another language


class Fault(NamedTuple):
    """Why something that was said is of no use, and the words that show it."""

    reason: Reason
    detail: str


# Labels and marks

_NOTHING = " \t\r\n\"'“”‘’*_-–—.…"
_CODE = re.compile(r"(`{3,}|~{3,}).*?(?:\1|\Z)|`[^`\n]+`", re.DOTALL)
_MARKER = re.compile(  # `[AI](address)` is a link, and `Dear [User]` a place to fill in
    r"\[ ?(?:\*\*)?\|? ?(?:Human|HUMAN|AI) ?\|?(?:\*\*)? ?\](?!\()"
    r"|^[ \t]*\[(?:User|USER|Assistant|ASSISTANT)\](?!\()"
    r"|<\|(?:im_start|im_end|endoftext|eot_id|user|assistant|system)\|>|\[/?INST\]|<</?SYS>>"
    r"|</?start_of_turn>",
    re.MULTILINE,
)
_END_MARK = re.compile(r"(?<![\w\])])\[(?:END|End|end)\]|\A\W*END\W*\Z")
_OF_HUMAN = ("Human", "HUMAN", "User", "USER")
_OF_AI = ("AI", "Ai", "Assistant", "ASSISTANT", "Chatbot")
_LABEL = re.compile(  # at the beginning of a line, before some words or alone: `User: bob` is none
    r"^[ \t>]*(?:[*_#]{1,4} ?)?(?:The |A )?"
    rf"(?:(?P<human>{'|'.join(_OF_HUMAN)})|(?:{'|'.join(_OF_AI)})(?: [Aa]ssistant)?)"
    r"(?: \d)?[*_]{0,3} ?:[*_]{0,3}"
    r"(?=[ \t]+\S+[ \t]+\S|[ \t]+\S*[?.!]$|[ \t]*\n(?![ \t])|[ \t]*\Z)",
    re.MULTILINE,
)
_LABELLED = {"user": (*_OF_HUMAN, *_OF_AI), "assistant": _OF_HUMAN}  # a search takes its time
_OWN_LABEL = re.compile(
    r"[*_#>\"“\s]*(?:\[\s?\|?\s?human\s?\|?\s?\]\s?:?|(?:the |a )?(?:human|user)(?:['’]s)?"
    r"(?: (?:next )?(?:message|question|line))?[*_]{0,3}\s?:)[*_\"”]{0,3}(?=\s|\w|[\"“]|$)",
    re.IGNORECASE,
)
_SCRIPT = re.compile(
    r"\b(?:dialog|conversation|convo|script|chat|transcript|interview|story|play\b|scene|skit"
    r"|sketch|role-?play|debate|example|label|format|prompt|joke|log\b)",
    re.IGNORECASE,
)

# The user's wording, in lower case and with straight apostrophes


def _at_start(*wordings: str) -> re.Pattern[str]:
    return re.compile(rf"[\"'“*(\s]*(?:{'|'.join(wordings)})")


class _Said(NamedTuple):
    """A wording that may stand anywhere outside quotation marks, and words that are part of it."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def with_any(cls, *words: str, of: tuple[str, ...]) -> _Said:
        return cls(words, re.compile(rf"(?<![\"'“‘«\w])(?:{'|'.join(of)})"))

    def find(self, text: str) -> re.Match[str] | None:
        for word in self.words:  # most lines have none of them, and then need no pattern
            if word in text:
                return self.pattern.search(text)
        return None


_WOULD_SAY = (
    r"(?:would|might|could|may|will)(?: \w+ly| also| then| next| now)*"
    r" (?:ask|say|respond|reply|follow up|continue)\b"
)
_LEAKS_AT_START = _at_start(
    rf"the (?:human|user) {_WOULD_SAY}",
    r"the human (?:asks|continues|replies|responds|is (?:asking|attempting|curious|interested"
    r"|likely|looking for|talking|trying to|wondering))\b",
    r"the ai is (?:attempting|suggesting|asking|responding)\b",
    r"(?:the )?(?:human|user)'s next (?:message|question|line|turn|response|reply)\b",
    r"(?:the )?next (?:human |user )?(?:message|utterance)\b[^.?!]{0,30}:",
    r"the next (?:thing|question|line)\b[^.?!]{0,30}:",
    r"(?:\w+[!,.] )?(?:so, )?here(?:'s| is| are) the next(?: \w+){0,2}"
    r" (?:message|question|line|thing)\b",
    r"(?:\w+[!,.] )?here(?:'s| is| are) (?:a|an|one|some)(?: \w+,?)?"
    r" (?:natural|possible|potential|suggested)(?: \w+-?\w*){0,2}"
    r" (?:messages?|questions?|lines?|response to the conversation)\b",
    r"here(?:'s| is) (?:a|the) continuation of (?:the|this) conversation",
    r"(?:this|the) (?:conversation|dialogue|transcript)"
    r" (?:between (?:a|the|two) (?:human|user|ai)|continues\b|touches on|explores"
    r"|seems to be about|is (?:over|complete)\b)",
    r"(?:this|here|that) is the end of (?:the|this) (?:conversation|dialogue|transcript)",
    r"[(\[](?:end of (?:the )?(?:conversation|dialogue|transcript)"
    r"|the (?:human|user|conversation)\b)",
)
_LEAKS = (
    _Said.with_any(
        "human",
        of=(
            rf"the human {_WOULD_SAY}",
            r"(?:speaking |responding |replying )?as the human"
            r"(?=[,.:]| in (?:this|the) (?:conversation|dialogue|transcript|scenario|role))",
            r"human has (?:no (?:more|further|other) questions"
            r"|nothing (?:more|else|further) to (?:ask|say))",
        ),
    ),
    _Said.with_any(
        "next thing",
        "next message",
        of=(
            r"the next (?:thing|message) (?:that )?the (?:human|user)\b",
            r"write (?:only )?the next thing\b",
        ),
    ),
    _Said.with_any("from the conv", of=(r"(?:naturally )?follows from the conversation\b",)),
)
_MODEL = (
    r"(?:ai|artificial intelligence|(?:large )?language model|chatbot|bot)"
    r"(?: language model| assistant| model| chatbot)?"
)
_OFFER = r"(?:help|assist)"
_FLIPS_AT_START = _at_start(
    r"(?:sure|certainly|of course|absolutely)[!,.]+"
    rf" (?:i(?:'d| would|'ll| will) (?:be (?:happy|glad)|love) to {_OFFER}|i can {_OFFER}"
    r"|the ai\b)",
)
_FLIPS = (
    _Said.with_any(
        "help",
        "assist",
        of=(
            rf"how (?:else )?(?:can|may|could) i {_OFFER}(?: you| today| further)"
            r"(?: today| further| now| out| with (?:that|this|it|your \w+))*\s?\?",
            rf"what (?:\w+ ){{0,3}}can i {_OFFER}(?: you)? with(?: today)?\s?\?",
            r"what do you need (?:help|assistance) with\b",
            rf"i(?:'m| am) (?:always )?(?:here|ready) to {_OFFER}(?: and \w+)?"
            r"(?: you\b| with (?:any|your|whatever)|[.!,]|$)",
            rf"anything else (?:that )?(?:i can {_OFFER}|you need (?:help|assistance))",
            r"i(?:'d| would|'ll| will) (?:be )?(?:more than |always |so )?(?:happy|glad|delighted"
            rf"|pleased) to {_OFFER}(?: you\b| with (?:that|this|the|your|any)|[.!,]|$)",
            rf"i(?:'m| am) (?:always |so )?(?:happy|glad|delighted|pleased) to {_OFFER}"
            r"(?: you\b| with (?:that|this|the|your|any))",
            r"if you need (?:any )?(?:more|further|additional|other) (?:help|assistance)\b",
            rf"i can (?:certainly |definitely |also )?{_OFFER} you (?:with|find|to|in)\b",
        ),
    ),
    _Said.with_any(
        "ai",
        "bot",
        "language model",
        "artificial",
        of=(
            rf"as an? {_MODEL},? (?:i(?! (?:want|need|would like|wish|expect|ask)|'d like)|my)\b",
            r"i(?:'m| am) (?:just |only |simply |merely )?"
            rf"(?:an? {_MODEL}|an? (?:\w+ ){{1,2}}ai assistant)"
            r"(?=[,.!;]|$| (?:who|that|which|here|based|built|created|designed|developed|programmed"
            r"|trained)\b)",
        ),
    ),
    _Said.with_any(
        "would like",
        "would you like",
        "you'd like",
        of=(
            r"what (?:topic|else) would you like to (?:discuss|know|talk about)",
            r"anything else (?:that )?you(?:'d| would) like"
            r" (?:to (?:know|discuss|ask|talk about|explore)|help|me to)",
        ),
    ),
    _Said.with_any(
        "do for you",
        of=(r"what (?:else )?can i do for you", r"anything else (?:that )?i can do for you"),
    ),
    _Said.with_any(
        "question",
        of=(
            r"if you have any (?:other|more|further|additional) (?:questions|concerns)",
            r"do you have any (?:other|more|further) questions(?! for me)",
        ),
    ),
    _Said.with_any(
        "my knowledge cut", "as of my", of=(r"my knowledge cut", r"as of my (?:last|latest) ")
    ),
    _Said.with_any(
        "not have",
        "n't have",
        of=(
            r"i (?:don't|do not) have (?:any )?personal"
            r" (?:opinions|beliefs|feelings|emotions|preferences)",
            r"i (?:don't|do not) have (?:access to real-time|the ability to (?:browse|access))",
        ),
    ),
)
_UNASKED = _at_start(
    r"(?:that's |that is |what )?(?:an? )?(?:very |really )?(?:great|excellent|interesting"
    r"|fantastic|wonderful) question[!.,]",
    r"you(?:'re| are) (?:very |most )?welcome\b",
    r"(?:sure|certainly|of course|absolutely)[!,.]+"
    r" (?:here(?:'s| is| are)|let me|you can|there are)\b",
    r"here are (?:some|a few|\w+) (?:\w+ )?(?:tips|ways|steps|suggestions|strategies)\b",
    r"i(?:'m| am)(?: so| very| really)? sorry for (?:the|any) (?:confusion|misunderstanding)"
    r"(?![^?]*\b(?:i meant|i mean|i was|my question|let me))",
    r"to answer your question\b",
)
_ASKS = re.compile(r"\?|\b(?:thanks?|please|wonder|let me know|tell me|could you|can you)\b", re.I)
_QUOTED = re.compile(r"(?<!\A)[\"“][^\"“”\n]*[\"”]")

_UNABLE = r"(?:can't|cannot|can not|won't|will not|(?:'m| am) (?:unable|not able) to)"
_SORRY = (
    r"(?:unfortunately,?|(?:i(?:'m| am) )?(?:\w+ )?sorry,?|i apologi[sz]e,?|my apologies,?)"
    r" (?:but |however,? )?"
)
_REFUSAL = _at_start(
    rf"{_SORRY}(?:as an ai[^,.]{{0,30}},? )?i ?{_UNABLE}"
    rf" (?:{_OFFER}(?: you\b| with\b|[.!,]|$)"
    r"|(?:continue|complete|fulfill?|comply|engage|participate)(?: with| in)?"
    r" (?:this|that|the|your|such|any)\b"
    r"|(?:generate|create|write|provide|produce)(?: \w+){0,3}"
    r" (?:content|message|request|response|conversation|dialogue|transcript))",
    rf"i ?{_UNABLE} {_OFFER}(?: you)? with (?:that|this|your request)\b",
)
_REFUSED_TASK = _at_start(
    r"(?:[^.\n]{0,120}?[.!,;] )?(?:but |however,? )?"
    rf"(?:{_SORRY}|as an? {_MODEL},? )?(?:but |however,? )?"
    rf"i(?: ?{_UNABLE}| must (?:respectfully )?decline to| (?:don't|do not) feel comfortable"
    r"|(?:'m| am) not comfortable) (?:\w+ly )?"
    r"(?:assist|complet|comply|continu|creat|discuss|disregard|do th|engag|follow|forget|fulfil"
    r"|generat|help|ignor|participat|pretend|produc|provid|role-?play|simulat|support|writ)"
)

# Taking leave, in lower case and without punctuation

_HELP = (
    r"(?:help|info|information|advice|tips?|answers?|explanations?|suggestions?|time|assistance"
    r"|recommendations?|support|chat|conversation|details|clarification|insights?|guidance|ideas?"
    r"|patience)"
)
_THANKS = (
    r"(?:many )?(?:thanks|thank you|thx|cheers)"
    r"(?: again| so much| very much| a lot| a bunch| a million| kindly)*"
    rf"(?: for (?:(?:all )?(?:your|the|this|that)(?: \w+)? {_HELP}(?: and (?:your )?{_HELP})?"
    r"|helping(?: me)?(?: out)?|(?:explaining|clarifying|answering|sharing)"
    r"(?: this| that| it| my questions?)?|everything|that|this|all that))?"
)
_BYE = (
    r"good ?bye|bye(?: bye)?(?: for now| now)?|take care|farewell|until next time|good ?night"
    r"|see (?:you|ya)(?: later| soon| around| next time| tomorrow)?|catch you later"
    r"|talk to you (?:later|soon)|(?:have|enjoy) (?:a|an|the rest of your)(?: \w+)?"
    r" (?:day|one|evening|night|weekend|time|afternoon|week|morning)(?: ahead| too)?"
)
_DONE = (
    r"(?:that's|that is|that was|that will be|that'll be|that would be) (?:all|it|everything)"
    r"(?: (?:that )?i (?:needed|wanted|need|have)(?: to (?:know|ask|hear))?)?"
    r"|(?:no )?nothing (?:else|more)|no i(?:'m| am) (?:good|fine|okay)"
    r"|i(?:'m| am) (?:all (?:set|good)|done)|(?:i have )?no (?:more|further|other) questions"
    r"|i (?:don't|do not) have any (?:more|further|other) questions"
)
_KIND = (
    r"ok|okay|great|perfect|alright|all right|well|cool|awesome|wonderful|excellent|amazing"
    r"|fantastic|nice|got it|i see|understood|sounds good|sure|yes|yeah|yep|no|nope|oh|wow|and"
    r"|then|again|i think|for now|for today|at the moment|you too|same to you|my friend"
    rf"|i (?:really )?appreciate (?:it|that|this|(?:all )?(?:your|the) {_HELP})"
    r"|(?:that's|that is|that was|this is|this was|this has been|you've been|you have been"
    r"|you were|it was|it's been) (?:very |so |really |super |extremely |incredibly |all |most )*"
    r"(?:helpful|useful|informative|great|kind|perfect|enough)"
    r"|(?:it was |it's been )?(?:nice|great|good|lovely|a pleasure) (?:talking|chatting|speaking)"
    r" (?:to|with) you"
)
_GOODBYE = re.compile(
    rf"(?:(?:{_KIND}) )*(?:{_THANKS}|{_BYE}|{_DONE}) (?:(?:{_THANKS}|{_BYE}|{_DONE}|{_KIND}) )*"
)
_NO_WORD = re.compile(r"[^\w']+")

_PAUSES = str.maketrans(dict.fromkeys(".,;:!?…\"“”'‘’()", " "))  # may differ in what is repeated


def without_label(text: str) -> str:
    """A user's line without a leading speaker label that the writer put there against the prompt.

    Quotation marks around the whole line go with the label.
    """
    text = text.strip()
    label = _OWN_LABEL.match(text)
    if label is None:
        return text
    rest = text[label.end() :].strip()
    quoted = len(rest) > 1 and rest[0] + rest[-1] in ('""', "“”") and rest.count('"') in (0, 2)
    return rest[1:-1].strip() if quoted else rest


def line_fault(text: str, speaker: Role, before: Sequence[Message]) -> Fault | None:
    """By turns: why a line that was just said cannot be used, or None.

    Args:
        before: what was said until then, to see what the line repeats and what it answers.
    """
    if fault := _wording_fault(text, speaker, before):
        return fault
    said, earlier = _plain(text), [_plain(message.content) for message in before]
    may_repeat = _is_short(said) and said not in earlier[-1:]
    if earlier.count(said) > may_repeat:
        return Fault(Reason.REPEATED_TURN, "said before")
    if earlier and _is_echo(said, earlier[-1]):
        return Fault(Reason.REPEATED_TURN, "nearly the same as the line before it")
    return None


def dialogue_fault(
    messages: Sequence[Message], min_words: int = 0, language: str | None = None
) -> Fault | None:
    """Why a finished dialogue is of no use, or None.

    Args:
        min_words: the fewest words that the replies must have together.
        language: the ISO 639-1 code of the language that it should be in; None for any.

    Raises:
        UsageError: the language is unknown, or its extra is not installed.
    """
    spoken = [message for message in messages if message.role != "system"]
    for index, message in enumerate(spoken):
        if fault := _wording_fault(message.content, message.role, spoken[:index]):
            return fault._replace(detail=f"message {index + 1}: {fault.detail}")
    fault = _repetition(spoken) or _endless_goodbyes(spoken)
    if fault is None and min_words:
        fault = _too_short(spoken, min_words)
    if fault is None and language:
        fault = _wrong_language(spoken, language)
    return fault


def is_goodbye(text: str) -> bool:
    """Whether a user's line only thanks or takes leave, and asks nothing."""
    if len(text) > 200 or "?" in text:
        return False
    words = _NO_WORD.sub(" ", text.lower().replace("’", "'")).strip()
    return _GOODBYE.fullmatch(f"{words} ") is not None


def is_refusal(text: str) -> bool:
    """Whether an answer that should have been a transcript refuses the task itself."""
    beginning = text.lstrip()[:300].partition("[")[0]
    return _REFUSED_TASK.match(_folded(beginning)) is not None


def _folded(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())


def _wording_fault(text: str, speaker: Role, before: Sequence[Message]) -> Fault | None:
    if not text.strip(_NOTHING):
        return Fault(Reason.EMPTY_TURN, f"the {speaker} says nothing")
    prose = _CODE.sub(" ", text) if "`" in text or "~~~" in text else text
    if "[" in prose or "<" in prose or "［" in prose or "【" in prose:
        if has_marker(prose):
            return Fault(Reason.MARKER_LEAK, "a marker within the message")
        if marker := _MARKER.search(prose):
            return Fault(Reason.MARKER_LEAK, f"a marker within the message: {marker[0]!r}")
    if ("[" in prose or "END" in prose) and (end := _END_MARK.search(prose)):
        return _leak(end)
    if ":" in prose and (label := _label(prose, speaker, before)):
        return _leak(label)
    return _user_fault(prose, before) if speaker == "user" else None


def _label(text: str, speaker: Role, before: Sequence[Message]) -> re.Match[str] | None:
    """A label that shows that one speaker goes on as the other.

    An opening may hold a pasted chat, and the user's own label may begin a line. In a reply it
    takes a label of the human and a later one of the AI, where no script was asked for.
    """
    if not any(name in text for name in _LABELLED[speaker]):
        return None
    labels = list(_LABEL.finditer(text))
    if speaker == "user":
        own = bool(labels and labels[0]["human"] and not text[: labels[0].start()].strip())
        return next(iter(labels[own:]), None) if before else None
    asked = next((place for place, label in enumerate(labels) if label["human"]), len(labels))
    if all(label["human"] for label in labels[asked:]):
        return None
    return None if any(_SCRIPT.search(said.content) for said in before) else labels[asked]


def _user_fault(prose: str, before: Sequence[Message]) -> Fault | None:
    said = _folded(prose[:_LONG_LINE])
    if '"' in said or "“" in said:
        said = _QUOTED.sub("", said)
    if found := _LEAKS_AT_START.match(said) or _first(_LEAKS, said):
        return _leak(found)
    if found := _REFUSAL.match(said):
        return Fault(Reason.REFUSAL, f"the user refuses: {_shown(found)}")
    if found := _FLIPS_AT_START.match(said) or _first(_FLIPS, said) or _unasked(said, before):
        return Fault(Reason.ROLE_FLIP, f"the user speaks as the assistant: {_shown(found)}")
    return None


def _unasked(said: str, before: Sequence[Message]) -> re.Match[str] | None:
    """The beginning of an answer, where nothing was asked for."""
    found = _UNASKED.match(said)
    return None if found and before and _ASKS.search(before[-1].content) else found


def _first(wordings: Iterable[_Said], text: str) -> re.Match[str] | None:
    for wording in wordings:
        if found := wording.find(text):
            return found
    return None


def _leak(found: re.Match[str]) -> Fault:
    return Fault(Reason.SIMULATOR_LEAK, f"not part of what is said: {_shown(found)}")


def _shown(found: re.Match[str]) -> str:
    return repr(found[0].strip()[:60])


def _plain(text: str) -> str:
    """What texts share that differ only in case, space and punctuation; C and C++ do not."""
    plain = text.casefold().replace("**", " ").translate(_PAUSES)
    return " ".join(plain.split()) or text.strip()


def _is_echo(said: str, previous: str) -> bool:
    """Whether two plain texts begin alike and share nearly all of their words.

    A correction of a text does not begin alike: the request for it comes first.
    """
    if said[:_BEGINNING] != previous[:_BEGINNING]:
        return False
    mine, theirs = said.split(), previous.split()
    longer = max(len(mine), len(theirs))
    if min(len(mine), len(theirs)) < _ECHO_WORDS:
        return False
    return (Counter(mine) & Counter(theirs)).total() >= _ECHO_SHARE * longer


def _is_short(plain: str) -> bool:
    return plain.count(" ") + 1 < _SHORT_WORDS


def _repetition(messages: Sequence[Message]) -> Fault | None:
    """A reply that was given before, or a message that echoes the one before it.

    A short reply may be given again, as long as it is not half of all.
    """
    begun = {_plain(message.content[: 4 * _BEGINNING])[:_BEGINNING] for message in messages}
    if len(begun) == len(messages):
        return None  # the whole texts need not be looked at
    plain = [_plain(message.content) for message in messages]
    replies = [text for text, said in zip(plain, messages, strict=True) if said.role == "assistant"]
    for reply, times in Counter(replies).items():
        if times > 1 and not (_is_short(reply) and 2 * times < len(replies)):
            return Fault(Reason.REPEATED_TURN, f"a reply that is given {times} times")
    for index, (previous, said) in enumerate(pairwise(plain)):
        if _is_echo(said, previous):
            detail = f"message {index + 2} is nearly the same as the one before it"
            return Fault(Reason.REPEATED_TURN, detail)
    return None


def _endless_goodbyes(messages: Sequence[Message]) -> Fault | None:
    left = [is_goodbye(message.content) for message in messages if message.role == "user"]
    for turn, both in enumerate(pairwise(left)):
        if all(both):
            return Fault(
                Reason.ENDLESS_GOODBYES, f"turns {turn + 1} and {turn + 2} only take leave"
            )
    return None


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def _too_short(messages: Sequence[Message], min_words: int) -> Fault | None:
    """A character counts as a word in Chinese and Japanese."""
    words = sum(
        len(_WORD.findall(message.content)) for message in messages if message.role == "assistant"
    )
    if words >= min_words:
        return None
    return Fault(Reason.TOO_SHORT, f"the replies have {words} words, fewer than {min_words}")


def _wrong_language(messages: Sequence[Message], language: str) -> Fault | None:
    identifier = _identifier()
    if language not in identifier.labels:
        raise UsageError(f"no language {language!r}; known are {', '.join(identifier.labels)}")
    text = "\n".join(message.content for message in messages)
    found, confidence = identifier.classify(text)
    if found in (language, "zxx") or confidence < _CONFIDENT:  # zxx is no language: code, numbers
        return None
    return Fault(Reason.WRONG_LANGUAGE, f"in {found!r}, not {language!r}")


@cache
def _identifier() -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise missing_extra("language", "py3langid") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
