"""Width search for binary networks (Shen, Han, Xu, Wang 2019, arXiv 1909.07378).

`search` finds width codes, `resume` goes on after a stop, `study` retrains the best beside uniform widths of equal
cost.
"""

from bitnas.methods.width.config import PRESETS, WidthSearchConfig, preset
from bitnas.methods.width.inherit import inherit
from bitnas.methods.width.search import SearchResult, resume, search
from bitnas.methods.width.study import study

__all__ = ["PRESETS", "SearchResult", "WidthSearchConfig", "inherit", "preset", "resume", "search", "study"]
