"""How people say in English that they do not know, turn somebody down, or talk casually: patterns for the rules of
``behaviours``."""

from __future__ import annotations

import re
from typing import Final


def _any(*parts: str) -> re.Pattern[str]:
    """One pattern out of several; an apostrophe may be curly, and a space stands for any white space."""
    return re.compile("|".join(parts).replace("'", "['’]").replace(" ", r"\s+"), re.IGNORECASE)


_VERB = "know|known|say|said|tell|told|see|judge|answer|answered|determine|determined|sure|predict|find|decided|work|be"
_STATE = "know|known|clear|certain|possible|stated|given|said|told|recorded|found|settled|able|sure|aware"

UNKNOWN: Final = _any(
    r"\b(?:do|does|did)(?: not|n't) (?:actually |really )?(?:know|say|tell|give|show|mention|state|specify|provide)\b",
    rf"\b(?:cannot|can't|can not|could not|couldn't) (?:\w+ ){{0,2}}(?:{_VERB})\b",
    rf"\b(?:am|is|are|was|were|been|has|have)(?: not|n't) (?:\w+ )?(?:{_STATE})\b",
    r"\b(?:no one|nobody) (?:\w+ ){0,2}(?:knows?|else|can|could|has|counted|certain|really)\b",
    r"\b(?:unknown|uncertain|unclear|unsure|undetermined|impossible to \w+|unable to \w+|remains? a mystery)\b",
    r"\b(?:have|has|had|with) no (?:\w+ )?(?:idea|way|information|means|access|knowledge|data|records?)\b",
    r"(?:\b(?:is|are|was)|'s) no (?:\w+ )?(?:way|telling|record|answer|information|hint|evidence|means|certain)\b",
    r"\bno (?:reliable|certain|agreed) \w+|\bno (?:weight|date|details|temperature|name)\b",
    r"\b(?:too early to (?:say|tell)|only you can know|blind guess|left open|open question|position to know)\b",
    r"\b(?:is|are) lost\b|\bwith the logbook burned\b|\bwould have to |\bonly be known\b|\bno longer tell\b",
    r"\bnever been (?:settled|identified|established|measured|found|determined)\b",
    r"\b(?:does|do) not (?:allow|reveal|make|answer|have the information)\b|\bnot enough information\b",
    r"\bnot (?:something|a thing) (?:that )?(?:we|i|anyone) can know\b",
)
"""Somebody says that something is not known."""

REFUSAL: Final = _any(
    r"\bi(?:'m|'d|'ll)?\b[^.!?;]{0,45}?(?:\bnot\b|n't\b|\bcannot\b|\bunable\b|\bnever\b|\brather\b|\bprefer\b|\bsorry\b)",
    r"\bi\b[^.!?;]{0,45}?\b(?:declin|refus|abstain|refrain|regret|afraid|avoid|object|barred|prohibited|forced|compelled)",
    r"\bi\b[^.!?;]{0,45}?\b(?:pass|silent|say no|steer|leave|insist|withhold|skip|say nothing)\b",
    r"\bi\b[^.!?;]{0,45}?\b(?:(?:stay|keep) (?:away|off)|no (?:wish|part|permission)|nothing to do|breaking my)\b",
    r"\bas an? (?:ai|language model)\b|\bagainst (?:my|the law)\b|\bnot (?:allowed|permitted|suitable)\b",
    r"\bnot (?:something|a thing|a topic|ones|decent)\b|\bnothing (?:that )?(?:i|could|will)\b|\bmust ask\b",
    r"\bplease (?:do not ask|choose another|ask some|look for other|take your|do not count)\b",
    r"\b(?:off limits|inappropriate|unacceptable|misused|unanswered|blocked|excluded|guidelines|so no)\b|: no\.$",
)
"""Somebody turns a request down."""

INFORMAL: Final = _any(
    r"\b\w+n't\b|\b\w+'(?:re|ve|ll|m)\b|\b(?:i|you|he|she|we|they|it|that|there)'d\b",
    r"\b(?:it|that|there|here|what|who|where|how|he|she|let|when)'s\b|\b(?:every|no|some)(?:body|thing)'s\b",
    r"(?<!\w)'(?:cause|em|bout|course|til)\b|\b(?:y'all|c'mon)\b",
    r"\b(?:gonna|wanna|gotta|kinda|sorta|gimme|dunno|lemme|outta|ya|yeah|yep|yup|nope|nah|hey|hi|hiya|okay|ok|bye)\b",
    r"\b(?:guys?|folks?|dudes?|mate|bro|pal|bud|buddy|kids?|mums?|moms?|boss|jerk|pooch|tummy|brolly|grub|gigs?)\b",
    r"\b(?:stuff|thing(?:y|ies)|awesome|super|totally|crazy|heck|yummy|posh|comfy|rubbish|garbage|biggie|probs|soz)\b",
    r"\b(?:cheers|oops|whoops|wow|whoa|ugh|yay|lol|asap|fyi|bummer|thanks|chuck(?:ed|ing)?|screwed|sucks?|bunch)\b",
    r"\b(?:pretty much|kind of|sort of|a lot|lots|(?:loads|tons|heaps|ton|load) of|sure thing|heads up|come on)\b",
    r"\b(?:no (?:worries|problem|sweat)|hang (?:on|in|tight)|big deal|right away|way (?:bigger|better|hotter|nicer))\b",
)
"""Contractions (a possessive 's is none), and words that one does not write to an office."""
