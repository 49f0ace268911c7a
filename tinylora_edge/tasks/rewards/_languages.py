"""The language that a text is in, guessed from its most frequent small words. It is crude, and said to be."""

from __future__ import annotations

from .guards import words

_LOWEST_SHARE = 0.2  # running text of these languages has 0.3 to 0.6
_HIGHEST_SHARE = 0.8  # above, it is a list of small words, not a text
_FEWEST_WORDS = 5

STOP_WORDS: dict[str, frozenset[str]] = {
    code: frozenset(text.split())
    for code, text in {
        "de": "aber als am an auch auf aus bei das dass dem den der des die durch ein eine einem einen einer "
        "er es für hat ich im in ist kann mit nach nicht noch nur oder sein sich sie sind so über um und "
        "vom von war was wenn werden wie wir wird zu zum zur",
        "en": "a about after all an and are as at be been but by can for from had has have he her his if in "
        "into is it its more not of on one or she so that the their there they this to up was we were when "
        "which who will with would you your",
        "es": "al como con cuando de del donde el ella en entre es esta este fue ha hay la las le lo los más "
        "mi muy no nos o para pero por porque que se ser sin sobre son su sus también tiene un una y ya",
        "fr": "à au aux avec c'est ce ces cette comme dans de des du elle en est et être il ils je la le les "
        "leur l'on mais ne nous on ont ou où par pas plus pour qu'il que qui sa sans se ses son sont sur "
        "un une vous",
        "it": "a al alla anche che chi ci come con da dal dalla degli dei del della delle di e è gli ha i il "
        "in io la le lo ma nel nella non o per perché più quando quello questa questo se si sono su sua "
        "suo un una",
        "nl": "aan al als bij dan dat de deze die dit door een en er geen had heeft het hij ik in is je kan "
        "maar met mijn na naar niet nog of om ook op over te tot uit van voor was wat we werd wordt ze zich "
        "zijn zo",
        "pt": "a ao aos as até com como da das de do dos e é ela ele em entre era essa esse está eu foi há "
        "isso já mais mas muito na não nas no nos o os ou para pela pelo por quando que se sem ser seu sua "
        "são também um uma",
    }.items()
}
"""The languages that `language` knows, by ISO 639-1 code."""


def guess(text: str) -> str | None:
    """Return the code of the one language whose stop words are most frequent, or None.

    None for fewer than 5 words, for a tie, and where the share of stop words is below 0.2 or above 0.8.
    """
    sequence = words(text)
    if len(sequence) < _FEWEST_WORDS:
        return None
    counts = {code: sum(word in stops for word in sequence) for code, stops in STOP_WORDS.items()}
    best = max(counts.values())
    leaders = [code for code, count in counts.items() if count == best]
    share = best / len(sequence)
    return leaders[0] if len(leaders) == 1 and _LOWEST_SHARE <= share <= _HIGHEST_SHARE else None
