"""IFEval's 25 verifiable instructions, checked by plain rules (arXiv 2311.07911; the rules in our own words).

They decide as the published checker (google-research, instruction_following_eval) does, but for these:

- Sentences: it takes NLTK's punkt, a trained model. Here they end at . ! ? with white space, and at 。！？; a
  listed abbreviation ends none but before listed words, nor dots or a number before a small letter.
- Languages: it takes langdetect, here py3langid.
- Words in capitals: it takes NLTK's tokens. Here signs part words, but not . / and - inside one.
- Keywords, forbidden words and markers are texts, never regular expressions; a marker needs a letter.
- An argument that is missing is drawn at random there; here the instruction cannot be checked.

Texts are what models wrote: each rule takes time in proportion to a text's length, whatever it holds.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[str, Mapping[str, Any]], bool]

RULES: dict[str, Rule] = {}
"""Of each published instruction: whether a text follows it, given its arguments."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]”’*_]*\s+|(?<=[。！？])[”’」』）]*")
_GOES_ON = re.compile(r"(?:\.\.|(?:^|\s)\d{1,9}\.)$")  # before a small letter
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|inc|ltd|co|a\.m|p\.m|u\.s|[a-z])\.$", re.IGNORECASE
)
_STARTERS = {  # begin a sentence after an abbreviation too
    *("The", "He", "It", "They", "I", "This", "These", "But", "In", "If", "When", "However", "Her", "There"),
    *("So", "Please", "Thanks", "Yes", "Some"),
}
_ABBREVIATED = 16  # characters of an end that tell whether it is an abbreviation
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}  # the published markers


class Unknown(Exception):
    """An instruction that cannot be checked; the message says why."""


def follows(text: str, instruction: str, given: Mapping[str, Any]) -> bool:
    """Whether `text` follows the instruction with the arguments `given`; an empty text follows none.

    Raises:
        Unknown: no such instruction, or an argument is missing or of no use.
    """
    rule = RULES.get(instruction)
    if rule is None:
        raise Unknown(f"no checker for {instruction[:80]}")
    try:
        return bool(text.strip()) and rule(text, given)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise Unknown(
            f"{instruction} needs other arguments ({type(error).__name__}: {error})"[:200]
        ) from error


def loosely(text: str, instruction: str, given: Mapping[str, Any]) -> bool:
    """Whether the text follows it as it is, or without its first line, its last, both, or markdown's stars.

    Raises:
        Unknown: as `follows`.
    """
    lines = text.split("\n")
    cuts = [text, *("\n".join(lines[cut]).strip() for cut in (slice(1, None), slice(-1), slice(1, -1)))]
    variants = [variant for cut in cuts for variant in (cut, cut.replace("*", ""))]
    return any(follows(variant, instruction, given) for variant in variants)


def _rule(name: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return register


def _related(count: int, relation: str, bound: float) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"relation {relation!r}")
    return count >= bound if relation == "at least" else count < bound


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, however many lines each takes."""
    found: list[list[str]] = []
    for part in filter(None, map(str.strip, _SENTENCE_END.split(text))):
        if found and _open(found[-1][-1], part):
            found[-1].append(part)
        else:
            found.append([part])
    return [" ".join(parts) for parts in found]


def _open(before: str, after: str) -> bool:
    """Whether a sentence goes on beyond what looks like its end."""
    end = f" {before}"[-_ABBREVIATED:]
    if _ABBREVIATION.search(end):
        return after.split(maxsplit=1)[0] not in _STARTERS
    return after[0].islower() and bool(_GOES_ON.search(end))


def language(text: str) -> str:
    """The two-letter code of the language that a text is most likely in."""
    import py3langid

    return str(py3langid.classify(text)[0])


def _is_language(text: str, asked: str) -> bool:
    # Without letters there is no language to tell.
    return not re.search(r"[^\W\d_]", text) or language(text) == asked.lower().partition("-")[0]


@_rule("keywords:existence")
def _existence(text: str, given: Mapping[str, Any]) -> bool:
    return all(word.lower() in text.lower() for word in given["keywords"])


@_rule("keywords:frequency")
def _frequency(text: str, given: Mapping[str, Any]) -> bool:
    keyword = given["keyword"].strip().lower()
    return _related(text.lower().count(keyword), given["relation"], given["frequency"])


@_rule("keywords:forbidden_words")
def _forbidden(text: str, given: Mapping[str, Any]) -> bool:
    held = (re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in given["forbidden_words"])
    return not any(held)


@_rule("keywords:letter_frequency")
def _letters(text: str, given: Mapping[str, Any]) -> bool:
    letter = given["letter"].strip().lower()
    return _related(text.lower().count(letter), given["let_relation"], given["let_frequency"])


@_rule("language:response_language")
def _in_language(text: str, given: Mapping[str, Any]) -> bool:
    return _is_language(text, given["language"])


@_rule("length_constraints:number_sentences")
def _sentences(text: str, given: Mapping[str, Any]) -> bool:
    return _related(len(sentences(text)), given["relation"], given["num_sentences"])


@_rule("length_constraints:number_words")
def _words(text: str, given: Mapping[str, Any]) -> bool:
    return _related(len(words(text)), given["relation"], given["num_words"])


@_rule("length_constraints:number_paragraphs")
def _paragraphs(text: str, given: Mapping[str, Any]) -> bool:
    """Paragraphs are parted by three stars; one may stand before the first and after the last."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[1 if not parts[0] else 0 : len(parts) - (1 if not parts[-1] else 0)]
    return all(inner) and len(inner) == given["num_paragraphs"]


@_rule("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, given: Mapping[str, Any]) -> bool:
    """Blank paragraphs are not counted, but the nth is that of all; only some signs end its first word."""
    parts = [part.strip() for part in text.split("\n\n")]
    count, nth = sum(map(bool, parts)), int(given["nth_paragraph"])
    if count != given["num_paragraphs"] or not 1 <= nth <= count or not parts[nth - 1]:
        return False
    first = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", first)[0].lower() == given["first_word"].lower()


@_rule("detectable_content:number_placeholders")
def _placeholders(text: str, given: Mapping[str, Any]) -> bool:
    return len(re.findall(r"\[[^\n\[\]]*\]", text)) >= given["num_placeholders"]


@_rule("detectable_content:postscript")
def _postscript(text: str, given: Mapping[str, Any]) -> bool:
    """The marker stands anywhere, in letters of any case; the published two may have a space in them."""
    marker = given["postscript_marker"].strip()
    if not re.search(r"\w", marker):
        raise ValueError("a marker without letters")
    pattern = _POSTSCRIPTS.get(marker) or re.escape(marker.lower())
    return bool(re.search(pattern, text.lower()))


@_rule("detectable_format:number_bullet_lists")
def _bullets(text: str, given: Mapping[str, Any]) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == given["num_bullets"]


@_rule("detectable_format:constrained_response")
def _constrained(text: str, given: Mapping[str, Any]) -> bool:
    return any(option in text for option in _CONSTRAINED)


@_rule("detectable_format:number_highlighted_sections")
def _highlights(text: str, given: Mapping[str, Any]) -> bool:
    """Stars about a text, and twice where they are double: three count as both."""
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(found.strip()) for found in single + double) >= given["num_highlights"]


@_rule("detectable_format:multiple_sections")
def _sections(text: str, given: Mapping[str, Any]) -> bool:
    heads = re.findall(rf"{re.escape(given['section_spliter'].strip())}\s?\d+", text)
    return len(heads) >= given["num_sections"]


@_rule("detectable_format:json_format")
def _json(text: str, given: Mapping[str, Any]) -> bool:
    bare = re.sub(r"^```(?:json)?", "", text.strip(), flags=re.IGNORECASE).removesuffix("```").strip()
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


@_rule("detectable_format:title")
def _title(text: str, given: Mapping[str, Any]) -> bool:
    """What stands in a line from its first << to its last >> is not empty."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


@_rule("combination:two_responses")
def _two(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    inner = parts[1 if not parts[0] else 0 : len(parts) - (1 if not parts[-1] else 0)]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


@_rule("combination:repeat_prompt")
def _repeats(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


@_rule("startend:end_checker")
def _ends(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


@_rule("startend:quotation")
def _quoted(text: str, given: Mapping[str, Any]) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


@_rule("change_case:capital_word_frequency")
def _capital_words(text: str, given: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"\w+(?:[./-]\w+)*", text))
    return _related(count, given["capital_relation"], given["capital_frequency"])


@_rule("change_case:english_capital")
def _capital(text: str, given: Mapping[str, Any]) -> bool:
    # Languages are told apart by words in small letters.
    return text.isupper() and _is_language(text.lower(), "en")


@_rule("change_case:english_lowercase")
def _lowercase(text: str, given: Mapping[str, Any]) -> bool:
    return text.islower() and _is_language(text, "en")


@_rule("punctuation:no_comma")
def _no_comma(text: str, given: Mapping[str, Any]) -> bool:
    return "," not in text
