"""Joint image-mask models (UniCon): one model that segments, draws from masks, and draws both."""

from .adapter import PairedUNet
from .model import draw, fit, layout_of, paint, segment, to_stream

__all__ = ["PairedUNet", "draw", "fit", "layout_of", "paint", "segment", "to_stream"]
