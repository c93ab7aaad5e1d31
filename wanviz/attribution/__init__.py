"""Which word is behind which region: one question, many methods, each in a file of its own."""

from wanviz.attribution.ask import METHODS, attribute
from wanviz.attribution.ranking import rank_words
from wanviz.attribution.result import Attribution, Phrase

__all__ = ["METHODS", "Attribution", "Phrase", "attribute", "rank_words"]
